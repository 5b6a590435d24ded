"""``fastff train`` as it is typed, on a teacher that costs nothing. Not here: the distillation behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from rich.progress import Progress

from fastff.cli import root
from fastff.cli.train import parse_temperatures, read_options
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


def test_verdict_on_labels_says_what_the_test_frames_are(
    run_train: Run, labels: Path, tmp_path: Path
) -> None:
    code, out, err = run_train("--labels", labels, "--out", tmp_path / "run", *SHORT)
    assert code == 0, err
    assert "left out between blocks" in out
    assert "8 frames of other blocks of the file" in out
    assert "only 8 test frames" in out
    assert "--labels FILE" in out
    assert "--compare-teacher" not in out


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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--labels", "LABELS", "--teacher", "chgnet"), 2, "labels need no teacher"),
        (("--labels", "none.xyz"), 4, "no such file"),
        (("--resume", "--out", "nowhere"), 4, "is not a fastff configuration"),
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
    stopped: list[Progress] = []
    monkeypatch.setattr(Progress, "stop", lambda self: stopped.append(self))

    def fail(*_: Any, listener: Any, **__: Any) -> None:
        raise DataError("planted")

    monkeypatch.setattr("fastff.distill.run.distill", fail)
    code, _, err = run_train("--labels", labels, "--out", tmp_path / "run", *SHORT)
    assert (code, err.strip()) == (4, "error: planted")
    assert len(stopped) == 3


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
