"""Plots of physical properties: the student's curve over the teacher's.

Here: one function per kind of property, each from its item of a record, and :func:`draw_item`. Not here: accuracy and
speed (:mod:`fastff.report.figures`), which also holds the style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastff.report.figures import HEIGHT, INK, STUDENT, TEACHER, Drawing, styled
from fastff.report.physics.present import describe_item
from fastff.report.physics.record import (
    AnyItem,
    DiffusionItem,
    DimerItem,
    EosItem,
    NveItem,
    PhononItem,
    RdfCurve,
    RdfItem,
)

MOST_PAIRS = 6

CUT = 5.0
"""Times all later peaks that the first of g(r) may be as high; it is cut where it is higher, as that of a bond is."""

BEYOND = 0.5
"""Å behind the place of the highest peak from which on others are later ones."""


def draw_item(item: AnyItem) -> list[tuple[str, str]]:
    """SVG and caption of every figure of an item; none for those that are numbers alone."""
    if isinstance(item, EosItem):
        return [(draw_eos(item), f"{item.title}. {describe_item(item)}.")]
    if isinstance(item, PhononItem):
        return [(draw_phonons(item), f"{item.title}. {describe_item(item)}.")]
    if isinstance(item, DimerItem):
        return [(draw_dimers(item), f"{item.title}. {describe_item(item)}.")]
    if isinstance(item, RdfItem):
        return [
            (
                draw_rdf(item),
                f"{item.title}. {describe_item(item)}; bands are two standard errors{_list_cuts(item)}.",
            )
        ]
    if isinstance(item, DiffusionItem):
        return [(draw_diffusion(item), f"{item.title}. {describe_item(item)}.")]
    if isinstance(item, NveItem):
        return [(draw_nve(item), f"{item.title}. {describe_item(item)}.")]
    return []


@styled
def draw_eos(item: EosItem) -> str:
    """Energy per atom against volume."""
    drawing = Drawing("physics-eos", "Energy against volume, student and teacher")
    axes = drawing.axes
    axes.plot(
        item.volumes, 1e3 * np.array(item.teacher), "o-", color=TEACHER, ms=3.5, label="teacher"
    )
    axes.plot(
        item.volumes, 1e3 * np.array(item.student), "s--", color=STUDENT, ms=3, label="student"
    )
    axes.set_xlabel("volume (Å³/atom)")
    axes.set_ylabel("energy less lowest (meV/atom)")
    axes.legend(loc="upper center")
    return drawing.render()  # fmt: skip


@styled
def draw_phonons(item: PhononItem) -> str:
    """Bands along the path."""
    drawing = Drawing("physics-phonons", "Phonon bands, student and teacher")
    axes = drawing.axes
    for values, color, style, label in (
        (item.teacher, TEACHER, "-", "teacher"),
        (item.student, STUDENT, "--", "student"),
    ):
        lines = axes.plot(*split_path(item.path, values), style, color=color, lw=1.0)
        lines[0].set_label(label)
    for place, _ in item.marks:
        axes.axvline(place, color="#c9ced5", lw=0.6, zorder=0.5)
    ticks = merge_marks(item.marks)
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.axhline(0.0, color=INK, lw=0.6)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylabel("frequency (THz)")
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, 1.13), ncols=2)
    return drawing.render()


def split_path(
    path: Sequence[float], values: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Path and bands with a gap where the path breaks off and goes on elsewhere: two points at the same place."""
    x, bands = np.array(path), np.array(values)
    breaks = np.flatnonzero(np.diff(x) < 1e-9) + 1
    return np.insert(x, breaks, np.nan), np.insert(bands, breaks, np.nan, axis=0)


def merge_marks(marks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Places that have room for a label; names at the same place share one."""
    places: list[tuple[float, str]] = []
    for place, name in marks:
        if places and abs(place - places[-1][0]) < 1e-6:
            places[-1] = (place, f"{places[-1][1]}|{name}")
        else:
            places.append((place, name))
    shown: list[tuple[float, str]] = []
    for place, name in places:
        if not shown or place - shown[-1][0] > 0.035:
            shown.append((place, name))
    return shown


@styled
def draw_dimers(item: DimerItem) -> str:
    """Energy against distance; what is above 10 eV is cut."""
    drawing = Drawing("physics-dimers", "Energy of isolated pairs, student and teacher")
    axes = drawing.axes
    shown = item.curves[:MOST_PAIRS]
    lowest = min(min(*c.teacher, *c.student) for c in shown)
    colors = _list_colors(len(shown))
    for curve, color in zip(shown, colors, strict=True):
        other = TEACHER if len(shown) == 1 else color
        axes.plot(
            curve.distances, curve.teacher, "-", color=other, lw=1.3, label=f"{curve.pair} teacher"
        )
        axes.plot(
            curve.distances, curve.student, "--", color=color, lw=1.3, label=f"{curve.pair} student"
        )
    axes.set_ylim(1.2 * min(lowest, -1.0), 10.0)
    axes.set_xlabel("distance (Å)")
    axes.set_ylabel("energy (eV)")
    axes.legend(loc="upper right", ncols=1 + (len(shown) > 2), fontsize=6.5)
    return drawing.render()  # fmt: skip


def _list_colors(count: int) -> list[Any]:
    import matplotlib

    if count == 1:
        return [STUDENT]
    return [matplotlib.colormaps["tab10"](k) for k in range(count)]


@styled
def draw_rdf(item: RdfItem) -> str:
    """g(r) of every pair, one above the other, each on a scale of its own; peaks of bonds are cut."""
    shown = item.curves[:MOST_PAIRS]
    height = HEIGHT if len(shown) == 1 else 1.0 + 0.95 * len(shown)
    drawing = Drawing("physics-rdf", "Pair distributions, student and teacher", height)
    rows = [drawing.axes]
    if len(shown) > 1:
        drawing.axes.remove()
        grid = drawing.figure.add_gridspec(len(shown), 1)
        rows = [drawing.figure.add_subplot(grid[k]) for k in range(len(shown))]
        drawing.axes = rows[0]
    for axes, curve in zip(rows, shown, strict=True):
        r = np.array(curve.radii)
        for values, error, color, style, label in (
            (curve.teacher, curve.teacher_error, TEACHER, "-", "teacher"),
            (curve.student, curve.student_error, STUDENT, "--", "student"),
        ):
            if values is None:
                continue
            g, width = np.array(values), 2.0 * np.array(error)
            axes.fill_between(r, g - width, g + width, color=color, alpha=0.2, lw=0)
            axes.plot(r, g, style, color=color, lw=1.1, label=label)
        axes.annotate(
            curve.pair, (0.02, 0.9), xycoords="axes fraction", ha="left", va="top", fontsize=7.5
        )
        axes.set_xlim(0.0, max(curve.radii[-1] for curve in shown))
        axes.set_ylim(0.0, find_top(curve))
        axes.set_ylabel("g(r)")
        axes.tick_params(labelbottom=axes is rows[-1])
    rows[-1].set_xlabel("distance (Å)")
    drawing.figure.align_ylabels(rows)
    drawing.figure.legend(*rows[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return drawing.render()


def find_top(curve: RdfCurve) -> float | None:
    """Where the axis of g(r) ends: above all later peaks, if the highest is more than :data:`CUT` times as high."""
    curves = [np.array(values) for values in (curve.teacher, curve.student) if values is not None]
    g, r = np.max(curves, axis=0), np.array(curve.radii)
    later = g[r > r[np.argmax(g)] + BEYOND]
    if not len(later) or g.max() <= CUT * later.max() or later.max() < 1.0:
        return None
    return float(1.4 * later.max())


def _list_cuts(item: RdfItem) -> str:
    """``; peaks above the axis: H-O, 25.1 (teacher) and 26.0 (student)``."""
    cuts = []
    for curve in item.curves[:MOST_PAIRS]:
        if find_top(curve) is not None:
            heights = {
                role: f"{max(values):.1f}"
                for role, values in (("teacher", curve.teacher), ("student", curve.student))
                if values is not None
            }
            reached = " and ".join(f"{height} ({role})" for role, height in heights.items())
            cuts.append(f"{curve.pair}, {reached}")
    return f"; peaks above the axis: {'; '.join(cuts)}" if cuts else ""


@styled
def draw_diffusion(item: DiffusionItem) -> str:
    """Mean square displacement against time."""
    drawing = Drawing("physics-diffusion", "Mean square displacement, student and teacher")
    axes = drawing.axes
    for curve, color in zip(item.curves, _list_colors(len(item.curves)), strict=True):
        if curve.teacher is not None:
            axes.plot(
                curve.times, curve.teacher, "-", color=color, label=f"{curve.element} teacher"
            )
        axes.plot(curve.times, curve.student, "--", color=color, label=f"{curve.element} student")
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("mean square displacement (Å²)")
    axes.legend(loc="upper left")
    return drawing.render()


@styled
def draw_nve(item: NveItem) -> str:
    """Total energy against time."""
    drawing = Drawing("physics-nve", "Total energy at constant energy, student and teacher")
    axes = drawing.axes
    axes.plot(
        item.student.times, item.student.energies, "-", color=STUDENT, lw=0.9, label="student"
    )
    if item.teacher is not None:
        axes.plot(
            item.teacher.times, item.teacher.energies, "-", color=TEACHER, lw=0.9, label="teacher"
        )
    axes.set_xlabel("time (ps)")
    axes.set_ylabel("energy less start (meV/atom)")
    axes.legend(loc="best")
    return drawing.render()  # fmt: skip
