"""Whether intervals, rows by temperature, temperatures, cut-off and the total of timed seconds can be true.

Here: :func:`verify_limits`. Not here: accuracies and plots (:mod:`fastff.report.consistency`), whose numbers they are
(:mod:`fastff.report.attribution`), what follows from several parts (:mod:`fastff.report.conclusions`).
"""

from __future__ import annotations

import math
import re
from typing import Any

from fastff.errors import DataError
from fastff.report.consistency import SLACK, is_between, is_same
from fastff.report.metrics import Accuracy
from fastff.report.schema import BenchRecord, Comparison
from fastff.report.speed import CLOCK_INCLUDES
from fastff.report.spread import METHOD, QUANTITIES

CUTOFFS = (1.0, 15.0)
"""Å, between which any student's is."""

DRIVEN = (1.0, 10_000.0)
"""K, between which dynamics of a teacher is driven."""

MOST_KELVIN = 20_000.0
"""Of any frame."""


def verify_limits(record: BenchRecord) -> None:
    """Refuse a record with figures that nothing measured can be.

    Raises
    ------
    DataError
    """
    cutoff = record.model.cutoff
    if not CUTOFFS[0] <= cutoff <= CUTOFFS[1]:
        raise DataError(f"the cut-off of the model is {cutoff:g} Å: another unit.")
    for comparison in record.comparisons:
        where = f"comparison '{comparison.name}'"
        accuracy = comparison.read_accuracy()
        _verify_intervals(where, accuracy)
        _verify_temperatures(where, comparison)
        _verify_rows(where, comparison, accuracy)
    _verify_total(record)


def _verify_intervals(where: str, accuracy: Accuracy) -> None:
    """Ends in their order and below one, about the accuracy; the overall one from the others."""
    limits = accuracy.intervals
    for name, (low, high) in limits.items():
        value = getattr(accuracy, name)
        exact = accuracy.intervals_by == METHOD  # a bootstrap need not hold the value
        if (
            value is None
            or not is_between(low, high, 1.0)
            or (exact and not is_between(low, value, high))
        ):
            raise DataError(
                f"{where}: the interval {low:.4g} to {high:.4g} is not one of the {name} accuracy {value}."
            )
    if limits and accuracy.intervals_by == METHOD:
        ends = [limits[name] for name in QUANTITIES if name in limits]
        found = limits.get("overall", (math.nan, math.nan))
        if not ends or not all(
            is_same(a, min(b)) for a, b in zip(found, zip(*ends, strict=True), strict=True)
        ):
            raise DataError(f"{where}: the overall interval does not follow from the others.")  # fmt: skip


def _verify_temperatures(where: str, comparison: Comparison) -> None:
    limits = comparison.frames.temperatures
    if limits is None:
        return
    lowest, highest = DRIVEN if comparison.frames.source == "teacher-md" else (0.0, MOST_KELVIN)
    if not lowest <= limits[0] <= limits[1] <= highest:
        raise DataError(
            f"{where}: temperatures of {limits[0]:g} to {limits[1]:g} K: another unit, or edited."
        )


def _verify_rows(where: str, comparison: Comparison, accuracy: Accuracy) -> None:
    """Rows by temperature are of all frames and of their temperatures, and their squares add up to the table."""
    rows = accuracy.per_temperature
    if not rows:
        return

    def fail(what: str) -> None:
        raise DataError(f"{where}, by temperature: {what}: another unit, or edited.")

    whole = all("n_atoms" in row for row in rows)  # older ones have frames and accuracies alone
    count = sum(row["n_frames"] for row in rows)
    exact = whole or comparison.frames.source == "teacher-md"
    if count > accuracy.n_frames or (exact and count != accuracy.n_frames):
        fail(f"{count} frames instead of {accuracy.n_frames}")
    known = [row["temperature"] for row in rows if row["temperature"] is not None]
    limits = comparison.frames.temperatures
    if not known:
        fail("no temperature")
    ends = (min(known), max(known))
    far = max(abs(a - b) for a, b in zip(ends, limits, strict=True)) if limits else math.inf
    if (exact and far > 0.06) or (
        limits and not limits[0] - 0.06 <= ends[0] <= ends[1] <= limits[1] + 0.06
    ):
        fail(f"{ends[0]:g} to {ends[1]:g} K, the frames have {limits}")  # fmt: skip
    for row in rows:
        for name in QUANTITIES:
            if row[name] is not None and row[name] > 1.0 + SLACK:
                fail(f"{name} accuracy {row[name]:.4g}")
    if whole:
        _verify_sums(rows, accuracy, fail)


def _verify_sums(rows: tuple[dict[str, Any], ...], accuracy: Accuracy, fail: Any) -> None:
    """Accuracies from RMSE and reference of each row, and the sums of their squares."""
    for name, scale in (("force", "force_rms"), ("energy", "energy_std"), ("stress", "stress_rms")):
        weight = {"force": "n_atoms", "energy": "n_energies", "stress": "n_stresses"}[name]
        squares, counted = [0.0, 0.0], 0
        for row in rows:
            rmse, reference = row[f"{name}_rmse"], row[scale]
            if rmse is None or reference is None:
                continue
            expected = 1.0 - rmse / reference if reference > 0.0 else None
            if (row[name] is None) != (expected is None) or (
                expected is not None and not is_same(row[name], expected)
            ):
                fail(f"{name} accuracy {row[name]} does not follow from RMSE and reference")
            counted += row[weight]
            squares[0] += row[weight] * rmse**2
            squares[1] += row[weight] * reference**2
        for total, key in zip(squares, (f"{name}_rmse", scale), strict=True):
            table = getattr(accuracy, key)
            if table is None:
                continue
            expected = getattr(accuracy, weight) * table**2
            # means are of fewer frames here, and a stress of zeros alone is left out
            part = name == "energy" or counted != getattr(accuracy, weight)
            if total > expected * (1.0 + SLACK) + 1e-18 or (
                not part and not is_same(total, expected, absolute=1e-18)
            ):
                fail(f"squares of {key} add up to {total:.6g}, the table gives {expected:.6g}")


def _verify_total(record: BenchRecord) -> None:
    """All timed seconds lie within the time that timing took; those of a model inside an ASE call are in the call's."""
    total = 0.0
    for curve in record.speed:
        if curve.includes.startswith(CLOCK_INCLUDES):
            continue
        for point in curve.points:
            block = re.match(r"blocks of (\d+) steps", point.reason)
            total += sum(point.seconds) * (int(block[1]) if block else 1)
    duration = record.durations.get("speed")
    if duration is not None and total > duration * (1.0 + SLACK):
        raise DataError(
            f"{total:.4g} s were timed in {duration:.4g} s of timing: another unit, or edited."
        )
