"""The stages of a bench run after its accuracy: noise floor, calibration, physics, speed.

Here: what each of them calls, and :class:`Measured`, which receives what was found as soon as it is, so that a run that
ends early keeps it. Not here: their order, the record (:mod:`fastff.report.bench`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial

import ase
import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator

from fastff.labels import Frame
from fastff.report.baselines import identify
from fastff.report.calibration import CalibrationData, calibrate
from fastff.report.ending import Agenda
from fastff.report.gpumd import NAME, time_gpumd
from fastff.report.heldout import choose_time_step
from fastff.report.judging import Run
from fastff.report.noise import NoiseFloor, measure_noise
from fastff.report.physics.record import PhysicsPart
from fastff.report.physics.run import measure_physics
from fastff.report.physics.schedule import UNDONE
from fastff.report.physics.side import LabelCalculator, Side
from fastff.report.plausibility import check_identity
from fastff.report.provenance import count_cores, find_load
from fastff.report.race import Timings, race
from fastff.report.schema import BaselinePart, ModelPart
from fastff.report.speed import SpeedCurve
from fastff.report.stamps import stamp_part
from fastff.report.supercells import build_supercells
from fastff.report.timing import Timed


@dataclass
class Measured:
    """What a run has measured so far, apart from the comparisons with the teacher."""

    model: ModelPart
    agenda: Agenda
    judged: list[BaselinePart] = field(default_factory=list)
    teacher_noise: NoiseFloor | None = None
    student_noise: NoiseFloor | None = None
    calibration: CalibrationData | None = None
    physics: PhysicsPart | None = None
    curves: list[SpeedCurve] = field(default_factory=list)


def measure_noises(run: Run, found: Measured, frames: list[Frame]) -> None:
    """How far each side disagrees with itself, on a few of the frames."""
    start = time.perf_counter()
    run.progress("noise floor", 0, 1)
    chosen = np.unique(np.linspace(0, len(frames) - 1, run.plan.n_noise).round().astype(int))
    images = [frames[i].atoms for i in chosen]
    student = measure_noise(run.label, images)
    found.student_noise = stamp_part(
        student.model_copy(update={"identity": run.identify_student()})
    )
    if run.teacher is not None:
        teacher = measure_noise(run.teacher.label, images)
        found.teacher_noise = stamp_part(
            teacher.model_copy(update={"identity": identify(run.teacher)})
        )
    run.durations["noise floor"] = time.perf_counter() - start


def calibrate_student(run: Run) -> CalibrationData:
    """Uncertainties beside errors."""
    data = calibrate(run.student, [(comparison.name, frames) for comparison, frames in run.sets])
    return stamp_part(data.model_copy(update={"identity": run.identify_student()}))


def measure_properties(
    run: Run, found: Measured, structure: ase.Atoms, frame: Frame, limits: tuple[float, float]
) -> None:
    """Physical properties, after a check that both sides give the labels that were compared."""
    assert run.teacher is not None
    start = time.perf_counter()
    teacher = Side("teacher", run.teacher.label, identify(run.teacher))
    student = Side("student", run.label, run.identify_student())
    expected = run.label([frame.atoms])[0]
    check_identity(LabelCalculator(student), frame.atoms, expected, "student")
    if frame.source == "teacher-md":
        check_identity(LabelCalculator(teacher), frame.atoms, frame.labels, "teacher")

    def keep(part: PhysicsPart) -> None:
        found.physics = part
        found.agenda.details = [e.title.lower() for e in part.left_out if e.reason == UNDONE]
        run.durations["physics"] = time.perf_counter() - start

    assert run.plan.physics != "none"
    measure_physics(
        structure, teacher, student, run.student,
        temperatures=limits, mode=run.plan.physics, budget=run.plan.physics_budget,
        progress=run.progress, watch=run.watch, keep=keep,
    )  # fmt: skip


def measure_speed(
    run: Run,
    found: Measured,
    structure: ase.Atoms,
    frames: list[Frame],
    limits: tuple[float, float],
) -> None:
    """Timings of all sides, GPUMD's last."""
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
    timings = Timings(found.curves)
    try:
        race(
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
            watch=run.watch,
            timings=timings,
        )
        if run.gpumd is not None:
            _time_gpumd(run, found, structure, limits)
    finally:
        with run.watch.hold():
            if run.gpumd is not None:
                timings.wanted[NAME, "program"] = (NAME, run.plan.sizes[-1])
            if timings.wanted:
                found.agenda.details = timings.list_missing()
            run.durations["speed"] = time.perf_counter() - start
            _note_load(run, find_load())


def _time_gpumd(
    run: Run, found: Measured, structure: ase.Atoms, limits: tuple[float, float]
) -> None:
    assert run.gpumd is not None

    def keep(part: BaselinePart, curve: SpeedCurve) -> None:
        if curve.points:
            found.judged.append(part)
            found.curves.append(curve)

    time_gpumd(
        *run.gpumd,
        build_supercells(structure, run.plan.sizes),
        temperature=0.5 * sum(limits),
        time_step=choose_time_step(structure.numbers),
        budget=run.plan.budget,
        device="cuda",
        progress=lambda message: run.progress(f"timing: {message}", 0, 0),
        watch=run.watch,
        keep=keep,
    )


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
