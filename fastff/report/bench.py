"""One bench run: a student judged against its teacher, or against labels that exist.

Here: :func:`run_bench`, which measures and returns a verified :class:`~fastff.report.record.BenchRecord`, and
:func:`write_results`. Not here: definitions (:mod:`fastff.report.metrics`), timing rules
(:mod:`fastff.report.timing`), pages (:mod:`fastff.report.html`), the command line (:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator

from fastff.errors import DataError, UsageError
from fastff.labels import Frame, Labels
from fastff.report.comparison import compare_frames, describe_model, read_header_structures
from fastff.report.heldout import (
    HeldoutPlan,
    derive_seed,
    plan_heldout,
    plan_outside,
    run_heldout,
    select_heldout,
)
from fastff.report.noise import NoiseFloor, measure_noise
from fastff.report.provenance import collect_provenance, count_cores, find_load
from fastff.report.race import find_headline, race
from fastff.report.record import BenchRecord, Comparison, compute_ratios, seal_record, write_record
from fastff.report.speed import SpeedCurve
from fastff.report.timing import Timed
from fastff.report.verdict import write_verdict

if TYPE_CHECKING:
    from fastff.models import Student
    from fastff.teachers.base import Teacher

Progress = Callable[[str, int, int], None]

MAIN = "held-out frames"
"""Name of the comparison that decides."""

MOST_SEEDS = 6
"""Held-out dynamics starts from at most this many structures, evenly chosen from those given."""


def ignore_progress(message: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class BenchPlan:
    """How much to measure.

    Attributes
    ----------
    n_frames, n_temperatures, n_equilibrate, interval : int
        Of the held-out dynamics, see :func:`fastff.report.heldout.plan_heldout`.
    sizes : tuple of int
        Atom counts to time; the one nearest to 500 is always measured for both sides.
    budget : float
        Seconds for each size and calculator.
    md_atoms : int
        Size at which steps of ASE's velocity Verlet are timed.
    outside : bool
        Also judge frames at 1.5 times the highest temperature and under strains of ±5 %.
    n_noise : int
        Frames for the noise floor.
    required : float or None
        Accuracy that must be reached.
    device : str
        Where both sides run.
    """

    n_frames: int = 36
    n_temperatures: int = 3
    n_equilibrate: int = 60
    interval: int = 10
    sizes: tuple[int, ...] = (64, 125, 250, 500, 1000, 2000, 4000, 10000, 20000)
    budget: float = 20.0
    md_atoms: int = 500
    outside: bool = True
    n_noise: int = 4
    required: float | None = None
    device: str = "cpu"


QUICK_PLAN = BenchPlan(
    n_frames=16, n_temperatures=2, n_equilibrate=30, interval=5,
    sizes=(64, 500, 2000, 10000), budget=6.0, md_atoms=64, outside=False, n_noise=2,
)  # fmt: skip
"""A plan of about a minute on two cores with a SevenNet teacher."""


@dataclass
class _Run:
    """What is known while a run goes on."""

    path: Path
    student: Student
    plan: BenchPlan
    progress: Progress
    teacher: Teacher | None
    notes: list[str] = field(default_factory=list)
    durations: dict[str, float] = field(default_factory=dict)

    @property
    def header(self) -> dict[str, Any]:
        return self.student.header

    def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
        """What the student says."""
        from fastff.predict import predict

        return predict(self.student, structures)


@dataclass(frozen=True)
class BenchResult:
    """A verified record and the held-out frames it is about."""

    record: BenchRecord
    frames: list[Frame]


def run_bench(
    model_path: str | Path,
    *,
    labels: Path | None = None,
    structures: Sequence[ase.Atoms] | None = None,
    teacher: Teacher | None = None,
    temperature: tuple[float, float] | None = None,
    plan: BenchPlan = BenchPlan(),
    command: Sequence[str] | None = None,
    progress: Progress = ignore_progress,
) -> BenchResult:
    """Judge the student in ``model_path``.

    Parameters
    ----------
    model_path : path
        A model file.
    labels : path, optional
        Labelled frames to be judged on; needs no teacher.
    structures : sequence of ase.Atoms, optional
        Where held-out dynamics starts and what is timed; by default the structures that the model file holds.
    teacher : Teacher, optional
        Drives and labels held-out dynamics unless ``labels`` are given, and is timed beside the student.
    temperature : (float, float), optional
        K; by default the range that the model file holds, or 300 K.
    plan : BenchPlan
    command : sequence of str, optional
        Command line to record, default that of this process.
    progress : callable
        Receives (what is being done, done, total).

    Raises
    ------
    UsageError
        Neither labels nor teacher.
    DataError
        Unusable frames or labels; labels in a wrong unit; a calculator that does not reproduce the labels.
    """
    from fastff.checkpoint import load_model

    if labels is None and teacher is None:
        raise UsageError("nothing to compare with: give --compare-teacher or --labels FILE.")
    student = load_model(model_path, device=plan.device)
    run = _Run(Path(model_path), student, plan, progress, teacher)
    model = describe_model(run.path, student)
    seeds = choose_seeds(student.header, structures)
    if labels is not None:
        comparisons, frames, teacher_record = _judge_labels(run, labels)
        seeds = seeds or [frames[0].atoms]
    else:
        comparisons, frames, teacher_record = _judge_dynamics(run, seeds, temperature)
    teacher_noise, student_noise = _measure_noises(run, frames)
    curves = _measure_speed(run, seeds[0], frames, temperature) if teacher is not None else ()
    counts = [p.n_atoms for c in curves if c.mode == "ase-call" for p in c.points]
    headline = find_headline(counts) if counts else None
    ratios = compute_ratios(curves)
    provenance = collect_provenance(command)
    found = next((r for r in ratios if r.mode == "ase-call" and r.n_atoms == headline), None)
    verdict = write_verdict(
        model, comparisons, teacher_noise, found, provenance, plan.required, run.path.name
    )
    record = BenchRecord(
        model=model,
        teacher=teacher_record,
        teacher_measured=teacher is not None,
        comparisons=comparisons,
        teacher_noise=teacher_noise,
        student_noise=student_noise,
        speed=curves,
        ratios=ratios,
        headline_size=headline,
        verdict=verdict,
        notes=tuple(run.notes),
        durations=run.durations,
        provenance=provenance,
    )
    return BenchResult(seal_record(record), frames)


def choose_seeds(header: dict[str, Any], structures: Sequence[ase.Atoms] | None) -> list[ase.Atoms]:
    """Structures that dynamics starts from: those given, else those of the model file; at most six, evenly chosen."""
    seeds = list(structures) if structures is not None else read_header_structures(header)
    if len(seeds) <= MOST_SEEDS:
        return seeds
    return [seeds[i] for i in np.linspace(0, len(seeds) - 1, MOST_SEEDS).round().astype(int)]


def write_results(result: BenchResult, folder: Path) -> dict[str, Path]:
    """Write ``bench.json``, ``report.html``, ``bench.md`` and the frames the teacher made, ``heldout.h5``."""
    from fastff.distill.export import write_labels
    from fastff.report.html import render_report
    from fastff.report.markdown import write_tables

    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("bench.json", "report.html", "bench.md")}
    write_record(result.record, paths["bench.json"])
    paths["report.html"].write_text(render_report(result.record), encoding="utf-8")
    paths["bench.md"].write_text(write_tables(result.record), encoding="utf-8")
    if result.record.main.frames.source == "teacher-md":
        paths["heldout.h5"] = folder / "heldout.h5"
        paths["heldout.h5"].unlink(missing_ok=True)
        held = {frame.trajectory for frame in result.frames}
        write_labels(paths["heldout.h5"], result.frames, result.record.teacher, held)
    return paths


def _judge_labels(
    run: _Run, path: Path
) -> tuple[tuple[Comparison, ...], list[Frame], dict[str, Any]]:
    from fastff.distill.content import hash_structure, identify_teacher
    from fastff.distill.formats import read_labels

    start = time.perf_counter()
    run.progress("reading labels", 0, 1)
    labelled = read_labels(path)
    known = frozenset((run.header.get("training") or {}).get("frame_hashes") or ())
    frames, notes = select_heldout(labelled, known, lambda atoms: hash_structure(atoms).hex())
    taught = run.header.get("teacher") or {}
    if (
        labelled.teacher
        and taught
        and identify_teacher(labelled.teacher) != identify_teacher(taught)
    ):
        run.notes.append(
            f"the labels were made by {labelled.teacher.get('name', 'an unknown teacher')}, the student was "
            f"distilled from {taught.get('name', 'an unknown teacher')}: differences between these two count as error"
        )
    comparison = compare_frames(
        MAIN, frames, run.label, "labels", f"labels read from {path.name}", notes
    )
    run.durations["accuracy"] = time.perf_counter() - start
    record = dict(labelled.teacher or (run.teacher.info.to_dict() if run.teacher else taught))
    return (comparison,), frames, record


def plan_run(
    header: dict[str, Any],
    structures: Sequence[ase.Atoms],
    temperature: tuple[float, float] | None,
    plan: BenchPlan,
) -> dict[str, HeldoutPlan]:
    """Dynamics that a run will do: the held-out frames first, then those outside the training range."""
    if not structures:
        raise DataError(
            "the model file holds no structures to start dynamics from: give --structures FILE."
        )
    limits = _find_temperature(header, temperature)
    seed = derive_seed(str(header.get("sha256")))
    main = plan_heldout(
        structures,
        limits,
        seed=seed,
        n_frames=plan.n_frames,
        n_temperatures=plan.n_temperatures,
        n_equilibrate=plan.n_equilibrate,
        interval=plan.interval,
    )
    if not plan.outside:
        return {MAIN: main}
    outside = plan_outside(structures, limits, seed=seed, n_equilibrate=plan.n_equilibrate)
    return {MAIN: main, **outside}


def _find_temperature(
    header: dict[str, Any], temperature: tuple[float, float] | None
) -> tuple[float, float]:
    """The range asked for, else the model's, else 300 K."""
    low, high = temperature or header.get("temperature") or (300.0, 300.0)
    return float(low), float(high)


def _judge_dynamics(
    run: _Run, structures: Sequence[ase.Atoms], temperature: tuple[float, float] | None
) -> tuple[tuple[Comparison, ...], list[Frame], dict[str, Any]]:
    from fastff.distill.content import identify_teacher

    assert run.teacher is not None
    record = run.teacher.info.to_dict()
    taught = run.header.get("teacher") or {}
    if taught and identify_teacher(taught) != identify_teacher(record):
        run.notes.append(
            f"the student was distilled from {taught.get('name')}, it is compared here with {record.get('name')}"
        )
    comparisons: list[Comparison] = []
    main: list[Frame] = []
    for name, plan in plan_run(run.header, structures, temperature, run.plan).items():
        start = time.perf_counter()
        frames = run_heldout(run.teacher, plan, partial(run.progress, f"teacher dynamics, {name}"))
        comparisons.append(compare_frames(name, frames, run.label, "teacher-md", plan.describe()))
        main = main or frames
        run.durations[f"accuracy, {name}"] = time.perf_counter() - start
    return tuple(comparisons), main, record


def _measure_noises(run: _Run, frames: list[Frame]) -> tuple[NoiseFloor | None, NoiseFloor]:
    start = time.perf_counter()
    run.progress("noise floor", 0, 1)
    chosen = np.unique(np.linspace(0, len(frames) - 1, run.plan.n_noise).round().astype(int))
    images = [frames[i].atoms for i in chosen]
    student = measure_noise(run.label, images)
    teacher = measure_noise(run.teacher.label, images) if run.teacher is not None else None
    run.durations["noise floor"] = time.perf_counter() - start
    return teacher, student


def _measure_speed(
    run: _Run, structure: ase.Atoms, frames: list[Frame], temperature: tuple[float, float] | None
) -> tuple[SpeedCurve, ...]:
    assert run.teacher is not None
    start = time.perf_counter()
    student = Timed(
        "student",
        f"fastff {run.student.config.architecture}",
        partial(_make_calculator, run),
        {"sha256": run.header["sha256"]},
        run.plan.device,
    )
    # Labels from a file may be another teacher's: the timed one is checked against its own.
    frame = frames[0]
    if frame.source != "teacher-md":
        frame = replace(frame, labels=run.teacher.label([frame.atoms])[0])
    curves = race(
        student,
        run.teacher,
        structure,
        frame,
        run.label([frame.atoms])[0],
        sizes=run.plan.sizes,
        md_atoms=run.plan.md_atoms,
        temperature=0.5 * sum(_find_temperature(run.header, temperature)),
        budget=run.plan.budget,
        progress=run.progress,
    )
    run.durations["speed"] = time.perf_counter() - start
    _note_load(run, find_load())
    return curves


def _note_load(run: _Run, load: float | None) -> None:
    """Remark on it if others were using the machine while timings were taken."""
    cores = count_cores()
    if load is not None and load > cores + 1.0:
        run.notes.append(
            f"the machine was busy while timing (load {load:.1f} on {cores} cores): times are too long "
            "and ratios uncertain"
        )


def _make_calculator(run: _Run) -> BaseCalculator:
    from fastff.calculator import FastFFCalculator

    dtype = "float64" if run.student.dtype is torch.float64 else "float32"
    return FastFFCalculator(str(run.path), device=run.plan.device, dtype=dtype)
