"""When FastFFCalculator takes a structure for changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import all_changes, compare_atoms

from fastff.calculator import FastFFCalculator


@pytest.mark.parametrize("tolerance", [1e-15, 0.0, 1e-3])
def test_changes_are_those_of_ase(
    calculator: FastFFCalculator, copper: Atoms, tolerance: float
) -> None:
    """With ASE's tolerance and any other, whatever has changed."""
    variants = [copper.copy() for _ in range(12)]
    variants[1].positions[2, 1] += 1e-4
    variants[2].positions[0] = np.nextafter(variants[2].positions[0], 9.0)
    variants[3].positions[3, 2] = np.nan
    variants[4].cell[0, 1] = 1e-4
    variants[5].pbc[1] = False
    variants[6].numbers[0] = 8
    variants[7].set_initial_charges([0.0] * 4)
    variants[8].set_initial_magnetic_moments([1.0] * 4)
    variants[9] = copper.repeat((2, 1, 1))
    variants[10].positions = variants[10].positions + 0.1
    variants[11].positions[0, 0] = np.inf
    for before in variants:
        calculator.atoms = before
        for after in variants:
            with np.errstate(invalid="ignore"):
                expected = compare_atoms(before, after, tolerance, {"initial_magmoms"})
            assert set(calculator.check_state(after, tol=tolerance)) == set(expected)
    calculator.atoms = None
    assert calculator.check_state(copper) == all_changes


def test_unchanged_structures_are_compared_without_arithmetic(
    calculator: FastFFCalculator, copper: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("numpy.allclose was called")

    copper.calc = calculator
    copper.get_forces()
    monkeypatch.setattr(np, "allclose", fail)
    copper.get_forces()
    copper.rattle(0.01)
    copper.get_forces()
