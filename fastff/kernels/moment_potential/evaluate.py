"""Fused evaluation on the device: the launches, in order, over buffers that stay where they are.

Here: :class:`FusedPotential`, which owns packed parameters and a workspace and evaluates positions over a neighbor
matrix without waiting for the device, so that a call can be captured in a CUDA graph. Not here: the launches
(``steps.py``), options and buffers (``workspace.py``), kernels, the definition (``reference.py``), the choice of a back
end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.layout import NeighborMatrix, PotentialWeights
from fastff.kernels.moment_potential.reference import Evaluation
from fastff.kernels.moment_potential.steps import FusedLaunches
from fastff.kernels.moment_potential.workspace import Options, Workspace, build_workspace


class FusedPotential(FusedLaunches):
    """A moment potential on a device.

    Parameters
    ----------
    weights : PotentialWeights
    device : torch.device or str
    options : Options, optional

    Raises
    ------
    DataError
        The kernels cannot take these sizes (``layout.find_obstacle`` says why beforehand).
    """

    def __init__(
        self,
        weights: PotentialWeights,
        device: torch.device | str = "cuda",
        options: Options = Options(),
    ) -> None:
        super().__init__(weights, device, options)
        self._workspace: Workspace | None = None
        self._size = (-1, -1)

    def allocate(self, n_atoms: int, n_slots: int) -> Workspace:
        """Return the workspace of a size, allocated anew only when the size differs from the last one's."""
        if self._workspace is None or self._size != (n_atoms, n_slots):
            self._workspace = None
            self._workspace = build_workspace(
                n_atoms, n_slots, self.packed, self.options, self.device
            )
            self._size = (n_atoms, n_slots)
        return self._workspace

    def evaluate(
        self,
        positions: Tensor,
        species: Tensor,
        matrix: NeighborMatrix,
        look: Callable[[Workspace, Tensor], None] | None = None,
    ) -> Evaluation:
        """Evaluate; the result's tensors are the workspace's and hold until the next call.

        Parameters
        ----------
        positions : (n_atoms, 3) float32 or float64 tensor, Å
            In the images that the matrix was made with, in the cell or not; float64 loses nothing above 1.5e-8 Å,
            wherever the atoms are. Not verified to be finite.
        species : (n_atoms,) integer tensor
        matrix : NeighborMatrix
            May hold more neighbours than the cut-off: those count for nothing.
        look : callable, optional
            Called with the workspace and ``species`` when every hop has its invariants and messages, before gradients
            take the place of the former. Must not write to the workspace. Not called where there are no atoms.

        Returns
        -------
        Evaluation
            With the virial NaN unless ``options.with_virial``.
        """
        self._check(positions, species, matrix)
        n_atoms = matrix.n_atoms
        space = self.allocate(n_atoms, matrix.n_slots)
        if n_atoms == 0:
            zero = torch.zeros(7, dtype=torch.float64, device=self.device)
            return Evaluation(zero[6], space.forces, zero[:6], space.energies)
        with dispatch.on_device(self.device):
            self.launch_place(space, positions, species)
            for hop in range(self.n_hops):
                if hop > 0:
                    self.launch_perceptron(space, hop - 1, adjoint=False)
                self.launch_moments(space, matrix, hop)
                self.launch_invariants(space, hop)
            if look is not None:
                look(space, species)
            for hop in reversed(range(self.n_hops)):
                self.launch_perceptron(space, hop, adjoint=True)
                self.launch_pullback(space, hop)
                self.launch_adjoint(space, matrix, hop)
                if self.options.scatter == "store":
                    self.launch_gather_forces(space, matrix, hop)
                    self.launch_gather_messages(space, matrix, hop)
            self.launch_finish(space)
        return Evaluation(space.totals[6], space.forces, space.totals[:6], space.energies)

    def _check(self, positions: Tensor, species: Tensor, matrix: NeighborMatrix) -> None:
        n_atoms = matrix.n_atoms
        if positions.shape != (n_atoms, 3) or species.shape != (n_atoms,):
            raise DataError(
                f"positions have shape {tuple(positions.shape)}, species {tuple(species.shape)}; "
                f"the neighbor matrix has {n_atoms} atoms"
            )
        place = self.packed.pair_factors.device
        for name, value in (
            ("positions", positions),
            ("species", species),
            ("entries", matrix.entries),
            ("counts", matrix.counts),
            ("translations", matrix.translations),
            ("reverse", matrix.reverse),
        ):
            if value is None:
                continue
            if value.device != place:
                raise DataError(f"{name} are on {value.device}, the potential on {place}")
            if not value.is_contiguous():
                raise DataError(f"{name} are not contiguous; pass contiguous tensors")
        if self.options.scatter == "store" and matrix.reverse is None:
            raise DataError(
                "scatter 'store' needs the neighbor matrix's reverse index; build it with one"
            )
