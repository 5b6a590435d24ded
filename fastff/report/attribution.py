"""Whether the parts of a record are of the models that they are said to be of.

Here: :func:`verify_attribution` (timings and memory, noise, physical properties, baselines) and :func:`verify_stamps`.
Not here: accuracies (:mod:`fastff.report.consistency`), what follows from several parts
(:mod:`fastff.report.conclusions`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fastff.errors import DataError
from fastff.report.consistency import is_same, verify_accuracy
from fastff.report.metrics import Accuracy
from fastff.report.noise import NoiseFloor
from fastff.report.physics.record import NveItem, StabilityItem
from fastff.report.physics.run import verify_physics
from fastff.report.schema import SCHEMA, BaselinePart, BenchRecord
from fastff.report.speed import SpeedCurve, SpeedPoint, summarize
from fastff.report.stamps import Stamped, check_stamp
from fastff.teachers.noise import combine_rows

STEPPED = ("ase-md", "md-loop", "program")
"""Modes that have a time step."""

LONGEST_STEP = 10.0
"""fs; no dynamics of atoms is stable above it."""

MOST_NOISE = 4.0
"""Of a teacher, relative to the RMS force: above any difference of forces that are as large as each other."""


def verify_attribution(record: BenchRecord) -> None:
    """Refuse a record with a part of another model, or with numbers that cannot be that model's.

    Raises
    ------
    DataError
    """
    for baseline in record.baselines:
        _verify_baseline(baseline, record)
    for curve in record.speed:
        _verify_curve(curve, record)
    _verify_settings(record)
    _verify_physics(record)
    for role in ("teacher", "student"):
        _verify_noise(role, getattr(record, f"{role}_noise"), record)
    if record.calibration is not None and record.calibration.identity is not None:
        _verify_identity("the calibration", "student", record.calibration.identity, record)


def verify_stamps(record: BenchRecord) -> None:
    """Refuse a record with a part that is not as it was measured; records of old schemas need no stamps.

    Raises
    ------
    DataError
    """
    required = record.schema_version == SCHEMA
    for where, part in _list_parts(record):
        check_stamp(where, part, required=required)


def _list_parts(record: BenchRecord) -> Iterator[tuple[str, Stamped]]:
    """Every part that carries a stamp."""
    yield "the model", record.model
    for comparison in record.comparisons:
        yield f"comparison '{comparison.name}'", comparison
    for role in ("teacher", "student"):
        noise = getattr(record, f"{role}_noise")
        if noise is not None:
            yield f"the noise floor of the {role}", noise
    for curve in record.speed:
        yield f"timings of {curve.label} ({curve.mode})", curve
    for baseline in record.baselines:
        yield f"baseline {baseline.name}", baseline
    if record.calibration is not None:
        yield "the calibration", record.calibration
    for item in record.physics.items if record.physics is not None else ():
        yield f"physical properties, {item.title}", item


def _verify_identity(where: str, role: str, identity: dict[str, Any], record: BenchRecord) -> None:
    """``identity`` is that of the record's teacher or student."""
    name = "this model"
    if role == "student":
        fits = identity.get("sha256") == record.model.sha256
    else:
        name = str(record.teacher.get("name"))
        fits = "sha256" not in identity and identity.get("name") == record.teacher.get("name")
    if not fits:
        raise DataError(
            f"{where}: not of {name}, the {role}: teacher and student are swapped, or the record is stale."
        )


def _verify_baseline(baseline: BaselinePart, record: BenchRecord) -> None:
    """Accuracies hold together and are about the same frames as the student's."""
    frames = {c.name: c for c in record.comparisons}
    for entry in baseline.comparisons:
        where = f"baseline {baseline.name}, '{entry.name}'"
        if entry.name not in frames or entry.frames_digest != frames[entry.name].frames.digest:
            raise DataError(f"{where}: not about the frames of the comparison of that name.")
        accuracy = Accuracy.from_dict(entry.accuracy)
        verify_accuracy(where, accuracy)
        mine = frames[entry.name].read_accuracy()
        for name, unit in (("force_rms", "eV/Å"), ("energy_std", "eV"), ("stress_rms", "eV/Å^3")):
            here, beside = getattr(accuracy, name), getattr(mine, name)
            if (here is None) != (beside is None) or (
                here is not None and not is_same(here, beside, absolute=1e-9)
            ):
                raise DataError(
                    f"{where}: the teacher's {name} is {here} {unit} here and {beside} {unit} beside the student: "
                    "different units or frames."
                )


def _verify_physics(record: BenchRecord) -> None:
    """Quantities follow from curves, and the two sides are the teacher and the student of this record."""
    part = record.physics
    if part is None:
        return
    _verify_identity("the physical properties", "student", part.student, record)
    _verify_identity("the reference of the physical properties", "teacher", part.teacher, record)
    sides = {"teacher": part.teacher, "student": part.student}
    required = record.schema_version == SCHEMA
    for item in part.items:
        if item.identity != sides and (required or item.identity is not None):
            raise DataError(
                f"physical properties, {item.title}: teacher and student are swapped, or not those of this record."
            )
    frames = record.main.frames
    if frames.source == "teacher-md" and frames.temperatures is not None:
        middle = 0.5 * sum(frames.temperatures)
        for item in part.items:
            found = getattr(item, "temperature", None)
            if found is not None and abs(found - middle) > 1.0:
                raise DataError(
                    f"physical properties, {item.title}: at {found:g} K, the middle of the held-out frames is "
                    f"{middle:g} K: another unit, or edited."
                )
    faults = verify_physics(part)
    if faults:
        raise DataError(f"physical properties: {faults[0]}: another unit, or edited.")


def _verify_noise(role: str, noise: NoiseFloor | None, record: BenchRecord) -> None:
    if noise is None:
        return
    where = f"the noise floor of the {role}"
    if noise.identity is not None or record.schema_version == SCHEMA:
        _verify_identity(where, role, noise.identity or {}, record)
    for name in ("rotation_force", "jitter_force", "batch_force"):
        value = getattr(noise, name)
        if value < 0.0 or (role == "teacher" and value > MOST_NOISE):
            raise DataError(f"{where}: {name} {value:.4g} is no share of the RMS force.")
    if not noise.rows:
        return  # of an older record
    if len(noise.rows) != noise.n_frames:
        raise DataError(f"{where}: {len(noise.rows)} rows of {noise.n_frames} frames.")
    found = combine_rows(noise.rows)
    for name, value in found.items():
        expected = value / found["force_rms"] if name.endswith("_force") else value
        stored = getattr(noise, name, expected)
        if not is_same(stored, expected, absolute=0.0):
            raise DataError(
                f"{where}: {name} {stored:.4g} does not follow from its rows, which give {expected:.4g}."
            )


def _verify_curve(curve: SpeedCurve, record: BenchRecord) -> None:
    """Identity, label, machine and points of one curve."""
    where = f"timings of {curve.label} ({curve.mode})"
    if curve.role in ("student", "teacher"):
        _verify_identity(where, curve.role, curve.identity, record)
        label = f"fastff {record.model.architecture}"
        label = label if curve.role == "student" else str(curve.identity["name"])
        fits = curve.label == label
    else:
        fits = any(curve.role == b.name and curve.identity == b.identity for b in record.baselines)
        if not fits:
            raise DataError(f"{where} belong to no baseline of this record.")
        label, fits = curve.role, curve.label.startswith(curve.role)
    if not fits:
        raise DataError(f"{where} are of {label}: teacher and student are swapped, or edited.")
    for point in curve.points:
        _verify_point(curve, point)
    if curve.mode == "program":
        return  # has its own ways to the GPU and to memory
    on_gpu = curve.device.startswith("cuda")
    machine = record.provenance
    if on_gpu and machine.gpu is None:
        raise DataError(f"{where} are said to be on {curve.device}, the machine has no GPU.")
    if curve.memory_kind and curve.memory_kind.startswith("GPU") is not on_gpu:
        raise DataError(f"{where} on {curve.device} come with: {curve.memory_kind}.")
    memory = machine.gpu_memory if on_gpu else machine.memory
    peak = max((p.peak_memory or 0 for p in curve.points), default=0)
    if memory is not None and peak > memory:
        raise DataError(
            f"{where}: {peak} bytes are more than the machine's {memory}: another unit."
        )


def _verify_point(curve: SpeedCurve, point: SpeedPoint) -> None:
    where = f"{curve.label} at {point.n_atoms} atoms ({curve.mode})"
    if point.status != "measured":
        if point.seconds or point.median is not None:
            raise DataError(f"{where} has times but its status is {point.status}.")
        return
    if not point.seconds or not all(math.isfinite(s) and s > 0 for s in point.seconds):
        raise DataError(f"{where} is marked as measured without valid times.")
    fresh = summarize(point.n_atoms, point.formula, point.seconds, point.peak_memory, point.reason)
    for name in ("median", "mean", "q10", "q90", "atom_steps_per_second"):
        stored = getattr(point, name)
        if stored is None or not is_same(stored, getattr(fresh, name)):
            raise DataError(f"{where}: {name} {stored} does not follow from the measured times.")


def _verify_settings(record: BenchRecord) -> None:
    """One device and one time step for the whole run: it is one material."""
    devices = {curve.device for curve in record.speed if curve.mode != "program"}
    if len(devices) > 1:
        raise DataError(
            f"timings on several devices are not compared: {', '.join(sorted(devices))}."
        )
    for curve in record.speed:
        if (curve.time_step is None) is (curve.mode in STEPPED):
            raise DataError(
                f"timings of {curve.label} ({curve.mode}): time step {curve.time_step}."
            )
    steps = {curve.time_step for curve in record.speed if curve.time_step is not None}
    items = record.physics.items if record.physics is not None else ()
    steps |= {item.time_step for item in items if isinstance(item, NveItem | StabilityItem)}
    if len(steps) > 1 or any(not 0.0 < step <= LONGEST_STEP for step in steps):
        raise DataError(
            f"time steps of {', '.join(f'{step:g}' for step in sorted(steps))} fs: another unit, or edited."
        )
