"""Constraints of the user's structures: what sampling keeps, and what it lifts.

Here: FixAtoms taken from one structure to another, words for what is fixed and for what is lifted. Not here: which
atoms are fixed (:func:`fastff.md.state.find_fixed`), dynamics that leaves these where they are
(:mod:`fastff.distill.dynamics`, :mod:`fastff.distill.explore`).

Only FixAtoms is kept. A supercell has it on every copy of a fixed atom; label files keep no constraints, so that what
is read from them gets those of its supercell again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import ase
import numpy as np
from ase.constraints import FixAtoms

from fastff.errors import DataError, UsageError
from fastff.md.state import find_fixed


def copy_fixed(atoms: ase.Atoms, n_copies: int = 1) -> list[FixAtoms]:
    """FixAtoms of a structure; other constraints are left out.

    Parameters
    ----------
    atoms : ase.Atoms
    n_copies : int
        The constraint is for a structure that holds so many copies of ``atoms``, one after the other.

    Returns
    -------
    list of ase.constraints.FixAtoms
        One, or none if no atom is fixed.

    Raises
    ------
    DataError
        If every atom is fixed.
    """
    kept = [constraint for constraint in atoms.constraints if isinstance(constraint, FixAtoms)]
    if not kept:
        return []
    bare = ase.Atoms(atoms.numbers, constraint=kept)
    try:
        fixed = find_fixed(bare)
    except UsageError as error:
        raise DataError(f"{error}; free some of them") from error
    return [FixAtoms(mask=np.tile(fixed, n_copies))] if fixed.any() else []


def hold_atoms(atoms: ase.Atoms, like: ase.Atoms) -> ase.Atoms:
    """A copy in which those atoms are fixed that are fixed in ``like``, which has the same atoms in the same order."""
    held = atoms.copy()
    held.set_constraint(copy_fixed(like))
    return held


def describe_lifted(structures: Mapping[int, ase.Atoms]) -> list[str]:
    """Which constraints of numbered structures are lifted: one sentence, or none.

    Parameters
    ----------
    structures : mapping
        Number of a structure in the user's file -> structure.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for number, atoms in structures.items():
        names = {type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)}
        for name in names:
            found[name].append(number)
    if not found:
        return []
    kinds = "; ".join(
        f"{name} of structure{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        for name, numbers in sorted(found.items())
    )
    return [f"constraints other than FixAtoms are lifted: {kinds}"]


def count_moving(atoms: ase.Atoms) -> int:
    """Number of atoms that FixAtoms does not hold."""
    return int((~find_fixed(atoms)).sum())


def describe_size(atoms: ase.Atoms) -> str:
    """``36 atoms (18 fixed)``; where all move, no more than their number."""
    n_fixed = len(atoms) - count_moving(atoms)
    return f"{len(atoms)} atoms" + (f" ({n_fixed} fixed)" if n_fixed else "")
