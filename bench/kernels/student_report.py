"""Record and table of ``gpu_student.py``. Here: writing and printing. Not here: measuring."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from student_timing import find_floor

from fastff.kernels.moment_potential.costs import (
    Cost,
    count_costs,
    count_directed,
    count_stored,
)


def store(record: dict[str, Any], name: str = "gpu_student.json") -> None:
    folder = Path(os.environ.get("OUT") or Path(__file__).resolve().parents[1] / "results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(record, indent=1) + "\n")


def rate_kernels(
    rows: list[dict[str, Any]], ceilings: dict[str, float] | None
) -> list[dict[str, Any]]:
    """The same rows with the fraction of the roofline each kernel reaches, where its work is counted."""
    rated = []
    for row in rows:
        kind, *numbers = row["kernel"].split()
        later = not {"2", "3"}.isdisjoint(numbers)
        work = count_work(row["channels"], row["message_degree"], later=later)
        if row.get("scatter") == "store":
            work = count_stored(54, row["channels"], degree=row["message_degree"]) if later else {}
        if ceilings and kind in work and not row["kernel"].endswith("forward"):
            floor_ms = find_floor(work[kind], ceilings) * row["atoms"] * 1e3
            row = row | {"roofline_fraction": floor_ms / row["median_ms"]}
        rated.append(row)
    return rated


def count_work(channels: int, degree: int, *, later: bool) -> dict[str, Cost]:
    """Least work of the kernels of a hop; of sums of a later hop with directed messages that of those.

    Perceptrons of directed messages are not counted hop by hop, and left out.
    """
    work = count_costs(54, channels, channels)
    if degree:
        del work["node_perceptron"]
        directed = count_directed(54, channels, channels, degree=degree)
        del directed["node_perceptron"]
        work |= directed if later else {}
    return work


def name_kind(row: dict[str, Any]) -> str:
    return f"m{row['hops']} C{row['channels']}{' directed' * (row['message_degree'] > 0)}"


def print_checks(checks: list[dict[str, Any]]) -> None:
    print(
        "check                force err rms  max       of float32: rms max     energy/atom virial   bits"
    )
    for c in checks:
        label = f"{c['system']} m{c['hops']} C{c['channels']} S{c['species']} {c['scatter']}"
        label += " directed" * (c["message_degree"] > 0)
        print(
            f"{label:<20} {c['force_error_rms']:.2e}  {c['force_error_max']:.2e}  "
            f"{c['eager_float32_error_rms']:.2e}  {c['eager_float32_error_max']:.2e}  "
            f"{c['energy_error_per_atom']:.1e}     {c['virial_error']:.1e}  {c['bits_equal']}",
            flush=True,
        )


def print_record(record: dict[str, Any]) -> None:
    print(json.dumps(record["provenance"]))
    ceilings = record.get("ceilings")
    print({k: round(v, 2) for k, v in (ceilings or {}).items()})
    for row in record["kernels"]:
        each = f"{row['median_ms'] * 1e6 / row['atoms']:7.2f} ns/atom"
        stored = " stored" * (row["scatter"] == "store")
        line = f"{name_kind(row):<15} {row['kernel'] + stored:<26} {each}"
        if "roofline_fraction" in row:
            line += f" {100 * row['roofline_fraction']:5.1f} % of roofline"
        print(line)
    for row in record["evaluations"]:
        eager = row.get("eager", {}).get("median_ms", float("nan"))
        virial = "" if row["virial"] else " no virial"
        print(
            f"{name_kind(row):<15} {row['atoms']:>9} atoms {row['scatter']:<5}{virial} "
            f"graph {row['graph']['median_ms']:9.4f} ms eager {eager:7.3f} ms "
            f"{row['atom_steps_per_s'] / 1e6:7.2f} M/s {row['bytes_per_atom']:6.0f} B/atom "
            f"{'' if row['finite'] else 'NOT FINITE'}"
        )
    for row in record.get("variants", []):
        blocks = {**row["config"]["blocks"], "warps": row["config"]["num_warps"]}
        print(
            f"{row['kernel']:<19} {blocks!s:<42} {row['median_ms'] * 1e6 / 108000:7.2f} ns/atom "
            f"changes forces by {row['force_change']:.1e}"
        )
    print(f"failures: {record['failures']}\n{record['seconds']:.0f} s in all")
