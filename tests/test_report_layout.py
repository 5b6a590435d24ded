"""Whether the figures of a report show all of their legends and ticks. Not here: what they show."""

from __future__ import annotations

import pytest

from fastff.cli.bench_view import print_results
from fastff.report import figures, speed_figures, trust_figures
from fastff.report.calibration import CalibrationData, GradeBin
from fastff.report.physics.derive import derive_quantities
from fastff.report.physics.record import RdfCurve, RdfItem
from fastff.report.plotdata import ForceBin
from fastff.report.speed import SpeedCurve, summarize
from fastff.report.tables import _describe_sides
from fastff.report.verdict import format_count, format_seconds, format_share
from fastff.units import show_number


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
    check_ticks(axes, "x")


@pytest.mark.parametrize("errors", [(0.0016, 0.0041), (0.0016, 0.0041, 0.04), (0.003, 0.0)])
def test_errors_within_two_decades_have_plain_ticks(look, errors):
    rows = tuple((0, 0.004, error) for error in errors)
    data = CalibrationData(
        names=("held-out frames",), energy=rows, within=(0.0, 0.0), grades=(), beyond=(0.0,)
    )
    check_ticks(look(trust_figures.draw_calibration, data), "y")
    bins = [
        ForceBin(count=9, force_rms=k, error_rms=0.2, error_median=0.1 + e, error_q90=0.5)
        for k, e in enumerate(errors)
    ]
    check_ticks(look(figures.draw_force_error, bins, None, 1.0), "y")


def check_ticks(axes, name):
    """Two at least, in plain numbers."""
    axes.figure.canvas.draw()
    axis = getattr(axes, f"{name}axis")
    low, high = axis.get_view_interval()
    places = [(t.get_text(), t.get_position()["xy".index(name)]) for t in axis.get_ticklabels()]
    shown = [(text, place) for text, place in places if text and low <= place <= high]
    assert len(shown) >= 2
    for text, place in shown:
        assert float(text) == pytest.approx(place)


@pytest.mark.parametrize("grades", [(0.2, 0.9), (0.5, 1.5), (2.3, 3.8), (10.0, 400.0)])
def test_the_edge_of_training_data_is_named_within_the_axes(look, grades):
    bins = tuple(GradeBin(count=9, grade=g, force_rmse=0.1) for g in grades)
    data = CalibrationData(
        names=("held-out frames",), energy=((0, 0.004, 0.003),), within=(0.0, 0.0), grades=bins,
        beyond=(1.0,),
    )  # fmt: skip
    axes = look(trust_figures.draw_grades, data)
    axes.figure.canvas.draw()
    (words,) = axes.texts
    box, frame = words.get_window_extent(), axes.get_window_extent()
    assert frame.x0 <= box.x0 < box.x1 <= frame.x1


def test_shares_of_everything_have_no_exponent():
    assert [format_share(v) for v in (2.4e-6, 0.034, 0.9949, 0.996, 1.0, 12.345)] == [
        "0.00024 %", "3.4 %", "99 %", "100 %", "100 %", "1,234 %",
    ]  # fmt: skip


def test_times_and_rates_have_no_exponent():
    assert [format_seconds(v) for v in (0.9996, 0.0523, 2e-5, 1.0, 1234.5)] == [
        "1,000 ms", "52.3 ms", "0.02 ms", "1 s", "1,230 s",
    ]  # fmt: skip
    assert [format_count(v) for v in (999.7, 1000.0, 12.34, 2.5e9)] == [
        "1,000", "1 k", "12.3", "2,500 M",
    ]  # fmt: skip


def test_large_differences_of_pair_distributions_have_no_exponent():
    curve = RdfCurve(
        pair="Cu-Cu", radii=(1.0, 1.1, 1.2, 1.3), teacher=(0.0, 1.0, 2.0, 1.0),
        teacher_error=(0.1,) * 4, student=(9.0, 3.0, 2.0, 1.0), student_error=(9.0,) * 4,
    )  # fmt: skip
    item = RdfItem(
        title="", description="", temperature=300.0, n_blocks=8, curves=(curve,), peak="first"
    )
    quantity = derive_quantities(item)[1]
    assert quantity.student > 99.5
    words = _describe_sides(item, quantity)[1]
    assert "e+" not in words
    assert words.startswith(show_number(quantity.student, 2))


def test_brackets_of_a_verdict_are_printed(whole_record, capsys):
    """As in ``fastff[phonons]``: they are no markup."""
    lines = (*whole_record.verdict.lines, "left out: pip install 'fastff[phonons]'")
    verdict = whole_record.verdict.model_copy(update={"lines": lines})
    print_results(whole_record.model_copy(update={"verdict": verdict}))
    assert "fastff[phonons]" in capsys.readouterr().out
