"""Neighbor lists against brute force over images, cell completion, and the Verlet cache."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastff.errors import DataError, UsageError
from fastff.graph import batch_graphs, edge_vectors
from fastff.neighbors import (
    VerletCache,
    atoms_to_graph,
    build_edges,
    check_skin_length,
    complete_cell,
)

CUTOFF = 5.0
FULL = np.array([True, True, True])


def list_pairs(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> set[tuple[int, ...]]:
    """All ``(i, j, S)`` nearer than the cut-off, by trying every image in reach."""
    inverse = np.linalg.inv(cell)
    fractional = positions @ inverse
    spread = np.ptp(fractional, axis=0)
    reach = np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + spread).astype(int)
    spans = [range(-n, n + 1) if p else range(1) for n, p in zip(reach, pbc, strict=True)]
    shifts = np.array(list(itertools.product(*spans)))
    found = set()
    for i, j in np.ndindex(len(positions), len(positions)):
        vectors = positions[j] - positions[i] + shifts @ cell
        near = (vectors**2).sum(axis=1) < cutoff**2
        found |= {(i, j, *map(int, s)) for s in shifts[near] if i != j or s.any()}
    return found


def as_set(edges: np.ndarray, shifts: np.ndarray) -> set[tuple[int, ...]]:
    rows = [tuple(row) for row in np.concatenate([edges.T, shifts], axis=1).tolist()]
    assert len(rows) == len(set(rows)), "an edge is listed twice"
    return set(rows)


def draw(n: int, scale: float, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    return np.random.default_rng(3).normal(scale=scale, size=(n, 3)) + offset


CASES = {
    "primitive": (np.zeros((1, 3)), (np.ones((3, 3)) - np.eye(3)) * 1.8, (1, 1, 1)),
    "skewed": (draw(3, 3), [[3, 0, 0], [14.3, 3, 0], [-11, 17.2, 3.1]], (1, 1, 1)),
    "left-handed": (draw(4, 3), [[-5, 0, 0], [-1, -4.1, 0], [1, -1, -6]], (1, 1, 1)),
    "slab with c = 0": (draw(6, 4, (0, 0, 40)), [[4.1, 0, 0], [1, 4.2, 0], [0, 0, 0]], (1, 1, 0)),
    "slab outside its cell": (
        draw(6, 4, (0, 0, 40)),
        [[4.1, 0, 0], [1, 4, 0], [3, 3, 3]],
        (1, 1, 0),
    ),
    "slab along yz": (draw(6, 4), [[0, 0, 0], [0, 4.1, 0.3], [0, 1, 4.4]], (0, 1, 1)),
    "wire along x": (draw(6, 4, (0, 9, -40)), [[4, 1, 2], [0, 0, 0], [0, 0, 0]], (1, 0, 0)),
    "wire along c, tilted to x": (draw(6, 4), [[0, 0, 0], [0, 0, 0], [4, 1, 2]], (0, 0, 1)),
    "molecule in a dummy cell": (draw(6, 2, (0, 9, -40)), np.eye(3), (0, 0, 0)),
    "molecule without a cell": (draw(6, 2), np.zeros((3, 3)), (0, 0, 0)),
    "many boxes away": (draw(6, 60), np.eye(3) * 6, (1, 1, 1)),
    "far from the origin": (draw(6, 3, (1e3, -1e3, 1e3)), np.eye(3) * 6.1, (1, 1, 1)),
    "images exactly at the cut-off": (np.zeros((1, 3)), np.eye(3) * 5, (1, 1, 1)),
    "one atom": (np.zeros((1, 3)), np.zeros((3, 3)), (0, 0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_edges_are_those_of_brute_force(name: str) -> None:
    positions, cell, flags = CASES[name]
    pbc = np.array(flags, dtype=bool)
    completed = complete_cell(positions, np.array(cell, dtype=float), pbc, CUTOFF)
    assert abs(np.linalg.det(completed)) > 1.0
    edges, shifts = build_edges(positions, completed, pbc, CUTOFF)
    assert as_set(edges, shifts) == list_pairs(positions, completed, pbc, CUTOFF)
    assert edges.dtype == shifts.dtype == np.int64
    assert (np.diff(edges[0]) >= 0).all()
    assert not shifts[:, ~pbc].any()
    backwards = as_set(edges[::-1], -shifts)
    assert backwards == as_set(edges, shifts)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), flags=st.tuples(*[st.booleans()] * 3))
def test_edges_of_random_cells(seed: int, flags: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(seed)
    pbc = np.array(flags)
    cell = rng.normal(size=(3, 3)) * rng.uniform(1.5, 6.0)
    assume(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() > 0.8)
    positions = rng.normal(size=(rng.integers(1, 5), 3)) * rng.uniform(1.0, 20.0)
    cutoff = rng.uniform(0.5, 4.0)
    completed = complete_cell(positions, cell, pbc, cutoff)
    found = as_set(*build_edges(positions, completed, pbc, cutoff))
    assert found == list_pairs(positions, completed, pbc, cutoff)


@pytest.mark.parametrize("flags", [(0, 0, 0), (0, 1, 1), (0, 0, 1)])
@pytest.mark.parametrize("cutoff", [0.1, 5.0])
def test_an_atom_that_flew_far_away_costs_nothing(flags: tuple[int, ...], cutoff: float) -> None:
    """Without closing gaps the search takes seconds for 300 Å, and ends the process for 500 000 Å."""
    pbc = np.array(flags, dtype=bool)
    near = np.array([[0.0, 0, 0], [0.05, 0, 0], [0, 2.5, 0]])
    lattice = np.diag([1.0, 3.0, 3.0])

    def find(positions: np.ndarray) -> set[tuple[int, ...]]:
        cell = complete_cell(positions, lattice, pbc, cutoff)
        return as_set(*build_edges(positions, cell, pbc, cutoff))

    for distance in (300.0, 1e7):
        far = np.array([[distance, 0, 0], [-distance, 0, 0]])
        alone = [{(3 + k, 3 + k, *e[2:]) for e in find(far[k : k + 1])} for k in range(2)]
        assert find(np.concatenate([near, far])) == find(near).union(*alone)


def test_a_cell_too_long_for_the_search_is_refused() -> None:
    atoms = Atoms("Cu", cell=[1e7, 3, 3], pbc=True)
    with pytest.raises(DataError, match=r"1e\+07 Å long along cell vector a"):
        atoms_to_graph(atoms, CUTOFF)


@pytest.mark.parametrize(
    ("cell", "flags", "message"),
    [
        (np.zeros((3, 3)), (1, 1, 1), "cell vector a, b, c is zero but pbc is True"),
        (np.diag([3.0, 0, 3]), (1, 1, 1), "cell vector b is zero"),
        ([[3, 0, 0], [6, 0, 0], [0, 0, 3]], (1, 1, 0), "linearly dependent"),
        ([[3, 0, 0], [0, 3, 0], [1, 1, 0]], (1, 1, 1), "linearly dependent"),
    ],
)
def test_cells_without_volume_are_refused(
    cell: np.ndarray, flags: tuple[int, ...], message: str
) -> None:
    pbc = np.array(flags, dtype=bool)
    with pytest.raises(DataError, match=message):
        complete_cell(np.zeros((1, 3)), np.array(cell, dtype=float), pbc, CUTOFF)
    with pytest.raises(DataError, match=message):
        VerletCache(CUTOFF).update(np.zeros((1, 3)), np.array(cell, dtype=float), pbc)


@pytest.mark.parametrize(
    ("n_atoms", "edges"), [(1, (0.01, 0.01, 0.01)), (1, (0.05, 0.05, 0.05)), (600, (0.5, 0.5, 0.5))]
)
def test_a_cell_with_too_many_images_is_refused(
    n_atoms: int, edges: tuple[float, float, float]
) -> None:
    """At once, and by name."""
    start = time.monotonic()
    with pytest.raises(DataError, match=rf"cell .*{edges[0]}.* images.* reach of 6 Å") as caught:
        build_edges(np.zeros((n_atoms, 3)), np.diag(edges), FULL, 6.0)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 1.0


def test_thin_cells_that_make_sense_are_listed() -> None:
    edges, _ = build_edges(np.zeros((1, 3)), np.diag([0.1, 9.0, 9.0]), FULL, 6.0)
    assert edges.shape[1] == 118


@pytest.mark.parametrize("skin", [-1.0, np.inf, np.nan])
def test_skins_that_are_no_lengths(skin: float) -> None:
    with pytest.raises(UsageError, match="skin"):
        check_skin_length(skin)
    assert check_skin_length(0) == 0.0


def test_no_atoms() -> None:
    with pytest.raises(DataError, match="no atoms"):
        atoms_to_graph(Atoms(), CUTOFF)


def test_integer_pbc_means_flags() -> None:
    cell = np.diag([3.0, 3, 3])
    np.testing.assert_array_equal(complete_cell(np.zeros((1, 3)), cell, np.ones(3, int), 5.0), cell)


def test_graph_shares_no_memory_with_atoms(copper: Atoms) -> None:
    graph = atoms_to_graph(copper, CUTOFF)
    before = graph.positions.clone(), graph.cell.clone(), graph.numbers.clone(), graph.pbc.clone()
    copper.positions += 1.0
    copper.cell[:] *= 2.0
    copper.numbers[:] = 1
    copper.pbc[:] = False
    after = graph.positions, graph.cell, graph.numbers, graph.pbc
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_batches_keep_edges_within_structures(copper: Atoms, water: Atoms, slab: Atoms) -> None:
    graphs = [atoms_to_graph(a, CUTOFF) for a in (copper, water, Atoms("Cu"), slab)]
    both = batch_graphs(graphs)
    assert (both.batch[both.edge_index[0]] == both.batch[both.edge_index[1]]).all()
    assert (both.edge_index[0].diff() >= 0).all()
    assert torch.equal(edge_vectors(both), torch.cat([edge_vectors(g) for g in graphs]))
    assert both.n_systems == 4
    assert both.n_atoms == 4 + 3 + 1 + 8


def fresh(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> set[tuple[int, ...]]:
    completed = complete_cell(positions, cell, pbc, CUTOFF)
    return as_set(*build_edges(positions, completed, pbc, CUTOFF))


def move_little(atoms: Atoms, rng: np.random.Generator) -> None:
    atoms.positions += rng.uniform(-0.05, 0.05, size=atoms.positions.shape)


def drift_together(atoms: Atoms, rng: np.random.Generator) -> None:
    atoms.positions += 0.2


def strain(atoms: Atoms, rng: np.random.Generator) -> None:
    step = rng.normal(scale=0.01, size=(3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + step), scale_atoms=True)


def strain_cell_only(atoms: Atoms, rng: np.random.Generator) -> None:
    atoms.set_cell(atoms.cell.array * 0.97, scale_atoms=False)


def wrap(atoms: Atoms, rng: np.random.Generator) -> None:
    atoms.positions += 0.3
    atoms.wrap()


def jump(atoms: Atoms, rng: np.random.Generator) -> None:
    atoms.positions[0] += atoms.cell.array[0]


@pytest.mark.parametrize(
    "change", [move_little, drift_together, strain, strain_cell_only, wrap, jump]
)
@pytest.mark.parametrize("kind", ["bulk", "slab", "molecule"])
def test_cache_gives_the_edges_of_a_fresh_list(
    change: Callable[..., None], kind: str, copper: Atoms, slab: Atoms, rng: np.random.Generator
) -> None:
    atoms = {"bulk": copper, "slab": slab, "molecule": Atoms("Cu4", copper.positions)}[kind]
    cache = VerletCache(CUTOFF, skin=1.0)
    for _ in range(12):
        _, edges, shifts = cache.update(atoms.positions, atoms.cell.array, atoms.pbc)
        assert as_set(edges, shifts) == fresh(atoms.positions, atoms.cell.array, atoms.pbc)
        change(atoms, rng)


def test_cache_follows_changes_of_structure(copper: Atoms, slab: Atoms, water: Atoms) -> None:
    flipped = copper.copy()
    flipped.pbc = (True, False, True)
    cache = VerletCache(CUTOFF)
    for atoms in (copper, flipped, slab, water, Atoms("Cu"), copper):
        _, edges, shifts = cache.update(atoms.positions, atoms.cell.array, atoms.pbc)
        assert as_set(edges, shifts) == fresh(atoms.positions, atoms.cell.array, atoms.pbc)


def test_cache_rebuilds_only_when_needed(copper: Atoms) -> None:
    cache = VerletCache(CUTOFF, skin=1.0)

    def update() -> int:
        cache.update(copper.positions, copper.cell.array, copper.pbc)
        return cache.n_builds

    assert update() == 1
    copper.positions[0] += (0.49, 0, 0)
    assert update() == 1
    copper.positions[0] += (0.02, 0, 0)
    assert update() == 2, "more than half the skin"
    copper.set_cell(copper.cell.array * 0.9, scale_atoms=True)
    assert update() == 2, "uniform compression by 10 % leaves 5.4 Å of 6"
    copper.set_cell(copper.cell.array * 0.9, scale_atoms=True)
    assert update() == 3, "and by 19 % leaves less than the cut-off"
    copper.set_cell(copper.cell.array * 1.2, scale_atoms=True)
    assert update() == 3, "expansion brings no new pair"
    copper.wrap(eps=0)
    copper.positions[1] += copper.cell.array[1]
    assert update() == 4, "a jump by a lattice vector changes shifts"
    assert VerletCache(CUTOFF, skin=0.0).needs_rebuild(
        copper.positions, copper.cell.array, copper.pbc
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), flags=st.tuples(*[st.booleans()] * 3))
def test_cache_never_misses_a_pair(seed: int, flags: tuple[bool, bool, bool]) -> None:
    """Random walks of atoms and cell, sized so that the list is often at the edge of its validity."""
    rng = np.random.default_rng(seed)
    pbc = np.array(flags)
    cell = np.diag(rng.uniform(2.5, 6.0, 3)) + rng.normal(scale=0.5, size=(3, 3))
    positions = rng.uniform(0, 6, size=(5, 3))
    cache = VerletCache(CUTOFF, skin=float(rng.choice([0.0, 0.3, 1.0])))
    for _ in range(6):
        _, edges, shifts = cache.update(positions, cell, pbc)
        assert as_set(edges, shifts) == fresh(positions, cell, pbc)
        deformation = np.eye(3) + rng.normal(scale=rng.choice([0.0, 0.02]), size=(3, 3))
        cell = cell @ deformation
        positions = positions @ deformation + rng.normal(scale=0.12, size=positions.shape)


def test_order_of_cached_edges_is_that_of_a_fresh_list() -> None:
    atoms = bulk("Cu").repeat(2)
    cache = VerletCache(CUTOFF, skin=1.0)
    atoms_to_graph(atoms, CUTOFF, cache=cache)
    atoms.rattle(0.02, seed=1)
    cached, direct = atoms_to_graph(atoms, CUTOFF, cache=cache), atoms_to_graph(atoms, CUTOFF)
    assert cache.n_builds == 1
    assert torch.equal(cached.edge_index, direct.edge_index)
    assert torch.equal(cached.shifts, direct.shifts)
