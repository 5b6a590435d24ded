"""What the comparison of physical properties found, in one line.

Here: :func:`describe_physics`, and what it looks for: deviations beyond noise, imaginary modes, lost symmetry. Not
here: the other lines of a verdict (:mod:`fastff.report.verdict`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fastff.report.physics.derive import compare_quantity, find_unbound
from fastff.report.physics.record import (
    AnyItem,
    ElasticItem,
    PhononItem,
    PhysicsPart,
    Quantity,
    RdfItem,
)

N_DEVIATIONS = 4
"""Quantities named, the worst of each property."""

UNTRAINED = ("dimers", "nve", "stability")
"""Properties whose deviations from the teacher's are no measure of the student."""

IMAGINARY = 0.2
"""THz below zero that a frequency may be for numerical reasons, near Γ."""

SAME_CONSTANT = 0.03
"""Relative difference of elastic constants that count as equal."""

WITHIN = (0.02, 0.2)
"""Å within which atoms count as equivalent: of the symmetry that a relaxed cell has, and of the one it nearly has."""


def describe_physics(part: PhysicsPart) -> str:
    """The worst deviations, structures that are no minimum, pairs not bound, runs that broke, what was not measured."""
    first, parts = _describe_deviations(part), _describe_rest(part)
    for item in part.items:
        if item.kind == "stability":
            parts += [
                f"unstable at {run.temperature:.0f} K: {run.reason}"
                for run in item.runs
                if run.reason
            ]
        elif item.kind == "dimers" and (unbound := find_unbound(item)):
            parts.append(f"no bound pair where the teacher binds: {', '.join(unbound)}")
        elif item.kind == "rdf" and item.curves[0].teacher is None:
            parts.append("dynamics of the student alone, the teacher's was too slow")
    # what does not fit the structure is no omission
    missing = [left for left in part.left_out if not left.reason.startswith("the structure is")]
    parts += [f"{left.title.lower()} not measured: {left.reason}" for left in missing]
    return f"Physics of {part.material}{'; '.join([first, *parts])}."


def _describe_deviations(part: PhysicsPart) -> str:
    worst, n_within = [], 0
    for item in part.items:
        found = []
        for quantity in item.quantities if item.kind not in UNTRAINED else ():
            compared = _find_deviation(item, quantity)
            if compared is None:
                continue
            difference, is_noise = compared
            n_within += is_noise
            if not is_noise:
                found.append((abs(difference), difference, quantity.name))
        if found:
            worst.append(max(found))
    if worst:
        shown = (
            f"{name} {100.0 * difference:+.1f} %"
            for _, difference, name in sorted(worst, reverse=True)[:N_DEVIATIONS]
        )
        return f", worst deviations: {', '.join(shown)}"
    if n_within:
        every = (
            "the one compared quantity is"
            if n_within == 1
            else f"all {n_within} compared quantities are"
        )
        return f": {every} within noise"
    titles = [item.title.lower() for item in part.items if _has_both_sides(item)]
    if titles:
        return f": compared were only {_join(titles)}, no measure of the student"
    return ": nothing of both sides was measured"


def _find_deviation(item: AnyItem, quantity: Quantity) -> tuple[float, bool] | None:
    """Relative difference of the sides, and whether it is within two standard errors; None where none is defined."""
    if isinstance(item, RdfItem) and quantity.teacher is None:
        # the area between the curves, in percent, where there are curves of both sides
        if quantity.unit != "%" or quantity.student is None or quantity.student_error is None:
            return None
        return 0.01 * quantity.student, quantity.student <= 2.0 * quantity.student_error
    if quantity.name == "lowest frequency":
        return None  # zero at Γ, but for noise; imaginary ones have words of their own
    difference = compare_quantity(quantity)
    return None if difference is None else (difference, _is_noise(quantity))


def _is_noise(quantity: Quantity) -> bool:
    """Whether the sides differ by less than two standard errors, where these are known."""
    values = (quantity.teacher, quantity.student, quantity.teacher_error, quantity.student_error)
    if any(value is None for value in values):
        return False
    teacher, student, *errors = (float(value) for value in values if value is not None)
    return abs(student - teacher) < 2.0 * math.hypot(*errors)


def _has_both_sides(item: AnyItem) -> bool:
    return any(q.teacher is not None and q.student is not None for q in item.quantities)


def _describe_rest(part: PhysicsPart) -> list[str]:
    """Imaginary modes at the relaxed structures, and the symmetry these have lost."""
    parts = []
    modes = {
        role: value
        for item in part.items
        if isinstance(item, PhononItem)
        for role, value in find_imaginary(item).items()
    }
    if modes:
        shown = _join(f"the {role} (to {-value:.2f}i THz)" for role, value in modes.items())
        parts.append(f"imaginary modes of {shown}: the relaxed structure is no minimum")
    lost = {
        role: groups for role, groups in (part.symmetry or {}).items() if groups[0] != groups[1]
    }
    by_groups: dict[tuple[str, str], list[str]] = {}
    for role, groups in lost.items():
        by_groups.setdefault(groups, []).append(f"the {role}")
    parts += [
        f"relaxed by {_join(roles)} it has space group {tight}, {loose} only within {WITHIN[1]:g} Å: symmetry was "
        "lost, properties at rest are those of a distorted crystal"
        for (tight, loose), roles in by_groups.items()
    ]
    if modes and part.symmetry is None:  # as before symmetries were recorded
        parts += [
            text
            for item in part.items
            if isinstance(item, ElasticItem)
            if (text := _describe_axes(item))
        ]
    return parts


def find_imaginary(item: PhononItem) -> dict[str, float]:
    """Lowest frequency of each side that has imaginary modes beyond numerical noise, THz, negative."""
    lowest = {"teacher": float(np.min(item.teacher)), "student": float(np.min(item.student))}
    return {role: value for role, value in lowest.items() if value < -IMAGINARY}


def _describe_axes(item: ElasticItem) -> str:
    """That no two elastic constants agree that would with an axis of higher order along one of the cell's."""
    matrix = np.array(item.teacher)
    diagonal = np.diag(matrix)[:3]
    gaps = [abs(diagonal[a] - diagonal[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    if min(gaps) <= SAME_CONSTANT * np.abs(diagonal).max():
        return ""
    shown = ", ".join(f"{value:.0f}" for value in diagonal)
    return f"no two of the teacher's C11, C22, C33 agree there ({shown} GPa), as they would with a fourfold axis"


def _join(words: Iterable[str]) -> str:
    return " and ".join(words)
