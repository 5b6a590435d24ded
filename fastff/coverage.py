"""Pairs of elements that training data hold, and those of a structure that they do not.

Here: finding both. Not here: surroundings unlike those of the training data (:mod:`fastff.models.uncertainty`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from fastff.neighbors import build_edges, complete_cell

Pair = tuple[int, int]


def find_close_pairs(structures: Iterable[Atoms], cutoff: float) -> list[Pair]:
    """Pairs of atomic numbers, the smaller first, that come within ``cutoff`` Å of each other in some structure.

    A structure is searched only if it may hold a pair that none before it held.
    """
    found: set[Pair] = set()
    for atoms in structures:
        if not _list_possible(atoms) - found:
            continue
        pbc = np.asarray(atoms.pbc, dtype=bool)
        cell = complete_cell(atoms.positions, atoms.cell.array, pbc, cutoff)
        edges, _ = build_edges(atoms.positions, cell, pbc, cutoff)
        kinds = np.sort(atoms.numbers[edges], axis=0)
        found |= {(int(a), int(b)) for a, b in np.unique(kinds, axis=1).T}
    return sorted(found)


def list_unseen_pairs(header: Mapping[str, Any], atoms: Atoms) -> tuple[str, ...]:
    """Pairs of elements of a structure that were never within the cut-off of each other in a student's training.

    Parameters
    ----------
    header : mapping
        Of the model file; files that do not tell their pairs know of no unseen one.
    atoms : ase.Atoms
        Counts by its composition, wherever its atoms are: two elements may meet later.

    Returns
    -------
    tuple of str
        Such as ``("Cu-Au",)``, in the order of atomic numbers.
    """
    seen = (header.get("training") or {}).get("pairs")
    if seen is None:
        return ()
    unseen = _list_possible(atoms) - {(int(a), int(b)) for a, b in seen}
    return tuple(f"{chemical_symbols[a]}-{chemical_symbols[b]}" for a, b in sorted(unseen))


def _list_possible(atoms: Atoms) -> set[Pair]:
    """Pairs that the composition allows; an element meets itself where it has two atoms, or images."""
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    alone = {int(z) for z, n in zip(numbers, counts, strict=True) if n == 1 and not atoms.pbc.any()}
    pairs = combinations_with_replacement(numbers.tolist(), 2)
    return {(a, b) for a, b in pairs if a != b or a not in alone}
