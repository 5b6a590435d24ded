"""Dividing labelled frames into training, validation and test sets.

Here: :func:`split_frames`. Not here: making trajectories (:mod:`fastff.distill.sampling`) or measuring accuracy
(:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from fastff.errors import DataError, UsageError
from fastff.labels import Frame

PHYSICAL_SOURCES = frozenset({"thermal", "teacher-md", "student-md", "file"})
"""Sources whose frames look like what a simulation meets; validation and test prefer them."""

LEAST_FRAMES = 10
"""Wanted size of a validation or test set of few frames, as far as a fifth of all frames allows."""

GAP_FRACTION = 0.1
"""Part of a block that is left out of training at each border with a held-out block."""


@dataclass(frozen=True)
class Split:
    """Frames by use; no trajectory is in two of them.

    ``left_out`` are training frames dropped because they border on a held-out block of the same simulation;
    ``blocks`` says that the trajectories are blocks of one file rather than independent.
    """

    train: list[Frame]
    validation: list[Frame]
    test: list[Frame]
    left_out: int = 0
    blocks: bool = False

    @property
    def test_kind(self) -> str:
        """What the test frames are, in words."""
        return "frames of other blocks of the file" if self.blocks else "held-out frames"

    def __str__(self) -> str:
        noun = "blocks" if self.blocks else "trajectories"
        parts = [
            f"{name} {len(frames)} frames of {len({f.trajectory for f in frames})} {noun}"
            for name, frames in (
                ("train", self.train),
                ("validation", self.validation),
                ("test", self.test),
            )
        ]
        if self.left_out:
            parts.append(f"{self.left_out} left out between blocks")
        return ", ".join(parts)


def split_frames(
    frames: Sequence[Frame],
    *,
    validation: float = 0.1,
    test: float = 0.1,
    held_out: Collection[int] = (),
    blocks: bool = False,
    seed: int = 0,
) -> Split:
    """Divide frames by trajectory, never cutting through one.

    Parameters
    ----------
    frames : sequence of Frame
        Labelled frames.
    validation, test : float
        Wanted fractions of the frames, each in [0, 1), and at least :data:`LEAST_FRAMES` where a fifth of all frames
        is as many. Trajectories are drawn at random until they are reached, those of :data:`PHYSICAL_SOURCES` first.
        A trajectory that alone holds some element stays in the training set.
    held_out : collection of int
        Trajectories made for testing. If any of the frames belong to them, exactly these are the test set and ``test``
        is not used.
    blocks : bool
        The trajectories are consecutive blocks of one file: training frames next to a held-out block are left out.
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
        Too few trajectories or frames for the wanted sets, or an element that only held-out trajectories hold.
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
    draw = _Draw(groups, {n: _find_elements(frames, groups[n]) for n in groups}, order)
    if test > 0 and not chosen_test:
        spare = 1 + (validation > 0)
        chosen_test = draw.take(_count_wanted(test, len(frames)), spare)
    n_pool = sum(len(groups[number]) for number in draw.order)
    chosen_validation = draw.take(_count_wanted(validation, n_pool), 1) if validation > 0 else set()
    uses = dict.fromkeys(chosen_test, "test")
    uses |= dict.fromkeys(chosen_validation, "validation")
    parts: dict[str, list[Frame]] = {"train": [], "validation": [], "test": []}
    dropped = _find_borders(frames, uses) if blocks else set()
    for index, frame in enumerate(frames):
        if index not in dropped:
            parts[uses.get(frame.trajectory, "train")].append(frame)
    if not parts["train"]:
        raise DataError(
            f"{len(frames)} frames are too few: none is left to train on beside those held out and their neighbors "
            "in time; label more"
        )
    _require_elements(**parts)
    return Split(**parts, left_out=len(dropped), blocks=blocks and not held_out)


def _find_elements(frames: Sequence[Frame], indices: Sequence[int]) -> frozenset[int]:
    return frozenset(int(z) for i in indices for z in set(frames[i].atoms.numbers.tolist()))


def _count_wanted(fraction: float, n_frames: int) -> float:
    return max(fraction * n_frames, min(LEAST_FRAMES, 0.2 * n_frames))


class _Draw:
    """Takes trajectories out of ``order``, never the last one that holds some element."""

    def __init__(
        self,
        groups: dict[int, list[int]],
        elements: dict[int, frozenset[int]],
        order: Sequence[int],
    ) -> None:
        self.groups, self.elements, self.order = groups, elements, list(order)
        self.carriers = Counter(z for number in order for z in elements[number])

    def take(self, wanted: float, spare: int) -> set[int]:
        """Take trajectories until ``wanted`` frames are reached; at least one, leaving ``spare``.

        A trajectory that would overshoot by more than a quarter is passed over while smaller ones may follow.
        """
        taken: set[int] = set()
        count = 0
        for number in list(self.order):
            if count >= wanted or len(self.order) <= spare:
                break
            size = len(self.groups[number])
            if count + size <= 1.25 * wanted and self._is_spared(number):
                self._remove(number)
                taken.add(number)
                count += size
        if not taken:
            possible = [number for number in self.order if self._is_spared(number)]
            if not possible:
                raise DataError(
                    "every trajectory holds an element that no other one holds, so that none can be held out; "
                    "label more trajectories of each composition"
                )
            smallest = min(possible, key=lambda number: len(self.groups[number]))
            self._remove(smallest)
            taken = {smallest}
        return taken

    def _is_spared(self, number: int) -> bool:
        return all(self.carriers[z] > 1 for z in self.elements[number])

    def _remove(self, number: int) -> None:
        self.order.remove(number)
        self.carriers.subtract(self.elements[number])


def _find_borders(frames: Sequence[Frame], uses: dict[int, str]) -> set[int]:
    """Training frames within a tenth of a block, at least one, of a held-out frame of the same composition."""
    gap = max(1, round(GAP_FRACTION * len(frames) / len({f.trajectory for f in frames})))
    kinds: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        kinds[tuple(sorted(frame.atoms.numbers))].append(index)
    reach = gap * len(kinds)  # compositions may alternate
    borders: set[int] = set()
    for members in map(np.array, kinds.values()):
        held_out = np.array([frames[index].trajectory in uses for index in members])
        near = np.zeros(len(members), bool)
        for offset in range(1, gap + 1):
            close = members[offset:] - members[:-offset] <= reach
            near[offset:] |= held_out[:-offset] & close
            near[:-offset] |= held_out[offset:] & close
        borders.update(members[near & ~held_out].tolist())
    return borders


def _require_elements(train: list[Frame], validation: list[Frame], test: list[Frame]) -> None:
    known = _find_elements(train, range(len(train)))
    for name, part in (("validation", validation), ("test", test)):
        missing = sorted(_find_elements(part, range(len(part))) - known)
        if missing:
            symbols = ", ".join(chemical_symbols[z] for z in missing)
            raise DataError(
                f"{symbols} occurs in {name} frames but in none to train on; label more structures with it"
            )
