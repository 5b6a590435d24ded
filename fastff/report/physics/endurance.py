"""Dynamics of the student in its own device-resident loop: stability, energy, runs beside those of the teacher.

Here: the runs, the least lengths of the first two and the curves these leave. Not here: dynamics of the teacher, and
what is compared of both (:mod:`fastff.report.physics.motion`).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import ase
import numpy as np

from fastff.distill.constraints import count_moving, describe_size
from fastff.distill.dynamics import LangevinSettings, Replica, run_langevin
from fastff.labels import Frame
from fastff.neighbors import build_edges, complete_cell
from fastff.report.physics.derive import PropertyError, TooShortError
from fastff.report.physics.motion import FRICTION, INTERVAL, Dynamics, Run
from fastff.report.physics.record import EnergyTrace, NveItem, StabilityItem, StabilityRun
from fastff.report.physics.side import OutOfTimeError, Side

if TYPE_CHECKING:
    from fastff.md.engine import Engine
    from fastff.md.settings import MDSettings
    from fastff.models import Student

CHUNK = 20
"""Steps of fastff's own loop between looks at the clock."""

MOST_TRIAL = 1.0
"""Seconds after which a trial of the student's own steps is long enough."""

LEAST_STABILITY = 1.0
"""ps at each temperature; shorter runs that do not break say nothing."""

LEAST_NVE = 0.5
"""ps, :data:`SETTLING` included; over shorter times a drift is not told from fluctuations."""

SETTLING = 0.1
"""ps in which half of the heat of velocities goes into the positions of what starts at rest; with the motion, the error
of the integration changes, which is no drift."""


def require_length(what: str, length: float, least: float) -> None:
    """Raise :class:`TooShortError` for a run of ``length`` ps, if that is less than ``least``."""
    if length < least * (1.0 - 1e-9):
        raise TooShortError(f"{what} is too short to say anything: {length:.2g} ps of {least:g} ps")


def measure_nve(
    teacher: Side | None,
    student: Student,
    start: ase.Atoms,
    temperature: float,
    time_step: float,
    n_steps: int,
    n_teacher_steps: int,
    seconds: float = math.inf,
    absence: str = "",
) -> NveItem:
    """Total energy over velocity Verlet steps: the student in fastff's own loop, the teacher step by step.

    Energies are per atom that moves; ``absence`` says why there is no teacher.
    """
    run, rows = run_engine(
        student, start, temperature, time_step, n_steps, ensemble="nve", seconds=seconds
    )
    if run.reason:
        raise PropertyError(f"the run of the student broke after {run.done} steps: {run.reason}")
    require_length("the run of the student", run.done * time_step * 1e-3, LEAST_NVE)
    n_atoms = count_moving(start)
    energies = 1e3 * (rows[:, 4] - rows[0, 4]) / n_atoms
    trace = EnergyTrace(
        times=tuple((rows[:, 0] * time_step * 1e-3).tolist()), energies=tuple(energies.tolist())
    )
    other = None
    if teacher is not None and n_teacher_steps * time_step * 1e-3 >= LEAST_NVE:
        other = _trace_teacher(teacher, start, time_step, n_teacher_steps)
    compared = f"{n_teacher_steps} by the teacher"
    if other is None:
        compared = "not run by the teacher" + (f": {absence}" if absence else "")
    per_mover = "" if n_atoms == len(start) else ", energies per atom that moves"
    return NveItem(
        title="Conservation of energy",
        description=f"Velocity Verlet with steps of {time_step:g} fs near {temperature:.0f} K, {describe_size(start)}"
        f"{per_mover}: {run.n_steps} steps by fastff's own loop, {compared}",
        temperature=temperature,
        time_step=time_step,
        teacher=other,
        student=trace,
        settling=SETTLING,
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
    energies = 1e3 * (np.array(total) - total[0]) / count_moving(start)
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
    """Run the student in fastff's own loop at the highest temperature of its training range and 1.5 times that, K.

    Raises
    ------
    PropertyError
        A run that did not break is shorter than :data:`LEAST_STABILITY`.
    """
    runs = []
    for value, part in ((highest, 0.5), (1.5 * highest, 1.0)):
        began = time.perf_counter()
        run, _ = run_engine(
            student, start, value, time_step, n_steps, ensemble="nvt", seconds=part * seconds
        )
        seconds -= time.perf_counter() - began
        if not run.reason:
            length = run.done * time_step * 1e-3
            require_length(f"the run at {value:.0f} K", length, LEAST_STABILITY)
        runs.append(run)
    return StabilityItem(
        title="Stability",
        description=f"The student's own NVT dynamics of {describe_size(start)} at the highest temperature of its "
        f"training range, {highest:.0f} K, and 1.5 times that, steps of {time_step:g} fs, until a limit of "
        "temperature, displacement or distance is broken",
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
    from fastff.md.observe import COLUMNS
    from fastff.md.settings import MDSettings

    settings = MDSettings(
        n_steps=n_steps, timestep=time_step, ensemble=ensemble, temperature=temperature,
        velocities="file" if start.has("momenta") else "draw", interval=10,
    )  # fmt: skip
    engine = make_engine(student, start, settings)
    settings, state = engine.settings, engine.state
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


def make_engine(student: Student, start: ase.Atoms, settings: MDSettings) -> Engine:
    """fastff's own loop, with the skin that suits the structure."""
    from fastff.md.engine import Engine
    from fastff.md.potentials import make_potential
    from fastff.md.skin import settle_skin
    from fastff.md.state import build_state

    settings = settle_skin(student, start, settings)
    potential = make_potential(student, settings.skin)
    return Engine(potential, build_state(start, settings, potential.device), settings)


def run_own(student: Student, dynamics: Dynamics, deadline: float = math.inf) -> Run:
    """What :func:`fastff.report.physics.motion.run_side` does, in the student's own loop, replicas one by one.

    Raises
    ------
    PropertyError
        A run broke.
    OutOfTimeError
        ``deadline``, a reading of ``time.perf_counter``, has passed.
    """
    replicas = []
    for number in range(dynamics.n_replicas):
        engine = _heat_engine(student, dynamics, number)
        images: list[ase.Atoms] = []
        for step in range(INTERVAL, dynamics.n_steps + 1, INTERVAL):
            _advance(engine, step, deadline)
            if step >= dynamics.n_equilibrate:
                image = dynamics.start.copy()
                image.positions = engine.state.positions.cpu().numpy()
                images.append(image)
        replicas.append(images)
    return Run(replicas, dynamics.time_step)


def _heat_engine(student: Student, dynamics: Dynamics, number: int) -> Engine:
    """The loop of replica ``number``, with the thermostat of the teacher's runs."""
    from fastff.md.settings import MDSettings

    settings = MDSettings(
        n_steps=dynamics.n_steps, timestep=dynamics.time_step, ensemble="nvt",
        temperature=dynamics.temperature, relaxation=1.0 / FRICTION, velocities="file",
        seed=dynamics.seed + number,
    )  # fmt: skip
    return make_engine(student, dynamics.heat(number), settings)


def _advance(engine: Engine, step: int, deadline: float) -> None:
    """Run to ``step``, with a look at the clock after every chunk."""
    from fastff.md.observe import COLUMNS

    while engine.step < step:
        if time.perf_counter() > deadline:
            raise OutOfTimeError("the student was stopped when the share of the budget was used up")
        progress = engine.advance(step)
        if progress.failed:
            raise PropertyError(
                "the run of the student broke: an energy is not finite or an atom moved too far in step "
                f"{engine.step + 1}"
            )
        hottest = progress.rows[:, COLUMNS.index("temperature_K")].max(initial=0.0)
        if not hottest <= engine.settings.temperature_limit:
            raise PropertyError(f"the run of the student broke: a temperature of {hottest:.0f} K")


def measure_own_step(
    student: Student,
    start: ase.Atoms,
    temperature: float,
    time_step: float,
    deadline: float = math.inf,
) -> float:
    """Seconds of one step of :func:`run_own`, once it is warm."""
    dynamics = Dynamics(start, temperature, time_step, 15 * INTERVAL)
    engine = _heat_engine(student, dynamics, 0)
    _advance(engine, 2 * INTERVAL, deadline)
    began = time.perf_counter()
    while engine.step < dynamics.n_steps and time.perf_counter() - began < MOST_TRIAL:
        _advance(engine, engine.step + INTERVAL, deadline)
    return (time.perf_counter() - began) / (engine.step - 2 * INTERVAL)


def _find_contact(positions: np.ndarray, start: ase.Atoms, cell: np.ndarray, settings: Any) -> str:
    reach = settings.min_distance
    completed = np.asarray(complete_cell(positions, cell, start.pbc, reach))
    edges, _ = build_edges(positions, completed, start.pbc, reach)
    return f"atoms nearer than {reach:g} Å" if edges.shape[1] else ""
