"""How well a median is known, how often to repeat, and slowdowns that must be seen beyond the scatter of calls."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes

from fastff.report.record import read_record
from fastff.report.regression import SlowdownError, compare_speed, require_no_slowdown
from fastff.report.repeats import find_median_interval, is_settled, needs_more
from fastff.report.speed import Timed, TimingPlan
from fastff.report.stepping import time_dynamics
from fastff.report.timing import time_calculator

RESULTS = Path(__file__).parents[1] / "bench" / "results"
REPORTS = ("cuau-7net-0-h100", "cuau-7net-0-h200", "nacl-7net-0-h200", "tio2-7net-0-h100")


def draw(random, count):
    """Times as on a busy machine: one call in eight takes two to three and a half times as long."""
    times = random.lognormal(sigma=0.05, size=count)
    return times * np.where(random.random(count) < 0.125, random.uniform(2.0, 3.5, count), 1.0)


def change_times(record, change):
    """The record with other times of the student."""
    curves = tuple(
        curve.model_copy(update={"points": tuple(
            point.model_copy(update={"seconds": tuple(change(np.array(point.seconds)))})
            if point.status == "measured" else point
            for point in curve.points
        )}) if curve.role == "student" else curve
        for curve in record.speed
    )  # fmt: skip
    return record.model_copy(update={"speed": curves})


def test_intervals_of_the_median_by_hand():
    """Ranks from a table of the binomial distribution: 2 and 9 of ten, 4 and 12 of fifteen, 22 and 39 of sixty."""
    for count, low, high in ((6, 1, 6), (10, 2, 9), (15, 4, 12), (60, 22, 39)):
        assert find_median_interval(np.arange(count, 0, -1.0)) == (low, high)
    assert find_median_interval([1.0]) == (0.0, float("inf"))
    low, high = find_median_interval([1.0, 1.1, 1.2])
    assert low < 0.9
    assert high > 1.35


@pytest.mark.parametrize("count", [3, 4, 6, 15, 40])
def test_intervals_hold_the_median_as_often_as_they_say(count):
    random = np.random.default_rng(count)
    draws = 2000
    ends = np.array(
        [find_median_interval(random.lognormal(sigma=0.2, size=count)) for _ in range(draws)]
    )
    held = ((ends[:, 0] <= 1.0) & (ends[:, 1] >= 1.0)).mean()
    assert 0.94 <= held <= 1.0


def test_repeats_end_when_the_median_is_known():
    random = np.random.default_rng(0)
    rules = {"least": 3, "usual": 15, "budget": 20.0, "share": 0.5}
    quiet, wide = list(random.normal(1.0, 0.01, 60)), list(random.uniform(0.5, 1.5, 60))
    assert is_settled(quiet[:15])
    assert not is_settled(wide[:15])
    assert needs_more(quiet[:2], 100.0, **rules)
    assert not needs_more(quiet[:3], 10.1, **rules)
    assert needs_more(quiet[:14], 9.9, **rules)
    assert not needs_more(quiet[:15], 1.0, **rules)
    assert needs_more(quiet[:15], 0.1, **rules)  # a moment says little of a busy machine
    assert needs_more(wide[:15], 1.0, **rules)
    assert not needs_more(wide[:15], 2.1, **rules)
    assert not needs_more(wide, 0.1, **rules)


class Busy(Calculator):
    """A call of 1 ms on a busy machine."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, seed):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        end = time.perf_counter() + 1e-3 * float(draw(self.random, 1)[0])
        while time.perf_counter() < end:
            pass
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


def test_cheap_calls_and_steps_are_repeated_more_often():
    plan = TimingPlan(budget=20.0)
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])
    begin = time.perf_counter()
    point = time_calculator(lambda: Busy(0), [atoms], plan=plan).points[0]
    assert time.perf_counter() - begin < 0.15 * plan.budget
    assert len(point.seconds) > plan.max_repeats
    entry = Timed("student", "s", lambda: Busy(1), {})
    curve = time_dynamics(
        entry, [bulk("Cu", cubic=True)], temperature=300, time_step=1.0, budget=20.0, max_steps=30
    )
    assert len(curve.points[0].seconds) > 3


def test_a_slowdown_is_seen_beyond_the_scatter_of_calls():
    """A third more in every series of a record with as many repeats as are taken now; a repeated run is no slowdown."""
    random = np.random.default_rng(1)
    before, after = (
        change_times(
            read_record(RESULTS / f"{REPORTS[0]}.json"),
            lambda old: np.median(old) * draw(random, 60),
        )
        for _ in range(2)
    )
    require_no_slowdown(compare_speed(before, after))
    slower = compare_speed(before, change_times(after, lambda times: 1.3 * times))
    assert all(change.slower for change in slower)
    with pytest.raises(SlowdownError, match=f"{len(slower)} of {len(slower)} timings"):
        require_no_slowdown(slower)


@pytest.mark.parametrize("name", REPORTS)
def test_slow_calls_are_seen_in_stored_records(name):
    """Fifteen repeats each, of which the first two took two to four times as long."""
    record = read_record(RESULTS / f"{name}.json")
    assert not any(change.slower for change in compare_speed(record, record))
    slower = compare_speed(record, change_times(record, lambda times: 1.3 * times))
    calls = [change for change in slower if change.what.startswith("ase-call")]
    assert len(calls) >= 4
    assert all(change.slower for change in calls)


@pytest.mark.parametrize("name", [*REPORTS, "nacl-7net-0-cpu", "silicon-demo", "water-7net-0-h100"])
def test_natural_noise_is_no_slowdown(name):
    """Other draws from the repeats of a record, some of three or four; its dynamics had slow halves."""
    record = read_record(RESULTS / f"{name}.json")
    random = np.random.default_rng(2)

    def redraw():
        return change_times(record, lambda times: random.choice(times, len(times)))

    alarms = sum(any(c.slower for c in compare_speed(redraw(), redraw())) for _ in range(40))
    assert alarms <= 2
