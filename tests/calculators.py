"""What tests of calculators share. Not here: any test; the fixtures (``conftest.py``)."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from fastff.calculator import FastFFCalculator
from fastff.inference import predict


def expect(calculator: FastFFCalculator, atoms: Atoms) -> None:
    """The calculator says what prediction from scratch says."""
    labels = predict(calculator.student, [atoms])[0]
    assert atoms.get_potential_energy() == pytest.approx(labels.energy, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), labels.forces, rtol=0, atol=1e-11)
    if labels.stress is not None:
        np.testing.assert_allclose(atoms.get_stress(), labels.stress, rtol=0, atol=1e-12)
