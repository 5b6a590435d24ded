"""One bench run from model file to page, with an analytic teacher.

Not here: labels of a file (``test_bench_labels.py``), planted errors (``test_bench_planted.py``), the command line
(``test_bench_command.py``).
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from bench_runs import TINY
from producers import seal

from fastff.errors import SimulationUnstableError
from fastff.report import speed_figures
from fastff.report.bench import run_bench, write_results
from fastff.report.figures import Drawing
from fastff.report.html import read_embedded, render_report
from fastff.report.markdown import tabulate_accuracy, tabulate_dynamics, tabulate_speed
from fastff.report.record import read_record
from fastff.report.speed import find_ratio_range
from fastff.report.tables import tabulate_paths
from fastff.report.verdict import format_ratio
from fastff.teachers import load_teacher


@pytest.fixture(scope="module")
def paths(bench_result, tmp_path_factory):
    return write_results(bench_result, tmp_path_factory.mktemp("results"))


@pytest.fixture
def record(bench_result):
    return bench_result.record


def test_run_measures_both_sides(record):
    names = [c.name for c in record.comparisons]
    assert names == [
        "held-out frames",
        "1.5 × the highest temperature, 900 K",
        "strained by ±5 %",
        "a cell twice as large",
    ]
    larger = record.comparisons[3].frames
    assert (
        larger.n_atoms / larger.n_frames
        == 2 * record.main.frames.n_atoms / record.main.frames.n_frames
    )
    accuracy = record.main.read_accuracy()
    assert record.main.frames.n_frames == accuracy.n_frames == 6
    assert accuracy.force is not None
    assert accuracy.energy is not None
    assert accuracy.stress is not None
    for role in ("student", "teacher"):
        curve = record.find_curve(role, "ase-call")
        assert [p.n_atoms for p in curve.points] == [32, 500]
        assert curve.find(500).status == "measured"
        assert len(curve.find(500).seconds) >= 3
        dynamics = record.find_curve(role, "ase-md")
        assert [p.n_atoms for p in dynamics.points] == [32, 500]
        assert dynamics.points[0].status == "measured"
        assert "from 450 K" in dynamics.includes
    assert "from 450 K" in record.find_curve("student", "md-loop").includes
    _, paths = tabulate_paths(record)
    inside = [row for row in paths if row[0] == "analytic:morse" and row[1] == "500"]
    assert any(cell.endswith("(in its ASE call)") for cell in inside[0])
    assert record.headline.n_atoms == 500
    assert record.headline.ratio == pytest.approx(
        record.find_curve("teacher", "ase-call").find(500).median
        / record.find_curve("student", "ase-call").find(500).median
    )
    assert len(record.verdict.lines) == 6
    assert record.verdict.passed is None
    assert record.teacher_noise.rotation_force < 1e-9
    assert record.provenance.command == "fastff bench cu.safetensors"


def test_a_teacher_that_breaks_beyond_the_range_leaves_a_note(bench_model, monkeypatch):
    """Unstable at 1.5 times the highest temperature: the rest of the run stands."""
    import fastff.report.judging as judging

    run_heldout = judging.run_heldout

    def break_when_hot(driver, plan, progress):
        if plan.trajectories[0].temperature > 600:
            raise SimulationUnstableError("teacher dynamics of Cu32 at 900 K broke: a force")
        return run_heldout(driver, plan, progress)

    monkeypatch.setattr(judging, "run_heldout", break_when_hot)
    teacher = load_teacher("analytic:morse", device="cpu")
    record = run_bench(bench_model, teacher=teacher, plan=replace(TINY, sizes=(32,))).record
    assert [c.name for c in record.comparisons][1] == "strained by ±5 %"
    assert any("1.5 × the highest temperature" in n and "900 K broke" in n for n in record.notes)


def test_record_survives_a_file(record, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(record.model_dump_json())
    assert read_record(path, model_sha256=record.model.sha256) == record


def test_results_are_written_and_the_page_is_self_contained(bench_result, paths):
    page = paths["report.html"].read_text()
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"', page)
    assert outside == []
    assert "@import" not in page
    assert page.count("<svg") >= 7
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', page):
        assert target in identifiers
    assert read_embedded(page) == bench_result.record
    assert read_record(paths["bench.json"]) == bench_result.record
    from fastff.distill.formats import read_labels

    stored = read_labels(paths["heldout.h5"])
    assert len(stored.frames) == 6
    assert stored.held_out == {0, 1}


def test_every_table_cell_is_on_page_and_in_markdown(bench_result, paths):
    page, text = paths["report.html"].read_text(), paths["bench.md"].read_text()
    cells = set(re.findall(r"<td[^>]*>(.*?)</td>", page))
    for table in (tabulate_accuracy, tabulate_speed, tabulate_dynamics):
        for row in table(bench_result.record)[1]:
            for cell in row:
                assert cell.replace("<", "&lt;").replace("'", "&#39;") in cells
                assert cell in text


def test_dynamics_are_grouped_by_size_with_the_ratio_to_the_teachers_best(record):
    headings, rows = tabulate_dynamics(record)
    assert headings[4] == "ns/day, 2 fs"
    sizes = [int(row[0]) for row in rows]
    assert sizes == sorted(sizes)
    at = {(row[0], row[1], row[2]): row for row in rows}
    own = at["500", "fastff md step", "fastff m1"]
    teacher = [row for row in rows if row[0] == "500" and row[2] == "analytic:morse"]
    best = max(float(row[4]) for row in teacher)
    assert [row[5] for row in teacher if float(row[4]) == best] == ["1×"]
    assert float(own[5].removesuffix("×")) == pytest.approx(float(own[4]) / best, rel=0.06)


def test_the_headline_ratio_has_its_spread(record):
    low, high = find_ratio_range(
        record.find_curve("teacher", "ase-call").find(500),
        record.find_curve("student", "ase-call").find(500),
    )
    assert low <= record.headline.ratio <= high
    shown = f"{format_ratio(low)} to {format_ratio(high)}"
    row = next(row for row in tabulate_speed(record)[1] if row[0] == "500")
    assert row[3] == f"{format_ratio(record.headline.ratio)} ({shown})"
    if record.headline.ratio < 1.0:  # the page says how many times slower
        shown = f"{format_ratio(1.0 / high)} to {format_ratio(1.0 / low)}"
    assert f"one ASE call, 500 atoms; {shown}" in render_report(record)


def test_one_plot_has_both_sides_in_every_mode_and_a_legend_that_covers_nothing(
    record, monkeypatch
):
    drawn = []
    monkeypatch.setattr(Drawing, "render", lambda self: drawn.append(self) or "<svg/>")
    speed_figures.draw_speed(record.speed)
    speed_figures.draw_memory([c for c in record.speed if c.mode == "ase-call"])
    plot = drawn[0]
    assert len(plot.axes.lines) == len(record.speed)
    words = [text.get_text() for text in plot.figure.legends[0].get_texts()]
    assert {"fastff m1", "analytic:morse", "through ASE", "fastff md step"} <= set(words)
    for one in drawn:
        one.figure.canvas.draw()
        assert (one.axes.get_xscale(), one.axes.get_yscale()) == ("log", "log")
        legend, inside = one.figure.legends[0].get_window_extent(), one.axes.get_window_extent()
        assert legend.y1 < inside.y0


def test_a_section_is_named_after_what_is_in_it(record):
    assert "<h2>Beyond the training range</h2>" in render_report(record)
    inside = record.model_copy(update={"comparisons": record.comparisons[:1]})
    assert "Beyond the training range" not in render_report(seal(inside, "assembled"))


def test_wide_tables_are_cards_with_labels_on_a_phone(record):
    page = render_report(record)
    assert re.search(
        r"@media \(max-width: 560px\) \{.*?\.cards tr \{ display: grid;", page, re.DOTALL
    )
    tables = re.findall(r"<table( class=\"cards\")?>(.*?)</table>", page, re.DOTALL)
    assert any(cards for cards, _ in tables)
    for cards, table in tables:
        headings = re.findall(r'<th scope="col">(.*?)</th>', table)
        assert bool(cards) is (len(headings) > 3)
        for row in re.findall(r"<tr[^>]*>(<td.*?)</tr>", table):
            assert re.findall(r'data-label="(.*?)"', row) == headings
