"""README's tables of speed, from the records of runs on GPUs in ``bench/results``.

Here: kernels, ops, dynamics, races with other programs. Not here: students, and where tables go (``tabulate.py``).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fastff.report.kernels import read_kernels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def read_result(*parts: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RESULTS.joinpath(*parts).read_text())
    return content


KINDS = {
    "`m1`": (1, 16, 0), "`m2`": (2, 16, 0), "`m2-l`": (2, 32, 0),
    "`m2` with directed messages": (2, 16, 1), "`m2-l` with directed messages": (2, 32, 1), "`m3-l`": (3, 64, 1),
}  # fmt: skip
"""Hops, channels and degree of the messages of students, by what their rows are called."""


def find_kind(row: dict[str, Any]) -> tuple[int, int, int]:
    """One of :data:`KINDS` of a row; messages were scalars before rows said of what degree they are."""
    return row["hops"], row["channels"], row.get("message_degree", 0)


def tabulate_kernels() -> list[str]:
    """Whole evaluations of the fused kernels, by size."""
    record = read_result("kernels", "fused-bounded-h100.json")
    where = record["provenance"]
    later = read_result("kernels", "fused-directed-h100.json")
    rows, directed = (
        [e for e in one["evaluations"] if e["scatter"] == "fixed" and e["virial"]]
        for one in (record, later)
    )
    directed = [e for e in directed if find_kind(e)[2] > 0]
    neighbors = {e["listed_neighbors"] for e in rows}
    sizes = sorted({e["atoms"] for e in rows})
    lines = [
        "Fused Triton kernels, energy, forces and virial from positions and a neighbor list of "
        f"{min(neighbors)} entries an atom (its making not included), replayed from a CUDA graph, "
        f"{where['gpu']}, "
        f"torch {where['torch']}, triton {where['triton']}, commit "
        f"{where['commit']}, {where['date'][:10]} (directed messages: {later['provenance']['gpu']}, commit "
        f"{later['provenance']['commit']}, {later['provenance']['date'][:10]}); random parameters, fcc copper:",
        "",
        "| atoms | " + " | ".join(f"{n:,}" for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for title, kind in KINDS.items():
        found = {e["atoms"]: e for e in rows + directed if find_kind(e) == kind}
        cells = [describe_time(found[n]) if n in found else "-" for n in sizes]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    worst = {
        h: max(c["force_error_rms"] for c in record["checks"] if c["hops"] == h) for h in (1, 2)
    }
    largest = max(c["force_error_rms"] for c in later["checks"] if find_kind(c) == KINDS["`m3-l`"])
    lines += [
        "",
        "M/s is million atom-steps per second. Against float64, forces of about 1 eV/Å are off by at most "
        f"{round_up(worst[1])} (`m1`), {round_up(worst[2])} (`m2`) and {round_up(largest)} eV/Å (`m3-l`) RMS over the "
        f"checked crystals; {describe_errors()} {describe_largest()} {describe_wider()}",
        "",
        describe_memory(rows),
    ]
    return lines


def round_up(value: float) -> str:
    """A positive number in two digits, not below itself: what something is at most."""
    exponent = math.floor(math.log10(value)) - 1
    return f"{math.ceil(round(value / 10.0**exponent, 9)) * 10.0**exponent:.1e}"


def describe_time(row: dict[str, Any]) -> str:
    """Time of an evaluation and its rate."""
    rate = row["atom_steps_per_s"] / 1e6
    return f"{row['graph']['median_ms']:.3g} ms ({rate:.{0 if rate > 10 else 1}f} M/s)"


def describe_memory(rows: list[dict[str, Any]]) -> str:
    """Peak memory of the largest evaluations of `m1` and `m2`."""
    parts = []
    for name, hops in (("m1", 1), ("m2", 2)):
        found = [e for e in rows if find_kind(e) == (hops, 16, 0)]
        row = max(found, key=lambda e: e["atoms"])
        total = row["bytes_per_atom"] * row["atoms"]
        parts.append(
            f"`{name}` {row['bytes_per_atom']:,.0f} bytes an atom, {1e-9 * total:.0f} GB at {row['atoms']:,} atoms"
        )
    listed = 4 * rows[0]["listed_neighbors"]
    return (
        f"Peak memory of these evaluations: {'; '.join(parts)}. That is all buffers of an evaluation, what it takes "
        f"for a moment included, and the entries of the prepared list ({listed} bytes an atom). Positions, species and "
        "counts of neighbors (32 bytes an atom), and what making a list takes, are not in it."
    )


def describe_errors() -> str:
    """Force errors of trained students against float64."""
    record = read_result("kernels", "student-errors-h100.json")
    rows = record["rows"]
    worst = max(rows, key=lambda row: row["tf32x3"]["rms"])
    fast = worst["tf32"]["rms"]
    return (
        f"those of {len(rows)} trained students of five materials by at most {round_up(worst['tf32x3']['rms'])} eV/Å "
        f"({worst['model']}, forces of {worst['force_rms']:.1f} eV/Å RMS; {fast:.2g} eV/Å with the opt-in "
        f'`precision="tf32"`; commit {record["provenance"]["commit"]}).'
    )


def describe_largest() -> str:
    """Force errors of `m3-l` on the systems of the study, where three hops amplify rounding most, and trained."""
    record = read_result("kernels", "student-errors-wide-h100.json")
    rows = [row for row in record["untrained"] if row["architecture"] == "m3-l"]
    worst = max(rows, key=lambda row: row["tf32x3"]["rms"])
    trained = [row["tf32x3"]["rms"] for row in record["rows"] if row["model"].endswith("-m3l")]
    return (
        f"Students like `m3-l` trained on two materials are off by at most {round_up(max(trained))} eV/Å, with random "
        f"weights by {worst['tf32x3']['rms']:.1e} on {worst['system']}, where torch in float32 is off by "
        f"{worst['torch float32']['rms']:.1e} (commit {record['provenance']['commit']})."
    )


def describe_wider() -> str:
    """Time and errors of `m3-l` with wider hidden layers."""
    record = read_result("kernels", "hidden-layers-h100.json")
    checks = [row for row in record["checks"] if row["hidden"] == [128, 128]]
    most = max(row["atoms"] for row in record["evaluations"])
    small, wide = (
        next(e for e in record["evaluations"] if e["hidden"] == hidden and e["atoms"] == most)
        for hidden in ([64, 64], [128, 128])
    )
    return (
        f"With hidden layers of 128 `m3-l` takes {describe_time(wide)} at {most:,} atoms, {describe_time(small)} as it "
        f"is in the same run; then it is off by at most {round_up(max(c['force_error_rms'] for c in checks))} eV/Å RMS "
        f"(commit {record['provenance']['commit']})."
    )


def tabulate_dynamics() -> list[str]:
    """Whole steps of molecular dynamics on the device."""
    dynamics = read_result("engine", "md-h100.json")
    rows = [
        row
        for row in dynamics["steps"] + dynamics["rates"]
        if row["case"] == "nve" and row["kernels"] and not row["compiled"]
    ]
    sizes = sorted({row["atoms"] for row in rows})
    where = dynamics["provenance"]
    lines = [
        "Dynamics on the device (`fastff md`, NVE, a step of 1 fs, "
        "everything included: neighbor lists with a skin, integration), "
        f"{where['gpu']}, commit {where['commit']}, {where['date'][:10]}; untrained copper:",
        "",
        "| atoms | " + " | ".join(f"{n:,}" for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for model in ("m1", "m2"):
        found = {row["atoms"]: row for row in rows if row["model"] == model}
        cells = [
            f"{row['ms_per_step']:.3g} ms ({row['atom_steps_per_s'] / 1e6:.0f} M/s, "
            f"{format_rate(row['ns_per_day'])} ns/day)"
            for row in (found[n] for n in sizes)
        ]
        lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
    return [*lines, "", describe_calls(), "", describe_long_runs()]


def describe_calls() -> str:
    """One call through ASE."""
    record = read_result("engine", "engine-h100.json")
    found = {name: record[f"get_forces {name}"] for name in ("m1", "m2")}
    calls = ", ".join(
        f"{row['get_forces']['median_ms']:.2f} ms (`{name}`)" for name, row in found.items()
    )
    return (
        f"`get_forces()` through `FastFFCalculator` on {found['m1']['atoms']:,} moved atoms: {calls}; commit "
        f"{record['provenance']['commit']}."
    )


def format_rate(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 1000.0 else f"{value:.3g}"


def describe_long_runs() -> str:
    """Drift, ensembles and a million atoms in a few sentences."""
    record = read_result("engine", "statistics-h100.json")
    runs = record["drift"]
    drift = max(runs, key=lambda row: abs(row["drift_meV_per_atom_ps"]))
    kinds = [key for key in record["ensembles"][0] if key.startswith("kinetic energy")]
    p_values = [row[kind]["p_value"] for row in record["ensembles"] for kind in kinds]
    apart = [
        row[part][name]["standard_errors_apart"]
        for row in record["ensembles"]
        for part, names in (
            ("nvt beside ase langevin", ("potential_eV", "pressure_GPa")),
            ("npt beside ase mtk", ("potential_eV", "pressure_GPa", "volume_A3")),
        )
        for name in names
    ]
    million = read_result("engine", "million-h100.json")["million"][0]
    materials = ", ".join(dict.fromkeys(f"{row['material']} ({row['phase']})" for row in runs))
    return (
        f"Energy drift over {runs[0]['picoseconds']:.0f} ps of NVE at 1 fs in single precision, {len(runs)} trained "
        f"students of {materials}: at most {abs(drift['drift_meV_per_atom_ps']):.1g} meV/atom/ps. Kinetic energies of "
        f"both thermostats and at constant pressure are chi-square distributed (Kolmogorov-Smirnov, least p value "
        f"{min(p_values):.2g}); means of energy, pressure and volume lie within {max(apart):.1f} standard errors of "
        f"those of ASE's Langevin and MTK integrators (commit {record['provenance']['commit']}). "
        f"{million['atoms']:,} atoms for {million['steps']:,} steps with all files: {million['ms_per_step']:.3g} ms a "
        f"step, {million['ns_per_day']:.3g} ns/day, {million['peak_memory_bytes'] / 2**30:.1f} GiB."
    )


def tabulate_ops() -> list[str]:
    """Every op at production size: time of Triton, and how much longer torch takes."""
    record = read_kernels(RESULTS / "kernels" / "ops-h200.json")
    where = record.provenance
    lines = [
        "Every op with a Triton kernel at production size beside its definition in torch (`fastff bench --kernels`, "
        f"single synchronised calls), {where.gpu}, commit {where.commit}, {where.date[:10]}:",
        "",
        "| op | rows | Triton | share of the floor | torch.compile takes | eager torch takes |",
        "|---|---|---|---|---|---|",
    ]
    for op, direction in dict.fromkeys((row.op, row.direction) for row in record.rows):
        found = {r.variant: r for r in record.rows if (r.op, r.direction) == (op, direction)}
        triton = found["triton"]
        assert triton.median is not None
        assert triton.share is not None
        name = op if direction == "forward" else f"{op} with gradient"
        times = [
            f"{median / triton.median:.2g} times" if median is not None else found[variant].status
            for variant in ("compiled", "eager")
            for median in [found[variant].median]
        ]
        share = f"{100.0 * triton.share:.2g} %"
        cells = (name, f"{triton.rows:,}", f"{1e3 * triton.median:.3g} ms", share, *times)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tabulate_gpumd() -> list[str]:
    """Whole steps of NVE beside GPUMD's own speed, on the same crystals in the same run."""
    record = read_result("engine", "gpumd-h100.json")
    where, rates, theirs = record["provenance"], record["rates"], record["gpumd"]
    sizes = sorted({row["atoms"] for row in rates})
    found = {(row["program"], row["atoms"]): row["atom_steps_per_s"] for row in rates}
    lines = [
        f"Whole NVE steps beside GPUMD {theirs['version']} ({theirs['nep'].removesuffix('.txt')}, cut-offs "
        f"{theirs['radial_cutoff_A']:.0f} and {theirs['angular_cutoff_A']:.0f} Å; its own printed speed), the same "
        f"copper crystals at {record['conditions']['start_temperature_K']:.0f} K in one run, "
        f"{where['gpu']}, commit {where['commit']}, {where['date'][:10]}; million atom-steps per second:",
        "",
        "| atoms | " + " | ".join(f"{n:,}" for n in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for program in dict.fromkeys(row["program"] for row in rates):
        cells = []
        for n in sizes:
            rate, other = found[program, n], found["GPUMD", n]
            factor = "" if program == "GPUMD" else f" ({rate / other:.3g} times)"
            cells.append(f"{rate / 1e6:.3g}{factor}")
        lines.append(f"| {program} | " + " | ".join(cells) + " |")
    return lines


def tabulate_race() -> list[str]:
    """Calls through ASE beside Orb and FeNNol, on the same atoms in the same run."""
    record = read_result("engine", "race-h100.json")
    where = record["provenance"]
    lines = [
        "`get_forces()` through ASE on moved atoms, untrained students of cut-off 5 Å beside teachers in one run, "
        f"{where['gpu']}, commit {where['commit']}, {where['date'][:10]}; Orb with random weights of the published "
        "size, compiled, its graph included:",
        "",
        "| atoms | teacher | its call | student | its call | faster | list made anew | than the teacher's model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['atoms']:,} | {row['teacher']} | {row['teacher_ms']:.3g} ms | `{row['student'].split()[-1]}` | "
        f"{row['student_ms']:.2f} ms | {row['times_faster']:.3g} times | {row['times_faster_with_list_anew']:.3g} | "
        f"{row['times_faster_than_model_alone']:.3g} |"
        for row in record["factors"]
    ]
    return lines
