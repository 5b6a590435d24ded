"""``fastff bench`` as it is typed: what it writes, prints, keeps and returns.

Not here: its options on baselines, kernels and stored records (``test_bench_beside.py``), loading the teacher
(``test_bench_teacher.py``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastff.cli import app
from fastff.cli.bench_records import require_accuracy
from fastff.distill.export import write_labels
from fastff.errors import AccuracyError, DataError, ModelFileError, UsageError
from fastff.report.html import read_embedded
from fastff.report.record import read_record, write_record

RESULTS = Path(__file__).parents[1] / "bench" / "results"


@pytest.fixture
def invoke():
    def call(*arguments):
        return CliRunner().invoke(app, ["bench", *map(str, arguments)])

    return call


def test_command_writes_results(invoke, bench_model, tmp_path, monkeypatch):
    monkeypatch.setattr("fastff.report.race.HEADLINE_ATOMS", 32)
    out = tmp_path / "out"
    done = invoke(
        bench_model, "--compare-teacher", "--quick", "--frames", 4, "--steps", 2, "--sizes", "32",
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
    again = invoke(bench_model, "--compare-teacher", "--device", "cpu", "--out", out)
    assert isinstance(again.exception, UsageError)
    assert "--force" in str(again.exception)


def test_command_rebuilds_the_page_of_a_record(invoke, bench_result, tmp_path):
    write_record(bench_result.record, tmp_path / "bench.json")
    done = invoke(tmp_path / "bench.json")
    assert done.exit_code == 0, done.output
    assert read_embedded((tmp_path / "report.html").read_text()) == bench_result.record


def test_command_fails_with_code_6_below_the_required_accuracy(
    invoke, bench_result, bench_model, tmp_path
):
    path = tmp_path / "labels.xyz"
    write_labels(path, bench_result.frames, bench_result.record.teacher)
    done = invoke(
        bench_model,
        "--labels",
        path,
        "--require",
        0.95,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    assert done.exception.exit_code == 6
    assert "Required accuracy not met" in (tmp_path / "out" / "report.html").read_text()


def test_what_was_measured_is_kept_if_it_is_refused(
    bench_model, bench_result, tmp_path, monkeypatch
):
    def refuse(record):
        raise DataError("planted.")

    monkeypatch.setattr("fastff.report.record.verify_conclusions", refuse)
    path, folder = tmp_path / "labels.xyz", tmp_path / "out"
    write_labels(path, bench_result.frames, bench_result.record.teacher)
    run = CliRunner().invoke(
        app, ["bench", str(bench_model), "--labels", str(path), "-o", str(folder)]
    )
    assert isinstance(run.exception, DataError)
    kept = folder / "bench.rejected.json"
    assert str(run.exception) == f"planted. What was measured is kept in {kept}."
    assert [entry.name for entry in folder.iterdir()] == [kept.name]
    content = json.loads(kept.read_text())
    assert content["rejected"] == "planted."
    n_frames = content["comparisons"][0]["accuracy"]["n_frames"]
    assert n_frames == bench_result.record.main.frames.n_frames
    with pytest.raises(DataError):
        read_record(kept)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare with"),
        (["--labels", "x.xyz", "--teacher", "chgnet"], "--teacher is only used"),
        (["--compare-teacher", "--sizes", "a,b"], "not a list of atom counts"),
        (["--compare-teacher", "--temperature", "900-300"], "not a temperature"),
    ],
)
def test_command_refuses_what_it_cannot_honour(invoke, bench_model, tmp_path, arguments, words):
    done = invoke(bench_model, "--out", tmp_path / "out", "--device", "cpu", *arguments)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_a_model_file_is_looked_at_before_what_is_missing_beside_it(tmp_path):
    junk = tmp_path / "junk.safetensors"
    junk.write_text("<html>not found</html>")
    for path, words in (
        (tmp_path / "none.safetensors", "no model file at"),
        (junk, "not a readable"),
    ):
        error = CliRunner().invoke(app, ["bench", str(path)]).exception
        assert isinstance(error, ModelFileError)
        assert error.exit_code == 5
        assert words in str(error)
        assert str(path) in str(error)
        assert "\n" not in str(error)


def test_an_accuracy_is_required_of_a_record_too(tmp_path):
    path, page = RESULTS / "cuau-7net-0-h100.json", tmp_path / "page"  # 96.6 %
    force = ["--out", str(page), "--force"]

    def invoke(*arguments):
        return CliRunner().invoke(app, ["bench", str(path), *arguments])

    for beside in (force, ["--against", str(path)]):
        missed = invoke("--require", "0.99", *beside)
        assert isinstance(missed.exception, AccuracyError)
        assert missed.exception.exit_code == 6
        assert str(missed.exception).startswith("accuracy 96.6 % is below the required 99.0 %")
        reached = invoke("--require", "0.96", *beside)
        assert reached.exit_code == 0
        assert "accuracy 96.6 %; required 96.0 %: met" in reached.output
        assert invoke(*beside).exit_code == 0
    assert (page / f"{path.stem}.html").exists()
    # a run that was ended early is no whole one
    ended = read_record(path).model_copy(update={"ended": "stopped while timing"})
    with pytest.raises(AccuracyError, match="not complete: stopped"):
        require_accuracy(ended, 0.5)
