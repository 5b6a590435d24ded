"""README's table of shipped students, from reports of `fastff bench NAME --compare-teacher`.

Here: one row a report. Not here: other tables, and where they go (``tabulate.py``).
"""

from __future__ import annotations

from pathlib import Path

from tabulate_speed import RESULTS

from fastff.report.fastest import find_only_trial
from fastff.report.record import read_record
from fastff.report.schema import BenchRecord
from fastff.report.speed import Mode
from fastff.report.verdict import format_percent, format_seconds

PATTERN = "*-7net-0-*.json"
"""Records of ``bench/results`` that are reports of shipped students, named after student and machine."""


def tabulate_reports() -> list[str]:
    """Accuracy on fresh teacher dynamics, and speed at the sizes of :func:`find_sizes`."""
    records = [read_record(path) for path in sorted(RESULTS.glob(PATTERN))]
    if not records:
        return []
    torches = sorted({record.provenance.packages["torch"] for record in records})
    lines = [
        "Shipped students in reports of `fastff bench NAME --compare-teacher`, on dynamics that the teacher made for "
        "them; times beside the teacher's with the settings that were fastest in a trial, steps of `fastff md` beside "
        f"the faster of its calls and ASE's steps, torch {' or '.join(torches)}; records "
        "`bench/results/*-7net-0-*.json` (`python bench/tabulate.py --write` makes their pages):",
        "",
        "| student | forces | energy | stress | 1.5 times the highest temperature | ±5 % strain "
        "| machine, its load | atoms | ASE call of the teacher | of the student | step of `fastff md` | commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        main, *others = record.comparisons
        accuracy = main.read_accuracy()
        beyond = {
            key: next((c.read_accuracy() for c in others if key in c.name), None)
            for key in ("highest temperature", "strained")
        }
        start = [
            f"`{record.model.name}` (`{record.model.architecture}`, {record.model.cutoff:g} Å)"
            f"{describe_start(record)}",
            *map(format_percent, (accuracy.force, accuracy.energy, accuracy.stress)),
            *(
                "–" if found is None else f"{format_percent(found.overall)}"
                for found in beyond.values()
            ),
            describe_machine(record),
        ]
        sizes = find_sizes(record)
        for number, n_atoms in enumerate(sizes):
            call = read_time(record, "teacher", "ase-call", n_atoms)
            own = read_time(record, "student", "ase-call", n_atoms)
            step = read_time(record, "student", "md-loop", n_atoms)
            slower = min(call, read_time(record, "teacher", "ase-md", n_atoms, default=call))
            cells = [
                f"{n_atoms:,}",
                format_seconds(call),
                f"{format_seconds(own)} ({call / own:.0f} times)",
                f"{format_seconds(step)} ({slower / step:.0f} times)",
            ]
            cells.append((record.provenance.commit or "?")[:7])
            lines.append(
                f"| {' | '.join([*(start if number == 0 else [''] * len(start)), *cells])} |"
            )
    return lines


def describe_start(record: BenchRecord) -> str:
    """Where dynamics and physics start, if not from a structure of the student's own training (``--structures``)."""
    words = (record.provenance.command or "").split()
    if "--structures" not in words:
        return ""
    return f", from `{Path(words[words.index('--structures') + 1]).name}`"


def describe_machine(record: BenchRecord) -> str:
    """The GPU, if there is one, and how busy the cores were: calls of few atoms are bound by the CPU."""
    where = record.provenance
    name = "CPU" if where.gpu is None else where.gpu.removeprefix("NVIDIA ").split()[0]
    return name if where.load is None else f"{name}, {where.load:.0f} of {where.cores}"


def find_sizes(record: BenchRecord) -> list[int]:
    """The size of the headline, and the largest at which both sides were timed if the teacher was at its best there.

    Records of before 26 November 2026 chose among several settings of the teacher at the size of the headline alone.
    """
    calls = record.find_curve("teacher", "ase-call")
    assert calls is not None
    both = [ratio.n_atoms for ratio in record.ratios if ratio.mode == "ase-call"]
    sizes = {record.headline_size} & set(both)
    if find_only_trial(calls.identity) is None:
        sizes.add(max(both))
    return sorted(size for size in sizes if size is not None)


def read_time(
    record: BenchRecord, role: str, mode: Mode, n_atoms: int, default: float | None = None
) -> float:
    """Seconds of a call (median) or of a step of dynamics.

    Raises
    ------
    LookupError
        It was not measured, and there is no ``default``.
    """
    for curve in record.speed:
        point = curve.find(n_atoms)
        if (curve.role, curve.mode) == (role, mode) and point is not None:
            seconds = point.median if mode == "ase-call" else point.per_step
            if seconds is not None:
                return seconds
    if default is not None:
        return default
    raise LookupError(f"{record.model.name} has no {mode} of the {role} at {n_atoms} atoms")
