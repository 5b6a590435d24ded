"""Forces and stress as derivatives of the energy.

Here: finite differences against forces and stress, symmetry of the force Jacobian, total force and torque. Not here:
limits (:mod:`fastff.testing.gate`).
"""

from __future__ import annotations

import itertools

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from fastff.models import Student
from fastff.testing.subject import Array, Subject, make_subject
from fastff.testing.symmetries import largest
from fastff.units import VOIGT

_STENCIL = (2.0, 1.0, -1.0, -2.0)
"""Steps of a fourth-order central difference."""

_JACOBIAN_STEPS = (0.02, 0.005, 0.00125, 0.0003)
"""Å."""

_SOFTEST = 0.1
"""eV/Å^2; norm of a Jacobian below which its asymmetry is not taken relative to it."""

MAX_COORDINATES = 24
"""Most coordinates that are moved; larger structures are sampled at random."""


def measure_forces(
    model: Subject | Student | Calculator, atoms: Atoms, step: float = 5e-4, seed: int = 0
) -> float:
    """Largest difference, eV/Å, of the forces from fourth-order differences of the energy.

    Of all coordinates, or of 24 drawn at random if there are more.
    """
    subject = make_subject(model)
    chosen = choose_coordinates(len(atoms), seed)
    energy = subject.respond(_move(atoms, chosen, step)).energy
    slope = _differentiate(energy.reshape(-1, 4), step)
    forces = subject.respond([atoms]).forces
    return largest(slope + forces[tuple(chosen.T)])


def measure_jacobian(model: Subject | Student | Calculator, atoms: Atoms, seed: int = 0) -> float:
    """Relative asymmetry ``|J - J^T| / |J + J^T|`` of the force Jacobian, by fourth-order differences of the forces.

    Needs no energies, so that it shows forces that are no gradient even in single precision. Of all coordinates,
    or of 24 drawn at random if there are more. The least over three steps: rounding spoils short ones and stiffness
    long ones, while forces that are no gradient show at all of them.
    """
    subject = make_subject(model)
    chosen = choose_coordinates(len(atoms), seed)
    found = []
    for step in _JACOBIAN_STEPS:
        forces = subject.respond(_move(atoms, chosen, step)).forces
        forces = forces.reshape(len(chosen), 4, len(atoms), 3)[:, :, *chosen.T]
        jacobian = _differentiate(forces.transpose(0, 2, 1), step)
        size = float(np.linalg.norm(jacobian + jacobian.T))
        found.append(float(np.linalg.norm(jacobian - jacobian.T)) / max(size, _SOFTEST))
    return min(found, key=lambda value: (np.isnan(value), value))


def measure_stress(
    model: Subject | Student | Calculator, atoms: Atoms, step: float = 5e-4
) -> float:
    """Largest difference, eV/Å^3, of the six stress components from differences in the strain.

    For a student non-periodic directions are strained too; the volume is that of the completed cell. nan where
    there is no stress.
    """
    subject = make_subject(model)
    strained = []
    for (a, b), factor in itertools.product(VOIGT, _STENCIL):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5 * factor * step
        strain[b, a] += 0.5 * factor * step
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=False)
        other.positions = atoms.positions @ (np.eye(3) + strain)
        strained.append(other)
    slope = _differentiate(subject.respond(strained).energy.reshape(-1, 4), step)
    stress = subject.respond([atoms]).stress[0]
    components = np.array([stress[a, b] for a, b in VOIGT])
    return largest(slope / subject.measure_volume(atoms) - components)


def measure_momentum(model: Subject | Student | Calculator, atoms: Atoms) -> float:
    """Largest component of the total force, eV/Å, and, without periodicity, of the total torque, eV."""
    forces = make_subject(model).respond([atoms]).forces
    arms = atoms.positions - atoms.positions.mean(axis=0)
    torque = np.zeros(3) if atoms.pbc.any() else np.cross(arms, forces).sum(axis=0)
    return largest(forces.sum(axis=0), torque)


def choose_coordinates(n_atoms: int, seed: int) -> np.ndarray:
    """Pairs (atom, direction), shape (n, 2): all, or :data:`MAX_COORDINATES` at random."""
    every = np.array(list(np.ndindex(n_atoms, 3)))
    if len(every) <= MAX_COORDINATES:
        return every
    drawn = np.random.default_rng(seed).choice(len(every), MAX_COORDINATES, replace=False)
    return every[np.sort(drawn)]


def _move(atoms: Atoms, chosen: np.ndarray, step: float) -> list[Atoms]:
    moved = []
    for (atom, direction), factor in itertools.product(chosen, _STENCIL):
        other = atoms.copy()
        other.positions[atom, direction] += factor * step
        moved.append(other)
    return moved


def _differentiate(values: Array, step: float) -> Array:
    """Slope from values at the four places of the stencil, along the last axis."""
    far, near, back, farther_back = np.moveaxis(values, -1, 0)
    return np.asarray((8.0 * (near - back) - (far - farther_back)) / (12.0 * step))
