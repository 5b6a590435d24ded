"""``fastff train`` as it is typed, on a teacher that costs nothing. Not here: the distillation behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.progress import Progress

from fastff.cli import root
from fastff.cli.train import parse_temperatures, read_options
from fastff.distill.formats import read_labels
from fastff.distill.run import Listener, split_first
from fastff.distill.train import TrainSettings
from fastff.errors import DataError, UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_train(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``fastff train`` in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as info:
            root.main(["train", *map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return int(info.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """One simulation of copper, forty labelled frames that name no trajectory and no teacher."""
    rng = np.random.default_rng(2)
    frames: list[Atoms] = []
    for _ in range(40):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.08, size=(4, 3))
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    path = tmp_path / "labels.xyz"
    write(path, frames, format="extxyz")
    return path


SHORT = ("--student", "m1", "--steps", "30", "--cutoff", "4")


@pytest.mark.parametrize("teacher", [None, "VASP 6.4"])
def test_verdict_on_labels_says_what_the_test_frames_are(
    run_train: Run, labels: Path, tmp_path: Path, teacher: str | None
) -> None:
    if teacher is not None:  # one that no command can load
        frames = read(labels, index=":")
        for atoms in frames:
            atoms.info["teacher"] = json.dumps({"name": teacher, "conservative": False})
        write(labels, frames, format="extxyz")
    code, out, err = run_train("--labels", labels, "--out", tmp_path / "run", *SHORT)
    assert code == 0, err
    assert "left out between blocks" in out
    assert "8 frames of other blocks of the file" in out
    assert ("Direct teacher" in out) == (teacher is not None)
    assert "only 8 test frames" in out
    assert "--labels FILE" in out
    assert "--compare-teacher" not in out


def test_doubtful_labels_are_named_wherever_they_are(
    run_train: Run, labels: Path, tmp_path: Path
) -> None:
    frames = read(labels, index=":")
    tested = split_first(read_labels(labels), seed=0).test[0]
    (absurd,) = (a for a in frames if np.allclose(a.positions, tested.atoms.positions))
    absurd.calc.results["energy"] += 1000.0
    broken = frames[-1].copy()
    broken.positions += 0.01
    broken.calc = SinglePointCalculator(broken, energy=0.0, forces=np.full((4, 3), np.nan))
    write(labels, [*frames, broken], format="extxyz")
    code, _, err = run_train("--labels", labels, "--out", tmp_path / "run", "--quiet", *SHORT)
    assert code == 0
    assert "energy outlier 1 frames" in err
    assert "1 more frames were set aside; the first: forces not finite" in err


def test_labels_that_cannot_be_split_leave_no_folder(
    run_train: Run, labels: Path, tmp_path: Path
) -> None:
    write(tmp_path / "few.xyz", read(labels, index=":3"), format="extxyz")
    code, out, err = run_train("--labels", tmp_path / "few.xyz", "--out", tmp_path / "run")
    assert (code, out) == (4, "")
    assert "3 frames are too few" in err
    assert not (tmp_path / "run").exists()


def test_resume_needs_only_the_folder(run_train: Run, labels: Path, tmp_path: Path) -> None:
    first = run_train("--labels", labels, "--out", tmp_path / "run", *SHORT)
    again = run_train("--resume", "--out", tmp_path / "run")
    assert first[0] == again[0] == 0, again[2]
    assert [line for line in first[1].splitlines() if line.startswith("verdict")] == [
        line for line in again[1].splitlines() if line.startswith("verdict")
    ]
    code, _, err = run_train("--resume", "--out", tmp_path / "run", "--steps", "31")
    assert code == 2
    assert "n_steps was 30 and is now 31" in err


def test_rounds_are_planned_shown_and_judged(
    run_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastff.distill.rounds.PICOSECONDS", {"cpu": (0.03, 0.03)})
    monkeypatch.setattr("fastff.distill.rounds.LEAST_STEPS", 20)
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    code, out, err = run_train(
        *("--teacher", "analytic:emt", "--structures", tmp_path / "cu.xyz", "--max-atoms", "4"),
        *("--budget", "100", "--rounds", "1", "--target-accuracy", "0.999", "--require"),
        *("--out", tmp_path / "run", *SHORT),
    )
    assert code == 6, err
    assert re.search(
        r"target 99\.9 % missed: accuracy .* on (teacher|student)-driven test frames", err
    )
    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0].startswith("teacher")
    plan = next(line for line in lines if line.startswith("rounds"))
    assert "up to 1 rounds" in plan
    assert "min of the teacher" in plan
    gates = [line for line in lines if re.match(r"round \d  m1 trained on", line)]
    assert gates[0].endswith("; another round")
    assert len(gates) == 2
    verdict = lines[lines.index(next(x for x in lines if x.startswith("verdict"))) :]
    assert any("student-driven:" in line for line in verdict)
    assert any("that judge" in line for line in verdict)
    assert "rounds" in next(line for line in verdict if "time:" in line)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--labels", "LABELS", "--teacher", "chgnet"), 2, "labels need no teacher"),
        (("--labels", "LABELS", "--rounds", "2"), 2, "leave --rounds out with labels"),
        (("--labels", "LABELS", "--budget", "1 day"), 2, "neither teacher evaluations"),
        (("--labels", "none.xyz"), 4, "no such file"),
        (("--resume", "--out", "nowhere"), 2, "nothing to resume in nowhere: there is no config"),
        (("--config", "flat.yaml"), 4, "no section 'request:'"),
        (("--labels", "LABELS", "--out", "LABELS/x"), 2, "cannot be written"),
        (
            ("--teacher", "analytic:emt", "--structures", "LABELS", "--teacher-option", "x"),
            2,
            "KEY=VALUE",
        ),
    ],
)
def test_bad_requests_are_one_line(
    run_train: Run,
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flat.yaml").write_text("batch_atoms: 256\n")
    status, _, err = run_train(*(word.replace("LABELS", str(labels)) for word in arguments))
    assert status == code
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_failed_run_leaves_no_progress_bar(
    run_train: Run, labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[bool] = []

    def fail(*_: Any, listener: Listener, **__: Any) -> None:
        listener.on_student("m1", TrainSettings())
        started.append(any(bar.live.is_started for bar in bars))
        raise DataError("planted")

    bars: list[Progress] = []
    make = Progress.__init__

    def remember(self: Progress, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        bars.append(self)

    monkeypatch.setattr(Progress, "__init__", remember)
    monkeypatch.setattr("fastff.distill.run.distill", fail)
    code, _, err = run_train("--labels", labels, "--out", tmp_path / "run", *SHORT)
    assert (code, err.strip()) == (4, "error: planted")
    assert started == [True]
    assert not any(bar.live.is_started for bar in bars)


def test_a_run_refused_at_once_prints_nothing_else(run_train: Run, tmp_path: Path) -> None:
    code, out, err = run_train("--labels", tmp_path / "none.xyz", "--out", tmp_path / "run")
    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 1


def test_options_of_the_teacher_are_yaml_scalars() -> None:
    assert read_options(["a=1", "b = x", "c=true"], trust="mine") == {
        "trust": "mine",
        "a": 1,
        "b": "x",
        "c": True,
    }
    with pytest.raises(UsageError, match="KEY=VALUE"):
        read_options(["=1"])
    assert parse_temperatures("300-600 K") == (300.0, 600.0)
