"""One evaluation of a batch: of what, what it gives, and how the fused kernels read structures of different cells.

Here: :class:`Systems`, :class:`BatchOutcome`, :class:`PackedBatch` and the functions that make them. Not here: lists
and what is kept between evaluations (:mod:`fastff.batches`), chunks (:mod:`fastff.inference`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import NeighborMatrix, quantize_coordinates
from fastff.kernels.segment_sum import segment_sum
from fastff.models.base import Prediction
from fastff.units import VOIGT

_FULL = [
    k
    for a in range(3)
    for b in range(3)
    for k, pair in enumerate(VOIGT)
    if pair in ((a, b), (b, a))
]
"""Place in Voigt's order of each of the nine components."""


class Systems(NamedTuple):
    """Structures as a batch, on one device.

    positions (n_atoms, 3) Å; numbers (n_atoms,) int64; cells (n_systems, 3, 3) Å, rows are vectors, those of directions
    that are not periodic hold anything; pbc (n_systems, 3) bool; batch (n_atoms,) int64, ascending from 0.
    """

    positions: Tensor
    numbers: Tensor
    cells: Tensor
    pbc: Tensor
    batch: Tensor

    @property
    def n_systems(self) -> int:
        """Number of structures."""
        return int(self.cells.shape[0])


@dataclass(frozen=True)
class BatchOutcome:
    """What an evaluation gives.

    Attributes
    ----------
    energy : (n_systems,) float64 tensor, eV
    forces : (n_atoms, 3) float64 tensor, eV/Å
    virial : (n_systems, 3, 3) float64 tensor, eV
        Stress times the volume of the cell, positive under tension.
    energies : (n_atoms,) float64 tensor, eV
    """

    energy: Tensor
    forces: Tensor
    virial: Tensor
    energies: Tensor


class PackedBatch(NamedTuple):
    """A neighbor matrix over all atoms of a batch, every code a lattice vector of one structure.

    matrix; shifts (n_codes, 3) float64; owners (n_codes,) int64, the structure of each code; pointers (n_systems + 1,)
    int64, the first atom of each structure.
    """

    matrix: NeighborMatrix
    shifts: Tensor
    owners: Tensor
    pointers: Tensor


def pack_batch(edge_index: Tensor, shifts: Tensor, batch: Tensor, n_systems: int) -> PackedBatch:
    """Receiver-sorted edges of a batch as the fused kernels read them. Waits for the device.

    Parameters
    ----------
    edge_index : (2, n_edges) int64 tensor
    shifts : (n_edges, 3) int64 tensor
    batch : (n_atoms,) int64 tensor, ascending
    n_systems : int
    """
    receivers, senders = edge_index
    device, n_atoms = edge_index.device, len(batch)
    reach = int(shifts.abs().max()) if shifts.numel() else 0
    base = 2 * reach + 1
    key = batch[receivers]
    for axis in range(3):
        key = key * base + shifts[:, axis] + reach
    known, code = key.unique(return_inverse=True)
    columns = []
    for _ in range(3):
        columns.append(known % base - reach)
        known = known // base
    counts = torch.bincount(receivers, minlength=n_atoms)
    width = max(int(counts.max()), 1) if n_atoms else 1
    first = counts.cumsum(0) - counts
    slots = receivers * width + torch.arange(len(receivers), device=device) - first[receivers]
    code_bits = max(1, (max(len(columns[0]), 1) - 1).bit_length())
    wide = (n_atoms << code_bits) > 2**31
    entries = torch.zeros(
        n_atoms * width, dtype=torch.int64 if wide else torch.int32, device=device
    )
    entries[slots] = ((senders << code_bits) | code).to(entries.dtype)
    matrix = NeighborMatrix(
        entries.view(n_atoms, width),
        counts.to(torch.int32),
        torch.zeros(max(len(columns[0]), 1), 4, dtype=torch.int32, device=device),
        code_bits,
    )
    pointers = torch.zeros(n_systems + 1, dtype=torch.int64, device=device)
    pointers[1:] = torch.bincount(batch, minlength=n_systems).cumsum(0)
    steps = torch.stack(columns[::-1], dim=1).double()
    return PackedBatch(matrix, steps, known, pointers)


def place_codes(packed: PackedBatch, cells: Tensor) -> NeighborMatrix:
    """The matrix with the translations of its codes in cells (n_systems, 3, 3), in Å."""
    if not len(packed.shifts):
        return packed.matrix
    vectors = (packed.shifts[:, None, :] @ cells[packed.owners])[:, 0]
    grid = torch.nn.functional.pad(quantize_coordinates(vectors), (0, 1)).contiguous()
    return replace(packed.matrix, translations=grid)


def evaluate_packed(
    fused: FusedPotential,
    packed: PackedBatch,
    positions: Tensor,
    cells: Tensor,
    species: Tensor,
    matrix: NeighborMatrix | None = None,
) -> BatchOutcome:
    """Evaluate a packed batch with the fused kernels, without waiting for the device.

    Parameters
    ----------
    fused : FusedPotential
    packed : PackedBatch
    positions : (n_atoms, 3) float64 tensor, Å
    cells : (n_systems, 3, 3) float64 tensor, Å
    species : (n_atoms,) integer tensor
    matrix : NeighborMatrix, optional
        What :func:`place_codes` gave for these cells.
    """
    matrix = place_codes(packed, cells) if matrix is None else matrix
    found = fused.evaluate(positions.contiguous(), species.to(torch.int32).contiguous(), matrix)
    terms = fused.allocate(matrix.n_atoms, matrix.n_slots).terms[:, :6].double()
    sums = segment_sum(torch.cat([found.energies[:, None], terms], dim=1), packed.pointers)
    virial = torch.stack([sums[:, 1 + k] for k in _FULL], dim=1).view(-1, 3, 3)
    return BatchOutcome(sums[:, 0].clone(), found.forces.double(), virial, found.energies.clone())


def convert_prediction(prediction: Prediction, cells: Tensor) -> BatchOutcome:
    """What a student says of a batch of cells (n_systems, 3, 3), in Å."""
    volume = torch.linalg.det(cells.double()).abs().to(prediction.stress.device)
    return BatchOutcome(
        prediction.energy.double(),
        prediction.forces.double(),
        prediction.stress.double() * volume[:, None, None],
        prediction.energies.double(),
    )
