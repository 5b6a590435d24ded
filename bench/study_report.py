"""Record and table of ``study.py``. Here: gathering and writing. Not here: measuring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.study_variants import ABLATIONS, STUDENTS


def read_records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "jobs").glob("*.json"))]


def tabulate(records: list[dict[str, Any]]) -> str:
    """Markdown: one row for each system and variant, measured on test frames."""
    lines = [
        "| system | student | A_F | force MAE (meV/Å) | A_E | energy MAE (meV/atom) | A_S "
        "| parameters | steps | s | ms/step |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def show(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    order = {variant.name: k for k, variant in enumerate(STUDENTS + ABLATIONS)}
    for record in sorted(
        records, key=lambda r: (r["system"], order.get(r["variant"]["name"], 999))
    ):
        found = record["accuracy"]["test"]
        cells = [
            record["system"],
            record["variant"]["name"],
            show(found["force"], 100, 1),
            show(found["force_mae"], 1e3, 1),
            show(found["energy"], 100, 1),
            show(found["energy_mae"], 1e3, 2),
            show(found["stress"], 100, 1),
            f"{record['n_parameters']:,}",
            f"{record['n_steps']:,}",
            f"{record.get('seconds', record['seconds_this_process']):.0f}",
            show(record.get("ms_per_step"), 1.0, 2),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
