"""Cells to sample in: supercells, empty directions, strains and close contacts.

Here: geometry of the structures that sampling labels. Not here: what belongs to one molecule
(:mod:`fastff.distill.molecules`), how many of each (:mod:`fastff.distill.plan`), thermal
displacements (:mod:`fastff.distill.harmonic`), dynamics (:mod:`fastff.distill.dynamics`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import ase
import numpy as np
from ase.build import make_supercell
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from fastff.distill.constraints import copy_fixed, describe_size
from fastff.distill.molecules import find_molecules, is_disordered
from fastff.models import BOUNDS

VACUUM_GAP = 6.0
"""Å; an axis along which atoms leave a wider gap is empty space, neither repeated nor strained."""

NEAREST = 0.7
"""Of thermal draws: no pair of elements that are neighbors in the cell comes nearer than this part of their shortest
distance there."""

_SHAPES = (
    np.eye(3, dtype=int),
    np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),  # fcc primitive to cubic
    np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),  # bcc primitive to cubic
    np.array([[1, 0, 0], [1, 2, 0], [0, 0, 1]]),  # hexagonal (gamma = 120 degrees) to orthorhombic
    np.array([[1, 0, 0], [-1, 2, 0], [0, 0, 1]]),  # hexagonal (gamma = 60 degrees) to orthorhombic
)


@dataclass(frozen=True)
class SampleCell:
    """A cell that sampling works in.

    Attributes
    ----------
    atoms : ase.Atoms
        The supercell, without calculator. Of constraints it has FixAtoms, on all copies of the atoms that are fixed in
        the user's structure.
    seed_index : int
        Number of the user's structure it was made from.
    repeats : tuple of tuple of int
        Supercell matrix, rows in units of the seed's vectors.
    axes : tuple of bool
        Axes along which the material continues (periodic and not empty space).
    width : float
        Smallest distance between faces over those axes, Å; inf for a molecule.
    """

    atoms: ase.Atoms
    seed_index: int
    repeats: tuple[tuple[int, ...], ...]
    axes: tuple[bool, bool, bool]
    width: float

    def __str__(self) -> str:
        size = "molecule" if not any(self.axes) else f"width {self.width:.1f} Å"
        matrix = np.array(self.repeats)
        if np.array_equal(matrix, np.diag(np.diag(matrix))):
            shape = "x".join(str(value) for value in np.diag(matrix))
        else:
            shape = "[" + "; ".join(" ".join(map(str, row)) for row in self.repeats) + "]"
        formula = self.atoms.get_chemical_formula(empirical=False)
        return f"seed {self.seed_index}: {formula}, {describe_size(self.atoms)}, {shape}, {size}"


def find_material_axes(atoms: ase.Atoms) -> tuple[bool, bool, bool]:
    """Return the axes along which the material continues.

    An axis counts if it is periodic and the largest gap between atoms along it, measured between planes, is not wider
    than :data:`VACUUM_GAP`.
    """
    axes = [bool(value) for value in atoms.pbc]
    if len(atoms) == 0 or not any(axes):
        return (False, False, False)
    cell = atoms.cell.complete()
    scaled = np.linalg.solve(cell.T, atoms.positions.T).T
    for axis in range(3):
        if axes[axis]:
            values = np.sort(scaled[:, axis] % 1.0)
            gap = float(np.max(np.diff(np.append(values, values[0] + 1.0))))
            axes[axis] = bool(gap * measure_widths(cell)[axis] <= VACUUM_GAP)
    return (axes[0], axes[1], axes[2])


def measure_widths(cell: np.ndarray) -> np.ndarray:
    """Distances between opposite faces of a complete cell, Å."""
    widths: np.ndarray = 1.0 / np.linalg.norm(np.linalg.inv(np.asarray(cell)), axis=0)
    return widths


def build_supercell(
    atoms: ase.Atoms,
    min_width: float,
    max_atoms: int,
    seed_index: int = 0,
    points: np.ndarray | None = None,
) -> SampleCell:
    """Repeat a structure until it is wide enough, as compactly as possible.

    Parameters
    ----------
    atoms : ase.Atoms
        The user's structure. FixAtoms is kept, other constraints are left out.
    min_width : float
        Wanted distance between opposite faces, Å; twice a cut-off lets every pair be met once.
    max_atoms : int
        Largest supercell. A structure that is larger already stays as it is.
    seed_index : int
        Recorded in the result.
    points : numpy.ndarray, optional
        Wave vectors in units of the reciprocal cell, (n, 3), as many of which as possible are to be commensurate.

    Returns
    -------
    SampleCell
        The smallest wide enough cell within ``max_atoms``, of those with most of ``points``; if there is none, the
        widest.

    Raises
    ------
    DataError
        If every atom is fixed.
    """
    wanted = np.zeros((0, 3)) if points is None else points
    bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bare.info = {key: atoms.info[key] for key in ("charge", "spin") if key in atoms.info}
    axes = find_material_axes(bare)
    if not any(axes):
        bare.set_constraint(copy_fixed(atoms))
        return SampleCell(bare, seed_index, _to_rows(np.eye(3)), axes, np.inf)
    cell = np.asarray(bare.cell.complete())
    chosen = list(axes)
    best, best_score = np.eye(3, dtype=int), None
    for matrix in _list_matrices(cell, chosen, max_atoms // len(bare), min_width):
        n_atoms = len(bare) * round(abs(np.linalg.det(matrix)))
        width = float(np.min(measure_widths(matrix @ cell)[chosen]))
        enough = width >= min_width - 1e-6
        # wide enough first; then few points missing and few atoms; else wide; then simple matrices
        plain = int(np.abs(matrix - np.diag(np.diag(matrix))).sum())
        missing = int((~find_commensurate(matrix, wanted)).sum())
        first = (missing, n_atoms) if enough else (0, 0)
        score = (not enough, *first, -round(width, 3), missing, n_atoms, plain)
        if best_score is None or score < best_score:
            best, best_score = matrix, score
    supercell = bare if np.array_equal(best, np.eye(3)) else make_supercell(bare, best)
    n_copies = len(supercell) // len(bare)
    if n_copies > 1 and bare.info.get("charge"):  # the charge of a cell is repeated with it
        supercell.info["charge"] = bare.info["charge"] * n_copies
    supercell.set_constraint(copy_fixed(atoms, n_copies))
    width = float(np.min(measure_widths(np.asarray(supercell.cell.complete()))[chosen]))
    return SampleCell(supercell, seed_index, _to_rows(best), axes, width)


def find_commensurate(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which wave vectors, (n, 3) in units of the reciprocal cell, are waves that fit into a supercell; (n,) bool."""
    phases = np.asarray(points) @ np.asarray(matrix).T
    result: np.ndarray = (np.abs(phases - np.rint(phases)) < 0.01).all(axis=1)
    return result


def _to_rows(matrix: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(value) for value in row) for row in matrix)


def _list_matrices(
    cell: np.ndarray, axes: list[bool], max_copies: int, min_width: float
) -> list[np.ndarray]:
    """Candidate supercell matrices with at most ``max_copies`` copies; the identity always."""
    matrices = [np.eye(3, dtype=int)]
    widths = measure_widths(cell)
    ranges = [
        range(1, min(max_copies, int(2 * min_width / widths[axis]) + 2) + 1) if axes[axis] else (1,)
        for axis in range(3)
    ]
    shapes = _SHAPES if all(axes) else _SHAPES[:1]
    for shape in shapes:
        copies = abs(round(np.linalg.det(shape)))
        for repeats in itertools.product(*ranges):
            if copies * np.prod(repeats) <= max_copies:
                matrices.append(np.diag(repeats) @ shape)
    if all(axes):  # nearly cubic cells in the given orientation
        for length in np.arange(0.5 * min_width, 1.5 * min_width, 0.25):
            matrix = np.rint(length * np.linalg.inv(cell)).astype(int)
            if 0 < round(np.linalg.det(matrix)) <= max_copies:
                matrices.append(matrix)
    return matrices


def classify_cell(cell: SampleCell) -> Literal["crystal", "disordered", "molecule"]:
    """Say what a cell holds: a molecule or cluster, atoms without order (as in a liquid), or ordered ones."""
    if not any(cell.axes):
        return "molecule"
    return "disordered" if is_disordered(cell.atoms) else "crystal"


def strain_cell(cell: SampleCell, strain: np.ndarray) -> ase.Atoms:
    """Return a strained copy; empty and non-periodic directions keep their size, and molecules their shape.

    Molecules, which are bonded to nothing else, move with their centers: a liquid under pressure brings its molecules
    together and leaves their stiff bonds alone. Fixed atoms follow the cell, like all others.

    Parameters
    ----------
    cell : SampleCell
        What to strain.
    strain : numpy.ndarray
        Symmetric strain, shape (3, 3); positions and cell vectors become ``(1 + strain) r``.
    """
    atoms = cell.atoms.copy()
    vectors = np.asarray(atoms.cell)[list(cell.axes)]
    if len(vectors) == 0:
        return atoms
    basis = np.linalg.svd(vectors)[2][: len(vectors)]
    projector = basis.T @ basis
    deformation = np.eye(3) + projector @ strain @ projector
    molecules = find_molecules(atoms)
    steps = molecules.images @ np.asarray(atoms.cell)
    whole = atoms.positions + steps
    moved = molecules.find_centers(whole)
    moved = moved @ deformation.T - moved
    whole = np.where(molecules.endless[:, None], whole @ deformation.T, whole + moved)
    atoms.positions = whole - steps @ deformation.T
    atoms.set_cell(np.asarray(atoms.cell) @ deformation.T, scale_atoms=False)
    return atoms


def draw_strain(rng: np.random.Generator, isotropic: float, shear: float) -> np.ndarray:
    """Draw a symmetric strain: uniform dilation within ±isotropic, traceless part within ±shear."""
    tensor = rng.uniform(-shear, shear, size=(3, 3))
    tensor = 0.5 * (tensor + tensor.T)
    tensor -= np.trace(tensor) / 3 * np.eye(3)
    return tensor + rng.uniform(-isotropic, isotropic) * np.eye(3)


def hold_apart(atoms: ase.Atoms, moves: np.ndarray) -> np.ndarray:
    """Displacements, smaller for atoms that would run into each other.

    Springs know no repulsion: along soft modes of an expanded crystal they let neighbors pass at half of their
    distance, with forces that no simulation meets. Pairs of elements that are farther than 4 Å apart in ``atoms`` are
    not looked at, and of molecules the bond of two elements is what counts.

    Parameters
    ----------
    atoms : ase.Atoms
        Before the displacements.
    moves : numpy.ndarray
        Shape (n_atoms, 3), Å.

    Returns
    -------
    numpy.ndarray
        ``moves``, those of both atoms of every pair nearer than :data:`NEAREST` allows times 0.95 until none is;
        ``moves`` themselves if none is.
    """
    shortest = _find_shortest(atoms)
    limits = np.where(np.isfinite(shortest), NEAREST * shortest, 0.0)
    if not limits.any():
        return moves
    moved = atoms.copy()
    while True:
        moved.positions = atoms.positions + moves
        first, second, lengths = neighbor_list("ijd", moved, float(limits.max()))
        near = lengths < limits[moved.numbers[first], moved.numbers[second]]
        if not near.any():
            return moves
        moves = moves.copy()
        moves[np.unique(first[near])] *= 0.95


def _find_shortest(atoms: ase.Atoms) -> np.ndarray:
    """Shortest distance, Å, of each pair of elements by atomic numbers; infinite beyond 4 Å."""
    shortest = np.full((len(chemical_symbols),) * 2, np.inf)
    first, second, lengths = neighbor_list("ijd", atoms, 4.0)
    np.minimum.at(shortest, (atoms.numbers[first], atoms.numbers[second]), lengths)
    return shortest


PRESSED = 0.65
"""Least fraction of the shortest distance of a kind of pair to which sampling pushes one of them together."""
COMPRESSED_BOND = 0.75
"""Of the sum of two covalent radii: what pairs that are not bonded are pushed to at least. Students that know no such
pair but at 0.65 of its distance are too soft between, and dynamics goes there (docs/distillation.md)."""


def press_pairs(
    atoms: ase.Atoms, fraction: float, rng: np.random.Generator, turn: int | None = None
) -> ase.Atoms | None:
    """Push pairs of neighbors together, to teach the repulsive core.

    One pair for every 32 atoms, of as many kinds of element pairs as there are, within molecules and between them, no
    two sharing an atom or lying close to each other. Other atoms that would be hit, such as carbon between oxygen and
    the metal that CO stands on, make way. Fixed atoms are moved like others: what is taught is the force between two
    atoms, and dynamics does not start from such structures.

    Parameters
    ----------
    atoms : ase.Atoms
        Left unchanged.
    fraction : float
        New distance in units of the shortest distance of that kind of pair. Where :data:`PRESSED` of that is longer
        than :data:`COMPRESSED_BOND` of a bond, as between atoms that are not bonded, distances from the shortest one
        downwards are stretched so that :data:`PRESSED` reaches this. Never below what a student's radial basis follows
        (``BOUNDS["inner_limit"]`` of a bond): labels there could not be learned.
    rng : numpy.random.Generator
        Draws the pairs.
    turn : int, optional
        Of the kinds, which comes first: structures numbered from 0 on press every kind equally often. Left out, the
        order is drawn.

    Returns
    -------
    ase.Atoms or None
        None if no two atoms are within 4 Å of each other, or others found no way.
    """
    first, second, vectors, lengths = neighbor_list("ijDd", atoms, 4.0)
    forward = first < second
    first, second, vectors, lengths = (x[forward] for x in (first, second, vectors, lengths))
    if len(first) == 0:
        return None
    owners = find_molecules(atoms).owners
    kinds = np.sort(np.stack([atoms.numbers[first], atoms.numbers[second]], axis=1), axis=1)
    between = (owners[first] != owners[second])[:, None]
    kinds = np.concatenate([kinds, between], axis=1)
    by_kind = []
    order = np.unique(kinds, axis=0)
    order = rng.permutation(order) if turn is None else np.roll(order, -turn, axis=0)
    for kind in order:
        members = np.flatnonzero((kinds == kind).all(axis=1))
        shortest = lengths[members].min()
        bond = float(covalent_radii[kind[:2]].sum())
        followed = BOUNDS["inner_limit"] * bond
        least = min(PRESSED, COMPRESSED_BOND * bond / shortest)
        reached = 1.0 - (1.0 - fraction) * (1.0 - least) / (1.0 - PRESSED)
        pushed = max(reached * shortest, min(shortest, followed))
        near = members[lengths[members] < 1.25 * shortest]
        by_kind.append([(pair, pushed) for pair in rng.permutation(near)])
    pressed, busy, moved = atoms.copy(), *np.zeros((2, len(atoms)), dtype=bool)
    left = max(1, len(atoms) // 32)
    for pair, distance in itertools.chain.from_iterable(
        itertools.zip_longest(*by_kind, fillvalue=(-1, 0))
    ):
        if left == 0:
            break
        i, j = first[pair], second[pair]
        if pair < 0 or busy[i] or busy[j]:
            continue
        move = 0.5 * (lengths[pair] - distance) * vectors[pair] / lengths[pair]
        pressed.positions[i] += move
        pressed.positions[j] -= move
        touched = np.isin(first, (i, j)) | np.isin(second, (i, j))
        busy[first[touched]] = busy[second[touched]] = True
        moved[[i, j]] = True
        left -= 1
    return pressed if _make_way(pressed, atoms, moved, rng) else None


def _make_way(
    atoms: ase.Atoms, before: ase.Atoms, pressed: np.ndarray, rng: np.random.Generator
) -> bool:
    """Move atoms away, in place, from those ``pressed`` that they are nearer to than a compressed bond; if all can.

    Pairs of elements may be as near as they are in ``before``.
    """
    bonds = covalent_radii[:, None] + covalent_radii
    limits = np.minimum(COMPRESSED_BOND * bonds, _find_shortest(before))
    reach = float(limits[np.ix_(before.numbers, before.numbers)].max())
    for _ in range(100):
        first, second, vectors, lengths = neighbor_list("ijDd", atoms, reach)
        gaps = limits[atoms.numbers[first], atoms.numbers[second]] - lengths
        near = (gaps > 1e-6) & ~pressed[second]
        if not near.any():
            return True
        steps = vectors[near] / np.maximum(lengths[near, None], 1e-9)
        # sideways, too: between two atoms is no way out
        steps += rng.normal(scale=0.2, size=steps.shape)
        np.add.at(atoms.positions, second[near], (gaps[near, None] + 0.01) * steps)
    return False
