"""``fastff train`` with Hessian-vector targets and with several processes, as it is typed. Not here: what these do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write
from emt_frames import label_by_emt, make_alloys

from fastff.checkpoint import load_model
from fastff.cli.terminal import count_devices
from fastff.distill.request import build_request
from fastff.distill.run import distill
from fastff.distill.store import LabelStore
from fastff.errors import UsageError
from fastff.teachers import load_teacher

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["--student", "m1", "--steps", "20", "--cutoff", "4", "--device", "cpu"]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    frames = label_by_emt(make_alloys(50))
    with LabelStore(tmp_path / "labels.h5", "a", teacher=load_teacher("analytic:emt")) as store:
        store.append(frames)
    return tmp_path / "labels.h5"


def run(command: list[str], folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        [*command, "train", *map(str, arguments), *SHORT],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_accuracy(text: str) -> str:
    (found,) = re.findall(r"verdict +m1: accuracy (\S+) %", text)
    return str(found)


@pytest.mark.slow
def test_two_processes_give_the_verdict_of_one(
    labels: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    """Started by the command in this process, or by torchrun: one verdict each, and the same.

    That of one process is near: SOAP's start hangs on rounding. With AdamW all agree, see ``test_distributed.py``.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = ["--labels", labels, "--devices", "2"]
    texts = [
        run_cli("train", "--labels", labels, "--out", tmp_path / "one", *SHORT)[1],
        run_cli("train", *both, "--out", tmp_path / "two", *SHORT)[1],
        run([*launcher, "-m", "fastff"], tmp_path, *both, "--out", "run"),
    ]
    one, two, launched = (float(read_accuracy(text)) for text in texts)
    assert two == launched == pytest.approx(one, abs=5.0)
    headers = [load_model(tmp_path / name / "model.safetensors").header for name in ("two", "run")]
    curves = [header["training"]["learning_curve"] for header in headers]
    assert curves[0] == curves[1]


def test_auto_is_every_gpu_in_sight(
    run_cli: Callable[..., tuple[int, str, str]], labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(*_: Any, devices: int, **__: Any) -> None:
        asked.append(devices)
        raise UsageError("seen")

    monkeypatch.setattr("fastff.distill.run.distill", note)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for words in (("--devices", "auto"), ("--devices", "auto", "--device", "cpu"), ()):
        assert "seen" in run_cli("train", "--labels", labels, *words)[2]
    assert asked == [3, 1, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert count_devices("auto", "auto") == 1
    for wrong in ("0", "-1", "many"):
        code, _, err = run_cli("train", "--labels", labels, "--devices", wrong)
        assert code == 2
        assert "is not a number above 0 or auto" in err


def test_a_launcher_and_a_teacher_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    request = build_request(structures=tmp_path / "cu.xyz", teacher="analytic:emt")
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1",
        "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="label first with `fastff label`"):
        distill(request, tmp_path / "out", device="cpu", devices=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_targets_count_in_the_budget_and_reach_the_verdict(tmp_path: Path) -> None:
    """A tenth of them on test frames; resumed, the teacher labels nothing again."""
    atoms = bulk("Cu", cubic=True)
    atoms.positions += np.random.default_rng(0).normal(scale=0.02, size=(4, 3))
    write(tmp_path / "cu.xyz", atoms)
    request = build_request(
        structures=tmp_path / "cu.xyz", teacher="analytic:emt", budget=120, rounds=0, max_atoms=4,
        student="m1", n_steps=20, cutoff=4.0, hessian_vectors=20, hessian_weight=0.2,
    )  # fmt: skip
    outcome = distill(request, tmp_path / "out", device="cpu")
    assert outcome.hessian is not None
    assert outcome.hessian.n_frames == 2
    assert outcome.evaluations <= 120
    with LabelStore(tmp_path / "out" / "hessian.h5") as store:
        assert store.n_hessian_vectors == len(store) == 20
    header = load_model(outcome.model).header
    assert header["hessian_vectors"]["n_frames"] == 2
    assert header["training"]["request"]["hessian_vectors"] == 20
    again = distill(request, tmp_path / "out", device="cpu", resume=True)
    assert again.hessian == outcome.hessian
    record = json.loads(json.dumps(header["hessian_vectors"]))
    assert record["accuracy"] == pytest.approx(outcome.hessian.accuracy)
