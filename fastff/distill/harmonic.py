"""Thermal displacements from a handful of labels.

Here: a harmonic model of pair springs fitted to the teacher's forces on a few rattled copies of a cell, and draws from
its thermal distribution. Not here: dynamics (:mod:`fastff.distill.dynamics`).

Why: dynamics that start from a perfect crystal spend most of a small budget on warming up, and independent random
displacements overfill the stiff vibrations. Springs with a longitudinal and a transverse constant per element pair
and distance shell (Born and von Karman's model of lattice vibrations) follow from linear least squares, and their
Boltzmann distribution is a Gaussian: every draw is a nearly thermal, independent structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.neighborlist import neighbor_list

from fastff.labels import Labels
from fastff.md.state import find_fixed
from fastff.units import BOLTZMANN_EV_PER_K

SPRING_RANGE = 5.5
"""Å; longest spring."""
STIFFNESS_FLOOR = 0.02
"""Softest mode in units of the stiffest; softer or unstable ones are raised to it."""
MAX_MODE_ATOMS = 400
"""Above this, modes are not diagonalised and every atom moves on its own."""
MIN_SCALE = 0.3
"""A cell that is thermal already (a liquid) is still displaced by this part of the amplitude."""


@dataclass(frozen=True)
class HarmonicModel:
    """Vibrations about a cell.

    Attributes
    ----------
    modes : numpy.ndarray or None
        Shape (3 n_atoms, n_modes), orthonormal columns, zero for fixed atoms; None if every coordinate is its own mode.
    stiffness : numpy.ndarray
        Shape (n_modes,), eV/Å^2, positive; infinite for coordinates of fixed atoms.
    misfit : float
        RMS of the forces that the springs miss, divided by the RMS of the forces they were fitted to.
    temperature : float
        Configurational temperature of the cell itself, K: about zero for a relaxed crystal, about the temperature of
        the simulation for a snapshot of a liquid.
    reach : float
        Longest displacement of an atom in a draw, Å.
    """

    modes: np.ndarray | None
    stiffness: np.ndarray
    misfit: float
    temperature: float
    reach: float

    def draw(self, temperature: float, rng: np.random.Generator) -> np.ndarray:
        """Return thermal displacements, shape (n_atoms, 3), Å.

        Parameters
        ----------
        temperature : float
            K. Cells that are partly thermal themselves are displaced accordingly less.
        rng : numpy.random.Generator
            Draws the amplitudes.
        """
        if temperature <= 0:
            return np.zeros((self._n_coordinates // 3, 3))
        share = max(MIN_SCALE**2, 1.0 - self.temperature / temperature)
        amplitudes = np.sqrt(BOLTZMANN_EV_PER_K * temperature * share / self.stiffness)
        values = amplitudes * rng.normal(size=len(amplitudes))
        moves = (values if self.modes is None else self.modes @ values).reshape(-1, 3)
        lengths = np.linalg.norm(moves, axis=1, keepdims=True)
        result: np.ndarray = moves * np.minimum(1.0, self.reach / np.maximum(lengths, 1e-12))
        return result

    @property
    def _n_coordinates(self) -> int:
        return len(self.stiffness) if self.modes is None else len(self.modes)


def fit_harmonic(
    atoms: ase.Atoms, reference: Labels, probes: Sequence[tuple[ase.Atoms, Labels]]
) -> HarmonicModel:
    """Fit springs to the forces of slightly displaced copies.

    Parameters
    ----------
    atoms : ase.Atoms
        The cell. Atoms that FixAtoms holds do not vibrate; forces on them count in the fit.
    reference : Labels
        Labels of the cell.
    probes : sequence of (ase.Atoms, Labels)
        Copies of the cell displaced by a few 0.01 Å, and their labels; at least one.
    """
    fixed = find_fixed(atoms)
    moves = [probe.positions - atoms.positions for probe, _ in probes]
    changes = [labels.forces - reference.forces for _, labels in probes]
    scale = float(np.sqrt(np.mean(np.square(changes))))
    first, second, vectors, lengths = neighbor_list("ijDd", atoms, SPRING_RANGE)
    reach = 0.25 * float(lengths.min()) if len(lengths) else 0.3
    if len(atoms) > MAX_MODE_ATOMS or len(first) == 0:
        springs = _fit_einstein(atoms, moves, changes)
        misfit = np.sqrt(
            np.mean([(c + springs[:, None] * m) ** 2 for c, m in zip(changes, moves, strict=True)])
        )
        stiffness = np.repeat(np.where(fixed, np.inf, springs), 3)
        mobile = np.isfinite(stiffness)
        excess = _measure_temperature(reference.forces.ravel()[mobile], stiffness[mobile])
        return HarmonicModel(None, stiffness, float(misfit) / max(scale, 1e-12), excess, reach)
    units = vectors / lengths[:, None]
    shells = _number_shells(atoms.numbers[first], atoms.numbers[second], lengths)
    designs = [_build_design(move, first, second, units, shells) for move in moves]
    design = np.concatenate(designs)
    target = np.concatenate([change.ravel() for change in changes])
    normal = design.T @ design
    normal += 1e-4 * np.trace(normal) / len(normal) * np.eye(len(normal))
    constants = np.linalg.solve(normal, design.T @ target)
    misfit = float(np.sqrt(np.mean((design @ constants - target) ** 2))) / max(scale, 1e-12)
    hessian = _build_hessian(len(atoms), constants, first, second, units, shells)
    modes, stiffness = _diagonalise(atoms, hessian, fixed)
    excess = _measure_temperature(modes.T @ reference.forces.ravel(), stiffness)
    return HarmonicModel(modes, stiffness, misfit, excess, reach)


def _measure_temperature(forces: np.ndarray, stiffness: np.ndarray) -> float:
    """Temperature at which a harmonic system would have these forces along its modes, K."""
    return float(np.mean(forces**2 / stiffness)) / BOLTZMANN_EV_PER_K


def _fit_einstein(
    atoms: ase.Atoms, moves: Sequence[np.ndarray], changes: Sequence[np.ndarray]
) -> np.ndarray:
    """Spring constant of each atom to its place, one per element, eV/Å^2."""
    springs = np.zeros(len(atoms))
    for number in np.unique(atoms.numbers):
        own = atoms.numbers == number
        work = sum(float(np.sum(m[own] * c[own])) for m, c in zip(moves, changes, strict=True))
        size = sum(float(np.sum(m[own] ** 2)) for m in moves)
        springs[own] = max(-work / max(size, 1e-12), 0.1)
    return springs


def _number_shells(first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Number the kinds of springs: element pair and distance shell."""
    pairs = np.minimum(first, second) * 1000 + np.maximum(first, second)
    shells = np.zeros(len(lengths), dtype=int)
    count = 0
    for pair in np.unique(pairs):
        members = np.flatnonzero(pairs == pair)
        members = members[np.argsort(lengths[members], kind="stable")]
        start = previous = lengths[members[0]]
        for member in members:
            value = lengths[member]
            if value - previous > 0.15 or value - start > 0.6:
                count, start = count + 1, value
            shells[member] = count
            previous = value
        count += 1
    return shells


def _build_design(
    moves: np.ndarray, first: np.ndarray, second: np.ndarray, units: np.ndarray, shells: np.ndarray
) -> np.ndarray:
    """Forces per unit of each longitudinal and transverse constant, shape (3 n_atoms, 2 n_shells)."""
    n_shells = int(shells.max()) + 1
    relative = moves[second] - moves[first]
    along = np.sum(relative * units, axis=1, keepdims=True) * units
    design = np.zeros((len(moves), 2 * n_shells, 3))
    np.add.at(design, (first, shells), along)
    np.add.at(design, (first, n_shells + shells), relative - along)
    return design.transpose(0, 2, 1).reshape(3 * len(moves), 2 * n_shells)


def _build_hessian(
    n_atoms: int,
    constants: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    units: np.ndarray,
    shells: np.ndarray,
) -> np.ndarray:
    n_shells = len(constants) // 2
    outer = units[:, :, None] * units[:, None, :]
    longitudinal, transverse = constants[shells], constants[n_shells + shells]
    blocks = (longitudinal - transverse)[:, None, None] * outer
    blocks += transverse[:, None, None] * np.eye(3)
    coupled = np.zeros((n_atoms, n_atoms, 3, 3))
    np.add.at(coupled, (first, first), blocks)
    np.add.at(coupled, (first, second), -blocks)
    hessian = coupled.transpose(0, 2, 1, 3).reshape(3 * n_atoms, 3 * n_atoms)
    return 0.5 * (hessian + hessian.T)


def _diagonalise(
    atoms: ase.Atoms, hessian: np.ndarray, fixed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Modes without rigid motion, with stiffness raised to the floor; about fixed atoms no motion is rigid."""
    if fixed.any():
        mobile = np.flatnonzero(np.repeat(~fixed, 3))
        values, part = np.linalg.eigh(hessian[np.ix_(mobile, mobile)])
        vectors = np.zeros((len(hessian), len(mobile)))
        vectors[mobile] = part
        return vectors, _raise_stiffness(values)
    rigid = [np.tile(axis, len(atoms)) for axis in np.eye(3)]
    if not atoms.pbc.any():
        centred = atoms.positions - atoms.positions.mean(axis=0)
        rigid += [np.cross(axis, centred).ravel() for axis in np.eye(3)]
    left, sizes, _ = np.linalg.svd(np.stack(rigid, axis=1), full_matrices=False)
    left = left[:, sizes > 1e-6 * sizes.max()]
    projector = np.eye(len(hessian)) - left @ left.T
    values, vectors = np.linalg.eigh(projector @ hessian @ projector)
    inner = np.sum((left.T @ vectors) ** 2, axis=0) < 0.5
    values, vectors = values[inner], vectors[:, inner]
    if len(values) == 0:
        return np.zeros((len(hessian), 1)), np.ones(1)
    return vectors, _raise_stiffness(values)


def _raise_stiffness(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.maximum(values, STIFFNESS_FLOOR * max(float(values.max()), 1.0))
    return result
