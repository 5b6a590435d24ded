"""What a structure is, as far as it decides which properties make sense.

Here: :func:`describe_material`. Not here: the properties.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from math import gcd
from typing import Literal

import ase
import numpy as np
from ase.data import chemical_symbols

from fastff.distill.cells import build_supercell, find_material_axes
from fastff.distill.constraints import hold_atoms
from fastff.md.state import find_fixed
from fastff.neighbors import build_edges, complete_cell, measure_edges

Kind = Literal["crystal", "disordered", "slab", "molecule"]

WORDS: dict[str, str] = {
    "crystal": "a crystal",
    "disordered": "a liquid or disordered solid",
    "slab": "a layer or wire",
    "molecule": "a molecule or cluster",
}

REACH = 5.0
"""Å; surroundings are compared within this distance."""

N_NEIGHBORS = 12
TOLERANCE = 0.15
"""Å by which sorted neighbor distances of equivalent atoms may differ."""

TOLERANCES = (1e-3, 3e-3, 0.01, 0.03, 0.1)
"""Å within which atoms of a crystal count as equivalent, tried in turn."""

WIDER = 3.0
"""Times the tolerance at which the unit cell was found: within that, the symmetry counts which the crystal had before
it was relaxed by each side."""

LARGEST_ASYMMETRIC = 20
"""Atoms up to which a cell without symmetry may well be primitive."""

Relax = Callable[[ase.Atoms], ase.Atoms | None]
"""Relaxes cell and positions of a copy; None where that does not succeed."""


@dataclass(frozen=True)
class Material:
    """A structure and what it is.

    Attributes
    ----------
    atoms : ase.Atoms
        As given, bare.
    kind : {"crystal", "disordered", "slab", "molecule"}
    cell : UnitCell
        Of a crystal, see :func:`find_unit`; else ``atoms``.
    box : ase.Atoms
        Supercell for dynamics, at least 9 Å wide where at most 120 atoms allow that, with the FixAtoms of what is no
        crystal.
    formula : dict
        Of a formula unit.
    n_fixed : int
        Atoms with FixAtoms in the structure as given.
    """

    atoms: ase.Atoms
    kind: Kind
    cell: UnitCell
    box: ase.Atoms
    formula: dict[str, int]
    n_fixed: int = 0

    @property
    def unit(self) -> ase.Atoms:
        """Atoms of the unit cell."""
        return self.cell.atoms

    @property
    def words(self) -> str:
        """One line."""
        name = self.atoms.get_chemical_formula()
        size = f", unit of {len(self.unit)} atoms" if self.kind == "crystal" else ""
        remarks = [self.cell.origin or self.cell.fault, self._describe_fixed()]
        remark = "; ".join(filter(None, remarks))
        return f"{name}, {WORDS[self.kind]}{size}" + (f" ({remark})" if remark else "")

    def _describe_fixed(self) -> str:
        if not self.n_fixed:
            return ""
        held = f"{self.n_fixed} of {len(self.atoms)} atoms are fixed in the structure"
        if self.kind == "crystal":
            return f"{held}; here all move, properties are those of the free unit cell"
        return f"{held} and held in dynamics"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of elements, by atomic number."""
        symbols = [chemical_symbols[z] for z in sorted(set(self.atoms.numbers.tolist()))]
        return list(combinations_with_replacement(symbols, 2))


def describe_material(atoms: ase.Atoms, relax: Relax | None = None) -> Material:
    """Tell a crystal from disordered matter, layers and molecules.

    A fully periodic structure is a crystal if its atoms have few kinds of surroundings: atoms of an element whose
    sorted neighbor distances agree within 0.15 Å are of one kind, and there may be six kinds, or one for every four
    atoms. Thermal displacements beyond that make it disordered, so give an ideal structure. ``relax`` helps to find the
    primitive cell of a disturbed one.
    """
    bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    axes = find_material_axes(bare)
    kind: Kind = "molecule" if not any(axes) else "slab" if not all(axes) else "disordered"
    if kind == "disordered" and count_kinds(bare) <= max(6, len(bare) // 4):
        kind = "crystal"
    cell = find_unit(bare, relax) if kind == "crystal" else UnitCell(bare)
    counts = Counter(cell.atoms.get_chemical_symbols())
    divisor = reduce(gcd, counts.values())
    formula = {symbol: number // divisor for symbol, number in counts.items()}
    held = hold_atoms(bare, atoms)
    box = build_supercell(cell.atoms if kind == "crystal" else held, 9.0, 120).atoms
    return Material(bare, kind, cell, box, formula, int(find_fixed(held).sum()))


def count_kinds(atoms: ase.Atoms) -> int:
    """Number of different surroundings in a periodic structure."""
    cell = complete_cell(atoms.positions, atoms.cell.array, atoms.pbc, REACH)
    edges, shifts = build_edges(atoms.positions, np.asarray(cell), atoms.pbc, REACH)
    lengths = np.sqrt(measure_edges(atoms.positions, np.asarray(cell), edges, shifts))
    known: list[tuple[int, np.ndarray]] = []
    for index, number in enumerate(atoms.numbers):
        mine = np.sort(lengths[edges[0] == index])[:N_NEIGHBORS]
        mine = np.pad(mine, (0, N_NEIGHBORS - len(mine)), constant_values=REACH)
        if not any(z == number and np.abs(mine - row).max() < TOLERANCE for z, row in known):
            known.append((int(number), mine))
    return len(known)


@dataclass(frozen=True)
class UnitCell:
    """Unit cell of a crystal.

    Attributes
    ----------
    atoms : ase.Atoms
        The primitive cell, or the structure as given where none is known.
    origin : str
        How it was found, empty where it is that of the structure as given.
    fault : str
        Why it may be larger than the primitive cell, or empty.
    tolerance : float or None
        Å at which it was found; None where it was not. A cell that was found lies along the standard axes of its space
        group, whatever the axes of the structure as given.
    """

    atoms: ase.Atoms
    origin: str = ""
    fault: str = ""
    tolerance: float | None = None

    @property
    def symmetry(self) -> tuple[str, float] | None:
        """Its space group and the tolerance of that in Å, :data:`WIDER` than its own; None where none is known."""
        if self.tolerance is None:
            return None
        wide = WIDER * self.tolerance
        group = find_space_group(self.atoms, wide)
        return None if group is None else (group, wide)


def find_unit(atoms: ase.Atoms, relax: Relax | None = None) -> UnitCell:
    """The primitive cell of a crystal, also of one that is strained or disturbed.

    A structure with symmetry at the first of :data:`TOLERANCES` is taken at its word, only turned to standard axes.
    Otherwise it is relaxed and, if that does not help, used as given: the smallest cell within the tolerances counts,
    idealised.
    """
    try:
        import spglib  # noqa: F401
    except ImportError:
        fault = "spglib is not installed, so that no primitive cell was searched for"
        return UnitCell(atoms, fault=fault if len(atoms) > LARGEST_ASYMMETRIC else "")
    found = find_primitive(atoms, TOLERANCES[0])
    if found is not None:
        return UnitCell(turn_to_axes(found, TOLERANCES[0]), tolerance=TOLERANCES[0])
    relaxed = relax(atoms) if relax is not None else None
    for image, how in ((relaxed, " after relaxation by the student"), (atoms, "")):
        if image is None:
            continue
        cells = [(find_primitive(image, value, idealize=True), value) for value in TOLERANCES]
        sizes = [(len(cell), value, cell) for cell, value in cells if cell is not None]
        if sizes:
            _, tolerance, cell = min(sizes, key=lambda entry: entry[:2])
            origin = f"found within {tolerance:g} Å{how}"
            return UnitCell(cell, origin=origin, tolerance=tolerance)
    fault = f"no primitive cell was found within {TOLERANCES[-1]:g} Å; give an ideal one with --structures"
    return UnitCell(atoms, fault=fault if len(atoms) > LARGEST_ASYMMETRIC else "")


def turn_to_axes(atoms: ase.Atoms, tolerance: float) -> ase.Atoms:
    """A crystal turned as a rigid body to the standard axes of its space group (spglib): the edges of a cubic cell, c
    of a hexagonal or tetragonal one along z.
    """
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    found = spglib.get_symmetry_dataset(cell, symprec=tolerance)
    if found is None:
        return atoms
    # a dictionary before spglib 2.5
    turn = found["std_rotation_matrix"] if isinstance(found, dict) else found.std_rotation_matrix
    turn = np.array(turn) * np.sign(np.linalg.det(turn))  # of a left-handed cell with an inversion
    image = atoms.copy()
    image.set_cell(atoms.cell.array @ turn.T, scale_atoms=True)
    return image


def find_space_group(atoms: ase.Atoms, tolerance: float) -> str | None:
    """Symbol and number, as ``P4_2/mnm (136)``, at a tolerance in Å; None where spglib is missing or finds none."""
    try:
        import spglib
    except ImportError:
        return None
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        group: str | None = spglib.get_spacegroup(cell, symprec=tolerance)
    except Exception as error:  # as in find_primitive
        if not type(error).__module__.startswith("spglib"):
            raise
        return None
    return group


def find_primitive(
    atoms: ase.Atoms, tolerance: float, *, idealize: bool = False
) -> ase.Atoms | None:
    """The primitive cell at a tolerance in Å, idealised in the axes of spglib, or None where there is none.

    A large cell without symmetry, :data:`LARGEST_ASYMMETRIC`, is disorder that was repeated, not primitive.
    """
    import spglib

    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        group = spglib.get_spacegroup(cell, symprec=tolerance)
        found = spglib.standardize_cell(
            cell, to_primitive=True, no_idealize=not idealize, symprec=tolerance
        )
    except Exception as error:  # spglib 2.7 on has its own hierarchy, older ones return None
        if not type(error).__module__.startswith("spglib"):
            raise
        return None
    if group is None or found is None:
        return None
    asymmetric = group.endswith("(1)")
    if len(found[2]) >= len(atoms):
        return None if asymmetric else atoms
    if asymmetric and len(found[2]) > LARGEST_ASYMMETRIC:
        return None
    return ase.Atoms(found[2], scaled_positions=found[1], cell=found[0], pbc=True)
