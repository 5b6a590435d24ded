"""Neighbor lists on the CPU, through vesin, and the Verlet cache that reuses them.

Here: completing cells, building sorted edges, structures to :class:`~fastff.graph.Graph`, and
:class:`VerletCache`, which keeps a list valid over small moves. Not here: a device-resident list, or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from vesin import NeighborList

from fastff.errors import DataError, UsageError
from fastff.graph import Graph
from fastff.kernels.neighbor_list.plan import count_images, make_frame

Array = NDArray[np.float64]

_SHORTEST_REACH = 1.5
"""Å; a finer search grid than this costs more than the pairs it would save."""

_LONGEST_GRID = 50_000
"""Grid cells along one direction; vesin ends the process with SIGFPE near 100 000 in a narrow box."""


_MOST_NEIGHBORS = 50_000
"""Neighbors per atom; condensed matter has some thousand within the longest cut-offs in use."""


def complete_cell(positions: Array, cell: Array, pbc: NDArray[np.bool_], cutoff: float) -> Array:
    """Replace every non-periodic cell vector by one that is orthogonal and leaves no image in reach.

    Parameters
    ----------
    positions : (n_atoms, 3) float64 array, Å
    cell : (3, 3) float64 array, Å
        Rows are cell vectors. Rows of non-periodic axes are ignored, whatever they hold.
    pbc : (3,) bool array
    cutoff : float, Å

    Returns
    -------
    (3, 3) float64 array, Å
        Right- or left-handed as given, never singular; non-periodic rows are the extent of the atoms along the
        completing direction plus two cut-offs.

    Raises
    ------
    DataError
        If the periodic rows are zero or linearly dependent.
    """
    pbc = np.asarray(pbc, dtype=bool)
    periodic = np.flatnonzero(pbc)
    rows = np.array(cell, dtype=np.float64)
    lengths = np.linalg.norm(rows[periodic], axis=1)
    if (lengths < 1e-8).any():
        axes = ", ".join("abc"[k] for k in periodic[lengths < 1e-8])
        raise DataError(
            f"cell vector {axes} is zero but pbc is True along it; set the cell or turn pbc off"
        )
    if len(periodic):
        unit = rows[periodic] / lengths[:, None]
        if np.linalg.svd(unit, compute_uv=False)[-1] < 1e-5:
            raise DataError(
                f"periodic cell vectors are linearly dependent: {rows[periodic].tolist()}; "
                "give a cell with a volume"
            )
    basis = [rows[k] for k in periodic]
    for axis in np.flatnonzero(~pbc):
        direction = _find_orthogonal(basis, prefer=int(axis))
        along = positions @ direction if len(positions) else np.zeros(1)
        rows[axis] = direction * (np.ptp(along) + 2.0 * cutoff + 1.0)
        basis.append(rows[axis])
    return rows


def _find_orthogonal(basis: list[Array], prefer: int) -> Array:
    """Unit vector orthogonal to ``basis``, as near to Cartesian axis ``prefer`` as that allows."""
    candidates = np.roll(np.eye(3), -prefer, axis=0)
    if basis:
        q, _ = np.linalg.qr(np.array(basis).T)
        candidates = candidates - candidates @ q @ q.T
    norms = np.linalg.norm(candidates, axis=1)
    best = 0 if norms[0] > 0.3 else int(np.argmax(norms))
    return np.asarray(candidates[best] / norms[best])


def build_edges(
    positions: Array, cell: Array, pbc: NDArray[np.bool_], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find every directed pair nearer than ``cutoff``, periodic images included.

    Parameters
    ----------
    positions : (n_atoms, 3) float64 array, Å
    cell : (3, 3) float64 array, Å
        A completed cell (:func:`complete_cell`).
    pbc : (3,) bool array
    cutoff : float, Å

    Returns
    -------
    edge_index : (2, n_edges) int64 array
        Receivers and senders, sorted by receiver, then sender, then shift, so that equal structures give equal
        lists, bit for bit.
    shifts : (n_edges, 3) int64 array

    Raises
    ------
    DataError
        If the cell is longer along one direction than the search grid can hold, or so small that it has images, or
        atoms neighbors, beyond all reason.
    """
    positions = np.asarray(positions, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    reach = max(cutoff * (1.0 + 1e-9), _SHORTEST_REACH)
    check_density(len(positions), cell, pbc, reach)
    near, box = _close_gaps(positions, cell, pbc, reach)
    _check_extent(box, reach)
    finder = NeighborList(cutoff=reach, full_list=True, sorted=False)
    receivers, senders, shifts = finder.compute(
        points=np.ascontiguousarray(near),
        box=np.ascontiguousarray(box, dtype=np.float64),
        periodic=pbc,
        quantities="ijS",
    )
    shifts = np.asarray(shifts, dtype=np.int64)
    order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], senders, receivers))
    edges = np.stack([receivers, senders]).astype(np.int64)[:, order]
    return _keep_within(cutoff, positions, cell, edges, shifts[order])


def _keep_within(
    cutoff: float,
    positions: Array,
    cell: Array,
    edges: NDArray[np.int64],
    shifts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Edges nearer than ``cutoff``: the one place that decides, so every list of a structure is the same."""
    inside = measure_edges(positions, cell, edges, shifts) < cutoff**2
    return edges[:, inside], shifts[inside]


def measure_edges(
    positions: Array, cell: Array, edges: NDArray[np.int64], shifts: NDArray[np.int64]
) -> Array:
    """Squared lengths (n_edges,) of edges, Å^2."""
    receivers, senders = edges
    vectors = positions.take(senders, axis=0)
    vectors -= positions.take(receivers, axis=0)
    vectors += shifts.astype(np.float64) @ cell
    squared: Array = np.einsum("ea,ea->e", vectors, vectors)
    return squared


def _close_gaps(
    positions: Array, cell: Array, pbc: NDArray[np.bool_], reach: float
) -> tuple[Array, Array]:
    """Positions and cell with the empty space along non-periodic axes cut to twice ``reach``.

    No pair within ``reach`` spans such a gap, so the list is unchanged, while the search grid stays small when one atom
    has left a cluster or slab.
    """
    cell = np.array(cell, dtype=np.float64)
    for axis in np.flatnonzero(~pbc):
        direction = cell[axis] / np.linalg.norm(cell[axis])
        along = positions @ direction
        order = np.argsort(along, kind="stable")
        surplus = np.clip(np.diff(along[order]) - 2.0 * reach, 0.0, None)
        if not surplus.any():
            continue
        removed = np.zeros_like(along)
        removed[order[1:]] = np.cumsum(surplus)
        positions = positions - removed[:, None] * direction
        cell[axis] = direction * (np.ptp(along - removed) + 2.0 * reach + 1.0)
    return positions, cell


def _check_extent(box: Array, reach: float) -> None:
    heights = 1.0 / np.linalg.norm(np.linalg.inv(box), axis=0)
    longest = int(np.argmax(heights))
    if heights[longest] > _LONGEST_GRID * reach:
        raise DataError(
            f"the structure is {heights[longest]:.3g} Å long along cell vector {'abc'[longest]}, more than "
            f"{_LONGEST_GRID} times the cut-off; check the cell and the positions"
        )


def check_density(n_atoms: int, cell: Array, pbc: NDArray[np.bool_], reach: float) -> None:
    """Refuse cells whose images would fill the memory, by the rule of the list on the device."""
    flags = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    count_images(make_frame(cell, flags), reach)
    expected = n_atoms * 4.0 / 3.0 * math.pi * reach**3 / abs(float(np.linalg.det(cell)))
    if expected > _MOST_NEIGHBORS and pbc.all():
        raise DataError(
            f"the cell {np.asarray(cell).tolist()} holds {n_atoms} atoms, with {expected:.2g} neighbors, most of them "
            f"images, in the reach of {reach:.3g} Å of each; correct the cell"
        )


def check_skin_length(skin: float) -> float:
    """The skin of a neighbor list in Å, if it is one.

    Raises
    ------
    UsageError
        If it is negative or not finite.
    """
    if not (skin >= 0.0 and math.isfinite(skin)):
        raise UsageError(f"skin {skin} Å must not be negative or infinite")
    return float(skin)


def atoms_to_graph(
    atoms: Atoms,
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float64,
    cache: VerletCache | None = None,
) -> Graph:
    """Turn one structure into a graph with its neighbour list; no memory is shared with ``atoms``.

    Parameters
    ----------
    atoms : ase.Atoms
    cutoff : float, Å
    dtype : torch.dtype
        Of positions and cell; float64 unless memory matters.
    cache : VerletCache, optional
        Reuses its list while that is valid.
    """
    if len(atoms) == 0:
        raise DataError("no atoms: the structure is empty")
    positions = np.asarray(atoms.positions, dtype=np.float64)
    pbc = np.asarray(atoms.pbc, dtype=bool)
    if cache is None:
        cell = complete_cell(positions, atoms.cell.array, pbc, cutoff)
        edges, shifts = build_edges(positions, cell, pbc, cutoff)
    else:
        cell, edges, shifts = cache.update(positions, atoms.cell.array, pbc)
    n_atoms = len(atoms)
    return Graph(
        positions=torch.tensor(positions, dtype=dtype),
        numbers=torch.tensor(atoms.numbers, dtype=torch.int64),
        cell=torch.tensor(cell, dtype=dtype)[None],
        pbc=torch.tensor(pbc)[None],
        batch=torch.zeros(n_atoms, dtype=torch.int64),
        edge_index=torch.from_numpy(edges),
        shifts=torch.from_numpy(shifts),
    )


@dataclass
class VerletCache:
    """A neighbour list with a skin, rebuilt only when atoms or cell have moved far enough to matter.

    Parameters
    ----------
    cutoff : float, Å
    skin : float, Å
        Extra reach of the stored list; 0 rebuilds at every call.
    """

    cutoff: float
    skin: float = 1.0
    n_builds: int = 0

    def __post_init__(self) -> None:
        self._reference: tuple[Array, Array, NDArray[np.bool_]] | None = None
        self._edges: NDArray[np.int64] = np.zeros((2, 0), dtype=np.int64)
        self._shifts: NDArray[np.int64] = np.zeros((0, 3), dtype=np.int64)

    def update(
        self, positions: Array, cell: Array, pbc: NDArray[np.bool_]
    ) -> tuple[Array, NDArray[np.int64], NDArray[np.int64]]:
        """Return ``(completed cell, edge_index, shifts)`` of exactly the pairs nearer than the cut-off."""
        pbc = np.asarray(pbc, dtype=bool)
        if self.needs_rebuild(positions, cell, pbc):
            self.rebuild(positions, cell, pbc)
        assert self._reference is not None
        current = self._current_cell(cell, pbc)
        return current, *self._filter(positions, current)

    def needs_rebuild(self, positions: Array, cell: Array, pbc: NDArray[np.bool_]) -> bool:
        """Whether a pair absent from the stored list could now be within the cut-off.

        With ``F`` the deformation of the cell since the build and ``u`` the displacements left after it, a pair
        outside the list is now at least ``sigma_min(F) (r_c + skin) - 2 max|u|`` apart.
        """
        if self._reference is None or self.skin <= 0.0:
            return True
        old_positions, old_cell, old_pbc = self._reference
        if len(positions) != len(old_positions) or (pbc != old_pbc).any():
            return True
        current = self._current_cell(cell, pbc)
        if (current == old_cell).all():
            moved = positions - old_positions
            sigma = 1.0
        else:
            deformation = np.linalg.solve(old_cell, current)
            moved = positions - old_positions @ deformation
            sigma = float(np.linalg.svd(deformation, compute_uv=False)[-1])
        largest = float(np.sqrt((moved * moved).sum(axis=1).max()))
        return not sigma * (self.cutoff + self.skin) - 2.0 * largest > self.cutoff

    def rebuild(self, positions: Array, cell: Array, pbc: NDArray[np.bool_]) -> None:
        """Build the list anew with the skin included."""
        reach = self.cutoff + self.skin
        completed = complete_cell(positions, cell, pbc, reach)
        self._edges, self._shifts = build_edges(positions, completed, pbc, reach)
        self._reference = (positions.copy(), completed, np.array(pbc, dtype=bool))
        self.n_builds += 1

    def _current_cell(self, cell: Array, pbc: NDArray[np.bool_]) -> Array:
        assert self._reference is not None
        completed = self._reference[1].copy()
        completed[pbc] = np.asarray(cell, dtype=np.float64)[pbc]
        return completed

    def _filter(self, positions: Array, cell: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.skin <= 0.0:
            return self._edges, self._shifts
        return _keep_within(self.cutoff, positions, cell, self._edges, self._shifts)
