"""What a crystal is at rest, in words: imaginary modes, symmetry that was lost, cells that are not cubic.

Here: which sides are unstable and where, which properties that leaves without meaning, space groups. Not here:
measuring phonons and space groups (:mod:`fastff.report.physics.crystal`), what deviates
(:mod:`fastff.report.physics.summary`). All of it is computed when a record is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from fastff.report.physics.derive import compare_quantity
from fastff.report.physics.record import AnyItem, ElasticItem, PhononItem, PhysicsPart

IMAGINARY = 0.2
"""THz below zero that a frequency may be for numerical reasons, near Γ."""

SAME_CONSTANT = 0.03
"""Relative difference of elastic constants that count as equal."""

WITHIN = (0.02, 0.2)
"""Å within which atoms count as equivalent: of the symmetry that a relaxed cell has, and of the one it nearly has."""

RELATIVE_TO_REST = ("elastic", "vacancy")
"""Properties that only a minimum has: curvatures of its energy, and energies relative to it."""

UNSTABLE = "perfect cell is unstable"
"""What is said beside these where it is none."""

POINT_GROUPS = (
    (1, 1), (9, 2), (46, 4), (74, 8), (82, 4), (122, 8), (142, 16), (146, 3), (161, 6), (167, 12), (174, 6),
    (190, 12), (194, 24), (199, 12), (220, 24), (230, 48),
)  # fmt: skip
"""Space groups up to each of these numbers, from the one before on, have point groups of this order."""


FIRST_CUBIC = 195
"""Number of the first cubic space group; the others follow."""


def find_imaginary(item: PhononItem) -> dict[str, float]:
    """Lowest frequency of each side that has imaginary modes beyond numerical noise, THz, negative."""
    lowest = {"teacher": float(np.min(item.teacher)), "student": float(np.min(item.student))}
    return {role: value for role, value in lowest.items() if value < -IMAGINARY}


def lacks_minimum(part: PhysicsPart, item: AnyItem) -> bool:
    """Whether a property is relative to a perfect cell that is no minimum of one side's energy."""
    return item.kind in RELATIVE_TO_REST and any(
        find_imaginary(other) for other in part.items if isinstance(other, PhononItem)
    )


def describe_rest(part: PhysicsPart) -> list[str]:
    """Imaginary modes at the relaxed structures, what they leave undefined, and the symmetry these have lost."""
    parts = []
    for item in part.items:
        if isinstance(item, PhononItem) and (modes := find_imaginary(item)):
            shown = join_words(f"the {role} ({_describe_mode(item, role)})" for role in modes)
            parts.append(f"imaginary modes of {shown}: the relaxed structure is no minimum")
    left = [_describe_largest(item) for item in part.items if lacks_minimum(part, item)]
    if left:
        parts.append(f"{join_words(left)} not judged: the {UNSTABLE}")
    parts += _describe_lost(part)
    if parts and part.symmetry is None:  # as before symmetries were recorded
        parts += [
            text
            for item in part.items
            if isinstance(item, ElasticItem)
            if (text := _describe_axes(item))
        ]
    return parts


def _describe_largest(item: AnyItem) -> str:
    """``elastic constants (C44 +42.9 %)``: a property with its largest difference, which is not judged."""
    known = [(compare_quantity(quantity), quantity.name) for quantity in item.quantities]
    found = [(abs(value), value, name) for value, name in known if value is not None]
    if not found:
        return item.title.lower()
    _, value, name = max(found)
    return f"{item.title.lower()} ({name} {100.0 * value:+.1f} %)"


def _describe_mode(item: PhononItem, role: str) -> str:
    """``to 1.97i THz between Γ and Y, 1.00i at Γ``."""
    lowest = np.min(getattr(item, role), axis=1)
    index = int(np.argmin(lowest))
    words = f"to {-lowest[index]:.2f}i THz {_locate(item, index)}"
    center = min(
        (
            float(lowest[k])
            for place, name in item.marks
            if name == "Γ"
            for k in np.flatnonzero(np.isclose(item.path, place, atol=1e-9))
        ),
        default=0.0,
    )
    if center < -IMAGINARY and not words.endswith("at Γ"):
        words += f", {-center:.2f}i at Γ"
    return words


def _locate(item: PhononItem, index: int) -> str:
    """Which point of the path it is, and whether it was interpolated, or between which it lies."""
    place = item.path[index]
    here = [name for where, name in item.marks if abs(where - place) < 1e-9]
    if not here:
        before = [name for where, name in item.marks if where < place]
        after = [name for where, name in item.marks if where > place]
        return f"between {before[-1]} and {after[0]}"
    same = [k for k, value in enumerate(item.path) if abs(value - place) < 1e-9]
    # where the path breaks off and goes on elsewhere, two points and two names are at one place
    name = here[same.index(index)] if len(same) == len(here) else here[0]
    if name == "Γ":
        return f"at {name}"
    if item.interpolated is None:
        return f"at {name}, which may be interpolated"
    return f"at {name}{', interpolated' if name in item.interpolated else ''}"


def describe_interpolated(item: PhononItem) -> str:
    """Between which waves frequencies are interpolated, for the sentence on what was done."""
    if item.interpolated is None:
        return (
            "; exact at waves that fit into the supercell, interpolated between them: which points of the path fit is "
            "not in this record"
        )
    if not item.interpolated:
        return "; every named point of the path fits into the supercell, others are interpolated"
    named = dict.fromkeys(name for _, name in item.marks)
    exact = [name for name in named if name not in item.interpolated]
    return (
        f"; exact at {', '.join(exact)}, which fit into the supercell, interpolated elsewhere, also at "
        f"{', '.join(item.interpolated)}"
    )


def describe_scaling(part: PhysicsPart) -> str:
    """What B0 is where the cell is not cubic, for the sentence on what was done; empty where it is.

    That of equal strains is Voigt's average, that under hydrostatic pressure Reuss's (Hill, Proc. Phys. Soc. A 65, 349
    (1952)), which is smaller where the shape changes under pressure.
    """
    words = {
        True: "",
        False: "and this cell is not cubic: B0 is that of equal strains",
        None: "so that in a cell that is not cubic, B0 is that of equal strains",
    }[_is_cubic(part)]
    if not words:
        return ""
    return (
        f"; the cell is scaled without a change of its shape, {words} in all directions, as a rule above that under "
        "hydrostatic pressure"
    )


def _is_cubic(part: PhysicsPart) -> bool | None:
    """By the space group of the teacher's relaxed cell, else by its elastic constants; None where neither is known."""
    if part.symmetry is not None and "teacher" in part.symmetry:
        return _read_number(part.symmetry["teacher"][0]) >= FIRST_CUBIC
    return next((item.cubic for item in part.items if isinstance(item, ElasticItem)), None)


def list_symmetries(part: PhysicsPart) -> str:
    """Space groups of the relaxed cells at both tolerances, and of the crystal before; empty where none is known."""
    if not part.symmetry:
        return ""
    sides = "; ".join(
        f"{role} {tight} within {WITHIN[0]:g} and {WITHIN[1]:g} Å"
        if tight == loose
        else f"{role} {tight} within {WITHIN[0]:g} Å, {loose} within {WITHIN[1]:g} Å"
        for role, (tight, loose) in part.symmetry.items()
    )
    before = "not in this record"
    if part.given_symmetry is not None:
        group, tolerance = part.given_symmetry
        before = f"{group} within {tolerance:g} Å"
    return f"Space groups (spglib) of the relaxed cells: {sides}; of the crystal before: {before}"


def _describe_lost(part: PhysicsPart) -> list[str]:
    """Which sides have relaxed to a lower symmetry than they nearly have, or than the crystal had before."""
    by_words: dict[str, list[str]] = {}
    for role, (tight, loose) in (part.symmetry or {}).items():
        if tight != loose:
            words = f"{tight}, {loose} only within {WITHIN[1]:g} Å"
        elif part.given_symmetry is not None and _count_operations(tight) < _count_operations(
            part.given_symmetry[0]
        ):
            group, tolerance = part.given_symmetry
            words = f"{tight}, {group} within {tolerance:g} Å before"
        else:
            continue
        by_words.setdefault(words, []).append(f"the {role}")
    return [
        f"relaxed by {join_words(roles)} it has space group {words}: symmetry was lost, properties at rest are "
        "those of a distorted crystal"
        for words, roles in by_words.items()
    ]


def _read_number(group: str) -> int:
    """That of a space group as spglib writes it, ``P4_2/mnm (136)``; 0 where it has none."""
    found = re.search(r"\((\d+)\)$", group)
    return int(found[1]) if found else 0


def _count_operations(group: str) -> int:
    """Order of the point group of a space group; 0 where it has no number."""
    number = _read_number(group)
    return next((order for last, order in POINT_GROUPS if 0 < number <= last), 0)


def _describe_axes(item: ElasticItem) -> str:
    """That no two elastic constants agree that would with an axis of higher order along one of the cell's."""
    matrix = np.array(item.teacher)
    diagonal = np.diag(matrix)[:3]
    gaps = [abs(diagonal[a] - diagonal[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    if min(gaps) <= SAME_CONSTANT * np.abs(diagonal).max():
        return ""
    shown = ", ".join(f"{value:.0f}" for value in diagonal)
    return f"no two of the teacher's C11, C22, C33 agree there ({shown} GPa), as they would with a fourfold axis"


def join_words(words: Iterable[str]) -> str:
    """``a and b and c``."""
    return " and ".join(words)
