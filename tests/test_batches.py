"""Batches with lists of their own: equal to structures alone, through moves, strains and other batches."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from gathered import gather
from untrained import make_student

from fastff import batches
from fastff.batch_lists import list_on_device, list_on_host
from fastff.batches import BatchEvaluator
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.graph import batch_graphs
from fastff.inference import predict
from fastff.kernels.moment_potential.layout import unpack_neighbors
from fastff.models import Student
from fastff.neighbors import atoms_to_graph
from fastff.packed import pack_batch

ELEMENTS = (1, 8, 29)


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student("m2", ELEMENTS, cutoff=4.0).double()


@pytest.fixture
def structures(copper: Atoms, slab: Atoms, water: Atoms) -> list[Atoms]:
    return [copper, water, slab, Atoms("Cu")]


def expect(evaluator: BatchEvaluator, structures: list[Atoms]) -> None:
    """The batch equals its structures, each alone."""
    found, start = evaluator.evaluate(gather(structures)), 0
    for k, atoms in enumerate(structures):
        labels = predict(evaluator.student, [atoms])[0]
        mine = slice(start, start + len(atoms))
        start += len(atoms)
        assert float(found.energy[k]) == pytest.approx(labels.energy, abs=1e-10)
        np.testing.assert_allclose(found.forces[mine], labels.forces, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.energies[mine], labels.energies, rtol=0, atol=1e-10)
        if labels.stress is not None:
            virial = found.virial[k].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            expected = labels.stress * atoms.cell.volume
            np.testing.assert_allclose(virial, expected, rtol=0, atol=1e-10)


def test_batches_are_their_structures(student: Student, structures: list[Atoms]) -> None:
    evaluator = BatchEvaluator(student, skin=0.5)
    expect(evaluator, structures)
    assert evaluator.n_builds == 4
    for atoms in structures:
        atoms.rattle(0.02, seed=1)
    expect(evaluator, structures)
    assert evaluator.n_builds == 4
    structures[1].positions[2] += (0.4, 0.2, 0.0)
    expect(evaluator, structures)
    assert evaluator.n_builds == 5, "one structure moved too far, one list is built"
    structures[0].set_cell(structures[0].cell.array * 0.94, scale_atoms=True)
    expect(evaluator, structures)
    assert evaluator.n_builds == 6
    structures[0].positions[1] += 3 * structures[0].cell.array[0] - 2 * structures[0].cell.array[2]
    expect(evaluator, structures)
    structures[0].wrap(eps=0)
    expect(evaluator, structures)
    assert evaluator.n_builds == 6, "atoms that were wrapped have not moved"
    structures[0].set_cell(structures[0].cell.array * 0.999, scale_atoms=False)
    expect(evaluator, structures)
    structures[0].positions[2] -= 2 * structures[0].cell.array[1]
    structures[0].set_cell(structures[0].cell.array * 1.07, scale_atoms=True)
    expect(evaluator, structures)
    expect(evaluator, structures[::-1])
    expect(evaluator, structures[:2])
    structures[0].numbers[0] = 8
    expect(evaluator, structures[:2])
    structures[1].pbc = (True, True, False)
    structures[1].cell = np.eye(3) * 9.0
    expect(evaluator, structures[:2])


def test_no_skin(student: Student, structures: list[Atoms]) -> None:
    evaluator = BatchEvaluator(student, skin=0.0)
    for n_builds in (4, 8):
        expect(evaluator, structures)
        assert evaluator.n_builds == n_builds


def test_a_stale_list_would_show(
    student: Student, copper: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The criterion is needed: with it out of order the same moves give other forces."""
    evaluator = BatchEvaluator(student, skin=0.5)
    expect(evaluator, [copper])
    never = torch.zeros(1, dtype=torch.float64)
    monkeypatch.setattr(batches, "measure_wear", lambda systems, *_: (systems.positions, never))
    copper.set_cell(copper.cell.array * 0.8, scale_atoms=True)
    with pytest.raises(AssertionError):
        expect(evaluator, [copper])


def test_inputs_stay_and_results_are_the_callers(student: Student, structures: list[Atoms]) -> None:
    evaluator, systems = BatchEvaluator(student), gather(structures)
    before = [part.clone() for part in systems]
    first = evaluator.evaluate(systems)
    kept = first.forces.clone()
    systems.positions[0] += 0.1
    before[0][0] += 0.1
    evaluator.evaluate(systems)
    assert torch.equal(first.forces, kept)
    assert all(torch.equal(a, b) for a, b in zip(before, systems, strict=True))
    assert not first.forces.is_inference()
    assert not first.forces.requires_grad


def test_either_mode_of_inference_may_move_a_batch(student: Student, copper: Atoms) -> None:
    evaluator, systems = BatchEvaluator(student, skin=0.3), gather([copper])
    with torch.inference_mode():
        evaluator.evaluate(systems)
    for step in range(4):
        systems.positions[0] += 0.1
        with torch.inference_mode(step % 2 == 0):
            found = evaluator.evaluate(systems, only_moved=True)
    assert evaluator.n_renewals > 1
    expected = BatchEvaluator(student).evaluate(systems)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-9)


def test_a_graph_is_a_copy(student: Student, copper: Atoms) -> None:
    evaluator, systems = BatchEvaluator(student), gather([copper])
    evaluator.evaluate(systems)
    graph = evaluator.make_graph()
    before = graph.positions.clone()
    evaluator.evaluate(systems._replace(positions=systems.positions + 0.1), only_moved=True)
    assert torch.equal(graph.positions, before)


def test_refusals_name_the_structure(student: Student, structures: list[Atoms]) -> None:
    evaluator = BatchEvaluator(student)
    expect(evaluator, structures)
    height = structures[1].positions[1, 2]
    structures[1].positions[1, 2] = np.nan
    with pytest.raises(DataError, match=r"structure 1: position of atom 1 is not finite"):
        evaluator.evaluate(gather(structures))
    structures[1].positions[1, 2] = height + 0.02  # no close contact, whose forces round more
    expect(evaluator, structures)
    structures[3].pbc = True
    with pytest.raises(DataError, match=r"structure 3: cell vector a, b, c is zero"):
        evaluator.evaluate(gather(structures))
    structures[3].numbers[0] = 79
    with pytest.raises(UnsupportedElementError, match="Au"):
        evaluator.evaluate(gather(structures))
    with pytest.raises(DataError, match="no atoms"):
        evaluator.evaluate(gather([Atoms()]))
    with pytest.raises(UsageError, match=r"skin -1\.0"):
        BatchEvaluator(student, skin=-1.0)


def test_copies_carry_no_lists(student: Student, structures: list[Atoms]) -> None:
    evaluator = BatchEvaluator(student)
    expect(evaluator, structures)
    twin = pickle.loads(pickle.dumps(evaluator))
    assert twin._reference is None
    expect(twin, structures)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)])
def test_both_lists_hold_the_same_pairs(copper: Atoms, pbc: tuple[bool, bool, bool]) -> None:
    copper.positions[1] += 2 * copper.cell.array[0]
    copper.rattle(0.1, seed=3)
    flags = np.array(pbc)
    one = list_on_host(copper.positions, copper.cell.array, flags, 4.0)
    other = list_on_device(torch.tensor(copper.positions), copper.cell.array, flags, 4.0)
    rows = [
        sorted(map(tuple, torch.cat([edges.T, shifts], dim=1).tolist()))
        for edges, shifts, _ in (one, other)
    ]
    assert rows[0] == rows[1]
    assert (other[0][0].diff() >= 0).all()


def test_packed_batches_hold_every_edge(structures: list[Atoms]) -> None:
    graph = batch_graphs([atoms_to_graph(atoms, 4.0) for atoms in structures])
    packed = pack_batch(graph.edge_index, graph.shifts, graph.batch, graph.n_systems)
    assert packed.pointers.tolist() == [0, *np.cumsum([len(atoms) for atoms in structures])]
    senders, codes, filled = unpack_neighbors(packed.matrix)
    assert torch.equal(senders[filled], graph.edge_index[1])
    assert torch.equal(packed.shifts[codes[filled]].long(), graph.shifts)
    assert torch.equal(packed.owners[codes[filled]], graph.batch[graph.edge_index[0]])
    assert packed.matrix.counts.sum() == graph.n_edges
    lonely = pack_batch(
        torch.zeros(2, 0).long(), torch.zeros(0, 3).long(), torch.zeros(1).long(), 1
    )
    assert lonely.matrix.entries.shape == (1, 1)
