"""Public evaluation of a moment potential: checks, dispatch, registration.

Here: :func:`moment_potential` and :class:`MomentPotential`, which take the fused kernels or the definition. Not here:
launches (``evaluate.py``), the definition (``reference.py``), kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import dispatch
from fastff.kernels.derivatives import leave_autocast
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import (
    NeighborMatrix,
    PotentialWeights,
    find_obstacle,
    list_shifts,
)
from fastff.kernels.moment_potential.reference import Evaluation, evaluate_reference
from fastff.kernels.moment_potential.workspace import Options

OP = dispatch.register(dispatch.Op("moment_potential", derivative_order=0, deterministic=True))


class MomentPotential:
    """A moment potential whose back end is chosen at every call; see :func:`moment_potential`.

    Keeps packed parameters and buffers between calls: with the kernels, the tensors of a result are overwritten by the
    next call.

    Parameters
    ----------
    weights : PotentialWeights
    device : torch.device or str
    options : Options, optional
        For the kernels. The definition computes in float32 and has no other modes.

    Attributes
    ----------
    obstacle : str or None
        Why the kernels cannot take these sizes, if they cannot.
    """

    def __init__(
        self, weights: PotentialWeights, device: torch.device | str, options: Options = Options()
    ) -> None:
        self.device = torch.device(device)
        self.options = options
        self.obstacle = find_obstacle(weights)
        self._weights = weights
        self._fused: FusedPotential | None = None
        self._single: PotentialWeights | None = None

    def evaluate(
        self, positions: Tensor, species: Tensor, cell: Tensor, matrix: NeighborMatrix
    ) -> Evaluation:
        """Evaluate; arguments, result and errors as for :func:`moment_potential`."""
        n_atoms = matrix.n_atoms
        if positions.shape != (n_atoms, 3) or species.shape != (n_atoms,):
            raise DataError(
                f"moment_potential: positions {tuple(positions.shape)} and species {tuple(species.shape)} do not fit "
                f"a neighbor matrix of {n_atoms} atoms; pass ({n_atoms}, 3) and ({n_atoms},)"
            )
        if species.is_floating_point() or not positions.is_floating_point():
            raise DataError(
                f"moment_potential: positions are {positions.dtype}, species {species.dtype}; pass floating and "
                "integer ones"
            )
        if torch.is_grad_enabled() and (positions.requires_grad or cell.requires_grad):
            raise DataError(
                "moment_potential: positions or cell require a gradient and the result has none; take its forces and "
                "virial and pass detached tensors"
            )
        with torch.no_grad():
            return dispatch.run(
                OP,
                self.device,
                lambda: self._evaluate_fused(positions, species, matrix),
                lambda: self._evaluate_definition(positions, species, cell, matrix),
                self.obstacle,
            )

    def _evaluate_fused(
        self, positions: Tensor, species: Tensor, matrix: NeighborMatrix
    ) -> Evaluation:
        if self._fused is None:
            self._fused = FusedPotential(self._weights, self.device, self.options)
        return self._fused.evaluate(positions.contiguous(), species.contiguous(), matrix)

    def _evaluate_definition(
        self, positions: Tensor, species: Tensor, cell: Tensor, matrix: NeighborMatrix
    ) -> Evaluation:
        if self._single is None:
            self._single = convert_weights(self._weights, self.device, torch.float32)
        reach = (round(len(matrix.translations) ** (1 / 3)) - 1) // 2
        translations = list_shifts(reach).to(self.device).double() @ cell.double()
        with leave_autocast(self.device):
            return evaluate_reference(
                self._single, positions.double(), species, matrix, translations
            )


def moment_potential(
    weights: PotentialWeights,
    positions: Tensor,
    species: Tensor,
    cell: Tensor,
    matrix: NeighborMatrix,
    options: Options = Options(),
) -> Evaluation:
    """Energy, forces and virial of a moment potential (students m1, m2, m2-l, m3-l) over a neighbor matrix.

    For many calls with the same parameters keep a :class:`MomentPotential`.

    Parameters
    ----------
    weights : PotentialWeights
        For example from ``fastff.models.fused.collect_weights``.
    positions : Tensor
        Shape (n_atoms, 3), Å, float32 or float64, in the images that the matrix was made with, in the cell or not: for
        a list of ``build_neighbors`` less its ``wraps``. Its device is where everything runs.
    species : Tensor
        Shape (n_atoms,), integer index of each atom's species; on a CUDA device not verified.
    cell : Tensor
        Shape (3, 3), Å, rows are vectors: those the matrix was made with. Read by the definition alone.
    matrix : NeighborMatrix
        May hold neighbors beyond the cut-off (a skin), up to 32 Å.
    options : Options

    Returns
    -------
    Evaluation
        energy () float64 eV; forces (n_atoms, 3) float32 eV/Å; virial (6,) float64 eV, xx, yy, zz, yz, xz, xy; energies
        (n_atoms,) float64 eV.

    Raises
    ------
    DataError
        Shapes, dtypes or devices that do not fit; positions or cell that require a gradient.
    BackendError
        Triton is selected and cannot run (no CUDA device, widths that are no power of two from 16, for hidden layers
        from 32).

    Notes
    -----
    Derivatives: the first one, in positions and strain, is the result itself. There is no further one, and none in the
    parameters: training uses the student. Deterministic, unless ``options.scatter`` is ``"float"``. Formulas: Drautz
    2019, Phys. Rev. B 99, 014104, as :mod:`fastff.kernels.moments.reference` states them.

    Total energy and virial are NaN where a position is not finite (for the kernels also from 2^36 Å on), or atoms
    coincide. The kernels give NaN to energy and forces of the atoms that it concerns: those without a position, and
    those that neighbours push with more than 1e9 eV/Å (copper nearer than about 0.003 Å), which fixed point does not
    hold. What other atoms get may then be finite, and means nothing.
    """
    return MomentPotential(weights, positions.device, options).evaluate(
        positions, species, cell, matrix
    )


def convert_weights(
    weights: PotentialWeights, device: torch.device | str, dtype: torch.dtype
) -> PotentialWeights:
    """Parameters on a device, those of the network in another dtype; energies stay float64."""
    blocks = tuple(
        type(block)(*(part.detach().to(device, dtype) for part in block))
        for block in weights.blocks
    )
    core = None if weights.core is None else tuple(part.to(device) for part in weights.core)
    return weights._replace(
        radial=weights.radial.detach().to(device, dtype),
        pair_factors=weights.pair_factors.detach().to(device, dtype),
        blocks=blocks,
        energy_scale=weights.energy_scale.detach().to(device),
        composition=weights.composition.detach().to(device),
        core=core,  # type: ignore[arg-type]
        inner=None if weights.inner is None else weights.inner.to(device),
    )
