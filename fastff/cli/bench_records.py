"""Records of ``fastff bench`` that exist, and those of kernels.

Here: rebuilding a page, comparing two records, ``--require``, ``--kernels``. Not here: judging a model
(:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastff.cli.bench_options import check_folder
from fastff.cli.bench_view import print_table, show_progress
from fastff.cli.terminal import make_console, print_warning
from fastff.errors import AccuracyError, DataError, UsageError

if TYPE_CHECKING:
    import torch
    import typer

    from fastff.report.kernels import KernelRecord
    from fastff.report.regression import Change, Record
    from fastff.report.schema import BenchRecord

OF_RECORDS = ("model", "against", "require", "out", "force")
"""Parameters of the command that mean something for a record that exists."""

OF_PAGES = ("out", "force")
"""Those of its page alone, which a comparison does not make."""


def check_record_options(context: typer.Context, against: Path | None) -> None:
    """Refuse options that mean nothing for a record that exists, instead of ignoring them.

    Raises
    ------
    UsageError
        One line that names them.
    """
    useful = set(OF_RECORDS) - set(OF_PAGES if against is not None else ())
    given = [
        max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name is not None
        and parameter.name not in useful
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        what = (
            "comparing two records measures and writes nothing"
            if against
            else "a record was measured already"
        )
        raise UsageError(f"{what}; leave out {', '.join(given)}")


def use_record(
    path: Path, against: Path | None, out: Path | None, *, require: float | None, force: bool
) -> None:
    """Compare a record with an earlier one, or make its page; then judge its accuracy, then its speed.

    Raises
    ------
    AccuracyError
        It misses the required accuracy.
    SlowdownError
        It is slower than the earlier one beyond noise.
    UsageError
        An accuracy is required of a record of kernels.
    """
    from fastff.report.kernels import KernelRecord
    from fastff.report.regression import read_any, require_no_slowdown
    from fastff.report.verdict import format_percent

    judged = read_any(path) if require is not None else None
    if isinstance(judged, KernelRecord):
        raise UsageError(
            f"{path} is a record of kernels, which has no accuracy; leave out --require"
        )
    changes: list[Change] = []
    if against is not None:
        changes = compare_records(path, against)
    else:
        rebuild_page(path, out, force=force)
    if judged is not None and require is not None:
        require_accuracy(judged, require)
        overall = format_percent(judged.main.read_accuracy().overall)
        make_console().print(f"accuracy {overall}; required {format_percent(require)}: met")
    require_no_slowdown(changes)


def require_accuracy(record: BenchRecord, required: float | None) -> None:
    """Raise unless a record reaches the accuracy that is required, and is complete.

    Raises
    ------
    AccuracyError
    """
    from fastff.report.verdict import format_percent

    if required is None:
        return
    overall = record.main.read_accuracy().overall
    if overall < required:
        raise AccuracyError(
            f"accuracy {format_percent(overall)} is below the required {format_percent(required)}; "
            "the report says where the error lies"
        )
    if record.ended is not None:
        raise AccuracyError(
            f"the required accuracy {format_percent(required)} is not met by a record that is not "
            f"complete: {record.ended}; give it more time"
        )


def rebuild_page(path: Path, out: Path | None, *, force: bool) -> None:
    """Make page and Markdown of a stored record again, beside it or in ``out``; of kernels there is a table alone."""
    from fastff.report.html import render_report
    from fastff.report.kernels import KernelRecord
    from fastff.report.markdown import write_tables
    from fastff.report.regression import read_any

    record = read_any(path)
    folder = out if out is not None else path.parent
    if out is not None:
        check_folder(folder, force=force)
        folder.mkdir(parents=True, exist_ok=True)
    if isinstance(record, KernelRecord):
        write_kernel_table(record, folder / f"{path.stem}.md")
        make_console().print(f"wrote {folder / path.stem}.md", soft_wrap=True)
        return
    name = "report" if path.stem == "bench" else path.stem
    (folder / f"{name}.html").write_text(render_report(record), encoding="utf-8")
    (folder / f"{name}.md").write_text(write_tables(record), encoding="utf-8")
    make_console().print(f"wrote {folder / name}.html and {name}.md", soft_wrap=True)


def write_kernel_table(record: KernelRecord, path: Path) -> None:
    """The machine and a table of every op as Markdown."""
    from fastff.report.markdown import format_markdown
    from fastff.report.tables import describe_kernels, tabulate_kernels

    text = f"{describe_kernels(record)}\n\n{format_markdown(tabulate_kernels(record))}\n"
    path.write_text(text, encoding="utf-8")


def read_earlier(path: Path, device: str, model: Path | None = None) -> Record:
    """The record of ``--against``, refused before any work is done if it is of another machine or student.

    Without ``model`` it must be a record of kernels.
    """
    from fastff.checkpoint import load_model
    from fastff.report.comparison import describe_model
    from fastff.report.kernels import KernelRecord
    from fastff.report.provenance import collect_provenance
    from fastff.report.regression import check_machines, check_students, read_comparable

    here = collect_provenance()
    described = None if model is None else describe_model(model, load_model(model, device="cpu"))

    def fits(before: Record) -> None:
        if described is not None:
            check_students(before, described)
        elif not isinstance(before, KernelRecord):
            raise DataError("it is a record of a student, not of kernels")
        check_machines(before, here, device)

    return read_comparable(path, fits)


def compare_records(path: Path, against: Path) -> list[Change]:
    """Compare and print the timings of two records."""
    from fastff.report.regression import compare_speed, read_comparable

    after = read_comparable(path)
    before = read_comparable(against, lambda record: _check_comparable(record, after))
    changes = compare_speed(before, after)
    print_changes(changes)
    return changes


def _check_comparable(before: Record, after: Record) -> None:
    """Refuse what :func:`~fastff.report.regression.compare_speed` refuses."""
    from fastff.report.regression import compare_speed

    compare_speed(before, after)


def print_changes(changes: Sequence[Change]) -> None:
    """Every timing then and now, and why there is none now."""
    from fastff.report.verdict import UNDEFINED, format_seconds

    rows = []
    for c in changes:
        cells = [format_seconds(c.after), f"{c.ratio:.2f}"] if c.after else [UNDEFINED, UNDEFINED]
        judged = "slower" if c.slower else "within noise" if c.ratio > 1.0 else "not slower"
        rows.append([c.what, format_seconds(c.before), *cells, c.missing or judged])
    print_table((["timed", "then", "now", "ratio", ""], rows))


def bench_kernels(
    out: Path | None,
    against: Path | None,
    device: torch.device,
    *,
    ops: Sequence[str] | None = None,
    force: bool,
) -> None:
    """Time every op, or some, print the table, write ``kernels.json`` and ``kernels.md``.

    Raises
    ------
    SlowdownError
        Slower than the record of ``against`` beyond noise.
    """
    from fastff.report.kernels import measure_kernels
    from fastff.report.regression import compare_speed, require_no_slowdown
    from fastff.report.tables import describe_kernels, tabulate_kernels

    if out is not None:
        check_folder(out, force=force)
    before = read_earlier(against, str(device)) if against is not None else None
    with show_progress() as progress:
        record = measure_kernels(device, ops=ops, progress=progress)
    console = make_console()
    console.print(f"\n{describe_kernels(record)}", style="dim", soft_wrap=True)
    print_table(tabulate_kernels(record))
    for row in record.rows:
        if row.status == "failed":
            print_warning(f"{row.op}, {row.direction}, {row.variant}: {row.reason}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "kernels.json").write_text(record.model_dump_json(indent=1) + "\n")
        write_kernel_table(record, out / "kernels.md")
        console.print(f"wrote {out / 'kernels.json'} and kernels.md", style="dim", soft_wrap=True)
    if before is not None:
        changes = compare_speed(before, record)
        print_changes(changes)
        require_no_slowdown(changes)
