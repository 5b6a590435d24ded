"""Structures on which neighbor lists go wrong, shared by the tests of lists. Not here: any test."""

from __future__ import annotations

import numpy as np
import torch
from vesin import NeighborList as Vesin

from fastff.kernels.neighbor_list import build_neighbors
from fastff.kernels.neighbor_list.op import list_edges

Pairs = set[tuple[int, ...]]
FULL = (True, True, True)
"""Periodic along every cell vector."""


def draw(n: int, scale: float, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> np.ndarray:
    return np.random.default_rng(3).normal(scale=scale, size=(n, 3)) + offset


_FLAT = [[4.1, 0, 0], [1, 4.2, 0], [0, 0, 0]]
NASTY = {
    "primitive": (np.zeros((1, 3)), (np.ones((3, 3)) - np.eye(3)) * 1.8, (1, 1, 1)),
    "skewed": (draw(3, 3), [[3, 0, 0], [14.3, 3, 0], [-11, 17.2, 3.1]], (1, 1, 1)),
    "left-handed": (draw(4, 3), [[-5, 0, 0], [-1, -4.1, 0], [1, -1, -6]], (1, 1, 1)),
    "slab with c = 0": (draw(6, 4, (0, 0, 40)), _FLAT, (1, 1, 0)),
    "slab along yz": (draw(6, 4), [[0, 0, 0], [0, 4.1, 0.3], [0, 1, 4.4]], (0, 1, 1)),
    "wire along x": (draw(6, 4, (0, 9, -40)), [[4, 1, 2], [0, 0, 0], [0, 0, 0]], (1, 0, 0)),
    "wire along c": (draw(6, 4), [[0, 0, 0], [0, 0, 0], [4, 1, 2]], (0, 0, 1)),
    "molecule": (draw(6, 2, (0, 9, -40)), np.eye(3), (0, 0, 0)),
    "many boxes away": (draw(6, 60), np.eye(3) * 6, (1, 1, 1)),
    "far from the origin": (draw(6, 3, (1e3, -1e3, 1e3)), np.eye(3) * 6.1, (1, 1, 1)),
    "on the faces": (
        np.array([[0, 0, 0], [11, 0, 0], [-1e-17, 5, 0], [3, 11, 11]]),
        np.eye(3) * 11,
        (1, 1, 1),
    ),
    "images at the reach": (np.zeros((1, 3)), np.eye(3) * 4.0, (1, 1, 1)),
    "two bins": (draw(9, 3), np.diag([9.0, 9.0, 20.0]), (1, 1, 1)),
    "an atom far away": (
        np.concatenate([draw(5, 1.5), [[1e6, 0, 0], [-1e6, 3, 0], [1e6, 1, 1]]]),
        np.zeros((3, 3)),
        (0, 0, 0),
    ),
    "one atom": (np.zeros((1, 3)), np.zeros((3, 3)), (0, 0, 0)),
}
"""Positions, cell and periodicity by name."""


def list_by_vesin(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float) -> Pairs:
    """All ``(i, j, S)`` of a completed cell."""
    finder = Vesin(cutoff=reach, full_list=True, sorted=False)
    i, j, shifts = finder.compute(
        points=np.ascontiguousarray(positions, dtype=float),
        box=np.ascontiguousarray(cell, dtype=float),
        periodic=pbc,
        quantities="ijS",
    )
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True)}


def list_by_op(
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    reach: float,
    device: torch.device | str = "cpu",
    **options: object,
) -> Pairs:
    """The same from the op, as a set; asserts that no pair is listed twice."""
    flags = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    found = build_neighbors(
        torch.tensor(np.asarray(positions, dtype=float), device=device),
        np.asarray(cell, dtype=float),
        flags,
        reach,
        **options,  # type: ignore[arg-type]
    )
    assert int(found.matrix.counts.max()) <= found.matrix.n_slots
    edges, shifts = list_edges(found)
    rows = [tuple(row) for row in torch.cat([edges.T, shifts], dim=1).tolist()]
    assert len(rows) == len(set(rows)), "a pair is listed twice"
    return set(rows)


def draw_structure(
    seed: int, flags: tuple[bool, bool, bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Random positions, cell, periodicity and reach; cells are skewed, of either hand, often thin."""
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3)) * rng.uniform(1.5, 6.0)
    while 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() < 0.8:
        cell = rng.normal(size=(3, 3)) * rng.uniform(1.5, 6.0)
    positions = rng.normal(size=(rng.integers(1, 7), 3)) * rng.uniform(1.0, 20.0)
    return positions, cell, np.array(flags), float(rng.uniform(0.5, 4.0))
