"""What a budget of physics buys of a teacher as slow as on a GPU: by a clock that only labels and steps move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from fastff.labels import Labels
from fastff.models import build_student, configure_student
from fastff.report.physics import endurance, motion, schedule, side
from fastff.report.physics.material import describe_material
from fastff.report.physics.record import EnergyTrace, StabilityRun
from fastff.report.physics.run import plan_student
from fastff.report.physics.sampling import Runs, make_runs, plan_runs
from fastff.report.physics.schedule import Laboratory
from fastff.report.physics.side import Side

CALL = 0.073
"""Seconds of a call of SevenNet-0 for a small cell on an H100, and of one more atom in a batch."""

ATOM = 3e-5
STEP = 3e-4
"""Seconds of a step of a student's own loop, with frames copied out of it."""


class Clock:
    """In place of the module ``time``."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Runs that take their time by the clock and end at once; atoms walk at random in them."""
    clock = Clock()

    class Walk(motion.Run):
        """Forty frames, whatever the length."""

        length = 0.0

    def walk(dynamics, seed):
        random = np.random.default_rng(seed)
        replicas = []
        for _ in range(dynamics.n_replicas):
            steps = random.normal(scale=0.3, size=(40, len(dynamics.start), 3))
            images = [dynamics.start.copy() for _ in steps]
            for image, moved in zip(images, np.cumsum(steps, axis=0), strict=True):
                image.positions += moved
            replicas.append(images)
        run = Walk(replicas, dynamics.time_step)
        steps = dynamics.n_steps - dynamics.n_equilibrate + motion.INTERVAL
        object.__setattr__(run, "length", steps * dynamics.time_step * 1e-3)
        return run

    def run_side(teacher, dynamics):
        for _ in range(dynamics.n_steps):
            teacher.label([dynamics.start] * dynamics.n_replicas)
        return walk(dynamics, 1)

    def run_own(student, dynamics, deadline=np.inf):
        clock.now += STEP * dynamics.n_steps * dynamics.n_replicas
        return walk(dynamics, 2)

    def run_engine(student, start, temperature, time_step, n_steps, *, ensemble, seconds=np.inf):
        done = int(min(n_steps, seconds / STEP))
        clock.now += STEP * done
        rows = np.zeros((max(done // 10, 2), 5))
        rows[:, 0] = np.linspace(0, done, len(rows))
        run = StabilityRun(temperature=temperature, n_steps=done, done=done, reason="")
        return run, rows

    def trace(teacher, start, time_step, n_steps):
        for _ in range(n_steps):
            teacher.label([start])
        times = time_step * 1e-3 * np.arange(n_steps + 1)
        return EnergyTrace(times=tuple(times), energies=tuple(0.0 * times))

    def count_pairs(atoms, pairs):
        return (
            np.ones((len(pairs), len(motion.make_bins(atoms)) - 1)) + 1e-3 * atoms.positions[0, 0]
        )

    for module in (schedule, side):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(motion, "run_side", run_side)
    monkeypatch.setattr(motion, "count_pairs", count_pairs)
    monkeypatch.setattr(endurance, "run_own", run_own)
    monkeypatch.setattr(endurance, "run_engine", run_engine)
    monkeypatch.setattr(endurance, "_trace_teacher", trace)
    monkeypatch.setattr(Runs, "estimate_own", lambda runs, box: STEP)
    return clock


def make_water():
    """27 molecules turned at random, in a box of 9.4 Å."""
    random = np.random.default_rng(0)
    water = Atoms(cell=[9.4] * 3, pbc=True)
    for place in np.argwhere(np.ones((3, 3, 3))):
        one = molecule("H2O")
        one.rotate(360 * random.random(), random.normal(size=3))
        one.positions += (place + 0.5) * 9.4 / 3
        water += one
    return water


def plan(clock, atoms, budget, slower=1.0):
    """What is measured within a budget of seconds, by title; a teacher that is ``slower`` after its first calls."""

    def make_label(seconds, each):
        calls = 0

        def label(structures):
            nonlocal calls
            calls += 1
            factor = slower if seconds == CALL and calls > 60 else 1.0
            clock.now += factor * (seconds + each * sum(map(len, structures)))
            return [Labels(0.0, np.zeros((len(a), 3)), np.zeros(6)) for a in structures]

        return label

    sides = Side("teacher", make_label(CALL, ATOM), {}), Side("student", make_label(1e-3, 0.0), {})
    lab = Laboratory(*sides, "auto", budget, lambda message, done, total: None, started=clock.now)
    torch.manual_seed(0)
    model = build_student(configure_student("m1", tuple(set(atoms.numbers)), cutoff=4.0))
    material = describe_material(atoms)
    runs = make_runs(lab, material, model, (280.0, 700.0))
    lab.work([*plan_runs(lab, material, runs), *plan_student(lab, material, runs, 700.0)])
    assert clock.now < 1.1 * budget + 2.0  # what is begun ends a call or a few steps later
    assert lab.left_out == []
    return {item.title: item for item in lab.items}


@pytest.mark.parametrize(
    ("budget", "both"),
    [
        (60, set()),
        (150, {"Pair distributions"}),
        (230, {"Pair distributions", "Conservation of energy"}),
    ],
)
def test_a_liquid_has_its_pair_distributions_compared_before_its_energy(clock, budget, both):
    """One run of two blocks takes 200 s, eight of a block each 125 s, half a ps at constant energy 75 s."""
    items = plan(clock, make_water(), budget)
    pairs, energy = items["Pair distributions"], items["Conservation of energy"]
    assert (pairs.curves[0].teacher is not None) == ("Pair distributions" in both)
    assert (energy.teacher is not None) == ("Conservation of energy" in both)
    if both:
        assert "8 replicas of 0.5" in pairs.description
    else:
        assert "1335 steps of it in 8 replicas take about 12" in pairs.description
    # what the student does alone takes seconds
    assert energy.student.times[-1] == pytest.approx(5.0, rel=0.01)
    assert [run.done for run in items["Stability"].runs] == [10_000, 10_000]


@pytest.mark.parametrize(
    ("budget", "slower"), [(60, 3.0), (150, 1.15), (150, 1.3), (230, 2.0), (300, 3.0), (400, 2.5)]
)
def test_a_teacher_slower_than_its_estimate_costs_its_own_part_alone(clock, budget, slower):
    items = plan(clock, make_water(), budget, slower)
    assert set(items) == {"Pair distributions", "Diffusion", "Conservation of energy", "Stability"}
    pairs = items["Pair distributions"]
    if budget > 60 and slower > 1.15:
        assert pairs.curves[0].teacher is None
        assert "it was stopped after" in pairs.description


def test_diffusion_is_of_the_student_alone_where_the_runs_of_both_are_too_short(clock):
    item = plan(clock, make_water(), 150)["Diffusion"]
    assert {curve.teacher for curve in item.curves} == {None}
    assert "in a run of 5 ps of the student alone" in item.description
    assert "13335 steps of it take about 10" in item.description


def test_runs_that_are_long_enough_are_those_of_diffusion(clock):
    item = plan(clock, make_water(), 2000)["Diffusion"]
    assert all(curve.teacher is not None for curve in item.curves)
    assert "in the runs of the pair distributions" in item.description
