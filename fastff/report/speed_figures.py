"""The plots of speed and memory against the number of atoms.

Here: one log-log plot of the time of both sides in every mode they have, one of memory. Not here: the style
(:mod:`fastff.report.figures`), what a timing is (:mod:`fastff.report.speed`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from fastff.report.figures import GREY, OTHERS, ROLE_COLORS, Drawing, styled
from fastff.report.speed import Mode, SpeedCurve
from fastff.report.tables import PATHS

LONGEST_NAME, LONGEST_LINE = 22, 48
"""Characters that half of the width and the whole of it hold beside a legend's mark."""

MARKS: dict[Mode, str] = {
    "model": "o:",
    "model-list": "s:",
    "ase-call": "^-",
    "ase-md": "v--",
    "md-loop": "D--",
    "program": "*--",
}
"""Marker and line of each mode: dotted without ASE, solid for calls, dashed for dynamics."""


def scale_sizes(axes: Any, curves: Sequence[SpeedCurve]) -> None:
    """Logarithmic axis of numbers of atoms; each size has its label while there is room for it."""
    axes.set_xscale("log")
    sizes = sorted({point.n_atoms for curve in curves for point in curve.points})
    if 0 < len(sizes) <= 5 and all(b >= 1.4 * a for a, b in pairwise(sizes)):
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())


def select_curves(curves: Sequence[SpeedCurve]) -> list[SpeedCurve]:
    """What one plot can hold: student and teacher in every mode, baselines through ASE or as the program they are."""
    return [
        curve
        for curve in curves
        if (curve.role in ROLE_COLORS or curve.mode in ("ase-call", "program"))
        and any(p.median is not None for p in curve.points)
    ]


@styled
def draw_speed(curves: Sequence[SpeedCurve]) -> str:
    """Time of a call or step against the number of atoms, in every mode; crosses where an ASE call was not measured."""
    shown = select_curves(curves)
    colors = choose_colors(curves)
    labels = {curve.role: curve.label for curve in shown}
    modes = [mode for mode in MARKS if any(curve.mode == mode for curve in shown)]
    entries = [Line2D([], [], color=colors[role], lw=3.0) for role in labels]
    names = [wrap_name(label) for label in labels.values()]
    marks = [_make_mark(mode) for mode in modes]
    words = [PATHS[mode] for mode in modes]
    columns = count_columns(names)
    if len(entries) % columns:  # sides above modes
        entries, names = [*entries, Line2D([], [], lw=0.0)], [*names, ""]
    half = len(entries) // columns, -(-len(modes) // columns)
    rows = sum(half) + sum(name.count("\n") for name in names)
    drawing = Drawing("speed", "Time per call or step against number of atoms", 3.0 + 0.17 * rows)
    axes = drawing.axes
    for curve in shown:
        points = [p for p in curve.points if p.median is not None]
        sizes = [p.n_atoms for p in points]
        times = np.array([[p.median, p.q10, p.q90] for p in points], dtype=float) * 1e3
        color = colors[curve.role]
        axes.plot(sizes, times[:, 0], MARKS[curve.mode], ms=3.5, lw=1.1, color=color)
        axes.fill_between(sizes, times[:, 1], times[:, 2], color=color, alpha=0.2, lw=0)
    scale_sizes(axes, shown)
    axes.set_yscale("log")
    _mark_missing(axes, [curve for curve in curves if curve.mode == "ase-call"])
    axes.set_xlabel("atoms")
    axes.set_ylabel("time (ms)")
    drawing.figure.legend(
        [*entries[: half[0]], *marks[: half[1]], *entries[half[0] :], *marks[half[1] :]],
        [*names[: half[0]], *words[: half[1]], *names[half[0] :], *words[half[1] :]],
        loc="outside lower center", ncols=columns,
    )  # fmt: skip
    return drawing.render()


def wrap_name(name: str) -> str:
    """A name of a calculator on as many lines as it takes in a legend of one column."""
    return "\n".join(textwrap.wrap(name, LONGEST_LINE)) or name


def count_columns(names: Sequence[str]) -> int:
    """Two columns in the legend unless a name is too long for half of the width."""
    return 1 if any(len(name) > LONGEST_NAME for name in names) else 2


def _make_mark(mode: Mode) -> Line2D:
    """Legend entry of a mode, in no side's colour."""
    marker, line = MARKS[mode][0], MARKS[mode][1:]
    return Line2D([], [], marker=marker, ls=line, ms=3.5, lw=1.1, color=GREY)


@styled
def draw_memory(curves: Sequence[SpeedCurve]) -> str:
    """Peak memory of one ASE call against the number of atoms."""
    shown = [curve for curve in curves if any(p.peak_memory for p in curve.points)]
    names = [wrap_name(curve.label) for curve in shown]
    columns = count_columns(names)
    rows = -(-len(names) // columns) + sum(name.count("\n") for name in names)
    drawing = Drawing("memory", "Peak memory against number of atoms", 3.0 + 0.17 * rows)
    axes = drawing.axes
    for curve, name in zip(shown, names, strict=True):
        pairs = [(p.n_atoms, p.peak_memory / 2**20) for p in curve.points if p.peak_memory]
        sizes, values = zip(*pairs, strict=True)
        color = choose_colors(curves)[curve.role]
        axes.plot(sizes, values, "s-", ms=3.2, lw=1.3, color=color, label=name)
    scale_sizes(axes, curves)
    axes.set_yscale("log")
    _mark_missing(axes, curves)
    axes.set_xlabel("atoms")
    axes.set_ylabel("peak memory (MiB)")
    drawing.figure.legend(loc="outside lower center", ncols=columns)
    return drawing.render()


def choose_colors(curves: Sequence[SpeedCurve]) -> dict[str, str]:
    """A colour for each role: student, teacher, baselines in their order."""
    roles = dict.fromkeys(curve.role for curve in curves)
    others = [role for role in roles if role not in ROLE_COLORS]
    return ROLE_COLORS | {role: OTHERS[k % len(OTHERS)] for k, role in enumerate(others)}


def _mark_missing(axes: Any, curves: Sequence[SpeedCurve]) -> None:
    """A cross at the top, with a word, where a calculator first ran out of memory or time; all sizes in view."""
    words = {
        "out-of-memory": "out of memory",
        "too-large": "too large",
        "too-slow": "over budget",
    }
    sizes = [p.n_atoms for curve in curves for p in curve.points]
    axes.set_xlim(0.7 * min(sizes), 1.6 * max(sizes))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.22)
    level = 0.96
    for curve in curves:
        reached = max((p.n_atoms for p in curve.points if p.status == "measured"), default=0)
        beyond = [p for p in curve.points if p.status in words and p.n_atoms > reached]
        if not beyond:
            continue
        spot = (beyond[0].n_atoms, level)
        color = choose_colors(curves)[curve.role]
        left = beyond[0].n_atoms ** 2 < min(sizes) * max(sizes)
        axes.annotate(
            "×", spot, xycoords=("data", "axes fraction"), ha="center", va="center", color=color,
            fontsize=12,
        )  # fmt: skip
        axes.annotate(
            words[beyond[0].status], spot, xycoords=("data", "axes fraction"),
            xytext=(6 if left else -6, 0), textcoords="offset points",
            ha="left" if left else "right", va="center", color=color, fontsize=7.5,
        )  # fmt: skip
        level -= 0.08
