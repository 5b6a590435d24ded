"""Definition of the staging kernels, in plain torch.

Here: positions to the rows of a list, the closest pair, results back to the user's atoms; any device. Not here: kernels
(``kernels.py``), buffers (``op.py``). The fused evaluation calls the kernels alone; tests and timings compare them with
this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.kernels.moment_potential.definitions import measure_edges
from fastff.kernels.moment_potential.layout import NeighborMatrix, quantize_coordinates


def stage_positions(
    positions: Tensor, cell: Tensor, order: Tensor, wraps: Tensor, shifts: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions (n_atoms, 3) of the rows, Å, and grid translations (n_codes, 4) of integer shifts (n_codes, 3)."""
    staged = positions[order] - wraps.double() @ cell
    translations = quantize_coordinates(shifts.double() @ cell)
    return staged, torch.nn.functional.pad(translations, (0, 1))


def find_contacts(
    sites: Tensor, matrix: NeighborMatrix, limit: float, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Least squared distance of a pair nearer than ``limit`` Å, shape (), infinite if there is none."""
    vectors, filled = measure_edges(sites, matrix, limit, dtype)
    squared = vectors.square().sum(dim=-1)
    near = filled & (squared < limit * limit)
    return torch.where(near, squared, torch.inf).amin()


def publish_results(
    forces: Tensor, energies: Tensor, totals: Tensor, squared: Tensor, stale: Tensor, order: Tensor
) -> Tensor:
    """Everything that leaves the device, (12 + 4 n_atoms,) float64; see :class:`fastff.kernels.staging.op.Results`."""
    xx, yy, zz, yz, xz, xy, energy = totals.double().unbind()
    header = [energy, xx, xy, xz, xy, yy, yz, xz, yz, zz, squared.double(), stale.double()]
    ordered = torch.empty_like(forces, dtype=torch.float64)
    ordered = ordered.index_copy(0, order, forces.double())
    single = torch.empty_like(energies, dtype=torch.float64)
    single = single.index_copy(0, order, energies.double())
    return torch.cat([torch.stack(header), ordered.flatten(), single])
