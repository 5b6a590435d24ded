"""``fastff models``: the students that come with the package, and the card of any model.

Here: the table. Not here: cards (:mod:`fastff.zoo`), how a student gets there (``bench/zoo.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastff.cli.terminal import make_console

if TYPE_CHECKING:
    from rich.table import Table

    from fastff.zoo import Summary


def models(
    model: Annotated[
        Path | None,
        typer.Argument(help="Print the card of this one: a shipped model's name, or a model file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models that come with fastff, or print the card of one."""
    from dataclasses import asdict

    from fastff.checkpoint import read_header
    from fastff.zoo import list_shipped, render_card, resolve_model, summarize_header

    chosen = [str(model)] if model is not None else list_shipped()
    paths = {name: resolve_model(name) for name in chosen}
    headers = {name: read_header(path) for name, path in paths.items()}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    if model is not None and not as_json:
        (name,) = chosen
        typer.echo(render_card(name, headers[name], sizes[name]), nl=False)
        return
    rows = [summarize_header(name, headers[name], sizes[name]) for name in chosen]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    console = make_console()
    console.width = max(console.width, 100)
    console.print(make_table(rows))
    console.print(
        "\nUse one: fastff md NAME STRUCTURE --time 10ps; its card: fastff models NAME", style="dim"
    )


def make_table(rows: list[Summary]) -> Table:
    """One row a model; accuracy is the smallest of forces, energy and stress on test frames, rounded down."""
    from rich.markup import escape
    from rich.table import Table

    from fastff.zoo.card import format_percent

    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    for heading in ("name", "elements", "student", "teacher", "licence"):
        table.add_column(heading, no_wrap=True)
    for heading in ("K", "accuracy", "kB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        limits = row.temperature
        table.add_row(
            row.name,
            " ".join(row.elements),
            row.student,
            row.teacher or "-",
            escape(row.licence.removesuffix(" License")) or "-",
            f"{limits[0]:g}-{limits[1]:g}" if limits else "-",
            format_percent(row.accuracy),
            f"{row.size / 1000:.0f}",
        )
    return table
