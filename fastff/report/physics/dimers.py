"""Isolated pairs of atoms: the curve of each pair of elements from contact to beyond the cut-off.

Here: :func:`measure_dimers`. Pairs are far from what a student is trained on; the curves show whether atoms repel each
other where they must.
"""

from __future__ import annotations

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from fastff.report.physics.record import DimerCurve, DimerItem
from fastff.report.physics.side import Side

MOST_PAIRS = 6
N_DISTANCES = 28


def list_distances(first: str, second: str, cutoff: float) -> np.ndarray:
    """Distances from 0.6 of the sum of covalent radii to half an Å beyond the cut-off, denser where atoms touch, Å."""
    radius = covalent_radii[atomic_numbers[first]] + covalent_radii[atomic_numbers[second]]
    return np.geomspace(0.6 * radius, cutoff + 0.5, N_DISTANCES)


def measure_dimers(
    teacher: Side, student: Side, pairs: list[tuple[str, str]], cutoff: float
) -> DimerItem:
    """Energies of both sides, less those at the largest distance."""
    curves = []
    for first, second in pairs[:MOST_PAIRS]:
        distances = list_distances(first, second, cutoff)
        images = [ase.Atoms([first, second], [[0, 0, 0], [0, 0, r]]) for r in distances]
        energies = {}
        for side in (teacher, student):
            values = np.array([labels.energy for labels in side.label(images)])
            energies[side.role] = tuple((values - values[-1]).tolist())
        curves.append(
            DimerCurve(pair=f"{first}-{second}", distances=tuple(distances.tolist()), **energies)
        )
    left = "" if len(pairs) <= MOST_PAIRS else f"; the first {MOST_PAIRS} of {len(pairs)} pairs"
    return DimerItem(
        title="Isolated pairs",
        description="Two atoms in empty space, energy less that at the largest distance; no such structure need be in "
        f"the training data{left}",
        curves=tuple(curves),
        contact="shortest",
    )
