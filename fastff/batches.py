"""Many structures together, again and again: lists with a skin per structure, fused kernels or torch.

Here: :class:`BatchEvaluator`, tensors in and tensors out. Not here: the lists (:mod:`fastff.batch_lists`), one
evaluation (:mod:`fastff.packed`), one structure after another (:mod:`fastff.evaluator`), ASE structures and chunks
(:mod:`fastff.inference`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastff.batch_lists import DeviceLists, HostLists
from fastff.errors import DataError
from fastff.evaluator import Choice, choose_path, find_student_obstacle
from fastff.graph import Graph, edge_vectors
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import NeighborMatrix
from fastff.kernels.moment_potential.op import OP
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.replay import Replay, hold_weakly
from fastff.models.base import Student
from fastff.models.fused import collect_weights
from fastff.models.moment import MomentStudent
from fastff.neighbors import check_skin_length
from fastff.packed import (
    BatchOutcome,
    PackedBatch,
    convert_prediction,
    evaluate_packed,
    place_codes,
)

RENEW_FROM = 0.6
"""Share of its skin that a structure has used when its list is renewed with that of another one, which needs it."""


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


class CellMotion(NamedTuple):
    """What cells and their change since the lists say, per atom unless noted.

    base (n_atoms, 3) Å, positions of the lists strained with their cells; inverses (n_atoms, 3, 3), zero where not
    periodic; cells (n_atoms, 3, 3) Å; loss (n_systems,) Å, by how much pairs at the reach may have come closer through
    the strain.
    """

    base: Tensor
    inverses: Tensor
    cells: Tensor
    loss: Tensor


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
    lists : type, optional
        Of :mod:`fastff.batch_lists`; by default those of the student's device.

    Attributes
    ----------
    n_builds : int
        Lists of a structure that were built.
    n_renewals : int
        Evaluations that built any.

    Notes
    -----
    Each structure has a list of its own, which is built anew when its atoms or its cell have moved too far; on a CUDA
    device, with those that soon will have. A batch of other atoms than the last one begins anew. An evaluation waits
    for the device once where no list is built, to learn so. Batches that only move are replayed from CUDA graphs, one
    before that and one after. Copies and pickles carry no lists. Not for several threads at once.
    """

    def __init__(
        self,
        student: Student,
        *,
        skin: float = 1.0,
        precision: str = "tf32x3",
        lists: type[HostLists | DeviceLists] | None = None,
    ) -> None:
        self.student, self.skin = student, check_skin_length(skin)
        self.options = Options(precision=precision)
        self.n_builds = self.n_renewals = 0
        self._lists_type = lists
        self._obstacle = find_student_obstacle(student)
        self.forget()

    def forget(self) -> None:
        """Drop lists and buffers."""
        self._reference: Systems | None = None
        self._last: Systems | None = None
        self._lists: HostLists | DeviceLists | None = None
        self._motion: CellMotion | None = None
        self._placed: tuple[PackedBatch, NeighborMatrix] | None = None
        self._fused: FusedPotential | None = None
        self._outcome: BatchOutcome | None = None
        device = self.student.device
        self._again = Replay(hold_weakly(self._measure_moved), device)
        self._fused_again = Replay(hold_weakly(self._launch_fused), device)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but lists and buffers."""
        kept = ("student", "skin", "options", "n_builds", "n_renewals", "_lists_type", "_obstacle")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, without lists."""
        self.__dict__.update(state)
        self.forget()

    def explain(self) -> Choice:
        """Which path the next evaluation takes, and why."""
        return choose_path(self.student, self._obstacle)

    @torch.inference_mode(False)  # buffers are written in either mode
    @torch.no_grad()
    def evaluate(self, systems: Systems, *, only_moved: bool = False) -> BatchOutcome:
        """Evaluate a batch.

        Parameters
        ----------
        systems : Systems
        only_moved : bool
            Promises that nothing but positions differs from the last batch, which is not checked then. The tensors of
            the outcome hold until the next evaluation.

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
        positions = systems.positions.detach().to(device, torch.float64)
        if only_moved and self._last is not None:
            self._move(positions)
        else:
            self._load(
                Systems(
                    positions,
                    systems.numbers.to(device, torch.int64),
                    systems.cells.detach().to(device, torch.float64),
                    systems.pbc.to(device, torch.bool),
                    systems.batch.to(device, torch.int64),
                )
            )
        return dispatch.run(OP, device, self._evaluate_fused, self._evaluate_torch, self._obstacle)

    def _load(self, systems: Systems) -> None:
        """Take a batch, with lists as far as they still hold."""
        self._motion = self._placed = None
        self._again.forget()
        positions = self._refresh(systems)
        assert self._reference is not None
        cells = torch.where(systems.pbc[:, :, None], systems.cells, self._reference.cells)
        self._last = Systems(
            positions.clone(), self._reference.numbers, cells, *self._reference[3:]
        )

    def _move(self, positions: Tensor) -> None:
        """Take new positions of the last batch; buffers stay where they are."""
        last, reference = self._last, self._reference
        assert last is not None
        assert reference is not None
        last.positions.copy_(positions)
        if self._motion is None:
            self._motion = self._describe_cells(last, reference)
        self._again()
        stale = self._find_stale(self._wear.tolist())
        if stale:
            last.positions.copy_(self._renew(last, last.positions, stale))

    def _measure_moved(self) -> None:
        """Move atoms of the last batch to the images of the lists, and measure the wear of these."""
        last = self._last
        assert last is not None
        assert self._motion is not None
        positions, self._wear = self._measure_wear(last, self._motion)
        last.positions.copy_(positions)

    def _evaluate_fused(self) -> BatchOutcome:
        assert isinstance(self.student, MomentStudent)
        assert self._lists is not None
        assert self._last is not None
        if self._fused is None:
            self._fused = FusedPotential(
                collect_weights(self.student), self.student.device, self.options
            )
        packed = self._lists.pack()
        if self._placed is None or self._placed[0] is not packed:
            self._placed = packed, place_codes(packed, self._last.cells)
            self._fused_again.forget()
        if self._lists.stay_in_place:
            self._fused_again()
        else:
            self._launch_fused()
        assert self._outcome is not None
        return self._outcome

    def _launch_fused(self) -> None:
        assert self._fused is not None
        assert self._last is not None
        assert self._placed is not None
        packed, matrix = self._placed
        self._outcome = evaluate_packed(
            self._fused, packed, self._last.positions, self._last.cells, self._species, matrix
        )

    def _evaluate_torch(self) -> BatchOutcome:
        graph = self.make_graph()
        return convert_prediction(self.student(graph), graph.cell)

    @torch.no_grad()
    def make_graph(self) -> Graph:
        """The last batch as a graph of the pairs within the cut-off, from the lists there are.

        Positions are those of other images than were given, where atoms have left their cell.

        Raises
        ------
        DataError
            If nothing was evaluated before.
        """
        last, lists = self._last, self._lists
        if last is None or lists is None:
            raise DataError("no batch was evaluated yet, so that there is no graph of it")
        edges, shifts = lists.join_edges()
        graph = Graph(
            positions=last.positions.clone(), numbers=last.numbers, cell=last.cells, pbc=last.pbc,
            batch=last.batch, edge_index=edges, shifts=shifts,
        )  # fmt: skip
        near = edge_vectors(graph).square().sum(dim=1) < self.student.cutoff**2
        return replace(graph, edge_index=edges[:, near], shifts=shifts[near])

    def _refresh(self, systems: Systems) -> Tensor:
        """Bring lists up to date; positions in the images that the lists are for."""
        old, n_systems = self._reference, systems.n_systems
        if (
            old is not None
            and len(old.numbers) == len(systems.numbers)
            and len(old.cells) == n_systems
        ):
            positions, wear = self._measure_wear(systems, self._describe_cells(systems, old))
            same = (systems.numbers == old.numbers).all() & (systems.batch == old.batch).all()
            same = (same & (systems.pbc == old.pbc).all())[None].to(wear.dtype)
            is_same, *used = torch.cat([same, wear]).tolist()
            if is_same:
                stale = self._find_stale(used)
                return self._renew(systems, positions, stale) if stale else positions
        self.forget()
        if len(systems.numbers) == 0:
            raise DataError("no atoms: the batch is empty")
        self._species = self.student.find_species(systems.numbers)
        self._reference = Systems(
            systems.positions.clone(), systems.numbers.clone(), systems.cells.clone(),
            systems.pbc.clone(), systems.batch.clone(),
        )  # fmt: skip
        sizes = torch.bincount(systems.batch, minlength=n_systems).tolist()
        kind = self._lists_type
        if kind is None:
            kind = DeviceLists if self.student.device.type == "cuda" else HostLists
        self._lists = kind(
            sizes, systems.pbc.cpu().numpy(), self._reference.batch, self.student.cutoff + self.skin
        )
        return self._renew(systems, systems.positions, list(range(n_systems)))

    def _find_stale(self, wear: list[float]) -> list[int]:
        """Structures whose lists are to be renewed, given the share of the skin that each has used."""
        stale = [k for k, share in enumerate(wear) if not share < 1.0]
        assert self._lists is not None
        if stale and self._lists.shares_work:
            return [k for k, share in enumerate(wear) if not share < RENEW_FROM]
        return stale

    def _measure_wear(self, systems: Systems, motion: CellMotion) -> tuple[Tensor, Tensor]:
        """Positions without whole cell vectors since the build, and how much of the skin has been used.

        As :meth:`fastff.neighbors.VerletCache.needs_rebuild`, with the bound ``1 - |F - 1|`` (Frobenius) for the
        smallest singular value of the deformation F. Atoms that were wrapped in between count as not moved.

        Returns
        -------
        positions : (n_atoms, 3) float64 tensor, Å
        wear : (n_systems,) float64 tensor
            Unless it is below one, a pair absent from the list could be in reach.
        """
        moved = systems.positions - motion.base
        jumps = (moved[:, None, :] @ motion.inverses)[:, 0].round()
        jumps = torch.where(jumps.isfinite(), jumps, 0.0)
        whole = (jumps[:, None, :] @ motion.cells)[:, 0]
        lengths = (moved - whole).norm(dim=1)
        largest = lengths.new_zeros(systems.n_systems)
        largest = largest.scatter_reduce(0, systems.batch, lengths, "amax")
        return systems.positions - whole, (motion.loss + 2.0 * largest) / self.skin

    def _describe_cells(self, systems: Systems, old: Systems) -> CellMotion:
        batch = systems.batch
        current = torch.where(systems.pbc[:, :, None], systems.cells, old.cells)
        change = self._inverses @ (current - old.cells)
        base = old.positions + (old.positions[:, None, :] @ change[batch])[:, 0]
        inverses = torch.linalg.inv_ex(current)[0]
        inverses = torch.where(systems.pbc[:, None, :], inverses, 0.0)
        loss = change.square().sum(dim=(1, 2)).sqrt() * (self.student.cutoff + self.skin)
        return CellMotion(base, inverses[batch], current[batch], loss)

    def _renew(self, systems: Systems, positions: Tensor, stale: list[int]) -> Tensor:
        """Build the lists of some structures; positions in the images that all lists are for."""
        assert self._reference is not None
        assert self._lists is not None
        try:
            renewed, completed, wrapped = self._lists.renew(systems.positions, systems.cells, stale)
        except BaseException:
            self.forget()
            raise
        chosen = torch.tensor(renewed, device=positions.device)
        fresh = torch.zeros(systems.n_systems, dtype=torch.bool, device=positions.device)
        fresh[chosen] = True
        fresh = fresh[systems.batch][:, None]
        self._reference.positions.copy_(torch.where(fresh, wrapped, self._reference.positions))
        self._reference.cells[chosen] = completed
        self._inverses = torch.linalg.inv_ex(self._reference.cells)[0]
        if self._motion is not None:
            for kept, now in zip(
                self._motion, self._describe_cells(systems, self._reference), strict=True
            ):
                kept.copy_(now)
        self.n_builds += len(renewed)
        self.n_renewals += 1
        return torch.where(fresh, wrapped, positions)
