"""One bench run: a student judged against its teacher, or against labels that exist.

Here: :func:`run_bench`, which measures and returns a verified :class:`~fastff.report.record.BenchRecord`, and
:func:`write_results`. Not here: definitions (:mod:`fastff.report.metrics`), timing rules
(:mod:`fastff.report.timing`), pages (:mod:`fastff.report.html`), the command line (:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ase
import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator

from fastff.errors import UsageError
from fastff.labels import Frame
from fastff.report.baselines import Baseline, check_names, identify, judge_baseline
from fastff.report.calibration import CalibrationData, calibrate
from fastff.report.comparison import describe_model
from fastff.report.gpumd import check_gpumd, time_gpumd
from fastff.report.heldout import (
    choose_time_step,
)
from fastff.report.judging import (
    JudgedSet,
    Progress,
    Run,
    ignore_progress,
    judge_dynamics,
    judge_labels,
)
from fastff.report.noise import NoiseFloor, measure_noise
from fastff.report.physics.record import PhysicsPart
from fastff.report.physics.run import measure_physics
from fastff.report.physics.side import LabelCalculator, Side
from fastff.report.plan import (
    FULL_PLAN,
    BenchPlan,
    choose_seeds,
    find_temperature,
)
from fastff.report.plausibility import check_identity
from fastff.report.provenance import collect_provenance, count_cores, find_load
from fastff.report.race import find_headline_size, race
from fastff.report.record import REJECTED, seal_record, write_record
from fastff.report.schema import BaselinePart, BenchRecord, compute_ratios
from fastff.report.speed import SpeedCurve
from fastff.report.stamps import stamp_part
from fastff.report.supercells import build_supercells
from fastff.report.timing import Timed
from fastff.report.verdict import write_verdict

if TYPE_CHECKING:
    from fastff.teachers.base import Teacher


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
    plan: BenchPlan = FULL_PLAN,
    baselines: Sequence[Baseline] = (),
    gpumd: tuple[Path, Path] | None = None,
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
    baselines : sequence of Baseline, optional
        Other models, judged on the same frames and timed on the same structures.
    gpumd : (path, path), optional
        Executable of GPUMD and a NEP model file for it; it is timed on the same structures.
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
    RejectedRecordError
        What was measured contradicts itself; the error holds it.
    """
    from fastff.checkpoint import load_model

    if labels is None and teacher is None:
        raise UsageError("nothing to compare with: give --compare-teacher or --labels FILE.")
    student = load_model(model_path, device=plan.device)
    run = Run(Path(model_path), student, plan, progress, teacher, baselines, gpumd)
    model = describe_model(run.path, student)
    seeds = choose_seeds(student.header, structures)
    _check_baselines(run, seeds)
    if labels is not None:
        sets, teacher_record = judge_labels(run, labels)
        seeds = seeds or [sets[0][1][0].atoms]
    else:
        sets, teacher_record = judge_dynamics(run, seeds, temperature)
    comparisons, frames = tuple(comparison for comparison, _ in sets), sets[0][1]
    judged = [judge_baseline(baseline, sets) for baseline in baselines]
    teacher_noise, student_noise = _measure_noises(run, frames)
    calibration = _calibrate(run, sets)
    limits = find_temperature(run.header, temperature)
    curves: tuple[SpeedCurve, ...] = ()
    physics = None
    if teacher is not None:
        physics = _measure_physics(run, seeds[0], frames[0], limits)
        curves, programs = _measure_speed(run, seeds[0], frames, limits)
        judged += programs
    headline = find_headline_size(curves)
    ratios = compute_ratios(curves)
    provenance = collect_provenance(command)
    found = next((r for r in ratios if r.mode == "ase-call" and r.n_atoms == headline), None)
    verdict = write_verdict(
        model, comparisons, teacher_noise, found, provenance, plan.required, run.path.name, physics
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
        baselines=tuple(judged),
        calibration=calibration,
        physics=physics,
    )
    return BenchResult(seal_record(record), frames)


def write_results(result: BenchResult, folder: Path) -> dict[str, Path]:
    """Write ``bench.json``, ``report.html``, ``bench.md`` and the frames the teacher made, ``heldout.h5``."""
    from fastff.distill.export import write_labels
    from fastff.report.html import render_report
    from fastff.report.markdown import write_tables

    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("bench.json", "report.html", "bench.md")}
    (folder / REJECTED).unlink(missing_ok=True)  # of an earlier run
    write_record(result.record, paths["bench.json"])
    paths["report.html"].write_text(render_report(result.record), encoding="utf-8")
    paths["bench.md"].write_text(write_tables(result.record), encoding="utf-8")
    if result.record.main.frames.source == "teacher-md":
        paths["heldout.h5"] = folder / "heldout.h5"
        paths["heldout.h5"].unlink(missing_ok=True)
        held = {frame.trajectory for frame in result.frames}
        write_labels(paths["heldout.h5"], result.frames, result.record.teacher, held)
    return paths


def _check_baselines(run: Run, seeds: Sequence[ase.Atoms]) -> None:
    """Refuse what cannot be compared before any work is done."""
    taken = {str(run.header["sha256"]): "student"}
    if run.teacher is not None:
        taken[run.teacher.info.name] = "teacher"
    check_names(run.baselines, taken)
    for baseline in run.baselines:
        baseline.check_elements(seeds)
    if run.gpumd is not None:
        if run.teacher is None:
            raise UsageError("--gpumd is timed beside the teacher; add --compare-teacher")
        check_gpumd(*run.gpumd, seeds[0])


def _calibrate(run: Run, sets: Sequence[JudgedSet]) -> CalibrationData | None:
    """Uncertainties beside errors; None if the model file holds no uncertainty, which is noted."""
    if run.student.uncertainty is None:
        run.notes.append("no calibration of uncertainties: the model file holds none")
        return None
    data = calibrate(run.student, [(comparison.name, frames) for comparison, frames in sets])
    return stamp_part(data.model_copy(update={"identity": run.identify_student()}))


def _measure_physics(
    run: Run, structure: ase.Atoms, frame: Frame, limits: tuple[float, float]
) -> PhysicsPart | None:
    """Physical properties, after a check that both sides give the labels that were compared."""
    if run.plan.physics == "none":
        return None
    assert run.teacher is not None
    start = time.perf_counter()
    teacher = Side("teacher", run.teacher.label, identify(run.teacher))
    student = Side("student", run.label, run.identify_student())
    expected = run.label([frame.atoms])[0]
    check_identity(LabelCalculator(student), frame.atoms, expected, "student")
    if frame.source == "teacher-md":
        check_identity(LabelCalculator(teacher), frame.atoms, frame.labels, "teacher")
    part = measure_physics(
        structure, teacher, student, run.student,
        temperatures=limits, mode=run.plan.physics, budget=run.plan.physics_budget,
        progress=run.progress,
    )  # fmt: skip
    run.durations["physics"] = time.perf_counter() - start
    return part


def _measure_noises(run: Run, frames: list[Frame]) -> tuple[NoiseFloor | None, NoiseFloor]:
    start = time.perf_counter()
    run.progress("noise floor", 0, 1)
    chosen = np.unique(np.linspace(0, len(frames) - 1, run.plan.n_noise).round().astype(int))
    images = [frames[i].atoms for i in chosen]
    student = measure_noise(run.label, images)
    student = stamp_part(student.model_copy(update={"identity": run.identify_student()}))
    teacher = None
    if run.teacher is not None:
        teacher = measure_noise(run.teacher.label, images)
        teacher = stamp_part(teacher.model_copy(update={"identity": identify(run.teacher)}))
    run.durations["noise floor"] = time.perf_counter() - start
    return teacher, student


def _measure_speed(
    run: Run, structure: ase.Atoms, frames: list[Frame], limits: tuple[float, float]
) -> tuple[tuple[SpeedCurve, ...], list[BaselinePart]]:
    assert run.teacher is not None
    start = time.perf_counter()
    student = Timed(
        "student",
        f"fastff {run.student.config.architecture}",
        partial(_make_calculator, run),
        run.identify_student(),
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
        temperature=0.5 * sum(limits),
        budget=run.plan.budget,
        progress=run.progress,
        model=run.student,
        baselines=run.baselines,
    )
    programs = []
    if run.gpumd is not None:
        part, curve = time_gpumd(
            *run.gpumd,
            build_supercells(structure, run.plan.sizes),
            temperature=0.5 * sum(limits),
            time_step=choose_time_step(structure.numbers),
            budget=run.plan.budget,
            device="cuda",
            progress=lambda message: run.progress(f"timing: {message}", 0, 0),
        )
        programs.append(part)
        curves = (*curves, curve)
    run.durations["speed"] = time.perf_counter() - start
    _note_load(run, find_load())
    return curves, programs


def _note_load(run: Run, load: float | None) -> None:
    """Remark on it if others were using the machine while timings were taken."""
    cores = count_cores()
    if load is not None and load > cores + 1.0:
        run.notes.append(
            f"the machine was busy while timing (load {load:.1f} on {cores} cores): times are too long "
            "and ratios uncertain"
        )


def _make_calculator(run: Run) -> BaseCalculator:
    from fastff.calculator import FastFFCalculator

    dtype = "float64" if run.student.dtype is torch.float64 else "float32"
    return FastFFCalculator(str(run.path), device=run.plan.device, dtype=dtype)
