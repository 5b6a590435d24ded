"""Plots of where a student can be trusted: beyond its training range, and by its own uncertainty.

Here: the panel of comparisons, calibration of uncertainties. Not here: parity (:mod:`fastff.report.figures`, which also
holds the style), speed (:mod:`fastff.report.speed_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastff.report.calibration import CalibrationData
from fastff.report.figures import (
    GREY,
    INK,
    OTHERS,
    STUDENT,
    TEACHER,
    Drawing,
    label_decades,
    styled,
)
from fastff.report.noise import NoiseFloor
from fastff.report.schema import BaselinePart, Comparison
from fastff.report.verdict import format_percent


@styled
def draw_panel(
    comparisons: Sequence[Comparison],
    baselines: Sequence[BaselinePart],
    noise: NoiseFloor | None,
    required: float | None,
) -> str:
    """Accuracy on every set of frames: of forces, and the lowest of all quantities, beside the teacher's own floor."""
    drawing = Drawing("panel", "Accuracy inside and outside the training range")
    axes = drawing.axes
    sides = [("student", STUDENT, {c.name: c.accuracy for c in comparisons})]
    sides += [
        (b.name, OTHERS[k % len(OTHERS)], {c.name: c.accuracy for c in b.comparisons})
        for k, b in enumerate(b for b in baselines if b.comparisons)
    ]
    lowest: list[tuple[float, float]] = []
    height = 0.8 / len(sides)
    for row, comparison in enumerate(comparisons):
        for k, (label, color, values) in enumerate(sides):
            accuracy = values.get(comparison.name)
            if accuracy is None:
                continue
            value = accuracy["force"]
            place = row + (k - 0.5 * (len(sides) - 1)) * height
            shown = max(100.0 * value, 0.0)
            axes.barh(place, shown, 0.9 * height, color=color, label=label if row == 0 else None)
            words, end = format_percent(value), shown
            # where that of the forces is the lowest, the bar says it
            if accuracy["overall"] < value - 5e-4:
                least = max(100.0 * accuracy["overall"], 0.0)
                lowest.append((least, place))
                words += f", {accuracy['limiting']} {format_percent(accuracy['overall'])}"
                end = max(shown, least)
            inside = (
                shown > 60.0
            )  # the words stand at the start of the bar, far from marks, or behind it
            axes.annotate(
                words, (0.0 if inside else end, place), xytext=(4, 0), textcoords="offset points", ha="left",
                va="center", fontsize=7, color="white" if inside else INK,
            )  # fmt: skip
    if lowest:
        axes.plot(
            *zip(*lowest, strict=True), "D", color="#ffd166", mec=INK, mew=0.5, ms=4.5,
            label="lowest of force, energy, stress",
        )  # fmt: skip
    if noise is not None:
        axes.axvline(
            100.0 * (1.0 - noise.force), color=TEACHER, lw=1.0, ls=":", label="noise floor"
        )
    if required is not None:
        axes.axvline(100.0 * required, color=GREY, lw=1.0, ls="--", label="required")
    names = [c.name.replace("the highest temperature", "T max") for c in comparisons]
    axes.set_yticks(range(len(names)), [n.replace(", ", ",\n") for n in names])
    axes.set_ylim(max(len(names) - 0.4, 1.2), -0.6)
    axes.set_xlim(0.0, 100.5)
    axes.set_xlabel("force accuracy (bars), lowest (marks), %")
    axes.grid(visible=False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    drawing.figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=7)
    return drawing.render()


@styled
def draw_calibration(data: CalibrationData) -> str:
    """Error of the energy against its predicted standard deviation, frame by frame."""
    drawing = Drawing("calibration", "Energy error against predicted uncertainty")
    axes = drawing.axes
    rows = np.array(data.energy)
    for number, name in enumerate(data.names):
        chosen = rows[rows[:, 0] == number]
        color = STUDENT if number == 0 else OTHERS[(number - 1) % len(OTHERS)]
        axes.plot(
            1e3 * chosen[:, 1], 1e3 * np.abs(chosen[:, 2]), "o", ms=3, mew=0, alpha=0.6, color=color,
            label=name.split(",")[0].replace("the highest temperature", "T max"),
        )  # fmt: skip
    reach = 1e3 * np.array([rows[:, 1].min() * 0.7, rows[:, 1].max() * 1.4])
    axes.plot(reach, reach, "-", color=INK, lw=0.8)
    axes.plot(reach, 2.0 * reach, "--", color=INK, lw=0.6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    label_decades(axes.xaxis)
    label_decades(axes.yaxis)
    axes.set_xlabel("predicted standard deviation (meV/atom)")
    axes.set_ylabel("|energy error| (meV/atom)")
    axes.legend(loc="best", fontsize=7)
    return drawing.render()


@styled
def draw_grades(data: CalibrationData) -> str:
    """Force error against the extrapolation grade."""
    drawing = Drawing("grades", "Force error against extrapolation grade")
    axes = drawing.axes
    axes.plot(
        [b.grade for b in data.grades],
        [b.force_rmse for b in data.grades],
        "o-",
        color=STUDENT,
        ms=3.5,
    )
    axes.axvline(1.0, color=TEACHER, lw=0.9, ls=":")
    axes.set_xlim(left=0.0)
    before = 0.5 * axes.get_xlim()[1] < 1.0  # on the side of the line where there is room
    axes.annotate(
        "edge of training data",
        (1.0, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if before else 3, 0),
        textcoords="offset points",
        ha="right" if before else "left",
        color=TEACHER,
        fontsize=7.5,
    )
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("extrapolation grade of the atom")
    axes.set_ylabel("RMS force error (eV/Å)")
    return drawing.render()  # fmt: skip
