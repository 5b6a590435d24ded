"""Join records of ``multi_gpu.py`` that were measured on the same machine, one after the other.

    python bench/multi_gpu_join.py weak.json weak-2.json md.json --out bench/results/scaling/NAME.json

Rows of a part follow each other in the order of the files, and efficiencies are taken anew, relative to the median of
one device over all of them, by kind of scaling, optimiser and batch. ``runs`` says of each file when and how it was
measured, and what of it failed. Files of another commit, processor, GPU, driver or version of a package are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != HERE)]

from bench.multi_gpu import PARTS  # noqa: E402
from bench.multi_gpu_rows import add_efficiency, print_summary  # noqa: E402

RATES = {"train": "frames_per_second", "label": "frames_per_second", "md": "total"}
SAME = ("commit", "cpu", "cores", "gpu", "driver", "system", "python", "packages")


def find_kind(row: dict[str, Any]) -> tuple[Any, ...]:
    """What rows must have in common for their efficiencies to be relative to the same device."""
    frames = row.get("batch_frames", 0)
    each = frames // row["devices"] if row.get("scaling") == "weak" else frames
    return row.get("scaling"), row.get("optimizer"), each


def join(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """One record of several; see above.

    Raises
    ------
    SystemExit
        They were not measured in the same place.
    """
    first = records[0]
    for record, name in zip(records, names, strict=True):
        for key in SAME:
            mine, others = (found["provenance"].get(key) for found in (record, first))
            if mine != others:
                raise SystemExit(f"{name}: {key} is {mine}, of {names[0]} it is {others}")
        if record["gpus"] != first["gpus"]:
            raise SystemExit(f"{name}: {record['gpus']}, of {names[0]} {first['gpus']}")
    joined: dict[str, Any] = {key: first[key] for key in ("what", "gpus", "provenance")}
    joined["runs"] = [
        {
            **{key: record["provenance"][key] for key in ("date", "command")},
            "failed": record["failed"],
        }
        for record in records
    ]
    for part, rate in RATES.items():
        rows = [row for record in records for row in record.get(part, [])]
        for kind in dict.fromkeys(map(find_kind, rows)):
            add_efficiency([row for row in rows if find_kind(row) == kind], rate)
        if rows:
            joined[part] = rows
    return joined


def main() -> None:
    """Read, join, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    records = [json.loads(path.read_text()) for path in arguments.records]
    joined = join(records, [path.name for path in arguments.records])
    arguments.out.write_text(json.dumps(joined, indent=1) + "\n")
    for part in PARTS:
        print_summary(part, joined.get(part, []))


if __name__ == "__main__":
    main()
