"""Lists of many structures at once: equal to those of each alone, never stale, whatever the other structures do."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from gathered import gather
from untrained import make_student

from fastff import batch_lists, batches
from fastff.batch_lists import DeviceLists, HostLists, list_on_host
from fastff.batches import BatchEvaluator
from fastff.distill.explore import ExploreSettings, Walker, _Run, explore
from fastff.errors import DataError
from fastff.gathering import gather_graph, search_on_device
from fastff.graph import batch_graphs, select_structures
from fastff.kernels.neighbor_list import many
from fastff.models import Student
from fastff.neighbors import atoms_to_graph
from fastff.packed import Systems

from kernels.lists import NASTY, draw_structure  # isort: skip

KINDS = [HostLists, DeviceLists]
Structure = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student("m1", (1, 8, 29), cutoff=4.0, energy_scale=0.01).double()


def check_lists(structures: list[Structure], reach: float) -> DeviceLists:
    """Lists of all at once hold the pairs that each has alone."""
    sizes = [len(positions) for positions, _, _ in structures]
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    pbc = np.array([flags for _, _, flags in structures], dtype=bool)
    positions = torch.tensor(np.concatenate([p for p, _, _ in structures]), dtype=torch.float64)
    cells = torch.tensor(np.array([np.asarray(c, dtype=float) for _, c, _ in structures]))
    lists = DeviceLists(sizes, pbc, batch, reach)
    renewed, completed, wrapped = lists.renew(positions, cells, range(len(sizes)))
    assert renewed == list(range(len(sizes)))
    assert completed.shape == (len(sizes), 3, 3)
    edges, shifts = lists.join_edges()
    assert (edges[0].diff() >= 0).all()
    found = [tuple(row) for row in torch.cat([edges.T, shifts], dim=1).tolist()]
    assert len(found) == len(set(found)), "a pair is listed twice"
    expected, start = set(), 0
    for k, size in enumerate(sizes):
        own = wrapped[start : start + size].numpy()
        pairs, steps, _ = list_on_host(own, cells[k].numpy(), pbc[k], reach)
        rows = torch.cat([pairs.T + start, steps], dim=1).tolist()
        expected |= {tuple(row) for row in rows}
        start += size
    assert set(found) == expected
    return lists


def draw_batch(n: int) -> list[Structure]:
    return [draw_structure(k, (bool(k & 1), bool(k & 2), bool(k & 4)))[:3] for k in range(n)]


@pytest.mark.parametrize("chunk", [1, 200, 10**7])
@pytest.mark.parametrize("bins_from", [3, 1000])
def test_lists_of_nasty_cells(monkeypatch: pytest.MonkeyPatch, chunk: int, bins_from: int) -> None:
    monkeypatch.setattr(many, "CHUNK", chunk)
    monkeypatch.setattr(batch_lists, "BINS_FROM", bins_from)
    cases = [case for name, case in NASTY.items() if name != "skewed"]
    check_lists(cases, 4.0)  # type: ignore[arg-type]
    check_lists([NASTY["skewed"], *cases[:2]], 0.5)  # type: ignore[list-item]


def test_lists_of_random_cells() -> None:
    for reach in (0.7, 2.5):
        check_lists(draw_batch(24), reach)


def test_entries_that_int32_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lists, "_INT32", 64)
    lists = check_lists(draw_batch(8), 2.5)
    assert lists.pack().matrix.entries.dtype == torch.int64


def make_zoo(rng: np.random.Generator) -> list[Atoms]:
    """Sizes from one atom to dozens, small skewed cells, every kind of periodicity."""
    tiny = bulk("Cu")
    wire = Atoms("Cu4", [[0, 0, 2.5 * k] for k in range(4)], cell=[0, 0, 10], pbc=(0, 0, 1))
    slab = bulk("Cu", cubic=True) * (2, 2, 1)
    slab.pbc = (True, True, False)
    zoo = [tiny, bulk("Cu", cubic=True) * (2, 2, 2), wire, molecule("H2O"), slab, Atoms("Cu")]
    for atoms in zoo:
        atoms.positions += rng.normal(scale=0.03, size=(len(atoms), 3))
    return zoo


def test_a_graph_made_on_the_device_predicts_the_same(student: Student) -> None:
    zoo = make_zoo(np.random.default_rng(5))
    here = gather_graph(zoo, student.cutoff, "cpu")
    there = search_on_device(zoo, student.cutoff, torch.device("cpu"))
    assert there.n_edges == here.n_edges
    assert (there.edge_index[0].diff() >= 0).all()
    one, other = student(here), student(there)
    periodic = here.pbc.all(dim=1)
    for name in ("energy", "forces", "energies"):
        first, second = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.stress[periodic], other.stress[periodic], rtol=0, atol=1e-9)
    assert periodic.sum() > 1


def test_errors_name_the_structure(student: Student) -> None:
    zoo = make_zoo(np.random.default_rng(5))
    zoo[4].positions[0, 0] = np.nan
    with pytest.raises(DataError, match="structure 14: position of atom 0 is not finite"):
        gather_graph(zoo, student.cutoff, "cpu", first=10)
    with pytest.raises(DataError, match="no atoms"):
        search_on_device([zoo[0], Atoms()], student.cutoff, torch.device("cpu"))


def test_walkers_and_evaluators_go_with_their_last_name(student: Student) -> None:
    """They hold memory of a GPU, which the next exploration or training needs: no waiting for garbage collection."""
    run = _Run(student, make_walkers(600.0, 600.0), SETTINGS)
    run.advance()
    run.advance()
    watched = weakref.ref(run), weakref.ref(run.evaluator)
    gc.collect()
    gc.disable()
    try:
        del run
        assert [one() for one in watched] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_never_stale(student: Student, kind: type[Any]) -> None:
    """Atoms that fly at 4500 K, and the cell of one structure that breathes: forces of new lists at every step."""
    rng = np.random.default_rng(4)
    zoo = make_zoo(rng)
    speed = [0.062 * np.sqrt(4500 / 300 / atoms.get_masses())[:, None] / 2 for atoms in zoo]
    flights = [s * rng.normal(size=(len(a), 3)) for s, a in zip(speed, zoo, strict=True)]
    evaluator = BatchEvaluator(student, lists=kind)
    fresh = BatchEvaluator(student, skin=0.0)
    largest = 0.0
    for step in range(60):
        for atoms, flight in zip(zoo, flights, strict=True):
            atoms.positions += flight
        breathes = step % 20 == 7
        if breathes:
            zoo[0].set_cell(zoo[0].cell.array * 1.03, scale_atoms=True)
        systems = gather(zoo)
        found = evaluator.evaluate(systems, only_moved=step > 0 and not breathes)
        expected = fresh.evaluate(systems)
        scale = 1.0 + float(expected.forces.abs().max())
        largest = max(largest, scale)
        for name in ("energy", "forces", "virial", "energies"):
            one, other = getattr(found, name), getattr(expected, name)
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * scale)
        graph = evaluator.make_graph()
        assert graph.n_edges == fresh.make_graph().n_edges
    assert largest > 1.01
    assert len(zoo) < evaluator.n_builds < 30 * len(zoo)
    assert 3 < evaluator.n_renewals < 45


def test_what_a_graph_reads_stays_where_it_is(student: Student) -> None:
    """Renewals write into the same buffers; a matrix that grows is another object, for which a new graph is made."""
    rng = np.random.default_rng(6)
    zoo = make_zoo(rng)
    evaluator = BatchEvaluator(student, lists=DeviceLists)
    places: dict[int, set[tuple[int, ...]]] = {}
    packs = []
    for step in range(40):
        for atoms in zoo:
            atoms.positions += rng.normal(scale=0.1, size=(len(atoms), 3))
        evaluator.evaluate(gather(zoo), only_moved=step > 0)
        if step == 0:
            continue
        last, lists, moving = evaluator._last, evaluator._lists, evaluator._moving
        assert last is not None
        assert lists is not None
        assert moving is not None
        assert moving.positions is last.positions
        packs.append(lists.pack())
        own = [value for value in vars(moving).values() if isinstance(value, torch.Tensor)]
        read = (*last, *own, evaluator._species, *packs[-1][1:])
        matrix = packs[-1].matrix
        read = (*read, matrix.entries, matrix.counts)
        places.setdefault(id(packs[-1]), set()).add(tuple(part.data_ptr() for part in read))
    assert evaluator.n_renewals > 10
    assert all(len(found) == 1 for found in places.values())
    assert len(places) < 5


def crowd(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> tuple[BatchEvaluator, Systems, torch.Tensor]:
    """An evaluator whose rows were cut in its last two, lazy evaluations; the batch, and its true forces."""
    monkeypatch.setattr(batch_lists, "_fit_slots", lambda widest: widest)
    atoms = bulk("Cu", cubic=True) * (3, 1, 1)
    atoms.cell[0] *= 2.0
    evaluator = BatchEvaluator(student, lists=DeviceLists)
    systems = gather([atoms])
    evaluator.evaluate(systems)
    for _ in range(2):
        systems.positions[:, 0] *= 0.9  # denser
        found = evaluator.evaluate(systems, only_moved=True, lazy=True)
    expected = BatchEvaluator(student, skin=0.0).evaluate(systems).forces
    assert not torch.allclose(found.forces, expected, rtol=0, atol=1e-6)
    return evaluator, systems, expected


@pytest.mark.parametrize("way", ["asked", "moved", "anew", "asked, then anew"])
def test_a_row_without_room_is_noticed(
    student: Student, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A list grows beyond its width between two looks: nothing that follows is computed with rows that were cut."""
    evaluator, systems, expected = crowd(student, monkeypatch)
    assert evaluator._lists is not None
    width = evaluator._lists.pack().matrix.n_slots
    if way.startswith("asked"):
        with torch.inference_mode():
            assert evaluator.was_void()
    found = evaluator.evaluate(systems, only_moved="anew" not in way)
    torch.testing.assert_close(found.forces, expected, rtol=0, atol=1e-8)
    assert evaluator.was_void() == (way == "moved")  # those before it were
    assert not evaluator.was_void()
    assert evaluator._lists.pack().matrix.n_slots > width


def test_walkers_step_again_where_lists_had_no_room(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path, noise included, as with lists that have room."""
    monkeypatch.setattr(batches, "HostLists", DeviceLists)
    walkers = make_walkers(900.0, 5000.0)
    expected = explore(student, walkers, SETTINGS)
    voids = []
    real = BatchEvaluator.was_void

    def was_void(self: BatchEvaluator) -> bool:
        voids.append(real(self))
        return voids[-1]

    monkeypatch.setattr(BatchEvaluator, "was_void", was_void)
    monkeypatch.setattr(batch_lists, "_fit_slots", lambda widest: widest)
    found = explore(student, walkers, SETTINGS)
    assert any(voids)
    assert found.endings == expected.endings
    for one, other in zip(found.snapshots, expected.snapshots, strict=True):
        np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, atol=1e-9)


def test_a_list_is_renewed_alone_or_with_those_that_soon_will_be(student: Student) -> None:
    zoo = [bulk("Cu", cubic=True) * (2, 2, 2) for _ in range(3)]
    counts = {}
    for kind in KINDS:
        evaluator = BatchEvaluator(student, skin=1.0, lists=kind)
        evaluator.evaluate(gather(zoo))
        moved = [atoms.copy() for atoms in zoo]
        for atoms, distance in zip(moved, (0.51, 0.35, 0.2), strict=True):
            atoms.positions[3, 0] += distance
        evaluator.evaluate(gather(moved))
        counts[kind] = evaluator.n_builds
        evaluator.evaluate(gather(moved))
        assert evaluator.n_renewals == 2
    assert counts == {HostLists: 4, DeviceLists: 5}


@pytest.mark.parametrize("pbc", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_from_beyond_the_reach_is_found_in_time(
    student: Student, kind: type[Any], pbc: bool
) -> None:
    """Two atoms that meet head on, through the faces of the cell, are what the bound of the skin is exact for."""
    atoms = Atoms("Cu2", [[0.1, 1, 1], [7.08, 1, 1]], cell=[12.0, 12.0, 12.0], pbc=pbc)
    if not pbc:
        atoms.positions[1, 0] = 5.12
    toward = 1.0 if not pbc else -1.0
    evaluator = BatchEvaluator(student, lists=kind)
    edges = []
    for step in range(25):
        evaluator.evaluate(gather([atoms]), only_moved=step > 0)
        distance = atoms.get_distance(0, 1, mic=pbc)
        edges.append(evaluator.make_graph().n_edges)
        assert edges[-1] == (2 if distance < 4.0 else 0), distance
        atoms.positions[:, 0] += np.array([0.031, -0.031]) * toward
    assert edges.count(0) > 14 < edges.index(2) < 18
    assert evaluator.n_builds == 2 + (
        kind is DeviceLists
    )  # which are built once more when a batch begins to move


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_leave_an_evaluator_that_works(student: Student, kind: type[Any]) -> None:
    zoo = make_zoo(np.random.default_rng(0))
    evaluator = BatchEvaluator(student, lists=kind)
    with pytest.raises(DataError, match="no batch was evaluated"):
        evaluator.make_graph()
    expected = evaluator.evaluate(gather(zoo))
    for change, message in (
        (lambda s: s.positions[3].fill_(np.nan), "structure 1: position of atom 2 is not finite"),
        (lambda s: s.cells[1, 2].fill_(np.inf), r"structure 1: cell .* is not finite"),
        (lambda s: s.cells[1, 2].fill_(0.0), "structure 1: cell vector c is zero"),
        (lambda s: s.cells[1].mul_(1e-4), "structure 1: the cell .* correct the cell"),
    ):
        broken = gather(zoo)
        change(broken)
        with pytest.raises(DataError, match=message):
            evaluator.evaluate(broken)
        again = evaluator.evaluate(gather(zoo), only_moved=True)
        torch.testing.assert_close(again.forces, expected.forces, rtol=1e-9, atol=1e-9)


def test_structures_of_a_graph(student: Student) -> None:
    graphs = [atoms_to_graph(atoms, 4.0) for atoms in make_zoo(np.random.default_rng(0))]
    batch = batch_graphs(graphs)
    assert select_structures(batch, range(6)) is batch
    for chosen in ([0, 2, 5], [1], [3, 4]):
        expected = batch_graphs([graphs[k] for k in chosen])
        found = select_structures(batch, chosen)
        for name in ("positions", "numbers", "cell", "pbc", "batch", "edge_index", "shifts"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


# --- dynamics ---

SETTINGS = ExploreSettings(n_steps=40, timestep=2.0, check=10, stride=20, min_contact=0.2)


def make_walkers(*temperatures: float) -> list[Walker]:
    zoo = make_zoo(np.random.default_rng(2))[:5]
    return [Walker(zoo[k % 5], t, 7 + k, "test") for k, t in enumerate(temperatures)]


@pytest.mark.parametrize("kind", KINDS)
def test_dynamics_repeat_and_follow_the_seed(
    student: Student, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    monkeypatch.setattr(batches, "HostLists", kind)
    walkers = make_walkers(300.0, 4500.0, 900.0, 300.0)
    first, again = (explore(student, walkers, SETTINGS) for _ in range(2))
    assert first.endings == again.endings
    assert len(first.snapshots) == len(again.snapshots) >= 8
    for one, other in zip(first.snapshots, again.snapshots, strict=True):
        assert np.array_equal(one.atoms.positions, other.atoms.positions)
    monkeypatch.setattr(batches, "HostLists", HostLists)
    host = explore(student, walkers, SETTINGS)
    for one, other in zip(first.snapshots, host.snapshots, strict=True):
        np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_walker_that_blows_up_disturbs_no_other(
    student: Student, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    monkeypatch.setattr(batches, "HostLists", kind)
    calm, wild = make_walkers(600.0, 600.0, 600.0, 600.0), make_walkers(600.0, 9e5, 600.0, 600.0)
    runs = [_Run(student, walkers, SETTINGS) for walkers in (calm, wild)]
    for step in range(1, 41):
        for run in runs:
            run.advance()
        runs[1].look(step)
    assert runs[0].running.all()
    assert runs[1].running.tolist() == [True, False, True, True]
    assert runs[1].endings[1].reason == "blow-up"
    others = runs[0].systems.batch != 1
    one, other = (run.systems.positions[others] for run in runs)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert runs[1].systems.positions.isfinite().all()
    if kind is DeviceLists:
        assert runs[1].evaluator.n_renewals < 40
