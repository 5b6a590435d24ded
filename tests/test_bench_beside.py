"""Beside the student: baselines, kernels, and earlier records; with planted errors that must be caught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from producers import edit, seal
from typer.testing import CliRunner

from fastff.checkpoint import save_model
from fastff.cli import app
from fastff.cli.bench_records import print_changes, require_accuracy
from fastff.errors import (
    AccuracyError,
    DataError,
    ModelFileError,
    UnsupportedElementError,
    UsageError,
)
from fastff.models import build_student, configure_student
from fastff.report import kernel_work
from fastff.report import kernels as report_kernels
from fastff.report.baselines import check_names, load_baseline
from fastff.report.bench import run_bench
from fastff.report.html import render_report
from fastff.report.markdown import write_tables
from fastff.report.plan import BenchPlan
from fastff.report.record import read_record, verify_record, write_record
from fastff.report.regression import (
    SlowdownError,
    check_machines,
    compare_speed,
    read_any,
    read_comparable,
)
from fastff.report.regression import require_no_slowdown as require
from fastff.report.speed import SpeedPoint, summarize
from fastff.report.tables import tabulate_baselines, tabulate_kernels
from fastff.teachers import load_teacher

PLAN = BenchPlan(
    n_frames=4, n_temperatures=2, n_equilibrate=2, interval=2, sizes=(32,), budget=0.3,
    md_atoms=32, outside=False, n_noise=2, physics="none",
)  # fmt: skip

RESULTS = Path(__file__).parents[1] / "bench" / "results"


def save(path: Path, architecture: str, seed: int) -> Path:
    torch.manual_seed(seed)
    student = build_student(configure_student(architecture, (29,), cutoff=4.0))
    save_model(path, student, {"teacher": {}, "temperature": [300, 400]})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "m1.safetensors", "m1", 0), save(folder / "painn.safetensors", "painn", 1)


@pytest.fixture(scope="module")
def record(models):
    """One run with a second model file and an ASE calculator beside the student."""
    specs = [str(models[1]), "ase:ase.calculators.emt:EMT"]
    return run_bench(
        models[0],
        structures=[bulk("Cu", cubic=True)],
        teacher=load_teacher("analytic:morse", device="cpu"),
        plan=PLAN,
        baselines=[load_baseline(spec, "cpu") for spec in specs],
    ).record


def test_baselines_are_in_the_same_tables(record):
    names = [b.name for b in record.baselines]
    assert names[1] == "ase:ase.calculators.emt:EMT"
    for baseline in record.baselines:
        assert baseline.comparisons[0].frames_digest == record.main.frames.digest
        assert record.find_curve(baseline.name, "ase-call").points[0].status == "measured"
        assert record.find_curve(baseline.name, "ase-md") is not None
    _, rows = tabulate_baselines(record)
    assert len(rows) == 3
    text, page = write_tables(record), render_report(record)
    for cell in (cell for row in rows for cell in row):
        assert cell in text
        assert cell in page
    # inner paths of students only: an ASE calculator has none
    for role in ("student", names[0]):
        assert {c.mode for c in record.speed if c.role == role} >= {
            "model",
            "model-list",
            "md-loop",
        }
    keys = [(c.role, c.mode) for c in record.speed]
    assert len(keys) == len(set(keys))
    assert {c.mode for c in record.speed if c.role == names[1]} == {"ase-call", "ase-md"}


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
def test_planted_errors_are_caught(record, plant, words):
    with pytest.raises(DataError, match=words):
        verify_record(edit(record, plant))


def test_baselines_are_checked_before_any_work(models):
    one = load_baseline(str(models[1]), "cpu")
    with pytest.raises(UnsupportedElementError, match="does not know Si"):
        one.check_elements([bulk("Si")])
    with pytest.raises(UsageError, match="given twice"):
        check_names([one, one], {})
    with pytest.raises(UsageError, match="the student itself"):
        check_names([one], {one.identity["sha256"]: "student"})
    with pytest.raises(UsageError, match="no such model file"):
        load_baseline("runs/nothing.pt", "cpu")


def test_elements_that_anyone_does_not_know_are_refused_before_the_teacher_works(
    models, tmp_path, monkeypatch
):
    teacher = load_teacher("analytic:morse", device="cpu")
    monkeypatch.setattr(teacher, "label", lambda structures: pytest.fail("the teacher worked"))
    with pytest.raises(UnsupportedElementError, match=r"structure 1 \(Si2\): atoms contain Si"):
        run_bench(models[0], structures=[bulk("Cu"), bulk("Si")], teacher=teacher, plan=PLAN)
    # an ASE calculator that says of no element that it knows it is asked
    student = build_student(configure_student("m1", (14, 29), cutoff=4.0))
    save_model(tmp_path / "si.safetensors", student, {"teacher": {}, "temperature": [300, 400]})
    with pytest.raises(DataError, match=r"baseline ase:ase.calculators.emt:EMT: .*for Si"):
        run_bench(
            tmp_path / "si.safetensors", structures=[bulk("Cu"), bulk("Si")], teacher=teacher,
            plan=PLAN, baselines=[load_baseline("ase:ase.calculators.emt:EMT", "cpu")],
        )  # fmt: skip


# Earlier records -----------------------------------------------------------------------------------------------------


def slow_down(record, factor):
    """The same record with every time of the student multiplied."""
    curves = []
    for curve in record.speed:
        if curve.role == "student":
            points = tuple(
                summarize(p.n_atoms, p.formula, [factor * s for s in p.seconds], p.peak_memory)
                if p.status == "measured" else p
                for p in curve.points
            )  # fmt: skip
            curve = curve.model_copy(update={"points": points})
        curves.append(curve)
    return seal(record.model_copy(update={"speed": tuple(curves)}), "measured")


def quiet(record):
    """Times with a spread of one percent, so that noise is known."""
    curves = []
    for curve in record.speed:
        points = tuple(
            summarize(p.n_atoms, p.formula, list(p.median * np.linspace(0.99, 1.01, 7)), None)
            if p.status == "measured" else p
            for p in curve.points
        )  # fmt: skip
        curves.append(curve.model_copy(update={"points": points}))
    return seal(record.model_copy(update={"speed": tuple(curves)}), "measured")


def test_slowdown_beyond_noise_is_caught(record, tmp_path):
    before = quiet(record)
    require(compare_speed(before, before))
    require(compare_speed(before, slow_down(before, 1.05)))
    require(compare_speed(before, slow_down(before, 0.5)))
    with pytest.raises(SlowdownError, match=r"1\.30 times"):
        require(compare_speed(before, slow_down(before, 1.3)))
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_record(before, first)
    write_record(slow_down(before, 1.3), second)
    done = CliRunner().invoke(app, ["bench", str(second), "--against", str(first)])
    assert done.exception.exit_code == 6
    assert CliRunner().invoke(app, ["bench", str(first), "--against", str(second)]).exit_code == 0


def test_what_is_lost_is_a_slowdown_and_what_is_left_out_is_named(record, capsys):
    """Out of memory or broken where there was a time is worse than slow; what is not timed at all must be seen."""
    before = quiet(record)

    def lose(status):
        curves = tuple(
            c.model_copy(update={"points": tuple(
                SpeedPoint(
                    n_atoms=p.n_atoms, formula=p.formula, status=status, reason="planted",
                    volume_per_atom=p.volume_per_atom,
                )
                for p in c.points
            )}) if (c.role, c.mode) == ("student", "md-loop") else c
            for c in before.speed
        )  # fmt: skip
        return before.model_copy(update={"speed": curves})

    for status in ("out-of-memory", "failed"):
        with pytest.raises(SlowdownError, match=f"1 of .* md-loop.*now none: {status}, planted"):
            require(compare_speed(before, lose(status)))
    changes = compare_speed(before, lose("too-slow"))
    require(changes)
    assert len(changes) == len(compare_speed(before, before))
    print_changes(changes)
    assert "too-slow, planted" in " ".join(capsys.readouterr().out.split())


def test_noise_is_no_slowdown(record):
    """Medians 20 % apart, but the repeats of both spread over a factor of two."""
    before = quiet(record)
    times = np.linspace(0.6, 1.4, 9)

    def spread(factor):
        curves = tuple(
            c.model_copy(update={"points": tuple(
                summarize(p.n_atoms, p.formula, list(factor * times), None) for p in c.points
            )})
            for c in before.speed
        )  # fmt: skip
        return before.model_copy(update={"speed": curves})

    require(compare_speed(spread(1.0), spread(1.2)))


def test_unlike_machines_and_students_are_not_compared(record):
    other = record.model_copy(
        update={"provenance": record.provenance.model_copy(update={"cpu": "another"})}
    )
    with pytest.raises(DataError, match="unlike machines"):
        compare_speed(other, record)
    with pytest.raises(DataError, match="on cpu, this run is on cuda"):
        check_machines(record, record.provenance, "cuda:0")
    larger = record.model_copy(
        update={"model": record.model.model_copy(update={"n_parameters": 1})}
    )
    with pytest.raises(DataError, match="different students"):
        compare_speed(larger, record)
    for change, word in (
        ({"elements": ("Cu", "Au")}, "elements Cu Au"),
        ({"cutoff": 6.0}, "cut-off 6 Å"),
        ({"dtype": "float64"}, "float64"),
    ):
        other = record.model_copy(update={"model": record.model.model_copy(update=change)})
        with pytest.raises(DataError, match=word):
            compare_speed(other, record)


def test_other_materials_and_time_steps_are_not_compared(record):
    """Sixteen of each of two elements have as many atoms as 32 of one, and other neighbors."""

    def change(formula, time_step):
        curves = tuple(
            c.model_copy(update={
                "points": tuple(p.model_copy(update={"formula": formula}) for p in c.points),
                "time_step": None if c.time_step is None else time_step,
            })
            for c in record.speed
        )  # fmt: skip
        return record.model_copy(update={"speed": curves})

    every = compare_speed(record, record)
    curve = record.find_curve("student", "ase-md")
    volume, kelvin = curve.points[0].volume_per_atom, curve.start_temperature
    with pytest.raises(DataError, match=r"atoms of CuAu.*--structures"):
        compare_speed(change("CuAu", 2.0), record)
    calls = compare_speed(change("Cu", 0.5), record)
    assert {c.what.split(",")[0] for c in calls} == {"model", "model-list", "ase-call"}
    assert {c.what for c in every} - {c.what for c in calls} == {
        f"{mode}, 32 atoms of Cu, {volume:.3g} Å³/atom, 2 fs, {kelvin:g} K"
        for mode in ("md-loop", "ase-md")
    }


def test_other_densities_and_temperatures_are_not_compared(record):
    """A denser crystal has more neighbors, a hotter one more rebuilt lists."""

    def change(volume, kelvin):
        curves = tuple(
            c.model_copy(update={
                "points": tuple(p.model_copy(update={"volume_per_atom": volume}) for p in c.points),
                "start_temperature": None if c.time_step is None else kelvin,
            })
            for c in record.speed
        )  # fmt: skip
        return record.model_copy(update={"speed": curves})

    first = change(11.5, 300.0)
    assert len(compare_speed(first, change(11.501, 300.0))) == len(compare_speed(first, first))
    with pytest.raises(DataError, match=r"11\.5 Å³/atom.*12 Å³/atom"):
        compare_speed(first, change(12.0, 300.0))
    calls = compare_speed(first, change(11.5, 900.0))
    assert {c.what.split(",")[0] for c in calls} == {"model", "model-list", "ase-call"}
    # a record from before they were stored
    assert len(compare_speed(change(None, None), first)) == len(compare_speed(first, first))


def test_accuracy_that_fails_comes_before_a_comparison_that_cannot_be_made(record):
    from fastff.cli.bench import judge

    verdict = record.verdict.model_copy(update={"required": 1.0, "passed": False})
    failed = record.model_copy(update={"verdict": verdict})
    larger = record.model_copy(
        update={"model": record.model.model_copy(update={"n_parameters": 1})}
    )
    with pytest.raises(AccuracyError):
        judge(failed, larger)
    with pytest.raises(DataError, match="different students"):
        judge(record, larger)


def test_a_record_of_no_use_is_refused_with_those_that_are(record, models, tmp_path):
    good, silent = tmp_path / "good.json", tmp_path / "silent.json"
    write_record(record, good)
    untimed = record.model_copy(update={"speed": (), "ratios": (), "baselines": ()})
    untimed = untimed.model_copy(update={"headline_size": None})
    write_record(seal(untimed, "assembled"), silent)
    other = tmp_path / "engine" / "md.json"
    other.parent.mkdir()
    other.write_text('{"what": "steps"}')
    for path, reason in (
        (silent, "without timings"),
        (other, "has schema None"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        for arguments in (
            [str(good), "--against", str(path)],
            [str(models[0]), "--compare-teacher", "--teacher", "analytic:morse", "--against", str(path)],
        ):  # fmt: skip
            out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
            own = [] if arguments[0].endswith(".json") else out
            done = CliRunner().invoke(app, ["bench", *arguments, *own])
            assert isinstance(done.exception, DataError)
            said = str(done.exception)
            assert reason in said
            assert said.endswith(f"usable: {good}")
            assert "\n" not in said
    with pytest.raises(DataError, match="no record beside it is usable"):
        read_comparable(
            other.parent / "none.json", lambda r: check_machines(r, r.provenance, "cuda")
        )


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
    record = report_kernels.measure_kernels(
        torch.device("cpu"), ops=["b"], budget=0.1, progress=lambda *told_now: told.append(told_now)
    )
    assert [row.op for row in record.rows] == ["b, wide"]
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
def test_command_refuses_what_it_cannot_honour(arguments, words, models, tmp_path):
    given = [str(models[0]) if word == "m.safetensors" else word for word in arguments]
    done = CliRunner().invoke(
        app, ["bench", "--out", str(tmp_path / "out"), "--device", "cpu", *given]
    )
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


# Records that exist --------------------------------------------------------------------------------------------------


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


def test_options_that_mean_nothing_for_a_record_are_refused(record, kernel_record, tmp_path):
    path = tmp_path / "a.json"
    write_record(record, path)
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
