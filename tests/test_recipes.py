"""The recipes in ``train/``: each can be read and planned, and is listed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastff.distill.planning import plan_sampling
from fastff.distill.request import read_config
from fastff.distill.roundplan import parse_budget, plan_rounds
from fastff.errors import MissingDependencyError
from fastff.md.state import find_fixed
from fastff.structures import read_structures
from fastff.teachers import load_teacher

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "train").glob("*.yaml"))
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@cache
def find_info(spec: str) -> Any:
    """What is known of a teacher; None where it is not on this machine or its weights would have to be fetched."""
    if spec.startswith(("orb", "fennol")):
        return None
    try:
        return load_teacher(spec, device="cpu").info
    except MissingDependencyError:
        return None


@each
def test_it_can_be_planned(path: Path) -> None:
    """As ``fastff train --config`` would, from the root of the repository, up to the first label."""
    request = read_config(path)
    assert request.teacher is not None
    assert request.structures is not None
    assert request.structures.is_relative_to("train/structures")
    seeds = read_structures(ROOT / request.structures)
    budget = parse_budget(request.budget).evaluations
    assert budget is not None
    rounds = plan_rounds(budget, request.rounds)
    plan = plan_sampling(
        seeds,
        find_info(request.teacher),
        temperatures=request.temperatures,
        budget=rounds.first,
        cutoff=request.cutoff,
        max_atoms=request.max_atoms,
    )
    assert rounds.total == budget
    assert plan.n_evaluations <= (rounds.first or 0)
    assert len(plan.cells) == len(seeds)
    assert max(len(cell.atoms) for cell in plan.cells) <= request.max_atoms


@each
def test_its_comment_and_the_table_name_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"--config train/{path.name}" in text
    assert f"| `{path.name}` |" in (ROOT / "train" / "README.md").read_text(encoding="utf-8")
    if path.stem.endswith("-orb"):
        assert "never run with published weights" in text


def test_every_row_of_the_table_is_a_recipe() -> None:
    table = (ROOT / "train" / "README.md").read_text(encoding="utf-8")
    named = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert named == {path.name for path in RECIPES}


def test_a_surface_keeps_its_vacuum() -> None:
    """Neither repeated across it nor strained there, at the sizes that the recipe allows."""
    request = read_config(ROOT / "train" / "pt111-co-sevennet.yaml")
    assert request.structures is not None
    seeds = read_structures(ROOT / request.structures)
    for cell in plan_sampling(seeds, budget=2000, max_atoms=request.max_atoms).cells:
        assert cell.axes == (True, True, False)
        assert len(cell.atoms) == 50
        heights = cell.atoms.positions[:, 2]
        assert np.array_equal(find_fixed(cell.atoms), heights < 10.1)  # the bottom layer
        assert (heights < 10.1).sum() == 16
