"""Intervals over trajectories, accuracy by temperature, and how long held-out dynamics is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from fastff.cli.bench_view import print_results
from fastff.labels import Frame, Labels
from fastff.report.comparison import compare_frames
from fastff.report.heldout import (
    plan_heldout,
    run_heldout,
    share_budget,
    stretch_plan,
    widen_plan,
)
from fastff.report.html import render_report
from fastff.report.markdown import describe_intervals, write_tables
from fastff.report.metrics import measure_accuracy
from fastff.report.plan import FULL_PLAN, plan_run
from fastff.report.spread import LEAST_TRAJECTORIES, find_intervals, split_by_temperature
from fastff.report.verdict import _judge_accuracy, describe_method, format_interval
from fastff.teachers import load_teacher

COPPER = bulk("Cu", cubic=True)


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


@pytest.mark.parametrize("n_trajectories", [4, 6, 12])
def test_intervals_cover_what_they_say(n_trajectories):
    """Each trajectory has its own level of force errors and a common energy error, as from dynamics."""
    random = np.random.default_rng(0)

    def draw(count):
        levels = 0.03 * np.exp(0.3 * random.normal(size=count))
        frames, prediction = [], []
        for trajectory, level in enumerate(levels):
            shift = 1e-3 * random.normal()
            for step in range(6):
                forces, energy = random.normal(size=(4, 3)), 0.08 * random.normal()
                error = 4.0 * (shift + 2e-4 * random.normal())
                labels = Labels(energy, forces, None)
                frames.append(Frame(COPPER, labels, "md", trajectory, 300.0, step))
                noise = level * random.normal(size=(4, 3))
                prediction.append(Labels(energy + error, forces + noise, None))
        return frames, prediction

    frames, prediction = draw(500)
    truth = measure_accuracy([f.labels for f in frames], prediction, [f.atoms for f in frames])
    found = [find_intervals(*draw(n_trajectories)) for _ in range(150)]
    for name in ("force", "energy"):
        covered = [f[name][0] <= getattr(truth, name) <= f[name][1] for f in found]
        assert 0.9 <= np.mean(covered) <= 0.99, f"{name}: {np.mean(covered):.2f}"


def test_intervals_stay_below_one_and_hold_the_smallest_accuracy():
    for seed in range(20):
        frames, prediction = make_frames(4, 2, correlated=True, seed=seed)
        accuracy = measure_accuracy(
            [f.labels for f in frames], prediction, [f.atoms for f in frames]
        )
        low, high = find_intervals(frames, prediction)["overall"]
        assert low <= accuracy.overall <= high <= 1.0


def test_no_interval_from_a_perfect_student_or_all_error_in_one_trajectory():
    frames, prediction = make_frames(5, 2)
    same = [f.labels for f in frames]
    assert find_intervals(frames, same) == {}
    assert find_intervals(frames, [*prediction[:2], *same[2:]]) == {}


def test_few_trajectories_have_no_interval():
    assert find_intervals(*make_frames(3, 4)) == {}


def make_comparison(frames, prediction):
    labels = [Labels(p.energy, p.forces, p.stress) for p in prediction]
    return compare_frames("frames", frames, lambda _: labels, "labels", "made")


def test_intervals_are_named_and_rounded_outwards():
    comparison = make_comparison(*make_frames(8, 4))
    accuracy = comparison.read_accuracy()
    assert describe_method(accuracy, 8) == "95 % interval, jackknife over 8 trajectories"
    rough = replace(accuracy, intervals={"force": (0.94991, 0.97001), "energy": (-0.1232, 1.0)})
    assert format_interval(rough, "force") == "(94.9 to 97.1 %)"
    assert format_interval(rough, "energy") == "(-12.4 to 100.0 %)"
    few = make_comparison(*make_frames(3, 4)).read_accuracy()
    assert describe_method(few, 3) == "no interval: 3 trajectories"


def test_a_required_accuracy_within_the_interval_is_said_to_be():
    comparison = make_comparison(*make_frames(8, 4))
    accuracy = comparison.read_accuracy()
    low, high = accuracy.intervals["overall"]
    for required, words in (
        (low - 0.01, "met on"),
        (0.5 * (low + accuracy.overall), "met, but the interval holds the required value"),
        (0.5 * (high + accuracy.overall), "NOT MET, but the interval holds the required value"),
    ):
        passed = accuracy.overall >= required
        line = _judge_accuracy(accuracy, comparison, required, passed)
        assert words.removesuffix(" on") in line
        assert ("but the interval" in line) == ("but" in words)


def test_tables_say_where_there_is_no_interval(whole_record, capsys):
    words = describe_intervals(whole_record)
    for comparison in whole_record.comparisons:
        known = bool(comparison.read_accuracy().intervals)
        count = comparison.frames.n_trajectories
        assert known == (count >= 4)
        assert (f"{comparison.name.lower()}: no interval: {count} traj" in words.lower()) != known
    print_results(whole_record)
    for shown in (render_report(whole_record), write_tables(whole_record), capsys.readouterr().out):
        assert words in shown


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


def test_full_plan_has_an_interval_at_the_cost_of_three_trajectories():
    copper = bulk("Cu", cubic=True)
    before = plan_heldout([copper], (300, 600), seed=1, n_frames=36, n_temperatures=3)
    for limits in ((300, 600), (300, 300)):
        header = {"sha256": "0", "temperature": limits}
        plan = plan_run(header, [copper], None, FULL_PLAN)["held-out frames"]
        assert len(plan.trajectories) >= LEAST_TRAJECTORIES
        assert plan.n_calls <= 1.1 * before.n_calls
        assert len({t.temperature for t in plan.trajectories}) == (5 if limits[1] > 300 else 1)
    # where there are trajectories enough, temperatures stay as they are
    plan = plan_run(header | {"temperature": (300, 600)}, [copper] * 4, None, FULL_PLAN)
    assert len(plan["held-out frames"].trajectories) == 12


@pytest.mark.parametrize(
    ("n_structures", "single", "batch", "count", "tried"),
    [
        (1, 0.1, 0.1, 4, [1, 4]),  # a batch costs no more than one
        (2, 0.1, 0.1, 4, [2, 4]),
        (1, 0.1, 0.4, 1, [1, 4]),  # not for a teacher that labels one after the other
        (1, 10.0, 0.0, 1, [1]),  # nor is that found out where one is too slow already
        (5, 0.1, 0.1, 5, []),
    ],
)
def test_sets_become_wide_where_that_costs_nothing(n_structures, single, batch, count, tried):
    asked = []

    def measure(plan):
        asked.append(len(plan.trajectories))
        return single if len(plan.trajectories) == n_structures else batch

    copper = bulk("Cu", cubic=True)
    plan = plan_heldout([copper] * n_structures, (900, 900), seed=1, n_frames=8)
    wide = widen_plan(plan, measure, 10.0)
    assert len(wide.trajectories) == count
    if count == 4:
        assert wide.n_frames * count == 8
        assert wide.n_steps < plan.n_steps
    else:
        assert wide == plan
    assert asked == tried


def test_trajectories_that_start_alike_are_not_the_same():
    copper = bulk("Cu", cubic=True)
    plan = plan_heldout([copper], (300, 300), seed=1, n_frames=8, n_equilibrate=4, interval=2)
    wide = widen_plan(plan, lambda _: 0.0, 1.0)
    frames = run_heldout(load_teacher("analytic:emt", device="cpu"), wide)
    first = [next(f for f in frames if f.trajectory == k).atoms.positions for k in range(4)]
    assert len(frames) == 8
    assert min(np.abs(a - b).max() for k, a in enumerate(first) for b in first[:k]) > 0.01


def test_judged_frames_have_half_of_the_time():
    assert share_budget(["held-out", "hot", "strained"], 120.0) == {
        "held-out": 60.0,
        "hot": 30.0,
        "strained": 30.0,
    }
    assert share_budget(["held-out"], 0.0) == {"held-out": 0.0}
