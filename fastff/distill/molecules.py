"""Which atoms form a molecule, and whether atoms are ordered.

Here: bonds by covalent radii, molecules across periodic boundaries, a test for order. Not here: what is done with them
(:mod:`fastff.distill.cells`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import ase
import numpy as np
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

BOND_STRETCH = 1.2
"""Longest bond over the sum of the covalent radii."""
FINGERPRINT_REACH, FINGERPRINT_SIZE = 5.0, 8
"""Å, and number, of the neighbors by which environments are compared."""
SAME_DISTANCE = 0.05
"""Å; environments whose distances differ by less are the same."""
LEAST_ATOMS = 8
"""Fewer atoms than this are not called disordered."""
DISORDERED_SHARE = 0.5
"""Share of atoms with an environment of their own from which a structure is disordered."""


@dataclass(frozen=True)
class Molecules:
    """Bonded parts of a structure.

    Attributes
    ----------
    owners : (n_atoms,) int array
        Number of the part each atom belongs to.
    images : (n_atoms, 3) float array
        Whole cell vectors by which an atom is moved to be beside the others of its part.
    endless : (n_atoms,) bool array
        Whether the part goes on through periodic boundaries: a crystal, a slab, a polymer.
    """

    owners: np.ndarray
    images: np.ndarray
    endless: np.ndarray

    def find_centers(self, whole: np.ndarray) -> np.ndarray:
        """Mean of positions (n_atoms, 3) over each atom's part, (n_atoms, 3)."""
        counts = np.bincount(self.owners)
        sums = np.zeros((len(counts), 3))
        np.add.at(sums, self.owners, whole)
        result: np.ndarray = (sums / counts[:, None])[self.owners]
        return result


def find_molecules(atoms: ase.Atoms) -> Molecules:
    """Group atoms that are bonded: nearer than :data:`BOND_STRETCH` times the sum of their covalent radii."""
    reach = BOND_STRETCH * covalent_radii[atoms.numbers]
    first, second, shifts = neighbor_list("ijS", atoms, reach)
    starts = np.searchsorted(first, np.arange(len(atoms) + 1))
    owners = np.full(len(atoms), -1)
    images, n_parts = np.zeros((len(atoms), 3)), 0
    endless_parts: list[bool] = []
    for seed in range(len(atoms)):
        if owners[seed] >= 0:
            continue
        owners[seed], endless = n_parts, False
        waiting = deque([seed])
        while waiting:
            i = waiting.popleft()
            for edge in range(starts[i], starts[i + 1]):
                j, image = second[edge], images[i] + shifts[edge]
                if owners[j] < 0:
                    owners[j], images[j] = n_parts, image
                    waiting.append(j)
                elif not np.array_equal(images[j], image):
                    endless = True
        endless_parts.append(endless)
        n_parts += 1
    return Molecules(owners, images, np.array(endless_parts, dtype=bool)[owners])


def is_disordered(atoms: ase.Atoms) -> bool:
    """Whether most atoms have an environment of their own: a liquid, a glass, a snapshot of dynamics.

    Environments are compared by element and sorted distances to the nearest neighbors.
    """
    if len(atoms) < LEAST_ATOMS:
        return False
    first, distances = neighbor_list("id", atoms, FINGERPRINT_REACH)
    rows = np.full((len(atoms), FINGERPRINT_SIZE), 2.0 * FINGERPRINT_REACH)
    for atom in range(len(atoms)):
        nearest = np.sort(distances[first == atom])[:FINGERPRINT_SIZE]
        rows[atom, : len(nearest)] = nearest
    lonely = 0
    for atom, number in enumerate(atoms.numbers):
        others = np.flatnonzero(atoms.numbers == number)
        differences = np.abs(rows[others[others != atom]] - rows[atom]).max(axis=1)
        lonely += not np.any(differences < SAME_DISTANCE)
    return lonely > DISORDERED_SHARE * len(atoms)
