"""Bench runs of untrained students, small enough for tests. Not here: any test; the fixtures (``conftest.py``)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ase.io
import torch
from ase.build import bulk

from fastff.checkpoint import save_model
from fastff.models import build_student, configure_student
from fastff.report.baselines import load_baseline
from fastff.report.bench import BenchResult, run_bench
from fastff.report.plan import BenchPlan
from fastff.report.schema import BenchRecord
from fastff.teachers import load_teacher

TINY = BenchPlan(
    n_frames=6, n_temperatures=2, n_equilibrate=4, interval=2, sizes=(32, 500), budget=0.5,
    md_atoms=32, outside=True, n_noise=2,
    physics="none",
)  # fmt: skip
"""Of a run with a teacher and nothing else."""

BESIDE = BenchPlan(
    n_frames=4, n_temperatures=2, n_equilibrate=2, interval=2, sizes=(32,), budget=0.3,
    md_atoms=32, outside=False, n_noise=2, physics="none",
)  # fmt: skip
"""Of a run with baselines."""


def write_student(path: Path, architecture: str, seed: int, header: dict[str, Any]) -> Path:
    """An untrained student of copper: bad, but real."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = build_student(configure_student(architecture, (29,), cutoff=4.0))
    save_model(path, student, header)
    return path


def write_model(path: Path) -> Path:
    """A student that names its teacher and its structures, and has a learning curve."""
    text = io.StringIO()
    ase.io.write(text, [bulk("Cu", cubic=True)], format="extxyz")
    header = {
        "teacher": load_teacher("analytic:morse", device="cpu").info.to_dict(),
        "temperature": [300, 600],
        "structures": text.getvalue(),
        "training": {
            "learning_curve": [
                {"step": 0, "force_accuracy": 0.1, "accuracy": 0.0},
                {"step": 9, "force_accuracy": 0.9, "accuracy": 0.8},
            ]
        },
    }
    return write_student(path, "m1", 0, header)


def write_pair(folder: Path) -> tuple[Path, Path]:
    """A student, and one of another architecture to stand beside it."""
    header = {"teacher": {}, "temperature": [300, 400]}
    return (
        write_student(folder / "m1.safetensors", "m1", 0, header),
        write_student(folder / "painn.safetensors", "painn", 1, header),
    )


def run_tiny(model: Path) -> BenchResult:
    """A run of :func:`write_model`'s student with its teacher."""
    return run_bench(
        model,
        teacher=load_teacher("analytic:morse", device="cpu"),
        plan=TINY,
        command=["fastff", "bench", "cu.safetensors"],
    )


def run_beside(models: tuple[Path, Path]) -> BenchRecord:
    """One run with a second model file and an ASE calculator beside the student."""
    specs = [str(models[1]), "ase:ase.calculators.emt:EMT"]
    return run_bench(
        models[0],
        structures=[bulk("Cu", cubic=True)],
        teacher=load_teacher("analytic:morse", device="cpu"),
        plan=BESIDE,
        baselines=[load_baseline(spec, "cpu") for spec in specs],
    ).record
