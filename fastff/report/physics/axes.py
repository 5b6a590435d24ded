"""Whether what physical properties are plotted against can be true: axes, numbers of points, temperatures of runs.

Here: :func:`find_axis_faults`. Not here: quantities that follow from the curves
(:func:`fastff.report.physics.run.verify_physics`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastff.report.physics.record import (
    AnyItem,
    DiffusionItem,
    DimerItem,
    EosItem,
    NveItem,
    PhononItem,
    PhysicsPart,
    RdfItem,
    StabilityItem,
)

BEYOND = 1.5
"""Stability is tested at the highest temperature of training and at so many times that."""


def find_axis_faults(part: PhysicsPart) -> list[str]:
    """What cannot be: axes out of order, curves of another length, runs at temperatures that exclude each other."""
    faults = []
    for item in part.items:
        if isinstance(item, PhononItem):
            faults += _check_path(item)
        for values, *others in _list_curves(item):
            if any(other is not None and len(other) != len(values) for other in others):
                faults.append(
                    f"{item.title}: curves and their axis have not the same number of points"
                )
            if (np.diff(values) < 0.0).any():
                faults.append(f"{item.title}: the points of a curve are not in their order")
    return faults + _check_temperatures(part)


def _list_curves(
    item: AnyItem,
) -> list[tuple[Sequence[float], *tuple[Sequence[object] | None, ...]]]:
    """Every axis of an item and what stands on it."""
    if isinstance(item, EosItem):
        return [(item.volumes, item.teacher, item.student)]
    if isinstance(item, PhononItem):
        return [(item.path, item.teacher, item.student)]
    if isinstance(item, DimerItem):
        return [(c.distances, c.teacher, c.student) for c in item.curves]
    if isinstance(item, RdfItem):
        return [
            (c.radii, c.teacher, c.teacher_error, c.student, c.student_error) for c in item.curves
        ]
    if isinstance(item, DiffusionItem):
        return [(c.times, c.teacher, c.student) for c in item.curves]
    if isinstance(item, NveItem):
        traces = (item.student, item.teacher)
        return [(t.times, t.energies) for t in traces if t is not None]
    return []


def _check_path(item: PhononItem) -> list[str]:
    """Path and marks go from 0 to 1; both sides have the same number of bands everywhere."""
    faults = []
    places = [place for place, _ in item.marks]
    for values in (item.path, places):
        ends = (values[0], values[-1]) if values else ()
        if not np.allclose(ends, (0.0, 1.0)) or sorted(values) != list(values):
            faults.append(f"{item.title}: the path and its marks do not go from 0 to 1")
            break
    if len({len(row) for row in (*item.teacher, *item.student)}) != 1:
        faults.append(f"{item.title}: the two sides have not the same number of bands")
    return faults


def _check_temperatures(part: PhysicsPart) -> list[str]:
    """All runs of both sides are at the middle of a range; stability is tested at its upper end and beyond."""
    middle = {
        item.temperature
        for item in part.items
        if isinstance(item, RdfItem | DiffusionItem | NveItem)
    }
    if len(middle) > 1:
        return [f"runs at the middle of one range have temperatures of {_join(middle)} K"]
    faults = []
    for item in part.items:
        if not isinstance(item, StabilityItem) or not item.runs:
            continue
        highest, *rest = [run.temperature for run in item.runs]
        if any(not np.isclose(value, BEYOND * highest) for value in rest):
            faults.append(f"{item.title}: {_join(rest)} K is not {BEYOND:g} times {highest:g} K")
        # a range from above 0 K has its middle in its upper half
        if any(not 0.5 * highest <= value <= highest * (1.0 + 1e-9) for value in middle):
            faults.append(
                f"runs at {_join(middle)} K are not at the middle of a range up to {highest:g} K"
            )
    return faults


def _join(values: Sequence[float] | set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))
