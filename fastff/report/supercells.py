"""The same material at several sizes, for timings against the number of atoms.

Here: :func:`build_supercells`. Not here: timing them (:mod:`fastff.report.timing`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import ase
import numpy as np

from fastff.distill.cells import find_material_axes
from fastff.distill.constraints import copy_fixed
from fastff.errors import DataError

GAP = 3.0
"""Empty distance between the bounding boxes of copies along a direction that is not periodic, Å."""


def build_supercells(
    structure: ase.Atoms, sizes: Sequence[int], *, rattle: float = 0.05, seed: int = 0
) -> list[ase.Atoms]:
    """Repeat ``structure`` so that the atom counts come as near to ``sizes`` as whole repeats allow.

    Parameters
    ----------
    structure : ase.Atoms
        The material. It is repeated along the axes along which it continues; a molecule along all three, its copies
        ``GAP`` Å apart and the result not periodic either.
    sizes : sequence of int
        Wanted atom counts.
    rattle : float
        Standard deviation of a random displacement of every coordinate, Å, so that no atom sits on a symmetric site.
    seed : int
        Seed of the displacement.

    Returns
    -------
    list of ase.Atoms
        In ascending size, one per distinct atom count, without calculator. Of constraints they have FixAtoms, on all
        copies of the atoms that are fixed in ``structure``; these are not displaced.

    Raises
    ------
    DataError
        ``structure`` has no atoms, or none that may move, or a size is below 1.
    """
    if len(structure) == 0:
        raise DataError(
            "cannot build supercells of a structure without atoms: give one with at least one atom."
        )
    if any(size < 1 for size in sizes):
        raise DataError(f"sizes {list(sizes)} hold a value below 1: give atom counts.")
    unit = _complete_unit(structure)
    axes = find_material_axes(structure)
    growing = axes if any(axes) else (True, True, True)
    cells: dict[int, ase.Atoms] = {}
    for size in sorted(sizes):
        repeats = choose_repeats(unit.cell.lengths(), max(1.0, size / len(unit)), growing)
        count = len(unit) * int(np.prod(repeats))
        if count not in cells:
            cell = unit.repeat(repeats)
            cell.set_constraint(copy_fixed(structure, int(np.prod(repeats))))
            cell.rattle(rattle, seed=seed)
            cells[count] = cell
    return [cells[count] for count in sorted(cells)]


def choose_repeats(
    lengths: np.ndarray, copies: float, growing: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[int, int, int]:
    """Whole repeats along the ``growing`` axes: nearest to ``copies`` in number, then nearest to a cube in shape."""
    best, best_cost = (1, 1, 1), np.inf
    chosen = np.flatnonzero(growing)
    target = (copies * np.prod(lengths[chosen])) ** (1.0 / len(chosen))
    ranges = [
        range(1, min(int(np.ceil(2.0 * target / lengths[k])) + 1, 128) + 1) if growing[k] else (1,)
        for k in range(3)
    ]
    for a, b in itertools.product(ranges[0], ranges[1]):
        ideal = int(copies / (a * b))
        for c in (max(1, ideal), ideal + 1) if growing[2] else (1,):
            repeats = (a, b, c)
            edges = (np.array(repeats) * lengths)[chosen]
            shape = float(np.log(edges.max() / edges.min()))
            cost = 10.0 * abs(np.log(a * b * c / copies)) + shape
            if cost < best_cost:
                best, best_cost = repeats, cost
    return best


def _complete_unit(structure: ase.Atoms) -> ase.Atoms:
    """Copy with a cell along every axis; bare of calculator, constraints and velocities."""
    unit = ase.Atoms(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
    )
    cell = unit.cell.array.copy()
    for axis in np.flatnonzero(~unit.pbc):
        others = [k for k in range(3) if k != axis]
        periodic = [k for k in others if unit.pbc[k]]
        direction = np.eye(3)[axis]
        if len(periodic) == 2:
            direction = np.cross(cell[others[0]], cell[others[1]])
        elif len(periodic) == 1:
            along = cell[periodic[0]] / np.linalg.norm(cell[periodic[0]])
            direction = direction - (direction @ along) * along
            if np.linalg.norm(direction) < 1e-3:
                direction = np.eye(3)[(axis + 1) % 3]
                direction = direction - (direction @ along) * along
        direction = direction / np.linalg.norm(direction)
        extent = np.ptp(unit.positions @ direction)
        cell[axis] = direction * (extent + GAP)
    unit.set_cell(cell)
    return unit
