"""``fastff md``: molecular dynamics of a structure with a model.

Here: the command, its plan, progress and verdict. Not here: the dynamics (:mod:`fastff.md`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastff.cli.terminal import (
    DeviceOption,
    DType,
    DTypeOption,
    ModelArgument,
    make_console,
    resolve_device,
    resolve_dtype,
)
from fastff.errors import UsageError

if TYPE_CHECKING:
    import torch
    from ase import Atoms
    from rich.console import Console

    from fastff.md.files import RunFiles
    from fastff.md.run import Listener, RunResult
    from fastff.md.settings import MDSettings
    from fastff.md.summary import Average

_TIME_UNITS = {"fs": 1.0, "ps": 1e3, "ns": 1e6}


class EnsembleName(StrEnum):
    """Statistical ensembles."""

    NVE = "nve"
    NVT = "nvt"
    NPT = "npt"


class ThermostatName(StrEnum):
    """Thermostats."""

    LANGEVIN = "langevin"
    RESCALE = "rescale"


class BarostatName(StrEnum):
    """Barostats."""

    ISOTROPIC = "isotropic"
    ANISOTROPIC = "anisotropic"


class ExtrapolationPolicy(StrEnum):
    """What to do outside the training data."""

    STOP = "stop"
    WARN = "warn"
    IGNORE = "ignore"


class VelocitySource(StrEnum):
    """Where start velocities come from."""

    DRAW = "draw"
    FILE = "file"


def md(
    model: ModelArgument,
    structure: Annotated[
        Path, typer.Argument(help="Structure in any format ASE reads; its last frame counts.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for all output.")] = None,
    ensemble: Annotated[
        EnsembleName, typer.Option(help="What is held constant.")
    ] = EnsembleName.NVT,
    thermostat: Annotated[
        ThermostatName, typer.Option(help="Langevin (BAOAB) or canonical velocity rescaling.")
    ] = ThermostatName.LANGEVIN,
    barostat: Annotated[
        BarostatName, typer.Option(help="Scale the cell as one, or each cell vector by itself.")
    ] = BarostatName.ISOTROPIC,
    temperature: Annotated[
        str, typer.Option(help="K; 300-900 is a linear ramp over the whole run.")
    ] = "300",
    pressure: Annotated[float, typer.Option(help="GPa, for npt.")] = 0.0,
    time: Annotated[
        str | None, typer.Option(help="Length of the run: 10ps, 500fs, 1ns; a bare number is ps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=0, help="Length of the run in steps.")] = None,
    timestep: Annotated[str, typer.Option(help="1fs; a bare number is fs.")] = "1fs",
    relaxation: Annotated[float, typer.Option(help="Time constant of the thermostat, fs.")] = 100.0,
    pressure_relaxation: Annotated[
        float, typer.Option(help="Time constant of the barostat, fs.")
    ] = 1000.0,
    compressibility: Annotated[
        float, typer.Option(help="Of the material, 1/GPa, roughly; for npt.")
    ] = 0.02,
    seed: Annotated[int, typer.Option(min=0, help="Of start velocities and noise.")] = 0,
    velocities: Annotated[
        VelocitySource, typer.Option(help="Draw start velocities, or take the structure's.")
    ] = VelocitySource.DRAW,
    interval: Annotated[int, typer.Option(min=1, help="Steps between rows of the log.")] = 100,
    frame_interval: Annotated[
        int, typer.Option(min=1, help="Steps between frames of the trajectory.")
    ] = 1000,
    restart_interval: Annotated[
        int, typer.Option(min=1, help="Steps between restart files.")
    ] = 10_000,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="File whose suffix is the format: .extxyz, .h5 or .traj."),
    ] = None,
    repeat: Annotated[
        tuple[int, int, int], typer.Option(help="Repeat the cell along its vectors.")
    ] = (1, 1, 1),
    skin: Annotated[
        float | None,
        typer.Option(
            help="Å beyond the cut-off in the neighbor list. Default: what should be fastest."
        ),
    ] = None,
    max_temperature: Annotated[
        float | None,
        typer.Option(help="K; stop above this. Default 10 times the set one, >= 5000."),
    ] = None,
    on_extrapolation: Annotated[
        ExtrapolationPolicy | None,
        typer.Option(
            help="What to do about atoms unlike the training data, looked for at every frame. "
            "Default: warn if the model file holds an uncertainty."
        ),
    ] = None,
    compile_steps: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the integrator of npt: a slower start, shorter steps on a GPU.",
        ),
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Continue the run in --out; repeat its options.")
    ] = False,
    device: DeviceOption = "auto",
    dtype: DTypeOption = DType.FLOAT32,
) -> None:
    """Run molecular dynamics with a model."""
    from fastff.md.settings import MDSettings

    step_length = parse_time(timestep, "fs", "--timestep")
    start, end = parse_temperature(temperature)
    settings = MDSettings(
        n_steps=count_steps(time, steps, step_length), timestep=step_length, ensemble=ensemble.value,
        thermostat=thermostat.value, barostat=barostat.value, temperature=start, final_temperature=end,
        relaxation=relaxation, pressure=pressure, pressure_relaxation=pressure_relaxation,
        compressibility=compressibility, seed=seed, velocities=velocities.value, interval=interval,
        frame_interval=frame_interval, restart_interval=restart_interval, max_temperature=max_temperature,
        compile_steps=compile_steps, on_extrapolation=(on_extrapolation or ExtrapolationPolicy.IGNORE).value,
    )  # fmt: skip
    place = resolve_device(device)

    from fastff.checkpoint import load_model
    from fastff.md.files import plan_files
    from fastff.md.potentials import make_potential
    from fastff.md.restart import find_stored_skin
    from fastff.md.run import simulate
    from fastff.md.skin import choose_skin
    from fastff.memory import keep_freed_memory
    from fastff.structures import read_structures

    if place.type == "cpu":
        keep_freed_memory()

    atoms = repeat_structure(read_structures(structure)[-1], repeat)
    folder = out if out is not None else Path("runs") / f"md-{structure.stem}"
    files = plan_files(folder, trajectory, len(atoms), restart=restart)
    student = load_model(model, device=place, dtype=resolve_dtype(dtype))
    if on_extrapolation is None and student.uncertainty is not None:
        settings = dataclasses.replace(settings, on_extrapolation="warn")
    if skin is None:
        kept = find_stored_skin(files.restart) if restart else None
        skin = kept or choose_skin(student, atoms, settings)
    settings = dataclasses.replace(settings, skin=skin)
    identity = f"{student.header.get('sha256', '')} {dtype.value}"
    console = make_console()
    print_plan(console, atoms, settings, files, place)
    with ShownProgress(console, settings) as shown, _advise(console):
        result = simulate(
            make_potential(student, settings.skin), atoms, settings, folder, model=identity,
            trajectory=trajectory, restart=restart, listener=shown.update,
        )  # fmt: skip
    _write_record(result, settings, model, student.header.get("sha256"))
    print_verdict(console, result, settings, model)


def parse_time(text: str, unit: str, option: str) -> float:
    """Femtoseconds of ``10ps``, ``1 ns`` or a bare number of ``unit``.

    Raises
    ------
    UsageError
        If it is not a positive time.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(fs|ps|ns)?\s*", text, re.IGNORECASE)
    try:
        value = float(found.group(1)) if found else 0.0
    except ValueError:
        value = 0.0
    if found is None or not value > 0.0:
        raise UsageError(f"{option} {text!r} is not a time; write 500fs, 10ps or 1ns")
    return value * _TIME_UNITS[(found.group(2) or unit).lower()]


def parse_temperature(text: str) -> tuple[float, float | None]:
    """Start and, for a ramp, end temperature in K of ``300`` or ``300-900``."""
    parts = text.replace(" ", "").removesuffix("K").split("-")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise UsageError(f"--temperature {text!r} is not one; write 300, or 300-900 for a ramp")
    return values[0], values[1] if len(values) == 2 else None


def count_steps(time: str | None, steps: int | None, timestep: float) -> int:
    """Number of steps that ``--time`` or ``--steps`` asks for."""
    if (time is None) == (steps is None):
        raise UsageError("say how long the run is: either --time 10ps or --steps 10000")
    if steps is not None:
        return steps
    assert time is not None
    return max(1, round(parse_time(time, "ps", "--time") / timestep))


def repeat_structure(atoms: Atoms, repeat: tuple[int, int, int]) -> Atoms:
    """Supercell of a structure; directions that are not periodic cannot be repeated."""
    if min(repeat) < 1:
        raise UsageError(f"--repeat {' '.join(map(str, repeat))} must be positive")
    for axis, (count, periodic) in enumerate(zip(repeat, atoms.pbc, strict=True)):
        if count > 1 and not periodic:
            raise UsageError(
                f"--repeat {count} along cell vector {'abc'[axis]}, which is not periodic; use 1"
            )
    return atoms.repeat(repeat) if max(repeat) > 1 else atoms


def print_plan(
    console: Console, atoms: Atoms, settings: MDSettings, files: RunFiles, device: torch.device
) -> None:
    """What will be run and written."""
    n_atoms, steps = len(atoms), settings.n_steps
    heat = f"{settings.temperature:g} K"
    if settings.final_temperature is not None:
        heat = f"{settings.temperature:g} to {settings.final_temperature:g} K"
    how = settings.ensemble.upper()
    if settings.ensemble != "nve":
        how += f", {settings.thermostat} ({settings.relaxation:g} fs)"
    if settings.ensemble == "npt":
        how += f", {settings.barostat} at {settings.pressure:g} GPa"
    frames, rows = steps // settings.frame_interval + 1, steps // settings.interval + 1
    per_atom = 150 if files.trajectory.suffix in (".extxyz", ".xyz") else 60
    lines = (
        f"[bold]system[/]   {atoms.get_chemical_formula()}, {n_atoms} atoms, on {device}",
        f"[bold]dynamics[/] {how}, {heat}; {steps} steps of {settings.timestep:g} fs = "
        f"{steps * settings.timestep / 1000:g} ps; seed {settings.seed}",
        f"[bold]output[/]   {files.folder}: {rows} rows of {files.log.name}; {frames} frames, about "
        f"{_format_size(frames * n_atoms * per_atom)}, in {files.trajectory.name}; "
        f"restart every {settings.restart_interval} steps ({_format_size(96 * n_atoms)})",
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def _format_size(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.3g} {unit}"


@contextmanager
def _advise(console: Console) -> Iterator[None]:
    """Say how an interrupted run goes on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.print("stopped; the same command with --restart continues", soft_wrap=True)
        raise


class ShownProgress:
    """A progress bar with ns/day, remaining time and temperature."""

    def __init__(self, console: Console, settings: MDSettings) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("steps", total=settings.n_steps, note="")
        self._temperature = ""

    def __enter__(self) -> ShownProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def update(self) -> Listener:
        """What the run calls after every chunk."""

        def show(step: int, rate: float, row: object) -> None:
            if row is not None:
                self._temperature = f", {row[1]:.0f} K"  # type: ignore[index]
            note = f"{rate:.3g} ns/day{self._temperature}"
            self._bar.update(self._task, completed=step, note=note)

        return show


def _write_record(result: RunResult, settings: MDSettings, model: Path, digest: str | None) -> None:
    """Settings, versions and figures beside the result."""
    import json

    from fastff.checkpoint import write_atomically
    from fastff.report.provenance import collect_provenance

    summary = dataclasses.asdict(result.summary)
    record = {
        "settings": dataclasses.asdict(settings),
        "model": {"file": model.name, "sha256": digest},
        "steps": result.step,
        "steps_of_this_process": result.step - result.first_step,
        "seconds": result.seconds,
        "ns_per_day": result.ns_per_day,
        "list_rebuilds": result.n_rebuilds,
        "frames_outside_training_data": result.n_extrapolations,
        "summary": json.loads(json.dumps(summary).replace("NaN", "null")),
        "provenance": collect_provenance().model_dump(),
    }
    write_atomically(result.files.record, json.dumps(record, indent=1).encode())


def format_average(average: Average, digits: int) -> str:
    """Mean and standard error, the latter where there are rows enough."""
    if math.isnan(average.error):
        return f"{average.mean:.{digits}f}"
    return f"{average.mean:.{digits}f} ± {average.error:.{digits}f}"


def print_verdict(console: Console, result: RunResult, settings: MDSettings, model: Path) -> None:
    """Five lines: length, temperature, drift and pressure, files, next command."""
    s, done = result.summary, result.step - result.first_step
    pressure = ""
    if s.pressure.mean == s.pressure.mean:
        pressure = f", pressure {format_average(s.pressure, 3)} GPa"
    if settings.ensemble == "npt":
        pressure += f", volume {format_average(s.volume, 1)} Å^3"
    rate = f"{result.seconds / done * 1e3:.3g} ms per step, " if done else ""
    per_second = done * len(result.atoms) / result.seconds if result.seconds > 0 else 0.0
    files = result.files
    outside = ""
    if result.n_extrapolations:
        outside = f"; {result.n_extrapolations} frames outside the training data"
    lines = (
        f"[bold]verdict[/]  stable to step {result.step} ({result.step * settings.timestep / 1000:g} ps){outside}",
        f"         temperature {format_average(s.temperature, 1)} K{pressure} (last four fifths)",
        f"         conserved quantity drifts by {s.drift:.3g} meV/atom/ps",
        f"         {rate}{result.ns_per_day:.3g} ns/day, {per_second:.3g} atom-steps/s, "
        f"{result.n_rebuilds} neighbor lists rebuilt; {files.folder}: {files.log.name}, "
        f"{files.trajectory.name}, {files.final.name}",
        f"[bold]next[/]     fastff md {model} {files.final} --velocities file --steps {max(settings.n_steps, 1)}",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
