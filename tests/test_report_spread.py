"""Intervals over trajectories, accuracy by temperature, and how long held-out dynamics is."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk

from fastff.labels import Frame, Labels
from fastff.report.heldout import plan_heldout, share_budget, stretch_plan
from fastff.report.metrics import measure_accuracy
from fastff.report.spread import find_intervals, split_by_temperature


def make_frames(n_trajectories, n_frames, *, correlated=False, seed=0):
    """Frames with unit forces, and predictions off by a tenth; ``correlated``: all of a trajectory alike."""
    random = np.random.default_rng(seed)
    frames, prediction = [], []
    for trajectory in range(n_trajectories):
        quality = 0.2 * random.random()
        for step in range(n_frames):
            atoms = bulk("Cu", cubic=True)
            forces = random.normal(size=(4, 3))
            labels = Labels(random.normal(), forces, random.normal(size=6))
            error = quality if correlated else 0.1
            found = Labels(
                labels.energy + error * random.normal(),
                forces + error * random.normal(size=(4, 3)),
                labels.stress + error * random.normal(size=6),
            )
            temperature = 300.0 if trajectory % 2 else 600.0
            frames.append(Frame(atoms, labels, "md", trajectory, temperature, step))
            prediction.append(found)
    return frames, prediction


def test_intervals_hold_the_accuracy_and_narrow_with_more_trajectories():
    widths = []
    for count in (8, 200):
        frames, prediction = make_frames(count, 4)
        intervals = find_intervals(frames, prediction)
        accuracy = measure_accuracy(
            [f.labels for f in frames], prediction, [f.atoms for f in frames]
        )
        for name in ("force", "energy", "stress"):
            low, high = intervals[name]
            assert low < getattr(accuracy, name) < high
        assert intervals["overall"][0] <= min(
            intervals[n][0] for n in ("force", "energy", "stress")
        )
        widths.append(intervals["force"][1] - intervals["force"][0])
    assert widths[1] < 0.5 * widths[0]


def test_frames_of_one_trajectory_are_not_counted_as_independent():
    frames, prediction = make_frames(8, 20, correlated=True)
    whole = find_intervals(frames, prediction)["force"]
    apart = [
        Frame(f.atoms, f.labels, "md", number, f.temperature, 0) for number, f in enumerate(frames)
    ]
    each = find_intervals(apart, prediction)["force"]
    assert whole[1] - whole[0] > 2.0 * (each[1] - each[0])


def test_few_trajectories_have_no_interval():
    assert find_intervals(*make_frames(3, 4)) == {}


def test_accuracy_by_temperature():
    frames, prediction = make_frames(6, 4)
    rows = split_by_temperature(frames, prediction)
    assert [row["temperature"] for row in rows] == [300.0, 600.0]
    assert [row["n_frames"] for row in rows] == [12, 12]
    assert rows[0]["force"] == pytest.approx(0.9, abs=0.03)


def test_fast_teachers_drive_longer_and_slow_ones_as_planned():
    plan = plan_heldout([bulk("Cu", cubic=True)], (300, 600), seed=1, n_frames=12)
    fast = stretch_plan(plan, 0.01, 60.0)
    assert fast.interval * fast.time_step >= 100.0
    assert fast.n_equilibrate * fast.time_step >= 1000.0
    assert fast.n_equilibrate % fast.interval == 0
    assert stretch_plan(plan, 10.0, 60.0) == plan
    between = stretch_plan(plan, 0.2, 60.0)
    assert plan.n_steps < between.n_steps < fast.n_steps
    assert 0.2 * between.n_steps < 1.3 * 60.0


def test_judged_frames_have_half_of_the_time():
    assert share_budget(["held-out", "hot", "strained"], 120.0) == {
        "held-out": 60.0,
        "hot": 30.0,
        "strained": 30.0,
    }
    assert share_budget(["held-out"], 0.0) == {"held-out": 0.0}
