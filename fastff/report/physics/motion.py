"""Properties from dynamics: pair distributions, diffusion, conservation of energy, stability.

Here: runs of both sides and the curves they leave. Not here: the numbers derived from them
(:mod:`fastff.report.physics.derive`), how long there is time to run (:mod:`fastff.report.physics.run`).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ase
import numpy as np

from fastff.distill.dynamics import LangevinSettings, Replica, draw_momenta, run_langevin
from fastff.labels import Frame
from fastff.neighbors import build_edges, complete_cell, measure_edges
from fastff.report.physics.derive import PropertyError
from fastff.report.physics.record import (
    DiffusionCurve,
    DiffusionItem,
    EnergyTrace,
    NveItem,
    RdfCurve,
    RdfItem,
    StabilityItem,
    StabilityRun,
)
from fastff.report.physics.side import Side

if TYPE_CHECKING:
    from fastff.models import Student

N_BLOCKS = 5
REACH = 6.0
"""Å of pair distributions."""

N_BINS = 120
FRICTION = 0.005
"""Of the thermostat, 1/fs: weak, so that diffusion is slowed down little."""

INTERVAL = 5
"""Steps between frames."""

CHUNK = 20
"""Steps of fastff's own loop between looks at the clock."""


@dataclass(frozen=True)
class Run:
    """Frames of one side after equilibration, with time step in fs."""

    frames: list[Frame]
    time_step: float

    @property
    def last(self) -> ase.Atoms:
        """The last structure, with momenta."""
        return self.frames[-1].atoms.copy()


def run_side(
    side: Side, start: ase.Atoms, temperature: float, time_step: float, n_steps: int, seed: int
) -> Run:
    """Langevin dynamics of one side; the first quarter is left out.

    Raises
    ------
    PropertyError
        The run broke.
    """
    n_equilibrate = n_steps // 4 // INTERVAL * INTERVAL
    replica = Replica(start.copy(), temperature, 0)
    # Twice the temperature: half of it goes into the potential energy of what starts at rest.
    replica.atoms.set_momenta(draw_momenta(replica.atoms, 2.0 * temperature, seed, 0))
    frames: list[Frame] = []
    settings = LangevinSettings(
        n_steps=n_equilibrate + (n_steps - n_equilibrate) // INTERVAL * INTERVAL,
        timestep=time_step, friction=FRICTION, stride=INTERVAL, first_kept=n_equilibrate, seed=seed,
        min_distance=0.0,  # a force above the limit stops what collapses
    )  # fmt: skip
    run_langevin([replica], side.label, settings, source="bench", on_frames=frames.extend)
    if replica.stopped:
        raise PropertyError(f"the run of the {side.role} broke: {replica.stopped}")
    return Run(frames, time_step)


def measure_step(side: Side, start: ase.Atoms, temperature: float, time_step: float) -> float:
    """Seconds of one step of :func:`run_side`."""
    n_steps = 2 * INTERVAL
    began = time.perf_counter()
    run_side(side, start, temperature, time_step, n_steps, seed=20)
    return (time.perf_counter() - began) / n_steps


def compare_distributions(
    teacher: Run | None,
    student: Run,
    pairs: list[tuple[str, str]],
    temperature: float,
    absence: str = "",
) -> RdfItem:
    """g(r) of every pair of elements, with standard errors over blocks of each run; ``absence`` says why no teacher."""
    sides = {"student": _count_pairs(student, pairs)}
    if teacher is not None:
        sides["teacher"] = _count_pairs(teacher, pairs)
    edges = np.linspace(0.0, REACH, N_BINS + 1)
    radii = tuple((0.5 * (edges[1:] + edges[:-1])).tolist())
    curves = []
    for number, pair in enumerate(pairs):
        values: dict[str, Any] = {"teacher": None, "teacher_error": None}
        for role, blocks in sides.items():
            values[role] = tuple(blocks[:, number].mean(axis=0).tolist())
            error = blocks[:, number].std(axis=0, ddof=1) / np.sqrt(N_BLOCKS)
            values[f"{role}_error"] = tuple(error.tolist())
        curves.append(RdfCurve(pair="-".join(pair), radii=radii, **values))
    n_atoms, steps = len(student.last), INTERVAL * len(student.frames)
    return RdfItem(
        title="Pair distributions",
        description=f"{n_atoms} atoms at {temperature:.0f} K under the same Langevin thermostat ({FRICTION:g}/fs), "
        f"{steps * student.time_step * 1e-3:.3g} ps of each side after equilibration; standard errors over "
        f"{N_BLOCKS} blocks{_describe_absence(absence)}",
        temperature=temperature,
        n_blocks=N_BLOCKS,
        curves=tuple(curves),
    )


def _describe_absence(absence: str) -> str:
    return f"; the teacher was not run: {absence}" if absence else ""


def _count_pairs(run: Run, pairs: list[tuple[str, str]]) -> np.ndarray:
    """g(r) of each block, (n_blocks, n_pairs, n_bins)."""
    blocks = np.array_split(np.arange(len(run.frames)), N_BLOCKS)
    result = np.zeros((N_BLOCKS, len(pairs), N_BINS))
    for number, block in enumerate(blocks):
        for index in block:
            result[number] += count_pairs(run.frames[index].atoms, pairs)
        result[number] /= max(len(block), 1)
    return result


def count_pairs(atoms: ase.Atoms, pairs: list[tuple[str, str]]) -> np.ndarray:
    """g(r) of one periodic structure, (n_pairs, n_bins): pairs found over those of an ideal gas of the same density."""
    cell = np.asarray(complete_cell(atoms.positions, atoms.cell.array, atoms.pbc, REACH))
    edges, shifts = build_edges(atoms.positions, cell, atoms.pbc, REACH)
    lengths = np.sqrt(measure_edges(atoms.positions, cell, edges, shifts))
    symbols = np.array(atoms.get_chemical_symbols())
    limits = np.linspace(0.0, REACH, N_BINS + 1)
    shells = 4.0 / 3.0 * np.pi * np.diff(limits**3)
    rows = []
    for first, second in pairs:
        chosen = (symbols[edges[0]] == first) & (symbols[edges[1]] == second)
        counts, _ = np.histogram(lengths[chosen], bins=limits)
        density = (symbols == second).sum() / atoms.get_volume()
        rows.append(counts / ((symbols == first).sum() * density * shells))
    return np.array(rows)


def compare_diffusion(
    teacher: Run | None, student: Run, temperature: float, absence: str = ""
) -> DiffusionItem:
    """Mean square displacements over time origins, and diffusion coefficients of three blocks of each run.

    Raises
    ------
    PropertyError
        Nothing diffuses: no element moves by more than 1 Å (root mean square) over the longest time of either run.
    """
    symbols = np.array(student.last.get_chemical_symbols())
    curves = []
    moved = 0.0
    for element in sorted(set(symbols)):
        values: dict[str, Any] = {"teacher": None, "teacher_blocks": None}
        for role, run in (("teacher", teacher), ("student", student)):
            if run is None:
                continue
            paths = _follow(run)[:, symbols == element]
            step = INTERVAL * run.time_step * 1e-3
            msd = measure_msd(paths)
            moved = max(moved, float(msd[-1]))
            values["times"] = tuple((step * np.arange(len(msd))).tolist())
            values[role] = tuple(msd.tolist())
            thirds = np.array_split(paths, 3)
            values[f"{role}_blocks"] = tuple(fit_diffusion(measure_msd(b), step) for b in thirds)
        curves.append(DiffusionCurve(element=element, **values))
    if moved < 1.0:
        raise PropertyError(
            f"nothing diffuses: the largest mean square displacement is {moved:.2f} Å² over "
            f"{curves[0].times[-1]:.2g} ps"
        )
    return DiffusionItem(
        title="Diffusion",
        description="Slope of the mean square displacement over the second half of its times, in the runs of the pair "
        f"distributions (thermostat {FRICTION:g}/fs, which slows diffusion on both sides); standard errors over three "
        f"blocks, no correction for the size of the cell{_describe_absence(absence)}",
        temperature=temperature,
        curves=tuple(curves),
    )


def _follow(run: Run) -> np.ndarray:
    """Unwrapped positions less the centre of mass, (n_frames, n_atoms, 3)."""
    masses = run.last.get_masses()[:, None]
    paths = np.array([frame.atoms.positions for frame in run.frames])
    drift = (paths * masses).sum(axis=1, keepdims=True) / masses.sum()
    result: np.ndarray = paths - drift
    return result


def measure_msd(paths: np.ndarray) -> np.ndarray:
    """Mean square displacement by lag up to half the run, averaged over time origins and atoms, Å^2."""
    lags = range(max(2, len(paths) // 2 + 1))
    return np.array(
        [
            np.square(paths[lag:] - paths[: len(paths) - lag]).sum(axis=2).mean() if lag else 0.0
            for lag in lags
        ]
    )


def fit_diffusion(msd: np.ndarray, step: float) -> float:
    """A sixth of the slope over the second half, Å^2/ps; ``step`` in ps (Einstein 1905)."""
    half = min(len(msd) // 2, len(msd) - 2)
    times = step * np.arange(len(msd))
    return float(np.polyfit(times[half:], msd[half:], 1)[0] / 6.0)


def measure_nve(
    teacher: Side | None,
    student: Student,
    start: ase.Atoms,
    temperature: float,
    time_step: float,
    n_steps: int,
    n_teacher_steps: int,
    seconds: float = math.inf,
) -> NveItem:
    """Total energy over velocity Verlet steps: the student in fastff's own loop, the teacher step by step."""
    run, rows = run_engine(
        student, start, temperature, time_step, n_steps, ensemble="nve", seconds=seconds
    )
    if run.reason:
        raise PropertyError(f"the run of the student broke after {run.done} steps: {run.reason}")
    n_atoms = len(start)
    energies = 1e3 * (rows[:, 4] - rows[0, 4]) / n_atoms
    trace = EnergyTrace(
        times=tuple((rows[:, 0] * time_step * 1e-3).tolist()), energies=tuple(energies.tolist())
    )
    other = None
    if teacher is not None:
        other = _trace_teacher(teacher, start, time_step, n_teacher_steps)
    compared = f"{n_teacher_steps} by the teacher" if other else "not run by the teacher"
    return NveItem(
        title="Conservation of energy",
        description=f"Velocity Verlet with steps of {time_step:g} fs near {temperature:.0f} K, {n_atoms} atoms: "
        f"{run.n_steps} steps by fastff's own loop, {compared}",
        temperature=temperature,
        time_step=time_step,
        teacher=other,
        student=trace,
    )


def _trace_teacher(side: Side, start: ase.Atoms, time_step: float, n_steps: int) -> EnergyTrace:
    frames: list[Frame] = []
    settings = LangevinSettings(
        n_steps=n_steps, timestep=time_step, friction=0.0, stride=1, min_distance=0.0
    )
    replica = Replica(start.copy(), 0.0, 0)
    run_langevin([replica], side.label, settings, source="bench", on_frames=frames.extend)
    if replica.stopped:
        raise PropertyError(f"the run of the {side.role} broke: {replica.stopped}")
    total = [f.labels.energy + f.atoms.get_kinetic_energy() for f in frames]
    energies = 1e3 * (np.array(total) - total[0]) / len(start)
    return EnergyTrace(
        times=tuple(f.step * time_step * 1e-3 for f in frames), energies=tuple(energies.tolist())
    )


def measure_stability(
    student: Student,
    start: ase.Atoms,
    highest: float,
    time_step: float,
    n_steps: int,
    seconds: float = math.inf,
) -> StabilityItem:
    """Run the student in fastff's own loop at the highest temperature of its training range and 1.5 times that, K."""
    runs = [
        run_engine(
            student, start, value, time_step, n_steps, ensemble="nvt", seconds=0.5 * seconds
        )[0]
        for value in (highest, 1.5 * highest)
    ]
    return StabilityItem(
        title="Stability",
        description=f"The student's own NVT dynamics of {len(start)} atoms at the highest temperature of its training "
        f"range, {highest:.0f} K, and 1.5 times that, steps of {time_step:g} fs, until a limit of temperature, "
        "displacement or distance is broken",
        time_step=time_step,
        runs=tuple(runs),
    )


def run_engine(
    student: Student,
    start: ase.Atoms,
    temperature: float,
    time_step: float,
    n_steps: int,
    *,
    ensemble: Any,
    seconds: float = math.inf,
) -> tuple[StabilityRun, np.ndarray]:
    """Steps of the device-resident loop; rows of :data:`fastff.md.observe.COLUMNS` every ten steps.

    After ``seconds`` the run ends, soundly, and its number of steps is that of those done.
    """
    from fastff.md.engine import Engine
    from fastff.md.observe import COLUMNS
    from fastff.md.potentials import make_potential
    from fastff.md.settings import MDSettings
    from fastff.md.skin import settle_skin
    from fastff.md.state import build_state

    settings = MDSettings(
        n_steps=n_steps, timestep=time_step, ensemble=ensemble, temperature=temperature,
        velocities="file" if start.has("momenta") else "draw", interval=10,
    )  # fmt: skip
    settings = settle_skin(student, start, settings)
    potential = make_potential(student, settings.skin)
    state = build_state(start, settings, potential.device)
    engine = Engine(potential, state, settings)
    rows = [engine.observe().rows]
    reason = ""
    began = time.perf_counter()
    while engine.step < n_steps and not reason:
        if time.perf_counter() - began > seconds:
            n_steps = engine.step
            break
        progress = engine.advance(
            n_steps if seconds == math.inf else min(n_steps, engine.step + CHUNK)
        )
        rows.append(progress.rows)
        hottest = progress.rows[:, COLUMNS.index("temperature_K")].max(initial=0.0)
        if progress.failed:
            reason = "an energy is not finite or an atom moved too far in one step"
        elif not hottest <= settings.temperature_limit:
            reason = f"a temperature of {hottest:.0f} K"
        elif progress.complete:
            reason = _find_contact(
                state.positions.cpu().numpy(), start, state.cell.cpu().numpy(), settings
            )
    run = StabilityRun(
        temperature=temperature, n_steps=n_steps, done=min(engine.step, n_steps), reason=reason
    )
    return run, np.concatenate(rows)


def _find_contact(positions: np.ndarray, start: ase.Atoms, cell: np.ndarray, settings: Any) -> str:
    reach = settings.min_distance
    completed = np.asarray(complete_cell(positions, cell, start.pbc, reach))
    edges, _ = build_edges(positions, completed, start.pbc, reach)
    return f"atoms nearer than {reach:g} Å" if edges.shape[1] else ""
