"""Labelling structures with a teacher, batch by batch, so that it can be killed and continued.

Here: :class:`Labeller`, the teacher's self-check, Hessian-vector targets. Not here: reading
structures (:mod:`fastff.distill.jobs`), making new ones (:mod:`fastff.distill.sampling`), several processes
(:mod:`fastff.distill.scaling`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ase
import numpy as np

import fastff
from fastff.distill.content import describe_teacher, hash_structure
from fastff.distill.jobs import LabelJob, batch_jobs, count_batch_atoms
from fastff.distill.label_report import COLD_BATCHES, LabelPlan, LabelReport
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, HessianVector

if TYPE_CHECKING:
    from fastff.teachers import Teacher


CHECK = "self_check"
"""Key of a label file's record that holds what the teacher was found to be worth."""
STORE_EVERY = 1.0
"""Seconds between writes of labels. A batch of a fast teacher takes a tenth of that, and a write waits for the disk."""


@dataclass(frozen=True)
class LabelSettings:
    """How to label.

    Attributes
    ----------
    batch_atoms : int or None
        Most atoms handed to the teacher, and stored, at once; None leaves it to the teacher.
    hessian_step : float or None
        Å; also label the structure displaced by ± this along a random direction, for a Hessian-vector target.
    force_limit : float or None
        eV/Å; frames with larger forces are set aside.
    self_check : bool
        Measure the teacher before labelling and store the outcome with the labels.
    """

    batch_atoms: int | None = None
    hessian_step: float | None = None
    force_limit: float | None = None
    self_check: bool = True

    @property
    def copies(self) -> int:
        """Structures that the teacher sees for each frame."""
        return 1 if self.hessian_step is None else 3

    def __post_init__(self) -> None:
        if self.batch_atoms is not None and self.batch_atoms < 1:
            raise UsageError(f"batches of {self.batch_atoms} atoms make no sense; use at least 1")
        if self.force_limit is not None and not self.force_limit > 0.0:
            raise UsageError(
                f"force limit is {self.force_limit:g} eV/Å; use one above 0, such as 100"
            )
        if self.hessian_step is not None and not 1e-4 <= self.hessian_step <= 0.1:
            raise UsageError(
                f"step of Hessian-vector targets is {self.hessian_step:g} Å; use 0.0001 to 0.1, such as 0.01"
            )


@dataclass
class LabelListener:
    """What a front end wants to be told; only the first process tells it."""

    on_teacher: Callable[[Teacher], None] = lambda teacher: None
    on_check: Callable[[dict[str, Any]], None] = lambda check: None
    on_plan: Callable[[LabelPlan], None] = lambda plan: None
    on_batch: Callable[[int, int], None] = lambda done, total: None
    on_failure: Callable[[str], None] = lambda text: None
    """Another process has ended; this one does so next. Without text, that one has said why."""


def is_first_process() -> bool:
    """Whether this process is the one that reports, by the variables that launchers set."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name]) == 0
    return True


class Labeller:
    """Labels jobs with one teacher into one file.

    Parameters
    ----------
    teacher : Teacher
    store : LabelStore
        Open for appending, of this teacher.
    jobs : sequence of LabelJob
        What this process is to label; those stored already are passed over.
    settings : LabelSettings
    known : collection of bytes
        Content hashes of frames that other files of the same job hold.
    on_batch : callable, optional
        Called with the number of frames done and to do after each batch.

    Raises
    ------
    UnsupportedElementError
        A frame has elements the teacher does not know.
    DataError
        The file holds frames without Hessian-vector targets, and they are asked for.
    """

    def __init__(
        self,
        teacher: Teacher,
        store: LabelStore,
        jobs: Sequence[LabelJob],
        settings: LabelSettings,
        *,
        known: Collection[bytes] = (),
        on_batch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.teacher, self.store, self.settings, self.on_batch = teacher, store, settings, on_batch
        self.report = LabelReport()
        without = len(store) - store.n_hessian_vectors
        if settings.hessian_step is not None and without:
            raise DataError(
                f"{store.path} holds {without} frames without Hessian-vector targets; write to a new file, or leave "
                "the option out"
            )
        self.plan, pending = plan_labels(
            jobs, teacher, lambda key: store.has(key) or key in known, settings
        )
        self.report.n_found, self.report.n_repeated = self.plan.n_found, self.plan.n_repeated
        self._n_pending_atoms = sum(len(job.atoms) for job in pending)
        self.batches = batch_jobs(pending, settings.batch_atoms or count_batch_atoms(teacher))
        self._n_done = 0
        self._cold = 0, 0.0  # atoms and seconds of the first batches
        self._n_batches = 0
        self._unstored: list[tuple[Frame, bool]] = []  # with whether it is held out
        self._stored_at = time.perf_counter()
        self._reserved = False

    def check_teacher(self, examples: Sequence[ase.Atoms]) -> dict[str, Any] | None:
        """Measure the teacher once and store the outcome; None where it was stored before or is not asked for."""
        self.store.note(fastff_version=fastff.__version__)
        if not self.settings.self_check:
            return None
        return check_once(self.teacher, self.store, examples)

    def measure(self) -> LabelPlan:
        """Label the first batch, or two if the teacher is cold, and return the plan with the time it takes."""
        try:
            for _ in range(min(COLD_BATCHES, len(self.batches))):
                self.label_batch(self.batches.pop(0))
        finally:
            self.store_labels()
        return self.plan

    def run(self) -> LabelReport:
        """Label all that is pending."""
        try:
            while self.batches:
                self.label_batch(self.batches.pop(0))
        finally:
            self.store_labels()
        return self.report

    def label_batch(self, jobs: Sequence[LabelJob]) -> None:
        """Label some jobs, and store all that is not stored yet if :data:`STORE_EVERY` seconds have passed.

        The first batches tell how long the plan will take.
        If the process is killed, what is not stored is labelled again by the next run; :meth:`store_labels` is to be
        called in the end, also where a batch has failed.
        """
        start = time.perf_counter()
        frames = label_jobs(self.teacher, jobs, self.settings.hessian_step)
        self._unstored += zip(frames, (job.held_out for job in jobs), strict=True)
        if time.perf_counter() - self._stored_at >= STORE_EVERY:
            self._write()
        copies = self.settings.copies
        n_atoms, seconds = copies * sum(len(job.atoms) for job in jobs), time.perf_counter() - start
        self.report.n_atoms += n_atoms
        self.report.seconds += seconds
        self._n_batches += 1
        if self._n_batches <= COLD_BATCHES:
            self._cold = self.report.n_atoms, self.report.seconds
            self.plan = replace(self.plan, seconds_per_atom=seconds / max(n_atoms, 1))
        elif self.report.seconds > self._cold[1]:
            n_warm = self.report.n_atoms - self._cold[0]
            self.report.warm_rate = n_warm / (self.report.seconds - self._cold[1])
        self._n_done += len(jobs)
        self.on_batch(self._n_done, self.plan.n_pending)

    def store_labels(self) -> None:
        """Store what is labelled and not stored yet."""
        start = time.perf_counter()
        self._write()
        self.report.seconds += time.perf_counter() - start

    def _write(self) -> None:
        labelled, self._unstored = self._unstored, []
        if labelled and not self._reserved:
            self.store.reserve(self.plan.n_pending, self._n_pending_atoms)
            self._reserved = True
        for flag in (False, True):
            frames = [frame for frame, held_out in labelled if held_out == flag]
            if frames:
                outcome = self.store.append(
                    frames, held_out=flag, force_limit=self.settings.force_limit
                )
                self.report.n_labelled += outcome.added
                self.report.set_aside += outcome.quarantined
        self._stored_at = time.perf_counter()


def check_once(
    teacher: Teacher, store: LabelStore, examples: Sequence[ase.Atoms]
) -> dict[str, Any] | None:
    """Measure a teacher on a few structures and store the outcome with its labels, unless that was done before."""
    if CHECK in store.record or not examples:
        return None
    from fastff.teachers.selfcheck import check_teacher

    outcome = check_teacher(teacher, examples).to_dict()
    store.note(**{CHECK: outcome})
    return outcome


def plan_labels(
    jobs: Sequence[LabelJob],
    teacher: Teacher,
    is_stored: Callable[[bytes], bool],
    settings: LabelSettings,
) -> tuple[LabelPlan, list[LabelJob]]:
    """What is to be done for some jobs, given whether the frame of a content hash is stored, and the jobs left to do.

    Raises
    ------
    UnsupportedElementError
        One of these has elements the teacher does not know.
    """
    pending: list[LabelJob] = []
    n_found = n_repeated = 0
    seen: set[bytes] = set()
    record = describe_teacher(teacher)
    for job in jobs:
        key = hash_structure(job.atoms, record)
        if key in seen:
            n_repeated += 1
        elif is_stored(key):
            n_found += 1
        else:
            teacher.check_elements(job.atoms)
            pending.append(job)
        seen.add(key)
    plan = LabelPlan(
        n_frames=len(jobs),
        n_found=n_found,
        n_repeated=n_repeated,
        n_pending=len(pending),
        n_evaluations=settings.copies * len(pending),
        n_atoms=settings.copies * sum(len(job.atoms) for job in pending),
    )
    return plan, pending


def label_jobs(
    teacher: Any, jobs: Sequence[LabelJob], hessian_step: float | None = None
) -> list[Frame]:
    """Label jobs in one call of the teacher.

    Parameters
    ----------
    teacher : Teacher
        Anything with ``label(structures) -> list[Labels]``.
    jobs : sequence of LabelJob
    hessian_step : float, optional
        Å, see :class:`LabelSettings`.
    """
    structures = [job.atoms for job in jobs]
    directions: list[np.ndarray] = []
    if hessian_step is not None:
        directions = [draw_direction(atoms) for atoms in structures]
        structures += [
            displace(job.atoms, sign * hessian_step * direction)
            for sign in (1, -1)
            for job, direction in zip(jobs, directions, strict=True)
        ]
    labels = teacher.label(structures)
    frames = []
    for index, job in enumerate(jobs):
        target = None
        if hessian_step is not None:
            plus, minus = labels[len(jobs) + index], labels[2 * len(jobs) + index]
            target = HessianVector(directions[index], hessian_step, plus.forces, minus.forces)
        frames.append(
            Frame(
                job.atoms,
                labels[index],
                job.source,
                job.trajectory,
                job.temperature,
                job.step,
                target,
            )
        )
    return frames


def draw_direction(atoms: ase.Atoms) -> np.ndarray:
    """Random displacement of root mean square length 1 per atom, the same for the same structure.

    Without a common translation, to which forces do not respond. Shape (n_atoms, 3), dimensionless.
    """
    rng = np.random.default_rng(list(hash_structure(atoms)))
    direction = rng.normal(size=(len(atoms), 3))
    if len(atoms) > 1:
        direction -= direction.mean(axis=0)
    result: np.ndarray = direction * np.sqrt(len(atoms)) / np.linalg.norm(direction)
    return result


def displace(atoms: ase.Atoms, moves: np.ndarray) -> ase.Atoms:
    """A copy with ``moves`` (n_atoms, 3), Å, added to the positions."""
    moved = atoms.copy()
    moved.positions += moves
    return moved


def describe_caveats(teacher: Any, check: dict[str, Any] | None = None) -> list[str]:
    """What makes a teacher's labels less than a smooth energy and its derivatives, in whole sentences.

    ``teacher`` is whatever :func:`fastff.distill.content.describe_teacher` takes; records of others may lack entries.
    """
    record, caveats = describe_teacher(teacher), []
    conservative, most = record.get("conservative", True), record.get("max_neighbors")
    if not conservative:
        caveats.append(
            "Direct teacher: its forces are not the derivative of its energy; a student can follow only their "
            "conservative part."
        )
    if most is not None:
        caveats.append(
            f"Truncated-neighbor teacher: at most {most} neighbors per atom; its energy and forces jump."
        )
    if check and conservative and not check["conservative"]:
        caveats.append(
            f"The forces differ from the slope of the energy by {100 * check['slope_mismatch']:.1f} %, though the "
            "teacher is said to be conservative."
        )
    return caveats


def describe_check(check: dict[str, Any]) -> str:
    """One line about a stored self-check."""
    # checks of earlier versions took the curvature of the surface for noise, and do not have this entry
    floor = check.get("noise_force")
    mismatch = 100 * check["slope_mismatch"]
    words = "not measured" if floor is None else f"{floor:.1e} eV/Å"
    return (
        f"noise floor {words} (forces {check['force_rms']:.2f} RMS), slope of the energy against forces "
        f"{mismatch:.2g} %"
    )
