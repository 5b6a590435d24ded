"""Pairs of elements that training has seen, and the calculator's word about those it has not."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
from ase import Atoms
from ase.build import bulk, molecule
from untrained import make_student

from fastff.calculator import FastFFCalculator
from fastff.checkpoint import save_model
from fastff.coverage import find_close_pairs, list_unseen_pairs
from fastff.models import Student

ELEMENTS = (1, 8, 29)


def test_pairs_are_those_within_the_cutoff() -> None:
    apart = Atoms("CuO", [[0, 0, 0], [0, 0, 7.0]])
    assert find_close_pairs([apart, Atoms("Cu")], 6.0) == []
    assert find_close_pairs([apart], 8.0) == [(8, 29)]
    periodic = Atoms("CuO", [[0, 0, 0], [0, 0, 7.0]], cell=[9, 9, 9], pbc=True)
    assert find_close_pairs([periodic], 6.0) == [(8, 29)]
    frames = [molecule("H2O"), bulk("Cu")]
    assert find_close_pairs(frames, 6.0) == [(1, 1), (1, 8), (29, 29)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Trained, as its file says, on water and copper apart from each other."""
    pairs = [list(pair) for pair in find_close_pairs([molecule("H2O"), bulk("Cu")], 6.0)]
    path = tmp_path / "model.safetensors"
    save_model(path, make_student("m1", ELEMENTS), {"teacher": {}, "training": {"pairs": pairs}})
    return path


def test_unseen_pairs_are_flagged_and_warned_of_once(model: Path) -> None:
    calculator = FastFFCalculator(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for atoms in (molecule("H2O"), bulk("Cu"), Atoms("O")):
            calculator.calculate(atoms)
            assert calculator.extras == {}
    wet = Atoms("CuOH", [[0, 0, 0], [0, 0, 1.9], [0, 0.9, 2.2]])
    with pytest.warns(UserWarning, match=r"H-Cu, O-Cu never came within .* Å") as seen:
        calculator.calculate(wet)
    assert len(seen) == 1
    assert calculator.extras == {"unseen_pairs": ["H-Cu", "O-Cu"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wet.positions[2, 1] += 0.1
        calculator.calculate(wet)
        assert calculator.extras == {"unseen_pairs": ["H-Cu", "O-Cu"]}
        copy.copy(calculator).calculate(wet)
    with pytest.warns(UserWarning, match="O-O"):
        calculator.calculate(molecule("O2"))
    assert calculator.extras == {"unseen_pairs": ["O-O"]}
    calculator.calculate(molecule("H2O"))
    assert calculator.extras == {}


def test_files_that_do_not_tell_their_pairs(model_path: Path) -> None:
    calculator = FastFFCalculator(model_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calculator.calculate(molecule("O2"))
    assert calculator.extras == {}
    assert list_unseen_pairs({"training": None}, molecule("O2")) == ()


def test_unknown_student() -> None:
    student: Student = make_student("m1", ELEMENTS)
    assert list_unseen_pairs(student.header, molecule("O2")) == ()
