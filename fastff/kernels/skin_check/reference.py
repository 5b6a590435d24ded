"""Definition of the skin check, in plain torch.

Here: the criterion of :class:`fastff.neighbors.VerletCache` on tensors. Not here: the kernel, when to ask.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_stale(
    positions: Tensor,
    cell: Tensor,
    old_positions: Tensor,
    old_rows: Tensor,
    periodic: Tensor,
    cutoff: float,
    skin: float,
    span: float = math.inf,
) -> Tensor:
    """Whether a pair absent from a list of reach ``cutoff + skin`` could now be nearer than ``cutoff``.

    With F the deformation of the cell since the list was built and u the displacements left after it, such a pair is
    at least ``sigma_min(F) (cutoff + skin) - 2 max|u|`` apart. A pair of the list is at most
    ``s (cutoff + skin) + 2 max|u|`` apart, with ``s^2 = |F|^2 - 2 sigma_min(F)^2`` no less than the square of the
    largest singular value; the list is stale, too, if that is not below ``span``.

    Parameters
    ----------
    positions, old_positions : (n_atoms, 3) float64 tensors, Å
        Not wrapped in between: a jump by a cell vector makes the list stale.
    cell : (3, 3) float64 tensor, Å
        Rows of non-periodic axes are ignored.
    old_rows : (3, 3) float64 tensor, Å
        Cell of the list, completed along non-periodic axes.
    periodic : (3,) bool tensor
    cutoff, skin, span : float, Å

    Returns
    -------
    () bool tensor
        False without atoms, True where positions or cell are not finite.
    """
    if not len(positions):
        return periodic.new_zeros(())
    current = torch.where(periodic[:, None], cell, old_rows)
    if bool((current == old_rows).all()):
        moved, sigma, stretch = positions - old_positions, 1.0, 1.0
    elif not bool(current.isfinite().all()):
        return periodic.new_ones(())
    else:
        deformation = torch.linalg.solve(old_rows, current)
        moved = positions - old_positions @ deformation
        sigma = float(torch.linalg.svdvals(deformation)[-1])
        stretch = math.sqrt(max(float(deformation.square().sum()) - 2.0 * sigma**2, 0.0))
    largest = moved.norm(dim=1).max()
    reach = cutoff + skin
    return ~(min(sigma * reach - cutoff, span - stretch * reach) > 2.0 * largest)
