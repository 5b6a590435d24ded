"""The choice of walkers and of structures, and the file of a harvest. Not here: dynamics, whole rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from fastff.distill import harvest as harvest_module
from fastff.distill.explore import (
    Ending,
    Exploration,
    Snapshot,
    Walker,
)
from fastff.distill.harvest import (
    Harvest,
    Pick,
    WalkerPlan,
    choose_starts,
    harvest,
    plan_walkers,
    read_harvest,
    write_harvest,
)
from fastff.distill.select import choose_spread, describe_structures, weigh_uncertainty
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, Labels
from fastff.models import Student

from untrained import make_student  # isort: skip
from walkers import SETTINGS, make_explorer, make_walkers, rattle


@pytest.fixture(scope="module")
def student() -> Student:
    return make_explorer()


def test_far_points_are_chosen_first() -> None:
    points = np.array([[0.0, 0], [0.1, 0], [5, 0], [5.1, 0], [0, 9]])
    known = np.array([[0.0, 0.2]])
    assert choose_spread(points, known, np.ones(5), 3) == [4, 3, 1]
    assert choose_spread(points, known, np.array([1, 1, 3, 1, 0.1]), 1) == [2]
    assert choose_spread(points, known, np.ones(5), 2, forced=[0, 1, 2]) == [0, 1, 2]
    assert choose_spread(points, np.zeros((0, 2)), np.ones(5), 9)[0] == 0
    assert sorted(choose_spread(points, known, np.ones(5), 9)) == [0, 1, 2, 3, 4]


def test_weights_are_relative_and_bounded() -> None:
    weights = weigh_uncertainty([1.0, 2.0, 100.0, 0.01, np.nan])
    assert weights.tolist() == pytest.approx([1 / 1.5, 2 / 1.5, 3.0, 0.3, 1.0])
    assert weigh_uncertainty([np.nan, np.nan]).tolist() == [1.0, 1.0]


def test_descriptors_tell_structures_apart_and_atoms_not(student: Student) -> None:
    rng = np.random.default_rng(3)
    a, b = rattle(rng, 0.02), rattle(rng, 0.2)
    swapped = a[[2, 0, 3, 1]]
    rows = describe_structures(student, [a, swapped, a * (2, 1, 1), b])
    assert rows.shape[0] == 4
    distance = np.linalg.norm(rows - rows[0], axis=1)
    assert distance[1:3] == pytest.approx([0, 0], abs=1e-2 * distance[3])
    assert distance[3] > 0.5
    n = rows.shape[1] // 2  # means and root mean squares
    assert (rows[:, n:] >= np.abs(rows[:, :n]) - 1e-9).all()
    assert rows[3, n:].max() > 1.01 * np.abs(rows[3, :n]).max()
    blind = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005)
    with pytest.raises(UsageError, match="no uncertainty"):
        describe_structures(blind, [a])


def make_frames(temperatures: list[float]) -> list[Frame]:
    rng = np.random.default_rng(5)
    labels = Labels(0.0, np.zeros((4, 3)), np.zeros(6))
    return [
        Frame(rattle(rng, 0.02), labels, "teacher-md", k, t, 0) for k, t in enumerate(temperatures)
    ]


def test_walkers_cover_temperatures_uses_and_strains() -> None:
    frames = make_frames([300.0, 400.0, 500.0, 600.0])
    plan = WalkerPlan(6, 4, (300.0, 600.0), seed=0, first_trajectory=1000)
    walkers = plan_walkers(frames, plan, 1)
    assert [w.trajectory for w in walkers] == list(range(1000, 1014))
    train = [w for w in walkers if w.use == "train"]
    assert (train[0].temperature, train[-1].temperature) == (300.0, 900.0)
    for use in ("validation", "test"):
        mine = [w for w in walkers if w.use == use]
        assert len(mine) == 4
        assert [w.hot for w in mine] == [False, False, False, True]
        assert mine[-1].temperature == 900.0
    volumes = [w.atoms.get_volume() for w in train]
    assert 0.02 < np.ptp(volumes) / np.mean(volumes) < 0.3
    again, other = plan_walkers(frames, plan, 1), plan_walkers(frames, plan, 2)
    assert all(
        np.array_equal(a.atoms.cell, b.atoms.cell) for a, b in zip(walkers, again, strict=True)
    )
    assert not np.array_equal(walkers[0].atoms.cell, other[0].atoms.cell)


def test_isomers_are_walkers_of_their_own_at_changing_temperatures() -> None:
    """Fifteen of one formula; grouped by it, a single one would be trained on and others judged."""
    frames = make_frames([300.0] * 15)

    def find_kind(frame: Frame) -> str:
        return f"isomer {frame.trajectory}"

    plan = WalkerPlan(15, 15, (300.0, 600.0), seed=0, first_trajectory=1000)
    seen: dict[str, list[float]] = {}
    for number in (1, 2, 3):
        walkers = plan_walkers(frames, plan, number, find_kind=find_kind)
        for use in ("train", "validation", "test"):
            assert len({w.kind for w in walkers if w.use == use}) == 15
        for walker in walkers:
            start = frames[int(walker.kind.split()[1])].atoms
            assert np.allclose(
                walker.atoms.get_scaled_positions(wrap=False),
                start.get_scaled_positions(wrap=False),
                atol=1e-9,
            )
            if walker.use == "train":
                seen.setdefault(walker.kind, []).append(walker.temperature)
    assert min(np.ptp(temperatures) for temperatures in seen.values()) > 150.0


def test_no_walker_starts_where_one_blew_up() -> None:
    frames = make_frames([300.0, 400.0, 500.0, 600.0])
    pushed = []
    for frame, size, source in zip(
        frames,
        (1.0, 2.0, 1.9, 2.1),
        ("thermal", "teacher-md", "student-md", "student-md"),
        strict=True,
    ):
        labels = replace(frame.labels, forces=np.full((4, 3), size))
        pushed.append(replace(frame, labels=labels, source=source))
    assert choose_starts(pushed) == pushed[:3]
    assert choose_starts(pushed[2:]) == pushed[2:]


@pytest.mark.parametrize("n_train", [0, 5])
def test_what_is_labelled_of_an_exploration(
    student: Student, monkeypatch: pytest.MonkeyPatch, n_train: int
) -> None:
    walkers = make_walkers("train", "train", "validation", "validation", "test", "test")
    rng = np.random.default_rng(7)
    snapshots = [
        Snapshot(rattle(rng, 0.05), k, step, 0.5, 0.01, urgent=(k, step) in {(1, 20), (3, 20)})
        for k in range(6)
        for step in range(2, 21, 2)
    ]
    endings = [Ending(20)] * 6
    endings[1], endings[3] = Ending(20, "extrapolation"), Ending(20, "blow-up")
    monkeypatch.setattr(
        harvest_module,
        "explore",
        lambda *args: Exploration(tuple(snapshots), tuple(endings)),
    )
    found = harvest(student, walkers, SETTINGS, make_frames([300.0]), n_gate=8, n_train=n_train)
    uses = {}
    for pick in found.picks:
        uses.setdefault(pick.trajectory, set()).add(pick.use)
    assert all(len(names) == 1 for names in uses.values())  # no trajectory is cut
    counts = {u: sum(p.use == u for p in found.picks) for u in ("train", "validation", "test")}
    assert counts == {"train": n_train, "validation": 4, "test": 4}
    assert all(p.step >= 6 for p in found.picks if p.use == "test")
    trained = {(p.trajectory, p.step) for p in found.picks if p.use == "train"}
    if n_train:
        assert {(51, 20), (53, 20)} <= trained  # what came just before
        assert uses[53] == {"train"}
    else:
        assert uses[53] == {"validation"}
    assert found.record["gate_blown_up"] == found.record["blown_up"] == 1
    assert found.record["extrapolated"] == 1
    assert found.record["picoseconds"] == pytest.approx(6 * 20 * 2e-3)


@pytest.mark.parametrize(
    ("n_cool", "n_hot", "urgent", "expected"),
    [(20, 20, (), (6, 3)), (4, 20, (), (4, 5)), (20, 2, (), (7, 2)), (20, 20, (21, 22, 23, 24), (5, 4)),
     (20, 20, (0, 1, 2, *range(21, 27)), (3, 6)), (0, 20, (), (0, 9)), (20, 0, (), (9, 0)), (0, 0, (), (0, 0))],
)  # fmt: skip
def test_hot_structures_are_a_third_as_long_as_there_are_others(
    student: Student,
    monkeypatch: pytest.MonkeyPatch,
    n_cool: int,
    n_hot: int,
    urgent: tuple[int, ...],
    expected: tuple[int, int],
) -> None:
    atoms, hot = bulk("Cu"), [False] * n_cool + [True] * n_hot
    snapshots = [
        Snapshot(atoms, 0, k, 9.0 if hot[k] else 0.5, 0.01, k in urgent) for k in range(len(hot))
    ]  # the student is far less sure of hot ones, and they are farther apart

    def describe(_: Student, structures: list[Atoms]) -> np.ndarray:
        spread = [0.0] + [(100.0 if above else 1.0) * k for k, above in enumerate(hot, 1)]
        assert len(structures) == len(spread)
        return np.array(spread)[:, None]

    monkeypatch.setattr(harvest_module, "describe_structures", describe)
    chosen = harvest_module._choose_training(student, snapshots, hot, make_frames([300.0]), 9)
    assert len(set(chosen)) == len(chosen)
    assert (sum(not hot[k] for k in chosen), sum(hot[k] for k in chosen)) == expected
    assert set(urgent) <= set(chosen)


def test_the_choice_knows_which_walkers_are_hot(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    cool, hot = make_walkers("train", "train")
    walkers = [cool, replace(hot, hot=True)]
    snapshots = tuple(Snapshot(bulk("Cu"), k, step, 0.5, 0.01) for k in (0, 1) for step in (2, 4))
    found = Exploration(snapshots, (Ending(4), Ending(4)))
    monkeypatch.setattr(harvest_module, "explore", lambda *args: found)
    told: list[bool] = []

    def choose(_: Student, candidates: Any, above: list[bool], *rest: Any) -> list[int]:
        told.extend(above)
        return []

    monkeypatch.setattr(harvest_module, "_choose_training", choose)
    harvest(student, walkers, SETTINGS, make_frames([300.0]), n_gate=0, n_train=2)
    assert told == [False, False, True, True]


def test_few_frames_of_many_gate_walkers_reach_the_hottest() -> None:
    atoms = bulk("Cu")
    snapshots = [Snapshot(atoms, k, step, 0.5, 0.01) for k in range(9) for step in (2, 10, 20)]
    chosen = harvest_module._spread_evenly(snapshots, list(range(9)), 3, 20)
    assert [snapshot.walker for snapshot in chosen] == [0, 4, 8]
    many = harvest_module._spread_evenly(snapshots, [3, 5], 4, 20)
    assert [(s.walker, s.step) for s in many] == [(3, 10), (3, 20), (5, 10), (5, 20)]


def test_further_waves_follow_where_walkers_end_early(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, waves = make_frames([300.0, 400.0, 500.0, 600.0]), []
    plan = WalkerPlan(4, 3, (300.0, 600.0), seed=0, first_trajectory=4096)

    def more(wave: int) -> list[Walker]:
        waves.append(wave)
        return plan_walkers(known, plan, 1, wave)

    def get(stop_grade: float, n_train: int) -> Harvest:
        waves.clear()
        settings = replace(SETTINGS, stop_grade=stop_grade)
        first = plan_walkers(known, plan, 1)
        return harvest(student, first, settings, known, n_gate=6, n_train=n_train, more=more)

    found = get(1e-9, 8)  # every walker ends at its first look
    assert waves == [1, 2, 3]
    assert found.record["walkers"] == 10 + 3 * 4
    assert found.record["gate_walkers"] == 6
    train = [pick for pick in found.picks if pick.use == "train"]
    assert len(train) == 8
    assert len({pick.trajectory for pick in train}) == 8
    assert found.record["candidates"] == 16
    assert max(pick.trajectory for pick in train) >= 4096 + 512
    get(1e-9, 10**6)
    assert waves == [1, 2, 3, 4, 5, 6]
    get(1e9, 10**6)  # nothing ends early
    assert waves == []
    get(1e-9, 0)
    assert waves == []


def test_a_harvest_survives_its_file(tmp_path: Path) -> None:
    ion = molecule("OH")
    ion.info["charge"] = -1
    picks = (
        Pick(bulk("Cu", cubic=True), "train", 2**50, 300.0, 4, False, "cell 0"),
        Pick(ion, "test", 7, 900.0, 8, True),
    )
    write_harvest(tmp_path / "a" / "b.npz", Harvest(picks, {"walkers": 3}))
    again = read_harvest(tmp_path / "a" / "b.npz")
    assert again.record == {"walkers": 3}
    for old, new in zip(picks, again.picks, strict=True):
        assert (old.use, old.trajectory, old.step, old.hot, old.kind) == (
            new.use,
            new.trajectory,
            new.step,
            new.hot,
            new.kind,
        )
        assert np.array_equal(old.atoms.positions, new.atoms.positions)
        assert np.array_equal(old.atoms.pbc, new.atoms.pbc)
        assert old.atoms.info == new.atoms.info
    write_harvest(tmp_path / "none.npz", Harvest((), {}))
    assert read_harvest(tmp_path / "none.npz").picks == ()
    (tmp_path / "bad.npz").write_bytes((tmp_path / "none.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"bad\.npz cannot be read"):
        read_harvest(tmp_path / "bad.npz")
