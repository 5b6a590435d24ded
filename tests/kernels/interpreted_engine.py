"""Evaluators over fused kernels in Triton's interpreter: one structure, batches, what stays on the device.

Run by ``test_engine.py`` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest
tests/kernels/interpreted_engine.py``.
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from gathered import gather
from untrained import make_student

from fastff import batch_lists, kernels, resident
from fastff.batches import BatchEvaluator
from fastff.calculator import FastFFCalculator
from fastff.errors import DataError, UnsupportedElementError
from fastff.evaluator import Evaluator, Outcome, choose_path
from fastff.inference import predict
from fastff.kernels import contract, dispatch
from fastff.kernels.neighbor_list import op as list_op
from fastff.md.potentials import make_potential
from fastff.md.protocol import DevicePotential
from fastff.models import Student

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_engine.py"
)


def make_atoms(kind: str) -> Atoms:
    atoms = bulk("Cu", cubic=True) * (1, 1, 2)
    atoms = atoms[[0, 1, 2, 4, 6]]
    atoms.numbers[1] = 8
    atoms.rattle(0.1, seed=1)
    skew = np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]])
    atoms.set_cell(atoms.cell.array + skew)
    if kind == "slab":
        atoms.pbc = (True, False, True)
    elif kind == "molecule":
        atoms.pbc, atoms.cell = False, np.zeros((3, 3))
    atoms.positions += (7.0, -90.0, 400.0)
    return atoms


def expect(outcome: Outcome, student: Student, atoms: Atoms) -> None:
    """An evaluation equals that of the student in float64."""
    with kernels.use("torch"):
        exact = Evaluator(student.double()).evaluate(
            atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers
        )
    # Untrained two-hop students have forces of up to 4e7 eV/Å here; rounding follows the sums behind them.
    tolerance = 5e-5 * (1.0 + 0.2 * abs(exact.forces).max())
    assert abs(outcome.energy - exact.energy) < len(atoms) * tolerance
    np.testing.assert_allclose(outcome.forces, exact.forces, rtol=0, atol=tolerance)
    np.testing.assert_allclose(outcome.energies, exact.energies, rtol=0, atol=tolerance)
    np.testing.assert_allclose(outcome.virial, exact.virial, rtol=0, atol=10 * tolerance)
    assert abs(exact.forces).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "architecture", "sort_from"),
    [("bulk", "m2", 1), ("bulk", "m1", 10_000), ("slab", "m1", 1), ("molecule", "m1", 10_000)],
)
def test_fused_evaluator(kind, architecture, sort_from, monkeypatch):
    """Through moves within the skin, beyond it, strain, wrapping, other species, another size."""
    monkeypatch.setattr(resident, "SORT_FROM", sort_from)
    student, exact = (make_student(architecture, (8, 29), cutoff=3.0) for _ in range(2))
    evaluator = Evaluator(student, skin=0.2)
    atoms = make_atoms(kind)

    def run():
        with kernels.use("triton"), contract.poison_allocations():
            assert evaluator.explain().path == "fused"
            return evaluator.evaluate(atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers)

    first = run()
    expect(first, exact, atoms)
    again = run()
    assert again.energy == first.energy
    assert (again.forces == first.forces).all()
    potential = evaluator._session.potential
    atoms.rattle(0.01, seed=2)
    expect(run(), exact, atoms)
    assert potential.n_builds == 1
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.04), scale_atoms=True)
    atoms.rattle(0.1, seed=3)
    expect(run(), exact, atoms)
    assert potential.n_builds == 2
    atoms.wrap(eps=0)
    expect(run(), exact, atoms)
    assert evaluator._session.potential is potential
    atoms.numbers[2] = 8
    expect(run(), exact, atoms)
    assert evaluator._session.potential is not potential
    del atoms[0]
    expect(run(), exact, atoms)


def test_rows_grow_under_compression(monkeypatch):
    """Rows as short as they can be: every denser structure needs longer ones."""
    monkeypatch.setattr(list_op, "round_slots", lambda widest: max(widest, 1))
    monkeypatch.setattr(list_op, "_guess_slots", lambda *_: 1)
    student, exact = (make_student("m1", (29,), cutoff=4.0) for _ in range(2))
    evaluator = Evaluator(student, skin=0.3)
    atoms = bulk("Cu", cubic=True, a=4.8)
    atoms.rattle(0.04, seed=1)
    sizes = []
    for scale in (1.0, 0.85):
        atoms.set_cell(atoms.cell.array * scale, scale_atoms=True)
        with kernels.use("triton"):
            found = evaluator.evaluate(atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers)
        expect(found, exact, atoms)
        sizes.append(evaluator._session.potential._neighbors.matrix.n_slots)
    assert sizes[1] > sizes[0] == 12
    assert evaluator._session.potential.n_builds == 2


def test_fast_mode_reaches_the_kernels_and_tells_its_error():
    atoms = make_atoms("bulk")
    student = make_student("m1", (8, 29), cutoff=3.0)
    with kernels.use("triton"):
        calculator = FastFFCalculator(student, device="cpu", precision="tf32", skin=0.5)
        with pytest.warns(UserWarning, match=r"precision tf32: forces on \d+ atoms differ"):
            calculator.calculate(atoms)
        assert calculator.evaluator._session.potential._fused.options.precision == "tf32"
        potential = make_potential(student, precision="tf32")
        assert potential.kernels._fused.options.precision == "tf32"
        labels = calculator.predict([atoms])[0]
    np.testing.assert_allclose(labels.forces, calculator.results["forces"], rtol=0, atol=1e-3)


def test_fused_calculator():
    calculator = FastFFCalculator(make_student("m1", (8, 29), cutoff=3.0), device="cpu", skin=0.5)
    atoms = make_atoms("bulk")
    atoms.calc = calculator
    with kernels.use("torch"):
        forces, stress = atoms.get_forces(), atoms.get_stress()
        assert calculator.explain() == ("torch", "selected by kernels.use")
    calculator.reset()
    with kernels.use("triton"):
        assert calculator.explain().path == "fused"
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-5)
        np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=5e-7)
        assert type(atoms.get_potential_energy()) is float
        twin = pickle.loads(pickle.dumps(calculator))
        assert twin.evaluator._session is None
        twin.calculate(atoms)
        assert (twin.results["forces"] == calculator.results["forces"]).all()
        atoms.positions[3] = atoms.positions[0] + (0.05, 0, 0)
        with pytest.raises(DataError, match=r"are 0\.05 Å apart, closer than 0\.1 Å"):
            atoms.get_forces()
        assert calculator.results == {}
        atoms.positions[3] = atoms.positions[0] + (2.0, 0, 0)
        atoms.get_forces()
        atoms.numbers[0] = 79
        with pytest.raises(UnsupportedElementError, match="Au"):
            atoms.get_forces()


@pytest.mark.parametrize("kind", [batch_lists.HostLists, batch_lists.DeviceLists])
@pytest.mark.parametrize("architecture", ["m1", "m2"])
def test_batches(architecture, kind):
    """Structures of different cells in one evaluation, moved, strained and wrapped.

    And predictions of them, which choose lists themselves and are compared once for each architecture.
    """
    predicts = kind is batch_lists.HostLists
    student = make_student(architecture, (8, 29), cutoff=3.0)
    structures = [make_atoms(kind) for kind in ("bulk", "molecule", "slab")]
    structures[2].set_cell(structures[2].cell.array * 1.1, scale_atoms=True)
    structures.append(Atoms("Cu"))
    evaluator = BatchEvaluator(student, skin=0.3, lists=kind)
    for turn in range(3):
        systems = gather(structures)
        with kernels.use("torch"):
            expected = BatchEvaluator(student.double()).evaluate(systems)
            exact = predict(student, structures) if predicts else []
            student.float()
        with kernels.use("triton"), contract.poison_allocations():
            assert evaluator.explain().path == "fused"
            found = evaluator.evaluate(systems)
            labels = predict(student, structures, batch_atoms=11) if predicts else []
        assert len(labels) == len(structures) * predicts
        scale = 1.0 + float(expected.forces.abs().max())
        for name in ("energy", "forces", "virial", "energies"):
            one, other = getattr(found, name), getattr(expected, name)
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-4 * scale)
        assert float(expected.virial.abs().max()) > 1e-2
        for one, other in zip(labels, exact, strict=True):
            assert one.energy == pytest.approx(other.energy, abs=2e-4 * scale)
            np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=1e-4 * scale)
            assert (one.stress is None) == (other.stress is None)
            if one.stress is not None:
                np.testing.assert_allclose(one.stress, other.stress, rtol=0, atol=1e-5 * scale)
        if turn == 0:
            assert evaluator.n_builds == 4
            structures[0].positions += 2 * structures[0].cell.array[1]
            structures[1].rattle(0.02, seed=5)
        elif turn == 1:
            assert evaluator.n_builds == 4
            structures[0].set_cell(structures[0].cell.array * 0.9, scale_atoms=True)
    if kind is batch_lists.HostLists:
        assert evaluator.n_builds == 5
    else:
        assert evaluator.n_builds in (5, 8)  # more images where the smaller cell needs them


def test_batches_that_move():
    """Rows of structures that are due are written by the kernel, others stay; a width that is too small is noticed."""
    student = make_student("m1", (8, 29), cutoff=3.0)
    structures = [make_atoms(kind) for kind in ("bulk", "molecule", "slab")]
    evaluator = BatchEvaluator(student, skin=0.3, lists=batch_lists.DeviceLists)
    exact, rng = (
        BatchEvaluator(make_student("m1", (8, 29), cutoff=3.0).double()),
        np.random.default_rng(2),
    )
    for turn in range(5):
        for atoms, size in zip(structures, (0.08, 0.03, 0.0), strict=True):
            atoms.positions += rng.uniform(-size, size, (len(atoms), 3))
        systems = gather(structures)
        with kernels.use("triton"):
            found = evaluator.evaluate(systems, only_moved=turn > 0, lazy=turn > 2)
        with kernels.use("torch"):
            expected = exact.evaluate(systems)
        scale = 1.0 + float(expected.forces.abs().max())
        for name in ("energy", "forces", "virial"):
            one, other = getattr(found, name), getattr(expected, name)
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-4 * scale)
    assert dispatch._last_calls["neighbor_list"][0] == "triton"
    renewed = evaluator.n_builds - 2 * len(structures)
    assert 0 < renewed < 4 * len(structures)
    assert not evaluator.was_void()


def test_rows_that_were_cut_are_read_no_farther(monkeypatch):
    """Behind the matrix is memory of others, whose numbers name no atoms."""
    monkeypatch.setattr(batch_lists, "_fit_slots", lambda widest: widest)
    real = batch_lists.DeviceLists._allocate

    def allocate(self, n_slots):
        matrix = real(self, n_slots)
        size = matrix.entries.numel()
        larger = torch.full((size + 4096,), 0x3F800000, dtype=matrix.entries.dtype)
        larger[:size] = 0
        return replace(matrix, entries=larger[:size].view(matrix.entries.shape))

    monkeypatch.setattr(batch_lists.DeviceLists, "_allocate", allocate)
    atoms = (bulk("Cu", cubic=True) * (2, 1, 1))[[0, 1, 6, 7, 2, 3, 4, 5]]
    atoms.cell[0] *= 2.0
    evaluator = BatchEvaluator(
        make_student("m1", (8, 29), cutoff=3.0), skin=0.3, lists=batch_lists.DeviceLists
    )
    systems = gather([atoms])
    with kernels.use("triton"):
        evaluator.evaluate(systems)
        evaluator.evaluate(systems, only_moved=True, lazy=True)
        systems.positions[:, 0] *= 0.75
        found = evaluator.evaluate(systems, only_moved=True, lazy=True)
        assert found.forces.isfinite().all()
        assert evaluator.was_void()


def test_fused_path_is_refused_with_a_reason():
    student = make_student("m1", (29,))
    expected = r"the student is torch\.float64"
    with kernels.use("triton"), pytest.raises(kernels.BackendError, match=expected):
        choose_path(student.double())
    with kernels.use("auto"):
        assert choose_path(make_student("m1", (29,))).path == "torch"


def test_resident_potential_is_a_device_potential():
    potential = resident.ResidentPotential(make_student("m1", (8, 29), cutoff=3.0), skin=0.5)
    assert isinstance(potential, DevicePotential)
    atoms = make_atoms("bulk")
    positions, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    with kernels.use("triton"):
        numbers = torch.tensor(atoms.numbers)
        potential.attach(positions, numbers, cell, torch.tensor(atoms.pbc))
        potential.check()
        potential.compute()
        kept = [potential.energy, potential.forces, potential.virial, potential.stale]
        before = potential.forces.clone()
        positions[0] += 0.6
        potential.check()
        assert int(potential.stale) == 1
        assert potential.rebuild() is False
        assert int(potential.stale) == 0
        potential.compute()
    now = [potential.energy, potential.forces, potential.virial, potential.stale]
    assert all(a is b for a, b in zip(kept, now, strict=True))
    assert not torch.equal(before, potential.forces)
    with kernels.use("triton"):
        positions[1] = positions[0] + torch.tensor([0.3, 0.0, 0.0])
        potential.rebuild()
        potential.compute()
        assert float(potential.measure_closest(0.5)) == pytest.approx(0.09, abs=1e-6)
        potential.compute()
        assert float(potential.measure_closest(0.29)) == float("inf")
