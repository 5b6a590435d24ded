"""Time for physical properties: shares of the budget, waiting, stopping, and the teacher left out of runs."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from fastff.labels import Labels
from fastff.models import build_student, configure_student
from fastff.report.physics.derive import PropertyError, TooShortError
from fastff.report.physics.material import describe_material
from fastff.report.physics.record import DimerItem
from fastff.report.physics.sampling import count_least, count_replicas, make_runs, plan_runs
from fastff.report.physics.schedule import Laboratory, Task
from fastff.report.physics.side import OutOfTimeError, Side, relax_cell
from fastff.report.physics_figures import draw_item
from fastff.teachers import load_teacher


@pytest.fixture(scope="module")
def copper():
    return load_teacher("analytic:emt", device="cpu")


def make_laboratory(copper, budget):
    sides = [Side(role, copper.label, {}) for role in ("teacher", "student")]
    return Laboratory(*sides, "auto", budget, lambda message, done, total: None)


def make_task(title, share, cost, seconds=0.0, against="", **options):
    def measure(allowed):
        time.sleep(seconds)
        return DimerItem(title=title, description=f"{allowed:.1f}", curves=())

    return Task(title, share, measure, lambda: cost, lambda: against, **options)


def test_a_dear_property_waits_and_takes_what_is_left(copper):
    lab = make_laboratory(copper, 10.0)
    lab.work(
        [
            make_task("dear", 1.0, 8.0),
            make_task("cheap", 1.0, 0.1),
            make_task("unfit", 1.0, 0.1, against="no"),
        ]
    )
    assert [item.title for item in lab.items] == ["cheap", "dear"]
    assert [(entry.title, entry.reason) for entry in lab.left_out] == [("unfit", "no")]


def test_those_that_wait_come_by_their_cost_for_their_share(copper):
    """What is worth twelve shares takes the seconds first, though it costs more than what is worth two."""
    lab = make_laboratory(copper, 10.0)
    lab.work(
        [
            make_task("pairs", 12.0, 9.0, cost_alone=lambda: 0.1, seconds=0.1),
            make_task("drift", 2.0, 3.0, cost_alone=lambda: 0.1),
            make_task("cheap", 1.0, 0.1),
        ]
    )
    assert [item.title for item in lab.items] == ["cheap", "pairs", "drift"]


@pytest.mark.parametrize(("budget", "attempts"), [(10.0, 2), (0.5, 1)])
def test_what_was_stopped_has_the_seconds_that_are_left(copper, budget, attempts):
    """It does not begin again with fewer than it had."""
    allowed = []

    def measure(seconds):
        allowed.append(seconds)
        if len(allowed) == 1:
            time.sleep(0.3)
            raise OutOfTimeError("the teacher was stopped")
        return DimerItem(title="stiff", description="", curves=())

    lab = make_laboratory(copper, budget)
    lab.work([Task("stiff", 1.0, measure, lambda: 0.01, str), make_task("other", 4.0, 0.01)])
    assert len(allowed) == attempts
    if attempts == 2:
        assert [item.title for item in lab.items] == ["other", "stiff"]
        assert allowed[1] > 2.0 * allowed[0]
    else:
        assert [item.title for item in lab.items] == ["other"]
        assert "s of the budget of" in lab.left_out[0].reason


def test_the_student_alone_comes_after_all_comparisons(copper):
    lab = make_laboratory(copper, 10.0)
    lab.work(
        [
            make_task("too dear for the teacher", 1.0, 50.0, cost_alone=lambda: 1.0),
            make_task("dear", 1.0, 8.0),
            make_task("cheap", 1.0, 0.1),
        ]
    )
    assert [item.title for item in lab.items] == ["cheap", "dear", "too dear for the teacher"]


def test_what_was_cut_short_gets_the_seconds_that_are_left(copper):
    lab = make_laboratory(copper, 10.0)
    cut = make_task(
        "cut", 1.0, 0.1, seconds=0.01, incomplete=lambda item: float(item.description) < 9.0
    )
    lab.work([cut, make_task("other", 4.0, 0.1)])
    assert [item.title for item in lab.items] == ["cut", "other"]
    assert float(lab.items[0].description) > 9.0


def test_runs_that_are_too_short_wait_for_more_time(copper):
    def measure(seconds):
        if seconds < 5.0:
            raise TooShortError("too short")
        return DimerItem(title="run", description="", curves=())

    lab = make_laboratory(copper, 10.0)
    lab.work([Task("run", 1.0, measure, lambda: 0.1, str), make_task("other", 4.0, 0.1)])
    assert [item.title for item in lab.items] == ["other", "run"]
    lab = make_laboratory(copper, 4.0)
    lab.work([Task("run", 1.0, measure, lambda: 0.1, str)])
    assert [entry.reason for entry in lab.left_out] == ["too short"]


def test_a_dear_call_is_judged_once():
    calls = []

    def slow(structures):
        calls.append(len(structures))
        time.sleep(0.1)
        return [Labels(0.0, np.zeros((len(atoms), 3)), None) for atoms in structures]

    side = Side("teacher", slow, {})
    side.deadline = time.perf_counter() + 1.0
    assert side.estimate(bulk("Cu", cubic=True)) >= 0.1
    assert side.estimate(bulk("Cu", cubic=True)) >= 0.1
    assert len(calls) == 1


def test_a_property_beyond_the_budget_is_left_out_with_both_numbers(copper):
    lab = make_laboratory(copper, 10.0)
    lab.work([make_task("dear", 1.0, 50.0)])
    assert lab.items == []
    assert "takes about 50 s, 10 s of the budget of 10 s are left" in lab.left_out[0].reason


def test_a_property_that_crashes_costs_no_other(copper):
    def crash(seconds):
        raise ImportError("no such extension\nat all")

    lab = make_laboratory(copper, 10.0)
    lab.work([Task("broken", 1.0, crash, lambda: 0.1, str), make_task("sound", 1.0, 0.1)])
    assert [item.title for item in lab.items] == ["sound"]
    assert [entry.reason for entry in lab.left_out] == [
        "it failed with ImportError: no such extension (please report this)"
    ]


@pytest.mark.parametrize("fault", [RuntimeError("out of luck"), PropertyError("it broke")])
def test_a_longer_run_finds_faults_but_its_crash_costs_nothing(copper, fault):
    def crash_later(seconds):
        if seconds > 9.0:
            raise fault
        return DimerItem(title="run", description="", curves=())

    lab = make_laboratory(copper, 10.0)
    run = Task("run", 1.0, crash_later, lambda: 0.1, str, incomplete=lambda item: True)
    lab.work([run, make_task("other", 4.0, 0.1)])
    kept = [] if isinstance(fault, PropertyError) else ["run"]
    assert [item.title for item in lab.items] == [*kept, "other"]
    assert [entry.reason for entry in lab.left_out] == ([] if kept else ["it broke"])


@pytest.mark.parametrize(
    ("single", "each", "seconds", "expected"),
    [
        (0.05, 0.002, 100.0, 8),  # a batch of eight takes 1.3 times one
        (0.05, 0.012, 100.0, 4),  # and here 2.7 times
        (0.05, 0.05, 100.0, 2),
        (0.05, 0.002, 10.5, 2),  # no time for four
        (0.05, 0.002, 2.0, 1),  # to try a batch takes too much of it
    ],
)
def test_replicas_run_where_a_batch_costs_little_more_than_one(
    single, each, seconds, expected, copper
):
    def estimate(side, atoms, copies):
        return single + each * (copies - 1)

    teacher = Side("teacher", copper.label, {})
    found = count_replicas(teacher, bulk("Cu", cubic=True), estimate, lambda count: 200, seconds)
    assert found == expected


def test_many_replicas_need_half_the_steps_of_few(copper):
    """Each of eight is a block of its own: there is time for them where there is none for one of two blocks."""

    def estimate(side, atoms, copies):
        return 0.05 + 0.002 * (copies - 1)

    def least(count):
        return count_least(count, 0.5)

    assert (least(1), least(4), least(8)) == (2670, 2670, 1335)
    teacher = Side("teacher", copper.label, {})
    for seconds, expected in ((86.0, 8), (140.0, 8)):
        found = count_replicas(teacher, bulk("Cu", cubic=True), estimate, least, seconds)
        assert found == expected


def test_a_relaxation_is_stopped_at_the_deadline(copper):
    def slow(structures):
        time.sleep(0.05)
        return copper.label(structures)

    side = Side("teacher", slow, {})
    side.deadline = time.perf_counter() + 0.2
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.2, seed=0)
    start = time.perf_counter()
    with pytest.raises(OutOfTimeError, match="the teacher was stopped"):
        relax_cell(side.attach(atoms))
    assert time.perf_counter() - start < 1.0


def test_warming_up_does_not_enter_estimates(copper):
    """The first call at a size may compile for seconds, also where a property made it."""
    seen = set()

    def warm(structures):
        n_atoms = sum(map(len, structures))
        if n_atoms not in seen:
            seen.add(n_atoms)
            time.sleep(0.3)
        return copper.label(structures)

    side = Side("teacher", warm, {})
    side.label([Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]])] * 28)
    assert side.estimate(bulk("Cu", cubic=True).repeat((2, 2, 4))) < 0.15


def test_a_calculator_that_remembers_its_last_structure_is_timed_at_work(copper):
    seen = []

    def remember(structures):
        if not any(seen and atoms == seen[-1] for atoms in structures):
            time.sleep(0.05)
        seen.extend(structures)
        return copper.label(structures)

    assert Side("teacher", remember, {}).estimate(bulk("Cu", cubic=True)) > 0.05


def test_a_slow_teacher_is_absent_from_runs_and_the_reason_is_given():
    def glide(structures):
        return [Labels(0.0, np.zeros((len(atoms), 3)), None) for atoms in structures]

    def slow(structures):
        time.sleep(0.3 * len(structures))
        return glide(structures)

    sides = [Side("teacher", slow, {}), Side("student", glide, {})]
    lab = Laboratory(*sides, "auto", 20.0, lambda message, done, total: None)
    torch.manual_seed(0)
    model = build_student(configure_student("m1", (29,), cutoff=4.0))
    material = describe_material(bulk("Cu"))
    lab.work(plan_runs(lab, material, make_runs(lab, material, model, (300.0, 300.0))))
    assert [item.kind for item in lab.items] == ["rdf"], lab.left_out
    item = lab.items[0]
    assert item.curves[0].teacher is None
    assert "ps of the student alone after equilibration" in item.description
    assert "the teacher was not run: 670 steps of it take about" in item.description
    assert item.quantities[0].student is not None
    assert item.quantities[0].teacher is None
    assert draw_item(item)
