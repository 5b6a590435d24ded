"""Accuracy of a bench run: on labels that exist, or on fresh dynamics of the teacher.

Here: :class:`Run`, what is known while a run goes on, :func:`judge_labels` and :func:`judge_dynamics`. Not here: the
order of a run (:mod:`fastff.report.bench`), definitions (:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase

from fastff.errors import SimulationUnstableError
from fastff.labels import Frame, Labels
from fastff.report.baselines import Baseline
from fastff.report.comparison import compare_frames
from fastff.report.ending import NEVER, Watch
from fastff.report.heldout import (
    run_heldout,
    select_heldout,
    share_budget,
    stretch_plan,
    time_dynamics,
    widen_plan,
)
from fastff.report.plan import MAIN, RELATED, BenchPlan, plan_run
from fastff.report.schema import Comparison

if TYPE_CHECKING:
    from fastff.models import Student
    from fastff.teachers.base import Teacher

Progress = Callable[[str, int, int], None]

JudgedSet = tuple[Comparison, list[Frame]]
"""A comparison and the frames it is about."""


def ignore_progress(message: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass
class Run:
    """What is known while a run goes on.

    ``sets`` and ``teacher_record`` are filled while accuracy is judged, so that what was compared is there where a run
    ends early; ``open_sets`` are the names of those to come.
    """

    path: Path
    student: Student
    plan: BenchPlan
    progress: Progress
    teacher: Teacher | None
    baselines: Sequence[Baseline] = ()
    gpumd: tuple[Path, Path] | None = None
    notes: list[str] = field(default_factory=list)
    durations: dict[str, float] = field(default_factory=dict)
    watch: Watch = NEVER
    sets: list[JudgedSet] = field(default_factory=list)
    open_sets: list[str] = field(default_factory=list)
    teacher_record: dict[str, Any] = field(default_factory=dict)
    label_keys: dict[str, str] = field(default_factory=dict)

    @property
    def header(self) -> dict[str, Any]:
        return self.student.header

    def identify_student(self) -> dict[str, Any]:
        """Which student it is, as parts of a record repeat it."""
        return {"sha256": self.header["sha256"]}

    def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
        """What the student says."""
        from fastff.inference import predict

        return predict(self.student, structures, charges="ignore")


def judge_labels(run: Run, path: Path) -> tuple[list[JudgedSet], dict[str, Any]]:
    """Compare on labelled frames that the student has not learned from; also who made the labels."""
    from fastff.distill.content import describe_difference, hash_structure
    from fastff.distill.formats import LabelKeys, read_labels

    start = time.perf_counter()
    run.progress("reading labels", 0, 1)
    labelled = read_labels(path, LabelKeys(**run.label_keys))
    known = frozenset((run.header.get("training") or {}).get("frame_hashes") or ())
    frames, notes = select_heldout(labelled, known, lambda atoms: hash_structure(atoms).hex())
    taught = run.header.get("teacher") or {}
    if (
        labelled.teacher
        and taught
        and (difference := describe_difference(taught, labelled.teacher))
    ):
        run.notes.append(
            f"the labels were made by {labelled.teacher.get('name', 'an unknown teacher')}, the student was "
            f"distilled from {taught.get('name', 'an unknown teacher')}: differences between these two count as error "
            f"({difference})"
        )
    comparison = compare_frames(
        RELATED if labelled.blocks else MAIN,
        frames,
        run.label,
        "labels",
        f"labels read from {path.name}",
        notes,
    )
    run.durations["accuracy"] = time.perf_counter() - start
    record = dict(labelled.teacher or (run.teacher.info.to_dict() if run.teacher else taught))
    run.teacher_record = record
    run.sets.append((comparison, frames))
    return run.sets, record


def judge_dynamics(
    run: Run, structures: Sequence[ase.Atoms], temperature: tuple[float, float] | None
) -> tuple[list[JudgedSet], dict[str, Any]]:
    """Compare on fresh dynamics of the teacher, within the training range and beyond; also who the teacher is."""
    from fastff.distill.constraints import describe_lifted
    from fastff.distill.content import describe_difference

    assert run.teacher is not None
    record = run.teacher.info.to_dict()
    taught = run.header.get("teacher") or {}
    if taught and (difference := describe_difference(taught, record)):
        run.notes.append(
            f"the student was distilled from {taught.get('name')}, it is compared here with {record.get('name')} "
            f"({difference})"
        )
    run.teacher_record = record
    run.notes += describe_lifted(dict(enumerate(structures)))
    plans = plan_run(run.header, structures, temperature, run.plan)
    budgets = share_budget(list(plans), run.plan.dynamics_budget)
    run.open_sets = list(plans)
    for name, plan in plans.items():
        if run.sets:  # without the first there is nothing to judge
            run.watch.check()
        start = time.perf_counter()
        progress = partial(run.progress, f"teacher dynamics, {name}")
        if budgets[name] > 0.0:
            measure = partial(time_dynamics, run.teacher)
            plan = widen_plan(plan, measure, budgets[name])
            plan = stretch_plan(plan, measure(plan), budgets[name])
        try:
            frames = run_heldout(run.teacher, plan, progress)
        except SimulationUnstableError as error:
            if name == MAIN:
                raise
            # beyond the training range the teacher itself may fail; what was found inside it stands
            run.notes.append(f"nothing compared for '{name}': {error}")
            run.open_sets.remove(name)
            continue
        comparison = compare_frames(name, frames, run.label, "teacher-md", plan.describe())
        with run.watch.hold():
            run.sets.append((comparison, frames))
            run.open_sets.remove(name)
            run.durations[f"accuracy, {name}"] = time.perf_counter() - start
    return run.sets, record
