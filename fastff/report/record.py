"""Bench records as files: writing, reading, and recomputing every derived figure of one.

Here: :func:`read_record`, :func:`write_record`, :func:`seal_record` and :func:`verify_record`, which refuses a record
that contradicts itself or its model file. Not here: the schema (:mod:`fastff.report.schema`), rendering
(:mod:`fastff.report.html`, :mod:`fastff.report.markdown`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fastff.errors import DataError
from fastff.report.metrics import Accuracy
from fastff.report.physics.run import verify_physics
from fastff.report.schema import (
    ADDED,
    READABLE,
    BaselinePart,
    BenchRecord,
    Comparison,
    compute_digest,
    compute_ratios,
)
from fastff.report.speed import SpeedCurve, SpeedPoint, summarize


def seal_record(record: BenchRecord) -> BenchRecord:
    """Return the record with its digest filled in, after verifying everything else."""
    sealed = record.model_copy(update={"digest": compute_digest(record)})
    verify_record(sealed)
    return sealed


def write_record(record: BenchRecord, path: Path) -> None:
    """Write the record as indented JSON."""
    path.write_text(json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")


def read_record(path: str | Path, *, model_sha256: str | None = None) -> BenchRecord:
    """Read and verify a record.

    Parameters
    ----------
    path : path
        A ``bench.json``.
    model_sha256 : str, optional
        SHA-256 of the tensors of the model that the record is to be shown for.

    Raises
    ------
    DataError
        Not such a file, another schema, edited after it was written, contradictory, or about another model.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a bench record: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in READABLE:
        raise DataError(
            f"{path} has schema {version!r}, this fastff reads {' and '.join(map(repr, READABLE))}: run 'fastff bench' "
            "again."
        )
    try:
        record = BenchRecord.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise DataError(f"{path} is not a valid bench record: {place}: {first['msg']}") from error
    try:
        verify_record(record, model_sha256=model_sha256)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return record


def verify_record(record: BenchRecord, *, model_sha256: str | None = None) -> None:
    """Recompute every derived figure of a record from the data beside it.

    Raises
    ------
    DataError
        A figure does not follow from its data (wrong unit, edited), timings are attached to the wrong side (teacher and
        student swapped), or the record is about another model than the one given (stale).
    """
    if model_sha256 is not None and record.model.sha256 != model_sha256:
        raise DataError(
            f"the record is stale: it is about tensors {record.model.sha256[:12]}, the model file now holds "
            f"{model_sha256[:12]}. Run 'fastff bench' again."
        )
    if record.schema_version == READABLE[0] and any(getattr(record, name) for name in ADDED):
        raise DataError(f"a record of schema {READABLE[0]!r} cannot hold {', '.join(ADDED)}.")
    for comparison in record.comparisons:
        _verify_comparison(comparison)
    for baseline in record.baselines:
        _verify_baseline(baseline, record)
    for curve in record.speed:
        _verify_curve(curve, record)
    _verify_physics(record)
    if record.calibration is not None and not np.allclose(
        record.calibration.within, record.calibration.count_within(), atol=1e-9
    ):
        raise DataError(
            "the calibration does not follow from the uncertainties and errors beside it."
        )
    expected = compute_ratios(record.speed)
    if len(expected) != len(record.ratios) or any(
        (a.mode, a.n_atoms) != (b.mode, b.n_atoms)
        or not _same(a.ratio, b.ratio)
        or not _same(a.teacher_seconds, b.teacher_seconds)
        or not _same(a.student_seconds, b.student_seconds)
        for a, b in zip(expected, record.ratios, strict=True)
    ):
        raise DataError("the speed ratios do not follow from the timings beside them.")
    overall = record.main.read_accuracy().overall
    required = record.verdict.required
    passed = None if required is None else overall >= required
    if record.verdict.passed is not passed:
        raise DataError(
            f"the verdict says passed={record.verdict.passed}, but accuracy {overall:.4f} against {required} "
            f"gives {passed}."
        )
    if record.digest != compute_digest(record):
        raise DataError(
            "the record was changed after it was written: its digest does not match its content."
        )


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def _verify_comparison(comparison: Comparison) -> None:
    """Accuracy from its own RMSE and RMS, and these from the binned data that the plots show."""
    try:
        accuracy = comparison.read_accuracy()
    except (TypeError, KeyError) as error:
        raise DataError(
            f"comparison '{comparison.name}': incomplete accuracy record ({error})."
        ) from error
    if accuracy.to_dict() != Accuracy.from_dict(accuracy.to_dict()).to_dict() or not _same(
        comparison.accuracy["overall"], accuracy.overall
    ):
        raise DataError(f"comparison '{comparison.name}': 'overall' is not the smallest accuracy.")
    _verify_accuracy(f"comparison '{comparison.name}'", accuracy)
    force_rms, force_rmse = comparison.parity.compute_force_rms()
    if not _same(force_rms, accuracy.force_rms) or not _same(force_rmse, accuracy.force_rmse):
        raise DataError(
            f"comparison '{comparison.name}': the plotted forces have RMS {force_rms:.6g} and RMSE {force_rmse:.6g} "
            f"eV/Å, the table says {accuracy.force_rms:.6g} and {accuracy.force_rmse:.6g}: different units or "
            "frames, or teacher and student swapped."
        )


def _verify_accuracy(where: str, accuracy: Accuracy) -> None:
    """Accuracies from RMSE and reference."""
    for name, value, rmse, scale in (
        ("force", accuracy.force, accuracy.force_rmse, accuracy.force_rms),
        ("energy", accuracy.energy, accuracy.energy_rmse, accuracy.energy_std),
        ("stress", accuracy.stress, accuracy.stress_rmse, accuracy.stress_rms),
    ):
        if value is not None and (
            rmse is None or scale is None or not _same(value, 1.0 - rmse / scale)
        ):
            raise DataError(
                f"{where}: {name} accuracy {value} does not follow from RMSE {rmse} and "
                f"reference {scale}."
            )


def _verify_baseline(baseline: BaselinePart, record: BenchRecord) -> None:
    """Accuracies hold together and are about the same frames as the student's."""
    frames = {c.name: c for c in record.comparisons}
    for entry in baseline.comparisons:
        where = f"baseline {baseline.name}, '{entry.name}'"
        if entry.name not in frames or entry.frames_digest != frames[entry.name].frames.digest:
            raise DataError(f"{where}: not about the frames of the comparison of that name.")
        accuracy = Accuracy.from_dict(entry.accuracy)
        _verify_accuracy(where, accuracy)
        mine = frames[entry.name].read_accuracy()
        if not _same(accuracy.force_rms, mine.force_rms):
            raise DataError(
                f"{where}: the teacher's RMS force is {accuracy.force_rms:.6g} eV/Å here and {mine.force_rms:.6g} "
                "eV/Å beside the student: different units or frames."
            )


def _verify_physics(record: BenchRecord) -> None:
    """Quantities follow from curves, and the two sides are the teacher and the student of this record."""
    part = record.physics
    if part is None:
        return
    if part.student.get("sha256") != record.model.sha256 or "sha256" in part.teacher:
        raise DataError(
            "the physical properties are not of this student: teacher and student are swapped, or the record is stale."
        )
    if part.teacher.get("name") != record.teacher.get("name"):
        raise DataError(
            f"the physical properties have {part.teacher.get('name')} as reference, not {record.teacher.get('name')}."
        )
    faults = verify_physics(part)
    if faults:
        raise DataError(f"physical properties: {faults[0]}: another unit, or edited.")


def _verify_curve(curve: SpeedCurve, record: BenchRecord) -> None:
    if curve.role == "student" and curve.identity.get("sha256") != record.model.sha256:
        raise DataError(
            f"timings of the student ({curve.label}) are not of this model: teacher and student are swapped, or the "
            "record is stale."
        )
    if curve.role == "teacher" and (
        "sha256" in curve.identity or curve.identity.get("name") != record.teacher.get("name")
    ):
        raise DataError(
            f"timings of the teacher ({curve.label}) are not of {record.teacher.get('name')}: teacher and student are "
            "swapped, or the record is stale."
        )
    if curve.role not in ("student", "teacher") and not any(
        curve.role == b.name and curve.identity == b.identity for b in record.baselines
    ):
        raise DataError(f"timings of {curve.label} belong to no baseline of this record.")
    for point in curve.points:
        _verify_point(curve, point)


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
        if stored is None or not _same(stored, getattr(fresh, name)):
            raise DataError(f"{where}: {name} {stored} does not follow from the measured times.")
