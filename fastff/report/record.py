"""The record of one bench run: what is stored as JSON and what every page and table is made from.

Here: the schema (:class:`BenchRecord` and its parts), reading, writing, and :func:`verify_record`, which recomputes
every derived figure and refuses a record that contradicts itself or its model file. Not here: measuring
(:mod:`fastff.report.bench`), rendering (:mod:`fastff.report.html`, :mod:`fastff.report.markdown`).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fastff.errors import DataError
from fastff.report.metrics import Accuracy
from fastff.report.noise import NoiseFloor
from fastff.report.plotdata import CoverageData, ParityData
from fastff.report.provenance import Provenance
from fastff.report.speed import SpeedCurve, SpeedPoint, summarize

SCHEMA = "fastff-bench/1"


class Part(BaseModel):
    """Base of the parts of a record: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(Part):
    """The student: file name, SHA-256 of its tensors, size, origin, and what its header says of itself."""

    name: str
    sha256: str
    architecture: str
    elements: tuple[str, ...]
    cutoff: float
    n_parameters: int
    dtype: str
    temperature: tuple[float, float] | None
    teacher: dict[str, Any]
    training: dict[str, Any]


class FramesPart(Part):
    """Where the frames of a comparison come from; ``digest`` is over their structures and labels."""

    source: Literal["teacher-md", "labels"]
    description: str
    n_frames: int
    n_atoms: int
    n_trajectories: int
    formulas: tuple[str, ...]
    temperatures: tuple[float, float] | None
    digest: str
    notes: tuple[str, ...] = ()


class Comparison(Part):
    """Student against teacher on one set of frames."""

    name: str
    frames: FramesPart
    accuracy: dict[str, Any]
    parity: ParityData
    coverage: CoverageData

    def read_accuracy(self) -> Accuracy:
        """The accuracy as the record that :func:`fastff.report.metrics.measure_accuracy` returned."""
        return Accuracy.from_dict(self.accuracy)


class SpeedRatio(Part):
    """How many times faster the student is than the teacher at one size, both measured in this run."""

    mode: Literal["ase-call", "ase-md"]
    n_atoms: int
    teacher_seconds: float
    student_seconds: float
    ratio: float


class Verdict(Part):
    """``passed`` is None when nothing was required; ``lines`` are what the command prints."""

    required: float | None
    passed: bool | None
    lines: tuple[str, ...]
    next_command: str


class BenchRecord(Part):
    """Everything that one run of ``fastff bench`` found. ``digest`` is over all other fields."""

    schema_version: Literal["fastff-bench/1"] = "fastff-bench/1"
    model: ModelPart
    teacher: dict[str, Any]
    teacher_measured: bool
    comparisons: tuple[Comparison, ...]
    teacher_noise: NoiseFloor | None
    student_noise: NoiseFloor | None
    speed: tuple[SpeedCurve, ...]
    ratios: tuple[SpeedRatio, ...]
    headline_size: int | None
    verdict: Verdict
    notes: tuple[str, ...]
    durations: dict[str, float]
    provenance: Provenance
    digest: str = ""

    @property
    def main(self) -> Comparison:
        """The comparison that decides: the first one."""
        return self.comparisons[0]

    def find_curve(self, role: str, mode: str) -> SpeedCurve | None:
        """Timings of ``role`` in ``mode``, or None."""
        return next((c for c in self.speed if c.role == role and c.mode == mode), None)

    @property
    def headline(self) -> SpeedRatio | None:
        """The ratio of one ASE call at the headline size, or None if it was not measured."""
        return next(
            (r for r in self.ratios if r.mode == "ase-call" and r.n_atoms == self.headline_size),
            None,
        )


def compute_digest(record: BenchRecord) -> str:
    """SHA-256 over the record without its digest, as canonical JSON."""
    content = record.model_dump(mode="json", exclude={"digest"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


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
    if version != SCHEMA:
        raise DataError(
            f"{path} has schema {version!r}, this fastff reads {SCHEMA!r}: run 'fastff bench' again."
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
    for comparison in record.comparisons:
        _verify_comparison(comparison)
    for curve in record.speed:
        _verify_curve(curve, record)
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
    for name, value, rmse, scale in (
        ("force", accuracy.force, accuracy.force_rmse, accuracy.force_rms),
        ("energy", accuracy.energy, accuracy.energy_rmse, accuracy.energy_std),
        ("stress", accuracy.stress, accuracy.stress_rmse, accuracy.stress_rms),
    ):
        if value is not None and (
            rmse is None or scale is None or not _same(value, 1.0 - rmse / scale)
        ):
            raise DataError(
                f"comparison '{comparison.name}': {name} accuracy {value} does not follow from RMSE {rmse} and "
                f"reference {scale}."
            )
    force_rms, force_rmse = comparison.parity.compute_force_rms()
    if not _same(force_rms, accuracy.force_rms) or not _same(force_rmse, accuracy.force_rmse):
        raise DataError(
            f"comparison '{comparison.name}': the plotted forces have RMS {force_rms:.6g} and RMSE {force_rmse:.6g} "
            f"eV/Å, the table says {accuracy.force_rms:.6g} and {accuracy.force_rmse:.6g}: different units or "
            "frames, or teacher and student swapped."
        )


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


def compute_ratios(curves: tuple[SpeedCurve, ...]) -> tuple[SpeedRatio, ...]:
    """Teacher time over student time wherever both were measured: medians of calls, means of steps."""
    ratios = []
    modes: tuple[Literal["ase-call", "ase-md"], ...] = ("ase-call", "ase-md")
    for mode in modes:
        sides = {c.role: c for c in curves if c.mode == mode}
        if "teacher" not in sides or "student" not in sides:
            continue
        for point in sides["teacher"].points:
            other = sides["student"].find(point.n_atoms)
            if other is None or other.status != "measured" or point.status != "measured":
                continue
            kind = "median" if mode == "ase-call" else "mean"
            teacher, student = getattr(point, kind), getattr(other, kind)
            ratios.append(
                SpeedRatio(
                    mode=mode,
                    n_atoms=point.n_atoms,
                    teacher_seconds=teacher,
                    student_seconds=student,
                    ratio=teacher / student,
                )
            )
    return tuple(ratios)
