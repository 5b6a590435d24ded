"""A whole run: files, restarts, guards, Ctrl-C.

Here: :func:`simulate`, the Python form of ``fastff md``. Not here: printing, the equations.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch

from fastff.electronic import check_electronic, read_electronic
from fastff.errors import SimulationUnstableError
from fastff.md.contacts import describe_contact
from fastff.md.engine import Engine, Progress
from fastff.md.extrapolation import ExtrapolationWatch, make_watch
from fastff.md.files import RunFiles, plan_files
from fastff.md.marks import Mark, check_bytes
from fastff.md.observe import COLUMNS
from fastff.md.protocol import DevicePotential
from fastff.md.recorder import LogWriter, Recorder
from fastff.md.restart import (
    check_binding,
    read_restart,
    remove_strays,
    restore_state,
    write_restart,
)
from fastff.md.settings import MDSettings
from fastff.md.snapshot import take_frame, take_restart
from fastff.md.state import State, build_state, find_fixed, make_atoms
from fastff.md.summary import Summary, summarize
from fastff.md.trajectory import open_trajectory
from fastff.memory import explain_shortage
from fastff.structures import check_structure

Listener = Callable[[int, float, np.ndarray | None], None]
"""Receives after every chunk: step, ns/day of this process, last row of observables or None."""


@dataclass(frozen=True)
class RunResult:
    """What :func:`simulate` has done.

    Attributes
    ----------
    atoms : ase.Atoms
        The last structure, with velocities.
    step, first_step : int
        Where the run stands, and where this process began.
    seconds : float
        Wall time of the steps of this process.
    ns_per_day : float
    n_rebuilds : int
        Neighbor lists built on the way.
    n_extrapolations : int
        Frames with atoms outside the training data, of this process; zero where nobody looked.
    summary : Summary
        Of the whole run, read from its log.
    files : RunFiles
    """

    atoms: ase.Atoms
    step: int
    first_step: int
    seconds: float
    ns_per_day: float
    n_rebuilds: int
    n_extrapolations: int
    summary: Summary
    files: RunFiles


def simulate(
    potential: DevicePotential,
    atoms: ase.Atoms,
    settings: MDSettings,
    out: str | Path,
    *,
    model: str = "",
    trajectory: str | Path | None = None,
    restart: bool = False,
    listener: Listener | None = None,
) -> RunResult:
    """Run molecular dynamics and write log, trajectory, restart files and the last structure.

    Parameters
    ----------
    potential : DevicePotential
        See :func:`fastff.md.potentials.make_potential`.
    atoms : ase.Atoms
        Where the run begins; not modified. FixAtoms is honoured, other constraints are refused.
    settings : MDSettings
    out : path
        Folder; made here, and refused if it holds anything unless ``restart`` is set.
    model : str
        Identity of the model, such as its SHA-256; a run is continued with the same one only.
    trajectory : path, optional
        Its suffix chooses the format: extxyz, xyz, h5, hdf5, h5md or traj.
    restart : bool
        Continue from the restart file in ``out``; without one, begin there, unless that would overwrite a file.
    listener : callable, optional
        See :data:`Listener`.

    Raises
    ------
    SimulationUnstableError
        If the dynamics blow up, or leave the training data where the settings say stop; last sound structure and bad
        one are saved.
    KeyboardInterrupt
        After Ctrl-C, when trajectory and restart file are complete.
    UsageError, DataError
        If the request makes no sense, or files cannot be continued.
    """
    check_structure(atoms)
    check_electronic(read_electronic(atoms))
    folder = Path(out)
    path = Path(trajectory) if trajectory is not None else None
    files = plan_files(folder, path, len(atoms), restart=restart)
    watch = make_watch(potential, settings, atoms)
    state = build_state(atoms, settings, potential.device)
    binding = {
        "settings": settings.list_binding(), "system": _identify(atoms), "model": model,
        "files": files.list_binding(),
    }  # fmt: skip
    point = None
    if restart and files.restart.exists():
        point = read_restart(files.restart)
        check_binding(point, binding, files.restart)
        point = point if point.marks else None  # killed before its first frame was on disk
    reference = restore_state(state, point) if point is not None else None
    with explain_shortage(len(atoms), potential.device):
        engine = Engine(potential, state, settings, reference)
    folder.mkdir(parents=True, exist_ok=True)
    remove_strays(files.restart)
    if point is None:  # from here on the files are known to be this run's
        write_restart(files.restart, engine.step, take_restart(engine).read(), binding, {})
    marks = {} if point is None else point.marks
    recorder = _open_recorder(files, atoms, settings, binding, marks)
    first, seconds = engine.step, 0.0
    try:
        with _watch_signals() as received, explain_shortage(len(atoms), potential.device):
            seconds = _run(
                engine, recorder, settings, listener, received, watch, fresh=point is None
            )
    except SimulationUnstableError as error:
        recorder.close()
        _save_unstable(engine, recorder, atoms, watch, files)
        raise SimulationUnstableError(
            f"{error}; the last sound structure is {files.good}, the bad one {files.bad}: "
            "use a shorter time step, or a model trained on such structures"
        ) from None
    finally:
        recorder.close()
    if received:
        _leave(received[0])
    final = _export(atoms, state)
    _write_atoms(files.final, final)
    rate = (engine.step - first) / seconds if seconds > 0 else 0.0
    return RunResult(
        final, engine.step, first, seconds, rate * settings.timestep * 0.0864,
        engine.n_rebuilds, 0 if watch is None else watch.n_frames, summarize(files.log, len(atoms)), files,
    )  # fmt: skip


def _identify(atoms: ase.Atoms) -> dict[str, Any]:
    """JSON-able identity of a start structure."""
    digest = hashlib.sha256()
    for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()):
        digest.update(np.ascontiguousarray(array).tobytes())
    if atoms.has("momenta"):
        digest.update(np.ascontiguousarray(atoms.get_momenta()).tobytes())
    fixed = np.flatnonzero(find_fixed(atoms)).tolist()
    return {"atoms": len(atoms), "sha256": digest.hexdigest(), "fixed": fixed}


def _open_recorder(
    files: RunFiles,
    atoms: ase.Atoms,
    settings: MDSettings,
    binding: dict[str, Any],
    marks: dict[str, Mark],
) -> Recorder:
    n_frames = settings.n_steps // settings.frame_interval + 1
    files.trajectory.parent.mkdir(parents=True, exist_ok=True)
    if marks:
        check_bytes(files.log, marks["log"])  # before anything is cut
    writer = open_trajectory(files.trajectory, atoms, n_frames, marks.get("trajectory"))
    log = LogWriter(files.log, settings.timestep, marks.get("log"))
    return Recorder(
        log, writer, files.restart, atoms, settings.timestep, settings.min_distance, binding
    )


def _run(
    engine: Engine,
    recorder: Recorder,
    settings: MDSettings,
    listener: Listener | None,
    received: list[int],
    watch: ExtrapolationWatch | None,
    *,
    fresh: bool,
) -> float:
    """Step until the end or a signal; return wall seconds."""
    if fresh:
        recorder.add_frame(take_frame(engine))
        _record(engine, recorder, settings, engine.observe())
        recorder.add_restart(take_restart(engine))
        if watch is not None:
            watch.look(engine)
    begun, first, saved, complete = time.monotonic(), engine.step, engine.step, True
    while engine.step < settings.n_steps and not (received and complete):
        progress = engine.advance(_find_next(engine.step, settings))
        complete = progress.complete
        last = _record(engine, recorder, settings, progress)
        if complete and progress.step % settings.frame_interval == 0 and progress.step > saved:
            recorder.add_frame(take_frame(engine))
            if watch is not None:
                watch.look(engine)
        if complete and progress.step % settings.restart_interval == 0 and progress.step > saved:
            recorder.add_restart(take_restart(engine))
        saved = progress.step if complete else saved
        if listener is not None:
            passed = max(time.monotonic() - begun, 1e-9)
            rate = (progress.step - first) / passed
            listener(progress.step, rate * settings.timestep * 0.0864, last)
    if engine.state.positions.is_cuda:
        torch.cuda.synchronize()
    seconds = time.monotonic() - begun
    recorder.add_restart(take_restart(engine))
    return seconds


def _find_next(step: int, settings: MDSettings) -> int:
    """Next step at which something is written."""
    due = [settings.n_steps]
    for interval in (settings.frame_interval, settings.restart_interval):
        due.append((step // interval + 1) * interval)
    return min(due)


def _record(
    engine: Engine, recorder: Recorder, settings: MDSettings, progress: Progress
) -> np.ndarray | None:
    """Hand rows over and stop unstable dynamics; return the last row."""
    recorder.add_rows(progress.rows)
    limit = settings.temperature_limit
    for row in progress.rows:
        temperature = row[COLUMNS.index("temperature_K")]
        if not temperature <= limit:
            raise SimulationUnstableError(
                f"temperature {temperature:.0f} K is above the limit of {limit:.0f} K at step {int(row[0])}"
            )
    if progress.failed:
        raise SimulationUnstableError(
            f"an energy is not finite or a coordinate would move by more than {settings.max_displacement:g} Å "
            f"in the step after step {progress.step}"
        )
    if progress.closest < settings.min_distance:
        raise SimulationUnstableError(describe_contact(engine, progress))
    if recorder.fault:
        raise SimulationUnstableError(recorder.fault)
    if not len(progress.rows):
        return None
    if progress.complete:
        engine.remember_sound()
    last: np.ndarray = progress.rows[-1]
    return last


@contextmanager
def _watch_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    watched = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in watched}

    def note(number: int, _: Any) -> None:
        if received:
            _leave(number)
        received.append(number)

    for number in watched:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _export(template: ase.Atoms, state: State) -> ase.Atoms:
    values = (state.positions, state.velocities, state.cell)
    atoms = make_atoms(template, *(value.cpu().numpy() for value in values))
    atoms.calc = None
    return atoms


def _write_atoms(path: Path, atoms: ase.Atoms) -> None:
    import io

    from ase.io import write

    from fastff.checkpoint import write_atomically

    text = io.StringIO()
    write(text, atoms, format="extxyz")
    write_atomically(path, text.getvalue().encode())


def _save_unstable(
    engine: Engine,
    recorder: Recorder,
    atoms: ase.Atoms,
    watch: ExtrapolationWatch | None,
    files: RunFiles,
) -> None:
    """Save the last sound structure and the bad one, with the grades of its atoms if they were looked at."""
    if recorder.fault and recorder.bad_frame is not None:
        bad = recorder.bad_frame.to_atoms(atoms)
        good = (recorder.sound_frame or recorder.bad_frame).to_atoms(atoms)
    else:
        bad = _export(atoms, engine.state)
        bad.info["step"] = engine.step
        good = make_atoms(atoms, *(value.cpu().numpy() for value in engine.sound))
        good.calc = None
        good.info["step"] = engine.sound_step
        if watch is not None and watch.grades is not None:
            bad.arrays["extrapolation_grades"] = watch.grades
    _write_atoms(files.bad, bad)
    _write_atoms(files.good, good)
