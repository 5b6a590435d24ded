"""Many structures together, again and again: lists with a skin per structure, fused kernels or torch.

Here: :class:`BatchEvaluator`, tensors in and tensors out. Not here: one evaluation (:mod:`fastff.packed`), one
structure after another (:mod:`fastff.evaluator`), ASE structures and chunks (:mod:`fastff.inference`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.evaluator import Choice, choose_path, find_student_obstacle
from fastff.graph import Graph, edge_vectors
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import list_shifts, unpack_neighbors
from fastff.kernels.moment_potential.op import OP
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.neighbor_list import build_neighbors
from fastff.models.base import Student
from fastff.models.fused import collect_weights
from fastff.models.moment import MomentStudent
from fastff.neighbors import build_edges, check_skin_length, complete_cell
from fastff.packed import (
    BatchOutcome,
    PackedBatch,
    convert_prediction,
    evaluate_packed,
    pack_batch,
)

LIST_ON_DEVICE_FROM = 1000
"""Atoms of a structure from which its list is built on a CUDA device; smaller ones are quicker on the host."""


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


class BatchEvaluator:
    """Energies, forces and virials of batches that resemble their predecessors.

    Parameters
    ----------
    student : Student
        On its device and in its dtype; its parameters must not change while the evaluator is used.
    skin : float, Å
        By how much neighbor lists reach beyond the cut-off; 0 builds all lists at every call.
    precision : {"tf32x3", "tf32", "ieee"}
        Of matrix products of the fused kernels.

    Notes
    -----
    Each structure has a list of its own, which is built anew when its atoms or its cell have moved too far. A batch of
    other atoms than the last one begins anew. Copies and pickles carry no lists. Not for several threads at once.
    """

    def __init__(self, student: Student, *, skin: float = 1.0, precision: str = "tf32x3") -> None:
        self.student, self.skin = student, check_skin_length(skin)
        self.options = Options(precision=precision)
        self.n_builds = 0
        self._obstacle = find_student_obstacle(student)
        self.forget()

    def forget(self) -> None:
        """Drop lists and buffers."""
        self._reference: Systems | None = None
        self._edges: list[Tensor] = []
        self._shifts: list[Tensor] = []
        self._graph: Graph | None = None
        self._packed: PackedBatch | None = None
        self._fused: FusedPotential | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but lists and buffers."""
        kept = ("student", "skin", "options", "n_builds", "_obstacle")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, without lists."""
        self.__dict__.update(state)
        self.forget()

    def explain(self) -> Choice:
        """Which path the next evaluation takes, and why."""
        return choose_path(self.student, self._obstacle)

    @torch.no_grad()
    def evaluate(self, systems: Systems) -> BatchOutcome:
        """Evaluate a batch.

        Raises
        ------
        UnsupportedElementError
            If an element is unknown to the student.
        DataError
            If positions or a cell cannot be used; the message names the structure.
        BackendError
            If Triton is forced and cannot run.
        """
        device = self.student.device
        systems = Systems(
            systems.positions.detach().to(device, torch.float64),
            systems.numbers.to(device, torch.int64),
            systems.cells.detach().to(device, torch.float64),
            systems.pbc.to(device, torch.bool),
            systems.batch.to(device, torch.int64),
        )
        positions = self._refresh(systems)
        assert self._reference is not None
        cells = torch.where(systems.pbc[:, :, None], systems.cells, self._reference.cells)
        return dispatch.run(
            OP,
            device,
            lambda: self._evaluate_fused(positions, cells),
            lambda: self._evaluate_torch(positions, cells),
            self._obstacle,
        )

    def _evaluate_fused(self, positions: Tensor, cells: Tensor) -> BatchOutcome:
        assert isinstance(self.student, MomentStudent)
        assert self._graph is not None
        graph = self._graph
        if self._fused is None:
            self._fused = FusedPotential(
                collect_weights(self.student), self.student.device, self.options
            )
        if self._packed is None:
            self._packed = pack_batch(graph.edge_index, graph.shifts, graph.batch, len(cells))
        return evaluate_packed(self._fused, self._packed, positions, cells, self._species)

    def _evaluate_torch(self, positions: Tensor, cells: Tensor) -> BatchOutcome:
        assert self._graph is not None
        graph = replace(self._graph, positions=positions, cell=cells)
        near = edge_vectors(graph).square().sum(dim=1) < self.student.cutoff**2
        graph = replace(graph, edge_index=graph.edge_index[:, near], shifts=graph.shifts[near])
        return convert_prediction(self.student(graph), graph.cell)

    def _refresh(self, systems: Systems) -> Tensor:
        """Bring lists up to date; positions in the images that the lists are for."""
        old, stale = self._reference, list(range(systems.n_systems))
        if (
            old is not None
            and len(old.numbers) == len(systems.numbers)
            and len(old.cells) == len(stale)
        ):
            same = (systems.numbers == old.numbers).all() & (systems.batch == old.batch).all()
            same = same & (systems.pbc == old.pbc).all()
            positions, outdated = self._find_stale(systems, old)
            flags = torch.cat([same[None], outdated]).tolist()
            if flags[0]:
                stale = [k for k, flag in enumerate(flags[1:]) if flag]
                if stale:
                    self._rebuild(systems, stale)
                    fresh = outdated[systems.batch][:, None]
                    positions = torch.where(fresh, systems.positions, positions)
                return positions
        self.forget()
        if len(systems.numbers) == 0:
            raise DataError("no atoms: the batch is empty")
        self._species = self.student.find_species(systems.numbers)
        self._edges = [systems.batch] * len(stale)
        self._shifts = [systems.batch] * len(stale)
        self._reference = Systems(
            systems.positions.clone(), systems.numbers.clone(), systems.cells.clone(),
            systems.pbc.clone(), systems.batch.clone(),
        )  # fmt: skip
        self._bounds = torch.bincount(systems.batch, minlength=len(stale)).cumsum(0).tolist()
        try:
            self._rebuild(systems, stale)
        except BaseException:
            self.forget()
            raise
        return systems.positions

    def _find_stale(self, systems: Systems, old: Systems) -> tuple[Tensor, Tensor]:
        """Positions without whole cell vectors since the build; whether a pair absent from a list could be in reach.

        As :meth:`fastff.neighbors.VerletCache.needs_rebuild`, with the bound ``1 - |F - 1|`` (Frobenius) for the
        smallest singular value of the deformation F. Atoms that were wrapped in between count as not moved.

        Returns
        -------
        positions : (n_atoms, 3) float64 tensor, Å
        stale : (n_systems,) bool tensor
        """
        current = torch.where(systems.pbc[:, :, None], systems.cells, old.cells)
        change = self._inverses @ (current - old.cells)
        moved = systems.positions - old.positions
        moved = moved - (old.positions[:, None, :] @ change[systems.batch])[:, 0]
        inverses = torch.linalg.inv_ex(current)[0]
        jumps = (moved[:, None, :] @ inverses[systems.batch])[:, 0].round() * systems.pbc[
            systems.batch
        ]
        jumps = torch.where(jumps.isfinite(), jumps, 0.0)
        whole = (jumps[:, None, :] @ current[systems.batch])[:, 0]
        moved = moved - whole
        squared = moved.square().sum(dim=1)
        largest = squared.new_zeros(systems.n_systems)
        largest = largest.scatter_reduce(0, systems.batch, squared, "amax").sqrt()
        sigma = 1.0 - change.square().sum(dim=(1, 2)).sqrt()
        cutoff = self.student.cutoff
        return systems.positions - whole, ~(sigma * (cutoff + self.skin) - 2.0 * largest > cutoff)

    def _rebuild(self, systems: Systems, stale: list[int]) -> None:
        """Build the lists of some structures and join those of all."""
        assert self._reference is not None
        reach = self.student.cutoff + self.skin
        device = self.student.device
        cells, pbc = systems.cells.cpu().numpy(), systems.pbc.cpu().numpy()
        on_host = systems.positions.cpu() if self._lists_on_host(stale) else None
        completed = torch.empty(len(stale), 3, 3, dtype=torch.float64)
        for place, k in enumerate(stale):
            start, stop = self._bounds[k - 1] if k else 0, self._bounds[k]
            try:
                if device.type == "cuda" and stop - start >= LIST_ON_DEVICE_FROM:
                    found = list_on_device(systems.positions[start:stop], cells[k], pbc[k], reach)
                else:
                    assert on_host is not None
                    found = list_on_host(on_host[start:stop].numpy(), cells[k], pbc[k], reach)
            except DataError as error:
                raise DataError(f"structure {k}: {error}") from error
            self._edges[k], self._shifts[k] = (part.to(device) for part in found[:2])
            completed[place] = torch.from_numpy(found[2])
            self._reference.positions[start:stop] = systems.positions[start:stop]
        self._reference.cells[stale] = completed.to(device)
        self._inverses = torch.linalg.inv(self._reference.cells)
        self.n_builds += len(stale)
        starts = [0, *self._bounds[:-1]]
        self._packed = None
        self._graph = Graph(
            positions=systems.positions, numbers=systems.numbers, cell=systems.cells, pbc=systems.pbc,
            batch=self._reference.batch,
            edge_index=torch.cat([e + s for e, s in zip(self._edges, starts, strict=True)], dim=1),
            shifts=torch.cat(self._shifts),
        )  # fmt: skip

    def _lists_on_host(self, stale: list[int]) -> bool:
        """Whether the list of any of some structures is built on the host."""
        if self.student.device.type != "cuda":
            return True
        bounds = [0, *self._bounds]
        return any(bounds[k + 1] - bounds[k] < LIST_ON_DEVICE_FROM for k in stale)


def list_on_host(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Edges, shifts and completed cell of one structure, through vesin."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise DataError(
            f"position of atom {bad[0]} is not finite: {positions[bad[0]].tolist()}; "
            "the structure or the dynamics is broken"
        )
    if not np.isfinite(cell[pbc]).all():
        raise DataError(
            f"cell {cell.tolist()} is not finite; the structure or the dynamics is broken"
        )
    completed = complete_cell(positions, cell, pbc, reach)
    edges, shifts = build_edges(positions, completed, pbc, reach)
    return torch.from_numpy(edges), torch.from_numpy(shifts), completed


def list_on_device(
    positions: Tensor, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[Tensor, Tensor, np.ndarray]:
    """As :func:`list_on_host` with our own kernel; edges of an atom are in the order of the search."""
    flags = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    found = build_neighbors(positions, cell, flags, reach)
    senders, codes, filled = unpack_neighbors(found.matrix)
    receivers = torch.arange(len(positions), device=positions.device)[:, None].expand_as(senders)
    i, j = receivers[filled], senders[filled]
    shifts = list_shifts(found.images).to(positions.device)[codes[filled]]
    shifts = shifts + found.wraps[i].long() - found.wraps[j].long()
    return torch.stack([i, j]), shifts, np.asarray(found.frame.rows)
