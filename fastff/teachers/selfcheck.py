"""What a teacher is worth as a source of labels: measured once, before labelling, and stored with the labels.

Here: invariance, extensivity and the consistency of forces with energies, on the user's own structures. Not here: gates
(a teacher is reported, not rejected), checks of students, or how noise is measured (:mod:`fastff.teachers.noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ase import Atoms

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.teachers.base import Teacher
from fastff.teachers.noise import (
    displace_structure,
    draw_rotation,
    measure_disagreement,
    rotate_structure,
)

ROTATIONS = 4
MAX_ATOMS = 200
STEP = 0.01
"""Displacement along a unit vector over all atoms, Å, of the finite difference."""
CONSERVATIVE_TOLERANCE = 0.02
"""Mismatch between forces and the slope of the energy, relative to the forces; above it a teacher is not
conservative."""


@dataclass(frozen=True)
class SelfCheck:
    """Largest deviations over the structures checked; energies in eV/atom, forces in eV/Å. nan where not measured.

    Attributes
    ----------
    rotation_energy, rotation_force : float
        After random rotations of positions and cell, forces rotated back.
    translation_energy, translation_force : float
        After a shift of all atoms.
    permutation_energy, permutation_force : float
        After reordering the atoms.
    batch_energy, batch_force : float
        Batched against single labels, RMS.
    jitter_force : float
        Roughness of the forces over 1e-3 Å, RMS, see :class:`~fastff.teachers.noise.Disagreement`.
    noise_force : float
        The largest RMS disagreement of forces between a structure and its rotated, displaced or batched copies: the
        noise floor.
    extensivity_energy : float
        Per-atom energy of a doubled cell against the cell (periodic structures).
    slope_mismatch : float
        |finite-difference slope + F.u| relative to the RMS of the expected projections.
    force_rms : float
        RMS over components of all forces.
    conservative : bool
        Whether the slope mismatch is small.
    n_structures : int
    """

    rotation_energy: float
    rotation_force: float
    translation_energy: float
    translation_force: float
    permutation_energy: float
    permutation_force: float
    batch_energy: float
    batch_force: float
    jitter_force: float
    noise_force: float
    extensivity_energy: float
    slope_mismatch: float
    force_rms: float
    conservative: bool
    n_structures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able dictionary; what was not measured is None."""
        return {
            key: None if isinstance(value, float) and np.isnan(value) else value
            for key, value in asdict(self).items()
        }


def check_teacher(teacher: Teacher, structures: Sequence[Atoms], *, seed: int = 0) -> SelfCheck:
    """Measure how far a teacher is from the symmetries and consistency that its labels are taken to have.

    Parameters
    ----------
    teacher : Teacher
    structures : sequence of ase.Atoms
        A few of the user's; those above 200 atoms are left out unless all are. Atoms are first rattled by 0.05 Å, so
        that forces do not vanish by symmetry.
    seed : int

    Returns
    -------
    SelfCheck

    Raises
    ------
    DataError
        If no structure is given.
    """
    if len(structures) == 0:
        raise DataError("teacher self-check: no structures given")
    rng = np.random.default_rng(seed)
    small = [atoms for atoms in structures if len(atoms) <= MAX_ATOMS]
    chosen = (small or [min(structures, key=len)])[:4]
    cells = [_rattle(atoms, rng) for atoms in chosen]
    reference = [teacher.label([atoms])[0] for atoms in cells]
    rotation = _measure_rotations(teacher, cells, reference, rng)
    translation = _measure_translation(teacher, cells, reference, rng)
    permutation = _measure_permutation(teacher, cells, reference, rng)
    forces = np.concatenate([labels.forces.ravel() for labels in reference])
    mismatch = _measure_slope(teacher, cells, reference, rng)
    noise = measure_disagreement(teacher.label, cells, seed=seed)
    return SelfCheck(
        *rotation,
        *translation,
        *permutation,
        batch_energy=noise.batch_energy,
        batch_force=noise.batch_force,
        jitter_force=noise.jitter_force,
        noise_force=noise.force,
        extensivity_energy=_measure_extensivity(teacher, cells, reference),
        slope_mismatch=mismatch,
        force_rms=float(np.sqrt((forces**2).mean())),
        conservative=bool(mismatch < CONSERVATIVE_TOLERANCE),
        n_structures=len(cells),
    )


def _rattle(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    image = displace_structure(atoms, rng.normal(scale=0.05, size=atoms.positions.shape))
    image.set_constraint()
    return image


def _compare(found: Sequence[Labels], expected: Sequence[Labels]) -> tuple[float, float]:
    """Largest differences of energy per atom and of force components."""
    pairs = list(zip(found, expected, strict=True))
    energy = max(abs(a.energy - b.energy) / len(a.forces) for a, b in pairs)
    force = max(float(np.abs(a.forces - b.forces).max()) for a, b in pairs)
    return energy, force


def _measure_rotations(
    teacher: Teacher, cells: list[Atoms], reference: list[Labels], rng: np.random.Generator
) -> tuple[float, float]:
    """Labels of randomly rotated copies, rotated back."""
    energy = force = 0.0
    for _ in range(ROTATIONS):
        matrix = draw_rotation(rng)
        turned = [teacher.label([rotate_structure(atoms, matrix)])[0] for atoms in cells]
        back = [Labels(labels.energy, labels.forces @ matrix, None) for labels in turned]
        found = _compare(back, reference)
        energy, force = max(energy, found[0]), max(force, found[1])
    return energy, force


def _measure_translation(
    teacher: Teacher, cells: list[Atoms], reference: list[Labels], rng: np.random.Generator
) -> tuple[float, float]:
    """Labels of copies shifted by up to 10 Å."""
    moved = [displace_structure(atoms, rng.uniform(-10, 10, size=3)) for atoms in cells]
    return _compare([teacher.label([atoms])[0] for atoms in moved], reference)


def _measure_permutation(
    teacher: Teacher, cells: list[Atoms], reference: list[Labels], rng: np.random.Generator
) -> tuple[float, float]:
    """Labels of copies with reordered atoms, ordered back."""
    found = []
    for atoms in cells:
        order = rng.permutation(len(atoms))
        labels = teacher.label([atoms[order]])[0]
        forces = np.empty_like(labels.forces)
        forces[order] = labels.forces
        found.append(Labels(labels.energy, forces, None))
    return _compare(found, reference)


def _measure_extensivity(teacher: Teacher, cells: list[Atoms], reference: list[Labels]) -> float:
    """Energy per atom of a cell doubled along its first periodic vector, against the cell; nan without periodicity."""
    worst = float("nan")
    for atoms, labels in zip(cells, reference, strict=True):
        if not atoms.pbc.any():
            continue
        repeats = [1, 1, 1]
        repeats[int(np.flatnonzero(atoms.pbc)[0])] = 2
        double = teacher.label([atoms * tuple(repeats)])[0]
        worst = float(np.fmax(worst, abs(double.energy / 2 - labels.energy) / len(atoms)))
    return worst


def _measure_slope(
    teacher: Teacher, cells: list[Atoms], reference: list[Labels], rng: np.random.Generator
) -> float:
    """Central differences of the energy along random directions against the forces, relative to the projections."""
    misses, projections = [], []
    for atoms, labels in zip(cells, reference, strict=True):
        for _ in range(2):
            direction = rng.normal(size=atoms.positions.shape)
            direction /= np.linalg.norm(direction)
            energies = []
            for sign in (1, -1):
                image = displace_structure(atoms, sign * STEP * direction)
                energies.append(teacher.label([image])[0].energy)
            slope = (energies[0] - energies[1]) / (2 * STEP)
            misses.append(slope + float((labels.forces * direction).sum()))
            projections.append(float(np.linalg.norm(labels.forces)) / np.sqrt(labels.forces.size))
    scale = float(np.sqrt(np.mean(np.square(projections))))
    return float(np.sqrt(np.mean(np.square(misses)))) / max(scale, 1e-12)
