"""Beside the student: baselines and kernels, errors planted in them, and options that cannot be honoured.

Not here: earlier records (``test_bench_against.py``).
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from ase.build import bulk
from bench_runs import BESIDE
from producers import edit
from typer.testing import CliRunner

from fastff.checkpoint import save_model
from fastff.cli import app
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.models import build_student, configure_student
from fastff.report import kernel_work
from fastff.report import kernels as report_kernels
from fastff.report.baselines import check_names, load_baseline
from fastff.report.bench import run_bench
from fastff.report.html import render_report
from fastff.report.markdown import write_tables
from fastff.report.record import verify_record, write_record
from fastff.report.regression import compare_speed, read_any
from fastff.report.regression import require_no_slowdown as require
from fastff.report.tables import tabulate_baselines, tabulate_kernels
from fastff.teachers import load_teacher


def test_baselines_are_in_the_same_tables(beside_record):
    names = [b.name for b in beside_record.baselines]
    assert names[1] == "ase:ase.calculators.emt:EMT"
    for baseline in beside_record.baselines:
        assert baseline.comparisons[0].frames_digest == beside_record.main.frames.digest
        assert beside_record.find_curve(baseline.name, "ase-call").points[0].status == "measured"
        assert beside_record.find_curve(baseline.name, "ase-md") is not None
    _, rows = tabulate_baselines(beside_record)
    assert len(rows) == 3
    text, page = write_tables(beside_record), render_report(beside_record)
    for cell in (cell for row in rows for cell in row):
        assert cell in text
        assert cell in page
    # inner paths of students only: an ASE calculator has none
    for role in ("student", names[0]):
        assert {c.mode for c in beside_record.speed if c.role == role} >= {
            "model",
            "model-list",
            "md-loop",
        }
    keys = [(c.role, c.mode) for c in beside_record.speed]
    assert len(keys) == len(set(keys))
    assert {c.mode for c in beside_record.speed if c.role == names[1]} == {"ase-call", "ase-md"}


def plant_accuracy(content):
    content["baselines"][0]["comparisons"][0]["accuracy"]["force"] = 0.999


def plant_other_frames(content):
    content["baselines"][0]["comparisons"][0]["frames_digest"] = "0" * 64


def plant_unit(content):
    for key in ("force_rmse", "force_rms"):
        content["baselines"][0]["comparisons"][0]["accuracy"][key] *= 1000.0


def plant_stranger(content):
    for curve in content["speed"]:
        if curve["role"] not in ("student", "teacher"):
            curve["identity"] = {"name": "another"}


def plant_old_schema(content):
    content["schema_version"] = "fastff-bench/1"


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (plant_accuracy, "does not follow"),
        (plant_other_frames, "not about the frames"),
        (plant_unit, "different units"),
        (plant_stranger, "belong to no baseline"),
        (plant_old_schema, "cannot hold"),
    ],
)
def test_planted_errors_are_caught(beside_record, plant, words):
    with pytest.raises(DataError, match=words):
        verify_record(edit(beside_record, plant))


def test_baselines_are_checked_before_any_work(beside_models):
    one = load_baseline(str(beside_models[1]), "cpu")
    with pytest.raises(UnsupportedElementError, match="does not know Si"):
        one.check_elements([bulk("Si")])
    with pytest.raises(UsageError, match="given twice"):
        check_names([one, one], {})
    with pytest.raises(UsageError, match="the student itself"):
        check_names([one], {one.identity["sha256"]: "student"})
    with pytest.raises(UsageError, match="no such model file"):
        load_baseline("runs/nothing.pt", "cpu")


def test_elements_that_anyone_does_not_know_are_refused_before_the_teacher_works(
    beside_models, tmp_path, monkeypatch
):
    teacher = load_teacher("analytic:morse", device="cpu")
    monkeypatch.setattr(teacher, "label", lambda structures: pytest.fail("the teacher worked"))
    with pytest.raises(UnsupportedElementError, match=r"structure 1 \(Si2\): atoms contain Si"):
        run_bench(
            beside_models[0], structures=[bulk("Cu"), bulk("Si")], teacher=teacher, plan=BESIDE
        )
    # an ASE calculator that says of no element that it knows it is asked
    student = build_student(configure_student("m1", (14, 29), cutoff=4.0))
    save_model(tmp_path / "si.safetensors", student, {"teacher": {}, "temperature": [300, 400]})
    with pytest.raises(DataError, match=r"baseline ase:ase.calculators.emt:EMT: .*for Si"):
        run_bench(
            tmp_path / "si.safetensors", structures=[bulk("Cu"), bulk("Si")], teacher=teacher,
            plan=BESIDE, baselines=[load_baseline("ase:ase.calculators.emt:EMT", "cpu")],
        )  # fmt: skip


# Kernels -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel_record():
    """One op and a middling case, to be quick."""
    suite = next(s for s in kernel_work.list_suites() if s.function.__name__ == "segment_sum")
    case = next(c for c in suite.cases if c.name == "empty segments")
    suites = [replace(suite, cases=(replace(case, production=True),))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_work, "list_suites", lambda: suites)
        patch.setattr(report_kernels, "VARIANTS", ("triton", "eager"))
        return report_kernels.measure_kernels(torch.device("cpu"), budget=0.1)


def test_kernels_say_what_cannot_be_measured(kernel_record):
    rows = {(r.direction, r.variant): r for r in kernel_record.rows}
    assert rows["forward", "triton"].status == "not-run"
    assert "CUDA" in rows["forward", "triton"].reason
    eager = rows["forward", "eager"]
    assert eager.error < 1e-6
    assert 0.0 < eager.share < 10.0
    assert eager.floor == pytest.approx(rows["forward", "triton"].floor)
    assert tabulate_kernels(kernel_record)[1][0][3:5] == ["needs a GPU", "–"]


def test_ops_are_chosen_by_name(kernel_record):
    """By the whole name, or all that begin with it and a comma; shipped widths and directed messages are among them."""
    known = report_kernels.list_ops(torch.device("cuda"))
    assert len(known) == len(set(known))
    choose = report_kernels.choose_ops
    assert choose(None, known) == set(known)
    assert choose(["moments", "evaluation, m2-l"], known) == {
        "moments", "moments, C=32", "moments, C=64", "moments, directed", "moments, C=32, directed",
        "moments, C=64, directed", "evaluation, m2-l",
    }  # fmt: skip
    assert choose(["evaluation"], known) == {
        "evaluation, 1 hop", "evaluation, 2 hops", "evaluation, m2-l", "evaluation, 2 hops directed",
        "evaluation, m2-l directed", "evaluation, m3-l",
    }  # fmt: skip
    with pytest.raises(UsageError, match="--op moment: nothing of that name is measured here"):
        choose(["moment", "moments"], known)
    on_cpu = report_kernels.list_ops(torch.device("cpu"))
    assert {row.op for row in kernel_record.rows} <= set(on_cpu) < set(known)
    with pytest.raises(UsageError, match="--op moments"):
        report_kernels.measure_kernels(torch.device("cpu"), ops=["moments"])


def test_chosen_ops_alone_are_made_and_timed(monkeypatch):
    """Two sources of two entries each: the one without a chosen entry is not even asked."""
    suite = next(s for s in kernel_work.list_suites() if s.function.__name__ == "segment_sum")
    case = next(c for c in suite.cases if c.name == "tiny")
    work = kernel_work.prepare(
        suite, case.build(torch.device("cpu"), torch.float32), gradient=False
    )

    def make(device):
        yield replace(work, op="a")
        yield replace(work, op="b, wide")

    def refuse(device):
        raise AssertionError("nothing of it was chosen")

    makers = [(make, ("a", "b, wide")), (refuse, ("c", "d"))]
    monkeypatch.setattr(report_kernels, "list_makers", lambda device: makers)
    monkeypatch.setattr(report_kernels, "VARIANTS", ("eager",))
    told = []
    beside_record = report_kernels.measure_kernels(
        torch.device("cpu"), ops=["b"], budget=0.1, progress=lambda *told_now: told.append(told_now)
    )
    assert [row.op for row in beside_record.rows] == ["b, wide"]
    assert told == [("b, wide, forward, eager", 1, 1)]


def test_kernel_records_survive_a_file_and_edits_do_not(kernel_record, tmp_path):
    path = tmp_path / "kernels.json"
    path.write_text(kernel_record.model_dump_json())
    assert read_any(path) == kernel_record
    require(compare_speed(kernel_record, read_any(path)))
    content = json.loads(path.read_text())
    content["bandwidth"] *= 2.0
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed after"):
        read_any(path)


def test_a_wrong_kernel_has_no_time():
    suite = next(s for s in kernel_work.list_suites() if s.function.__name__ == "segment_sum")
    small = next(c for c in suite.cases if c.name == "tiny").build(
        torch.device("cpu"), torch.float32
    )
    work = kernel_work.prepare(suite, small, gradient=False)
    wrong = replace(work, definition=lambda compiler: lambda: 1.001 * work.exact)
    row = report_kernels._measure(wrong, "eager", 0.1)
    assert row.status == "failed"
    assert row.median is None
    # three hops of random weights round more, torch's float32 too
    near = replace(wrong, definition=lambda compiler: lambda: (1.0 + 2e-5) * work.exact)
    assert report_kernels._measure(near, "eager", 0.1).status == "failed"
    deep = replace(near, tolerance=kernel_work.TOLERANCE_DEEP)
    assert report_kernels._measure(deep, "eager", 0.1).status == "measured"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernels", "--compare-teacher"], "--kernels needs no model"),
        (["--kernels", "--op", "moonshine"], "--op moonshine: nothing of that name"),
        (["m.safetensors", "--op", "moments"], "--op chooses among the ops of --kernels"),
        ([], "nothing to judge"),
        (["m.safetensors", "--compare-teacher", "--gpumd", "gpumd"], "belong together"),
        (
            ["m.safetensors", "--compare-teacher", "--gpumd", "gpumd", "--nep", "nep.txt"],
            "--gpumd needs a CUDA device, this run is on cpu",
        ),
        (["m.safetensors", "--labels", "x.xyz", "--against", "y.json"], "--compare-teacher"),
        (["m.safetensors", "--compare-teacher", "--physics", "some"], "not one of auto"),
        (["m.safetensors", "--compare-teacher", "--physics", "-3"], "number of seconds above 0"),
        (["m.safetensors", "--compare-teacher", "--physics", "nan"], "number of seconds above 0"),
        (["m.safetensors"], "nothing to compare with; add --compare-teacher or --labels FILE"),
    ],
)
def test_command_refuses_what_it_cannot_honour(arguments, words, beside_models, tmp_path):
    given = [str(beside_models[0]) if word == "m.safetensors" else word for word in arguments]
    done = CliRunner().invoke(
        app, ["bench", "--out", str(tmp_path / "out"), "--device", "cpu", *given]
    )
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


def test_options_that_mean_nothing_for_a_record_are_refused(beside_record, kernel_record, tmp_path):
    path = tmp_path / "a.json"
    write_record(beside_record, path)
    every = (
        ["--compare-teacher"], ["--labels", "l.h5"], ["--structures", "s.xyz"], ["--teacher", "t"],
        ["--teacher-weights", "w"], ["--baseline", "b"], ["--gpumd", "g"], ["--nep", "n"], ["--temperature", "300"],
        ["--sizes", "64"], ["--frames", "4"], ["--steps", "4"], ["--budget", "1"], ["--physics", "none"],
        ["--time-limit", "9"], ["--quick"], ["--device", "cpu"],
    )  # fmt: skip
    for option in every:
        error = CliRunner().invoke(app, ["bench", str(path), *option]).exception
        assert isinstance(error, UsageError), option
        assert str(error) == f"a record was measured already; leave out {option[0]}"
    error = (
        CliRunner()
        .invoke(app, ["bench", str(path), "--against", str(path), *every[0], "--out", "o"])
        .exception
    )
    assert isinstance(error, UsageError)
    assert str(error).endswith("leave out --compare-teacher, --out")
    kernels = tmp_path / "kernels.json"
    kernels.write_text(kernel_record.model_dump_json())
    done = CliRunner().invoke(app, ["bench", str(kernels)])
    assert done.exit_code == 0
    assert "| segment_sum | forward |" in (tmp_path / "kernels.md").read_text()
    assert "copies at" in (tmp_path / "kernels.md").read_text()
    error = CliRunner().invoke(app, ["bench", str(kernels), "--require", "0.9"]).exception
    assert isinstance(error, UsageError)
    assert "record of kernels" in str(error)
