"""Restarts of ``fastff md`` continue their own files and touch no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read
from md_models import make_copper, write_copper

from fastff.checkpoint import save_model
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.md import run
from fastff.md.restart import read_restart
from fastff.md.run import RunResult, simulate
from fastff.md.settings import MDSettings
from fastff.md.torch_potential import StudentPotential
from fastff.models import Student

Run = Callable[..., tuple[int, str, str]]
SUFFIXES = ("extxyz", "h5", "traj")


@pytest.fixture(scope="module")
def student() -> Student:
    return make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8))


def run_for(
    student: Student,
    out: Path,
    n_steps: int,
    trajectory: Path | None = None,
    *,
    seed: int = 0,
    restart: bool = False,
) -> RunResult:
    settings = MDSettings(
        n_steps=n_steps, interval=5, frame_interval=10, restart_interval=10, seed=seed
    )
    return simulate(
        StudentPotential(student), bulk("Cu", cubic=True), settings, out, trajectory=trajectory, restart=restart
    )  # fmt: skip


def read_all(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_restart_without_restart_file_overwrites_nothing(student: Student, tmp_path: Path) -> None:
    run_for(student, tmp_path / "first", 20, tmp_path / "t.extxyz")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.csv").write_text("mine")
    before = read_all(tmp_path)
    with pytest.raises(UsageError, match=r"t\.extxyz exists but .*restart.safetensors does not"):
        run_for(student, tmp_path / "second", 20, tmp_path / "t.extxyz", restart=True)
    with pytest.raises(UsageError, match=r"log\.csv exists but"):
        run_for(student, tmp_path / "log", 20, restart=True)
    assert read_all(tmp_path) == before
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_run_killed_before_its_first_frame_begins_anew(
    student: Student, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files it had begun are its own, as the restart file of step 0 tells."""
    path = tmp_path / f"t.{suffix}"
    whole = run_for(student, tmp_path / "whole", 20, tmp_path / f"whole.{suffix}")

    def die(*_: object, **__: object) -> float:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(run, "_run", die)
        with pytest.raises(ZeroDivisionError):
            run_for(student, tmp_path / "killed", 20, path)
    assert read_restart(tmp_path / "killed" / "restart.safetensors").marks == {}
    path.write_bytes(b"half a frame")
    again = run_for(student, tmp_path / "killed", 20, path, restart=True)
    assert again.files.log.read_text() == whole.files.log.read_text()
    np.testing.assert_array_equal(again.atoms.positions, whole.atoms.positions)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_foreign_file_is_refused_and_left_alone(
    student: Student, tmp_path: Path, suffix: str
) -> None:
    """Another run's trajectory of the same structure, or no trajectory at all; the log stays as well."""
    path = tmp_path / f"t.{suffix}"
    run_for(student, tmp_path / "run", 20, path)
    own = path.read_bytes()
    longer = tmp_path / f"other.{suffix}"
    run_for(student, tmp_path / "other", 60, longer, seed=1)
    shorter = tmp_path / f"short.{suffix}"
    run_for(student, tmp_path / "short", 0, shorter)
    log = tmp_path / "run" / "log.csv"
    with log.open("ab") as handle:
        handle.write(b"rows after the restart point")
    for content in (longer.read_bytes(), b"a thesis\n" * 10_000, b"", shorter.read_bytes()):
        path.write_bytes(content)
        before = read_all(tmp_path)
        with pytest.raises(DataError, match=r"restore it") as caught:
            run_for(student, tmp_path / "run", 40, path, restart=True)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        assert read_all(tmp_path) == before
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        run_for(student, tmp_path / "run", 40, path, restart=True)
    path.write_bytes(own)
    result = run_for(student, tmp_path / "run", 40, path, restart=True)
    whole = run_for(student, tmp_path / "whole", 40, tmp_path / f"whole.{suffix}")
    assert result.files.log.read_text() == whole.files.log.read_text()


def test_a_foreign_log_is_refused(student: Student, tmp_path: Path) -> None:
    run_for(student, tmp_path / "run", 20)
    log = tmp_path / "run" / "log.csv"
    log.write_bytes(b"1,2,3\n" * 10_000)
    before = read_all(tmp_path)
    with pytest.raises(DataError, match=r"log\.csv"):
        run_for(student, tmp_path / "run", 40, restart=True)
    assert read_all(tmp_path) == before


def test_another_trajectory_or_format_is_refused(student: Student, tmp_path: Path) -> None:
    run_for(student, tmp_path / "run", 20, tmp_path / "t.h5")
    (tmp_path / "t.extxyz").write_text("mine")
    before = read_all(tmp_path)
    for path in (tmp_path / "t.extxyz", tmp_path / "new.h5", None):
        with pytest.raises(UsageError, match=r"files trajectory \.\./t\.h5, this one has"):
            run_for(student, tmp_path / "run", 40, path, restart=True)
    assert read_all(tmp_path) == before


def test_a_moved_run_continues(student: Student, tmp_path: Path) -> None:
    """What binds a trajectory is its place beside the run's folder."""
    run_for(student, tmp_path / "a" / "run", 20, tmp_path / "a" / "t.extxyz")
    (tmp_path / "a").rename(tmp_path / "b")
    result = run_for(student, tmp_path / "b" / "run", 40, tmp_path / "b" / "t.extxyz", restart=True)
    assert len(read(result.files.trajectory, ":")) == 5


def test_unknown_elements_leave_no_folder(student: Student, tmp_path: Path, run_cli: Run) -> None:
    settings = MDSettings(n_steps=1)
    gold = Atoms("Au2", [[0, 0, 0], [0, 0, 2.7]])
    out = tmp_path / "runs" / "gold"
    with pytest.raises(UnsupportedElementError, match="Au"):
        simulate(StudentPotential(student), gold, settings, out)
    assert not (tmp_path / "runs").exists()
    save_model(tmp_path / "cu.safetensors", student, {"teacher": {"name": "none"}})
    gold.write(tmp_path / "au.extxyz")
    code, _, err = run_cli(
        "md", tmp_path / "cu.safetensors", tmp_path / "au.extxyz", "--steps", "1", "--out", out, "--device", "cpu"
    )  # fmt: skip
    assert code == 4
    assert "Au" in err
    assert not (tmp_path / "runs").exists()


def test_command_refuses_a_foreign_trajectory(tmp_path: Path, run_cli: Run) -> None:
    write_copper(tmp_path)
    command = [
        "md", tmp_path / "cu.safetensors", tmp_path / "cu.extxyz", "--steps", "10", "--frame-interval", "5",
        "--out", tmp_path / "run", "--trajectory", tmp_path / "t.h5", "--device", "cpu",
    ]  # fmt: skip
    assert run_cli(*command)[0] == 0
    (tmp_path / "t.h5").write_bytes(b"no HDF5 at all" * 1000)
    code, _, err = run_cli(*command, "--restart")
    assert code == 4
    assert len(err.splitlines()) == 1
    assert "t.h5" in err
