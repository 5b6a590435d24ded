"""Is it slower than it was? Timings of this run against those of an earlier record of a like machine.

Here: :func:`compare_speed`, :func:`read_comparable`, which names the records beside one that is of no use, and what
must agree (:func:`check_machines`, :func:`check_students`). Not here: measuring.

A point is slower beyond noise if its median is more than ``tolerance`` above the earlier one and the 95 % intervals of
the two medians (:func:`fastff.report.repeats.find_median_interval`) lie apart. How far single calls scatter does not
matter: the median of many is known better than any of them. What was measured then and now breaks or does not fit into
memory counts as slower, too; what is left out for want of time is named.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastff.errors import DataError, FastFFError
from fastff.report.kernels import SCHEMA as KERNEL_SCHEMA
from fastff.report.kernels import KernelRecord, KernelRow, read_kernels
from fastff.report.provenance import Provenance
from fastff.report.record import read_record
from fastff.report.repeats import find_median_interval
from fastff.report.schema import BenchRecord, ModelPart
from fastff.report.speed import SpeedCurve, SpeedPoint
from fastff.report.verdict import format_seconds

TOLERANCE = 0.10
Record = BenchRecord | KernelRecord


class SlowdownError(FastFFError):
    """Something is slower than in the earlier record, beyond noise."""

    exit_code = 6


BROKEN = ("out-of-memory", "failed")
"""Of what was measured then, no question of the budget now."""


@dataclass(frozen=True)
class Change:
    """One timing then and now, s; ``slower`` is beyond noise. ``missing`` says why there is none now."""

    what: str
    before: float
    after: float | None
    slower: bool
    missing: str = ""

    @property
    def ratio(self) -> float:
        """Time now over time then; infinite where there is none now."""
        return math.inf if self.after is None else self.after / self.before


def read_any(path: Path) -> Record:
    """A record of ``fastff bench`` or of ``fastff bench --kernels``.

    Raises
    ------
    DataError
        It is neither.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a record: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    return read_kernels(path) if version == KERNEL_SCHEMA else read_record(path)


def read_comparable(path: Path, fits: Callable[[Record], None] = lambda record: None) -> Record:
    """A record with timings that ``fits``.

    Parameters
    ----------
    path : Path
    fits : callable
        Raises :class:`DataError` for a record that is of no use.

    Raises
    ------
    DataError
        It is no such record; one line, with the names of usable records beside it or in the folder above.
    """
    try:
        return _read_fitting(path, fits)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}").strip(" :.")
    raise DataError(f"{path} cannot be compared: {reason}; {_name_usable(path, fits)}")


def _read_fitting(path: Path, fits: Callable[[Record], None]) -> Record:
    record = read_any(path)
    _find_device(record)
    fits(record)
    return record


def _name_usable(path: Path, fits: Callable[[Record], None]) -> str:
    for folder in (path.parent, path.parent.parent):
        usable = []
        for other in sorted(folder.glob("*.json")):
            with contextlib.suppress(DataError):
                if other != path:
                    _read_fitting(other, fits)
                    usable.append(str(other))
        if usable:
            return f"usable: {', '.join(usable)}"
    return "no record beside it is usable either"


def describe_machine(p: Provenance, device: str) -> str:
    """What must agree: the GPU for records of one, else the processor, cores and threads."""
    if device.startswith("cuda"):
        return p.gpu or "no GPU"
    return f"{p.cpu}, {p.cores} cores, {p.threads} threads"


def check_machines(before: Record, now: Provenance, device: str) -> None:
    """Refuse to compare unlike machines.

    Raises
    ------
    DataError
        One line with both.
    """
    then = _find_device(before)
    if then.split(":")[0] != device.split(":")[0]:
        raise DataError(
            f"the earlier record was measured on {then}, this run is on {device}: not compared"
        )
    first, second = describe_machine(before.provenance, then), describe_machine(now, device)
    if first != second:
        raise DataError(
            f"timings of unlike machines are not compared: then {first}; now {second}. Choose a record of this machine"
        )


def describe_student(model: ModelPart) -> str:
    """What must agree of two students whose speeds are compared: everything that a call costs more or less for."""
    return (
        f"{model.architecture} with {model.n_parameters} parameters, {model.dtype}, cut-off {model.cutoff:g} Å, "
        f"elements {' '.join(model.elements)}"
    )


def check_students(before: Record, model: ModelPart) -> None:
    """Refuse to compare unlike students.

    Raises
    ------
    DataError
        One line with both.
    """
    if not isinstance(before, BenchRecord):
        raise DataError("a record of kernels and one of a student are not compared")
    first, second = describe_student(before.model), describe_student(model)
    if first != second:
        raise DataError(f"different students are not compared: then {first}; now {second}")


def compare_speed(before: Record, after: Record, tolerance: float = TOLERANCE) -> list[Change]:
    """Every timing that both records hold: of the same mode, number of atoms, formula and time step.

    So must the number of fixed atoms; density and temperature where both records have them. Those that the later
    record has no time of, but says why, are among them.

    Raises
    ------
    DataError
        Unlike machines, records of different kinds or students, or nothing in common.
    """
    if type(before) is not type(after):
        raise DataError("a record of kernels and one of a student are not compared")
    check_machines(before, after.provenance, _find_device(after))
    if isinstance(after, BenchRecord):
        check_students(before, after.model)
    full = _has_conditions(before) and _has_conditions(after)
    then, now = _list_times(before, full=full), _list_times(after, full=full)
    common = [key for key in then if key in now]
    lost = {key: gone for key, gone in _list_missing(after, full=full).items() if key in then}
    if not common and not any(status in BROKEN for status, _ in lost.values()):
        raise DataError(
            f"the two records hold no timing of the same thing: then {next(iter(then), 'none')}; now "
            f"{next(iter(now), 'none')}; time the same --structures and --sizes"
        )
    return [
        _judge(key, then[key], now[key], tolerance)
        if key in now
        else Change(key, float(np.median(then[key])), None, lost[key][0] in BROKEN, lost[key][1])
        for key in then
        if key in now or key in lost
    ]


def require_no_slowdown(changes: Sequence[Change]) -> None:
    """Raise if anything is slower beyond noise.

    Raises
    ------
    SlowdownError
        Names the worst.
    """
    slower = sorted((c for c in changes if c.slower), key=lambda c: -c.ratio)
    if slower:
        worst = slower[0]
        now = f"now none: {worst.missing}"
        if worst.after is not None:
            now = f"{format_seconds(worst.after)} now ({worst.ratio:.2f} times)"
        raise SlowdownError(
            f"{len(slower)} of {len(changes)} timings are slower than in the earlier record beyond noise; the worst: "
            f"{worst.what}, {format_seconds(worst.before)} then, {now}"
        )


def _judge(what: str, then: Sequence[float], now: Sequence[float], tolerance: float) -> Change:
    before, after = float(np.median(then)), float(np.median(now))
    apart = find_median_interval(now)[0] > find_median_interval(then)[1]
    return Change(what, before, after, apart and after > (1.0 + tolerance) * before)


def _find_device(record: Record) -> str:
    if isinstance(record, KernelRecord):
        return record.device
    student = [curve.device for curve in record.speed if curve.role == "student"]
    if not student:
        raise DataError("a record without timings cannot be compared: run with --compare-teacher")
    return student[0]


def _has_conditions(record: Record) -> bool:
    """Whether densities and temperatures are stored; older records have none."""
    if isinstance(record, KernelRecord):
        return True
    curves = [curve for curve in record.speed if curve.role == "student"]
    return any(
        curve.start_temperature is not None or any(p.volume_per_atom is not None for p in curve.points)
        for curve in curves
    )  # fmt: skip


def _list_times(record: Record, *, full: bool) -> Mapping[str, tuple[float, ...]]:
    """Repeats by what was timed; of a student's record the student's only, others are not ours to keep fast.

    With density to three digits and temperature of dynamics if ``full``.
    """
    if isinstance(record, KernelRecord):
        return {
            _name_row(row): row.seconds
            for row in record.rows
            if row.status == "measured" and row.variant != "compiled"
        }
    return {
        _name_timing(curve, point, full=full): point.seconds
        for curve in record.speed
        if curve.role == "student"
        for point in curve.points
        if point.status == "measured"
    }


def _list_missing(record: Record, *, full: bool) -> Mapping[str, tuple[str, str]]:
    """Status and reason of what has no time, by what :func:`_list_times` would call it."""
    if isinstance(record, KernelRecord):
        return {
            _name_row(row): (row.status, f"{row.status}, {row.reason}")
            for row in record.rows
            if row.status != "measured" and row.variant != "compiled"
        }
    return {
        _name_timing(curve, point, full=full): (point.status, f"{point.status}, {point.reason}")
        for curve in record.speed
        if curve.role == "student"
        for point in curve.points
        if point.status != "measured"
    }


def _name_row(row: KernelRow) -> str:
    return f"{row.op}, {row.rows} rows, {row.direction}, {row.variant}"


def _name_timing(curve: SpeedCurve, point: SpeedPoint, *, full: bool) -> str:
    words = [curve.mode, f"{point.n_atoms} atoms of {point.formula}"]
    if full and point.volume_per_atom is not None:
        words.append(f"{point.volume_per_atom:.3g} Å³/atom")
    if point.n_fixed:
        words.append(f"{point.n_fixed} fixed")
    if curve.time_step is not None:
        words.append(f"{curve.time_step:g} fs")
    if full and curve.start_temperature is not None:
        words.append(f"{curve.start_temperature:g} K")
    return ", ".join(words)
