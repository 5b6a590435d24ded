"""What ``fastff label`` prints: teacher, self-check, plan, progress, verdict.

Here: presentation. Not here: options (:mod:`fastff.cli.label`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastff.cli.terminal import print_error, stop_bar

if TYPE_CHECKING:
    from rich.console import Console

    from fastff.distill.labelling import LabelListener
    from fastff.teachers import Teacher


@contextmanager
def show_labelling(
    console: Console, *, silent: bool, what: str = "labelling"
) -> Iterator[LabelListener]:
    """A listener that prints the teacher, its self-check and the plan, and shows a progress bar."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from fastff.distill.labelling import LabelListener, describe_caveats, describe_check

    if silent:
        yield LabelListener(on_failure=show_failure)
        return
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task(what, total=None)
    info: list[Any] = []

    def show_teacher(teacher: Teacher) -> None:
        info.append(teacher.info)
        print_teacher(console, teacher.info)
        print_caveats(console, describe_caveats(teacher.info))

    def show_check(check: dict[str, Any]) -> None:
        console.print(f"[bold]check[/]    {describe_check(check)}", soft_wrap=True)
        new = describe_caveats(info[0], check)
        print_caveats(console, [text for text in new if text not in describe_caveats(info[0])])

    def show_plan(plan: Any) -> None:
        for number, line in enumerate(str(plan).split("\n")):
            head = "[bold]plan[/]     " if number == 0 else "         "
            console.print(head, end="")
            console.print(line, markup=False, soft_wrap=True)
        if getattr(plan, "n_pending", 1):
            bar.start()

    def show_batch(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

    def stop(text: str) -> None:
        stop_bar(bar)
        show_failure(text)

    try:
        yield LabelListener(show_teacher, show_check, show_plan, show_batch, stop)
    finally:
        stop_bar(bar)


def show_failure(text: str) -> None:
    """Why another process has ended, unless it has said so itself."""
    if text:
        print_error(text)


def print_teacher(console: Console, info: Any) -> None:
    """Name, version, weights and licence of a teacher."""
    console.print(f"[bold]teacher[/]  {info.name} ({info.version})", soft_wrap=True)
    parts = [f"licence {info.licence}"]
    if info.weights:
        parts.insert(0, f"weights {info.weights}")
    if info.weights_sha256:
        parts.insert(1, f"SHA-256 {info.weights_sha256[:12]}...")
    console.print("         " + ", ".join(parts), markup=False, soft_wrap=True)
    for note in info.notes:
        console.print(f"         {note}", markup=False, soft_wrap=True)


def print_caveats(console: Console, caveats: Sequence[str]) -> None:
    """What speaks against taking the labels as they are."""
    for text in caveats:
        console.print(f"         {text}", style="yellow", markup=False, soft_wrap=True)


def print_verdict(
    console: Console,
    what: str,
    out: Path,
    n_frames: int,
    n_quarantined: int,
    record: dict[str, Any],
    *,
    teacher: Any = None,
) -> None:
    """What was labelled, what the file holds, what the teacher is worth, next command."""
    from fastff.distill.labelling import describe_caveats, describe_check

    console.print("[bold]verdict[/]  ", end="")
    console.print(what, markup=False, soft_wrap=True)
    aside = f", {n_quarantined} set aside" if n_quarantined else ""
    console.print(f"         {out} holds {n_frames} frames{aside}", markup=False, soft_wrap=True)
    check = record.get("self_check")
    if check:
        console.print(f"         self-check: {describe_check(check)}", soft_wrap=True)
    if teacher is not None:
        print_caveats(console, describe_caveats(teacher, check))
    console.print(f"next     fastff labels {out}; fastff train --labels {out}", soft_wrap=True)
