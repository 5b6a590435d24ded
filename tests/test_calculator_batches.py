"""FastFFCalculator.predict: many structures at once, by the calculator's own rules."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from fastff.calculator import FastFFCalculator
from fastff.errors import DataError, UsageError


def test_the_same_as_one_after_another(
    calculator: FastFFCalculator, copper: Atoms, slab: Atoms, water: Atoms
) -> None:
    structures = [copper, slab, water, bulk("Cu", cubic=True).repeat(2)]
    found = calculator.predict(structures)
    assert calculator.results == {}
    for atoms, labels in zip(structures, found, strict=True):
        calculator.calculate(atoms)
        results = calculator.results
        assert labels.energy == pytest.approx(results["energy"], abs=1e-9)
        np.testing.assert_allclose(labels.forces, results["forces"], rtol=0, atol=1e-11)
        if labels.stress is not None:
            np.testing.assert_allclose(labels.stress, results["stress"], rtol=0, atol=1e-12)
    kept = dict(calculator.results)
    assert calculator.predict(water)[0].energy == found[2].energy
    assert calculator.predict(iter([water]))[0].energy == found[2].energy
    assert calculator.predict([]) == []
    assert calculator.results["energy"] == kept["energy"]


def test_in_one_evaluation(
    calculator: FastFFCalculator, copper: Atoms, water: Atoms, passes: list[int]
) -> None:
    calculator.predict([copper, water, copper])
    calculator.predict([copper, water, copper], batch_atoms=4)
    assert passes == [11, 4, 3, 4]


def test_rules_of_the_calculator_hold(
    calculator: FastFFCalculator, water: Atoms, model_path: Path
) -> None:
    charged = water.copy()
    charged.info["charge"] = 1
    with pytest.raises(UsageError, match="structure 1: total charge 1"):
        calculator.predict([water, charged])
    near = Atoms("Cu2", [[0, 0, 0], [0.09, 0, 0]])
    with pytest.raises(DataError, match="structure 1: atom 0 and atom 1"):
        calculator.predict([water, near])
    tolerant = FastFFCalculator(model_path, dtype="float64", close_contacts="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = tolerant.predict([water, near])[1]
    tolerant.calculate(near)
    assert labels.energy == pytest.approx(tolerant.results["energy"])
    with pytest.warns(UserWarning, match="precision tf32 has no effect"):
        FastFFCalculator(model_path, precision="tf32", device="cpu").predict([water])


def test_pairs_never_seen_are_warned_of(calculator: FastFFCalculator, copper: Atoms) -> None:
    calculator.student.header["training"] = {"pairs": [[29, 29]]}
    with pytest.warns(UserWarning, match="O-O never came within"):
        calculator.predict([copper, molecule("O2")])


def test_uncertainty_is_refused(calculator: FastFFCalculator, water: Atoms) -> None:
    calculator.on_extrapolation = "warn"
    with pytest.raises(UsageError, match="predict measures no uncertainty"):
        calculator.predict([water])
