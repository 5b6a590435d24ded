"""``fastff labels``: what a file of labelled frames holds, and whether it can be trained on.

Here: the command and its table; setting frames aside, writing other formats. Not here: the checks
(:mod:`fastff.distill.validate`), reading and writing (:mod:`fastff.distill.formats`, :mod:`fastff.distill.export`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastff.cli.label_keys import LabelKeyOption, read_label_keys
from fastff.cli.terminal import make_console
from fastff.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fastff.distill.formats import LabelledSet
    from fastff.distill.validate import ValidationReport


def labels(
    file: Annotated[
        Path,
        typer.Argument(help="Label file (.h5), extxyz, traj, ase.db, npz, OUTCAR or vasprun.xml."),
    ],
    quarantine: Annotated[
        bool,
        typer.Option("--quarantine", help="Set the frames found doubtful aside, in a .h5 file."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with code 4 if anything is found.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the sound frames as .xyz, .db or .h5.")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Write those alone that are for testing only.")
    ] = False,
    label_key: LabelKeyOption = None,
) -> None:
    """Check labelled frames: broken numbers, outliers, wrong units or sign, duplicates."""
    from fastff.distill.export import write_labels
    from fastff.distill.formats import LabelKeys, group_unnamed, read_labels
    from fastff.distill.jobs import SHARD
    from fastff.distill.merging import quarantine_frames
    from fastff.distill.validate import validate_frames
    from fastff.errors import DataError

    is_store = file.suffix.lower() in (".h5", ".hdf5")
    if quarantine and not is_store:
        raise UsageError(
            f"--quarantine works in label files; first `fastff labels {file} --export NEW.h5`"
        )
    if held_out and export is None:
        raise UsageError("--held-out chooses what is written; give --export FILE, too")
    found = read_labels(file, LabelKeys(**read_label_keys(label_key)), group=False)
    report = validate_frames(group_unnamed(found).frames)
    console = make_console()
    print_summary(console, file, found, read_record(file) if is_store else {})
    if report.findings:
        console.print(make_table(report))
    else:
        console.print("findings  none", style="green")
    doubtful = {
        index: finding.check for finding in reversed(report.findings) for index in finding.frames
    }
    if quarantine and doubtful:
        outcome = quarantine_frames(file, doubtful)
        console.print(
            f"set {len(doubtful)} frames aside; {outcome.n_frames} are left in {file}",
            soft_wrap=True,
        )
    if export is not None:
        kept = [
            frame
            for index, frame in enumerate(found.frames)
            if not (quarantine and index in doubtful)
            and (frame.trajectory in found.held_out or not held_out)
        ]
        if held_out and not kept:
            raise DataError(f"{file}: no frames to write; none is marked as held out for testing")
        record = {key: value for key, value in found.record.items() if key != SHARD}
        write_labels(export, kept, found.teacher, found.held_out, record)
        console.print(f"wrote {len(kept)} frames to {export}", soft_wrap=True)
    if strict and (report.findings or found.quarantined):
        names = [finding.check for finding in report.findings]
        names += ["frames set aside"] if found.quarantined else []
        raise DataError(f"{file}: {', '.join(names)}; see the table")


def read_record(path: Path) -> dict[str, Any]:
    """What a label file records besides its teacher."""
    from fastff.distill.store import LabelStore

    with LabelStore(path) as store:
        return {**store.record, "n_hessian_vectors": store.n_hessian_vectors}


def print_summary(console: Console, path: Path, found: LabelledSet, record: dict[str, Any]) -> None:
    """Counts, teacher, and what is recorded."""
    from collections import Counter

    from fastff.distill.labelling import describe_caveats, describe_check

    frames = found.frames
    formulas = Counter(frame.atoms.get_chemical_formula() for frame in frames)
    listed = ", ".join(f"{count} {formula}" for formula, count in formulas.most_common(4))
    more = f" and {len(formulas) - 4} more compositions" if len(formulas) > 4 else ""
    lines = [
        f"file      {path}: {len(frames)} frames ({listed}{more}), {len(found.quarantined)} set aside",
        f"          {sum(frame.labels.stress is not None for frame in frames)} with stress, "
        f"{sum(frame.labels.energies is not None for frame in frames)} with per-atom energies, "
        f"{record.get('n_hessian_vectors', 0)} with Hessian-vector targets, "
        f"{sum(frame.trajectory in found.held_out for frame in frames)} held out",
    ]
    teacher = found.teacher
    if teacher:
        lines.append(
            f"teacher   {teacher.get('name', 'unknown')} ({teacher.get('version', 'unknown')}), licence "
            f"{teacher.get('licence', 'unknown')}"
        )
        lines += [f"          {note}" for note in teacher.get("notes", ())]
    else:
        lines.append("teacher   not recorded")
    if record.get("self_check"):
        lines.append(f"check     {describe_check(record['self_check'])}")
    lines += [f"          {text}" for text in describe_caveats(teacher, record.get("self_check"))]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    for _, reason in found.quarantined[:5]:
        console.print(f"          set aside: {reason}", markup=False, soft_wrap=True)


def make_table(report: ValidationReport) -> Table:
    """Findings, one a row."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("finding", "severity"):
        table.add_column(heading, no_wrap=True)
    table.add_column("frames", justify="right")
    table.add_column("first", justify="right")
    table.add_column("what it means", overflow="fold")
    for finding in report.findings:
        frames = finding.frames
        table.add_row(
            finding.check,
            finding.severity,
            str(len(frames)) if frames else "all",
            str(frames[0]) if frames else "-",
            finding.hint,
        )
    return table
