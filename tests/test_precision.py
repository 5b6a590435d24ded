"""Opt-in precisions, their error told once. On the kernels themselves: ``kernels/interpreted_engine.py``."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from ase import Atoms
from untrained import make_student

from fastff import precision as module
from fastff.calculator import FastFFCalculator
from fastff.errors import UsageError
from fastff.evaluator import Choice, Evaluator, Outcome
from fastff.md.potentials import make_potential
from fastff.precision import describe_precision

Run = Callable[..., tuple[int, str, str]]
FUSED = Choice("fused", "for this test")


@pytest.fixture
def blunt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluators in "tf32" be wrong by 0.01 eV/Å everywhere."""
    evaluate = Evaluator.evaluate

    def err(self: Evaluator, *arguments: object) -> Outcome:
        outcome = evaluate(self, *arguments)  # type: ignore[arg-type]
        if self.options.precision == "tf32":
            outcome.forces[:] += 0.01
        return outcome

    monkeypatch.setattr(Evaluator, "evaluate", err)


def test_the_error_is_measured_against_the_default(copper: Atoms, blunt: None) -> None:
    student = make_student("m1", (29,))
    assert describe_precision(student, "tf32x3", copper, FUSED) is None
    remark = describe_precision(student, "tf32", copper, FUSED)
    assert remark is not None
    assert "forces on 4 atoms differ from those of the default, tf32x3, by 0.01 eV/Å" in remark
    idle = describe_precision(student, "tf32", copper)
    assert idle is not None
    assert "has no effect" in idle
    assert "Triton needs a CUDA device" in idle


def test_calculator_tells_once(
    copper: Atoms, blunt: None, monkeypatch: pytest.MonkeyPatch, model_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FastFFCalculator(model_path).calculate(copper)
        FastFFCalculator(model_path, precision="tf32x3").calculate(copper)
    calculator = FastFFCalculator(model_path, precision="tf32", device="cpu")
    assert calculator.evaluator.options.precision == calculator.parameters["precision"] == "tf32"
    assert calculator.student.dtype is FastFFCalculator(model_path).student.dtype
    other = pickle.loads(pickle.dumps(calculator))
    with pytest.warns(UserWarning, match="precision tf32 has no effect") as seen:
        calculator.calculate(copper)
    assert len(seen) == 1
    monkeypatch.setattr(FastFFCalculator, "explain", lambda self: FUSED)
    with pytest.warns(UserWarning, match="by 0.01 eV/Å"):
        other.calculate(copper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for told in (calculator, other, copy.copy(other)):
            told.calculate(copper)


def test_precisions_that_do_not_exist(model_path: Path) -> None:
    with pytest.raises(
        UsageError, match="precision 'tf64' is not one of tf32x3, tf32, ieee, float32"
    ):
        FastFFCalculator(model_path, precision="tf64")
    with pytest.raises(UsageError, match="precision 'float64'"):
        make_potential(make_student("m1", (29,)), precision="float64")


def test_potential_says_that_it_has_no_effect() -> None:
    student = make_student("m1", (29,))
    with pytest.warns(UserWarning, match="precision tf32 has no effect"):
        make_potential(student, precision="tf32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_potential(student)


def test_command_says_that_it_has_no_effect(
    copper_model: Path, copper: Atoms, tmp_path: Path, run_cli: Run
) -> None:
    copper.write(tmp_path / "cu.extxyz")
    command = [
        "md",
        copper_model,
        tmp_path / "cu.extxyz",
        "--steps",
        "2",
        "--timestep",
        "0.1",
        "--device",
        "cpu",
    ]
    code, out, err = run_cli(*command, "--out", tmp_path / "run", "--precision", "tf32")
    assert (code, err) == (0, "")
    assert out.count("precision tf32 has no effect") == 1
    model = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    assert model["precision"] == module.DEFAULT
    assert run_cli(*command, "--precision", "fast")[0] == 2
