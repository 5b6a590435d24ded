"""``fastff check``: the physics gate on a model file, or on the calculator of a teacher.

Here: the command, its table, its record, the stamp in the model file. Not here: the tests and their limits
(:mod:`fastff.testing`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastff.cli.terminal import DeviceOption, DType, make_console, resolve_device
from fastff.errors import AccuracyError, UsageError

if TYPE_CHECKING:
    from ase import Atoms
    from rich.table import Table

    from fastff.models import Student
    from fastff.testing import CheckReport

MAX_STRUCTURES = 8
"""Most structures taken from a file; the tests ask for thousands of energies of each."""

SEED_ATOMS = 64
"""Largest structure of a model's own header that is checked too."""

USUAL_TEMPERATURE = 300.0
"""K, of the dynamics of what says nothing of temperatures."""

MOVING_ATOMS = 256
"""Largest one for the dynamics, which take hundreds of energies instead of thousands."""


def check(
    model: Annotated[
        Path,
        typer.Argument(
            help="Model file written by `fastff train`, the name of a shipped one (`fastff models`), or any ASE "
            "calculator: ase:package.module:Name, or a teacher's name (`fastff teachers`)."
        ),
    ],
    structures: Annotated[
        Path | None,
        typer.Option(
            "--structures",
            help=f"Check on these too (any format of ASE, at most {MAX_STRUCTURES}); a calculator needs some.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every measured value here.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Dynamics of 20 ps instead of 0.5 ps.")
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", min=1.0, help="K, of the dynamics; else the model's highest."
        ),
    ] = None,
    stamp: Annotated[
        bool, typer.Option("--stamp/--no-stamp", help="Record the outcome in the model file.")
    ] = True,
    device: DeviceOption = "auto",
    precision: Annotated[
        DType | None,
        typer.Option(
            "--precision",
            help="In which a calculator computes: its limits. Default: a teacher's own, else float64.",
        ),
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(
            "--cutoff",
            min=0.1,
            help="Å; how far a calculator's atoms see. Without it its range is not tested.",
        ),
    ] = None,
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-option",
            help="KEY=VALUE for the calculator, such as rc=6.0; may be repeated.",
        ),
    ] = None,
) -> None:
    """Test that a model obeys physics: forces, symmetries, range, dynamics. Exit code 6 if it does not."""
    if json_file is not None:
        from fastff.cli.predict import check_output

        check_output(json_file, force=True)
    if is_calculator(model):
        check_foreign(
            str(model),
            structures,
            json_file,
            device=device,
            options=teacher_option or (),
            precision=None if precision is None else precision.value,
            cutoff=cutoff,
            temperature=temperature or USUAL_TEMPERATURE,
            full=full,
        )
        return
    if cutoff is not None or teacher_option or precision is not None:
        raise UsageError(
            f"--cutoff, --precision and --teacher-option are for calculators, and {model} is a model file; "
            "leave them out"
        )

    from fastff.checkpoint import load_model, stamp_header
    from fastff.testing import check_student
    from fastff.zoo import find_shipped, resolve_model

    shipped = find_shipped(model) is not None
    stamp = stamp and not shipped
    student = load_model(model, device=resolve_device(device))
    named = choose_structures(student, structures)
    kelvin = temperature or choose_temperature(student.header)
    console = make_console()
    with console.status("checking"):
        report = check_student(
            student,
            named,
            moving=named or read_seeds(student, MOVING_ATOMS),
            path=resolve_model(model),
            temperature=kelvin,
            full=full,
        )
    record = describe_run(report, student, full=full, temperature=kelvin, names=list(named))
    if json_file is not None:
        write_record(json_file, record)
    if stamp:
        stamp_header(model, {"check": record})
    done = "recorded in the model file" if stamp else "not recorded"
    if shipped:
        done += ", as shipped models stay as they are"
    show_report(report, str(model), len(named) + 4, done)


def is_calculator(model: Path) -> bool:
    """Whether the name of a teacher was given and not that of a file, which wins."""
    from fastff.teachers import is_known

    return is_known(str(model)) and not model.exists()


def check_foreign(
    spec: str,
    structures: Path | None,
    json_file: Path | None,
    *,
    device: str,
    options: Sequence[str],
    precision: Literal["float64", "float32"] | None,
    cutoff: float | None,
    temperature: float,
    full: bool,
) -> None:
    """Measure what can be seen of a calculator from outside.

    Raises
    ------
    UsageError
        If no structures are given.
    AccuracyError
        If a check fails.
    """
    from fastff.cli.train import read_options
    from fastff.teachers import load_teacher
    from fastff.testing import check_calculator

    if structures is None:
        raise UsageError(
            f"{spec} is a calculator, whose elements are not known; say with --structures what to check it on"
        )
    named = name_structures(structures)
    teacher = load_teacher(spec, device=device, options=read_options(options))
    if precision is None:
        usual = next((setting.values for setting in teacher.list_settings()[0]), {})
        precision = "float32" if usual.get("dtype") == "float32" else "float64"
    calculator = teacher.calculator()
    how = {"precision": precision, "cutoff": cutoff, "temperature": temperature, "full": full}
    with make_console().status("checking"):
        report = check_calculator(
            calculator,
            named,
            precision=precision,
            cutoff=cutoff,
            temperature=temperature,
            full=full,
        )
    if json_file is not None:
        what = {"calculator": spec, "options": list(options), "structures": list(named)}
        write_record(json_file, describe_report(report, **how, **what))
    show_report(report, spec, len(named), "not recorded" if json_file is None else "recorded")


def show_report(report: CheckReport, name: str, n_structures: int, done: str) -> None:
    """Print table and verdict.

    Raises
    ------
    AccuracyError
        If a check failed.
    """
    console = make_console()
    console.print(make_table(report))
    skipped = len({check.test for check in report.summarize() if check.status == "n/a"})
    console.print(
        f"{len(report.checks)} checks on {n_structures} structures, {len(report.failures)} failed, "
        f"{skipped} tests not applicable; {done}",
        soft_wrap=True,
    )
    if not report.passed:
        failed = [row.test for row in report.summarize() if row.status == "fail"]
        raise AccuracyError(
            f"{name} fails {len(report.failures)} physics checks ({', '.join(failed)}); "
            "do not use it for dynamics"
        )


def choose_structures(student: Student, path: Path | None) -> dict[str, Atoms]:
    """Structures of a file, else one of those the model was made from if it is small, by name."""
    return read_seeds(student, SEED_ATOMS) if path is None else name_structures(path)


def name_structures(path: Path) -> dict[str, Atoms]:
    """The first structures of a file, by name."""
    from fastff.structures import read_structures

    frames = read_structures(path)[:MAX_STRUCTURES]
    return {f"{path.name} {k}": atoms for k, atoms in enumerate(frames)}


def read_seeds(student: Student, most: int) -> dict[str, Atoms]:
    """The first of the structures in the model's header that have two to ``most`` atoms, by name; else none."""
    from fastff.structures import read_header_structures

    small = [atoms for atoms in read_header_structures(student.header) if 1 < len(atoms) <= most]
    return {f"seed {atoms.get_chemical_formula()}": atoms for atoms in small[:1]}


def choose_temperature(header: dict[str, Any]) -> float:
    """Highest temperature, K, of the labels that a model was trained on, between 50 and 3000; 300 if unknown."""
    limits = header.get("temperature")
    return min(max(float(limits[-1]), 50.0), 3000.0) if limits else USUAL_TEMPERATURE


def describe_run(
    report: CheckReport, student: Student, *, full: bool, temperature: float, names: list[str]
) -> dict[str, Any]:
    """JSON-able record of a gate: every check, when, with what, on which model."""
    return describe_report(
        report,
        full=full,
        temperature=temperature,
        structures=names,
        device=student.device.type,
        model_sha256=student.header.get("sha256"),
    )


def describe_report(report: CheckReport, **how: Any) -> dict[str, Any]:
    """Every check, how they were made, and when."""
    from datetime import UTC, datetime

    from fastff import __version__

    return {
        **report.to_dict(),
        **how,
        "fastff_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, with the machine and versions it is of, replacing ``path`` in one step."""
    from fastff.checkpoint import write_atomically
    from fastff.report.provenance import collect_provenance

    record = record | {"provenance": collect_provenance().model_dump(mode="json")}
    write_atomically(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def make_table(report: CheckReport) -> Table:
    """One row for each test, with the structure on which it came out worst."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("test", "measured", "limit", "unit", "", "worst on"):
        table.add_column(heading, justify="right" if heading in ("measured", "limit") else "left")
    styles = {"pass": "green", "fail": "bold red", "n/a": "dim"}
    for row in report.summarize():
        applies = row.value is not None
        table.add_row(
            row.test,
            f"{row.value:.1e}" if applies else "-",
            f"{row.limit:.0e}" if applies else "-",
            row.unit,
            Text(row.status, style=styles[row.status]),
            ", ".join(word for word in (row.structure, row.reason) if word),
        )
    return table
