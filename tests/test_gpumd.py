"""GPUMD beside the student: its input, its output, its faults. Not here: the program itself, which needs a GPU."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.io import read
from planting import scale_times
from producers import PLAN, edit

from fastff.checkpoint import save_model
from fastff.errors import DataError, MissingDependencyError, UsageError
from fastff.models import build_student, configure_student
from fastff.report import gpumd
from fastff.report.bench import run_bench
from fastff.report.gpumd import (
    check_gpumd,
    read_nep_elements,
    read_speeds,
    time_gpumd,
    write_input,
)
from fastff.report.html import render_report
from fastff.report.markdown import tabulate_dynamics
from fastff.report.record import verify_record
from fastff.report.tables import tabulate_baselines
from fastff.teachers import load_teacher
from fastff.teachers.weights import hash_file

SPEEDS = """---------------------------------------------------------------
Time used for this run = 0.02 second.
Speed of this run = {speed:g} atom*step/second.
---------------------------------------------------------------
"""


@pytest.fixture
def nep(tmp_path):
    path = tmp_path / "nep.txt"
    path.write_text("nep4 2 Cu Au\ncutoff 6 5\n")
    return path


def make_program(tmp_path, body):
    """A program that checks its input as GPUMD reads it and prints in GPUMD's format."""
    path = tmp_path / "gpumd"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


GOOD = f"""
lines = open("model.xyz").read().splitlines()
n = int(lines[0])
assert 'Lattice="' in lines[1] and "Properties=species:S:1:pos:R:3" in lines[1]
assert len(lines) == n + 2
words = [line.split() for line in open("run.in")]
assert words[0][0] == "potential" and open(words[0][1]).readline().startswith("nep4")
for k in range(sum(w[0] == "run" for w in words)):
    print('''{SPEEDS}'''.format(speed=1e5 * (1 if k == 0 else 10 + k)))
"""


def test_gpumd_is_run_and_read(tmp_path, nep):
    cells = [bulk("Cu", cubic=True).repeat(k) for k in (2, 3)]
    part, curve = time_gpumd(
        make_program(tmp_path, GOOD), nep, cells, temperature=300, time_step=2.0, budget=1.0,
        device="cuda",
    )  # fmt: skip
    assert [p.n_atoms for p in curve.points] == [32, 108]
    # the first run warms up: speeds 1.1, 1.2 and 1.3 million atom-steps/s are left
    assert curve.points[0].atom_steps_per_second == pytest.approx(1.2e6)
    assert curve.points[0].median == pytest.approx(32 / 1.2e6)
    assert part.identity == curve.identity
    assert part.comparisons == ()
    assert (curve.time_step, curve.start_temperature) == (2.0, 300.0)


def test_gpumd_out_of_memory_and_failure(tmp_path, nep):
    cells = [bulk("Cu", cubic=True).repeat(2)]
    arguments = {"temperature": 300, "time_step": 2.0, "budget": 1.0, "device": "cuda"}
    full = make_program(tmp_path, "raise SystemExit('CUDA Error: out of memory')")
    assert time_gpumd(full, nep, cells, **arguments)[1].points[0].status == "out-of-memory"
    broken = make_program(tmp_path, "raise SystemExit('Input Error: no such potential')")
    with pytest.raises(DataError, match="no such potential"):
        time_gpumd(broken, nep, cells, **arguments)


def test_gpumd_is_named_with_its_version_and_the_potential_may_be_anywhere(tmp_path, nep):
    """GPUMD splits its input at spaces; which program it was must be in the record."""
    folder = tmp_path / "my potentials"
    folder.mkdir()
    moved = nep.rename(folder / "Cu Au.txt")
    head = "print('*    (Graphics...)    *\\n*            version 5.6           *')\n"
    program = make_program(tmp_path, head + GOOD + "assert len(words[0]) == 2\n")
    part, curve = time_gpumd(
        program, moved, [bulk("Cu", cubic=True).repeat(2)], temperature=300, time_step=2.0,
        budget=1.0, device="cuda",
    )  # fmt: skip
    assert curve.label == "GPUMD 5.6 (Cu Au.txt)"
    assert part.identity["version"] == "5.6"
    assert part.identity["program_sha256"] == hash_file(program)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (GOOD.replace("1e5 *", "0 *"), "printed 0 speeds instead of 4.*code 0"),
        (GOOD.replace("1e5 *", "float('nan') *"), "printed 0 speeds"),
        (GOOD + "import os; os.kill(os.getpid(), 11)", "code -11"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe bad')", "printed 0 speeds"),
        ("", "code 0: nothing"),
    ],
)
def test_what_gpumd_must_not_print_is_an_error_in_one_line(tmp_path, nep, body, words):
    program, cells = make_program(tmp_path, body), [bulk("Cu", cubic=True).repeat(2)]
    with pytest.raises(DataError, match=words):
        time_gpumd(program, nep, cells, temperature=300, time_step=2.0, budget=1.0, device="cuda")


def test_gpumd_is_checked_before_any_work(tmp_path, nep):
    program, copper = make_program(tmp_path, GOOD), bulk("Cu")
    check_gpumd(program, nep, copper)
    with pytest.raises(DataError, match="does not know Si"):
        check_gpumd(program, nep, bulk("Si"))
    with pytest.raises(UsageError, match="fully periodic"):
        check_gpumd(program, nep, fcc111("Cu", (2, 2, 3), vacuum=8.0))
    program.chmod(0o644)
    with pytest.raises(MissingDependencyError, match="may not be executed"):
        check_gpumd(program, nep, copper)
    with pytest.raises(MissingDependencyError, match="no such file"):
        check_gpumd(tmp_path, nep, copper)


def test_gpumd_that_hangs_is_too_slow_and_ends_the_curve(tmp_path, nep, monkeypatch):
    monkeypatch.setattr(gpumd, "LONGEST", (0.0, 0.5))
    cells = [bulk("Cu", cubic=True).repeat(k) for k in (2, 3)]
    program = make_program(tmp_path, "import time\ntime.sleep(60)\n")
    _, curve = time_gpumd(
        program, nep, cells, temperature=300, time_step=2.0, budget=1.0, device="cuda"
    )
    assert [p.status for p in curve.points] == ["too-slow"]
    assert "take more than 0.5 s" in curve.points[0].reason


def test_gpumd_input_and_output_by_hand(tmp_path, nep):
    folder = tmp_path / "input"
    folder.mkdir()
    write_input(folder, bulk("Cu"), nep, temperature=300, time_step=2.0, n_steps=100)
    run = (folder / "run.in").read_text().splitlines()
    assert run[:5] == [
        "potential nep.txt",
        "velocity 300",
        "ensemble nve",
        "time_step 2",
        "run 100",
    ]
    assert (folder / "nep.txt").read_text() == nep.read_text()
    # rows of the lattice are its vectors
    odd = bulk("Cu")
    odd.set_cell([[3, 0, 0], [1, 4, 0], [0, 1, 5]])
    write_input(folder, odd, nep, temperature=300, time_step=2.0, n_steps=100)
    assert read(folder / "model.xyz").cell.array == pytest.approx(odd.cell.array)
    assert read_speeds(SPEEDS.format(speed=2.5e7)) == [2.5e7]
    assert read_nep_elements(nep) == ("Cu", "Au")
    nep.write_text("<html>")
    with pytest.raises(DataError, match="no NEP model file"):
        read_nep_elements(nep)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run with a student and an analytic teacher on the CPU beside a program that prints what GPUMD prints."""
    folder = tmp_path_factory.mktemp("gpumd")
    nep = folder / "nep.txt"
    nep.write_text("nep4 2 Cu Au\ncutoff 6 5\n")
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    save_model(folder / "m1.safetensors", student, {"teacher": {}, "temperature": [300, 400]})
    return run_bench(
        folder / "m1.safetensors",
        structures=[bulk("Cu", cubic=True)],
        teacher=load_teacher("analytic:morse", device="cpu"),
        plan=replace(PLAN, sizes=(32,), outside=False),
        gpumd=(make_program(folder, GOOD), nep),
    ).record


def test_steps_of_gpumd_are_in_the_tables_as_steps(record):
    """1.2 million atom-steps/s of 32 atoms are 0.0267 ms, and no ASE call."""
    (row,) = [row for row in tabulate_baselines(record)[1] if row[0] == "GPUMD"]
    assert row[1] == "only timed"
    assert row[-1] == "0.0267 ms (a step of its own)"
    time_step = record.find_curve("GPUMD", "program").time_step
    headings, rows = tabulate_dynamics(record)
    (row,) = [row for row in rows if row[1] == "own program"]
    # the mean of 1.1, 1.2 and 1.3 million atom-steps/s as times
    per_step = np.mean(32 / np.array([1.1e6, 1.2e6, 1.3e6]))
    expected = 86400.0 / per_step * time_step * 1e-6
    place = next(k for k, heading in enumerate(headings) if heading.startswith("ns/day"))
    assert float(row[place].replace(",", "")) == pytest.approx(expected, rel=0.005)
    page = render_report(record)
    assert "GPUMD (nep.txt)" in page
    assert "own program: a whole NVE step of GPUMD" in page


def find_gpumd(content):
    return next(curve for curve in content["speed"] if curve["role"] == "GPUMD")


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda c: scale_times("GPUMD", 1e3)(c), "not those that were measured|s of timing"),
        (lambda c: find_gpumd(c).update(time_step=0.001), "time steps|not those that were"),
        (lambda c: find_gpumd(c).update(role="teacher"), "swapped|one of|contradict"),
        (lambda c: find_gpumd(c)["identity"].update(nep_sha256="0"), "belong to no baseline"),
        (lambda c: find_gpumd(c)["identity"].update(version="9"), "belong to no baseline"),
    ],
)
def test_planted_errors_in_its_row_are_caught(record, plant, words):
    with pytest.raises(DataError, match=words):
        verify_record(edit(record, plant, "assembled"))
