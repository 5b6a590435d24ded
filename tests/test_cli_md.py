"""The command ``fastff md``: what it refuses, what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from md_models import write_copper

from fastff.cli.md import parse_temperature
from fastff.errors import UsageError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a model of copper and a cubic cell."""
    path = tmp_path_factory.mktemp("md")
    write_copper(path)
    return path


def test_command_refuses(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    model, structure = folder / "cu.safetensors", folder / "cu.extxyz"
    cases: list[tuple[int, str, list[str | Path]]] = [
        (2, "--restart", ["--steps", "1", "--out", taken]),
        (2, "either --time", []),
        (2, "either --time", ["--steps", "1", "--time", "1ps"]),
        (2, "not a time", ["--time", "1 year"]),
        (2, "not one", ["--steps", "1", "--temperature", "hot"]),
        (2, "ramp", ["--steps", "1", "--ensemble", "nve", "--temperature", "3-5"]),
        (2, "suffix", ["--steps", "1", "--out", tmp_path / "a", "--trajectory", "t.dcd"]),
        (4, "no structure file", ["--steps", "1", "--out", tmp_path / "a"]),
    ]
    for code, word, options in cases:
        place = tmp_path / "missing" if code == 4 else structure
        got, _, err = run_cli("md", model, place, *options)
        assert got == code, (options, err)
        assert word in err
        assert len(err.splitlines()) == 1
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "a").exists()


def test_command_reports(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    out = tmp_path / "run"
    code, text, err = run_cli(
        "md", folder / "cu.safetensors", folder / "cu.extxyz", "--time", "0.2 ps", "--timestep", "2fs",
        "--ensemble", "nve", "--interval", "2", "--out", out, "--device", "cpu",
    )  # fmt: skip
    assert (code, err) == (0, "")
    lines = text.splitlines()
    assert any(line.startswith("dynamics NVE, 300 K; 100 steps of 2 fs = 0.2 ps") for line in lines)
    verdict = lines[[line.startswith("verdict") for line in lines].index(True) :]
    assert len(verdict) == 5
    assert "meV/atom/ps" in verdict[2]
    assert verdict[4].startswith("next")
    code, _, err = run_cli(
        "md", folder / "cu.safetensors", folder / "cu.extxyz", "--steps", "40", "--temperature", "300",
        "--max-temperature", "20", "--out", tmp_path / "hot", "--device", "cpu",
    )  # fmt: skip
    assert code == 6
    assert "above the limit of 20 K" in err


def test_temperatures_are_read() -> None:
    assert parse_temperature("300") == (300.0, None)
    assert parse_temperature("300-900") == (300.0, 900.0)
    assert parse_temperature("1e-3") == (1e-3, None)
    assert parse_temperature("1E-3 - 2.5e+2 K") == (1e-3, 250.0)
    for text in ("hot", "-5", "1-2-3", "3-", "nan-e"):
        with pytest.raises(UsageError, match="--temperature"):
            parse_temperature(text)


def test_short_runs_have_no_drift(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    """A slope takes three rows; with fewer the verdict says so."""
    command = [
        "md",
        folder / "cu.safetensors",
        folder / "cu.extxyz",
        "--interval",
        "1",
        "--device",
        "cpu",
    ]
    code, text, err = run_cli(*command, "--steps", "1", "--out", tmp_path / "short")
    assert (code, err) == (0, "")
    assert "nan" not in text
    assert "rows in log.csv are too few to tell how the conserved quantity drifts" in text
    code, text, _ = run_cli(*command, "--steps", "2", "--out", tmp_path / "longer")
    assert "conserved quantity drifts by" in text
    assert "nan" not in text
