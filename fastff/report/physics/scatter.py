"""What is within noise, by one criterion for tables and verdicts; the standard error of a drift.

Here: :func:`judge_quantity`, :func:`fit_drift_error` and the words that say what they do. Not here: standard errors of
pair distributions and diffusion, which are measured (:mod:`fastff.report.physics.motion`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastff.report.physics.derive import compare_quantity, fit_drift
from fastff.report.physics.record import (
    AnyItem,
    DiffusionItem,
    EnergyTrace,
    NveItem,
    PhysicsPart,
    Quantity,
    RdfItem,
)

TIMES = 2.0
"""Times the noise that a difference may have and still be within it; also of a drift's standard error."""

LEAST_BLOCKS = 4
"""With fewer, the noise itself is known to a factor of about two: nothing is called within it."""

LEAST_POINTS = 10
"""Of a trace of energies that a standard error is estimated from."""


@dataclass(frozen=True)
class Judged:
    """Relative difference of the sides, and where it stands: ``"few"`` has too few blocks, ``"bare"`` no noise."""

    difference: float
    status: Literal["within", "beyond", "few", "bare"]


def judge_quantity(item: AnyItem, quantity: Quantity) -> Judged | None:
    """The difference of a quantity and whether it is within noise; None where no difference is defined.

    Areas between pair distributions, up to :data:`TIMES` what two equal systems would have; places of peaks, up to the
    width of a bin, or as far as the top of either is level within :data:`TIMES` its standard error; whatever else has
    standard errors, up to :data:`TIMES` that of the difference.
    """
    if isinstance(item, RdfItem) and quantity.teacher is None:
        if quantity.unit != "%" or quantity.student is None or quantity.student_error is None:
            return None
        within = quantity.student <= TIMES * quantity.student_error
        return Judged(0.01 * quantity.student, _settle(item, within))
    difference = compare_quantity(quantity)
    if difference is None:
        return None
    values = (quantity.teacher, quantity.student, quantity.teacher_error, quantity.student_error)
    if any(value is None for value in values):
        return Judged(difference, "bare")
    teacher, student, *errors = (float(value) for value in values if value is not None)
    if isinstance(item, RdfItem):
        if abs(student - teacher) <= max(errors):
            return Judged(difference, "within")
        return Judged(difference, _settle(item, _has_level_top(item, quantity)))
    within = abs(student - teacher) <= TIMES * math.hypot(*errors)
    return Judged(difference, _settle(item, within))


def _has_level_top(item: RdfItem, quantity: Quantity) -> bool:
    """Whether either curve has no less at the other's peak than at its own, but for noise: its top is broad."""
    curve = next(c for c in item.curves if quantity.name.startswith(f"{c.pair}, "))
    places = [
        int(np.argmin(np.abs(np.array(curve.radii) - at)))
        for at in (quantity.teacher, quantity.student)
    ]
    for values, errors in (
        (curve.teacher, curve.teacher_error),
        (curve.student, curve.student_error),
    ):
        if values is None or errors is None:
            continue
        heights, widths = ([row[place] for place in places] for row in (values, errors))
        if abs(heights[0] - heights[1]) <= TIMES * math.hypot(*widths):
            return True
    return False


def _settle(item: AnyItem, within: bool) -> Literal["within", "beyond", "few"]:
    if not within:
        return "beyond"
    return "within" if count_blocks(item) >= LEAST_BLOCKS else "few"


def count_blocks(item: AnyItem) -> int:
    """Blocks that the noise of an item is from; 0 where there are none."""
    if isinstance(item, RdfItem):
        return item.n_blocks
    if isinstance(item, DiffusionItem):
        blocks = [b for c in item.curves for b in (c.teacher_blocks, c.student_blocks)]
        return min((len(b) for b in blocks if b is not None), default=0)
    return 0


def describe_criterion(part: PhysicsPart) -> str:
    """What "within noise", "±" and "not resolved" mean for what was compared; empty where nothing has any."""
    words = []
    for item in part.items:
        if isinstance(item, RdfItem) and any(c.teacher is not None for c in item.curves):
            width = item.curves[0].radii[1] - item.curves[0].radii[0]
            words.append(
                f"a difference of g(r) up to {TIMES:g} times its noise, what two equal systems would differ by, from "
                f"the scatter of {item.n_blocks} blocks of each side"
            )
            words.append(
                f"places of peaks that differ by no more than the width of a bin, {width:.2g} Å, which is their ±, or "
                f"between which the top of a curve is level within {TIMES:g} standard errors"
            )
        elif isinstance(item, DiffusionItem) and any(c.teacher is not None for c in item.curves):
            words.append(
                f"a diffusion coefficient that differs by up to {TIMES:g} standard errors of the difference, from "
                f"{count_blocks(item)} blocks"
            )
    parts = [f"Within noise is {'; '.join(words)}."] if words else []
    if any(0 < count_blocks(item) < LEAST_BLOCKS for item in part.items) and words:
        parts.append(
            f"With fewer than {LEAST_BLOCKS} blocks the noise itself is uncertain by a factor: what may be noise is "
            "not judged then."
        )
    for item in part.items:
        if not isinstance(item, NveItem):
            continue
        part_of = (
            "are of whole runs, the first steps included"
            if item.settling is None
            else f"leave out the first {item.settling:g} ps of each run"
        )
        parts.append(
            "The ± of a drift is the standard error of its slope, correlation in time counted; it is not resolved "
            f"where it is smaller than {TIMES:g} times that. Drift and fluctuation {part_of}, in which heat goes from "
            "velocities into positions."
        )
    return " ".join(parts)


def fit_drift_error(trace: EnergyTrace) -> float | None:
    """Standard error of the slope of :func:`~fastff.report.physics.derive.fit_drift`, meV/atom/ps.

    That of least squares, with the residuals' correlation time: their variance counts ``1 + 2 sum rho_k`` times, with
    autocorrelations up to the first that is not positive. None for fewer than :data:`LEAST_POINTS` points.
    """
    t, e = np.array(trace.times), np.array(trace.energies)
    n = len(t)
    if n < LEAST_POINTS:
        return None
    rest = e - np.polyval(np.polyfit(t, e, 1), t)
    total = float(rest @ rest)
    if total == 0.0:
        return 0.0
    repeated = 1.0
    for lag in range(1, n // 2):
        correlation = float(rest[lag:] @ rest[:-lag]) / total
        if correlation <= 0.0:
            break
        repeated += 2.0 * correlation
    spread = float(np.square(t - t.mean()).sum())
    return math.sqrt(repeated * total / (n - 2) / spread)


def is_resolved(trace: EnergyTrace) -> bool | None:
    """Whether a drift is more than :data:`TIMES` its standard error; None where that is not known."""
    error = fit_drift_error(trace)
    return None if error is None else abs(fit_drift(trace)[0]) > TIMES * error
