"""``fastff teachers``: which teachers there are, and what each still needs on this machine.

Here: the table. Not here: what is in it (:mod:`fastff.teachers`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fastff.cli.terminal import make_console

if TYPE_CHECKING:
    from fastff.teachers import TeacherStatus

LEAST_WIDTH = 80
"""Characters of a row; a narrower terminal breaks it."""


def teachers(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the teachers: installed or not, weights, licence, elements, how to install."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from fastff.teachers import list_teachers

    rows = list_teachers()
    console = make_console()
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for heading in ("teacher", "package", "weights", "forces"):
        table.add_column(heading, no_wrap=True)
    table.add_column("licence", overflow="fold", min_width=8)
    table.add_column("elements", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            (row.version or "yes") if row.installed else "[red]no[/red]",
            "yes" if row.weights_present else "[red]no[/red]",
            "-dE/dr" if row.conservative else "[yellow]direct[/yellow]",
            escape(row.licence.removesuffix(" License").replace("-or-later", "+")),
            str(row.n_elements) if row.n_elements else "-",
        )
    console.width = max(console.width, LEAST_WIDTH)
    console.print(table)
    for hint, names in collect_hints(rows).items():
        console.print(f"\nTo get {', '.join(names)}: {hint}", markup=False, soft_wrap=True)
    console.print("\nUse one: fastff train --teacher NAME --structures FILE", style="dim")


def collect_hints(rows: Sequence[TeacherStatus]) -> dict[str, list[str]]:
    """What to do about each teacher that is not ready: hint -> names."""
    hints: dict[str, list[str]] = {}
    for row in rows:
        if not (row.installed and row.weights_present):
            hints.setdefault(row.install_hint, []).append(row.name)
    return hints
