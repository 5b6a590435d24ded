"""What ``fastff md`` prints: plan, precision, progress, verdict.

Here: presentation. Not here: options (:mod:`fastff.cli.md`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from ase import Atoms
    from rich.console import Console

    from fastff.md.files import RunFiles
    from fastff.md.run import Listener, RunResult
    from fastff.md.settings import MDSettings
    from fastff.md.summary import Average


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
def show_advice(console: Console) -> Iterator[None]:
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


def format_average(average: Average, digits: int) -> str:
    """Mean and standard error, the latter where there are rows enough."""
    if math.isnan(average.error):
        return f"{average.mean:.{digits}f}"
    return f"{average.mean:.{digits}f} ± {average.error:.{digits}f}"


def print_verdict(console: Console, result: RunResult, settings: MDSettings, model: Path) -> None:
    """Five lines: length, temperature, drift and pressure, files, next command; one more for each op left to torch."""
    from fastff.kernels.dispatch import list_failures

    s, done = result.summary, result.step - result.first_step
    pressure = ""
    if s.pressure.mean == s.pressure.mean:
        pressure = f", pressure {format_average(s.pressure, 3)} GPa"
    if settings.ensemble == "npt":
        pressure += f", volume {format_average(s.volume, 1)} Å^3"
    rate = f"{result.seconds / done * 1e3:.3g} ms per step, " if done else ""
    per_second = done * len(result.atoms) / result.seconds if result.seconds > 0 else 0.0
    files = result.files
    drift = f"conserved quantity drifts by {s.drift:.3g} meV/atom/ps"
    if math.isnan(s.drift):
        drift = f"{s.n_rows} rows in {files.log.name} are too few to tell how the conserved quantity drifts"
    outside = ""
    if result.n_extrapolations:
        outside = f"; {result.n_extrapolations} frames outside the training data"
    left = (
        f"         {op} ran in torch, its kernel failed to compile ({why.reason}); fastff doctor tells more"
        for op, why in list_failures().items()
    )
    lines = (
        f"[bold]verdict[/]  stable to step {result.step} ({result.step * settings.timestep / 1000:g} ps){outside}",
        f"         temperature {format_average(s.temperature, 1)} K{pressure} (last four fifths)",
        f"         {drift}",
        f"         {rate}{result.ns_per_day:.3g} ns/day, {per_second:.3g} atom-steps/s, "
        f"{result.n_rebuilds} neighbor lists rebuilt; {files.folder}: {files.log.name}, "
        f"{files.trajectory.name}, {files.final.name}",
        *left,
        f"[bold]next[/]     fastff md {model} {files.final} --velocities file --steps {max(settings.n_steps, 1)}",
    )
    for line in lines:
        console.print(line, soft_wrap=True)
