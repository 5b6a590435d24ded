"""Tables of baselines, of where the time goes, of physics and of kernels.

Here: headings and rows. Not here: accuracy and ASE calls of the two sides (:mod:`fastff.report.markdown`), number
formats (:mod:`fastff.report.verdict`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastff.report.physics.derive import settle_trace
from fastff.report.physics.present import present_physics
from fastff.report.physics.record import NveItem, RdfItem
from fastff.report.physics.rest import UNSTABLE, lacks_minimum
from fastff.report.physics.scatter import (
    LEAST_BLOCKS,
    count_blocks,
    fit_drift_error,
    is_resolved,
    judge_quantity,
)
from fastff.report.verdict import (
    UNDEFINED,
    format_count,
    format_percent,
    format_seconds,
    format_share,
)
from fastff.units import show_number

if TYPE_CHECKING:
    from fastff.report.calibration import CalibrationData
    from fastff.report.kernels import KernelRecord, KernelRow
    from fastff.report.physics.record import AnyItem, EnergyTrace, PhysicsPart, Quantity
    from fastff.report.schema import BenchRecord
    from fastff.report.speed import SpeedPoint

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""

STATUS_WORDS = {
    "out-of-memory": "out of memory",
    "too-large": "too large",
    "too-slow": "too slow",
    "not-run": "not run",
    "failed": "failed",
}

PATHS = {
    "model": "model alone",
    "model-list": "with neighbor list",
    "ase-call": "through ASE",
    "ase-md": "ASE step",
    "md-loop": "fastff md step",
    "program": "own program",
}
"""Modes of timing and what tables call them."""


def tabulate_baselines(record: BenchRecord) -> Table:
    """Student and baselines on the same frames, and one ASE call of each at the headline size."""
    headings = ["model", "frames", "force", "energy", "stress", "force MAE (meV/Å)", "ASE call"]
    rows = []
    judged: list[tuple[str, dict[str, Any] | None]] = [
        (c.name, c.accuracy) for c in record.comparisons
    ]
    entries = [(record.model.name, "student", judged)]
    entries += [
        (b.name, b.name, [(c.name, c.accuracy) for c in b.comparisons]) for b in record.baselines
    ]
    for name, role, judged in entries:
        call, program = (record.find_curve(role, mode) for mode in ("ase-call", "program"))
        curve = call or program
        point = (
            None
            if curve is None or record.headline_size is None
            else curve.find(record.headline_size)
        )
        speed = describe_time(point)
        if call is None and point is not None and point.status == "measured":
            speed += " (a step of its own)"
        for number, (frames, accuracy) in enumerate(judged or [("only timed", None)]):
            cells = [UNDEFINED] * 4
            if accuracy is not None:
                cells = [format_percent(accuracy[k]) for k in ("force", "energy", "stress")]
                cells.append(show_number(1e3 * accuracy["force_mae"]))
            rows.append([name, frames, *cells, speed if number == 0 else ""])
    return headings, rows


def describe_time(point: SpeedPoint | None) -> str:
    """The median, or why there is none."""
    if point is None:
        return UNDEFINED
    return (
        format_seconds(point.median) if point.status == "measured" else STATUS_WORDS[point.status]
    )


def tabulate_paths(record: BenchRecord) -> Table:
    """One row for each calculator and size: the model alone, with list, through ASE, in the dynamics loop."""
    modes = [m for m in PATHS if any(c.mode == m for c in record.speed)]
    headings = ["calculator", "atoms", *(PATHS[m] for m in modes), "best atom-steps/s"]
    rows = []
    labels = dict.fromkeys((c.role, c.label) for c in record.speed)
    for role, label in labels:
        curves = {m: record.find_curve(role, m) for m in modes}
        sizes = sorted({p.n_atoms for c in curves.values() if c is not None for p in c.points})
        for size in sizes:
            points = [None if c is None else c.find(size) for c in curves.values()]
            rates = [
                p.atom_steps_per_second for p in points if p is not None and p.atom_steps_per_second
            ]
            cells = [describe_time(p) for p in points]
            if "model-list" in curves and curves["model-list"] is None:
                call = curves.get("ase-call")
                inside = _describe_inside(None if call is None else call.find(size))
                cells[modes.index("model-list")] = inside
            rows.append([label, str(size), *cells, format_count(max(rates, default=None))])
    return headings, rows


LAUNCHED_ONE_BY_ONE = "neighbor list made anew, energy, forces and virial; no transfers of results"
"""What list and model include in records whose kernels were launched one by one there, and replayed elsewhere."""

REPEATED_CALL = (
    "with fused kernels a student evaluates moved atoms twice, with the list it has, which the same graph finds too "
    "old, and with the new one"
)


def describe_paths(record: BenchRecord) -> list[str]:
    """What each series of :func:`tabulate_paths` includes, as its curves say, by calculator where they differ."""
    lines = []
    for mode, name in PATHS.items():
        included: dict[str, list[str]] = {}
        for curve in record.speed:
            if curve.mode == mode:
                words = curve.includes + (f"; {curve.held}" if curve.held else "")
                if words == LAUNCHED_ONE_BY_ONE and curve.device.startswith("cuda"):
                    words += "; kernels launched one by one, while other series replay a graph: too slow by that"
                included.setdefault(words, []).append(curve.label)
        texts = [
            words if len(included) == 1 else f"{', '.join(dict.fromkeys(labels))}: {words}"
            for words, labels in included.items()
        ]
        if mode == "model" and texts:
            alone = {c.role for c in record.speed if c.mode == mode}
            whole = [c for c in record.speed if c.mode == "ase-call" and c.role not in alone]
            if whole:
                labels = ", ".join(dict.fromkeys(c.label for c in whole))
                texts.append(f"not told apart from the rest of a call: {labels}")
        sizes = _list_sizes(record, mode)
        if mode == "ase-md" and texts and sizes < _list_sizes(record, "ase-call"):
            texts.append(f"timed only at {', '.join(map(str, sorted(sizes)))} atoms")
        if mode == "ase-call" and any(
            c.role == "student" and c.device.startswith("cuda") for c in record.speed
        ):
            texts.append(REPEATED_CALL)
        if texts:
            lines.append(f"{name}: {'; '.join(texts)}.")
    return lines


def _list_sizes(record: BenchRecord, mode: str) -> set[int]:
    """Numbers of atoms that any calculator has a point of."""
    return {p.n_atoms for c in record.speed if c.mode == mode for p in c.points}


def _describe_inside(call: SpeedPoint | None) -> str:
    """What stands for list and model of a calculator that makes its list inside the ASE call: that call."""
    if call is None or call.status != "measured":
        return describe_time(call)
    return f"{format_seconds(call.median)} (in its ASE call)"


def format_number(value: float | None, error: float | None) -> str:
    """Four significant digits, with its standard error if there is one."""
    if value is None:
        return UNDEFINED
    if error is None:
        return show_number(value, 4) if abs(value) >= 1e-4 or value == 0.0 else "< 0.0001"
    return f"{show_number(value)} ± {show_number(error, 1)}"


def describe_difference(part: PhysicsPart, item: AnyItem, quantity: Quantity) -> str:
    """Student over teacher in percent, where both are there and neither is next to nothing, and what is to be known.

    None for conservation of energy: what is compared there is next to nothing on both sides, over times of their own.
    """
    judged = None if isinstance(item, NveItem) else judge_quantity(item, quantity)
    if judged is None:
        return ""
    words = []
    if quantity.teacher is not None:  # the area between two curves is no difference of two numbers
        words.append(f"{round(100.0 * judged.difference, 1) + 0.0:+.1f} %")
    if judged.status in ("within", "beyond"):
        words.append(f"{judged.status} noise")
    elif judged.status == "few":
        words.append(f"not judged, noise from {count_blocks(item)} blocks only")
    if lacks_minimum(part, item):
        words.append(UNSTABLE)
    return ", ".join(words)


def tabulate_physics(record: BenchRecord) -> Table:
    """Every derived quantity of both sides."""
    headings = ["property", "quantity", "unit", "teacher", "student", "difference"]
    if record.physics is None:
        return headings, []
    part = present_physics(record.physics, record.main)
    rows = []
    for item in part.items:
        for q in item.quantities:
            teacher, student = _describe_sides(item, q)
            difference = describe_difference(part, item, q)
            rows.append([item.title, q.name, q.unit, teacher, student, difference])
    return headings, rows


def _describe_sides(item: AnyItem, quantity: Quantity) -> tuple[str, str]:
    """The two numbers with their errors, noise or times."""
    if isinstance(item, NveItem):
        traces = [
            None if t is None else settle_trace(item, t) for t in (item.teacher, item.student)
        ]
        values = (quantity.teacher, quantity.student)
        drift = quantity.name.startswith("drift")
        cells = [_describe_energy(v, t, drift) for v, t in zip(values, traces, strict=True)]
        return cells[0], cells[1]
    value, noise = quantity.student, quantity.student_error
    student = format_number(value, noise)
    if (
        isinstance(item, RdfItem)
        and quantity.unit == "%"
        and value is not None
        and noise is not None
    ):
        blocks = count_blocks(item)
        few = f", from {blocks} blocks only" if blocks < LEAST_BLOCKS else ""
        student = f"{show_number(value, 2)} (noise {show_number(noise, 2)}{few})"
    return format_number(quantity.teacher, quantity.teacher_error), student


def _describe_energy(value: float | None, trace: EnergyTrace | None, drift: bool) -> str:
    """A drift with its standard error and whether it is resolved, or a fluctuation; over how long they were fitted."""
    if trace is None:
        return format_number(value, None)
    error = fit_drift_error(trace) if drift else None
    words = format_number(value, error)
    if drift and error is None:
        words += ", no error bar"
    elif drift and not is_resolved(trace):
        words += ", not resolved"
    return f"{words} (over {trace.times[-1] - trace.times[0]:.3g} ps)"


def tabulate_calibration(data: CalibrationData) -> Table:
    """One row for each set of frames: how often its errors are within the uncertainty, atoms beyond training."""
    rows = [
        [name, str(count), format_percent(one, 0), format_percent(two, 0), format_share(beyond)]
        for name, (count, one, two), beyond in zip(
            data.names, data.list_within(), data.beyond, strict=True
        )
    ]
    headings = [
        "frames",
        "number",
        "within one deviation (68 %)",
        "within two (95 %)",
        "atoms of grade above 1",
    ]
    return headings, rows


def describe_calibration(data: CalibrationData) -> str:
    """Shares of errors within one and two predicted deviations on every set of frames, and where they are few."""
    sets = [
        f"{name} {format_percent(one, 0)} and {format_percent(two, 0)}"
        for name, (_, one, two) in zip(data.names, data.list_within(), strict=True)
    ]
    doubtful = data.list_doubtful()
    judged = (
        f"Not to be trusted on: {'; '.join(doubtful)}; errors there are larger than it says."
        if doubtful
        else "On no set are errors larger than it says, beyond chance."
    )
    offsets = (
        "with any constant offset"
        if data.centered is None
        else "less the constant offset of each composition, as in the accuracy,"
    )
    return (
        f"Uncertainty of the energy, errors {offsets} within one predicted standard deviation "
        f"(68 % expected) and two (95 %): {'; '.join(sets)}. {judged}"
    )


def describe_kernels(record: KernelRecord) -> str:
    """The machine and its ceilings."""
    where = record.provenance
    machine = where.gpu if record.device.startswith("cuda") else where.machine
    return (
        f"{machine}: copies at {show_number(record.bandwidth * 1e-9)} GB/s, float32 products at "
        f"{show_number(record.product_rate * 1e-12)} TFLOP/s; share is that of the floor these set, float32, "
        f"{where.date[:10]}, record {record.digest[:12]}"
    )


def tabulate_kernels(record: KernelRecord) -> Table:
    """One row for each op and direction: time of each variant and its share of what the device could do."""
    rows = []
    for op, direction in dict.fromkeys((row.op, row.direction) for row in record.rows):
        found = {r.variant: r for r in record.rows if (r.op, r.direction) == (op, direction)}
        cells = []
        for variant in ("triton", "compiled", "eager"):
            cells.append(describe_kernel(found[variant]) if variant in found else UNDEFINED)
        rows.append([op, direction, format_count(next(iter(found.values())).rows), *cells])
    headings = [
        "op",
        "direction",
        "rows",
        "Triton (share)",
        "torch.compile (share)",
        "eager (share)",
    ]
    return headings, rows


def describe_kernel(row: KernelRow) -> str:
    """Time and share of the floor, or why there is none."""
    if row.median is None:
        no_gpu = row.variant == "triton" and row.status == "not-run"
        return "needs a GPU" if no_gpu else STATUS_WORDS[row.status]
    return f"{format_seconds(row.median)} ({format_share(row.share)})"
