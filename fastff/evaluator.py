"""One structure after another, quickly: the choice between fused kernels and torch, and what is kept between calls.

Here: :class:`Evaluator`, arrays in and arrays out. Not here: ASE calculators, checks of structures, many structures at
once (:mod:`fastff.inference`), what stays on the device (:mod:`fastff.resident`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastff.errors import UsageError
from fastff.graph import Graph
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.layout import find_obstacle, find_reach_obstacle
from fastff.kernels.moment_potential.op import OP
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.replay import Replay, hold_weakly
from fastff.memory import DeviceMemoryError, explain_shortage, is_out_of_memory, release_memory
from fastff.models.base import Student
from fastff.models.fused import collect_weights
from fastff.models.moment import MomentStudent
from fastff.models.uncertainty import Uncertainty, predict_with_uncertainty
from fastff.neighbors import (
    VerletCache,
    build_edges,
    check_skin_length,
    complete_cell,
    measure_edges,
)
from fastff.resident import ResidentPotential

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """Which path evaluations take: ``"fused"`` (Triton kernels) or ``"torch"``, and why."""

    path: str
    reason: str


class Contact(NamedTuple):
    """The closest pair of a structure: atoms, distance in Å."""

    first: int
    second: int
    distance: float


@dataclass(frozen=True)
class Outcome:
    """What an evaluation gives, in arrays of the caller's own.

    Attributes
    ----------
    energy : float, eV
    forces : (n_atoms, 3) float64 array, eV/Å
    virial : (3, 3) float64 array, eV
        Stress times the volume of the cell, positive under tension.
    energies : (n_atoms,) float64 array, eV
    contact : Contact or None
        The closest pair, if it is nearer than the evaluator's limit.
    uncertainty : Uncertainty or None
        Of energy and atoms, if the evaluator measures it; on the CPU.
    """

    energy: float
    forces: Array
    virial: Array
    energies: Array
    contact: Contact | None
    uncertainty: Uncertainty | None = None

    @property
    def is_finite(self) -> bool:
        """Whether energy and all forces are numbers."""
        return bool(np.isfinite(self.energy) and np.isfinite(self.forces.sum()))


def find_student_obstacle(student: Student, skin: float = 0.0) -> str | None:
    """Why the fused kernels cannot take a student over lists with a skin in Å, or None."""
    if not isinstance(student, MomentStudent):
        return f"{type(student).__name__} is no moment student"
    if student.dtype != torch.float32:
        return f"the student is {student.dtype}, the kernels take float32"
    return find_obstacle(collect_weights(student)) or find_reach_obstacle(student.cutoff + skin)


def choose_path(student: Student, obstacle: str | None = None, *, skin: float = 0.0) -> Choice:
    """Which path evaluations of a student take on its device under the present selection of back ends.

    ``obstacle`` is what :func:`find_student_obstacle` found, if that was asked already; ``skin``, in Å, is that of the
    lists otherwise.

    Raises
    ------
    BackendError
        Triton is forced and cannot run.
    """
    obstacle = obstacle or find_student_obstacle(student, skin)
    backend, reason = dispatch.decide(OP, student.device, obstacle)
    return Choice("fused" if backend == "triton" else "torch", reason)


class Evaluator:
    """Energies, forces and virials of one student, for structures that resemble their predecessors.

    Parameters
    ----------
    student : Student
        On its device and in its dtype; its parameters must not change while the evaluator is used.
    skin : float, Å
        By how much neighbor lists reach beyond the cut-off; 0 builds a list at every call.
    precision : {"tf32x3", "tf32", "ieee"}
        Of matrix products on the fused path; see :class:`~fastff.kernels.moment_potential.workspace.Options`.
    contact_limit : float, optional
        Distance in Å below which the closest pair is reported.
    with_uncertainty : bool
        Measure the uncertainty that came with the model file, in the same pass.

    Raises
    ------
    UsageError
        If the skin is negative, or the student holds no uncertainty to measure.

    Notes
    -----
    A moment student in float32 on a CUDA device takes the fused kernels, from the third call on as a replayed CUDA
    graph; :meth:`explain` tells. Everything else takes torch. Not for several threads at once. Copies and pickles carry
    no buffers.
    """

    def __init__(
        self,
        student: Student,
        *,
        skin: float = 1.0,
        precision: str = "tf32x3",
        contact_limit: float | None = None,
        with_uncertainty: bool = False,
    ) -> None:
        self.student, self.skin, self.contact_limit = (
            student,
            check_skin_length(skin),
            contact_limit,
        )
        self.options = Options(precision=precision)
        self._obstacle = find_student_obstacle(student, skin)
        if with_uncertainty and student.uncertainty is None:
            raise UsageError(
                "this model file holds no uncertainty; train it again with more validation frames"
            )
        self.with_uncertainty = with_uncertainty
        self.forget()

    def forget(self) -> None:
        """Drop lists and buffers; the next call builds them anew."""
        self.cache = VerletCache(self.student.cutoff, self.skin)
        self._session: FusedSession | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but buffers."""
        return {**self.__dict__, "cache": None, "_session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, without buffers."""
        self.__dict__.update(state)
        self.forget()

    def explain(self) -> Choice:
        """Which path the next evaluation takes, and why."""
        return choose_path(self.student, self._obstacle)

    def evaluate(
        self, positions: Array, cell: Array, pbc: NDArray[np.bool_], numbers: NDArray[np.int64]
    ) -> Outcome:
        """Evaluate one structure.

        Parameters
        ----------
        positions : (n_atoms, 3) float64 array, Å
        cell : (3, 3) float64 array, Å
        pbc : (3,) bool array
        numbers : (n_atoms,) integer array

        Raises
        ------
        UnsupportedElementError
            If an element is unknown to the student.
        DataError
            If positions or cell cannot be used.
        DeviceMemoryError
            If the structure does not fit into the memory of the device, not even after everything kept was dropped.
        BackendError
            If Triton is forced and cannot run.
        """
        flags = np.asarray(pbc, dtype=bool)
        try:
            return self._evaluate(positions, cell, flags, numbers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _log.info("memory ran out with %d atoms (%s); trying once more", len(positions), error)
        # outside of the handler, whose error holds tensors
        self.forget()
        release_memory()
        try:
            with explain_shortage(len(positions), self.student.device):
                return self._evaluate(positions, cell, flags, numbers)
        except DeviceMemoryError:
            self.forget()
            raise

    def _evaluate(
        self, positions: Array, cell: Array, pbc: NDArray[np.bool_], numbers: NDArray[np.int64]
    ) -> Outcome:
        arguments = (positions, cell, pbc, numbers)
        return dispatch.run(
            OP,
            self.student.device,
            lambda: self._evaluate_fused(*arguments),
            lambda: self._evaluate_torch(*arguments),
            self._obstacle,
        )

    def _evaluate_fused(
        self, positions: Array, cell: Array, pbc: NDArray[np.bool_], numbers: NDArray[np.int64]
    ) -> Outcome:
        session = self._session
        if session is None or not session.fits(numbers, pbc):
            self._session = None
            session = FusedSession(self, positions, cell, pbc, numbers)
            self._session = session
            numbers_out = session.evaluate(positions, cell, fresh=True)
        else:
            numbers_out = session.evaluate(positions, cell)
        n_atoms = len(positions)
        contact = None
        if self.contact_limit is not None and np.isfinite(numbers_out[10]):
            contact = find_contact(positions, cell, pbc, self.contact_limit)
        return Outcome(
            float(numbers_out[0]),
            numbers_out[12 : 12 + 3 * n_atoms].reshape(n_atoms, 3).copy(),
            numbers_out[1:10].reshape(3, 3).copy(),
            numbers_out[12 + 3 * n_atoms :].copy(),
            contact,
            session.read_uncertainty(),
        )

    def _evaluate_torch(
        self, positions: Array, cell: Array, pbc: NDArray[np.bool_], numbers: NDArray[np.int64]
    ) -> Outcome:
        completed, edges, shifts = self.cache.update(positions, cell, pbc)
        graph = Graph(
            positions=torch.tensor(positions, dtype=torch.float64),
            numbers=torch.tensor(numbers, dtype=torch.int64),
            cell=torch.from_numpy(completed)[None],
            pbc=torch.tensor(pbc)[None],
            batch=torch.zeros(len(positions), dtype=torch.int64),
            edge_index=torch.from_numpy(edges),
            shifts=torch.from_numpy(shifts),
        )
        contact = None
        if self.contact_limit is not None:
            contact = pick_contact(positions, completed, edges, shifts, self.contact_limit)
        place = self.student.device
        placed = graph if place.type == "cpu" else graph.to(place)
        uncertainty = None
        with torch.inference_mode():
            if self.with_uncertainty:
                prediction, measured = predict_with_uncertainty(self.student, placed)
                uncertainty = Uncertainty(measured.energy.cpu(), measured.grades.cpu())
            else:
                prediction = self.student(placed)
        volume = abs(float(np.linalg.det(completed)))
        return Outcome(
            float(prediction.energy[0]),
            prediction.forces.double().cpu().numpy(),
            prediction.stress[0].double().cpu().numpy() * volume,
            prediction.energies.double().cpu().numpy(),
            contact,
            uncertainty,
        )


def find_contact(
    positions: Array, cell: Array, pbc: NDArray[np.bool_], limit: float
) -> Contact | None:
    """The closest pair nearer than ``limit`` Å, on the host."""
    completed = complete_cell(positions, cell, pbc, limit)
    return pick_contact(positions, completed, *build_edges(positions, completed, pbc, limit), limit)


def pick_contact(
    positions: Array,
    cell: Array,
    edges: NDArray[np.int64],
    shifts: NDArray[np.int64],
    limit: float,
) -> Contact | None:
    """The shortest edge, if it is shorter than ``limit`` Å."""
    if not edges.shape[1]:
        return None
    squared = measure_edges(positions, cell, edges, shifts)
    nearest = int(squared.argmin())
    if squared[nearest] >= limit**2:
        return None
    return Contact(int(edges[0, nearest]), int(edges[1, nearest]), float(squared[nearest] ** 0.5))


class FusedSession:
    """One structure on the device, its positions and cell exchanged for new ones at every call.

    One transfer in (cell, positions), one out (everything), one graph in between. The skin is checked in the same
    graph: a result that came from a stale list is thrown away, the list is built and the graph runs again.
    """

    def __init__(
        self,
        owner: Evaluator,
        positions: Array,
        cell: Array,
        pbc: NDArray[np.bool_],
        numbers: NDArray[np.int64],
    ) -> None:
        student = owner.student
        assert isinstance(student, MomentStudent)
        device = student.device
        self._numbers, self._pbc = np.array(numbers), np.array(pbc)
        n_atoms, pinned = len(positions), device.type == "cuda"
        self._sent = torch.empty(9 + 3 * n_atoms, dtype=torch.float64, pin_memory=pinned)
        self._received = torch.empty(12 + 4 * n_atoms, dtype=torch.float64, pin_memory=pinned)
        self._outgoing, self._incoming = self._sent.numpy(), self._received.numpy()
        self._inputs = torch.empty_like(self._sent, device=device)
        self._device = device
        self.potential = ResidentPotential(
            student,
            skin=owner.skin,
            options=owner.options,
            contact_limit=owner.contact_limit,
            with_uncertainty=owner.with_uncertainty,
        )
        self._graded = torch.empty(
            1 + n_atoms if owner.with_uncertainty else 0, dtype=torch.float64, pin_memory=pinned
        )
        self._send(positions, cell)
        self.potential.attach(
            self._inputs[9:].view(n_atoms, 3),
            torch.from_numpy(self._numbers).to(torch.int64),
            self._inputs[:9].view(3, 3),
            torch.from_numpy(self._pbc),
        )
        self._replay = Replay(hold_weakly(self._step), device)

    def fits(self, numbers: NDArray[np.int64], pbc: NDArray[np.bool_]) -> bool:
        """Whether a structure differs in positions and cell alone."""
        return np.array_equal(numbers, self._numbers) and np.array_equal(pbc, self._pbc)

    def evaluate(self, positions: Array, cell: Array, *, fresh: bool = False) -> Array:
        """Numbers of :class:`~fastff.kernels.staging.op.Results`, in a buffer that the next call overwrites."""
        if not fresh:
            self._send(positions, cell)
        current = fresh
        if not fresh and self.potential.skin == 0.0:
            self._rebuild()
            current = True
        self._replay()
        self._receive()
        if self._incoming[11] != 0.0 and not current:
            self._rebuild()
            self._replay()
            self._receive()
        return self._incoming

    def read_uncertainty(self) -> Uncertainty | None:
        """Of the last evaluation, if it is measured."""
        if self.potential.uncertainty is None:
            return None
        return Uncertainty(self._graded[:1].clone(), self._graded[1:].clone())

    def _step(self) -> None:
        self.potential.check()
        self.potential.compute()

    def _rebuild(self) -> None:
        if self.potential.rebuild():
            self._replay.forget()

    def _send(self, positions: Array, cell: Array) -> None:
        self._outgoing[:9] = np.asarray(cell, dtype=np.float64).ravel()
        self._outgoing[9:] = np.asarray(positions, dtype=np.float64).ravel()
        self._inputs.copy_(self._sent, non_blocking=True)

    def _receive(self) -> None:
        self._received.copy_(self.potential.results.buffer, non_blocking=True)
        if self.potential.uncertainty is not None:
            self._graded.copy_(self.potential.uncertainty, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
