"""What ``fastff tune`` measures of the fused evaluation: every kernel that has launch configurations.

Here: the kernels of one hop over a rattled crystal, each with its definition. Not here: the measurement
(:mod:`fastff.kernels.tuning`), the candidates (beside the kernels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastff.kernels.moment_potential import definitions
from fastff.kernels.moment_potential.cases import build_lattice, draw_weights
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import find_obstacle
from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, FIXED_BITS
from fastff.kernels.node_block.reference import build_cubic_table
from fastff.kernels.tuning import LaunchSpace, Workload, make_key

Define = Callable[[], Any]

REACH = 5.4
"""Length of the neighbor rows in Å: the cut-off and a skin. 54 neighbors in copper."""


REPEATS, REPEATS_SMALL = 30, 21
"""Cubic cells of copper along each edge, on GPUs of 32 GiB and more and on smaller ones: 108,000 and 37,044 atoms.
Both are enough for 4 atoms a program of the moments, with which fewer than 32,768 are not launched, whatever a
candidate asks for."""
LARGE_MEMORY = 32 << 30


def choose_repeats(widths: Mapping[str, int], device: torch.device) -> int:
    """Cells along each edge: as many as have ``n_edges`` pairs where ``widths`` says so, else a size of production."""
    if "n_edges" in widths:
        return max(2, round((widths["n_edges"] / 216) ** (1 / 3)))
    if device.type != "cuda":
        return REPEATS_SMALL
    large = torch.cuda.get_device_properties(device).total_memory >= LARGE_MEMORY
    return REPEATS if large else REPEATS_SMALL


def list_workloads(
    widths: Mapping[str, int],
    device: torch.device,
    *,
    repeats: int | None = None,
    reach: float = REACH,
) -> Iterator[Workload]:
    """Every kernel over ``4 repeats^3`` atoms; ``widths`` has ``n_channels`` (16), ``n_mixed`` and ``n_hidden`` (64).

    Without ``repeats`` as :func:`choose_repeats` says.

    Nothing where the kernels do not take the widths, or without ``n_mixed``: the model is of another kind. Those that
    work in place restore their input at every launch, which adds the same to the time of each candidate.
    """
    from fastff.kernels.moments.kernels import MOMENTS_SPACE
    from fastff.kernels.node_block import kernels as node

    if "n_mixed" not in widths:
        return
    channels, mixed = widths.get("n_channels", 16), widths["n_mixed"]
    hidden = widths.get("n_hidden", 64)
    sample = build_lattice("Cu", 2, reach, "cpu", rattle=0.1, seed=3)
    weights = draw_weights(
        1, 1, sample, n_channels=channels, n_mixed=mixed, hidden=(hidden, hidden)
    )
    if find_obstacle(weights) is not None:
        return
    repeats = choose_repeats(widths, device) if repeats is None else repeats
    system = build_lattice("Cu", repeats, reach, device, rattle=0.1)
    potential = FusedPotential(weights, device)
    packed, block = potential.packed, potential.packed.blocks[0]
    space = potential.allocate(*system.matrix.entries.shape)
    matrix, sites = system.matrix, space.sites
    with torch.no_grad():
        potential.launch_place(space, system.positions, system.species)
        moments = definitions.define_moments(sites, matrix, packed, 0, space.messages[0]).float()
        mixed_moments, invariants = (
            part.float() for part in definitions.define_invariants(moments, block.mixing)
        )
        species = system.species.long()
        pull = definitions.define_perceptron(invariants, None, None, species, block)[2].float()
        gradients = definitions.define_pullback(mixed_moments, pull, block.mixing).float()

    def launch_moments() -> Tensor:
        potential.launch_moments(space, matrix, 0)
        return space.moments[0]

    def launch_invariants() -> tuple[Tensor, Tensor]:
        potential.launch_invariants(space, 0)
        return space.mixed[0], space.invariants[0]

    def launch_perceptron() -> Tensor:
        potential.launch_perceptron(space, 0, adjoint=True)
        return space.invariants[0]

    def restore_pullback() -> None:
        space.mixed[0].copy_(mixed_moments)
        space.invariants[0].copy_(pull)

    def launch_pullback() -> Tensor:
        potential.launch_pullback(space, 0)
        return space.moments[0]

    def restore_adjoint() -> None:
        space.moments[0].copy_(gradients)
        space.accumulators.zero_()

    def launch_adjoint() -> tuple[Tensor, Tensor]:
        potential.launch_adjoint(space, matrix, 0)
        return space.accumulators[:, :3], space.terms[:, :7]

    def define_moments(dtype: torch.dtype) -> Define:
        return lambda: definitions.define_moments(
            sites, matrix, packed, 0, space.messages[0], dtype
        )

    def define_invariants(dtype: torch.dtype) -> Define:
        table = build_cubic_table(dtype, device)
        return lambda: definitions.define_invariants(moments, block.mixing, table)

    def define_perceptron(dtype: torch.dtype) -> Define:
        return lambda: definitions.define_perceptron(invariants, None, None, species, block, dtype)[
            2
        ]

    def define_pullback(dtype: torch.dtype) -> Define:
        table = build_cubic_table(dtype, device)
        return lambda: definitions.define_pullback(mixed_moments, pull, block.mixing, table)

    def define_adjoint(dtype: torch.dtype) -> Define:
        def define() -> tuple[Tensor, Tensor]:
            found = definitions.define_adjoint(
                sites, matrix, packed, 0, space.messages[0], gradients, dtype
            )
            return found.forces * 2.0**FIXED_BITS, found.terms

        return define

    def make(
        kernel: LaunchSpace,
        launch: Define,
        define: Callable[[torch.dtype], Define],
        restore: Callable[[], Any] | None,
        **key: int,
    ) -> Workload:
        exact = define(torch.float64)
        return Workload(
            kernel, make_key(torch.float32, **key), launch, exact, 1e-5, restore, define
        )

    both = {"channels": channels, "mixed": mixed}
    yield make(MOMENTS_SPACE, launch_moments, define_moments, None, channels=channels)
    yield make(
        node.INVARIANTS_SPACE,
        launch_invariants,
        define_invariants,
        lambda: space.moments[0].copy_(moments),
        **both,
    )
    yield make(
        node.PERCEPTRON_SPACE,
        launch_perceptron,
        define_perceptron,
        lambda: space.invariants[0].copy_(invariants),
        channels=channels,
        inputs=8 * mixed,
        hidden=hidden,
    )
    yield make(node.PULLBACK_SPACE, launch_pullback, define_pullback, restore_pullback, **both)
    yield make(ADJOINT_SPACE, launch_adjoint, define_adjoint, restore_adjoint, channels=channels)
