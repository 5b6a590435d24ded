"""What ``fastff tune`` measures of the fused evaluation: every kernel that has launch configurations.

Here: the kernels of one hop over a rattled crystal, those of a second hop that differ where messages are directed, and
the gather of message gradients, each with its definition. Not here: the measurement (:mod:`fastff.kernels.tuning`), the
candidates (beside the kernels).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastff.kernels.moment_potential import definitions
from fastff.kernels.moment_potential.cases import INNER, System, build_lattice, draw_weights
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.launches import name_degree
from fastff.kernels.moment_potential.layout import PotentialWeights, find_obstacle
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.moments.messages import direct_messages, direct_messages_adjoint
from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE
from fastff.kernels.moments_adjoint.scatter import FIXED_BITS
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


def draw_student(widths: Mapping[str, int], n_hops: int, reach: float) -> PotentialWeights | None:
    """Random parameters for copper at the widths of a model; None where the kernels do not take them."""
    sample = build_lattice("Cu", 2, reach, "cpu", rattle=0.1, seed=3)
    hidden = widths.get("n_hidden", 64)
    sizes: dict[str, Any] = {
        "n_channels": widths.get("n_channels", 16), "n_mixed": widths["n_mixed"], "hidden": (hidden, hidden),
        "message_degree": widths.get("message_degree", 0),
    }  # fmt: skip
    weights = None
    # a second hop cannot even be drawn at some widths that one hop refuses
    for hops in sorted({1, n_hops}):
        weights = draw_weights(hops, 1, sample, inner=INNER, **sizes)
        if find_obstacle(weights) is not None:
            return None
    return weights


def list_workloads(
    widths: Mapping[str, int],
    device: torch.device,
    *,
    repeats: int | None = None,
    reach: float = REACH,
) -> Iterator[Workload]:
    """Every kernel over ``4 repeats^3`` atoms; ``widths`` has ``n_channels`` (16), ``n_mixed`` and ``n_hidden`` (64).

    Without ``repeats`` as :func:`choose_repeats` says. With ``message_degree`` also :func:`list_directed`, in place of
    the perceptron of scalar messages.

    Nothing where the kernels do not take the widths, or without ``n_mixed``: the model is of another kind. Those that
    work in place restore their input at every launch, which adds the same to the time of each candidate.
    """
    from fastff.kernels.moments.kernels import MOMENTS_SPACE
    from fastff.kernels.node_block.invariants import INVARIANTS_SPACE, PULLBACK_SPACE
    from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE

    if "n_mixed" not in widths:
        return
    channels, mixed = widths.get("n_channels", 16), widths["n_mixed"]
    hidden, degree = widths.get("n_hidden", 64), widths.get("message_degree", 0)
    weights = draw_student(widths, 1, reach)
    directed = draw_student(widths, 2, reach) if degree else weights
    if weights is None or directed is None:
        return
    repeats = choose_repeats(widths, device) if repeats is None else repeats
    system = build_lattice("Cu", repeats, reach, device, rattle=0.1)
    if degree:  # first, because students of scalar messages need the others too
        yield from list_directed(directed, system)
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

    both = {"channels": channels, "mixed": mixed}
    yield make(MOMENTS_SPACE, launch_moments, define_moments, None, channels=channels)
    yield make(
        INVARIANTS_SPACE,
        launch_invariants,
        define_invariants,
        lambda: space.moments[0].copy_(moments),
        **both,
    )
    if degree == 0:
        yield make(
            PERCEPTRON_SPACE,
            launch_perceptron,
            define_perceptron,
            lambda: space.invariants[0].copy_(invariants),
            channels=channels,
            inputs=8 * mixed,
            hidden=hidden,
        )
    yield make(PULLBACK_SPACE, launch_pullback, define_pullback, restore_pullback, **both)
    yield make(ADJOINT_SPACE, launch_adjoint, define_adjoint, restore_adjoint, channels=channels)


def make(
    kernel: LaunchSpace,
    launch: Define,
    define: Callable[[torch.dtype], Define],
    restore: Callable[[], Any] | None,
    **key: int,
) -> Workload:
    """A workload with its definition, which is exact in float64."""
    exact = define(torch.float64)
    return Workload(kernel, make_key(torch.float32, **key), launch, exact, 1e-5, restore, define)


def list_directed(weights: PotentialWeights, system: System) -> Iterator[Workload]:
    """What is launched with other settings where messages are directed.

    Moments and their adjoint of a second hop; and the perceptrons of both hops one after another (sending, last,
    pulling back), because one setting serves all of them.
    """
    from fastff.kernels.moments.kernels import MOMENTS_SPACE
    from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE

    device, matrix = system.positions.device, system.matrix
    potential = FusedPotential(weights, device)
    packed, (first, last) = potential.packed, potential.packed.blocks
    degree, channels = potential.message_degree, potential.n_channels
    n_inputs = 8 * first.mixing.shape[2]
    species = system.species.long()
    space = potential.allocate(*matrix.entries.shape)
    sites = space.sites

    def send(mixed: Tensor, written: Tensor) -> Tensor:
        curb = first.moment_curb.to(written.dtype)
        return direct_messages(written, mixed.to(written.dtype), channels, curb).flatten(1)

    with torch.no_grad():
        potential.launch_place(space, system.positions, system.species)
        moments = definitions.define_moments(sites, matrix, packed, 0, space.messages[0])
        mixed, inputs = (
            part.float() for part in definitions.define_invariants(moments, first.mixing)
        )
        written = definitions.define_perceptron(inputs, None, None, species, first)[1]
        carried = send(mixed, written).float()
        scalars = carried[:, :channels]
        moments = definitions.define_moments(sites, matrix, packed, 1, carried)
        later, later_inputs = definitions.define_invariants(moments, last.mixing)
        pull = definitions.define_perceptron(later_inputs, scalars, None, species, last)[2]
        gradients = definitions.define_pullback(later, pull[:, :n_inputs], last.mixing).float()
        later_inputs = later_inputs.float()
        back = definitions.define_adjoint(
            sites, matrix, packed, 1, carried, gradients
        ).message_gradients
        arrived = (back * 2.0**FIXED_BITS).long()
        del moments, later, pull, back
    space.messages[0].copy_(carried)
    space.mixed[0].copy_(mixed)
    space.invariants[0].copy_(inputs)
    space.invariants[1].copy_(later_inputs)
    spare = [torch.empty_like(part) for part in space.invariants]
    # each perceptron has buffers of its own, so that none reads what another has written over
    sending = replace(space, messages=[torch.empty_like(carried)])
    ending = replace(space, message_gradients=[torch.empty_like(arrived)])
    pulling = replace(space, messages=[torch.empty_like(carried)], message_gradients=[arrived])

    def launch_moments() -> Tensor:
        potential.launch_moments(space, matrix, 1)
        return space.moments[1]

    def launch_perceptrons() -> tuple[Tensor, ...]:
        potential.launch_perceptron(sending, 0, adjoint=False)
        potential.launch_perceptron(ending, 1, adjoint=True, gradients=spare[1])
        potential.launch_perceptron(pulling, 0, adjoint=True, gradients=spare[0])
        returned = ending.message_gradients[0][:, :channels]
        return sending.messages[0], spare[1], returned, spare[0], pulling.messages[0][:, channels:]

    def launch_adjoint() -> tuple[Tensor, ...]:
        potential.launch_adjoint(space, matrix, 1)
        return space.accumulators[:, :3], space.terms[:, :6], space.message_gradients[0]

    def restore_adjoint() -> None:
        space.moments[1].copy_(gradients)
        space.accumulators.zero_()
        space.message_gradients[0].zero_()

    def define_moments(dtype: torch.dtype) -> Define:
        return lambda: definitions.define_moments(sites, matrix, packed, 1, carried, dtype)

    def define_perceptrons(dtype: torch.dtype) -> Define:
        def define() -> tuple[Tensor, ...]:
            written = definitions.define_perceptron(inputs, None, None, species, first, dtype)[1]
            end = definitions.define_perceptron(later_inputs, scalars, None, species, last, dtype)[
                2
            ]
            given = (arrived.double() * 2.0**-FIXED_BITS).to(dtype)
            gates, sent = direct_messages_adjoint(
                given.view(len(species), -1, channels), written, mixed.to(dtype),
                first.moment_curb.to(dtype),
            )  # fmt: skip
            assert sent is not None
            pulled = definitions.define_perceptron(inputs, None, gates, species, first, dtype)[2]
            returned = end[:, n_inputs:] * 2.0**FIXED_BITS
            return send(mixed, written), end[:, :n_inputs], returned, pulled, sent[:, 1:].flatten(1)

        return define

    def define_adjoint(dtype: torch.dtype) -> Define:
        def define() -> tuple[Tensor, ...]:
            found = definitions.define_adjoint(sites, matrix, packed, 1, carried, gradients, dtype)
            scale = 2.0**FIXED_BITS
            return found.forces * scale, found.terms[:, :6], found.message_gradients * scale

        return define

    key = {"channels": channels, **name_degree(degree)}
    sizes = {"inputs": n_inputs, "hidden": first.weight2.shape[0]}
    yield make(MOMENTS_SPACE, launch_moments, define_moments, None, **key)
    yield make(PERCEPTRON_SPACE, launch_perceptrons, define_perceptrons, None, **key, **sizes)
    yield make(ADJOINT_SPACE, launch_adjoint, define_adjoint, restore_adjoint, **key)


def list_gathers(
    widths: Mapping[str, int],
    device: torch.device,
    *,
    repeats: int | None = None,
    reach: float = REACH,
) -> Iterator[Workload]:
    """The gather of message gradients (``scatter="store"``), of random gradients in the factors; arguments as above."""
    from fastff.kernels.moments_adjoint.gather import MESSAGES_SPACE

    weights = draw_student(widths, 2, reach) if "n_mixed" in widths else None
    if weights is None:
        return
    repeats = choose_repeats(widths, device) if repeats is None else repeats
    system = build_lattice("Cu", repeats, reach, device, rattle=0.1, reverse=True)
    potential = FusedPotential(weights, device, Options(scatter="store"))
    channels, matrix = potential.n_channels, system.matrix
    space = potential.allocate(*matrix.entries.shape)
    generator = torch.Generator(device).manual_seed(0)
    space.factor_gradients.normal_(generator=generator)
    with torch.no_grad():
        potential.launch_place(space, system.positions, system.species)

    def launch() -> Tensor:
        potential.launch_gather_messages(space, matrix, 1)
        return space.message_gradients[0]

    def define(dtype: torch.dtype) -> Define:
        return lambda: definitions.define_returns(
            space.sites, matrix, potential.packed, space.factor_gradients, dtype
        )

    def restore() -> None:
        space.message_gradients[0][:, :channels].zero_()

    key = {"channels": channels, **name_degree(potential.message_degree)}
    yield make(MESSAGES_SPACE, launch, define, restore, **key)
