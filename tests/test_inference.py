"""Batched prediction: order, chunks, kinds of structures, and refusals that name the structure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from untrained import make_student

import fastff
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.graph import Graph
from fastff.inference import predict, split_chunks
from fastff.memory import DeviceMemoryError
from fastff.models import Prediction, Student
from fastff.testing import make_structures

ELEMENTS = (1, 8, 29)


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student("m2", ELEMENTS).double()


@pytest.fixture
def structures(water: Atoms) -> list[Atoms]:
    wire = Atoms("CuO", [[0, 0, 0], [1.2, 1.3, 0]], cell=[2.6, 0, 0], pbc=(True, False, False))
    kinds = list(make_structures(ELEMENTS).values())
    return [*kinds, water, Atoms("Cu"), wire, bulk("Cu", cubic=True).repeat(2)]


@pytest.mark.parametrize("batch_atoms", [1, 5, 9, 4096])
def test_chunks_change_nothing(student: Student, structures: list[Atoms], batch_atoms: int) -> None:
    alone = [predict(student, [atoms])[0] for atoms in structures]
    found = predict(student, structures, batch_atoms=batch_atoms)
    assert len(found) == len(structures)
    for atoms, one, other in zip(structures, alone, found, strict=True):
        assert isinstance(other.energy, float)
        assert other.energy == pytest.approx(one.energy, abs=1e-10)
        np.testing.assert_allclose(other.forces, one.forces, rtol=0, atol=1e-12)
        assert other.forces.shape == (len(atoms), 3)
        assert other.forces.dtype == np.float64
        assert other.energies is not None
        assert other.energies.shape == (len(atoms),)
        assert other.energies.sum() == pytest.approx(other.energy)
        assert (other.stress is None) == (not atoms.pbc.all())
        if other.stress is not None:
            assert other.stress.shape == (6,)
            np.testing.assert_allclose(other.stress, one.stress, rtol=0, atol=1e-12)


def test_order_is_that_of_the_input(student: Student, structures: list[Atoms]) -> None:
    forwards = predict(student, structures, batch_atoms=9)
    backwards = predict(student, structures[::-1], batch_atoms=9)
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.energy == pytest.approx(other.energy, abs=1e-10)
    assert len({round(one.energy, 6) for one in forwards}) == len(structures)


def test_stress_components_are_in_voigt_order(student: Student) -> None:
    atoms = make_structures(ELEMENTS)["bulk"]
    found = predict(student, [atoms])[0].stress
    assert found is not None
    step = 1e-4
    for place, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            bent = atoms.copy()
            bent.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            energies.append(predict(student, [bent])[0].energy)
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert found[place] == pytest.approx(slope, abs=1e-6)


def test_one_structure_or_any_iterable(student: Student, structures: list[Atoms]) -> None:
    alone = predict(student, structures[0])
    assert len(alone) == 1
    assert alone[0].energy == predict(student, structures[:1])[0].energy
    found = predict(student, (atoms for atoms in structures))
    assert len(found) == len(structures)
    with pytest.raises(DataError, match="structure 1: no atoms"):
        predict(student, iter([structures[0], Atoms()]))


def test_nothing_to_predict(student: Student) -> None:
    assert predict(student, []) == []


def test_inputs_stay_as_they_were(student: Student, structures: list[Atoms]) -> None:
    before = [atoms.copy() for atoms in structures]
    predict(student, structures)
    assert structures == before


def test_results_do_not_share_memory(student: Student, structures: list[Atoms]) -> None:
    found = predict(student, structures)
    assert all(one.forces.base is None and one.forces.flags.writeable for one in found)
    assert not np.shares_memory(found[0].forces, found[1].forces)


def test_chunks_hold_every_structure_once() -> None:
    sizes = [3, 5, 2, 9, 1, 4]
    structures = [Atoms("Cu" * n) for n in sizes]
    chunks = list(split_chunks(structures, 5))
    assert [[len(a) for a in chunk] for chunk in chunks] == [[3], [5], [2], [9], [1, 4]]
    assert list(split_chunks([], 5)) == []


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (Atoms(), DataError, "structure 2: no atoms"),
        (Atoms("Cu", [[np.nan, 0, 0]]), DataError, "structure 2: position of atom 0 is not finite"),
        (Atoms("Cu", pbc=True), DataError, "structure 2: cell vector a, b, c is zero"),
        (Atoms("Cu2"), DataError, "structure 2: atom 0 and atom 1 are 0 Å apart"),
        (Atoms("Cu", cell=[0.01] * 3, pbc=True), DataError, "structure 2: the cell .* images"),
        (Atoms("Cu", cell=[0.11] * 3, pbc=True), DataError, "structure 2: the cell .* images"),
        (Atoms("X"), UnsupportedElementError, "structure 2: atom 0 has atomic number 0"),
        (
            Atoms("OXe", [[0, 0, 0], [2, 0, 0]]),
            UnsupportedElementError,
            r"structure 2: atoms contain Xe \(indices 1\)",
        ),
    ],
)
@pytest.mark.parametrize("batch_atoms", [1, 4096])
def test_the_structure_at_fault_is_named(
    student: Student, water: Atoms, bad: Atoms, kind: type, message: str, batch_atoms: int
) -> None:
    with pytest.raises(kind, match=message):
        predict(student, [water, water, bad, water], batch_atoms=batch_atoms)


def test_the_function_has_its_public_name() -> None:
    assert fastff.predict is predict
    namespace: dict[str, object] = {}
    exec("from fastff import predict", namespace)
    assert namespace["predict"] is predict


@pytest.mark.parametrize(
    ("info", "charges", "message"),
    [
        ({"charge": 1}, [0.0, 0.0, 0.0], "structure 1: total charge 1 requested"),
        ({}, [0.5, 0.25, 0.25], "structure 1: total charge 1 requested"),
        ({"spin": 3}, [0.0, 0.0, 0.0], "structure 1: spin multiplicity 3 requested"),
        ({"charge": "x"}, [0.0, 0.0, 0.0], "charge 'x' is not a number"),
    ],
)
def test_charges_and_spins_are_not_ignored(
    student: Student, info: dict[str, object], charges: list[float], message: str
) -> None:
    atoms = molecule("H2O")
    neutral = predict(student, atoms)[0]
    other = atoms.copy()
    other.info.update(info)
    other.set_initial_charges(charges)
    with pytest.raises(UsageError, match=message):
        predict(student, [atoms, other])
    found = predict(student, [atoms, other], charges="ignore")
    assert found[1].energy == pytest.approx(neutral.energy)


def test_what_is_no_structure_is_named(student: Student) -> None:
    with pytest.raises(UsageError, match=r"structure 1 is no ase\.Atoms but a int"):
        predict(student, [Atoms("Cu"), 3])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="charges 'bogus' is not one of raise, ignore"):
        predict(student, Atoms("Cu"), charges="bogus")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_atoms 0 must be at least 1"):
        predict(student, Atoms("Cu"), batch_atoms=0)


def test_single_precision_is_close(structures: list[Atoms], student: Student) -> None:
    single = make_student("m2", ELEMENTS)
    assert single.dtype == torch.float32
    for one, other in zip(predict(single, structures), predict(student, structures), strict=True):
        size = max(1.0, abs(other.forces).max())  # rounding follows the size of what is summed
        assert abs(one.energy - other.energy) / len(one.forces) < 1e-6 * size
        assert one.forces.dtype == np.float64
        np.testing.assert_allclose(one.forces, other.forces, rtol=0, atol=1e-5 * size)


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, text: str) -> list[int]:
    """Let evaluations of more than ``most`` atoms run out of memory; sizes of all that were asked for."""
    seen: list[int] = []
    forward = Student.forward

    def fail(self: Student, graph: Graph) -> Prediction:
        seen.append(graph.n_atoms)
        if graph.n_atoms > most:
            raise RuntimeError(text)
        return forward(self, graph)

    monkeypatch.setattr(Student, "forward", fail)
    return seen


def test_batches_are_halved_where_memory_runs_out(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = [bulk("Cu", cubic=True) for _ in range(8)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
    expected = predict(student, structures)
    seen = limit_memory(monkeypatch, 8, "CUDA error: Out of Memory. Tried to allocate")
    found = predict(student, structures)
    assert seen == [32, 16, 8, 8, 16, 8, 8]
    for one, other in zip(expected, found, strict=True):
        assert other.energy == pytest.approx(one.energy, abs=1e-10)
        np.testing.assert_allclose(other.forces, one.forces, rtol=0, atol=1e-12)


def test_memory_that_never_suffices(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = limit_memory(monkeypatch, 0, "warp: memory allocation failed")
    with pytest.raises(
        DeviceMemoryError, match="32 atoms at once do not fit into the memory of cpu"
    ):
        predict(student, [bulk("Cu", cubic=True)] * 64)
    assert seen == [256, 128, 64, 32]
    seen.clear()
    with pytest.raises(DeviceMemoryError, match="4 atoms"):
        predict(student, [bulk("Cu", cubic=True)])
    assert seen == [4, 4], "a single structure is tried once more when memory has been freed"
    seen = limit_memory(monkeypatch, 0, "device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        predict(student, [bulk("Cu", cubic=True)] * 2)
    assert len(seen) == 1


def test_lists_that_do_not_fit(
    student: Student, structures: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("could not allocate memory")

    monkeypatch.setattr("fastff.neighbors.build_edges", fail)
    with pytest.raises(DeviceMemoryError, match="atoms at once do not fit"):
        predict(student, [bulk("Cu", cubic=True)])


def test_threads_do_not_disturb_each_other(student: Student, structures: list[Atoms]) -> None:
    expected = predict(student, structures)
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: predict(student, structures, batch_atoms=9), range(6)))
    for found in runs:
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(other.forces, one.forces, rtol=0, atol=1e-12)
