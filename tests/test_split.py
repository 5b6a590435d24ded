"""Splits by trajectory."""

from __future__ import annotations

from dataclasses import replace

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


def make_elements(symbols: list[str], length: int = 10) -> list[Frame]:
    labels = Labels(0.0, np.zeros((1, 3)), None)
    return [
        Frame(ase.Atoms(symbol), labels, "file", trajectory=number, temperature=300.0, step=step)
        for number, symbol in enumerate(symbols)
        for step in range(length)
    ]


@pytest.mark.parametrize("seed", range(6))
def test_an_element_of_one_trajectory_stays_in_training(seed: int) -> None:
    split = split_frames(make_elements(["H", "C", "C", "N", "C", "O"]), seed=seed)
    assert {frame.atoms.symbols[0] for frame in split.train} == {"H", "C", "N", "O"}
    assert len(split.validation) == len(split.test) == 10


def test_elements_only_in_held_out_frames_are_refused_before_training() -> None:
    with pytest.raises(DataError, match="O occurs in test frames but in none to train on"):
        split_frames(make_elements(["C", "C", "O"]), held_out={2})
    with pytest.raises(DataError, match="every trajectory holds an element that no other one"):
        split_frames(make_elements(["C", "N", "O"]))


def test_small_sets_are_larger_than_their_fraction() -> None:
    split = split_frames(make_frames([1] * 60))
    assert len(split.test) == 10
    assert len(split.validation) == 10
    assert len(split_frames(make_frames([1] * 20)).test) == 4


def test_training_frames_next_to_a_held_out_block_are_left_out() -> None:
    frames = make_frames([30] * 10)
    split = split_frames(frames, blocks=True)
    held_out = {frames.index(f) for f in (*split.validation, *split.test)}
    for frame in split.train:
        assert not held_out & set(range(frames.index(frame) - 3, frames.index(frame) + 4))
    assert len(split.train) + len(held_out) + split.left_out == 300
    assert 0 < split.left_out <= 3 * 2 * len(held_out) / 30
    assert "left out between blocks" in str(split)
    assert split.test_kind == "frames of other blocks of the file"


def test_blocks_of_another_composition_have_no_border() -> None:
    split = split_frames(make_elements(["C", "N"] * 8, length=5), blocks=True)
    assert split.left_out == 0


def test_borders_are_found_between_alternating_compositions() -> None:
    frames = [
        replace(frame, trajectory=frame.step // 5 * 2 + frame.trajectory)
        for frame in make_elements(["C", "N"], length=50)
    ]
    frames = [frame for pair in zip(frames[:50], frames[50:], strict=True) for frame in pair]
    split = split_frames(frames, blocks=True)
    assert split.left_out > 0
    held_out = {frames.index(frame) for frame in (*split.validation, *split.test)}
    for frame in split.train:
        assert not held_out & {frames.index(frame) - 2, frames.index(frame) + 2}


def test_refusals() -> None:
    with pytest.raises(DataError, match="50 frames form 1 trajectories; 3 besides"):
        split_frames(make_frames([50]))
    with pytest.raises(DataError, match="3 frames are too few: none is left to train on"):
        split_frames(make_frames([1] * 3), blocks=True)
    with pytest.raises(UsageError, match="together below 1"):
        split_frames(make_frames([1] * 5), validation=0.6, test=0.5)
