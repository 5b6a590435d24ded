"""Shared by all tests: one thread, seeds, small structures, small students, bench runs. Not here: any test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

if TYPE_CHECKING:
    from fastff.calculator import FastFFCalculator
    from fastff.report.bench import BenchResult
    from fastff.report.schema import BenchRecord

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
torch.set_num_threads(1)  # sums of several threads differ in their last bits from run to run

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is none; interpreted ones say themselves whether they can run."""
    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same random numbers and the same settings in every test, whatever ran before it."""
    torch.manual_seed(0)
    monkeypatch.delenv("FASTFF_DEBUG", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real inputs beside the repository; tests that need it are skipped elsewhere."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the data folder ../shared/data, which is not beside this repository")
    return SHARED_DATA


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def copper(rng: np.random.Generator) -> Atoms:
    """Four rattled copper atoms in a cubic periodic cell, 3.6 Å wide."""
    atoms = bulk("Cu", cubic=True)
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return atoms


@pytest.fixture
def slab(rng: np.random.Generator) -> Atoms:
    """Eight copper atoms, periodic in the plane, third cell vector zero."""
    atoms = fcc111("Cu", (2, 2, 2))
    del atoms.info["adsorbate_info"]
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return atoms


@pytest.fixture
def water() -> Atoms:
    """One water molecule without a cell."""
    return molecule("H2O")


@pytest.fixture(scope="session")
def copper_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model file of an untrained student that knows copper only; its numbers are as good as random."""
    from fastff.checkpoint import save_model
    from fastff.models import build_student, configure_student

    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(configure_student("m1", (29,)))
    path = tmp_path_factory.mktemp("model") / "copper.safetensors"
    save_model(path, student, {"teacher": {"name": "none"}})
    return path


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model file of an untrained student of hydrogen, oxygen and copper that does no harm."""
    from untrained import make_student

    from fastff.checkpoint import save_model

    path = tmp_path_factory.mktemp("model") / "student.safetensors"
    save_model(path, make_student("m1", (1, 8, 29)), {"teacher": {"name": "none"}})
    return path


@pytest.fixture(scope="session")
def whole_record(tmp_path_factory: pytest.TempPathFactory) -> BenchRecord:
    """A bench record with everything that one can hold."""
    from producers import make_record

    return make_record(tmp_path_factory.mktemp("model") / "cuau.safetensors")


@pytest.fixture(scope="session")
def bench_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model file of an untrained student whose teacher is analytic."""
    from bench_runs import write_model

    return write_model(tmp_path_factory.mktemp("bench") / "cu.safetensors")


@pytest.fixture(scope="session")
def bench_result(bench_model: Path) -> BenchResult:
    """A bench run of that student with its teacher."""
    from bench_runs import run_tiny

    return run_tiny(bench_model)


@pytest.fixture(scope="session")
def beside_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Model files of two untrained students of different architectures."""
    from bench_runs import write_pair

    return write_pair(tmp_path_factory.mktemp("beside"))


@pytest.fixture(scope="session")
def beside_record(beside_models: tuple[Path, Path]) -> BenchRecord:
    """A bench record of the first of them, with the second and an ASE calculator beside it."""
    from bench_runs import run_beside

    return run_beside(beside_models)


@pytest.fixture
def calculator(model_path: Path) -> FastFFCalculator:
    """Calculator of that student in double precision."""
    from fastff.calculator import FastFFCalculator

    return FastFFCalculator(model_path, dtype="float64")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of atoms of every evaluation of a student."""
    from fastff.models import Student

    seen: list[int] = []
    forward = Student.forward

    def count(self: Student, graph: Any) -> Any:
        seen.append(graph.n_atoms)
        return forward(self, graph)

    monkeypatch.setattr(Student, "forward", count)
    return seen


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process: ``run_cli("doctor", "--json") -> (exit code, output, errors)``."""
    from fastff.cli import main

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ending:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        code = ending.value.code
        assert code is None or isinstance(code, int)
        return code or 0, captured.out, captured.err

    return call
