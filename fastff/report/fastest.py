"""A teacher at its best: the fastest of the settings that it has on this machine.

Here: :func:`choose_fastest`, which tries them, and :func:`describe_settings`, which says in words what was timed. Not
here: the settings themselves (:meth:`fastff.teachers.base.Teacher.list_settings`), the race
(:mod:`fastff.report.race`).

A setting may change how long a call takes and nothing else: each must give the labels that were compared, or it is left
out and said to be. What is fastest for few atoms need not be for many: settings are tried at two sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import ase

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report.baselines import identify
from fastff.report.ending import NEVER, Watch
from fastff.report.plausibility import check_identity
from fastff.report.timing import Timed, TimingPlan, time_calculators
from fastff.report.verdict import format_seconds

if TYPE_CHECKING:
    from fastff.teachers.base import Setting, Teacher

TRIAL = TimingPlan(min_repeats=3, max_repeats=5)
"""Repeats of a trial; its first calls, which may compile, are not counted."""

SAME = 1e-3
"""Largest RMS difference of forces, relative to their RMS, between a setting and the labels that were compared."""


APART = 4.0
"""How many times larger than the first size of trial the second one must be."""


@dataclass(frozen=True)
class Fastest:
    """The teacher with the fastest of its settings for few atoms and for many; both have the same identity.

    ``limit`` is the number of atoms from which ``large`` is taken, ``between`` what won at sizes where both were tried
    because they had won on either side.
    """

    small: Timed
    large: Timed
    limit: float
    between: Mapping[int, Timed] = field(default_factory=dict)

    def split(self, cells: Sequence[ase.Atoms]) -> list[tuple[Timed, list[ase.Atoms]]]:
        """Structures with what they are to be timed with, in their order."""

        def pick(cell: ase.Atoms) -> Timed:
            rest = self.small if len(cell) < self.limit else self.large
            return self.between.get(len(cell), rest)

        parts = [list(part) for _, part in groupby(cells, key=lambda cell: id(pick(cell)))]
        return [(pick(part[0]), part) for part in parts]


def choose_fastest(
    teacher: Teacher,
    image: ase.Atoms,
    labels: Labels,
    atoms: ase.Atoms,
    *,
    device: str,
    budget: float,
    larger: Sequence[ase.Atoms] = (),
    progress: Callable[[str], None] = lambda message: None,
    watch: Watch = NEVER,
) -> Fastest:
    """The teacher with the fastest of its settings, to be timed.

    Parameters
    ----------
    teacher : Teacher
    image : ase.Atoms
        A frame as the teacher's calculator must be given it.
    labels : Labels
        What the teacher said of it; every setting must say so too.
    atoms : ase.Atoms
        What settings are compared on, if there is more than one.
    device : str
    budget : float
        Seconds of trial for each setting, compiling not included.
    larger : sequence of ase.Atoms
        Structures for a second trial: the largest that is :data:`APART` times ``atoms`` and that there is time for.
    progress : callable
        Receives one short line per setting.
    watch : Watch
        Asked before every setting.

    Returns
    -------
    Fastest
        Its identity holds ``name`` and ``version`` of the teacher, ``settings`` that were chosen, ``tried`` with the
        time or fault of each and how far its forces are from the labels, and ``unavailable``; after a second trial
        also ``settings_large``, ``tried_large`` and ``large_from``, and ``tried_between``, a trial of both winners for
        each size in between, where they differ.

    Raises
    ------
    DataError
        The teacher's own calculator does not give the teacher's labels.
    """
    settings, missing = teacher.list_settings()
    identity = identify(teacher)
    entry = Timed(
        "teacher", teacher.name, settings[0].make, identity, device, own_process=teacher.own_process
    )

    def relabel(atoms: ase.Atoms) -> Labels:
        return teacher.label([atoms])[0]

    def report(message: str) -> None:
        watch.check()
        progress(message)

    check_identity(entry.factory(), image, labels, "teacher", relabel=relabel)
    best = settings[0]
    tried: list[dict[str, Any]] = []
    if len(settings) > 1:
        best, tried = _try_all(settings, entry, image, labels, relabel, atoms, budget, report)
    identity |= {"settings": best.values, "tried": tried, "unavailable": missing}
    sound = [s for s, one in zip(settings, tried, strict=True) if one["seconds"]] if tried else []
    only = replace(entry, factory=best.make, identity=identity)
    if len(sound) < 2:
        return Fastest(only, only, math.inf)
    for second in _list_seconds(atoms, larger, tried, budget):
        other, tried = _try_all(sound, entry, image, labels, relabel, second, budget, report)
        done = [one["status"] for one in tried]
        if "measured" in done and set(done) <= {"measured", "too-slow"}:
            break
    else:
        return Fastest(only, only, math.inf)
    limit = math.ceil(math.sqrt(len(atoms) * len(second)))
    identity |= {"settings_large": other.values, "tried_large": tried, "large_from": limit}
    small, large = (replace(entry, factory=s.make, identity=identity) for s in (best, other))
    if other is best:
        return Fastest(small, small, limit)
    between: dict[int, Timed] = {}
    identity["tried_between"] = trials = []
    for cell in larger:
        if len(atoms) < len(cell) < len(second) and len(cell) not in between:
            won, tried = _try_all(
                [best, other], entry, image, labels, relabel, cell, budget, report
            )
            between[len(cell)] = small if won is best else large
            trials.append(tried)
    return Fastest(small, large, limit, between)


def _list_seconds(
    atoms: ase.Atoms, larger: Sequence[ase.Atoms], tried: list[dict[str, Any]], budget: float
) -> list[ase.Atoms]:
    """Structures for a second trial that there is time for, the largest first.

    One at which any setting fails, as it may for want of memory, is no comparison: the next smaller one follows.
    """
    shortest = min(one["seconds"] for one in tried if one["seconds"])
    fitting = [
        cell
        for cell in larger
        if len(cell) >= APART * len(atoms)
        and shortest * len(cell) / len(atoms) * TRIAL.min_repeats <= budget
    ]
    return sorted(fitting, key=len, reverse=True)


def _try_all(
    settings: list[Setting],
    entry: Timed,
    image: ase.Atoms,
    labels: Labels,
    relabel: Callable[[ase.Atoms], Labels],
    atoms: ase.Atoms,
    budget: float,
    progress: Callable[[str], None],
) -> tuple[Setting, list[dict[str, Any]]]:
    """The fastest setting, the first one where none could be timed; and what became of each."""
    plan = replace(TRIAL, budget=budget, required=(len(atoms),))
    best, shortest = settings[0], float("inf")
    tried = []
    for setting in settings:
        shown = describe_values(setting.values)
        progress(f"{entry.label}, trying {shown}")
        seconds, reason, difference, status = None, "", None, "failed"
        try:
            tolerance = {} if setting is settings[0] else {"tolerance": SAME}
            difference = check_identity(
                setting.make(), image, labels, "teacher", relabel=relabel, **tolerance
            )
            point = time_calculators([replace(entry, factory=setting.make)], [atoms], plan)[
                0
            ].points[0]
            seconds, reason, status = point.median, point.reason, point.status
        except DataError:
            reason = "does not give the teacher's labels"
        except Exception as error:  # whatever a compiler or an accelerator raises
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0][:160] if lines else 'no message'}"
        tried.append(
            {
                "settings": setting.values,
                "n_atoms": len(atoms),
                "seconds": seconds,
                "reason": reason,
                "status": status,
                "difference": difference,
            }
        )
        if seconds is not None and seconds < shortest:
            best, shortest = setting, seconds
    return best, tried


def describe_values(values: Mapping[str, Any]) -> str:
    """``{"dtype": "float32", "compile": True}`` as ``dtype float32, compile on``."""
    words = {True: "on", False: "off"}
    return ", ".join(
        f"{name} {words[value] if isinstance(value, bool) else value}"
        for name, value in values.items()
    )


def _describe_difference(one: Mapping[str, Any]) -> str:
    difference = one.get("difference")
    return "" if difference is None else f", forces within {difference:.1e} of their RMS"


def _describe_trial(tried: Sequence[Mapping[str, Any]]) -> str:
    count, n_atoms = len(tried), tried[0]["n_atoms"]
    results = "; ".join(
        f"{describe_values(one['settings'])}: "
        f"{one['reason'] if one['seconds'] is None else format_seconds(one['seconds'])}"
        f"{_describe_difference(one)}"
        for one in tried
    )
    found = any(one["seconds"] is not None for one in tried)
    rank = f"the fastest of {count}" if found else f"none of {count}"
    rest = "settings" if found else "settings could be tried"
    calls = f"medians of {TRIAL.min_repeats} to {TRIAL.max_repeats} ASE calls"
    return f"{rank} {rest}, {calls} at {n_atoms:,} atoms each ({results})"


def find_only_trial(identity: Mapping[str, Any]) -> int | None:
    """Atoms of the one size at which settings were compared, None where there was no choice or a second size."""
    tried = identity.get("tried", ())
    if len(tried) < 2 or "settings_large" in identity:
        return None
    return int(tried[0]["n_atoms"])


def find_untried_span(identity: Mapping[str, Any]) -> tuple[int, int] | None:
    """Atoms of the two sizes at which settings were compared, where different ones won and none was tried in between.

    Records of before 27 November 2026 hold no trials in between.
    """
    if "settings_large" not in identity or "tried_between" in identity:
        return None
    if identity["settings_large"] == identity["settings"]:
        return None
    return int(identity["tried"][0]["n_atoms"]), int(identity["tried_large"][0]["n_atoms"])


def describe_settings(identity: Mapping[str, Any]) -> str:
    """In whole sentences: how the teacher was set up when it was timed, what else was tried, what was not there."""
    if "settings" not in identity:
        return "The teacher was timed as its package sets it up by default; faster settings were not looked for."
    shown = describe_values(identity["settings"])
    if not shown:
        sentences = [
            "The teacher was timed with its own calculator, which leaves no choice of settings."
        ]
    elif len(identity["tried"]) < 2:
        sentences = [
            f"The teacher was timed with {shown}: there is no other setting on this machine."
        ]
    else:
        sentences = [f"The teacher was timed with {shown}: {_describe_trial(identity['tried'])}."]
        if "settings_large" in identity:
            sentences.append(
                f"From {identity['large_from']:,} atoms on with {describe_values(identity['settings_large'])}: "
                f"{_describe_trial(identity['tried_large'])}."
            )
            for tried in identity.get("tried_between", ()):
                timed = [one for one in tried if one["seconds"] is not None]
                won = min(timed, key=lambda one: one["seconds"], default=tried[0])
                sentences.append(
                    f"At {won['n_atoms']:,} atoms with {describe_values(won['settings'])}: {_describe_trial(tried)}."
                )
        else:
            sentences.append(
                "Settings were chosen at this one size, that of the headline; at other sizes another may be faster."
            )
    if identity["unavailable"]:
        sentences.append(f"Not available on this machine: {'; '.join(identity['unavailable'])}.")
    return " ".join(sentences)
