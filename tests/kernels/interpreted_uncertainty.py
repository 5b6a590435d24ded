"""Uncertainty of fused evaluations in Triton's interpreter beside that of torch.

Run by ``test_engine.py`` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest
tests/kernels/interpreted_uncertainty.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from untrained import make_student

from fastff import kernels, resident
from fastff.calculator import FastFFCalculator
from fastff.errors import DataError
from fastff.evaluator import Evaluator
from fastff.kernels import contract, dispatch
from fastff.models import Student
from fastff.models.uncertainty import UncertaintyParameters

from .interpreted_engine import make_atoms

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_engine.py"
)


def give_uncertainty(student: Student, seed: int = 3) -> Student:
    """Parameters as a fit makes them, of no training data; the second species was never seen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n_species, n_features = len(student.elements), 64 * student.n_hops
    directions = torch.stack([torch.linalg.qr(draw(n_features, 20))[0].T for _ in range(n_species)])
    student.uncertainty = UncertaintyParameters(
        energy_components=torch.linalg.qr(draw(n_species * n_features, 9))[0].T.float(),
        energy_weights=draw(9).square(),
        energy_rest=torch.tensor(0.02, dtype=torch.float64),
        atom_means=draw(n_species, n_features).float(),
        atom_components=(directions * draw(n_species, 20, 1).abs()).float(),
        atom_rest=torch.tensor([0.1] * (n_species - 1) + [torch.inf], dtype=torch.float64),
    )
    return student


@pytest.mark.parametrize(
    ("kind", "architecture", "sort_from", "sizes"),
    [
        ("bulk", "m2", 1, {}),
        ("slab", "m1", 10_000, {"input_limit": None}),
        ("molecule", "m2", 10_000, {"n_hops": 3, "message_degree": 1, "n_mixed": 16}),
    ],
)
def test_fused_uncertainty_is_that_of_torch(kind, architecture, sort_from, sizes, monkeypatch):
    """Also after moves, other species and lists built anew, in the order of the structure's atoms."""
    monkeypatch.setattr(resident, "SORT_FROM", sort_from)
    student, exact = (make_student(architecture, (8, 29), cutoff=3.0, **sizes) for _ in range(2))
    give_uncertainty(student), give_uncertainty(exact)
    exact.double()
    evaluator = Evaluator(student, skin=0.2, with_uncertainty=True)
    plain = Evaluator(student, skin=0.2)
    reference = Evaluator(exact, skin=0.0, with_uncertainty=True)
    atoms = make_atoms(kind)[::-1]
    for change in ("none", "none", "move", "far", "kind"):
        if change in ("move", "far"):
            atoms.rattle({"move": 0.01, "far": 0.3}[change], seed=5)
        elif change == "kind":
            atoms.numbers[2] = 8
        arguments = atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers
        with kernels.use("triton"), contract.poison_allocations():
            assert evaluator.explain().path == "fused"
            found = evaluator.evaluate(*arguments)
            bare = plain.evaluate(*arguments)
        with kernels.use("torch"):
            wanted = reference.evaluate(*arguments)
        assert found.energy == bare.energy
        assert (found.forces == bare.forces).all()
        assert bare.uncertainty is None
        torch.testing.assert_close(
            found.uncertainty.energy, wanted.uncertainty.energy, rtol=2e-3, atol=1e-4
        )
        torch.testing.assert_close(
            found.uncertainty.grades, wanted.uncertainty.grades, rtol=2e-3, atol=1e-4
        )
        assert found.uncertainty.grades.isinf().tolist() == (atoms.numbers == 29).tolist()
    order = evaluator._session.potential._neighbors.order.tolist()
    assert (order != sorted(order)) == (sort_from == 1)
    kept = found.uncertainty.grades.clone()
    atoms.rattle(0.01, seed=6)
    with kernels.use("triton"):
        evaluator.evaluate(atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers)
    assert torch.equal(found.uncertainty.grades, kept)  # results belong to the caller


def test_a_calculator_raises_over_the_kernels():
    student = give_uncertainty(make_student("m1", (8, 29), cutoff=3.0))
    atoms = make_atoms("bulk")
    with kernels.use("triton"):
        calculator = FastFFCalculator(student, device="cpu", on_extrapolation="raise")
        atoms.calc = calculator
        with pytest.raises(DataError, match="outside what the student was trained on"):
            atoms.get_potential_energy()
        assert calculator.evaluator._session is not None
        quiet = FastFFCalculator(student, device="cpu")
        quiet.calculate(atoms)
        assert "extrapolation_grades" not in quiet.extras
        assert quiet.evaluator._session.potential.uncertainty is None
    assert np.isfinite(quiet.results["energy"])
