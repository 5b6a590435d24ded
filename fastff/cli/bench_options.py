"""What the options of ``fastff bench`` mean.

Here: parsing, the plan they add up to, checks that need no work. Not here: the command (:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastff.errors import UsageError

if TYPE_CHECKING:
    from fastff.report.plan import BenchPlan

PHYSICS = ("auto", "none", "full")


def make_plan(
    *,
    quick: bool,
    sizes: str | None,
    frames: int | None,
    steps: int | None,
    budget: float | None,
    physics: str,
    require: float | None,
    device: str,
) -> BenchPlan:
    """The default or quick plan with what the user asked for.

    Raises
    ------
    UsageError
        An option cannot be honoured.
    """
    from dataclasses import replace

    from fastff.report.plan import FULL_PLAN, QUICK_PLAN

    mode, seconds = parse_physics(physics)
    chosen: dict[str, Any] = {
        "physics": mode,
        "physics_budget": seconds,
        "n_frames": frames,
        "n_equilibrate": steps,
        "dynamics_budget": None if steps is None else 0.0,  # as long as asked for
        "budget": budget,
        "sizes": parse_sizes(sizes) if sizes is not None else None,
    }
    given = {key: value for key, value in chosen.items() if value is not None}
    return replace(
        QUICK_PLAN if quick else FULL_PLAN,
        required=require,
        device=device,
        **given,
    )


def parse_physics(text: str) -> tuple[str, float | None]:
    """``"auto"``, ``"none"`` or ``"full"`` as it is, and a number as ``("auto", seconds)``.

    Raises
    ------
    UsageError
        Something else.
    """
    if text in PHYSICS:
        return text, None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise UsageError(
            f"--physics {text!r} is not one of {', '.join(PHYSICS)} or a number of seconds above 0"
        )
    return "auto", seconds


def parse_sizes(text: str) -> tuple[int, ...]:
    """``"64,500"`` as (64, 500).

    Raises
    ------
    UsageError
        Anything but positive whole numbers separated by commas.
    """
    try:
        values = tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError:
        values = ()
    if not values or values[0] < 1:
        raise UsageError(f"--sizes {text!r} is not a list of atom counts; write 64,500,2000")
    return values


def parse_temperature(text: str) -> tuple[float, float]:
    """``"300-900"`` as (300, 900), ``"300"`` as (300, 300), K.

    Raises
    ------
    UsageError
        Anything else, or limits that are not positive and ascending.
    """
    try:
        low, high = (float(word) for word in (text.split("-") if "-" in text else (text, text)))
    except ValueError:
        low = high = -1.0
    if not 0.0 < low <= high:
        raise UsageError(f"--temperature {text!r} is not a temperature in K; write 300 or 300-900")
    return low, high


def parse_duration(text: str) -> float:
    """Seconds of ``600``, ``10min`` or ``0.5h``.

    Raises
    ------
    UsageError
        Anything else, or nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h)?\s*", text)
    if found is None or float(found[1]) <= 0.0:
        raise UsageError(f"--time-limit {text!r} is not a time; write 600 (seconds), 10min or 0.5h")
    return float(found[1]) * {None: 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}[found[2]]


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that holds results or is no folder.

    Raises
    ------
    UsageError
        With ``force``, only if ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another --out")
    if folder.exists() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder} exists and is not empty; choose another --out, or add --force")
