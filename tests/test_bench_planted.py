"""Errors planted in a bench run and its record, each of which is refused; files that are no record.

Not here: errors in what baselines say (``test_bench_beside.py``), errors in every figure (``test_report_planted.py``).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_runs import TINY
from producers import edit

from fastff.errors import DataError
from fastff.report.bench import run_bench
from fastff.report.html import read_embedded, render_report
from fastff.report.record import read_record, verify_record
from fastff.teachers import load_teacher


@pytest.fixture
def record(bench_result):
    return bench_result.record


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


def test_swapped_calculators_are_caught(bench_model, monkeypatch):
    """The student's factory returns something else: the timings would be of a stranger."""
    teacher = load_teacher("analytic:morse", device="cpu")
    monkeypatch.setattr("fastff.calculator.FastFFCalculator", lambda *a, **k: teacher.calculator())
    plan = replace(TINY, n_frames=2, n_equilibrate=1, n_temperatures=1, outside=False)
    with pytest.raises(DataError, match="student's calculator does not give the student's labels"):
        run_bench(bench_model, teacher=teacher, plan=plan)


def test_other_files_are_not_records(tmp_path):
    path = tmp_path / "x.json"
    for text, words in (("{}", "schema None"), ("[1]", "schema None"), ("{", "cannot be read")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_record(path)
    with pytest.raises(DataError, match="no bench record"):
        read_embedded("<html></html>")
