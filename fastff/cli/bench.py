"""``fastff bench``: judge a student against its teacher, or against labels that exist.

Here: the command, the plan and tables it prints, exit codes. Not here: measuring (:mod:`fastff.report.bench`), the
files it leaves (:mod:`fastff.report.html`, :mod:`fastff.report.record`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastff.cli.terminal import DeviceOption, make_console, print_warning, resolve_device
from fastff.errors import AccuracyError, UsageError

if TYPE_CHECKING:
    from ase import Atoms

    from fastff.report.bench import BenchPlan, Progress
    from fastff.report.markdown import Table
    from fastff.report.record import BenchRecord
    from fastff.teachers import Teacher


def bench(
    model: Annotated[
        Path,
        typer.Argument(
            help="Model file written by `fastff train`; or a bench.json, whose page is then rebuilt."
        ),
    ],
    compare_teacher: Annotated[
        bool,
        typer.Option(
            "--compare-teacher",
            help="Run the teacher: fresh held-out dynamics, and timings beside it.",
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Judge accuracy on these labelled frames; needs no teacher."),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            "--structures",
            help="Where held-out dynamics starts and what is timed. [default: the model's own]",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Teacher to compare with. [default: the model's own]"),
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="Weight file of the teacher.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for results. [default: bench beside the model]"),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            "--temperature",
            help="K, as 300 or 300-900. [default: the range the model was trained for]",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Atom counts to time, as 64,500,2000; the one nearest to 500 is always measured.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=2, help="Held-out frames to make.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Steps of teacher dynamics before the first frame."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0.5, help="Seconds of timing for each size and calculator."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="About a minute: fewer frames, sizes and repeats.")
    ] = False,
    require: Annotated[
        float | None,
        typer.Option(
            "--require",
            min=0.0,
            max=1.0,
            help="Accuracy that must be reached, as 0.95; else exit code 6.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace results in an existing folder.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Judge a model: accuracy on frames it has not seen, and speed beside its teacher."""
    from fastff.report.verdict import format_percent

    if model.suffix == ".json":
        rebuild_page(model, out, force=force)
        return
    if labels is None and not compare_teacher:
        raise UsageError("nothing to compare with; add --compare-teacher or --labels FILE")
    if teacher is not None and not compare_teacher:
        raise UsageError(
            "--teacher is only used with --compare-teacher; add it, or leave --teacher out"
        )
    folder = out if out is not None else model.parent / "bench"
    check_folder(folder, force=force)
    plan = make_plan(
        quick=quick, sizes=sizes, frames=frames, steps=steps, budget=budget, require=require,
        device=str(resolve_device(device)),
    )  # fmt: skip
    record = run(model, labels, structures, teacher, teacher_weights, temperature, plan, folder,
                 compare_teacher=compare_teacher)  # fmt: skip
    if record.verdict.passed is False:
        overall = record.main.read_accuracy().overall
        raise AccuracyError(
            f"accuracy {format_percent(overall)} is below the required {format_percent(require)}; "
            "the report says where the error lies"
        )


def run(
    model: Path,
    labels: Path | None,
    structures: Path | None,
    teacher: str | None,
    teacher_weights: Path | None,
    temperature: str | None,
    plan: BenchPlan,
    folder: Path,
    *,
    compare_teacher: bool,
) -> BenchRecord:
    """Print the plan, measure, print the tables and write the results."""
    from fastff.checkpoint import read_header
    from fastff.report.bench import run_bench, write_results
    from fastff.structures import read_structures

    header = read_header(model)
    limits = parse_temperature(temperature) if temperature is not None else None
    seeds = read_structures(structures) if structures is not None else None
    source = load(header, teacher, teacher_weights, plan.device) if compare_teacher else None
    print_plan(model, header, labels, seeds, source, limits, plan)
    with show_progress() as progress:
        result = run_bench(
            model,
            labels=labels,
            structures=seeds,
            teacher=source,
            temperature=limits,
            plan=plan,
            command=["fastff", *sys.argv[1:]],
            progress=progress,
        )
    paths = write_results(result, folder)
    print_results(result.record)
    console = make_console()
    for name in ("report.html", "bench.json"):
        console.print(f"wrote {paths[name]}", style="dim", soft_wrap=True)
    command = result.record.verdict.next_command.replace(model.name, str(model))
    console.print("next:", command, style="bold", markup=False, soft_wrap=True)
    return result.record


def make_plan(
    *,
    quick: bool,
    sizes: str | None,
    frames: int | None,
    steps: int | None,
    budget: float | None,
    require: float | None,
    device: str,
) -> BenchPlan:
    """The default or quick plan with what the user asked for."""
    from dataclasses import replace

    from fastff.report.bench import QUICK_PLAN, BenchPlan

    chosen: dict[str, Any] = {
        "n_frames": frames,
        "n_equilibrate": steps,
        "budget": budget,
        "sizes": parse_sizes(sizes) if sizes is not None else None,
    }
    given = {key: value for key, value in chosen.items() if value is not None}
    return replace(QUICK_PLAN if quick else BenchPlan(), required=require, device=device, **given)


def parse_sizes(text: str) -> tuple[int, ...]:
    """``"64,500"`` as (64, 500).

    Raises
    ------
    UsageError
        Anything but positive whole numbers separated by commas.
    """
    try:
        values = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        values = ()
    if not values or values[0] < 1:
        raise UsageError(f"--sizes {text!r} is not a list of atom counts; write 64,500,2000")
    return values


def parse_temperature(text: str) -> tuple[float, float]:
    """``"300-900"`` as (300, 900), ``"300"`` as (300, 300), K.

    Raises
    ------
    UsageError
        Anything else, or limits that are not positive and ascending.
    """
    try:
        low, high = (float(word) for word in (text.split("-") if "-" in text else (text, text)))
    except ValueError:
        low = high = -1.0
    if not 0.0 < low <= high:
        raise UsageError(f"--temperature {text!r} is not a temperature in K; write 300 or 300-900")
    return low, high


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that holds results or is no folder.

    Raises
    ------
    UsageError
        With ``force``, only if ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --out")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder} exists and is not empty; choose another --out, or add --force")


def load(header: dict[str, Any], spec: str | None, weights: Path | None, device: str) -> Teacher:
    """The teacher asked for, or the one named in the model file.

    Raises
    ------
    UsageError
        The model file names none and none was given.
    """
    from fastff.teachers import load_teacher

    recorded = header.get("teacher") or {}
    name = spec or recorded.get("spec") or recorded.get("name")
    if not name:
        raise UsageError("the model file does not name its teacher; add --teacher NAME")
    return load_teacher(str(name), device=device, weights=weights)


def print_plan(
    model: Path,
    header: dict[str, Any],
    labels: Path | None,
    seeds: list[Atoms] | None,
    teacher: Teacher | None,
    limits: tuple[float, float] | None,
    plan: BenchPlan,
) -> None:
    """Say what will be done and about how many teacher calls it takes, before it starts."""
    from fastff.report.bench import choose_seeds, plan_run

    console = make_console()
    console.print(f"[bold]fastff bench[/bold] {model.name}, on {plan.device}", soft_wrap=True)
    if labels is not None:
        console.print(f"  accuracy  on the frames of {labels}", soft_wrap=True)
    if teacher is None:
        return
    console.print(f"  teacher   {teacher.name}, licence {teacher.info.licence}", soft_wrap=True)
    if labels is None:
        dynamics = plan_run(header, choose_seeds(header, seeds), limits, plan)
        for name, part in dynamics.items():
            console.print(
                f"  {name}: {part.describe()} ({part.n_calls} teacher calls)", soft_wrap=True
            )
    shown = ", ".join(str(size) for size in plan.sizes)
    console.print(
        f"  speed     about {shown} atoms, at most about {plan.budget:g} s each", soft_wrap=True
    )


def print_results(record: BenchRecord) -> None:
    """Accuracy, speed and dynamics as tables, then the verdict."""
    from fastff.report.markdown import tabulate_accuracy, tabulate_dynamics, tabulate_speed

    console = make_console()
    console.print()
    print_table(tabulate_accuracy(record))
    speed = tabulate_speed(record, ranges=False)
    if speed[1]:
        curve = record.find_curve("student", "ase-call")
        assert curve is not None
        console.print(f"\n{curve.includes}", style="dim", soft_wrap=True)
        print_table(speed, highlight=str(record.headline_size))
        console.print()
        headings, rows = tabulate_dynamics(record)
        print_table((headings, [row for row in rows if row[1] == "velocity Verlet step"]))
    for comparison in record.comparisons:
        for note in (*comparison.frames.notes, *comparison.accuracy["notes"]):
            console.print(f"{comparison.name}: {note}", style="dim", soft_wrap=True)
    for note in record.notes:
        print_warning(note)
    color = {None: "cyan", True: "green", False: "red"}[record.verdict.passed]
    console.print()
    for line in record.verdict.lines:
        console.print(f"[{color}]▌[/{color}] {line}", soft_wrap=True)
    console.print()


def print_table(table: Table, highlight: str | None = None) -> None:
    """One table; the row whose first cell is ``highlight`` in bold."""
    from rich.table import Table as RichTable

    headings, rows = table
    grid = RichTable(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        grid.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        grid.add_row(*row, style="bold" if row[0] == highlight else None)
    make_console().print(grid)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar that is told (what, done, total); on anything but a terminal, a line whenever something new begins."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = make_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("starting", total=None)
        last = ""

        def update(message: str, done: int, total: int) -> None:
            nonlocal last
            bar.update(task, description=message, completed=done, total=total)
            if message != last and not console.is_terminal:
                console.print(message, style="dim", soft_wrap=True)
            last = message

        yield update


def rebuild_page(path: Path, out: Path | None, *, force: bool) -> None:
    """Make page and Markdown of a stored record again, beside it or in ``out``."""
    from fastff.report.html import render_report
    from fastff.report.markdown import write_tables
    from fastff.report.record import read_record

    record = read_record(path)
    folder = out if out is not None else path.parent
    if out is not None:
        check_folder(folder, force=force)
        folder.mkdir(parents=True, exist_ok=True)
    name = "report" if path.stem == "bench" else path.stem
    (folder / f"{name}.html").write_text(render_report(record), encoding="utf-8")
    (folder / f"{name}.md").write_text(write_tables(record), encoding="utf-8")
    make_console().print(f"wrote {folder / name}.html and {name}.md", soft_wrap=True)
