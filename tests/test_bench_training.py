"""The measurements of Hessian-vector targets and of several devices, at toy size. Not here: figures worth keeping."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from emt_frames import label_by_emt, make_alloys
from programs import load_program

from fastff.distill.store import LabelStore
from fastff.labels import Labels
from fastff.teachers import load_teacher

BENCH = Path(__file__).resolve().parents[1] / "bench"


def load(name: str) -> ModuleType:
    before = list(sys.path)
    module = load_program(name)
    sys.path[:] = before
    return module


def run(name: str, *arguments: Any) -> str:
    command = [sys.executable, str(BENCH / f"{name}.py"), *map(str, arguments), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_arms_cost_what_they_say() -> None:
    study = load("hessian_vectors")
    for arm in ("plain", "half", "all"):
        n_frames, n_targets = study.divide(arm, 120)
        assert n_frames + 2 * n_targets == 120
        assert n_targets <= n_frames
    assert study.divide("fewer", 120) == (study.divide("all", 120)[0], 0)


def test_frequency_of_two_atoms_on_a_spring() -> None:
    """``sqrt(k / mu) / 2 pi`` once, and five times nothing."""
    study = load("hessian_vectors")
    atoms = Atoms("N2", positions=[[0, 0, 0], [1.1, 0, 0]])

    def label(structures: list[Atoms]) -> list[Labels]:
        found = []
        for one in structures:
            bond = one.positions[1] - one.positions[0]
            stretch = np.linalg.norm(bond) - 1.1
            force = 143.4 * stretch * bond / np.linalg.norm(bond)  # eV/Å^2 of N2
            found.append(Labels(0.0, np.array([force, -force]), None))
        return found

    found = study.compute_frequencies(label, atoms, 1e-4)
    assert found[-1] == pytest.approx(70.7, abs=0.1)  # 2359 per cm
    np.testing.assert_allclose(found[:5], 0.0, atol=0.01)


@pytest.mark.slow
def test_comparison_of_targets_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alloy = bulk("Cu", cubic=True, a=3.75)
    alloy.numbers[0] = 79
    write(tmp_path / "seed.xyz", alloy)
    arguments = ["--teacher", "analytic:emt", "--structures", tmp_path / "seed.xyz"]
    arguments += ["--budget", 24, "--max-atoms", 8, "--student", "m1", "--steps", 10]
    arguments += ["--seeds", 1, "--batch-atoms", 64, "--out", tmp_path / "out"]
    table = run("hessian_vectors", *arguments)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    rows = {row["arm"]: row for row in record["records"]}
    assert [row["evaluations"] for row in rows.values()] == [24, 24, 24, 8]
    assert [row["n_targets"] for row in rows.values()] == [0, 6, 8, 0]
    assert all(row["frequency_rmse"] > 0 for row in rows.values())
    assert all(row["hessian"]["n_frames"] == record["n_test_targets"] for row in rows.values())
    assert "| half | 12 | 6 | 24 |" in table
    words = ["hessian_vectors.py", *map(str, arguments), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", words)
    load("hessian_vectors").main()  # in this process, which has imported all
    assert json.loads((tmp_path / "out" / "record.json").read_text())["records"] == list(
        rows.values()
    )


@pytest.mark.slow
def test_scaling_is_measured_with_two_processes(tmp_path: Path) -> None:
    frames = label_by_emt(make_alloys(40))
    with LabelStore(tmp_path / "labels.h5", "a", teacher=load_teacher("analytic:emt")) as store:
        store.append(frames)
    write(tmp_path / "frames.xyz", [frame.atoms for frame in frames[:15]])
    run(
        "multi_gpu", "--labels", tmp_path / "labels.h5", "--teacher", "analytic:emt",
        "--structures", tmp_path / "frames.xyz", "--devices", 1, 2, "--steps", 12,
        "--batch-atoms", 16, "--student", "m1", "--cutoff", 4, "--md-steps", 100,
        "--md-repeat", 2, 2, 2, "--label-atoms", 8, "--out", tmp_path / "out",
        "--window", 0.1,
    )  # fmt: skip
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    weak = [row for row in record["train"] if row["scaling"] == "weak"]
    strong = [row for row in record["train"] if row["scaling"] == "strong"]
    assert [row["batch_frames"] for row in weak] == [4, 8]
    assert [row["batch_frames"] for row in strong] == [8, 8]
    assert weak[0]["efficiency"] == strong[0]["efficiency"] == 1.0
    own, other = (row["test_accuracy"]["force"] for row in strong)
    assert own == pytest.approx(other, abs=1e-3)
    assert [row["shards"] for row in record["shards"]] == [1, 2]
    for row in [*record["label"], *record["shards"]]:
        assert (row["n_frames"], row["n_missing"], row["n_extra"]) == (15, 0, 0)
        assert row["force_difference"] == row["energy_difference"] == 0.0
    assert [len(row["steps_per_second"]) for row in record["md"]] == [1, 2]
    assert all(row["window_seconds"] > 0.06 for row in [*weak, *record["md"]])
    assert record["md"][0]["overlap"] == pytest.approx(1.0, abs=1e-3)
    assert 0.0 <= record["md"][1]["overlap"] <= 1.0


def test_what_was_too_short_is_measured_again() -> None:
    """Once, with as many more steps as it takes."""
    program, asked = load_program("multi_gpu_rows"), []

    def measure(steps: int) -> dict[str, Any]:
        asked.append(steps)
        return {"steps": steps, "window_seconds": 0.01 * steps}

    assert program.last_long_enough(measure, 12, 0.1) == measure(12)
    assert asked == [12, 12]
    assert program.last_long_enough(measure, 12, 0.5)["steps"] == 60
    assert asked[2:] == [12, 60]


def test_records_of_one_machine_are_joined_and_others_refused() -> None:
    program = load_program("multi_gpu_join")
    where = dict.fromkeys(program.SAME, "a") | {"date": "d", "command": "c"}

    def make(rows: list[tuple[str, int, float]], **changed: str) -> dict[str, Any]:
        return {
            "what": "w", "gpus": ["g"], "provenance": where | changed, "failed": {},
            "train": [
                {"scaling": kind, "devices": n, "frames_per_second": rate, "efficiency": None}
                for kind, n, rate in rows
            ],
        }  # fmt: skip

    first = make([("weak", 1, 10.0), ("strong", 1, 20.0)])
    joined = program.join([first, make([("weak", 2, 18.0), ("strong", 2, 30.0)])], ["a", "b"])
    assert [row["efficiency"] for row in joined["train"]] == [1.0, 1.0, 0.9, 0.75]
    assert len(joined["runs"]) == 2
    small, large = make([("weak", 1, 10.0)]), make([("weak", 1, 20.0), ("weak", 2, 36.0)])
    for record, frames in ((small, 128), (large, 512)):
        for row in record["train"]:
            row["batch_frames"] = frames * row["devices"]
    rows = program.join([small, large], ["a", "b"])["train"]
    assert [row["efficiency"] for row in rows] == [1.0, 1.0, 0.9]  # batches do not mix
    with pytest.raises(SystemExit, match="b: commit is x, of a it is a"):
        program.join([first, make([], commit="x")], ["a", "b"])
