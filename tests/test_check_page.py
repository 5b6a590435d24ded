"""The page on the physics gate quotes what records of the shipped students say."""

from __future__ import annotations

import json
from pathlib import Path

from fastff.checkpoint import read_header


def test_worst_values_of_the_page_are_those_of_the_records() -> None:
    root = Path(__file__).parent.parent
    records = [
        json.loads(path.read_text()) for path in (root / "bench/results/gate").glob("*.json")
    ]
    assert {record["model_sha256"] for record in records} == {
        read_header(path)["sha256"] for path in (root / "fastff/zoo").glob("*.safetensors")
    }
    worst: dict[str, float] = {}
    for check in (check for record in records for check in record["checks"]):
        if check["value"] is not None:
            worst[check["test"]] = max(worst.get(check["test"], 0.0), check["value"])
    text = (root / "docs" / "check.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    shown = {row[0]: row[4] for row in rows[1:]}
    assert shown == {
        name: f"{worst[name]:.0e}".replace("0e+00", "0") if name in worst else "-" for name in shown
    }
