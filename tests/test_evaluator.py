"""Evaluator: its path, what it keeps, what it reports. Fused kernels: ``kernels/interpreted_engine.py``."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from untrained import make_student

from fastff import kernels
from fastff.batches import BatchEvaluator
from fastff.errors import UsageError
from fastff.evaluator import Contact, Evaluator, choose_path, find_contact, find_student_obstacle
from fastff.graph import Graph
from fastff.inference import predict
from fastff.kernels import dispatch
from fastff.md.potentials import make_potential
from fastff.md.torch_potential import StudentPotential
from fastff.memory import DeviceMemoryError
from fastff.models import Prediction, Student
from fastff.resident import ResidentPotential


def evaluate(evaluator: Evaluator, atoms: Atoms):
    return evaluator.evaluate(atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers)


@pytest.mark.parametrize("skin", [0.0, 1.0])
def test_same_as_predict(copper: Atoms, slab: Atoms, water: Atoms, skin: float) -> None:
    student = make_student("m2", (1, 8, 29)).double()
    evaluator = Evaluator(student, skin=skin)
    for atoms in (copper, slab, water, copper):
        labels, found = predict(student, [atoms])[0], evaluate(evaluator, atoms)
        assert found.energy == pytest.approx(labels.energy, abs=1e-10)
        np.testing.assert_allclose(found.forces, labels.forces, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.energies, labels.energies, rtol=0, atol=1e-10)
        if labels.stress is not None:
            stress = labels.stress * atoms.cell.volume
            virial = found.virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            np.testing.assert_allclose(virial, stress, rtol=0, atol=1e-10)
        assert found.is_finite


def test_the_choice_and_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student("m1", (29,))
    assert find_student_obstacle(student) is None
    assert choose_path(student) == ("torch", "the tensors are on cpu, Triton needs a CUDA device")
    double = Evaluator(make_student("m1", (29,)).double())
    odd = Evaluator(make_student("m1", (29,), n_channels=24))
    with kernels.use("torch"):
        assert Evaluator(student).explain() == ("torch", "selected by kernels.use")
    monkeypatch.setattr(dispatch, "_find_device_obstacle", lambda device, forced: None)
    monkeypatch.setattr(dispatch, "_describe_device", lambda device: "for this test")
    assert Evaluator(student).explain() == ("fused", "for this test")
    assert double.explain() == ("torch", "the student is torch.float64, the kernels take float32")
    assert odd.explain().reason == "a width of 24, the kernels take powers of two from 16"
    for kind in (Evaluator, BatchEvaluator):
        far = kind(student, skin=60.0).explain()
        assert far == (
            "torch",
            f"lists reach {student.cutoff + 60:g} Å, the position grid holds up to 32 Å",
        )
    assert isinstance(make_potential(student, skin=60.0), StudentPotential)
    with pytest.raises(UsageError, match=r"skin 60\.0 Å: lists reach"):
        ResidentPotential(student, skin=60.0)
    monkeypatch.setattr(
        dispatch, "_failures", {"moment_potential": dispatch.Failure("no such instruction", "")}
    )
    assert Evaluator(student).explain().reason == "Triton failed to compile: no such instruction"


def test_a_failure_to_compile_falls_back(copper: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("triton.compiler.errors")
    evaluator = Evaluator(make_student("m1", (29,)))
    expected = evaluate(evaluator, copper)

    def fail(*_: object) -> None:
        raise errors.CompilationError(None, None, "no such instruction")

    monkeypatch.setattr(dispatch, "_failures", {})
    monkeypatch.setattr(dispatch, "_find_device_obstacle", lambda device, forced: None)
    monkeypatch.setattr(dispatch, "_describe_device", lambda device: "for this test")
    monkeypatch.setattr(evaluator, "_evaluate_fused", fail)
    assert evaluator.explain().path == "fused"
    assert evaluate(evaluator, copper).energy == expected.energy
    assert evaluator.explain().path == "torch"


def test_the_closest_pair_is_reported(copper: Atoms) -> None:
    evaluator = Evaluator(make_student("m1", (29,)), contact_limit=0.5)
    assert evaluate(evaluator, copper).contact is None
    copper.positions[2] = copper.positions[1] + copper.cell.array[0] + (0.0, 0.3, 0.0)
    found = evaluate(evaluator, copper).contact
    assert found is not None
    assert {found.first, found.second} == {1, 2}
    assert found.distance == pytest.approx(0.3)
    again = find_contact(copper.positions, copper.cell.array, copper.pbc, 0.5)
    assert again is not None
    assert again.distance == pytest.approx(0.3)
    assert find_contact(copper.positions, copper.cell.array, copper.pbc, 0.2) is None
    assert Contact(0, 1, 0.2).distance == 0.2


def test_copies_carry_no_lists(copper: Atoms) -> None:
    evaluator = Evaluator(make_student("m1", (29,)))
    found = evaluate(evaluator, copper)
    twin = pickle.loads(pickle.dumps(evaluator))
    assert twin.cache.n_builds == 0
    assert evaluate(twin, copper).energy == found.energy
    assert len(pickle.dumps(evaluator)) < 3 * len(pickle.dumps(evaluator.student))


def test_out_of_memory_names_the_atoms(copper: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    evaluator = Evaluator(make_student("m1", (29,)))
    with monkeypatch.context() as patch:
        patch.setattr(Student, "forward", fail)
        with pytest.raises(DeviceMemoryError, match="4 atoms at once do not fit"):
            evaluate(evaluator, copper)
    assert evaluate(evaluator, copper).is_finite


def test_memory_is_freed_and_asked_for_once_more(
    copper: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first failure costs nothing but time; lists and buffers are dropped before the second attempt."""
    evaluator = Evaluator(make_student("m1", (29,)))
    expected = evaluate(evaluator, copper)
    old, calls, build = evaluator.cache, [], Student.forward

    def fail_once(self: Student, graph: Graph) -> Prediction:
        calls.append(evaluator.cache is old)
        if len(calls) == 1:
            raise RuntimeError("could not allocate memory")
        return build(self, graph)

    monkeypatch.setattr(Student, "forward", fail_once)
    found = evaluate(evaluator, copper)
    assert calls == [True, False]
    assert found.energy == expected.energy
    np.testing.assert_array_equal(found.forces, expected.forces)


def test_negative_skin() -> None:
    with pytest.raises(UsageError, match=r"skin -0\.1 Å"):
        Evaluator(make_student("m1", (29,)), skin=-0.1)
