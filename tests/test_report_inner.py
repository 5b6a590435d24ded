"""Times of the inner paths of a student, of parts that take known times."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
from ase.build import bulk
from md_models import make_copper

from fastff.md import engine
from fastff.report import inner
from fastff.report.speed import Timed, TimingPlan

STEP, COMPUTE, REBUILD = 0.004, 0.006, 0.010
"""Seconds."""


class SlowPotential:
    """Sleeps instead of evaluating."""

    capturable = False
    device = "cpu"

    def compute(self):
        time.sleep(COMPUTE)

    def rebuild(self):
        time.sleep(REBUILD)
        return False


class SlowEngine:
    """Sleeps for every step that it is asked for; keeps the conditions that it got."""

    seen: ClassVar[list[tuple[str, float, float]]] = []

    def __init__(self, potential, state, settings):
        self.step = 0
        self.seen.append((settings.ensemble, settings.timestep, settings.temperature))

    def advance(self, goal):
        time.sleep(STEP * (goal - self.step))
        self.step = goal
        return SimpleNamespace(failed=False)


def test_paths_take_what_their_parts_take(monkeypatch):
    """The model alone one evaluation, with list the list too, a step of dynamics one step of many in a block."""
    monkeypatch.setattr(inner, "_attach", lambda student, atoms: SlowPotential())
    monkeypatch.setattr(engine, "Engine", SlowEngine)
    student = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8))
    curves = inner.time_student(
        Timed("student", "fastff m1", lambda: None, {}, "cpu"), student,
        [bulk("Cu", cubic=True).repeat(2)], TimingPlan(budget=1.0), lambda message: None,
        time_step=2.0, temperature=300.0,
    )  # fmt: skip
    found = {curve.mode: curve for curve in curves}
    assert SlowEngine.seen == [("nve", 2.0, 300.0)]
    assert "from 300 K" in found["md-loop"].includes
    for mode, expected in (
        ("model", COMPUTE),
        ("model-list", COMPUTE + REBUILD),
        ("md-loop", STEP),
    ):
        (point,) = found[mode].points
        # a sleep is never shorter, and on a busy machine somewhat longer
        assert 0.99 * expected <= min(point.seconds) < 1.5 * expected, mode
        assert point.atom_steps_per_second == pytest.approx(32 / point.median)
    assert [found[mode].time_step for mode in ("model", "model-list", "md-loop")] == [None, None, 2]
