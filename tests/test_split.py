"""Splits by trajectory."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastff.distill.split import split_frames
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, Labels


def make_frames(lengths: list[int], sources: list[str] | None = None) -> list[Frame]:
    atoms = ase.Atoms("H")
    labels = Labels(0.0, np.zeros((1, 3)), None)
    sources = sources or ["teacher-md"] * len(lengths)
    return [
        Frame(atoms, labels, source, trajectory=7 * number + 1, temperature=300.0, step=step)
        for number, (length, source) in enumerate(zip(lengths, sources, strict=True))
        for step in range(length)
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=3, max_size=40),
    validation=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 5),
)
def test_no_trajectory_is_in_two_parts(
    lengths: list[int], validation: float, test: float, seed: int
) -> None:
    frames = make_frames(lengths)
    split = split_frames(frames, validation=validation, test=test, seed=seed)
    parts = [split.train, split.validation, split.test]
    numbers = [{frame.trajectory for frame in part} for part in parts]
    assert sum(len(part) for part in parts) == len(frames)
    assert sum(len(part) for part in numbers) == len(lengths)
    assert split.train
    assert bool(split.validation) == (validation > 0)
    assert bool(split.test) == (test > 0)
    again = split_frames(frames, validation=validation, test=test, seed=seed)
    assert [f.trajectory for f in again.test] == [f.trajectory for f in split.test]


def test_fractions_are_met_with_many_trajectories() -> None:
    split = split_frames(make_frames([5] * 200), validation=0.1, test=0.2)
    assert (len(split.train), len(split.validation), len(split.test)) == (720, 80, 200)
    assert (
        split_frames(make_frames([5] * 200), seed=1).test[0].trajectory != split.test[0].trajectory
    )


def test_held_out_trajectories_are_the_test_set() -> None:
    frames = make_frames([10] * 6)
    split = split_frames(frames, held_out={8, 36, 999}, validation=0.2)
    assert {frame.trajectory for frame in split.test} == {8, 36}
    assert len(split.test) == 20
    assert len(split.validation) == 10


def test_validation_prefers_physical_frames() -> None:
    frames = make_frames([1] * 40, ["close-contact"] * 30 + ["thermal"] * 10)
    split = split_frames(frames, validation=0.2, test=0)
    assert {frame.source for frame in split.validation} == {"thermal"}


def test_refusals() -> None:
    with pytest.raises(DataError, match="50 frames form 1 trajectories; 3 besides"):
        split_frames(make_frames([50]))
    with pytest.raises(UsageError, match="together below 1"):
        split_frames(make_frames([1] * 5), validation=0.6, test=0.5)
