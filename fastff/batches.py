"""Many structures together, again and again: lists with a skin per structure, fused kernels or torch.

Here: :class:`BatchEvaluator`, tensors in and tensors out. Not here: the lists (:mod:`fastff.batch_lists`), one
evaluation (:mod:`fastff.packed`), one structure after another (:mod:`fastff.evaluator`), ASE structures and chunks
(:mod:`fastff.inference`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from fastff.moving import RENEW_FROM, CellMotion, MovingBatch, describe_cells, measure_wear
from fastff.neighbors import check_skin_length
from fastff.packed import (
    BatchOutcome,
    PackedBatch,
    Systems,
    convert_prediction,
    evaluate_packed,
    place_codes,
)


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
    for the device once where no list is built, to learn so. On a CUDA device the lists of batches that only move are
    renewed without the host, and what is launched is replayed from two CUDA graphs. Copies and pickles carry no lists.
    Not for several threads at once.
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
        self._built = [0, 0]
        self._moving: MovingBatch | None = None
        self._reference: Systems | None = None
        self._lists_type = lists
        self._obstacle = find_student_obstacle(student, skin)
        self.forget()

    @property
    def n_builds(self) -> int:
        """See the class."""
        return self._count_built()[0]

    @property
    def n_renewals(self) -> int:
        """See the class."""
        return self._count_built()[1]

    def _count_built(self) -> list[int]:
        more = [0, 0] if self._moving is None else self._moving.counts.tolist()
        return [known + new for known, new in zip(self._built, more, strict=True)]

    def forget(self) -> None:
        """Drop lists and buffers."""
        self._stop_moving()
        self._reference = None
        self._last: Systems | None = None
        self._lists: HostLists | DeviceLists | None = None
        self._motion: CellMotion | None = None
        self._placed: tuple[PackedBatch, NeighborMatrix] | None = None
        self._fused: FusedPotential | None = None
        self._outcome: BatchOutcome | None = None
        self._n_lazy, self._earlier_void = 0, False
        self._fused_again = Replay(hold_weakly(self._launch_fused), self.student.device)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but lists and buffers."""
        kept = ("student", "skin", "options", "_lists_type", "_obstacle")
        values = {name: self.__dict__[name] for name in kept}
        return {**values, "_built": self._count_built(), "_moving": None, "_reference": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, without lists."""
        self.__dict__.update(state)
        self.forget()

    def explain(self) -> Choice:
        """Which path the next evaluation takes, and why."""
        return choose_path(self.student, self._obstacle)

    @torch.inference_mode(False)  # buffers are written in either mode
    @torch.no_grad()
    def evaluate(
        self, systems: Systems, *, only_moved: bool = False, lazy: bool = False
    ) -> BatchOutcome:
        """Evaluate a batch.

        Parameters
        ----------
        systems : Systems
        only_moved : bool
            Promises that nothing but positions differs from the last batch, which is not checked then. The tensors of
            the outcome hold until the next evaluation.
        lazy : bool
            Of batches that only moved: do not wait for the device. Outcomes count unless :meth:`was_void` tells later.

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
            outcome = self._move(positions)
            if not lazy and self._repair():
                self._earlier_void = self._n_lazy > 0
                outcome = self._move(positions)
            self._n_lazy += lazy
            return outcome
        self._load(
            Systems(
                positions,
                systems.numbers.to(device, torch.int64),
                systems.cells.detach().to(device, torch.float64),
                systems.pbc.to(device, torch.bool),
                systems.batch.to(device, torch.int64),
            )
        )
        return self._evaluate()

    @torch.inference_mode(False)
    @torch.no_grad()
    def was_void(self) -> bool:
        """Whether a lazy evaluation since this was last asked lacked neighbors, for want of room; the next one has it.

        Waits for the device.

        Raises
        ------
        DataError
            If positions were not finite; the message names the structure, if they still are not.
        """
        void = self._repair() or self._earlier_void
        self._earlier_void, self._n_lazy = False, 0
        return void

    def _repair(self) -> bool:
        """Whether rows were cut since batches began to move; then they get more room."""
        moving = self._moving
        if moving is None:
            return False
        overflowed, broken = moving.flags.tolist()
        if not (overflowed or broken):
            return False
        assert isinstance(self._lists, DeviceLists)
        self._stop_moving()
        if broken:
            self._start_moving(self._lists, moving.given)
            raise DataError("positions were not finite; the dynamics is broken")
        self._lists.widen(int(moving.widest))
        return True

    def _evaluate(self) -> BatchOutcome:
        device = self.student.device
        return dispatch.run(OP, device, self._evaluate_fused, self._evaluate_torch, self._obstacle)

    def _load(self, systems: Systems) -> None:
        """Take a batch, with lists as far as they still hold."""
        self._stop_moving()
        self._motion = self._placed = None
        positions = self._refresh(systems)
        assert self._reference is not None
        cells = torch.where(systems.pbc[:, :, None], systems.cells, self._reference.cells)
        self._last = Systems(
            positions.clone(), self._reference.numbers, cells, *self._reference[3:]
        )

    def _move(self, positions: Tensor) -> BatchOutcome:
        """Evaluate the last batch at new positions; its buffers stay where they are."""
        last, lists = self._last, self._lists
        assert last is not None
        if isinstance(lists, DeviceLists) and lists.renews_itself and self.skin > 0.0:
            if self._moving is None:
                self._start_moving(lists, positions)
            else:
                self._moving.move(positions)
        else:
            self._stop_moving()
            self._move_with_host(last, positions)
        return self._evaluate()

    def _start_moving(self, lists: DeviceLists, given: Tensor) -> None:
        """Renew all lists, and leave them to the device from now on."""
        last = self._last
        assert last is not None
        reference = self._reference
        assert reference is not None
        systems = last._replace(positions=given)
        last.positions.copy_(self._renew(systems, given, list(range(last.n_systems))))
        self._moving = MovingBatch(
            lists, given, last.positions, reference.cells, last.pbc, last.batch, self.skin
        )

    def _stop_moving(self) -> None:
        if self._moving is not None and self._reference is not None:
            self._reference.positions.copy_(self._moving.base)
            if bool(self._moving.flags.any()):
                self._reference.positions.fill_(torch.nan)  # no list is to be trusted
        self._built, self._moving = self._count_built(), None

    def _move_with_host(self, last: Systems, positions: Tensor) -> None:
        assert self._reference is not None
        last.positions.copy_(positions)
        if self._motion is None:
            self._motion = self._describe_cells(last, self._reference)
        now, wear = measure_wear(last, self._motion, self.skin)
        last.positions.copy_(now)
        stale = self._find_stale(wear.tolist())
        if stale:
            last.positions.copy_(self._renew(last, last.positions, stale))

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
            positions, wear = measure_wear(systems, self._describe_cells(systems, old), self.skin)
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

    def _describe_cells(self, systems: Systems, old: Systems) -> CellMotion:
        return describe_cells(systems, old, self._inverses, self.student.cutoff + self.skin)

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
        self._built = [self._built[0] + len(renewed), self._built[1] + 1]
        return torch.where(fresh, wrapped, positions)
