"""A student as a device potential in plain torch, on any device.

Here: :class:`StudentPotential`, which keeps a neighbor list with a skin and evaluates exactly the pairs within the
cut-off. It waits for the device at every call, so no CUDA graph can hold it. Not here: fused kernels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastff.graph import Graph, edge_vectors
from fastff.models import Student
from fastff.neighbors import build_edges, check_skin_length, complete_cell


class StudentPotential:
    """Energy, forces and virial of a student; see :class:`~fastff.md.protocol.DevicePotential`.

    Forces do not depend on when the list was built, bit for bit: every evaluation keeps the pairs nearer than the
    cut-off in one fixed order.

    Parameters
    ----------
    student : Student
    skin : float
        Å by which the list reaches beyond the cut-off.
    """

    capturable = False

    def __init__(self, student: Student, skin: float = 1.0) -> None:
        self.student, self.skin = student, check_skin_length(skin)
        self.n_builds = 0
        self.device = student.device
        self.energy = torch.zeros((), dtype=torch.float64, device=self.device)
        self.virial = torch.zeros(3, 3, dtype=torch.float64, device=self.device)
        self.stale = torch.zeros((), dtype=torch.int32, device=self.device)
        self.forces = torch.zeros(0, 3, dtype=student.dtype, device=self.device)

    def attach(self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor) -> None:
        """Bind to the tensors of a simulation and build a list."""
        self.positions, self.numbers, self.cell, self.pbc = positions, numbers, cell, pbc
        self.student.find_species(numbers)
        self.forces = torch.zeros(
            len(positions), 3, dtype=self.student.dtype, device=positions.device
        )
        self._batch = torch.zeros_like(numbers)
        self.rebuild()

    def rebuild(self) -> bool:
        """Build the list, skin included, from the current positions and cell."""
        positions, pbc = self.positions.cpu().numpy(), self.pbc.cpu().numpy()
        reach = self.student.cutoff + self.skin
        completed = complete_cell(positions, self.cell.cpu().numpy(), pbc, reach)
        edges, shifts = build_edges(positions, np.asarray(completed), pbc, reach)
        self._edges = torch.from_numpy(edges).to(self.device)
        self._shifts = torch.from_numpy(shifts).to(self.device)
        self._old_positions = self.positions.clone()
        self._old_cell = torch.from_numpy(completed).to(self.device)
        self.stale.zero_()
        self.n_builds += 1
        return False

    def check(self) -> None:
        """Set ``stale`` as soon as a pair outside the list could be within the cut-off.

        With ``F`` the deformation of the cell since the build and ``u`` the displacements left after it, such a pair is
        at least ``sigma_min(F) (r_c + skin) - 2 max|u|`` apart.
        """
        cell = self._complete()
        deformation = torch.linalg.solve(self._old_cell, cell)
        moved = self.positions - self._old_positions @ deformation
        largest = moved.square().sum(dim=1).amax().sqrt()
        sigma = torch.linalg.svdvals(deformation)[-1]
        cutoff = self.student.cutoff
        self.stale.copy_(~(sigma * (cutoff + self.skin) - 2.0 * largest >= cutoff))

    def compute(self) -> None:
        """Update energy, forces and virial."""
        with torch.inference_mode():
            cell = self._complete()
            graph = Graph(
                positions=self.positions, numbers=self.numbers, cell=cell[None], pbc=self.pbc[None],
                batch=self._batch, edge_index=self._edges, shifts=self._shifts,
            )  # fmt: skip
            squared = edge_vectors(graph).square().sum(dim=1)
            near = squared < self.student.cutoff**2
            self._closest = (
                squared.amin() if len(squared) else torch.full_like(self.energy, torch.inf)
            )
            graph = Graph(
                positions=self.positions, numbers=self.numbers, cell=cell[None], pbc=self.pbc[None],
                batch=self._batch, edge_index=self._edges[:, near], shifts=self._shifts[near],
            )  # fmt: skip
            prediction = self.student(graph)
            volume = torch.linalg.det(cell).abs()
            self.energy.copy_(prediction.energy[0])
            self.forces.copy_(prediction.forces)
            self.virial.copy_(prediction.stress[0].double() * volume)

    def measure_closest(self, limit: float) -> Tensor:
        """Least squared distance of a pair nearer than ``limit`` Å at the last evaluation, Å^2, else infinite."""
        return torch.where(self._closest < limit**2, self._closest, torch.inf)

    def _complete(self) -> Tensor:
        """The current cell; directions that are not periodic keep what completed them at the build."""
        return torch.where(self.pbc[:, None], self.cell, self._old_cell)
