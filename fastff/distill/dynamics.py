"""Langevin dynamics of many structures at once, driven by anything that labels structures.

Here: :func:`run_langevin`, which advances all replicas together with one call for labels per step, so that teachers and
students that work in batches are used in batches. Not here: which replicas to run (:mod:`fastff.distill.sampling`), or
long simulations on a device (:mod:`fastff.md`).

The noise of a step depends only on seed, trajectory and step number. A trajectory continued from a stored frame
(positions, momenta and forces) is therefore the same as one that was never interrupted, whatever the other replicas do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ase
import numpy as np
from ase.neighborlist import neighbor_list

from fastff.distill.content import find_label_fault
from fastff.errors import UsageError
from fastff.labels import Frame, Labels
from fastff.md.state import find_fixed, removes_drift
from fastff.units import BOLTZMANN_EV_PER_K, FEMTOSECOND

Label = Callable[[list[ase.Atoms]], list[Labels]]
"""Something that labels structures: a teacher's or a student's bound method."""

_MOMENTA_KEY = 1
_NOISE_KEY = 2


@dataclass(frozen=True)
class LangevinSettings:
    """How to integrate.

    Attributes
    ----------
    n_steps : int
        Step at which every replica ends.
    timestep : float
        fs.
    friction : float
        1/fs; zero gives velocity Verlet at constant energy.
    stride : int
        Frames are kept at multiples of this step.
    first_kept : int
        First step at which frames are kept.
    seed : int
        Seed of momenta and noise.
    max_force : float
        eV/Å; a replica with a larger force on an atom is stopped.
    min_distance : float
        Å; a replica with atoms nearer than this is stopped. Zero turns the test off.
    """

    n_steps: int
    timestep: float
    friction: float = 0.02
    stride: int = 1
    first_kept: int = 0
    seed: int = 0
    max_force: float = 100.0
    min_distance: float = 0.5

    def __post_init__(self) -> None:
        if self.n_steps < 0 or self.timestep <= 0 or self.friction < 0 or self.stride < 1:
            raise UsageError(
                f"dynamics of {self.n_steps} steps of {self.timestep} fs, friction {self.friction}/fs, one frame every "
                f"{self.stride} steps make no sense; steps and friction must be >= 0, the others positive"
            )


@dataclass
class Replica:
    """One structure in motion; changed in place by :func:`run_langevin`.

    Attributes
    ----------
    atoms : ase.Atoms
        Positions, and momenta in ASE units. Atoms that FixAtoms holds stay where they are; there may be no other
        constraint.
    temperature : float
        Of the thermostat, K.
    trajectory : int
        Number given to its frames; also selects its noise.
    step : int
        Steps done.
    labels : Labels or None
        Labels of ``atoms``; None before the first step.
    stopped : str
        Why it was stopped, empty while it runs.
    """

    atoms: ase.Atoms
    temperature: float
    trajectory: int
    step: int = 0
    labels: Labels | None = None
    stopped: str = ""


def draw_momenta(atoms: ase.Atoms, temperature: float, seed: int, trajectory: int) -> np.ndarray:
    """Draw momenta from the Maxwell-Boltzmann distribution.

    Atoms that FixAtoms holds are at rest. Where it holds none, there is no total momentum.

    Returns
    -------
    numpy.ndarray
        Shape (n_atoms, 3), ASE units.

    Raises
    ------
    UsageError
        If the structure has constraints other than FixAtoms, or every atom is fixed.
    """
    fixed = find_fixed(atoms)
    rng = np.random.default_rng([seed, trajectory, _MOMENTA_KEY])
    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * BOLTZMANN_EV_PER_K * temperature) * rng.normal(size=(len(atoms), 3))
    momenta[fixed] = 0.0
    if removes_drift(fixed):
        momenta -= masses * momenta.sum(axis=0) / masses.sum()
    result: np.ndarray = momenta
    return result


def run_langevin(
    replicas: Sequence[Replica],
    label: Label,
    settings: LangevinSettings,
    *,
    source: str,
    on_frames: Callable[[list[Frame]], None],
    on_step: Callable[[int], None] | None = None,
) -> None:
    """Advance replicas together until ``settings.n_steps``.

    The integrator is BAOAB (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013)): its averages over positions
    are exact for harmonic forces at any stable step. Fixed atoms feel no force and no noise; their labels are kept as
    they are.

    Parameters
    ----------
    replicas : sequence of Replica
        Changed in place. Replicas that are stopped, or ahead of the slowest, wait. A replica continued from a stored
        frame brings that frame's step and labels.
    label : callable
        Labels a list of structures. Called once per step with all running replicas.
    settings : LangevinSettings
        Steps, timestep, friction, limits.
    source : str
        Source of the frames.
    on_frames : callable
        Receives the frames kept at a step, all replicas in one list; they carry momenta. The last sound frame of a
        replica that blows up is kept whatever its step; a frame with labels that are not finite is handed on as it is.
    on_step : callable, optional
        Receives the number of structures labelled, after each call of ``label``.
    """
    fresh = [replica for replica in replicas if not replica.stopped and replica.labels is None]
    if fresh:
        _label_replicas(fresh, label, on_step)
        kept = [_check(replica, settings, source) for replica in fresh]
        kept += [_keep(replica, source) for replica in fresh if _is_kept(replica, settings)]
        _hand_on(kept, on_frames)
    running = [replica for replica in replicas if not replica.stopped]
    start = min((replica.step for replica in running), default=settings.n_steps)
    waiting: list[Frame | None] = []
    for step in range(start, settings.n_steps):
        active = [replica for replica in running if replica.step == step and not replica.stopped]
        if not active:
            continue
        before = [_keep(replica, source) for replica in active]
        for replica in active:
            _kick_and_drift(replica, settings)
        _label_replicas(active, label, on_step)
        for replica, frame in zip(active, before, strict=True):
            replica.step += 1
            failed = _check(replica, settings, source)
            if replica.stopped:
                waiting += [frame, failed]
                continue
            _kick(replica, settings.timestep)
            if _is_kept(replica, settings):
                waiting.append(_keep(replica, source))
        if (step + 1) % settings.stride == 0 or step + 1 == settings.n_steps:
            _hand_on(waiting, on_frames)
            waiting = []
    _hand_on(waiting, on_frames)


def _hand_on(frames: Sequence[Frame | None], on_frames: Callable[[list[Frame]], None]) -> None:
    present = [frame for frame in frames if frame is not None]
    if present:
        on_frames(present)


def _label_replicas(
    replicas: Sequence[Replica], label: Label, on_step: Callable[[int], None] | None
) -> None:
    structures = []
    for replica in replicas:
        bare = replica.atoms.copy()
        bare.set_constraint()  # forces on fixed atoms are labels, too
        if bare.has("momenta"):
            del bare.arrays["momenta"]
        structures.append(bare)
    for replica, labels in zip(replicas, label(structures), strict=True):
        replica.labels = labels
    if on_step:
        on_step(len(replicas))


def _is_kept(replica: Replica, settings: LangevinSettings) -> bool:
    return (
        not replica.stopped
        and replica.step >= settings.first_kept
        and replica.step % settings.stride == 0
    )


def _keep(replica: Replica, source: str) -> Frame:
    assert replica.labels is not None
    return Frame(
        atoms=replica.atoms.copy(),
        labels=replica.labels,
        source=source,
        trajectory=replica.trajectory,
        temperature=replica.temperature,
        step=replica.step,
    )


def _check(replica: Replica, settings: LangevinSettings, source: str) -> Frame | None:
    """Stop a replica that has blown up; return its frame if the labels are not finite."""
    assert replica.labels is not None
    fault = find_label_fault(replica.atoms, replica.labels)
    if fault:
        replica.stopped = f"{fault} at step {replica.step}"
        return _keep(replica, source)
    largest = float(np.linalg.norm(replica.labels.forces, axis=1).max())
    if largest > settings.max_force:
        replica.stopped = f"force of {largest:.1f} eV/Å at step {replica.step}"
    elif _has_contact(replica.atoms, settings.min_distance):
        replica.stopped = f"atoms nearer than {settings.min_distance} Å at step {replica.step}"
    return None


def _has_contact(atoms: ase.Atoms, distance: float) -> bool:
    return distance > 0 and len(neighbor_list("i", atoms, distance)) > 0


def _kick(replica: Replica, timestep: float) -> None:
    assert replica.labels is not None
    momenta = replica.atoms.arrays["momenta"]
    momenta += 0.5 * timestep * FEMTOSECOND * replica.labels.forces
    momenta[find_fixed(replica.atoms)] = 0.0


def _kick_and_drift(replica: Replica, settings: LangevinSettings) -> None:
    atoms, half = replica.atoms, 0.5 * settings.timestep * FEMTOSECOND
    _kick(replica, settings.timestep)
    momenta, masses = atoms.arrays["momenta"], atoms.get_masses()[:, None]
    atoms.positions += half * momenta / masses
    if settings.friction > 0:
        decay = math.exp(-settings.friction * settings.timestep)
        rng = np.random.default_rng([settings.seed, replica.trajectory, _NOISE_KEY, replica.step])
        width = np.sqrt((1 - decay**2) * masses * BOLTZMANN_EV_PER_K * replica.temperature)
        momenta *= decay
        momenta += width * rng.normal(size=momenta.shape)
        momenta[find_fixed(atoms)] = 0.0
    atoms.positions += half * momenta / masses
