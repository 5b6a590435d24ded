"""Energy conservation in dynamics without a thermostat.

Here: velocity Verlet on a gate's subject, drift and the order of the integration error. Not here: a simulation engine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

from fastff.models import Student
from fastff.testing.subject import Array, Subject, make_subject

RELAXATION_STEPS = 40
"""Damped steps that take a made-up structure off its worst forces before dynamics."""


@dataclass(frozen=True)
class Trajectory:
    """Energies along a run, eV, and the time between them, fs."""

    total: Array
    kinetic: Array
    step: float


def prepare_dynamics(
    model: Subject | Student | Calculator,
    atoms: Atoms,
    temperature: float,
    *,
    min_atoms: int = 32,
    seed: int = 0,
) -> Atoms:
    """A structure for dynamics: repeated to at least ``min_atoms`` atoms if periodic, relaxed, with thermal velocities.

    The relaxation is a short damped descent with steps of at most 0.05 Å, not a minimisation. Velocities have twice
    the ``temperature`` in K, half of which turns into potential energy.
    """
    subject = make_subject(model)
    atoms = atoms.copy()
    atoms.set_constraint()
    while atoms.pbc.any() and len(atoms) < min_atoms:
        lengths = np.where(atoms.pbc, atoms.cell.lengths(), np.inf)
        repeats = [1, 1, 1]
        repeats[int(np.argmin(lengths))] = 2
        atoms = atoms.repeat(repeats)
    for _ in range(RELAXATION_STEPS):
        forces = subject.respond([atoms]).forces
        size = np.linalg.norm(forces, axis=1, keepdims=True)
        atoms.positions += 0.05 * forces / np.maximum(size, 2.0)
    drawn = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    momenta = drawn * np.sqrt(2.0 * units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    return atoms


def run_dynamics(
    model: Subject | Student | Calculator, atoms: Atoms, step: float, n_steps: int
) -> Trajectory:
    """Velocity Verlet at constant energy from ``atoms`` with their velocities, unchanged; ``step`` in fs."""
    subject = make_subject(model)
    moving = atoms.copy()
    masses, dt = moving.get_masses()[:, None], step * units.fs
    momenta = moving.get_momenta()
    found = subject.respond([moving])
    total, kinetic = [], []
    for k in range(n_steps + 1):
        energy = float((momenta**2 / masses).sum() / 2.0)
        kinetic.append(energy)
        total.append(energy + float(found.energy[0]))
        if k == n_steps or not np.isfinite(total[-1]):
            break
        momenta = momenta + 0.5 * dt * found.forces
        moving.positions += dt * momenta / masses
        found = subject.respond([moving])
        momenta = momenta + 0.5 * dt * found.forces
    return Trajectory(np.array(total), np.array(kinetic), step)


def measure_drift(trajectory: Trajectory) -> float:
    """Drift of the total energy over a run, of a straight line fitted to it, over the spread of the kinetic energy.

    nan if the run ended early with an energy that is not finite.
    """
    if not np.isfinite(trajectory.total).all():
        return float("nan")
    drift = abs(fit_slope(trajectory)) * trajectory.step * (len(trajectory.total) - 1)
    return float(drift / max(trajectory.kinetic.std(), 1e-300))


def fit_slope(trajectory: Trajectory) -> float:
    """Slope of the total energy, eV/fs, by least squares."""
    times = trajectory.step * np.arange(len(trajectory.total))
    return float(np.polyfit(times, trajectory.total - trajectory.total[0], 1)[0])


def measure_order(
    model: Subject | Student | Calculator, atoms: Atoms, step: float, n_steps: int
) -> float:
    """Distance from two of the order with which the energy error falls as the time step is halved.

    ``|log2(spread(dt) / spread(dt / 2)) - 2|`` of the total energy over the same time: zero for forces that are the
    exact gradient of a smooth energy, near two where noise or a kink decides.
    """
    coarse = run_dynamics(model, atoms, step, n_steps)
    fine = run_dynamics(model, atoms, step / 2.0, 2 * n_steps)
    ratio = coarse.total.std() / max(fine.total[::2].std(), 1e-300)
    return float(abs(np.log2(ratio) - 2.0))
