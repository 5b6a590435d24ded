"""Gate walkers on which a student is lost become training data. Not here: rounds without any (test_rounds.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from untrained import make_student

from fastff.distill import rounds as rounds_module
from fastff.distill.lost import LOST, adopt_frames, find_lost
from fastff.distill.request import build_request
from fastff.distill.roundlog import read_rows
from fastff.distill.rounds import Rounds
from fastff.distill.run import distill
from fastff.distill.split import Split
from fastff.inference import predict
from fastff.labels import Frame, Labels


def make_frames(count: int) -> tuple[Any, list[Frame]]:
    """A student, and frames that it knows exactly, each of a trajectory of its own."""
    student = make_student("m1", (29,))
    images: list[Atoms] = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=k)
        images.append(atoms)
    found = predict(student, images, charges="ignore")
    return student, [
        Frame(
            atoms, Labels(float(one.energy), np.array(one.forces), None), "student-md", k, 300.0, 0
        )
        for k, (atoms, one) in enumerate(zip(images, found, strict=True))
    ]


def disturb(frame: Frame, size: float) -> Frame:
    """Forces off by ``size``, eV/Å, root mean square."""
    error = np.random.default_rng(0).normal(size=frame.labels.forces.shape)
    error *= size / np.sqrt(np.mean(error**2))
    return replace(frame, labels=replace(frame.labels, forces=frame.labels.forces + error))


def test_frames_missed_by_half_of_the_usual_force_are_lost() -> None:
    student, frames = make_frames(8)
    usual = float(np.sqrt(np.mean([np.mean(f.labels.forces**2) for f in frames])))
    assert find_lost(student, frames) == frozenset()
    assert find_lost(student, []) == frozenset()
    frames[2] = disturb(frames[2], 0.8 * LOST * usual)
    frames[5] = disturb(frames[5], 1.5 * LOST * usual)
    assert find_lost(student, frames) == {5}
    frames[7] = disturb(frames[7], 1e4 * usual)  # hides no other
    assert find_lost(student, frames) == {5, 7}
    assert find_lost(student, frames[7:]) == {7}


def test_what_is_adopted_is_judged_by_no_longer() -> None:
    _, frames = make_frames(6)
    later = replace(frames[4], trajectory=3)
    split = Split(frames[:2], [*frames[2:4], later], frames[5:])
    changed, moved = adopt_frames(split, {3, 5})
    assert moved == [frames[3], later]
    assert changed.train == [*frames[:2], frames[3], later]
    assert changed.validation == [frames[2]]
    assert changed.test == split.test  # those that the verdict is from stay held out


def test_rounds_train_on_gate_walkers_that_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first gate one is; the second, after which nothing is trained, finds one too."""
    monkeypatch.setattr(rounds_module, "PICOSECONDS", {"cpu": (0.03, 0.03)})
    monkeypatch.setattr(rounds_module, "LEAST_STEPS", 20)
    monkeypatch.setattr(rounds_module, "LEAST_GAIN", -1.0)
    seen: list[tuple[set[int], set[int], set[int]]] = []
    lost: list[int] = []
    kept: set[int] = set()
    improve, finish = Rounds.improve, Rounds.finish

    def find(student: Any, frames: Any) -> frozenset[int]:
        lost.append(frames[0].trajectory)
        return frozenset(lost[-1:])

    def look(self: Rounds, number: int, trained: Any, split: Split, new: Any) -> Any:
        parts = (split.train, split.validation, new)
        a, b, c = ({frame.trajectory for frame in part} for part in parts)
        seen.append((a, b, c))
        return improve(self, number, trained, split, new)

    def note(self: Rounds, trained: Any, split: Split) -> Any:
        kept.update(frame.trajectory for frame in split.train)
        return finish(self, trained, split)

    monkeypatch.setattr(Rounds, "finish", note)
    monkeypatch.setattr(rounds_module, "find_lost", find)
    monkeypatch.setattr(Rounds, "improve", look)
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    request = build_request(
        teacher="analytic:emt", structures=tmp_path / "cu.xyz", max_atoms=4, temperatures=(300.0, 600.0),
        budget=90, rounds=1, n_steps=20, student="m1", cutoff=3.5, target=0.9999,
    )  # fmt: skip
    outcome = distill(request, tmp_path / "out", device="cpu")
    ((train, validation, new),) = seen
    assert lost[0] in new - validation - train  # no frame counts twice
    assert len(new) > 1
    assert lost[0] in kept
    rows = read_rows(tmp_path / "out" / "rounds")
    assert [row.dynamics["gate_lost"] for row in rows] == [1, 1]
    assert len(lost) == 2
    assert outcome.rows[-1].decision == "all rounds done"
