"""README's table of recipes, from records of ``bench/recipes.py``.

Here: one row a recipe. Not here: other tables, and where they go (``tabulate.py``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tabulate_speed import RESULTS

from fastff.distill.request import read_config
from fastff.report.verdict import format_percent

FOLDER = RESULTS / "recipes"
TRAIN = RESULTS.parents[1] / "train"


def tabulate_recipes(folder: Path = FOLDER) -> list[str]:
    """Accuracy, endurance and pair distributions of every recipe that has a record; empty if none has."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not records:
        return []
    lines = [
        "Recipes of `train/`, run and measured by `python bench/recipes.py`; records `bench/results/recipes/*.json`. "
        "Forces, energy, stress on frames never trained on: of the teacher's dynamics and of the student's own, "
        "both as the recipe's own verdict gives them; then the smallest of the three, or of those defined, on fresh "
        "dynamics of the teacher beyond the range of temperatures, and strained. Replicas of eight that failed, in "
        "dynamics of the length given, at the highest temperature T and at 1.5 T. Largest difference of a pair "
        "distribution from the teacher's, and what two equal systems would differ by for that pair. "
        "The time is that of labels, training and rounds together; a recipe with a star has changed since:",
        "",
        "| recipe | student | evaluations, time | teacher-driven | student-driven | 1.5 T | ±5 % strain "
        "| failed at T | at 1.5 T | pair distributions | GPU, commit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(describe_recipe(record))} |" for record in records]
    return lines


def describe_recipe(record: dict[str, Any]) -> list[str]:
    """Cells of one row."""
    groups = {row["group"]: row for row in record["accuracy"]}
    student = record["student"]
    minutes = record["seconds"]["distillation"] / 60.0
    return [
        f"`{record['recipe']}`{'' if is_current(record) else ' *'}",
        f"`{student['architecture']}`, {student['cutoff']:g} Å",
        f"{record['evaluations_of_teacher']:,}, {minutes:.1f} min",
        *(show_three(groups.get(name)) for name in ("teacher-driven", "student-driven")),
        *(show_beyond(groups, part) for part in ("highest temperature", "strained")),
        *(show_endurance(row) for row in find_endurance(record)),
        show_pairs(record["pairs"]),
        show_machines(record),
    ]


def is_current(record: dict[str, Any]) -> bool:
    """Whether the file of a recipe still asks for what was run."""
    path = TRAIN / f"{record['recipe']}.yaml"
    if not path.exists():
        return True  # one from elsewhere, with nothing to compare
    asked = read_config(path).model_dump(mode="json")
    return all(record["request"].get(key, value) == value for key, value in asked.items())


def show_machines(record: dict[str, Any]) -> str:
    """Every GPU and commit that a recipe ran on, in order."""
    pieces = [*record["pieces"].values(), record["provenance"]]
    shown = {}
    for piece in pieces:
        gpu = piece["gpu"].removeprefix("NVIDIA ").split()[0] if piece["gpu"] else "no GPU"
        shown[f"{gpu}, {(piece['commit'] or '?')[:7]}"] = None
    return "; ".join(shown)


def show_three(row: dict[str, Any] | None) -> str:
    """Force, energy and stress accuracy."""
    if row is None:
        return "–"
    return ", ".join(format_percent(row[key]) for key in ("force", "energy", "stress"))


def show_beyond(groups: dict[str, dict[str, Any]], part: str) -> str:
    """The smallest accuracy of the group whose name holds ``part``."""
    return next(
        (format_percent(row["overall"]) for name, row in groups.items() if part in name), "–"
    )


def find_endurance(record: dict[str, Any]) -> list[dict[str, Any] | None]:
    """The rows at the highest temperature and beyond it; None for one that a partial record lacks."""
    highest = max(record["request"]["temperatures"])
    rows = {row["temperature"] > highest: row for row in record["endurance"]}
    return [rows.get(beyond) for beyond in (False, True)]


def show_endurance(row: dict[str, Any] | None) -> str:
    """Replicas that failed, and how long the others ran if that is not what was wanted."""
    if row is None:
        return "–"
    short = "" if row["ps"] >= row["wanted_ps"] else f" of {row['wanted_ps']:,.4g} wanted"
    return f"{row['n_failed']} of {row['n_replicas']} in {row['ps']:,.4g} ps{short} ({row['temperature']:.0f} K)"


def show_pairs(rows: list[dict[str, Any]]) -> str:
    """The pair that differs most."""
    found = [row for row in rows if "difference" in row]
    if not found:
        return rows[0]["fault"] if rows else "–"
    worst = max(found, key=lambda row: row["difference"])
    noise = "" if worst["noise"] is None else f" (noise {format_percent(worst['noise'])})"
    return f"{format_percent(worst['difference'])}{noise}, {worst['pair']}, {worst['kind']}"
