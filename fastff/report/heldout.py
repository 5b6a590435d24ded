"""Frames that a student was never trained on, from trajectories it never saw.

Here: short dynamics driven by the teacher with seeds of their own (:func:`plan_heldout`, :func:`plan_outside`,
:func:`widen_plan`, :func:`stretch_plan`, :func:`run_heldout`), and the frames of a label file that may be used for
testing (:func:`select_heldout`). Not here: sampling for training (:mod:`fastff.distill.sampling`), comparing
(:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import ase
import numpy as np

from fastff.distill.cells import build_supercell
from fastff.distill.content import find_known
from fastff.errors import DataError, SimulationUnstableError
from fastff.labels import Frame
from fastff.md.state import find_fixed
from fastff.report.spread import LEAST_TRAJECTORIES

if TYPE_CHECKING:
    from fastff.distill.formats import LabelledSet
    from fastff.teachers.base import Teacher

MIN_WIDTH = 8.0
"""Periodic structures are repeated to this distance between opposite faces, Å, within :data:`MAX_ATOMS`."""

MAX_ATOMS = 120

SPACING = 100.0
"""fs between held-out frames, where there is time."""

EQUILIBRATION = 1000.0
"""fs before the first of them, where there is time."""


def ignore(done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class HeldoutTrajectory:
    """One trajectory to run: starting structure and temperature in K."""

    start: ase.Atoms
    temperature: float


@dataclass(frozen=True)
class HeldoutPlan:
    """Teacher dynamics to run for held-out frames.

    Attributes
    ----------
    trajectories : tuple of HeldoutTrajectory
    n_frames : int
        Frames kept from each trajectory.
    n_equilibrate, interval : int
        Steps before the first frame, and between frames; the former is a multiple of the latter.
    time_step : float
        fs.
    seed : int
        Of momenta and noise.
    friction : float
        Of the Langevin thermostat, 1/fs.
    """

    trajectories: tuple[HeldoutTrajectory, ...]
    n_frames: int
    n_equilibrate: int
    interval: int
    time_step: float
    seed: int
    friction: float = 0.02

    @property
    def n_steps(self) -> int:
        """Steps of each trajectory."""
        return self.n_equilibrate + (self.n_frames - 1) * self.interval

    @property
    def n_calls(self) -> int:
        """Teacher calls the plan needs."""
        return len(self.trajectories) * (self.n_steps + 1)

    def describe(self) -> str:
        """One line for the printed plan and the report."""
        temperatures = sorted({round(t.temperature) for t in self.trajectories})
        sizes = sorted({len(t.start) for t in self.trajectories})
        noun = "trajectory" if len(self.trajectories) == 1 else "trajectories"
        return (
            f"{len(self.trajectories)} teacher-driven Langevin {noun} at "
            f"{', '.join(str(t) for t in temperatures)} K with seeds of their own, "
            f"{'/'.join(str(n) for n in sizes)} atoms{self._describe_fixed()}, {self.time_step:g} fs steps; after "
            f"{self.n_equilibrate} steps one frame every {self.interval}, {self.n_frames} frames each"
        )

    def _describe_fixed(self) -> str:
        """`` (16 fixed)``, or nothing where all atoms move."""
        counts = sorted({int(find_fixed(t.start).sum()) for t in self.trajectories})
        return f" ({'/'.join(map(str, counts))} fixed)" if any(counts) else ""


def choose_time_step(numbers: np.ndarray) -> float:
    """Time step for dynamics, fs: 0.5 with hydrogen, 1 with other elements up to neon, else 2."""
    lightest = int(np.min(numbers))
    return 0.5 if lightest == 1 else 1.0 if lightest <= 10 else 2.0


def derive_seed(text: str) -> int:
    """Seed from text: reproducible, and not one that a person would have typed for training."""
    return int.from_bytes(hashlib.sha256(f"held-out {text}".encode()).digest()[:4], "big")


def plan_heldout(
    structures: Sequence[ase.Atoms],
    temperature: tuple[float, float],
    *,
    seed: int,
    n_frames: int = 48,
    n_temperatures: int = 3,
    n_equilibrate: int = 60,
    interval: int = 10,
    least_trajectories: int = 1,
) -> HeldoutPlan:
    """Plan trajectories over ``structures`` and a ladder of temperatures between the two limits in K.

    ``n_frames`` is the total over all trajectories, rounded up to the same number for each (at least two, so that the
    energy accuracy is defined). The ladder has more temperatures, or a single one several trajectories, where there
    would be fewer than ``least_trajectories``.
    """
    if not structures:
        raise DataError("no structures to start held-out dynamics from: give --structures FILE.")
    low, high = temperature
    least = -(-least_trajectories // len(structures))
    ladder = np.linspace(low, high, max(n_temperatures if high > low else 1, least))
    trajectories = []
    for number, structure in enumerate(structures):
        start = build_supercell(structure, MIN_WIDTH, MAX_ATOMS).atoms
        start.rattle(0.02, seed=seed + number)
        trajectories += [HeldoutTrajectory(start, float(value)) for value in ladder]
    return HeldoutPlan(
        trajectories=tuple(trajectories),
        n_frames=max(2, -(-n_frames // len(trajectories))),
        n_equilibrate=-(-n_equilibrate // interval) * interval,
        interval=interval,
        time_step=min(choose_time_step(s.numbers) for s in structures),
        seed=seed,
    )


def widen_plan(
    plan: HeldoutPlan, measure: Callable[[HeldoutPlan], float], budget: float
) -> HeldoutPlan:
    """As many frames from enough trajectories for an interval, each shorter, where that fits into ``budget`` seconds.

    ``measure`` gives the seconds of one step of all trajectories of a plan together; side by side, several may cost
    little more than one. More trajectories start where those of the plan do, with velocities of their own.
    """
    count = len(plan.trajectories)
    if count >= LEAST_TRAJECTORIES:
        return plan
    repeats = -(-LEAST_TRAJECTORIES // count)
    wide = replace(
        plan,
        trajectories=plan.trajectories * repeats,
        n_frames=max(2, -(-plan.n_frames // repeats)),
    )
    for one in (plan, wide):  # a step of more trajectories takes no less
        if wide.n_steps * measure(one) > budget:
            return plan
    return wide


def stretch_plan(plan: HeldoutPlan, step_seconds: float, budget: float) -> HeldoutPlan:
    """Equilibrate for 1 ps and keep frames 100 fs apart, as far as ``budget`` seconds allow; never shorter.

    ``step_seconds`` is what one step of all trajectories together takes.
    """
    interval = max(plan.interval, math.ceil(SPACING / plan.time_step))
    equilibrate = max(plan.n_equilibrate, math.ceil(EQUILIBRATION / plan.time_step))
    steps = equilibrate + (plan.n_frames - 1) * interval
    # both are stretched by the same share of what they lack
    lack = max(steps - plan.n_steps, 1)
    share = min(1.0, max(0.0, (budget / max(step_seconds, 1e-9) - plan.n_steps) / lack))
    interval = plan.interval + int(share * (interval - plan.interval))
    equilibrate = plan.n_equilibrate + int(share * (equilibrate - plan.n_equilibrate))
    return replace(plan, interval=interval, n_equilibrate=-(-equilibrate // interval) * interval)


def share_budget(names: Sequence[str], budget: float) -> dict[str, float]:
    """Seconds for each set of trajectories: half for the first, which is judged, the others share the rest."""
    first, *others = names
    return {first: budget / 2.0} | dict.fromkeys(others, budget / 2.0 / max(1, len(others)))


def time_dynamics(teacher: Teacher, plan: HeldoutPlan) -> float:
    """Seconds in which the teacher labels all trajectories of a plan once, after a first time."""
    for number in range(2):
        images = [trajectory.start.copy() for trajectory in plan.trajectories]
        for image in images:  # moved a little: calculators remember what they were asked last
            image.rattle(1e-3, seed=number)
        start = time.perf_counter()
        teacher.label(images)
        seconds = time.perf_counter() - start
    return seconds


def plan_outside(
    structures: Sequence[ase.Atoms],
    temperature: tuple[float, float],
    *,
    seed: int,
    n_equilibrate: int,
) -> dict[str, HeldoutPlan]:
    """Plan dynamics beyond the training range: 1.5 times the highest temperature, ±5 % strain, a larger cell."""
    shared = {"n_frames": 8, "n_temperatures": 1, "n_equilibrate": n_equilibrate, "interval": 5}
    hot = (1.5 * temperature[1], 1.5 * temperature[1])
    plans = {
        f"1.5 × the highest temperature, {hot[0]:.0f} K": plan_heldout(
            structures[:2], hot, seed=seed + 1, **shared
        )
    }
    crystals = [atoms for atoms in structures if atoms.pbc.all()][:1]
    strained = [strain_structure(atoms, e) for atoms in crystals for e in (-0.05, 0.05)]
    if strained:
        middle = 0.5 * sum(temperature)
        plans["strained by ±5 %"] = plan_heldout(
            strained, (middle, middle), seed=seed + 2, **shared
        )
        plans["a cell twice as large"] = plan_heldout(
            [double_cell(crystals[0])], (middle, middle), seed=seed + 3, **shared
        )
    return plans


def double_cell(atoms: ase.Atoms) -> ase.Atoms:
    """The cell of held-out dynamics, repeated twice along its shortest vector."""
    cell = build_supercell(atoms, MIN_WIDTH, MAX_ATOMS).atoms
    repeats = [1, 1, 1]
    repeats[int(np.argmin(cell.cell.lengths()))] = 2
    return cell.repeat(repeats)


def strain_structure(atoms: ase.Atoms, strain: float) -> ase.Atoms:
    """Copy with every cell vector and position scaled by ``1 + strain``."""
    image = atoms.copy()
    image.set_cell(atoms.cell * (1.0 + strain), scale_atoms=True)
    return image


def run_heldout(
    teacher: Teacher, plan: HeldoutPlan, progress: Callable[[int, int], None] = ignore
) -> list[Frame]:
    """Run the plan with the teacher at the wheel, all trajectories together; frames carry the labels that drove them.

    Raises
    ------
    SimulationUnstableError
        A trajectory left the teacher's range: labels not finite, a force above 100 eV/Å, or atoms on top of each other.
    """
    from fastff.distill.dynamics import LangevinSettings, Replica, draw_momenta, run_langevin

    # Twice the temperature: half of it goes into the potential energy within the first vibrations.
    replicas = [
        Replica(trajectory.start.copy(), trajectory.temperature, number)
        for number, trajectory in enumerate(plan.trajectories)
    ]
    for replica in replicas:
        momenta = draw_momenta(
            replica.atoms, 2.0 * replica.temperature, plan.seed, replica.trajectory
        )
        replica.atoms.set_momenta(momenta)
    frames: list[Frame] = []
    done = 0

    def count(n_labelled: int) -> None:
        nonlocal done
        done += n_labelled
        progress(done, plan.n_calls)

    settings = LangevinSettings(
        n_steps=plan.n_steps,
        timestep=plan.time_step,
        friction=plan.friction,
        stride=plan.interval,
        first_kept=plan.n_equilibrate,
        seed=plan.seed,
    )
    run_langevin(
        replicas,
        teacher.label,
        settings,
        source="teacher-md",
        on_frames=frames.extend,
        on_step=count,
    )
    for replica in replicas:
        if replica.stopped:
            raise SimulationUnstableError(
                f"teacher dynamics of {replica.atoms.get_chemical_formula()} at {replica.temperature:.0f} K broke: "
                f"{replica.stopped}. Check the structure or lower --temperature."
            )
    return sorted(frames, key=lambda frame: (frame.trajectory, frame.step))


def select_heldout(
    labelled: LabelledSet, trained: frozenset[str], hash_frame: Callable[[ase.Atoms], str]
) -> tuple[list[Frame], list[str]]:
    """Frames of a label file that a student may be judged on, and notes on what was left out.

    Parameters
    ----------
    labelled : LabelledSet
        As read. If it marks trajectories as held out, only those are used.
    trained : frozenset of str
        Content hashes of the frames that the student was trained on, as far as its file records them, whole or cut
        short.
    hash_frame : callable
        Whole content hash of a structure, hexadecimal.

    Raises
    ------
    DataError
        No frame is left.
    """
    frames, notes = list(labelled.frames), []
    if labelled.held_out:
        frames = [frame for frame in frames if frame.trajectory in labelled.held_out]
        notes.append(
            f"{len(frames)} of {len(labelled.frames)} frames are used: those of trajectories marked as held out"
        )
    known = find_known([hash_frame(frame.atoms) for frame in frames], trained)
    fresh = [frame for frame, is_known in zip(frames, known, strict=True) if not is_known]
    if len(fresh) < len(frames):
        notes.append(
            f"{len(frames) - len(fresh)} frames were left out because the student was trained on them"
        )
    if not fresh:
        raise DataError(
            f"none of the {len(labelled.frames)} labelled frames may be used: the student was trained on all that are "
            "not set apart. Give labels that it has not seen."
        )
    if not trained:
        notes.append(
            "the model file does not list its training frames: that these frames are new to it is not verified"
        )
    if labelled.blocks:
        notes.append(
            "the file names no trajectories: neighbors in time of these frames may have been trained on, and the "
            "accuracy may be too kind"
        )
    if labelled.quarantined:
        notes.append(f"{len(labelled.quarantined)} frames with unusable labels were set aside")
    return fresh, notes
