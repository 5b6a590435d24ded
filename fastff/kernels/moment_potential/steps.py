"""The launches of a fused evaluation, one method each, over the buffers of a workspace.

Here: :class:`FusedLaunches`, packed parameters and what is launched with them. Not here: the order of launches
(``evaluate.py``), options and buffers (``workspace.py``), kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastff.kernels import tuning
from fastff.kernels.moment_potential.launches import (
    choose_precision,
    limit_atoms,
    name_degree,
    spread_atoms,
)
from fastff.kernels.moment_potential.layout import (
    NeighborMatrix,
    PackedWeights,
    PotentialWeights,
    pack_weights,
)
from fastff.kernels.moment_potential.workspace import FINISH_BLOCK, Options, Workspace


class FusedLaunches:
    """Packed parameters on a device, and the launches of every step; parameters as of ``FusedPotential``."""

    def __init__(
        self, weights: PotentialWeights, device: torch.device | str, options: Options
    ) -> None:
        self.device = torch.device(device)
        self.packed: PackedWeights = pack_weights(weights, self.device)
        self.message_degree = self.packed.message_degree
        self.precision = choose_precision(options.precision)
        self.options = options

    @property
    def n_hops(self) -> int:
        """One to four."""
        return len(self.packed.blocks)

    @property
    def n_channels(self) -> int:
        """Channels of the moments."""
        return self.packed.n_channels

    @property
    def _core_table(self) -> Tensor:
        """What kernels read core and inner distances from; anything where there are none."""
        return self.packed.pair_factors if self.packed.core is None else self.packed.core

    def _configure(self, space: tuning.LaunchSpace, **widths: int) -> dict[str, Any]:
        key = tuning.make_key(torch.float32, **widths)
        return tuning.lookup(space, key, self.device).to_arguments()

    def _configure_node(
        self, space: tuning.LaunchSpace, n_atoms: int, **widths: int
    ) -> dict[str, Any]:
        arguments = self._configure(space, channels=self.n_channels, **widths)
        if self.n_channels != 16 or tuning.is_overridden(space.kernel):
            return arguments
        return spread_atoms(arguments, n_atoms)

    def launch_place(self, space: Workspace, positions: Tensor, species: Tensor) -> None:
        """Positions to the grid; clears the force accumulators."""
        from fastff.kernels.moment_potential.kernels import place_kernel

        n_atoms = positions.shape[0]
        place_kernel[(-(-n_atoms // 128),)](
            positions,
            species,
            space.sites,
            space.accumulators,
            n_atoms,
            CLEAR=self.options.scatter != "store",
            BLOCK=128,
        )

    def launch_moments(self, space: Workspace, matrix: NeighborMatrix, hop: int) -> None:
        """Moments of one hop."""
        from fastff.kernels.moments.kernels import MOMENTS_SPACE, moments_kernel

        degree = self.message_degree if hop else 0
        arguments = self._configure(MOMENTS_SPACE, channels=self.n_channels, **name_degree(degree))
        arguments["ATOMS"] = limit_atoms(arguments["ATOMS"], matrix.n_atoms)
        moments_kernel[(-(-matrix.n_atoms // arguments["ATOMS"]),)](
            space.sites,
            matrix.translations,
            matrix.entries,
            matrix.counts,
            self.packed.radial[hop],
            space.messages[hop - 1] if hop else self.packed.pair_factors,
            self._core_table,
            space.moments[hop],
            matrix.n_atoms,
            matrix.n_slots,
            self.packed.pair_factors.shape[0],
            matrix.code_bits,
            self.packed.cutoff,
            self.packed.inner_reach,
            C=self.n_channels,
            BY_SENDER=hop > 0,
            DEGREE=degree,
            HAS_INNER=self.packed.inner_reach > 0.0,
            PRECISION=self.precision,
            **arguments,
        )

    def launch_invariants(self, space: Workspace, hop: int, mixed: Tensor | None = None) -> None:
        """Invariants of one hop, and its moments mixed, over the moments by default."""
        from fastff.kernels.node_block.invariants import INVARIANTS_SPACE, invariants_kernel

        n_atoms, mixing = space.sites.shape[0], self.packed.blocks[hop].mixing
        arguments = self._configure_node(INVARIANTS_SPACE, n_atoms, mixed=mixing.shape[2])
        invariants_kernel[(-(-n_atoms // arguments["ATOMS"]),)](
            space.moments[hop],
            mixing,
            space.mixed[hop] if mixed is None else mixed,
            space.invariants[hop],
            n_atoms,
            C=self.n_channels,
            Q=mixing.shape[2],
            PRECISION=self.precision,
            **arguments,
        )

    def launch_perceptron(
        self, space: Workspace, hop: int, *, adjoint: bool, gradients: Tensor | None = None
    ) -> None:
        """Energies and messages of one hop, or (``adjoint``) gradients, over the invariants by default."""
        from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE, perceptron_kernel

        block = self.packed.blocks[hop]
        last = hop == self.n_hops - 1
        own, sent = max(hop - 1, 0), hop - last * (hop > 0)
        hidden = block.weight2.shape
        n_atoms, n_inputs = space.invariants[hop].shape
        arguments = self._configure_node(
            PERCEPTRON_SPACE,
            n_atoms,
            inputs=n_inputs,
            hidden=max(hidden),
            **name_degree(self.message_degree),
        )
        perceptron_kernel[(-(-n_atoms // arguments["ATOMS"]),)](
            space.sites,
            space.invariants[hop],
            space.mixed[hop],
            space.messages[own],
            block.shift,
            block.curb,
            block.weight1,
            block.bias1,
            block.weight2,
            block.bias2,
            block.readout,
            block.vacuum,
            block.message,
            block.message_bias,
            block.message_curb,
            block.moment_curb,
            space.node_energies[hop],
            space.messages[sent],
            space.message_gradients[sent],
            space.invariants[hop] if gradients is None else gradients,
            space.message_gradients[own],
            n_atoms,
            C=self.n_channels,
            INPUTS=n_inputs,
            H1=hidden[0],
            H2=hidden[1],
            HAS_EXTRA=hop > 0,
            WITH_ENERGY=last or not adjoint,
            WITH_MESSAGES=not last and not adjoint,
            WITH_ADJOINT=adjoint,
            PULL_MESSAGES=adjoint and not last,
            DEGREE=self.message_degree,
            FIXED=self.options.scatter == "fixed",
            PRECISION=self.precision,
            **arguments,
        )

    def launch_pullback(self, space: Workspace, hop: int) -> None:
        """Gradients in the invariants to gradients in the moments, over the moments."""
        from fastff.kernels.node_block.invariants import PULLBACK_SPACE, pullback_kernel

        n_atoms, mixing = space.sites.shape[0], self.packed.blocks[hop].mixing
        last = hop == self.n_hops - 1
        arguments = self._configure_node(PULLBACK_SPACE, n_atoms, mixed=mixing.shape[2])
        pullback_kernel[(-(-n_atoms // arguments["ATOMS"]),)](
            space.mixed[hop],
            space.invariants[hop],
            space.messages[0 if last else hop],
            mixing,
            space.moments[hop],
            n_atoms,
            C=self.n_channels,
            Q=mixing.shape[2],
            DEGREE=0 if last else self.message_degree,
            PRECISION=self.precision,
            **arguments,
        )

    def launch_adjoint(self, space: Workspace, matrix: NeighborMatrix, hop: int) -> None:
        """Forces, virial and (in later hops) message gradients from the gradients in the moments.

        With ``scatter="store"`` forces and message gradients come from the gathers, which read what this leaves.
        """
        from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, adjoint_kernel

        stored = self.options.scatter == "store"
        degree = self.message_degree if hop else 0
        arguments = self._configure(ADJOINT_SPACE, channels=self.n_channels, **name_degree(degree))
        adjoint_kernel[(-(-matrix.n_atoms // arguments["ATOMS"]),)](
            space.sites,
            matrix.translations,
            matrix.entries,
            matrix.counts,
            self.packed.radial[hop],
            space.messages[hop - 1] if hop else self.packed.pair_factors,
            space.moments[hop],
            self._core_table,
            space.accumulators,
            space.terms,
            space.edges,
            space.factor_gradients if stored else space.message_gradients[max(hop - 1, 0)],
            matrix.n_atoms,
            matrix.n_slots,
            self.packed.pair_factors.shape[0],
            matrix.code_bits,
            self.packed.cutoff,
            self.packed.core_reach,
            self.packed.inner_reach,
            C=self.n_channels,
            BY_SENDER=hop > 0,
            DEGREE=degree,
            HAS_CORE=self.packed.core is not None and hop == 0,
            HAS_INNER=self.packed.inner_reach > 0.0,
            WITH_VIRIAL=self.options.with_virial,
            ACCUMULATE=hop < self.n_hops - 1,
            SCATTER=self.options.scatter,
            PRECISION=self.precision,
            **arguments,
        )

    def launch_gather_forces(self, space: Workspace, matrix: NeighborMatrix, hop: int) -> None:
        """Forces from the edge gradients that the adjoint of a hop has written out."""
        from fastff.kernels.moments_adjoint.gather import GATHER_SPACE, gather_kernel

        gather_kernel[(matrix.n_atoms,)](
            space.edges,
            matrix.reverse,
            matrix.counts,
            space.accumulators,
            matrix.n_slots,
            ACCUMULATE=hop < self.n_hops - 1,
            **self._configure(GATHER_SPACE),
        )

    def launch_gather_messages(self, space: Workspace, matrix: NeighborMatrix, hop: int) -> None:
        """Message gradients from those in the factors, which the adjoint of a later hop has written out."""
        from fastff.kernels.moments_adjoint.gather import MESSAGES_SPACE, gather_messages_kernel

        if hop == 0:
            return
        degree = self.message_degree
        gather_messages_kernel[(matrix.n_atoms,)](
            space.sites,
            matrix.translations,
            matrix.entries,
            matrix.counts,
            matrix.reverse,
            space.factor_gradients,
            space.message_gradients[hop - 1],
            matrix.n_slots,
            matrix.code_bits,
            self.packed.cutoff,
            C=self.n_channels,
            DEGREE=degree,
            **self._configure(MESSAGES_SPACE, channels=self.n_channels, **name_degree(degree)),
        )

    def launch_finish(self, space: Workspace) -> None:
        """Forces out of the accumulators, energies, totals in float64."""
        from fastff.kernels.moment_potential.kernels import finish_kernel, total_kernel

        n_atoms = space.sites.shape[0]
        n_blocks = -(-n_atoms // FINISH_BLOCK)
        finish_kernel[(n_blocks,)](
            space.sites,
            space.node_energies,
            space.terms,
            self.packed.composition,
            space.accumulators,
            space.forces,
            space.energies,
            space.partials,
            n_atoms,
            space.node_energies.shape[1],
            HOPS=self.n_hops,
            HAS_CORE=self.packed.core is not None,
            WITH_VIRIAL=self.options.with_virial,
            FIXED=self.options.scatter == "fixed",
            BLOCK=FINISH_BLOCK,
        )
        total_kernel[(8,)](space.partials, space.totals, n_blocks, BLOCK=1024)
