"""The plots of a bench report as inline SVG.

Here: one function per figure of accuracy and data, each from data of a record, and the style of all figures. Not here:
what the data mean (:mod:`fastff.report.plotdata`), speed and memory (:mod:`fastff.report.speed_figures`), the page
around them (:mod:`fastff.report.html`). Figures are 88 mm wide, so that their
text is readable on a phone without zooming.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from fastff.report.noise import NoiseFloor
from fastff.report.plotdata import CoverageData, Density, ForceBin
from fastff.units import EV_PER_A3_TO_GPA

_P = ParamSpec("_P")
WIDTH, HEIGHT = 3.5, 2.9
"""Inches."""
STUDENT, TEACHER, GREY, INK = "#0b6e8a", "#b4532a", "#8a8f98", "#1d2530"
ROLE_COLORS = {"student": STUDENT, "teacher": TEACHER}
OTHERS = ("#6a8f3c", "#7b5ea7", "#b08900", "#4b5a9b")
"""Colours of baselines, in their order."""
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.edgecolor": "#5b6470",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": "#5b6470",
    "ytick.color": "#5b6470",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.fonttype": "path",
}

FARTHEST_FLOOR = 10.0
"""Times by which a noise floor may be below all errors and still be a line in their plot."""


def styled(draw: Callable[_P, str]) -> Callable[_P, str]:
    """Draw in the report's style, whatever the user's matplotlib settings are."""

    @wraps(draw)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> str:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return wrapper


def label_decades(axis: Any) -> None:
    """Plain numbers on a logarithmic axis of less than two powers of ten, as ``0.2`` and not ``2 × 10^-1``."""
    low, high = axis.get_view_interval()
    axis.set_minor_formatter(NullFormatter())
    if high < 100.0 * low:
        narrow = high < 10.0 * low
        axis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")


class Drawing:
    """One figure in the report's style, to be drawn on and turned into SVG.

    Parameters
    ----------
    name : str
        Unique on the page; keeps identifiers inside the SVG apart from those of other figures.
    title : str
        What a screen reader says.
    height : float
        Inches.
    """

    def __init__(self, name: str, title: str, height: float = HEIGHT) -> None:
        self.name, self.title = name, title
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(self.figure)
        self.axes = self.figure.add_subplot()

    def render(self) -> str:
        """SVG element, without XML declaration, scaling with the page."""
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=200)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}-\1"', text)
        text = re.sub(r"url\(#([^)]+)\)", rf"url(#{self.name}-\1)", text)
        text = re.sub(r'href="#([^"]+)"', rf'href="#{self.name}-\1"', text)
        return text.replace("<svg", f'<svg role="img" aria-label="{self.title}"', 1)


@styled
def draw_force_parity(density: Density) -> str:
    """Force components of the student against the teacher's, coloured by density."""
    drawing = Drawing("parity-force", "Force components, student against teacher")
    axes = drawing.axes
    counts = np.full((density.n_bins, density.n_bins), np.nan)
    for column, row, count in density.cells:
        counts[row, column] = count
    edges = np.linspace(density.low, density.high, density.n_bins + 1)
    top = max(2.0, float(np.nanmax(counts))) if density.cells else 2.0
    mesh = axes.pcolormesh(
        edges, edges, counts, norm=LogNorm(1, top), cmap="viridis", rasterized=True
    )
    _draw_diagonal(axes, density.low, density.high)
    bar = drawing.figure.colorbar(mesh, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("components per cell")
    bar.outline.set_visible(False)
    axes.set_xlabel("teacher force (eV/Å)")
    axes.set_ylabel("student force (eV/Å)")
    return drawing.render()


@styled
def draw_energy_parity(rows: Sequence[tuple[int, float, float]], groups: Sequence[str]) -> str:
    """Energies per atom of the student against the teacher's, one colour for each composition, in meV/atom."""
    drawing = Drawing("parity-energy", "Energies per atom, student against teacher")
    axes = drawing.axes
    points = np.array(rows)
    values = points[:, 1:] * 1e3
    for number, group in enumerate(groups):
        chosen = points[:, 0] == number
        if chosen.any():
            color = matplotlib.colormaps["tab10"](number % 10) if len(groups) > 1 else STUDENT
            axes.plot(
                values[chosen, 0], values[chosen, 1], "o", ms=3.2, alpha=0.65, mew=0, color=color,
                label=group,
            )  # fmt: skip
    _draw_diagonal(axes, *_find_limits(values))
    if 1 < len(groups) <= 8:
        axes.legend(loc="best", handletextpad=0.2)
    axes.set_xlabel("teacher energy less mean (meV/atom)")
    axes.set_ylabel("student energy less mean (meV/atom)")
    return drawing.render()


@styled
def draw_stress_parity(rows: Sequence[tuple[float, float]]) -> str:
    """Stress components of the student against the teacher's, GPa, coloured by local density."""
    drawing = Drawing("parity-stress", "Stress components, student against teacher")
    axes = drawing.axes
    values = np.array(rows) * EV_PER_A3_TO_GPA
    low, high = _find_limits(values)
    counts, edges, _ = np.histogram2d(values[:, 0], values[:, 1], bins=24, range=[[low, high]] * 2)
    place = np.clip(np.digitize(values, edges) - 1, 0, 23)
    density = counts[place[:, 0], place[:, 1]]
    order = np.argsort(density)
    dots = axes.scatter(
        values[order, 0], values[order, 1], c=density[order], s=9, cmap="viridis", linewidths=0,
        norm=LogNorm(1, max(2.0, float(density.max()))),
    )  # fmt: skip
    _draw_diagonal(axes, low, high)
    bar = drawing.figure.colorbar(dots, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label("components nearby")
    bar.outline.set_visible(False)
    axes.set_xlabel("teacher stress (GPa)")
    axes.set_ylabel("student stress (GPa)")
    return drawing.render()


@styled
def draw_force_error(bins: Sequence[ForceBin], noise: NoiseFloor | None, force_rms: float) -> str:
    """Error of the force vector against its size, with the teacher's noise floor."""
    drawing = Drawing("force-error", "Force error against size of the force")
    axes = drawing.axes
    sizes = np.array([b.force_rms for b in bins])
    axes.fill_between(
        sizes, [b.error_median for b in bins], [b.error_q90 for b in bins],
        color=STUDENT, alpha=0.18, lw=0, label="median to 90 %",
    )  # fmt: skip
    axes.plot(sizes, [b.error_median for b in bins], "-", color=STUDENT, lw=1.4, label="median")
    axes.plot(
        sizes, [b.error_rms for b in bins], "o--", color=INK, ms=2.5, lw=0.8, label="RMS of the bin"
    )
    axes.set_yscale("log")
    if noise is not None:
        floor = noise.force * force_rms * np.sqrt(3.0)
        values = [v for b in bins for v in (b.error_median, b.error_q90, b.error_rms) if v > 0.0]
        lowest = min(values, default=0.0)
        words, place, below = (
            "teacher's noise floor",
            (0.98, floor),
            floor < lowest / FARTHEST_FLOOR,
        )
        if below:  # a line there would press the data into a corner
            axes.set_ylim(0.4 * lowest, 2.0 * max(values))
            words, place = f"{words}: {floor:.1g} eV/Å, below the axis", (0.98, 0.03)
        else:
            axes.axhline(floor, color=TEACHER, lw=1.0, ls=":")
        axes.annotate(
            words, place, xycoords=("axes fraction", "axes fraction" if below else "data"),
            ha="right", va="bottom", color=TEACHER, fontsize=7.5,
        )  # fmt: skip
    label_decades(axes.yaxis)
    axes.set_xlabel("|F| of the teacher (eV/Å)")
    axes.set_ylabel("|ΔF| (eV/Å)")
    axes.legend(loc="best")
    return drawing.render()


@styled
def draw_learning_curve(curve: Sequence[dict[str, Any]]) -> str:
    """Validation accuracy while training."""
    drawing = Drawing("learning-curve", "Validation accuracy against training step")
    axes = drawing.axes
    for key, color, label in (
        ("force_accuracy", STUDENT, "force"),
        ("energy_accuracy", "#6a8f3c", "energy"),
        ("stress_accuracy", "#7b5ea7", "stress"),
        ("accuracy", INK, "overall"),
    ):
        pairs = [(p["step"], p[key]) for p in curve if isinstance(p.get(key), int | float)]
        if pairs:
            steps, values = zip(*pairs, strict=True)
            width = 1.6 if key == "force_accuracy" else 1.0
            shape = "--" if key == "accuracy" else "-"
            axes.plot(steps, 100 * np.array(values), shape, color=color, lw=width, label=label)
    bottom = min(
        (100 * v for p in curve for k, v in p.items() if k.endswith("accuracy")), default=0
    )
    axes.set_ylim(max(0.0, min(90.0, bottom) - 2.0), 100.0)
    axes.set_xlabel("training step")
    axes.set_ylabel("validation accuracy (%)")
    axes.legend(loc="best")
    return drawing.render()


@styled
def draw_coverage(coverage: CoverageData) -> str:
    """How often each pair distance and each force occurs in the frames."""
    drawing = Drawing("coverage", "Pair distances in the held-out frames")
    axes = drawing.axes
    edges = np.array(coverage.distance_edges)
    middle = 0.5 * (edges[1:] + edges[:-1])
    shells = np.array(coverage.distance_counts) / np.maximum(middle, 0.1) ** 2
    axes.fill_between(
        middle, shells / max(shells.max(), 1e-30), step="mid", color=STUDENT, alpha=0.25, lw=0
    )
    axes.step(middle, shells / max(shells.max(), 1e-30), where="mid", color=STUDENT, lw=1.0)
    if coverage.shortest_distance is not None:
        axes.axvline(coverage.shortest_distance, color=TEACHER, lw=0.9, ls=":")
        left = (
            coverage.shortest_distance > 0.35 * edges[-1]
        )  # there is room for the words before the line
        axes.annotate(
            f"shortest {coverage.shortest_distance:.2f} Å", (coverage.shortest_distance, 0.97),
            xycoords=("data", "axes fraction"), xytext=(-4 if left else 4, 0), textcoords="offset points",
            ha="right" if left else "left", va="top", color=TEACHER, fontsize=7.5,
        )  # fmt: skip
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 1.15)
    axes.set_xlabel("pair distance (Å)")
    axes.set_ylabel("pairs / r² (scaled)")
    return drawing.render()


@styled
def draw_force_histogram(coverage: CoverageData) -> str:
    """How often each size of force occurs in the frames."""
    drawing = Drawing("forces", "Sizes of the forces in the held-out frames")
    axes = drawing.axes
    axes.stairs(
        coverage.force_counts, coverage.force_edges, fill=True, color=STUDENT, alpha=0.3, lw=0
    )
    axes.stairs(coverage.force_counts, coverage.force_edges, color=STUDENT, lw=1.0)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlabel("|F| of the teacher (eV/Å)")
    axes.set_ylabel("atoms")
    return drawing.render()


def _draw_diagonal(axes: Any, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], "-", color=INK, lw=0.7, alpha=0.6, zorder=0.5)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def _find_limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin
