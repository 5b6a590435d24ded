"""Bench runs that end before everything is measured: nothing measured is lost, and what is missing is said."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from ase.build import bulk
from producers import edit

from fastff.checkpoint import save_model
from fastff.cli.bench import bench, judge
from fastff.cli.bench_options import parse_duration
from fastff.cli.bench_view import print_results
from fastff.errors import AccuracyError, DataError, UsageError
from fastff.models import build_student, configure_student
from fastff.report.bench import run_bench
from fastff.report.ending import EndedEarlyError, Watch
from fastff.report.gpumd import time_gpumd
from fastff.report.html import read_embedded, render_report
from fastff.report.markdown import write_tables
from fastff.report.plan import BenchPlan
from fastff.report.record import read_record, verify_record
from fastff.report.verdict import format_seconds
from fastff.teachers import load_teacher

PLAN = BenchPlan(
    n_frames=4, n_temperatures=2, n_equilibrate=2, interval=2, sizes=(32, 256), budget=0.3,
    md_atoms=32, outside=True, n_noise=2, physics="none",
)  # fmt: skip
QUICK = (
    "--compare-teacher", "--quick", "--frames", "4", "--steps", "2", "--sizes", "32,256", "--budget", "0.5",
    "--device", "cpu",
)  # fmt: skip

WAITING = """
import os, pathlib, time
from ase.calculators.emt import EMT

class Waiting(EMT):
    def calculate(self, atoms=None, *arguments, **keywords):
        if len(atoms) == int(os.environ["WAIT_AT"]):
            pathlib.Path(os.environ["WAITING"]).touch()
            time.sleep(300)
        super().calculate(atoms, *arguments, **keywords)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    path = tmp_path_factory.mktemp("model") / "cu.safetensors"
    save_model(path, student, {"teacher": {}, "temperature": [300, 400]})
    return path


@pytest.fixture(scope="module")
def structure(model):
    path = model.parent / "cu.xyz"
    bulk("Cu", cubic=True).write(path)
    return path


@pytest.fixture
def teacher():
    return load_teacher("analytic:emt", device="cpu")


def start(tmp_path, model, structure, wait_at, *options):
    """A process of ``fastff bench`` whose teacher waits when it is asked for ``wait_at`` atoms, once it does."""
    (tmp_path / "waiting.py").write_text(WAITING)
    sign, out = tmp_path / "sign", tmp_path / "out"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-m", "fastff", "bench", str(model), *QUICK, "--structures", str(structure),
         "--teacher", "ase:waiting:Waiting", "--out", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "WAIT_AT": str(wait_at), "WAITING": str(sign)},
    )  # fmt: skip
    end = time.monotonic() + 200
    while not sign.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.1)
    return process, out


def finish(process, number):
    process.send_signal(number)
    output, errors = process.communicate(timeout=100)
    assert "Traceback" not in errors
    return output


def test_terminated_while_the_teacher_is_timed(tmp_path, model, structure):
    """The student's times and the teacher's at the smaller size are on the page."""
    process, out = start(tmp_path, model, structure, 256, "--physics", "none", "--require", "0")
    output = finish(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM; {out} holds what was measured" in output
    record = read_record(out / "bench.json")
    assert record.ended.startswith("ended early by SIGTERM during speed; not measured: ")
    assert "waiting:Waiting through ASE above 32 atoms" in record.ended
    assert "fastff m1 fastff md step" in record.ended
    assert {(c.role, c.mode, p.n_atoms) for c in record.speed for p in c.points} == {
        ("student", "ase-call", 32), ("student", "ase-call", 256), ("teacher", "ase-call", 32),
    }  # fmt: skip
    assert record.teacher_noise is not None
    assert record.verdict.passed is not True
    page, table = (out / "report.html").read_text(), (out / "bench.md").read_text()
    assert read_embedded(page) == record
    for text in (page, table, output):
        assert f"Incomplete: {record.ended}." in text
    assert (out / "heldout.h5").exists()


def test_interrupted_while_physics_is_measured(tmp_path, model, structure):
    """Pairs are done before crystals, whose unit has one atom."""
    process, out = start(tmp_path, model, structure, 1, "--physics", "60")
    output = finish(process, signal.SIGINT)
    assert process.returncode == 130
    assert "stopped by SIGINT" in output
    record = read_record(out / "bench.json")
    assert [item.kind for item in record.physics.items] == ["dimers"]
    left = {entry.title: entry.reason for entry in record.physics.left_out}
    assert left["Equation of state"] == left["Stability"] == "the run ended early"
    assert record.ended.startswith("ended early by SIGINT during physics; not measured: ")
    assert record.ended.endswith(", stability, speed")
    assert record.speed == ()
    page = (out / "report.html").read_text()
    assert f"<p>Not measured: {record.ended}." in page
    assert "the teacher was not run" not in page


def test_without_a_compared_frame_nothing_is_written(tmp_path, model, structure):
    process, out = start(tmp_path, model, structure, 64, "--physics", "none")
    output = finish(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM before any frame was compared; nothing is written" in output
    assert not out.exists()


def run(model, teacher, watch, **changes):
    return run_bench(
        model, structures=[bulk("Cu", cubic=True)], teacher=teacher, watch=watch, **changes
    ).record


def test_a_limit_of_time_is_looked_at_between_sizes(model, teacher, capsys):
    """It is over while the student is timed at the smaller size, whose time stays."""
    watch = Watch()

    def progress(message, done, total):
        if message.startswith("timing: fastff m1, 32 atoms"):
            watch.limit = 0.0

    record = run(model, teacher, watch, plan=replace(PLAN, outside=False), progress=progress)
    assert [(c.role, c.mode, len(c.points)) for c in record.speed] == [("student", "ase-call", 1)]
    shown = format_seconds(record.speed[0].points[0].median)  # beside no time of the teacher
    print_results(record)
    for text in (render_report(record), write_tables(record), capsys.readouterr().out):
        assert shown in text
    assert record.ended.startswith(
        "ended early by the time limit of 0 s during speed; not measured: fastff m1 through ASE above 32 atoms, "
        "fastff m1 model alone, "
    )


def test_what_a_limit_leaves_of_accuracy(model, teacher):
    """The frames that decide are compared in any case; no required accuracy is met by them alone."""
    record = run(model, teacher, Watch(0.0), plan=replace(PLAN, required=-100.0))
    assert [c.name for c in record.comparisons] == ["held-out frames"]
    assert "during accuracy; not measured: 1.5 × the highest temperature" in record.ended
    assert record.ended.endswith("noise floor, speed")
    assert record.verdict.passed is None
    assert "reached, but the run ended early" in record.verdict.lines[0]
    with pytest.raises(AccuracyError, match="not complete: ended early by the time limit"):
        judge(record, None)
    verify_record(record)

    def claim(content):
        content["verdict"]["passed"] = True

    with pytest.raises(DataError, match="passed=True"):
        verify_record(edit(record, claim))
    with pytest.raises(DataError, match="the verdict says"):
        verify_record(edit(record, lambda content: content.update(ended=None)))


def test_the_option_of_the_limit(run_cli, model, structure, tmp_path):
    out = tmp_path / "out"
    given = ("bench", model, *QUICK, "--structures", structure, "--teacher", "analytic:emt")
    code, output, _ = run_cli(*given, "--out", out, "--time-limit", "0.001")
    assert code == 0
    assert "ended early by the time limit of 0.001 s before noise floor" in output
    assert read_record(out / "bench.json").physics is None
    code, _, errors = run_cli(
        *given, "--out", out, "--force", "--time-limit", "0.001min", "--require", "0"
    )
    assert code == 6
    assert "accuracy" in errors
    assert [parse_duration(text) for text in ("90", "1.5min", "0.5 h")] == [90.0, 90.0, 1800.0]
    for text in ("0", "-3", "soon", "5 days", ""):
        with pytest.raises(UsageError, match="--time-limit"):
            parse_duration(text)


def test_an_error_while_timing_keeps_what_was_measured(
    run_cli, model, structure, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("planted")

    monkeypatch.setattr("fastff.report.race.time_dynamics", fail)
    out = tmp_path / "out"
    code, output, errors = run_cli(
        "bench", model, *QUICK, "--structures", structure, "--teacher", "analytic:emt", "--physics", "none",
        "--out", out,
    )  # fmt: skip
    assert code == 1
    assert "unexpected RuntimeError: planted" in errors
    assert f"wrote {out / 'report.html'}" in output
    record = read_record(out / "bench.json")
    assert record.ended == (
        "ended early by an error (RuntimeError: planted) during speed; not measured: fastff m1 ASE step, "
        "ase:ase.calculators.emt:EMT ASE step"
    )
    assert record.headline is not None
    assert record.find_curve("student", "md-loop") is not None


def test_sizes_of_gpumd_that_were_done_are_kept(tmp_path):
    program, nep, kept = tmp_path / "gpumd", tmp_path / "nep.txt", []
    nep.write_text("nep4 1 Cu\n")
    program.write_text(
        f"#!{sys.executable}\nprint('Speed of this run = 1e6 atom*step/second\\n' * 4)"
    )
    program.chmod(0o755)
    watch = Watch()
    with pytest.raises(EndedEarlyError, match="time limit"):
        time_gpumd(
            program, nep, [bulk("Cu", cubic=True).repeat(n) for n in (2, 3)], temperature=300, time_step=2.0,
            budget=1.0, device="cuda", progress=lambda _: setattr(watch, "limit", 0.0), watch=watch,
            keep=lambda *found: kept.append(found),
        )  # fmt: skip
    assert [p.n_atoms for p in kept[0][1].points] == [32]


def test_signals_are_raised_at_once_unless_held():
    watch, before = Watch(math.inf), signal.getsignal(signal.SIGTERM)
    watch.check()
    with watch.listen():
        with watch.hold():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(EndedEarlyError, match="SIGTERM"):
            watch.check()
        with pytest.raises(SystemExit) as ending:  # the second one acts at once
            os.kill(os.getpid(), signal.SIGINT)
        assert ending.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    watch = Watch()
    with watch.listen(), pytest.raises(EndedEarlyError, match="SIGINT"):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        watch.leave()


def test_help_promises_no_time_that_a_run_does_not_keep():
    """Of a plan that takes two minutes or ten, by how busy the cores are, and of a limit that the frames may pass."""
    hints = get_type_hints(bench, include_extras=True)
    quick, limit = (hints[name].__metadata__[0].help for name in ("quick", "time_limit"))
    assert "two idle cores" in quick
    assert "busy" in quick
    assert "however long" in limit
