"""``fastff merge``: join label files of one teacher.

Here: the command. Not here: the merge (:mod:`fastff.distill.merging`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastff.cli.terminal import make_console


def merge(
    shards: Annotated[list[Path], typer.Argument(help="Label files (.h5) of one teacher.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New label file.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Although shards are absent or unfinished.")
    ] = False,
) -> None:
    """Join label files of one teacher; frames that several hold are kept once."""
    from fastff.distill.merging import merge_labels

    report = merge_labels(shards, out, partial=partial)
    extra = ""
    if report.n_quarantined:
        extra += f", {report.n_quarantined} set aside"
    if report.n_duplicates:
        extra += f"; {report.n_duplicates} duplicates dropped"
    if report.missing:
        extra += f"; missing {'; '.join(report.missing)}"
    make_console().print(
        f"{report.n_frames} frames of {len(shards)} files in {out}{extra}",
        markup=False,
        soft_wrap=True,
    )
