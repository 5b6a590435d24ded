"""What ``fastff bench`` prints.

Here: the plan before a run, tables and verdict after it, progress. Not here: the command (:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fastff.cli.terminal import make_console, print_warning

if TYPE_CHECKING:
    from ase import Atoms

    from fastff.report.baselines import Baseline
    from fastff.report.bench import Progress
    from fastff.report.plan import BenchPlan
    from fastff.report.schema import BenchRecord
    from fastff.report.tables import Table
    from fastff.teachers import Teacher


def print_plan(
    model: Path,
    header: dict[str, Any],
    labels: Path | None,
    seeds: list[Atoms] | None,
    teacher: Teacher | None,
    limits: tuple[float, float] | None,
    plan: BenchPlan,
    baselines: Sequence[Baseline] = (),
    difference: str = "",
) -> None:
    """Say what will be done and about how many teacher calls it takes, before it starts.

    ``difference`` says how the teacher differs from the one that the student was distilled from.
    """
    from fastff.report.plan import choose_seeds, plan_run

    console = make_console()
    console.print(f"[bold]fastff bench[/bold] {model.name}, on {plan.device}", soft_wrap=True)
    if labels is not None:
        console.print(f"  accuracy  on the frames of {labels}", soft_wrap=True)
    if baselines:
        names = ", ".join(baseline.name for baseline in baselines)
        console.print(f"  beside it {names}", soft_wrap=True)
    if teacher is None:
        return
    settings = f" ({teacher.info.settings})" if teacher.info.settings else ""
    console.print(
        f"  teacher   {teacher.name}{settings}, licence {teacher.info.licence}",
        markup=False,
        soft_wrap=True,
    )
    if difference:
        console.print(
            f"  warning: not the teacher that the student was distilled from: {difference}",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    if labels is None:
        dynamics = plan_run(header, choose_seeds(header, seeds), limits, plan)
        for name, part in dynamics.items():
            console.print(
                f"  {name}: {part.describe()} ({part.n_calls} teacher calls)", soft_wrap=True
            )
        if plan.dynamics_budget > 0.0:
            console.print(
                f"            more and longer where the teacher manages that within {plan.dynamics_budget:g} s for all",
                soft_wrap=True,
            )
    if plan.physics != "none":
        limit = "" if plan.physics == "full" else f", at most about {plan.physics_budget:g} s"
        console.print(f"  physics   what fits the structure{limit}", soft_wrap=True)
    shown = ", ".join(str(size) for size in plan.sizes)
    console.print(
        f"  speed     about {shown} atoms, at most about {plan.budget:g} s each", soft_wrap=True
    )


def print_results(record: BenchRecord) -> None:
    """Accuracy, speed and dynamics as tables, then the verdict."""
    from fastff.report.markdown import (
        describe_intervals,
        describe_teacher,
        tabulate_accuracy,
        tabulate_dynamics,
        tabulate_speed,
    )
    from fastff.report.physics.present import present_physics
    from fastff.report.physics.scatter import describe_criterion
    from fastff.report.tables import tabulate_baselines, tabulate_paths, tabulate_physics
    from fastff.report.verdict import list_lines

    console = make_console()
    console.print()
    print_table(tabulate_accuracy(record))
    console.print(describe_intervals(record), style="dim", markup=False, soft_wrap=True)
    if record.baselines:
        console.print()
        print_table(tabulate_baselines(record))
    if record.physics is not None:
        physics = present_physics(record.physics, record.main)
        console.print(f"\nphysics of {physics.material}", style="dim", soft_wrap=True)
        print_table(tabulate_physics(record))
        if words := describe_criterion(physics):
            console.print(words, style="dim", markup=False, soft_wrap=True)
        for item in record.physics.left_out:
            console.print(f"{item.title}: left out, {item.reason}", style="dim", soft_wrap=True)
    speed = tabulate_speed(record, ranges=False)
    if speed[1]:
        curve = record.find_curve("student", "ase-call")
        assert curve is not None
        console.print(f"\n{curve.includes}", style="dim", soft_wrap=True)
        print_table(speed, highlight=str(record.headline_size))
        if record.find_curve("teacher", "ase-call") is not None:
            console.print(describe_teacher(record), style="dim", soft_wrap=True, markup=False)
        console.print()
        print_table(tabulate_paths(record))
        console.print()
        headings, rows = tabulate_dynamics(record)
        print_table((headings, [row for row in rows if row[1] != "call, fresh list"]))
    for comparison in record.comparisons:
        for note in (*comparison.frames.notes, *comparison.accuracy["notes"]):
            console.print(escape(f"{comparison.name}: {note}"), style="dim", soft_wrap=True)
    for note in record.notes:
        print_warning(note)
    color = {None: "cyan", True: "green", False: "red"}[record.verdict.passed]
    console.print()
    for line in list_lines(record):
        console.print(f"[{color}]▌[/{color}] {escape(line)}", soft_wrap=True)
    console.print()


def print_table(table: Table, highlight: str | None = None) -> None:
    """One table; the row whose first cell is ``highlight`` in bold."""
    from rich.table import Table as RichTable

    headings, rows = table
    grid = RichTable(box=None, pad_edge=False, header_style="bold")
    for number, heading in enumerate(headings):
        # names are broken, not cut: two calculators may begin alike
        grid.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(escape, row), style="bold" if row[0] == highlight else None)
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
