"""Tables of a bench record as Markdown, for READMEs.

Here: :func:`write_tables`, and the rows that terminal and page show too. Not here: the page
(:mod:`fastff.report.html`), number formats (:mod:`fastff.report.verdict`).
"""

from __future__ import annotations

from fastff.report.fastest import describe_settings, find_only_trial, find_untried_span
from fastff.report.physics.present import present_physics
from fastff.report.physics.rest import list_symmetries
from fastff.report.physics.scatter import describe_criterion
from fastff.report.schema import BenchRecord
from fastff.report.speed import Mode, SpeedPoint, convert_to_ns_per_day, find_ratio_range
from fastff.report.tables import (
    STATUS_WORDS,
    Table,
    describe_calibration,
    describe_paths,
    tabulate_baselines,
    tabulate_calibration,
    tabulate_paths,
    tabulate_physics,
)
from fastff.report.verdict import (
    UNDEFINED,
    describe_method,
    format_bytes,
    format_count,
    format_error,
    format_interval,
    format_percent,
    format_ratio,
    format_seconds,
    format_share,
    list_lines,
)
from fastff.units import EV_PER_A3_TO_GPA, show_formula, show_number


def describe_contest(record: BenchRecord) -> str:
    """Title: the material, the student's architecture, the teacher."""
    formulas = ", ".join(map(show_formula, record.main.frames.formulas[:3]))
    teacher = record.teacher.get("name", "its teacher")
    return f"{formulas}: fastff {record.model.architecture} against {teacher}"


def describe_teacher(record: BenchRecord) -> str:
    """How the teacher was set up when it was timed; empty if it was not."""
    curve = record.find_curve("teacher", "ase-call")
    return "" if curve is None else describe_settings(curve.identity)


def describe_doubt(record: BenchRecord) -> str:
    """What limits ratios where settings of the teacher were compared at one size alone; empty where they were not."""
    curve = record.find_curve("teacher", "ase-call")
    n_atoms = None if curve is None else find_only_trial(curve.identity)
    return "" if n_atoms is None else f", with the settings that were fastest at {n_atoms:,} atoms"


MARK = "*"
"""Of ratios at sizes where settings of the teacher were not compared."""


def find_mark(record: BenchRecord, n_atoms: int) -> str:
    """:data:`MARK` where settings of the teacher were not compared at this size and others may win, else nothing."""
    curve = record.find_curve("teacher", "ase-call")
    if curve is None:
        return ""
    only, span = find_only_trial(curve.identity), find_untried_span(curve.identity)
    apart = only not in (None, n_atoms) or (span is not None and span[0] < n_atoms < span[1])
    return MARK if apart else ""


def describe_mark(record: BenchRecord) -> str:
    """What :data:`MARK` stands for in the table of speed; empty where it is not there."""
    curve = record.find_curve("teacher", "ase-call")
    marked = any(find_mark(record, r.n_atoms) for r in record.ratios if r.mode == "ase-call")
    if curve is None or not marked:
        return ""
    span = find_untried_span(curve.identity)
    if span is None:
        where = f"settings chosen at {find_only_trial(curve.identity):,} atoms only"
    else:
        where = f"at {span[0]:,} and {span[1]:,} atoms different settings won, and none were compared in between"
    return f"{MARK} {where}; the teacher may be faster here with others."


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


def describe_intervals(record: BenchRecord) -> str:
    """What the intervals beside the accuracies are, for each comparison."""
    said = [
        f"{c.name}: {describe_method(c.read_accuracy(), c.frames.n_trajectories)}"
        for c in record.comparisons
    ]
    return f"{sentence('; '.join(said))}."


def tabulate_temperatures(record: BenchRecord) -> Table:
    """One row for each temperature of the frames that decide, relative to the frames of that temperature."""
    rows = [
        [
            "unknown" if row["temperature"] is None else f"{row['temperature']:.0f}",
            str(row["n_frames"]),
        ]
        + [format_percent(row[quantity]) for quantity in ("force", "energy", "stress")]
        + [
            *(
                UNDEFINED if row.get(name) is None else show_number(factor * row[name])
                for name, factor in (("force_rms", 1e3), ("stress_rms", EV_PER_A3_TO_GPA))
            ),
        ]
        for row in record.main.read_accuracy().per_temperature
    ]
    sizes = ["RMS force (meV/Å)", "RMS stress (GPa)"]
    return ["temperature (K)", "frames", "force", "energy", "stress", *sizes], rows


def tabulate_speed(record: BenchRecord, *, ranges: bool = True) -> Table:
    """One row for each size: one ASE call of teacher and student, their ratio, throughput and memory.

    The ratio has its spread, and a mark where :func:`describe_mark` limits it; ``ranges`` adds the 10 to 90 % range to
    each median.
    """
    student, teacher = (
        record.find_curve("student", "ase-call"),
        record.find_curve("teacher", "ase-call"),
    )
    headings = [
        "atoms", "teacher", "student", "ratio", "student atom-steps/s", "teacher memory",
        "student memory",
    ]  # fmt: skip
    if student is None:
        return headings, []
    ratios = {r.n_atoms: r.ratio for r in record.ratios if r.mode == "ase-call"}
    rows = []
    for mine in student.points:
        other = None if teacher is None else teacher.find(mine.n_atoms)
        ratio = ratios.get(mine.n_atoms)
        rows.append(
            [
                str(mine.n_atoms),
                describe_point(other, ranges=ranges),
                describe_point(mine, ranges=ranges),
                f"{format_ratio(ratio)}{find_mark(record, mine.n_atoms)} ({describe_range(record, mine.n_atoms)})"
                if ratio
                else UNDEFINED,
                format_count(mine.atom_steps_per_second),
                describe_memory(other),
                describe_memory(mine),
            ]
        )
    return headings, rows


MOST_OFFSETS = 3
"""Offsets that are named, the largest."""


def describe_offsets(record: BenchRecord) -> str:
    """The constants between the energies of both sides, which no accuracy counts, of the held-out frames."""
    offsets = record.main.read_accuracy().energy_offsets
    largest = sorted(offsets.items(), key=lambda entry: -abs(entry[1]))[:MOST_OFFSETS]
    shown = ", ".join(
        f"{show_formula(name)} {show_number(1e3 * value, sign='+')} meV/atom"
        for name, value in largest
    )
    rest = f"; the largest of {len(offsets)}" if len(offsets) > len(largest) else ""
    return (
        f"Offsets of the energy that were taken out, student less teacher: {shown}{rest}. They matter where energies "
        "of different compositions are compared."
    )


def describe_range(record: BenchRecord, n_atoms: int, *, slower: bool = False) -> str:
    """Spread of the ratio of ASE calls at a size where both sides were measured; its inverse if ``slower``."""
    sides = [record.find_curve(role, "ase-call") for role in ("teacher", "student")]
    teacher, student = (curve.find(n_atoms) if curve is not None else None for curve in sides)
    if teacher is None or student is None:
        return UNDEFINED
    low, high = find_ratio_range(teacher, student)
    if slower:
        low, high = 1.0 / high, 1.0 / low
    return f"{format_ratio(low)} to {format_ratio(high)}"


def describe_point(point: SpeedPoint | None, *, ranges: bool = True) -> str:
    """Median, with the 10 to 90 % range if asked for; or why there is none."""
    if point is None:
        return UNDEFINED
    if point.status != "measured":
        return STATUS_WORDS[point.status]
    if not ranges:
        return format_seconds(point.median)
    low, high = format_seconds(point.q10), format_seconds(point.q90)
    number, unit = low.split()
    return (
        f"{format_seconds(point.median)} ({number if high.endswith(f' {unit}') else low} to {high})"
    )


def describe_memory(point: SpeedPoint | None) -> str:
    """Peak memory of a measured point."""
    if point is None or point.status != "measured":
        return UNDEFINED
    return "not measured" if point.peak_memory is None else format_bytes(point.peak_memory)


DYNAMICS: dict[Mode, str] = {
    "md-loop": "fastff md step",
    "ase-md": "velocity Verlet step",
    "program": "own program",
    "ase-call": "call, fresh list",
}
"""Modes that say how fast dynamics is, and what the table calls them."""


def tabulate_dynamics(record: BenchRecord) -> Table:
    """Simulated time a day by size: of whole steps, and of ASE calls with a fresh neighbor list.

    The last column is over the faster of the teacher's steps and calls at that size.
    """
    time_step = next((c.time_step for c in record.speed if c.time_step is not None), None)
    if time_step is None:
        return ["atoms", "timed", "calculator", "time", "ns/day", "against teacher"], []
    found = [
        (point.n_atoms, number, curve, point.median if mode == "ase-call" else point.per_step)
        for number, mode in enumerate(DYNAMICS)
        for curve in record.speed
        if curve.mode == mode
        for point in curve.points
    ]
    timed = [(n, number, curve, t) for n, number, curve, t in found if t is not None]
    best: dict[int, float] = {}
    for n_atoms, _, curve, seconds in timed:
        if curve.role == "teacher":
            best[n_atoms] = min(seconds, best.get(n_atoms, seconds))
    rows = [
        [
            str(n_atoms),
            DYNAMICS[curve.mode],
            curve.label,
            format_seconds(seconds),
            show_number(convert_to_ns_per_day(seconds, time_step)),
            format_ratio(best[n_atoms] / seconds if n_atoms in best else None),
        ]
        for n_atoms, _, curve, seconds in sorted(timed, key=lambda row: row[:2])
    ]
    headings = ["atoms", "timed", "calculator", "time", f"ns/day, {time_step:g} fs"]
    return [*headings, "against teacher"], rows


def write_tables(record: BenchRecord) -> str:
    """The record as a short Markdown document: verdict, tables, provenance."""
    provenance = record.provenance
    parts = [
        f"## {describe_contest(record)}",
        "\n".join(f"- {_escape(line)}" for line in list_lines(record)),
        format_markdown(tabulate_accuracy(record)),
        _escape(describe_intervals(record)),
        _escape(describe_offsets(record)),
    ]
    if record.baselines:
        parts.append("Beside other models:")
        parts.append(format_markdown(tabulate_baselines(record)))
    if record.physics is not None:
        physics = present_physics(record.physics, record.main)
        parts.append(f"Physics of {_escape(physics.material)}, the teacher as reference:")
        parts.append(format_markdown(tabulate_physics(record)))
        notes = (describe_criterion(physics), list_symmetries(physics))
        parts += [_escape(note).rstrip(".") + "." for note in notes if note]
        left = [f"- {i.title}: left out, {_escape(i.reason)}" for i in record.physics.left_out]
        if left:
            parts.append("\n".join(left))
    if record.calibration is not None:
        parts.append(_escape(describe_calibration(record.calibration)))
        parts.append(format_markdown(tabulate_calibration(record.calibration)))
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
        if describe_mark(record):
            parts.append(f"\\{describe_mark(record)}")
        if record.find_curve("teacher", "ase-call") is not None:
            parts.append(_escape(describe_teacher(record)))
        parts.append("Where the time goes, medians of what each column includes:")
        parts.append("\n".join(f"- {_escape(line)}" for line in describe_paths(record)))
        parts.append(format_markdown(tabulate_paths(record)))
    if dynamics[1]:
        parts.append(
            "Simulated time a day, and how many times the faster of the teacher's calls and steps at that size"
            f"{describe_doubt(record)}:"
        )
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
