"""The study of students: jobs, held-out trajectories, resuming, the record and its table."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.neighborlist import neighbor_list
from programs import load_program

from fastff.models import ARCHITECTURES, configure_student

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "study.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return load_program("study")


@pytest.fixture(scope="module")
def schedule(study: ModuleType) -> ModuleType:
    return importlib.import_module("bench.study_schedule")


@pytest.fixture(scope="module")
def training(study: ModuleType) -> ModuleType:
    return importlib.import_module("bench.study_training")


@pytest.fixture(scope="module")
def report(study: ModuleType) -> ModuleType:
    return importlib.import_module("bench.study_report")


@pytest.fixture(scope="module")
def systems(study: ModuleType) -> ModuleType:
    return importlib.import_module("bench.study_systems")


@pytest.mark.parametrize("eager", [False, True])
def test_a_variant_trains_with_its_own_optimiser_and_weights(
    study: ModuleType, training: ModuleType, monkeypatch: pytest.MonkeyPatch, eager: bool
) -> None:
    """Once more with those of another one: none of them stays."""
    from fastff.distill import module, train

    for name in ("Soap", "CapturedLosses"):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(train, "LossWeights", train.LossWeights)
    for name in ("m2-l-rc6-hop3-d1-long", "m2-l-rc6-hop3-d1-slow-b2-forces"):
        (variant,) = (v for v in study.ABLATIONS if v.name == name)
        monkeypatch.setitem(ARCHITECTURES, name, {})  # taken back in the end
        training.configure(
            variant,
            argparse.Namespace(
                steps=10, batch_atoms=64, learning_rate=5e-3, seed=0, device="cpu", eager=eager
            ),
        )
        soap = module.Soap([torch.nn.Parameter(torch.ones(2, 2))])
        own = variant.soap.get("betas", (0.95, 0.95)), variant.weights.get("energy", 0.3)
        assert (soap.defaults["betas"], train.LossWeights(hessian=0.2).energy) == own
        losses = module.CapturedLosses(lambda *fields: fields, 10, compiled=None)
        assert losses(torch.ones(1)) == (torch.ones(1),)


def test_every_variant_is_a_student_of_its_own(study: ModuleType) -> None:
    variants = study.STUDENTS + study.ABLATIONS
    assert len({variant.name for variant in variants}) == len(variants)
    for variant in variants:
        config = configure_student(
            variant.architecture, (14,), cutoff=variant.cutoff, **variant.sizes
        )
        plain = configure_student(variant.architecture, (14,))
        training = (variant.rate, variant.optimizer, variant.batch, variant.share)
        unchanged = training == (1.0, "soap", 1.0, 1.0) and not (variant.soap or variant.weights)
        same = config == plain and unchanged
        assert same == (variant in study.STUDENTS), variant.name


def test_whole_trajectories_are_held_out(training: ModuleType) -> None:
    frames = [SimpleNamespace(trajectory=10 * k, step=s) for k in range(16) for s in range(3)]
    parts = training.split_trajectories(frames)
    sets = [{frame.trajectory for frame in part} for part in parts]
    assert [len(part) for part in parts] == [36, 6, 6]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert sets[2] == {30, 110}
    with pytest.raises(SystemExit, match="at least eight"):
        training.split_trajectories(frames[:12])


def test_a_share_of_the_trajectories_is_spread_over_all(training: ModuleType) -> None:
    frames = [SimpleNamespace(trajectory=10 * k, step=s) for k in range(12) for s in range(3)]
    assert training.thin_trajectories(frames, 1.0) == frames
    half = training.thin_trajectories(frames, 0.5)
    assert sorted({frame.trajectory for frame in half}) == [10, 30, 50, 70, 90, 110]
    assert len(half) == 18
    quarter = training.thin_trajectories(frames, 0.25)
    assert {frame.trajectory for frame in quarter} == {30, 70, 110}


def make_record(system: str, variant: Any, force: float | None) -> dict[str, Any]:
    found = {"force": force, "force_mae": 0.0301, "energy": None, "energy_mae": None, "stress": 0.9}
    return {
        "job": f"{system}__{variant.name}",
        "system": system,
        "teacher": {"name": "analytic:emt"},
        "variant": {"name": variant.name, "architecture": variant.architecture},
        "config": {"cutoff": variant.cutoff},
        "settings": {"learning_rate": 5e-3, "optimizer": "soap"},
        "accuracy": {"test": found},
        "n_parameters": 12345,
        "n_steps": 10,
        "n_frames": {"train": 60, "validation": 10, "test": 12},
        "test_temperatures": [300.0, 900.0],
        "seconds_this_process": 3.0,
        "provenance": {
            "date": f"2026-01-02T03:04:0{len(variant.name)}+00:00",
            "command": f"study.py --out run --job {system}__{variant.name} --steps 10",
            "commit": "abc1234",
            "gpu": "some GPU",
            "load": float(len(variant.name)),
            "packages": {"torch": "2.0", "triton": "3.0"},
        },
    }


def store_jobs(out: Path, records: list[dict[str, Any]]) -> None:
    (out / "jobs").mkdir()
    for record in records:
        (out / "jobs" / f"{record['job']}.json").write_text(json.dumps(record))


def test_table_has_students_in_order_and_no_numbers_that_are_not_there(
    study: ModuleType, report: ModuleType, tmp_path: Path
) -> None:
    store_jobs(tmp_path, [make_record("si", v, 0.951) for v in reversed(study.STUDENTS[:3])])
    record = report.gather_record(tmp_path, [])
    lines = report.tabulate(record["students"]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["m1", "m2", "m2-l"]
    assert "| 95.1 | 30.1 | - | - | 90.0 | 12,345 |" in lines[2]


def test_record_is_shown_as_tables_of_flat_rows(
    study: ModuleType, report: ModuleType, tmp_path: Path
) -> None:
    store_jobs(tmp_path, [make_record("si", v, 0.951) for v in study.STUDENTS[:3]])
    (tmp_path / "probes").mkdir()
    probe = {"variant": "m2", "system": "si", "ms_per_step": 2.5, "peak_bytes": None}
    (tmp_path / "probes" / "m2.json").write_text(json.dumps(probe))
    ladder = {"phase": "solid", "low": 300, "high": 1600, "expansion": [-0.02, 0.03], "melt": 0.0}
    protocol = {"study": {"ladders": [ladder], "timestep_fs": 2.0, "stride": 8}}
    phase = {"phase": "solid", "replicas": 9, "frames": 82, "rms_from_start": 0.2, "rms_moved": 0.3}
    summary = {"system": "si", "atoms": 64, "phases": [phase], "protocol": protocol}
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "labels.json").write_text(json.dumps([summary, {**summary, "system": "other"}]))
    record = report.gather_record(tmp_path, [labels])
    assert list(record["jobs"]) == ["si__m1", "si__m2", "si__m2-l"]
    assert record["label_files"] == {"si": summary}
    where = record["provenance"]
    assert where["command"] == ["study.py --out run"]
    assert where["date"] == "2026-01-02T03:04:04+00:00"
    assert "load" not in where  # differs
    assert "peak_bytes" not in record["probes"][0]
    assert record["labels"][0]["high_K"] == 1600
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    tables = load_program("tabulate")
    tables.RESULTS = tmp_path
    lines = tables.describe_record(path)
    assert "Measured on some GPU, 2.0, 3.0, abc1234, 2026-01-02T03:04:04+00:00." in lines
    assert record["what"] in lines
    titles = [line for line in lines if line.endswith(":")]
    assert titles == ["students:", "probes:", "labels:"]
    assert sum(line.startswith("| si | m") for line in lines) == 3


def test_done_jobs_are_not_run_again(
    study: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store_jobs(tmp_path, [make_record("none", study.STUDENTS[0], 0.5)])
    command = [sys.executable, str(SCRIPT), "--labels", "none.npz", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", "m1$"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| none | m1 | 50.0 |" in (tmp_path / "study.md").read_text()

    def run_here(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", [*command[1:], *words])
        study.main()

    run_here("--list")
    listed = capsys.readouterr().out.split()
    assert listed == [f"none__{variant.name}" for variant in study.STUDENTS]
    with pytest.raises(SystemExit, match="none__m2; run again"):
        run_here("--only", "m2$", "--budget-seconds", "-1")


def test_a_student_with_the_sizes_of_a_variant(study: ModuleType, tmp_path: Path) -> None:
    arguments = argparse.Namespace(labels=[Path("a/si.npz")], ablations=True, only="painn-c64")
    ((name, path, variant),) = study.list_jobs(arguments)
    assert (name, path.stem, variant.sizes["n_channels"]) == ("si__painn-c64", "si", 64)


def test_steps_fit_into_the_budget_and_are_the_same_for_all(schedule: ModuleType) -> None:
    probes = {
        "m1": {"ms_per_step": 5.0, "captured": True},
        "m2": {"ms_per_step": 10.0, "captured": True},
        "painn": {"ms_per_step": 100.0, "captured": False},
    }
    seconds = schedule.OVERHEAD_SECONDS + 120.0
    steps = schedule.choose_steps(["m1", "m2"] * 4, probes, 99999, 4, seconds)
    assert steps == {"m1": 8000, "m2": 8000}  # 4 * 120 s for 4 * (5 + 10) ms a step
    assert schedule.choose_steps(["m1", "m2"] * 4, probes, 3000, 4, seconds) == {
        "m1": 3000,
        "m2": 3000,
    }
    mixed = schedule.choose_steps(["m1", "painn"], probes, 20000, 4, seconds)
    assert mixed == {"m1": 19200, "painn": 900}  # neither alone longer than 0.8 * 120 s
    assert schedule.choose_steps(["m1"], {}, 500, 1, 10.0) == {"m1": 500}


def test_jobs_go_to_the_gpu_with_the_least_to_do(schedule: ModuleType, tmp_path: Path) -> None:
    pool = schedule.Pool(argparse.Namespace(out=tmp_path, gpus=2), 0.0)
    tasks = [
        schedule.Task(str(k), (), tmp_path, weight) for k, weight in enumerate((9.0, 5.0, 1.0))
    ]
    assert pool._pick({}) == 0
    assert pool._pick({tasks[0]: (0, None)}) == 1
    assert pool._pick({tasks[0]: (0, None), tasks[1]: (1, None)}) == 1


def test_replicas_of_the_study_start_apart_from_each_other(systems: ModuleType) -> None:
    for system in systems.SYSTEMS:
        planned = systems.list_replicas(system)
        assert len(planned) == 96
        for index in (0, 95):
            ladder, temperature = planned[index]
            assert ladder.low <= temperature <= ladder.high
            atoms = systems.build_start(system, ladder, index, 0)
            again = systems.build_start(system, ladder, index, 0)
            other = systems.build_start(system, ladder, index, 1)
            assert 60 <= len(atoms) <= 120
            assert (atoms.positions == again.positions).all()
            assert abs(atoms.positions - other.positions).max() > 1e-3
            assert (atoms.numbers == other.numbers).all()  # archives hold them once
            distances = atoms.get_all_distances(mic=True)
            assert distances[distances > 0].min() > 0.9


def test_one_structure_in_ten_comes_with_close_contacts() -> None:
    from bench.study_labels import CONTACT_RANGE
    from bench.study_more import press_structures

    atoms = bulk("Si", cubic=True) * 2
    pressed = press_structures([(atoms, 300.0 + k) for k in range(80)], seed=0)
    assert [temperature for _, temperature in pressed] == [300.0 + k for k in range(0, 80, 10)]
    shortest = [neighbor_list("d", one, 3.0).min() for one, _ in pressed]
    bond = neighbor_list("d", atoms, 3.0).min()
    wanted = np.maximum(
        bond * np.linspace(*CONTACT_RANGE, 8), 1.443
    )  # no nearer than students follow
    np.testing.assert_allclose(shortest, wanted, rtol=1e-6)
