"""``fastff md``: molecular dynamics of a structure with a model.

Here: the command and its options. Not here: what it prints (:mod:`fastff.cli.md_view`), the dynamics
(:mod:`fastff.md`).
"""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastff.cli.md_view import ShownProgress, print_plan, print_verdict, show_advice
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
    from ase import Atoms

    from fastff.md.run import RunResult
    from fastff.md.settings import MDSettings

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


class Precision(StrEnum):
    """Precision of matrix products."""

    TF32X3 = "tf32x3"
    TF32 = "tf32"
    IEEE = "ieee"


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
    precision: Annotated[
        Precision,
        typer.Option(
            help="Of matrix products on a GPU; tf32 is a fast mode, whose error is printed."
        ),
    ] = Precision.TF32X3,
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
    from fastff.evaluator import choose_path
    from fastff.kernels.dispatch import list_failures
    from fastff.md.files import plan_files
    from fastff.md.potentials import make_potential
    from fastff.md.restart import find_stored_skin
    from fastff.md.run import simulate
    from fastff.md.skin import settle_skin
    from fastff.memory import keep_freed_memory
    from fastff.precision import DEFAULT, describe_precision
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
        if kept is None:
            settings = settle_skin(student, atoms, settings)
        skin = kept or settings.skin
    settings = dataclasses.replace(settings, skin=skin)
    console = make_console()
    print_plan(console, atoms, settings, files, place)
    remark = describe_precision(student, precision.value, atoms)
    if remark is not None:
        console.print(remark, soft_wrap=True)
    path = choose_path(student, skin=settings.skin).path
    products = precision.value if path == "fused" else DEFAULT
    identity = f"{student.header.get('sha256', '')} {dtype.value}"
    if products != DEFAULT:
        identity += f" {products}"
    with ShownProgress(console, settings) as shown, show_advice(console):
        result = simulate(
            make_potential(student, settings.skin, products), atoms, settings, folder, model=identity,
            trajectory=trajectory, restart=restart, listener=shown.update,
        )  # fmt: skip
    digest = student.header.get("sha256")
    described = {"file": model.name, "sha256": digest, "dtype": dtype.value, "precision": products}
    evaluation: dict[str, Any] = choose_path(student, skin=settings.skin)._asdict()
    failures = {op: failure.reason for op, failure in list_failures().items()}
    evaluation["kernels_that_failed_to_compile"] = failures
    _write_record(result, settings, described, evaluation)
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
    parts = re.split(r"(?<![eE])-", text.replace(" ", "").removesuffix("K"))  # no exponent's sign
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
        if parts[0] == "":
            raise UsageError(f"--temperature {text!r} must not be negative") from None
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


def _write_record(
    result: RunResult,
    settings: MDSettings,
    model: dict[str, str | None],
    evaluation: dict[str, Any],
) -> None:
    """Settings, versions and figures beside the result."""
    import json

    from fastff.checkpoint import write_atomically
    from fastff.report.provenance import collect_provenance

    summary = dataclasses.asdict(result.summary)
    record = {
        "settings": dataclasses.asdict(settings),
        "model": model,
        "evaluation": evaluation,
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
