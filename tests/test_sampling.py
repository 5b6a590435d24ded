"""Sampling: plans, and continuing where a label file stops. Not here: cells and thermal draws."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from emt_frames import EmtTeacher, assert_same_frames

from fastff.distill.content import hash_structure
from fastff.distill.sampling import SamplingProgress, measure_teacher, plan_sampling, run_sampling
from fastff.distill.split import split_frames
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.labels import Frame, Labels


@pytest.mark.parametrize("budget", [60, 160, 600, 3000])
@pytest.mark.parametrize("seed", ["Cu", "H2O", "slab"])
def test_a_plan_keeps_to_its_budget(budget: int, seed: str) -> None:
    atoms = {"Cu": bulk("Cu"), "H2O": molecule("H2O"), "slab": fcc111("Cu", (2, 2, 3), vacuum=8)}[
        seed
    ]
    plan = plan_sampling([atoms], budget=budget)
    assert 0.85 * budget <= plan.n_evaluations <= budget
    assert 0 < plan.n_held_out < plan.n_frames <= plan.n_evaluations
    text = str(plan)
    for word in ("teacher-md, held out", "close-contact", "total", "fs", f"{plan.n_frames}"):
        assert word in text
    assert ("strain" in plan.counts) == (seed != "H2O")
    assert plan.fingerprint == plan_sampling([atoms], budget=budget).fingerprint
    assert plan.fingerprint != plan_sampling([atoms], budget=budget, seed=1).fingerprint
    timesteps = {group.settings.timestep for group in plan.dynamics}
    assert timesteps == {0.5 if seed == "H2O" else 2.0}


def test_a_plan_for_a_number_of_frames() -> None:
    assert plan_sampling([bulk("Cu")], n_frames=1000).n_frames == pytest.approx(1000, rel=0.1)
    assert plan_sampling([bulk("Cu")], n_frames=300, budget=1000).n_frames < 620


def test_many_structures_are_thinned_and_that_is_said() -> None:
    plan = plan_sampling([bulk("Cu")] * 50, budget=150)
    assert len(plan.cells) == 10
    assert "10 of 50 structures" in str(plan)


def test_plans_that_cannot_be() -> None:
    class Info:
        name, elements = "tiny", (29,)

    with pytest.raises(UnsupportedElementError, match="structure 1 contains Si, unknown to tiny"):
        plan_sampling([bulk("Cu"), bulk("Si")], Info())
    with pytest.raises(UsageError, match="0 < lowest <= highest"):
        plan_sampling([bulk("Cu")], temperatures=(900, 300))
    with pytest.raises(UsageError, match="use at least 15"):
        plan_sampling([bulk("Cu")], budget=10)
    with pytest.raises(DataError, match="no structures"):
        plan_sampling([])
    with pytest.raises(DataError, match="no atoms"):
        plan_sampling([ase.Atoms()])
    broken = bulk("Cu")
    broken.positions[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        plan_sampling([broken])
    with pytest.raises(DataError, match="length zero"):
        plan_sampling([ase.Atoms("Cu", pbc=True)])


PLAN = plan_sampling([bulk("Cu", cubic=True)], budget=70, cutoff=3.0, max_atoms=8)


def sample(path: Path, teacher: EmtTeacher) -> list[Frame]:
    with LabelStore(path, "a", teacher={"name": "emt"}) as store:
        run_sampling(teacher, PLAN, store)
        return store.read()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    return sample(tmp_path_factory.mktemp("whole") / "a.h5", EmtTeacher())


def test_a_plan_is_carried_out(tmp_path: Path) -> None:
    teacher, seen = EmtTeacher(), []
    with LabelStore(tmp_path / "a.h5", "a") as store:
        plan = measure_teacher(teacher, PLAN, store)
        assert 0 < plan.seconds < 60
        report = run_sampling(teacher, plan, store, on_progress=seen.append)
        frames, held_out = store.read(), store.held_out
    assert teacher.n_labelled == plan.n_evaluations
    assert report.n_labelled + report.n_found == plan.n_evaluations
    assert len(frames) + report.n_quarantined == plan.n_frames
    assert isinstance(seen[-1], SamplingProgress)
    assert (seen[-1].done, seen[-1].total) == (plan.n_evaluations, plan.n_evaluations)
    test = [f for f in frames if f.trajectory in held_out]
    assert len(test) == plan.n_held_out
    assert {f.source for f in test} == {"teacher-md"}
    assert min(f.step for f in test) > 0
    split = split_frames(frames, held_out=held_out)
    assert len(split.test) == len(test)
    sources = {f.source for f in frames}
    assert sources == {
        "seed",
        "rattle",
        "strain",
        "shear",
        "close-contact",
        "thermal",
        "teacher-md",
    }
    volumes = [f.atoms.get_volume() for f in frames if f.source == "strain"]
    assert np.ptp(volumes) / np.mean(volumes) > 0.15
    forces = {
        s: np.max([np.abs(f.labels.forces).max() for f in frames if f.source == s]) for s in sources
    }
    assert forces["close-contact"] > 2 * forces["thermal"]


def test_atoms_of_thermal_structures_keep_apart(tmp_path: Path) -> None:
    """Of a crystal with springs so soft that its neighbors would pass through each other."""
    teacher = EmtTeacher()
    teacher.fault = lambda _, labels: replace(labels, forces=0.02 * labels.forces)
    with LabelStore(tmp_path / "a.h5", "a") as store:
        run_sampling(teacher, PLAN, store)
        frames = store.read()
    drawn = [f for f in frames if f.source == "thermal" or (f.source, f.step) == ("teacher-md", 0)]
    assert {f.source for f in drawn} == {"thermal", "teacher-md"}
    nearest = [neighbor_list("d", f.atoms, 4.0).min() for f in drawn]
    assert min(nearest) > 0.7 * 0.97 * 3.61 / 2**0.5
    assert min(nearest) < 0.75 * 3.61 / 2**0.5


def test_the_cell_of_every_trajectory_is_known(tmp_path: Path) -> None:
    seeds = [bulk("Cu", cubic=True), bulk("Au", cubic=True), bulk("Al", cubic=True)]
    plan = plan_sampling(seeds, budget=160, cutoff=3.0, max_atoms=8)
    with LabelStore(tmp_path / "a.h5", "a") as store:
        run_sampling(EmtTeacher(), plan, store)
        frames = store.read()
    assert {frame.source for frame in frames} >= {"seed", "thermal", "teacher-md"}
    for frame in frames:
        cell = plan.find_cell(frame.trajectory)
        assert cell is not None
        assert plan.cells[cell].atoms.get_chemical_formula() == frame.atoms.get_chemical_formula()
    assert plan.find_cell(plan.number_trajectory(-1)) is None
    assert plan.find_cell(plan.number_trajectory(1 << 19)) is None


def test_cells_of_many_trajectories_are_found_without_hashing_the_plan_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round asks for every frame several times; with hundreds of cells that took minutes."""
    seeds = [bulk("Cu", cubic=True), bulk("Au", cubic=True), bulk("Al", cubic=True)]
    plan = plan_sampling(seeds, budget=160, cutoff=3.0, max_atoms=8)
    hashed: list[int] = []

    def count(atoms: ase.Atoms) -> bytes:
        hashed.append(len(atoms))
        return hash_structure(atoms)

    monkeypatch.setattr("fastff.distill.plan.hash_structure", count)
    for index in range(plan.n_static):
        plan.find_cell(plan.number_trajectory(index))
    assert len(hashed) <= len(plan.cells)
    assert replace(plan, seed=plan.seed + 1).fingerprint != plan.fingerprint


def test_the_same_seed_gives_the_same_frames(tmp_path: Path, uninterrupted: list[Frame]) -> None:
    assert_same_frames(uninterrupted, sample(tmp_path / "a.h5", EmtTeacher()))


@pytest.mark.parametrize("die_after", [1, 20, 45, 52, 64])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, die_after: int, uninterrupted: list[Frame]
) -> None:
    path, first, second = tmp_path / "a.h5", EmtTeacher(die_after), EmtTeacher()
    store = LabelStore(path, "a", teacher={"name": "emt"})
    with pytest.raises(KeyboardInterrupt):
        run_sampling(first, PLAN, store)
    store._file.close()  # no farewell
    assert_same_frames(uninterrupted, sample(path, second))
    assert first.n_labelled + second.n_labelled < PLAN.n_evaluations + 20
    third = EmtTeacher()
    assert_same_frames(uninterrupted, sample(path, third))
    assert third.n_labelled == 0


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from emt_frames import EmtTeacher
    from tests.test_sampling import sample
    class Slow(EmtTeacher):
        def label(self, structures):
            print(len(structures), flush=True)
            time.sleep(0.02)
            return super().label(structures)
    sample(Path(sys.argv[1]), Slow())
    """
)


def test_killed_sampling_loses_and_doubles_nothing(
    tmp_path: Path, uninterrupted: list[Frame]
) -> None:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    rng = np.random.default_rng(2)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "a.h5")],
            env=environment,
            stdout=subprocess.PIPE,
            cwd=root,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert_same_frames(uninterrupted, sample(tmp_path / "a.h5", EmtTeacher()))


def test_a_replica_that_blew_up_stays_down_after_a_restart(tmp_path: Path) -> None:
    plan = plan_sampling([bulk("Cu", cubic=True)], budget=160, cutoff=2.0, max_atoms=4)
    first = plan.dynamics[0]
    assert (len(first.replicas), first.settings.stride) == (2, 4)

    def explode(number: int, labels: Labels) -> Labels:
        fifth_step_of_second = plan.n_static + 2 * 5 + 1
        return (
            replace(labels, forces=labels.forces * 1e6)
            if number == fifth_step_of_second
            else labels
        )

    teacher = EmtTeacher()
    teacher.fault = explode
    with LabelStore(tmp_path / "a.h5", "a", teacher={"name": "emt"}) as store:
        report = run_sampling(teacher, plan, store)
        assert len(report.stopped) == 1
        assert "replica 1" in str(report)
        assert "at step 5" in str(report)
        frames = store.read()
        idle = EmtTeacher()
        again = run_sampling(idle, plan, store)
        assert idle.n_labelled == again.n_labelled == 0
        assert len(again.stopped) == 1
        assert_same_frames(frames, store.read())
    trajectory = plan.number_trajectory(plan.n_static + 1)
    assert sorted(f.step for f in frames if f.trajectory == trajectory) == [0, 4]


def test_labels_a_teacher_cannot_give_are_set_aside(tmp_path: Path) -> None:
    teacher = EmtTeacher()
    teacher.fault = lambda n, x: replace(x, energy=np.nan) if n in (4, 9) else x
    with LabelStore(tmp_path / "a.h5", "a") as store:
        report = run_sampling(teacher, PLAN, store)
        assert report.n_quarantined == store.n_quarantined == 2
        assert "2 set aside" in str(report)
    teacher = EmtTeacher()
    teacher.fault = lambda n, x: replace(x, energy=np.nan) if n == 0 else x
    with (
        LabelStore(tmp_path / "b.h5", "a") as store,
        pytest.raises(DataError, match="as given: energy"),
    ):
        run_sampling(teacher, PLAN, store)


def test_a_cold_teacher_is_warmed_up_before_it_is_timed(tmp_path: Path) -> None:
    """Also when an earlier run has stored what would have warmed it up."""

    class Cold(EmtTeacher):
        n_calls = 0

        def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
            self.n_calls += 1
            if self.n_calls <= 2:
                time.sleep(0.5)
            return super().label(structures)

    for _ in range(2):
        with LabelStore(tmp_path / "labels.h5", "a") as store:
            plan = measure_teacher(Cold(), PLAN, store)
        assert plan.seconds_per_atom * len(plan.cells[0].atoms) < 0.4
