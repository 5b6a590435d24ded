"""Symmetries: what must not change the energy, and how forces and stress must follow.

Here: rotation, inversion, translation, permutation, supercells, two cells of one crystal. Each function gives the
largest change of energy per atom (eV), forces (eV/Å) and stress (eV/Å^3). Not here: limits
(:mod:`fastff.testing.gate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray

from fastff.models import Student
from fastff.testing.structures import make_lattices
from fastff.testing.subject import Array, Subject, make_subject

N_ROTATIONS = 114
"""Orientations of a structure, as many as in the ML-PEG benchmark of rotational invariance."""


def measure_rotation(
    model: Subject | Student | Calculator,
    atoms: Atoms,
    n_rotations: int = N_ROTATIONS,
    seed: int = 0,
) -> float:
    """Largest change of energy, rotated-back forces and stress under random proper rotations."""
    drawn = np.linalg.qr(np.random.default_rng(seed).normal(size=(n_rotations, 3, 3))).Q
    return _compare_turned(model, atoms, [q * np.linalg.det(q) for q in drawn])


def measure_inversion(model: Subject | Student | Calculator, atoms: Atoms) -> float:
    """Largest change of energy, inverted-back forces and stress under inversion."""
    return _compare_turned(model, atoms, [-np.eye(3)])


def measure_translation(
    model: Subject | Student | Calculator, atoms: Atoms, seed: int = 0
) -> float:
    """Largest change when all atoms move by 40 Å, or each by lattice vectors of its own."""
    rng = np.random.default_rng(seed)
    far, images = atoms.copy(), atoms.copy()
    far.positions += 40.0 * np.array([0.6, -0.64, 0.48])
    shifts = rng.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
    images.positions += shifts @ atoms.cell.array
    return _compare(model, atoms, [far, images], np.arange(len(atoms)))


def measure_permutation(
    model: Subject | Student | Calculator, atoms: Atoms, seed: int = 0
) -> float:
    """Largest change when the atoms are listed in another order."""
    order = np.random.default_rng(seed).permutation(len(atoms))
    return _compare(model, atoms, [atoms[order]], order)


def measure_supercell(model: Subject | Student | Calculator, atoms: Atoms) -> float:
    """Difference between a cell and its repetition, twice along each periodic direction."""
    subject = make_subject(model)
    repeats = np.where(atoms.pbc, 2, 1)
    large = make_supercell(atoms, np.diag(repeats), order="atom-major")
    one, many = subject.respond([atoms]), subject.respond([large])
    n_images = int(repeats.prod())
    forces = many.forces - one.forces.repeat(n_images, axis=0)
    energy = (many.energy / n_images - one.energy) / len(atoms)
    return largest(energy, forces)


def measure_primitive(model: Subject | Student | Calculator, number: int) -> float:
    """Difference of energy per atom and stress between the primitive and the cubic cell of an fcc crystal."""
    subject = make_subject(model)
    lattices = make_lattices(number, subject.cutoff)
    primitive, cubic = (subject.respond([atoms]) for atoms in lattices)
    stress = cubic.stress - primitive.stress
    if not subject.has_stress(lattices[0]):
        stress = np.zeros(0)
    return largest(cubic.energy / 4 - primitive.energy, stress)


def largest(*values: Array | float) -> float:
    """Largest magnitude in any of the arrays; zero of nothing, nan if any value is, which ``max`` may lose."""
    return max(
        (float(np.abs(part).max()) for part in values if np.size(part)),
        key=lambda value: (np.isnan(value), value),
        default=0.0,
    )


def _compare_turned(
    model: Subject | Student | Calculator, atoms: Atoms, matrices: Sequence[Array]
) -> float:
    subject = make_subject(model)
    turned = []
    for matrix in matrices:
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ matrix.T, scale_atoms=False)
        other.positions = atoms.positions @ matrix.T
        turned.append(other)
    one, many = subject.respond([atoms]), subject.respond(turned)
    forward = np.array(matrices)
    forces = many.forces.reshape(len(turned), len(atoms), 3) @ forward
    stress = forward.transpose(0, 2, 1) @ many.stress @ forward - one.stress
    if not atoms.pbc.all() or not subject.has_stress(atoms):
        stress = np.zeros(0)
    return largest((many.energy - one.energy) / len(atoms), forces - one.forces, stress)


def _compare(
    model: Subject | Student | Calculator,
    atoms: Atoms,
    others: list[Atoms],
    order: NDArray[np.int64],
) -> float:
    subject = make_subject(model)
    one, many = subject.respond([atoms]), subject.respond(others)
    forces = many.forces.reshape(len(others), len(atoms), 3) - one.forces[order]
    return largest((many.energy - one.energy) / len(atoms), forces)
