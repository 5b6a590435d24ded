"""Whether the figures of a report show all of their legends and ticks. Not here: what they show."""

from __future__ import annotations

import pytest

from fastff.cli.bench_view import print_results
from fastff.report import figures, speed_figures, trust_figures
from fastff.report.calibration import CalibrationData
from fastff.report.speed import SpeedCurve, summarize


@pytest.fixture
def look(monkeypatch):
    """Draw with a function of the report and return the axes instead of SVG."""
    drawn = []
    monkeypatch.setattr(figures.Drawing, "render", lambda drawing: drawn.append(drawing) or "")

    def draw(function, *arguments):
        function(*arguments)
        return drawn[-1].axes

    return draw


def make_curve(role, label, mode="ase-call"):
    points = tuple(summarize(n, "Cu", [0.1 * n], n * 2**20) for n in (10, 100))
    return SpeedCurve(
        role=role, label=label, mode=mode, includes="", device="cpu", threads=1, identity={},
        points=points,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["short", "mace-mp-0b3-medium-float32-cueq", "ase:a_package.of_potentials:" + "Long" * 20],
)
def test_legends_are_not_clipped(look, name):
    curves = [
        make_curve("student", "fastff m1"),
        make_curve("teacher", name),
        make_curve("third", name),
    ]
    curves.append(make_curve("student", "fastff m1", "ase-md"))
    calls = [curve for curve in curves if curve.mode == "ase-call"]
    for function, shown in (
        (speed_figures.draw_speed, curves),
        (speed_figures.draw_memory, calls),
    ):
        axes = look(function, shown)
        axes.figure.canvas.draw()
        (legend,) = axes.figure.legends
        box, page = legend.get_window_extent(), axes.figure.bbox
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 < axes.get_window_extent().y0
        assert axes.get_window_extent().height > 0.4 * page.height
        assert name in {text.get_text().replace("\n", "") for text in legend.get_texts()}


@pytest.mark.parametrize("deviations", [(0.0021, 0.0024, 0.0026), (0.013, 0.05, 0.07)])
def test_uncertainties_within_a_decade_have_ticks(look, deviations):
    rows = tuple((0, s, 0.003) for s in deviations)
    axes = look(
        trust_figures.draw_calibration,
        CalibrationData(
            names=("held-out frames",), energy=rows, within=(0.0, 0.0), grades=(), beyond=(0.0,)
        ),
    )
    axes.figure.canvas.draw()
    low, high = axes.get_xlim()
    shown = [
        t for t in axes.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high
    ]
    assert len(shown) >= 2
    for tick in shown:
        assert float(tick.get_text()) == pytest.approx(tick.get_position()[0])


def test_brackets_of_a_verdict_are_printed(whole_record, capsys):
    """As in ``fastff[phonons]``: they are no markup."""
    lines = (*whole_record.verdict.lines, "left out: pip install 'fastff[phonons]'")
    verdict = whole_record.verdict.model_copy(update={"lines": lines})
    print_results(whole_record.model_copy(update={"verdict": verdict}))
    assert "fastff[phonons]" in capsys.readouterr().out
