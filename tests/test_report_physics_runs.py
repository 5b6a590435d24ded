"""Runs of physical properties: the student's own loop, replicas, least lengths, diffusion, stability."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from md_models import make_copper

from fastff.inference import predict
from fastff.labels import Labels
from fastff.models import build_student, configure_student
from fastff.report.physics import endurance, motion
from fastff.report.physics.derive import (
    PropertyError,
    TooShortError,
    fit_drift,
)
from fastff.report.physics.material import describe_material
from fastff.report.physics.record import (
    EnergyTrace,
)
from fastff.report.physics.run import plan_student
from fastff.report.physics.sampling import make_runs
from fastff.report.physics.schedule import Laboratory
from fastff.report.physics.side import OutOfTimeError, Side
from fastff.teachers import load_teacher


@pytest.fixture(scope="module")
def copper():
    return load_teacher("analytic:emt", device="cpu")


def test_diffusion_of_a_random_walk():
    """Steps of variance s^2 per coordinate and frame: D = s^2 / (2 dt)."""
    random = np.random.default_rng(2)
    paths = np.cumsum(random.normal(scale=0.1, size=(400, 300, 3)), axis=0)
    assert motion.fit_diffusion(motion.measure_msd(paths), 0.01) == pytest.approx(0.5, rel=0.1)


def test_drift_by_hand():
    times = np.linspace(0, 2, 50)
    trace = EnergyTrace(times=tuple(times), energies=tuple(0.3 * times))
    assert fit_drift(trace) == pytest.approx((0.3, 0.0), abs=1e-9)


def test_a_broken_run_is_left_out_not_a_crash(copper):
    def explode(structures):
        return [Labels(np.nan, np.full((len(a), 3), np.nan), None) for a in structures]

    with pytest.raises(PropertyError, match="the run of the student broke"):
        motion.run_side(
            Side("student", explode, {}),
            motion.Dynamics(bulk("Cu", cubic=True), 300.0, 2.0, 40, seed=0),
        )


def test_stability_of_a_wild_student_is_reported():
    torch.manual_seed(3)
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    run, rows = endurance.run_engine(
        student, bulk("Cu", cubic=True).repeat(2), 300.0, 2.0, 40, ensemble="nvt"
    )
    assert run.n_steps == 40
    assert (run.done == 40) == (run.reason == "")
    assert len(rows) >= 1


def open_laboratory(copper, budget):
    """EMT's copper as teacher beside an untrained student, and their runs of 300 to 400 K."""
    torch.manual_seed(0)
    model = build_student(configure_student("m1", (29,), cutoff=4.0))
    sides = [Side("teacher", copper.label, {}), Side("student", partial(predict, model), {})]
    lab = Laboratory(*sides, "auto", budget, lambda message, done, total: None)
    material = describe_material(bulk("Cu"))
    return lab, material, make_runs(lab, material, model, (300.0, 400.0))


def test_stability_is_tested_at_the_highest_temperature_and_beyond(copper, monkeypatch):
    monkeypatch.setattr(endurance, "LEAST_STABILITY", 0.04)
    lab, material, runs = open_laboratory(copper, 6.0)
    lab.work(plan_student(lab, material, runs, 400.0)[1:])
    (item,) = lab.items
    assert [run.temperature for run in item.runs] == [400.0, 600.0]
    assert (
        "highest temperature of its training range, 400 K, and 1.5 times that" in item.description
    )


def test_the_teacher_is_in_runs_that_just_fit(copper, monkeypatch):
    """The seconds that a task says it needs are enough for both sides, also where rounding is against it."""
    monkeypatch.setattr(endurance, "LEAST_NVE", 0.02)
    monkeypatch.setattr(endurance, "SETTLING", 0.005)
    monkeypatch.setattr(Side, "estimate", lambda side, atoms, copies=1: 0.07)
    lab, material, runs = open_laboratory(copper, 10.0)
    monkeypatch.setattr(runs, "estimate_own", lambda box: 0.01)
    task = plan_student(lab, material, runs, 400.0)[0]
    item = task.measure(task.cost() * (1.0 - 1e-12))
    assert item.teacher is not None
    assert item.teacher.times[-1] == pytest.approx(0.02)
    assert item.description.endswith("10 by the teacher")
    item = task.measure(0.5)
    assert item.teacher is None
    assert item.description.endswith(
        "not run by the teacher: 10 steps of it take about 0.7 s, 0.35 s were left"
    )


def test_a_sound_run_too_short_to_say_anything_is_no_result(monkeypatch):
    monkeypatch.setattr(endurance, "LEAST_STABILITY", 0.1)
    torch.manual_seed(3)
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    start = bulk("Cu", cubic=True).repeat(2)
    with pytest.raises(TooShortError, match=r"0\.04 ps of 0\.1 ps"):
        endurance.measure_stability(student, start, 300.0, 2.0, 20)
    start.set_momenta(np.zeros((32, 3)))
    with pytest.raises(TooShortError, match=r"0\.04 ps of 0\.5 ps"):
        endurance.measure_nve(None, student, start, 300.0, 2.0, 20, 0)


def walk(n_frames, power=0.5, scale=0.3, time_step=2.0):
    """Frames, 10 fs apart, of atoms whose displacement grows as time to ``power``."""
    random = np.random.default_rng(5)
    if power == 0.5:
        paths = np.cumsum(random.normal(scale=scale, size=(n_frames, 30, 3)), axis=0)
    else:
        paths = (
            random.normal(scale=scale, size=(30, 3)) * np.arange(n_frames)[:, None, None] ** power
        )
    images = [Atoms("Ar30", positions, cell=[12] * 3, pbc=True) for positions in paths]
    return motion.Run([images], time_step)


def test_replicas_are_blocks_of_their_own():
    run = walk(260)
    frames = run.replicas[0]
    both = motion.Run([frames, frames[::-1]], run.time_step)
    pairs = [("Ar", "Ar")]
    item, single = (motion.compare_distributions(None, r, pairs, 300.0) for r in (both, run))
    assert item.n_blocks == 2 * single.n_blocks == 10
    assert "2 replicas of 2.6 ps" in item.description
    assert "10 blocks of 0.52 ps" in item.description
    assert item.curves[0].student == pytest.approx(single.curves[0].student)
    assert sum(item.curves[0].student_error) < sum(single.curves[0].student_error)
    run = walk(510)
    both = motion.Run([*run.replicas, *run.replicas], run.time_step)
    item, single = (motion.compare_diffusion(None, r, 300.0) for r in (both, run))
    assert item.curves[0].student == pytest.approx(single.curves[0].student)
    assert item.curves[0].student_blocks == 2 * single.curves[0].student_blocks
    assert "over 8 blocks" in item.description


def test_pair_distributions_of_boxes_that_end_elsewhere_are_not_compared():
    run = walk(260)
    narrow = [image.copy() for image in run.replicas[0]]
    for image in narrow:
        image.set_cell([12, 12, 10])
    other = motion.Run([narrow], run.time_step)
    with pytest.raises(PropertyError, match="up to 5 Å of the teacher, 6 Å of the student"):
        motion.compare_distributions(other, run, [("Ar", "Ar")], 300.0)


def test_the_student_runs_in_its_own_loop_like_the_teacher():
    """The same model on both ways: as many structures of the same kind of motion, and the same refusals."""
    model = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8)).double()
    dynamics = motion.Dynamics(bulk("Cu", cubic=True).repeat(2), 300.0, 2.0, 400, 3, 2)
    own = endurance.run_own(model, dynamics)
    other = motion.run_side(Side("teacher", partial(predict, model), {}), dynamics)
    assert [len(images) for images in own.replicas] == [len(images) for images in other.replicas]
    assert own.length == other.length == pytest.approx(0.61)
    spread = [
        np.mean([np.std([a.positions for a in images], axis=0).mean() for images in run.replicas])
        for run in (own, other)
    ]
    assert spread[0] == pytest.approx(spread[1], rel=0.25)
    first, second = own.replicas
    assert not np.allclose(first[0].positions, second[0].positions)
    with pytest.raises(OutOfTimeError, match="the student was stopped"):
        endurance.run_own(model, dynamics, deadline=0.0)
    with pytest.raises(PropertyError, match="the run of the student broke"):
        endurance.run_own(model, replace(dynamics, temperature=1e6))


def test_replicas_have_velocities_of_their_own(copper):
    side = Side("teacher", copper.label, {})
    dynamics = motion.Dynamics(bulk("Cu", cubic=True), 300.0, 2.0, 20, seed=0, n_replicas=2)
    run = motion.run_side(side, dynamics)
    first, second = run.replicas
    assert len(first) == len(second) == 4
    assert not np.allclose(first[0].positions, second[0].positions)
    alone = motion.run_side(side, replace(dynamics, n_replicas=1))
    np.testing.assert_allclose(alone.first.positions, first[0].positions, atol=1e-9)


def test_short_runs_have_fewer_blocks_of_pair_distributions_and_no_diffusion():
    pairs = [("Ar", "Ar")]
    item = motion.compare_distributions(None, walk(160), pairs, 300.0)
    assert item.n_blocks == 3
    assert "3 blocks of 0.53 ps" in item.description
    with pytest.raises(TooShortError, match=r"two blocks of 0\.5 ps"):
        motion.compare_distributions(None, walk(90), pairs, 300.0)
    several = motion.Run(5 * walk(90).replicas, walk(90).time_step)
    assert motion.compare_distributions(None, several, pairs, 300.0).n_blocks == 5
    with pytest.raises(TooShortError, match="5 ps are needed"):
        motion.compare_diffusion(None, walk(400), 300.0)


def test_diffusion_needs_displacements_linear_in_time():
    item = motion.compare_diffusion(None, walk(510), 300.0)
    # steps of variance 0.09 Å^2 per coordinate in 0.01 ps
    assert item.curves[0].student_blocks == pytest.approx([4.5] * 4, rel=0.5)
    with pytest.raises(PropertyError, match=r"not linear in time.*power 2\.00"):
        motion.compare_diffusion(None, walk(510, power=1.0, scale=0.02), 300.0)
    with pytest.raises(PropertyError, match="nothing diffuses"):
        motion.compare_diffusion(None, walk(510, power=0.0), 300.0)


def test_distances_end_at_half_the_box_where_it_is_periodic() -> None:
    crystal = bulk("Cu", cubic=True)
    assert motion.make_bins(crystal.repeat((2, 4, 4)))[-1] == pytest.approx(3.6)
    assert motion.make_bins(molecule("H2O"))[-1] == pytest.approx(motion.REACH)
    slab = fcc111("Cu", (8, 8, 2))  # no cell across
    assert motion.make_bins(slab)[-1] == pytest.approx(motion.REACH)
