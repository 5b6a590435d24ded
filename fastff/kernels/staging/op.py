"""Launchers of the staging kernels, and where results lie.

Here: :class:`Results`, the one buffer that holds all an evaluation gives, and one function per kernel; none waits for
the device. Not here: the kernels, the evaluation (:mod:`fastff.kernels.moment_potential`), a torch implementation:
these kernels only serve the fused evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastff.kernels import dispatch, tuning
from fastff.kernels.moment_potential.layout import NeighborMatrix, list_shifts
from fastff.kernels.neighbor_list import NeighborList

HEADER = 12
"""Numbers before the forces: energy, virial (9), least squared distance, stale."""


class Results:
    """Views of one float64 buffer, so that all of it leaves the device in one transfer.

    Attributes
    ----------
    buffer : (12 + 4 n_atoms,) float64 tensor
    energy : () eV
    virial : (3, 3) eV, positive under tension
    squared : () Å^2
        Least squared distance of a pair below the limit of :func:`find_contacts`, infinite if there is none.
    stale : () 0 or 1
    forces : (n_atoms, 3) eV/Å
    energies : (n_atoms,) eV
    """

    def __init__(self, buffer: Tensor) -> None:
        n_atoms = (buffer.shape[0] - HEADER) // 4
        self.buffer = buffer
        self.energy = buffer[0]
        self.virial = buffer[1:10].view(3, 3)
        self.squared = buffer[10]
        self.stale = buffer[11]
        self.forces = buffer[HEADER : HEADER + 3 * n_atoms].view(n_atoms, 3)
        self.energies = buffer[HEADER + 3 * n_atoms :]


class Stage:
    """Buffers between a structure and the rows of its list; written by :func:`stage` at every evaluation.

    Attributes
    ----------
    staged : (n_atoms, 3) float64 tensor, Å
    shifts : (n_codes, 3) int32 tensor
    nearest : (1,) int32 tensor
        Bits of the float32 that :func:`find_contacts` finds.
    """

    def __init__(self, n_atoms: int, images: int, device: torch.device) -> None:
        self.images = images
        self.staged = torch.empty(n_atoms, 3, dtype=torch.float64, device=device)
        self.shifts = list_shifts(images).to(device, torch.int32)
        self.nearest = torch.empty(1, dtype=torch.int32, device=device)


def _configure(space: tuning.LaunchSpace, device: torch.device) -> dict[str, Any]:
    return tuning.lookup(space, tuning.make_key(torch.float64), device).to_arguments()


def stage_positions(positions: Tensor, cell: Tensor, neighbors: NeighborList, stage: Stage) -> None:
    """Bring positions (n_atoms, 3) float64 to the rows of a list and translations to the current cell."""
    from fastff.kernels.staging.kernels import STAGE_SPACE, stage_kernel

    arguments = _configure(STAGE_SPACE, positions.device)
    n_blocks = -(-positions.shape[0] // arguments["BLOCK"])
    n_codes = stage.shifts.shape[0]
    with dispatch.on_device(positions.device):
        stage_kernel[(n_blocks + -(-n_codes // arguments["BLOCK"]),)](
            positions,
            neighbors.order,
            neighbors.wraps,
            cell,
            stage.shifts,
            stage.staged,
            neighbors.matrix.translations,
            stage.nearest,
            positions.shape[0],
            n_codes,
            n_blocks,
            **arguments,
        )


def find_contacts(sites: Tensor, matrix: NeighborMatrix, limit: float, stage: Stage) -> None:
    """Find the closest pair nearer than ``limit`` Å; sites as the fused evaluation left them."""
    from fastff.kernels.staging.kernels import CONTACT_SPACE, contact_kernel

    with dispatch.on_device(sites.device):
        contact_kernel[(matrix.n_atoms,)](
            sites,
            matrix.translations,
            matrix.entries,
            matrix.counts,
            stage.nearest,
            matrix.n_slots,
            matrix.code_bits,
            limit * limit,
            **_configure(CONTACT_SPACE, sites.device),
        )


def publish_results(
    forces: Tensor,
    energies: Tensor,
    totals: Tensor,
    stale: Tensor,
    order: Tensor,
    stage: Stage,
    results: Results,
) -> None:
    """Write results of rows to the atoms they belong to."""
    from fastff.kernels.staging.kernels import PUBLISH_SPACE, publish_kernel

    n_atoms = order.shape[0]
    arguments = _configure(PUBLISH_SPACE, forces.device)
    with dispatch.on_device(forces.device):
        publish_kernel[(max(1, -(-n_atoms // arguments["BLOCK"])),)](
            forces,
            energies,
            totals,
            stage.nearest,
            stale,
            order,
            results.buffer,
            n_atoms,
            **arguments,
        )
