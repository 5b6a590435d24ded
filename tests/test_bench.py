"""One bench run from model file to page, with an analytic teacher; and planted errors that must be caught."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from producers import edit, seal
from typer.testing import CliRunner

from fastff.checkpoint import load_model, save_model, stamp_header
from fastff.cli import app
from fastff.distill.content import KNOWN_DIGITS, hash_structure
from fastff.distill.export import write_labels
from fastff.distill.formats import LabelledSet
from fastff.errors import DataError, SimulationUnstableError, UsageError
from fastff.labels import Frame, Labels
from fastff.models import build_student, configure_student
from fastff.report import speed_figures
from fastff.report.bench import run_bench, write_results
from fastff.report.figures import Drawing
from fastff.report.heldout import select_heldout
from fastff.report.html import read_embedded, render_report
from fastff.report.markdown import tabulate_accuracy, tabulate_dynamics, tabulate_speed
from fastff.report.plan import BenchPlan
from fastff.report.record import (
    read_record,
    verify_record,
    write_record,
)
from fastff.report.speed import find_ratio_range
from fastff.report.tables import tabulate_paths
from fastff.report.verdict import format_ratio
from fastff.teachers import load_teacher

TINY = BenchPlan(
    n_frames=6, n_temperatures=2, n_equilibrate=4, interval=2, sizes=(32, 500), budget=0.5,
    md_atoms=32, outside=True, n_noise=2,
    physics="none",
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("analytic:morse", device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory, teacher):
    """An untrained student: bad, but real."""
    torch.manual_seed(0)
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    text = io.StringIO()
    ase.io.write(text, [bulk("Cu", cubic=True)], format="extxyz")
    path = tmp_path_factory.mktemp("model") / "cu.safetensors"
    header = {
        "teacher": teacher.info.to_dict(),
        "temperature": [300, 600],
        "structures": text.getvalue(),
        "training": {
            "learning_curve": [
                {"step": 0, "force_accuracy": 0.1, "accuracy": 0.0},
                {"step": 9, "force_accuracy": 0.9, "accuracy": 0.8},
            ]
        },
    }
    save_model(path, student, header)
    return path


@pytest.fixture(scope="module")
def result(model, teacher):
    return run_bench(
        model, teacher=teacher, plan=TINY, command=["fastff", "bench", "cu.safetensors"]
    )


@pytest.fixture(scope="module")
def paths(result, tmp_path_factory):
    return write_results(result, tmp_path_factory.mktemp("results"))


@pytest.fixture
def record(result):
    return result.record


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


def test_a_teacher_that_breaks_beyond_the_range_leaves_a_note(model, teacher, monkeypatch):
    """Unstable at 1.5 times the highest temperature: the rest of the run stands."""
    import fastff.report.judging as judging

    run_heldout = judging.run_heldout

    def break_when_hot(driver, plan, progress):
        if plan.trajectories[0].temperature > 600:
            raise SimulationUnstableError("teacher dynamics of Cu32 at 900 K broke: a force")
        return run_heldout(driver, plan, progress)

    monkeypatch.setattr(judging, "run_heldout", break_when_hot)
    record = run_bench(model, teacher=teacher, plan=replace(TINY, sizes=(32,))).record
    assert [c.name for c in record.comparisons][1] == "strained by ±5 %"
    assert any("1.5 × the highest temperature" in n and "900 K broke" in n for n in record.notes)


def test_record_survives_a_file(record, tmp_path, model):
    path = tmp_path / "bench.json"
    path.write_text(record.model_dump_json())
    assert read_record(path, model_sha256=record.model.sha256) == record


def test_results_are_written_and_the_page_is_self_contained(result, paths):
    page = paths["report.html"].read_text()
    outside = re.findall(r'(?:src|href)="(?!#|data:)([^"]+)"', page)
    assert outside == []
    assert "@import" not in page
    assert page.count("<svg") >= 7
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for target in re.findall(r'(?:url\(#|href="#)([^)"]+)', page):
        assert target in identifiers
    assert read_embedded(page) == result.record
    assert read_record(paths["bench.json"]) == result.record
    from fastff.distill.formats import read_labels

    stored = read_labels(paths["heldout.h5"])
    assert len(stored.frames) == 6
    assert stored.held_out == {0, 1}


def test_every_table_cell_is_on_page_and_in_markdown(result, paths):
    page, text = paths["report.html"].read_text(), paths["bench.md"].read_text()
    cells = set(re.findall(r"<td[^>]*>(.*?)</td>", page))
    for table in (tabulate_accuracy, tabulate_speed, tabulate_dynamics):
        for row in table(result.record)[1]:
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


def test_labels_are_judged_without_a_teacher(result, model, tmp_path, monkeypatch):
    monkeypatch.setattr("fastff.teachers.load_teacher", None)
    path = tmp_path / "labels.xyz"
    write_labels(path, result.frames, result.record.teacher)
    judged = run_bench(model, labels=path).record
    assert judged.main.read_accuracy().force == pytest.approx(
        result.record.main.read_accuracy().force, abs=1e-6
    )
    assert judged.speed == ()
    assert judged.headline is None
    assert "not verified" in " ".join(judged.main.frames.notes)
    assert "not compared" in judged.verdict.lines[4]
    assert "Not measured" in render_report(judged)


def test_frames_of_a_file_without_trajectories_are_not_called_held_out(result, model, tmp_path):
    path = tmp_path / "labels.xyz"
    unnamed = [replace(f, trajectory=k) for k, f in enumerate(result.frames)]
    write_labels(path, unnamed, result.record.teacher)
    judged = run_bench(model, labels=path).record
    assert f"on {len(unnamed)} frames not trained on of Cu" in judged.verdict.lines[0]
    assert "names no trajectories" in " ".join(judged.main.frames.notes)


def test_frames_of_training_and_of_other_trajectories_are_left_out(result):
    hashes = [hash_structure(frame.atoms).hex() for frame in result.frames]
    every = LabelledSet(result.frames, {})
    fresh, notes = select_heldout(every, frozenset(hashes[:2]), lambda a: hash_structure(a).hex())
    assert fresh == result.frames[2:]
    assert "2 frames were left out" in notes[0]
    short = frozenset(key[:KNOWN_DIGITS] for key in hashes[:2])  # as new files keep them
    assert select_heldout(every, short, lambda a: hash_structure(a).hex())[0] == result.frames[2:]
    marked = LabelledSet(result.frames, {}, held_out=frozenset({1}))
    fresh, notes = select_heldout(marked, frozenset({"none"}), lambda a: hash_structure(a).hex())
    assert {frame.trajectory for frame in fresh} == {1}
    with pytest.raises(DataError, match="the student was trained on all"):
        select_heldout(every, frozenset(hashes), lambda a: hash_structure(a).hex())


@pytest.mark.parametrize("digits", [32, KNOWN_DIGITS], ids=["older", "new"])
def test_what_a_model_file_lists_is_left_out(result, model, tmp_path, digits):
    """Files of earlier versions list whole hashes, new ones the first digits."""
    path, labels = tmp_path / "model.safetensors", tmp_path / "labels.h5"
    shutil.copy(model, path)
    hashes = [hash_structure(frame.atoms).hex()[:digits] for frame in result.frames[:2]]
    stamp_header(path, {"training": {"frame_hashes": hashes}})
    write_labels(labels, result.frames, result.record.teacher)
    frames = run_bench(path, labels=labels).record.main.frames
    assert frames.n_frames == len(result.frames) - 2
    assert "2 frames were left out" in " ".join(frames.notes)


def test_labels_of_another_teacher_are_said(result, model, tmp_path):
    path = tmp_path / "labels.xyz"
    write_labels(path, result.frames, {**result.record.teacher, "name": "other"})
    judged = run_bench(model, labels=path).record
    assert any("made by other" in note for note in judged.notes)


def test_direct_and_truncated_teachers_are_called_so(result, model, tmp_path):
    path = tmp_path / "labels.h5"
    about = {**result.record.teacher, "conservative": False, "max_neighbors": 20}
    write_labels(path, result.frames, about)
    judged = run_bench(model, labels=path)
    page = write_results(judged, tmp_path / "report")["report.html"].read_text()
    for words in ("Direct teacher", "Truncated-neighbor teacher: at most 20"):
        assert any(words in note for note in judged.record.notes)
        assert words in page


def test_labels_in_a_wrong_unit_are_caught(result, model, tmp_path, teacher):
    """Stress in GPa: only a student that follows its teacher can tell, so the teacher itself plays the student."""
    from fastff.report.comparison import compare_frames

    frames = [
        Frame(
            f.atoms,
            Labels(f.labels.energy, f.labels.forces, f.labels.stress * 160.2),
            "file",
            0,
            0.0,
            0,
        )
        for f in result.frames
    ]
    with pytest.raises(DataError, match=r"stress.*GPa"):
        compare_frames("held-out frames", frames, teacher.label, "labels", "planted")


def test_required_accuracy_is_judged(model, teacher, result, tmp_path):
    path = tmp_path / "labels.xyz"
    write_labels(path, result.frames, result.record.teacher)
    plan = BenchPlan(required=0.95)
    judged = run_bench(model, labels=path, plan=plan).record
    assert judged.verdict.passed is False
    assert "NOT MET" in judged.verdict.lines[0]


def test_small_displacements_are_judged(model, tmp_path):
    """Their forces are far smaller than those that the student was trained on."""
    path, frames = tmp_path / "labels.xyz", []
    curve = [{"step": k, "force_accuracy": 0.5, "force_mae": 0.4, "accuracy": 0.1} for k in (1, 2)]
    trained = tmp_path / "cu.safetensors"
    student = load_model(model, device="cpu")
    save_model(trained, student, {"training": {"learning_curve": curve}})
    random = np.random.default_rng(0)
    for k in range(4):
        labels = Labels(1e-4 * k, 1e-4 * random.normal(size=(4, 3)), 1e-4 * random.normal(size=6))
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(1e-4, seed=k)
        frames.append(Frame(atoms, labels, "file", k, 0.0, 0))
    write_labels(path, frames, {"name": "displaced"})
    assert run_bench(trained, labels=path).record.main.read_accuracy().force_rms < 1e-3


def test_what_was_measured_is_kept_if_it_is_refused(model, result, tmp_path, monkeypatch):
    def refuse(record):
        raise DataError("planted.")

    monkeypatch.setattr("fastff.report.record.verify_conclusions", refuse)
    path, folder = tmp_path / "labels.xyz", tmp_path / "out"
    write_labels(path, result.frames, result.record.teacher)
    run = CliRunner().invoke(app, ["bench", str(model), "--labels", str(path), "-o", str(folder)])
    assert isinstance(run.exception, DataError)
    kept = folder / "bench.rejected.json"
    assert str(run.exception) == f"planted. What was measured is kept in {kept}."
    assert [entry.name for entry in folder.iterdir()] == [kept.name]
    content = json.loads(kept.read_text())
    assert content["rejected"] == "planted."
    n_frames = content["comparisons"][0]["accuracy"]["n_frames"]
    assert n_frames == result.record.main.frames.n_frames
    with pytest.raises(DataError):
        read_record(kept)


def test_neither_labels_nor_teacher_is_a_usage_error(model):
    with pytest.raises(UsageError, match="nothing to compare with"):
        run_bench(model)


def plant_swapped_curves(content):
    for curve in content["speed"]:
        curve["role"] = {"student": "teacher", "teacher": "student"}[curve["role"]]


def plant_swapped_times(content):
    """Times of teacher and student exchanged, everything computed from them left as it was."""
    calls = [c for c in content["speed"] if c["mode"] == "ase-call"]
    calls[0]["points"], calls[1]["points"] = calls[1]["points"], calls[0]["points"]


def plant_milliseconds(content):
    content["speed"][0]["points"][1]["median"] *= 1000.0


def plant_force_unit(content):
    for key in ("force_mae", "force_rmse", "force_rms"):
        content["comparisons"][0]["accuracy"][key] *= 1000.0


def plant_force_accuracy(content):
    accuracy = content["comparisons"][0]["accuracy"]
    accuracy["force"] = 0.99
    accuracy["overall"] = min(accuracy[name] for name in ("force", "energy", "stress"))


def plant_overall(content):
    content["comparisons"][0]["accuracy"]["overall"] = 0.99


def plant_swapped_forces(content):
    """Parity computed with the student in the teacher's place."""
    for entry in content["comparisons"][0]["parity"]["force_bins"]:
        entry["force_rms"] *= 0.9


def plant_ratio(content):
    content["ratios"][0]["ratio"] *= 2.0


def plant_verdict(content):
    content["verdict"]["required"] = 0.99
    content["verdict"]["passed"] = True


def plant_extrapolation(content):
    point = content["speed"][1]["points"][1]
    point.update(status="too-slow", reason="planted")


def plant_other_model(content):
    content["model"]["sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_swapped_curves, "swapped"),
        (plant_swapped_times, "do not follow from the timings"),
        (plant_milliseconds, "median .* does not follow"),
        (plant_force_unit, "different units"),
        (plant_force_accuracy, "force accuracy 0.99 does not follow"),
        (plant_overall, "'overall' is not the smallest"),
        (plant_swapped_forces, "swapped"),
        (plant_ratio, "speed ratios do not follow"),
        (plant_verdict, "the verdict says passed=True"),
        (plant_extrapolation, "has times but its status is too-slow"),
        (plant_other_model, "stale"),
    ],
)
def test_planted_errors_are_caught(record, plant, words, tmp_path):
    edited = edit(record, plant)
    with pytest.raises(DataError, match=words):
        verify_record(edited)
    with pytest.raises(DataError, match=words):
        render_report(edited)
    path = tmp_path / "bench.json"
    path.write_text(edited.model_dump_json())
    with pytest.raises(DataError, match=words):
        read_record(path)


def test_any_edit_breaks_the_digest(record):
    def change(content):
        content["teacher_noise"]["jitter_force"] = 0.5

    with pytest.raises(DataError, match="changed after it was written"):
        verify_record(edit(record, change).model_copy(update={"digest": record.digest}))


def test_stale_record_is_refused(record):
    with pytest.raises(DataError, match="stale"):
        render_report(record, model_sha256="1" * 64)


def test_swapped_calculators_are_caught(model, teacher, monkeypatch):
    """The student's factory returns something else: the timings would be of a stranger."""
    monkeypatch.setattr("fastff.calculator.FastFFCalculator", lambda *a, **k: teacher.calculator())
    plan = replace(TINY, n_frames=2, n_equilibrate=1, n_temperatures=1, outside=False)
    with pytest.raises(DataError, match="student's calculator does not give the student's labels"):
        run_bench(model, teacher=teacher, plan=plan)


def test_other_files_are_not_records(tmp_path):
    path = tmp_path / "x.json"
    for text, words in (("{}", "schema None"), ("[1]", "schema None"), ("{", "cannot be read")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_record(path)
    with pytest.raises(DataError, match="no bench record"):
        read_embedded("<html></html>")


@pytest.fixture
def invoke():
    def call(*arguments):
        return CliRunner().invoke(app, ["bench", *map(str, arguments)])

    return call


def test_command_writes_results(invoke, model, tmp_path, monkeypatch):
    monkeypatch.setattr("fastff.report.race.HEADLINE_ATOMS", 32)
    out = tmp_path / "out"
    done = invoke(
        model, "--compare-teacher", "--quick", "--frames", 4, "--steps", 2, "--sizes", "32",
        "--budget", 0.5, "--device", "cpu", "--physics", "none", "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Accuracy:" in done.output
    assert re.search("(faster|slower) than the teacher", done.output)
    assert {p.name for p in out.iterdir()} == {
        "bench.json",
        "report.html",
        "bench.md",
        "heldout.h5",
    }
    again = invoke(model, "--compare-teacher", "--device", "cpu", "--out", out)
    assert isinstance(again.exception, UsageError)
    assert "--force" in str(again.exception)


def test_command_rebuilds_the_page_of_a_record(invoke, record, tmp_path):
    write_record(record, tmp_path / "bench.json")
    done = invoke(tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    assert read_embedded((tmp_path / "report.html").read_text()) == record


def test_command_fails_with_code_6_below_the_required_accuracy(invoke, result, model, tmp_path):
    path = tmp_path / "labels.xyz"
    write_labels(path, result.frames, result.record.teacher)
    done = invoke(
        model, "--labels", path, "--require", 0.95, "--out", tmp_path / "out", "--device", "cpu"
    )
    assert done.exception.exit_code == 6
    assert "Required accuracy not met" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare with"),
        (["--labels", "x.xyz", "--teacher", "chgnet"], "--teacher is only used"),
        (["--compare-teacher", "--sizes", "a,b"], "not a list of atom counts"),
        (["--compare-teacher", "--temperature", "900-300"], "not a temperature"),
    ],
)
def test_command_refuses_what_it_cannot_honour(invoke, model, tmp_path, arguments, words):
    done = invoke(model, "--out", tmp_path / "out", "--device", "cpu", *arguments)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
