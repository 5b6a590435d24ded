"""The record of one bench run: what is stored as JSON and what every page and table is made from.

Here: the schema (:class:`BenchRecord` and its parts), its digest, and the ratios that follow from timings. Not here:
reading, writing and verifying (:mod:`fastff.report.record`), measuring (:mod:`fastff.report.bench`), rendering
(:mod:`fastff.report.html`, :mod:`fastff.report.markdown`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fastff.report.calibration import CalibrationData
from fastff.report.metrics import Accuracy
from fastff.report.noise import NoiseFloor
from fastff.report.physics.record import PhysicsPart
from fastff.report.plotdata import CoverageData, ParityData
from fastff.report.provenance import Provenance
from fastff.report.speed import SpeedCurve
from fastff.report.stamps import Stamped

SCHEMA = "fastff-bench/3"
READABLE = ("fastff-bench/1", "fastff-bench/2", SCHEMA)
ADDED = ("baselines", "calibration", "physics")
"""Fields that records of the first schema do not have; they are left out of its digests."""

LATER = (
    "stamp", "identity", "columns", "beyond_columns", "energy_rest", "stress_rest", "wording",
    "counts", "volume_per_atom", "start_temperature", "peak", "contact", "ended", "symmetry",
    "given_symmetry", "interpolated", "heights", "settling", "centered", "n_fixed",
)  # fmt: skip
"""Fields that the third schema added; where they are None, they are left out of older digests."""


class Part(BaseModel):
    """Base of the parts of a record: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(Stamped):
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


class Comparison(Stamped):
    """Student against teacher on one set of frames."""

    name: str
    frames: FramesPart
    accuracy: dict[str, Any]
    parity: ParityData
    coverage: CoverageData

    def read_accuracy(self) -> Accuracy:
        """The accuracy as the record that :func:`fastff.report.metrics.measure_accuracy` returned."""
        return Accuracy.from_dict(self.accuracy)


class BaselineComparison(Part):
    """A baseline's accuracy on the frames of the comparison ``name``, whose digest is repeated."""

    name: str
    frames_digest: str
    accuracy: dict[str, Any]


class BaselinePart(Stamped):
    """A model beside the student: another model file, any ASE calculator, another teacher, or a program of its own.

    ``identity`` says which one it is and is repeated in its timings; ``comparisons`` is empty for a program that is
    only timed.
    """

    name: str
    kind: Literal["model", "teacher", "program"]
    identity: dict[str, Any]
    comparisons: tuple[BaselineComparison, ...]


class SpeedRatio(Part):
    """How many times faster the student is than the teacher at one size, both measured in this run."""

    mode: Literal["ase-call", "ase-md"]
    n_atoms: int
    teacher_seconds: float
    student_seconds: float
    ratio: float


class Verdict(Part):
    """``passed`` is None when nothing was required, or when the run ended before all of it could be judged; ``lines``
    are what the command prints.

    ``wording`` is that of :mod:`fastff.report.verdict` when they were written, None in records of old schemas.
    """

    required: float | None
    passed: bool | None
    lines: tuple[str, ...]
    next_command: str
    wording: int | None = None


class BenchRecord(Part):
    """Everything that one run of ``fastff bench`` found. ``digest`` is over all other fields.

    ``ended`` says why a run ended early and what is missing; None if everything that was planned was done.
    """

    schema_version: Literal["fastff-bench/1", "fastff-bench/2", "fastff-bench/3"] = "fastff-bench/3"
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
    baselines: tuple[BaselinePart, ...] = ()
    calibration: CalibrationData | None = None
    physics: PhysicsPart | None = None
    ended: str | None = None
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
    """SHA-256 over the record without its digest, as canonical JSON; since the third schema also without any None."""
    left_out = {"digest", *(ADDED if record.schema_version == READABLE[0] else ())}
    new = record.schema_version == SCHEMA
    content = record.model_dump(mode="json", exclude=left_out, exclude_none=new)
    content = content if new else _drop_later(content)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _drop_later(content: Any) -> Any:
    """Without the fields :data:`LATER` that are None."""
    if isinstance(content, dict):
        return {
            key: _drop_later(value)
            for key, value in content.items()
            if value is not None or key not in LATER
        }
    return [_drop_later(value) for value in content] if isinstance(content, list) else content


def compute_ratios(curves: tuple[SpeedCurve, ...]) -> tuple[SpeedRatio, ...]:
    """Teacher time over student time wherever both were measured: medians of calls, means of steps as a rule."""
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
            kind = "median" if mode == "ase-call" else "per_step"
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
