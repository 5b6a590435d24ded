"""Tables of a bench record as Markdown, for READMEs.

Here: :func:`write_tables`, and the rows that terminal and page show too. Not here: the page
(:mod:`fastff.report.html`), number formats (:mod:`fastff.report.verdict`).
"""

from __future__ import annotations

from fastff.report.schema import BenchRecord
from fastff.report.speed import SpeedPoint, convert_to_ns_per_day
from fastff.report.tables import (
    STATUS_WORDS,
    Table,
    tabulate_baselines,
    tabulate_paths,
    tabulate_physics,
)
from fastff.report.verdict import (
    UNDEFINED,
    format_bytes,
    format_count,
    format_error,
    format_interval,
    format_percent,
    format_ratio,
    format_seconds,
    format_share,
)


def describe_contest(record: BenchRecord) -> str:
    """Title: the material, the student's architecture, the teacher."""
    formulas = ", ".join(record.main.frames.formulas[:3])
    teacher = record.teacher.get("name", "its teacher")
    return f"{formulas}: fastff {record.model.architecture} against {teacher}"


def tabulate_accuracy(record: BenchRecord) -> Table:
    """One row for each comparison and quantity that is defined, with 95 % intervals, then the teacher's noise floor."""
    rows = []
    for comparison in record.comparisons:
        accuracy = comparison.read_accuracy()
        for quantity in ("force", "energy", "stress"):
            value = getattr(accuracy, quantity)
            error = format_error(accuracy, quantity)
            shown = f"{format_percent(value)} {format_interval(accuracy, quantity)}".rstrip()
            rows.append([comparison.name, quantity, shown, error])
    if record.teacher_noise is not None:
        floor = f"self-disagreement {format_share(record.teacher_noise.force)} of RMS force"
        limit = format_percent(1.0 - record.teacher_noise.force, 3)
        rows.append(["teacher's noise floor", "force", limit, floor])
    return ["frames", "quantity", "accuracy", "error"], rows


def tabulate_temperatures(record: BenchRecord) -> Table:
    """One row for each temperature of the frames that decide, relative to the frames of that temperature."""
    rows = [
        [f"{row['temperature']:.0f}", str(row["n_frames"])]
        + [format_percent(row[quantity]) for quantity in ("force", "energy", "stress")]
        for row in record.main.read_accuracy().per_temperature
    ]
    return ["temperature (K)", "frames", "force", "energy", "stress"], rows


def tabulate_speed(record: BenchRecord, *, ranges: bool = True) -> Table:
    """One row for each size: one ASE call of teacher and student, their ratio, throughput and memory.

    ``ranges`` adds the 10 to 90 % range to each median.
    """
    student, teacher = (
        record.find_curve("student", "ase-call"),
        record.find_curve("teacher", "ase-call"),
    )
    headings = [
        "atoms", "teacher", "student", "ratio", "student atom-steps/s", "teacher memory",
        "student memory",
    ]  # fmt: skip
    if student is None or teacher is None:
        return headings, []
    ratios = {r.n_atoms: r.ratio for r in record.ratios if r.mode == "ase-call"}
    rows = []
    for mine in student.points:
        other = teacher.find(mine.n_atoms)
        rows.append(
            [
                str(mine.n_atoms),
                describe_point(other, ranges=ranges),
                describe_point(mine, ranges=ranges),
                format_ratio(ratios.get(mine.n_atoms)),
                format_count(mine.atom_steps_per_second),
                format_bytes(other.peak_memory if other else None),
                format_bytes(mine.peak_memory),
            ]
        )
    return headings, rows


def describe_point(point: SpeedPoint | None, *, ranges: bool = True) -> str:
    """Median, with the 10 to 90 % range if asked for; or why there is none."""
    if point is None:
        return UNDEFINED
    if point.status != "measured":
        return STATUS_WORDS[point.status]
    if not ranges:
        return format_seconds(point.median)
    return f"{format_seconds(point.median)} ({format_seconds(point.q10)} to {format_seconds(point.q90)})"


DYNAMICS = {
    "md-loop": "fastff md step",
    "ase-md": "velocity Verlet step",
    "program": "own program",
    "ase-call": "call, fresh list",
}
"""Modes that say how fast dynamics is, and what the table calls them."""


def tabulate_dynamics(record: BenchRecord) -> Table:
    """Simulated time a day: of whole steps, and of ASE calls with a fresh neighbor list at every size."""
    time_step = next((c.time_step for c in record.speed if c.time_step is not None), None)
    rows = []
    for mode, what in DYNAMICS.items():
        for curve in record.speed:
            for point in curve.points if curve.mode == mode and time_step is not None else ():
                seconds = point.median if mode == "ase-call" else point.mean
                if seconds is None or time_step is None:
                    continue
                speed = convert_to_ns_per_day(seconds, time_step)
                time = format_seconds(seconds)
                rows.append(
                    [
                        curve.label,
                        what,
                        str(point.n_atoms),
                        time,
                        f"{time_step:g} fs",
                        f"{speed:.3g}",
                    ]
                )
    return ["calculator", "timed", "atoms", "time", "time step", "ns/day"], rows


def write_tables(record: BenchRecord) -> str:
    """The record as a short Markdown document: verdict, tables, provenance."""
    provenance = record.provenance
    parts = [
        f"## {describe_contest(record)}",
        "\n".join(f"- {_escape(line)}" for line in record.verdict.lines),
        format_markdown(tabulate_accuracy(record)),
    ]
    if record.baselines:
        parts.append("Beside other models:")
        parts.append(format_markdown(tabulate_baselines(record)))
    if record.physics is not None:
        parts.append(f"Physics of {_escape(record.physics.material)}, the teacher as reference:")
        parts.append(format_markdown(tabulate_physics(record)))
        left = [f"- {i.title}: left out, {_escape(i.reason)}" for i in record.physics.left_out]
        if left:
            parts.append("\n".join(left))
    temperatures = tabulate_temperatures(record)
    if temperatures[1]:
        parts.append("Accuracy by temperature:")
        parts.append(format_markdown(temperatures))
    speed, dynamics = tabulate_speed(record), tabulate_dynamics(record)
    if speed[1]:
        curve = record.find_curve("student", "ase-call")
        assert curve is not None
        parts.append(f"{sentence(curve.includes)}; median (10 to 90 % of the calls):")
        parts.append(format_markdown(speed))
        parts.append("Where the time goes, medians:")
        parts.append(format_markdown(tabulate_paths(record)))
    if dynamics[1]:
        parts.append("Simulated time a day:")
        parts.append(format_markdown(dynamics))
    parts.append(
        f"{provenance.machine}; {', '.join(f'{k} {v}' for k, v in provenance.packages.items())}; "
        f"{provenance.date}; `{provenance.command}`; record {record.digest[:12]}, model {record.model.sha256[:12]}."
    )
    return "\n\n".join(parts) + "\n"


def format_markdown(table: Table) -> str:
    """A Markdown table; first column left, others right aligned."""
    headings, rows = table
    lines = [
        "| " + " | ".join(_escape(h) for h in headings) + " |",
        "|" + "|".join(["---", *["---:"] * (len(headings) - 1)]) + "|",
        *("| " + " | ".join(_escape(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def sentence(text: str) -> str:
    """``text`` with its first letter as a capital, the others as they are."""
    return text[:1].upper() + text[1:]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
