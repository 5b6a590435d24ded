"""Dividing labelled frames into training, validation and test sets.

Here: :func:`split_frames`. Not here: making trajectories (:mod:`fastff.distill.sampling`) or measuring accuracy
(:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fastff.errors import DataError, UsageError
from fastff.labels import Frame

PHYSICAL_SOURCES = frozenset({"thermal", "teacher-md", "student-md", "file"})
"""Sources whose frames look like what a simulation meets; validation and test prefer them."""


@dataclass(frozen=True)
class Split:
    """Frames by use; no trajectory is in two of them."""

    train: list[Frame]
    validation: list[Frame]
    test: list[Frame]

    def __str__(self) -> str:
        parts = ((name, getattr(self, name)) for name in ("train", "validation", "test"))
        return ", ".join(
            f"{name} {len(frames)} frames of {len({f.trajectory for f in frames})} trajectories"
            for name, frames in parts
        )


def split_frames(
    frames: Sequence[Frame],
    *,
    validation: float = 0.1,
    test: float = 0.1,
    held_out: Collection[int] = (),
    seed: int = 0,
) -> Split:
    """Divide frames by trajectory, never cutting through one.

    Parameters
    ----------
    frames : sequence of Frame
        Labelled frames.
    validation, test : float
        Wanted fractions of the frames, each in [0, 1). Trajectories are drawn at random until the fraction is reached,
        those of :data:`PHYSICAL_SOURCES` first.
    held_out : collection of int
        Trajectories made for testing. If any of the frames belong to them, exactly these are the test set and ``test``
        is not used.
    seed : int
        Seed of the draw; the same frames and seed give the same split.

    Returns
    -------
    Split
        Frames keep their order.

    Raises
    ------
    UsageError
        Fractions out of range.
    DataError
        Too few trajectories for the wanted sets.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise UsageError(
            f"fractions of validation and test are {validation} and {test}; both must be at least 0, together below 1"
        )
    groups: dict[int, list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        groups[frame.trajectory].append(index)
    chosen_test = {number for number in groups if number in set(held_out)}
    pool = sorted(set(groups) - chosen_test)
    needed = 1 + (validation > 0) + (test > 0 and not chosen_test)
    if len(pool) < needed:
        raise DataError(
            f"{len(frames)} frames form {len(groups)} trajectories; {needed} besides the held-out ones are needed to "
            "split without cutting through one. Label more trajectories, or give separate files"
        )
    rng = np.random.default_rng(seed)
    order = [pool[i] for i in rng.permutation(len(pool))]
    order.sort(key=lambda number: frames[groups[number][0]].source not in PHYSICAL_SOURCES)
    if test > 0 and not chosen_test:
        spare = 1 + (validation > 0)
        chosen_test = _draw(order, groups, test * len(frames), spare)
    order = [number for number in order if number not in chosen_test]
    n_pool = sum(len(groups[number]) for number in order)
    chosen_validation = _draw(order, groups, validation * n_pool, 1) if validation > 0 else set()
    parts: dict[str, list[Frame]] = {"train": [], "validation": [], "test": []}
    for frame in frames:
        use = "train"
        if frame.trajectory in chosen_test:
            use = "test"
        elif frame.trajectory in chosen_validation:
            use = "validation"
        parts[use].append(frame)
    return Split(**parts)


def _draw(
    order: Sequence[int], groups: dict[int, list[int]], wanted: float, spare: int
) -> set[int]:
    """Take trajectories in order until ``wanted`` frames are reached; at least one, leaving ``spare``.

    A trajectory that would overshoot by more than a quarter is passed over while smaller ones may follow.
    """
    taken: set[int] = set()
    count = 0
    for number in order:
        if count >= wanted or len(order) - len(taken) <= spare:
            break
        if count + len(groups[number]) <= 1.25 * wanted:
            taken.add(number)
            count += len(groups[number])
    if not taken:
        taken = {min(order, key=lambda number: len(groups[number]))}
    return taken
