"""What the comparison of physical properties found, in one line.

Here: :func:`describe_physics`, with the deviations beyond noise. Not here: what noise is
(:mod:`fastff.report.physics.scatter`), imaginary modes and lost symmetry (:mod:`fastff.report.physics.rest`), the other
lines of a verdict (:mod:`fastff.report.verdict`).
"""

from __future__ import annotations

from fastff.report.physics.derive import find_unbound
from fastff.report.physics.record import AnyItem, PhysicsPart
from fastff.report.physics.rest import describe_rest, join_words, lacks_minimum
from fastff.report.physics.scatter import count_blocks, judge_quantity

N_DEVIATIONS = 4
"""Quantities named, the worst of each property."""

UNTRAINED = ("dimers", "nve", "stability")
"""Properties whose deviations from the teacher's are no measure of the student."""


def describe_physics(part: PhysicsPart) -> str:
    """The worst deviations, structures that are no minimum, pairs not bound, runs that broke, what was not measured."""
    first, parts = _describe_deviations(part), describe_rest(part)
    compared = any(i.kind == "rdf" and i.curves[0].teacher is not None for i in part.items)
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
        elif item.kind == "diffusion" and item.curves[0].teacher is None and compared:
            parts.append("diffusion of the student alone, the teacher's runs were too short")
    # what does not fit the structure is no omission
    missing = [left for left in part.left_out if not left.reason.startswith("the structure is")]
    parts += [f"{left.title.lower()} not measured: {left.reason}" for left in missing]
    return f"Physics of {part.material}{'; '.join([first, *parts])}."


def _describe_deviations(part: PhysicsPart) -> str:
    worst, n_within, n_few, n_blocks = [], 0, 0, 0
    for item in part.items:
        found = []
        counted = item.kind not in UNTRAINED and not lacks_minimum(part, item)
        for quantity in item.quantities if counted else ():
            judged = judge_quantity(item, quantity)
            # the lowest frequency is zero at Γ, but for noise; imaginary ones have words of their own
            if judged is None or quantity.name == "lowest frequency":
                continue
            if judged.status == "within":
                n_within += 1
            elif judged.status == "few":
                n_few, n_blocks = n_few + 1, count_blocks(item)
            else:
                # the area between two curves has no sign
                sign = "" if quantity.teacher is None else "+"
                found.append((abs(judged.difference), judged.difference, sign, quantity.name))
        if found:
            worst.append(max(found))
    few = f"{n_few} not judged, noise from {n_blocks} blocks only" if n_few else ""
    if worst:
        shown = (
            f"{name} {100.0 * difference:{sign}.1f} %"
            for _, difference, sign, name in sorted(worst, reverse=True)[:N_DEVIATIONS]
        )
        return f", worst deviations: {', '.join(shown)}{f'; {few}' if few else ''}"
    if n_within and n_few:
        return f": of {n_within + n_few} compared quantities {n_within} within noise and {few}"
    if n_few:
        return f": of the compared quantities {few}"
    if n_within:
        every = (
            "the one compared quantity is"
            if n_within == 1
            else f"all {n_within} compared quantities are"
        )
        return f": {every} within noise"
    titles = [
        item.title.lower()
        for item in part.items
        if _has_both_sides(item) and not lacks_minimum(part, item)
    ]
    if titles:
        return f": compared were only {join_words(titles)}, no measure of the student"
    return ": nothing of both sides was measured"


def _has_both_sides(item: AnyItem) -> bool:
    return any(q.teacher is not None and q.student is not None for q in item.quantities)
