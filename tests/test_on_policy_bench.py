"""The comparison of ways to spend evaluations. Not here: the ways themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from programs import load_program

from fastff.distill.planning import plan_sampling

PATH = Path(__file__).resolve().parents[1] / "bench" / "on_policy.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(PATH.parent), *sys.path])
    module = load_program("on_policy")
    assert str(PATH.parent) not in sys.path
    return module


@pytest.mark.parametrize("budget", [60, 300, 5000])
def test_teacher_dynamics_spends_the_budget(bench: ModuleType, budget: int) -> None:
    plan = bench.plan_dynamics(plan_sampling([bulk("Cu")]), (150.0, 900.0), budget, 20.0)
    assert 0.9 * budget <= plan.n_evaluations <= budget
    temperatures = [replica.temperature for replica in plan.dynamics[0].replicas]
    assert (min(temperatures), max(temperatures)) == (150.0, 900.0)


@pytest.mark.slow
def test_an_arm_is_measured_once(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    arguments = (
        f"on_policy.py --structures {tmp_path / 'cu.xyz'} --teacher analytic:emt --arms rattle teacher-md "
        "--budget 40 --steps 20 --max-atoms 4 --cutoff 3.5 --test-evaluations 60 --walkers 4 --own-frames 8 "
        f"--picoseconds 0.05 --device cpu --out {tmp_path / 'out'}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    bench.main()
    whole: dict[str, Any] = json.loads((tmp_path / "out" / "on-policy.json").read_text())
    assert whole["provenance"]["cpu"]
    records: list[dict[str, Any]] = whole["rows"]
    assert [record["arm"] for record in records] == ["rattle", "teacher-md"]
    for record in records:
        assert {"teacher-driven", "own dynamics"} <= set(record["accuracy"])
        assert np.isfinite(record["accuracy"]["own dynamics"]["overall"])
        assert record["dynamics"]["walkers"] == 4
    monkeypatch.setattr(bench, "train_arm", lambda *_: pytest.fail("trained again"))
    bench.main()
    table = (tmp_path / "out" / "on-policy.md").read_text()
    assert table.count("| rattle |") == 1
