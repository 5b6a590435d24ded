"""Definition of the skin check, in plain torch.

Here: the criterion of :class:`fastff.neighbors.VerletCache` on tensors. Not here: the kernel, when to ask.
"""

from __future__ import annotations

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
) -> Tensor:
    """Whether a pair absent from a list of reach ``cutoff + skin`` could now be nearer than ``cutoff``.

    With F the deformation of the cell since the list was built and u the displacements left after it, such a pair is
    at least ``sigma_min(F) (cutoff + skin) - 2 max|u|`` apart.

    Parameters
    ----------
    positions, old_positions : (n_atoms, 3) float64 tensors, Å
        Not wrapped in between: a jump by a cell vector makes the list stale.
    cell : (3, 3) float64 tensor, Å
        Rows of non-periodic axes are ignored.
    old_rows : (3, 3) float64 tensor, Å
        Cell of the list, completed along non-periodic axes.
    periodic : (3,) bool tensor

    Returns
    -------
    () bool tensor
    """
    current = torch.where(periodic[:, None], cell, old_rows)
    if bool((current == old_rows).all()):
        moved, sigma = positions - old_positions, 1.0
    else:
        deformation = torch.linalg.solve(old_rows, current)
        moved = positions - old_positions @ deformation
        sigma = float(torch.linalg.svdvals(deformation)[-1])
    largest = moved.norm(dim=1).max() if len(moved) else moved.new_zeros(())
    return ~(sigma * (cutoff + skin) - 2.0 * largest > cutoff)
