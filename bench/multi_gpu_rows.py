"""Rows of ``multi_gpu.py``: noting them, their efficiencies, and how long they have to last.

Not here: measuring (``multi_gpu.py``, ``multi_gpu_commands.py``).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any


class Rows(list[dict[str, Any]]):
    """Measurements of one part, each printed and written as soon as it is there."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__()
        self._write = write

    def note(self, row: dict[str, Any]) -> None:
        """Append a measurement."""
        self.append(row)
        print(json.dumps(row), flush=True)
        self._write()


def add_efficiency(rows: list[dict[str, Any]], rate: str) -> None:
    """Rate of each row per device, relative to the row of one device."""
    single = [row[rate] for row in rows if row["devices"] == 1]
    for row in rows:
        share = row[rate] / (row["devices"] * statistics.median(single)) if single else None
        row["efficiency"] = share


def last_long_enough(
    measure: Callable[[int], dict[str, Any]], steps: int, window: float
) -> dict[str, Any]:
    """A measurement of so many steps; up to three times with more of them if its ``window_seconds`` were too few."""
    row = measure(steps)
    for _ in range(3):
        if row["window_seconds"] >= window:
            break
        steps = math.ceil(1.2 * steps * window / row["window_seconds"])
        row = measure(steps)
    return row


def print_summary(part: str, rows: Sequence[dict[str, Any]]) -> None:
    """Efficiency of each kind of row, with the range of its repeats."""
    groups: dict[tuple[str, int], list[float | None]] = {}
    for row in rows:
        key = row.get("scaling", ""), row["devices"]
        groups.setdefault(key, []).append(row["efficiency"])
    for (kind, devices), found in groups.items():
        shares = [share for share in found if share is not None]
        text = "-"
        if shares:
            text = f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"
        print(f"{part} {kind}: {devices} devices, {len(found)} times, efficiency {text}")
