"""What a structure is, as far as it decides which properties make sense.

Here: :func:`describe_material`. Not here: the properties.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from math import gcd
from typing import Literal

import ase
import numpy as np
from ase.data import chemical_symbols

from fastff.distill.cells import build_supercell, find_material_axes
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


@dataclass(frozen=True)
class Material:
    """A structure and what it is.

    Attributes
    ----------
    atoms : ase.Atoms
        As given, bare.
    kind : {"crystal", "disordered", "slab", "molecule"}
    unit : ase.Atoms
        Of a crystal the primitive cell where spglib is installed and finds one, else ``atoms``.
    box : ase.Atoms
        Supercell for dynamics, at least 9 Å wide where at most 120 atoms allow that.
    formula : dict
        Of a formula unit.
    """

    atoms: ase.Atoms
    kind: Kind
    unit: ase.Atoms
    box: ase.Atoms
    formula: dict[str, int]

    @property
    def words(self) -> str:
        """One line."""
        name = self.atoms.get_chemical_formula()
        size = f", unit of {len(self.unit)} atoms" if self.kind == "crystal" else ""
        return f"{name}, {WORDS[self.kind]}{size}"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of elements, by atomic number."""
        symbols = [chemical_symbols[z] for z in sorted(set(self.atoms.numbers.tolist()))]
        return list(combinations_with_replacement(symbols, 2))


def describe_material(atoms: ase.Atoms) -> Material:
    """Tell a crystal from disordered matter, layers and molecules.

    A fully periodic structure is a crystal if its atoms have few kinds of surroundings: atoms of an element whose
    sorted neighbor distances agree within 0.15 Å are of one kind, and there may be six kinds, or one for every four
    atoms. Thermal displacements beyond that make it disordered, so give an ideal structure.
    """
    bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    axes = find_material_axes(bare)
    kind: Kind = "molecule" if not any(axes) else "slab" if not all(axes) else "disordered"
    if kind == "disordered" and count_kinds(bare) <= max(6, len(bare) // 4):
        kind = "crystal"
    unit = find_primitive(bare) if kind == "crystal" else bare
    counts = Counter(unit.get_chemical_symbols())
    divisor = reduce(gcd, counts.values())
    formula = {symbol: number // divisor for symbol, number in counts.items()}
    box = build_supercell(bare if kind != "crystal" else unit, 9.0, 120).atoms
    return Material(bare, kind, unit, box, formula)


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


def find_primitive(atoms: ase.Atoms) -> ase.Atoms:
    """The primitive cell, or the structure itself where spglib is missing or finds nothing smaller."""
    try:
        import spglib
    except ImportError:
        return atoms
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    try:
        found = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=1e-3)
    except Exception as error:  # spglib 2.7 on has its own hierarchy, older ones return None
        if not type(error).__module__.startswith("spglib"):
            raise
        return atoms
    if found is None or len(found[2]) >= len(atoms):
        return atoms
    return ase.Atoms(found[2], scaled_positions=found[1], cell=found[0], pbc=True)
