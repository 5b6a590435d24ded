"""Gate walkers that went where the student is lost: found by their labels, and made training data.

A walker that blows up is told by its forces alone (:mod:`fastff.distill.explore`). One that settles where the student
is far too soft is told by the teacher only. Here: both steps. Not here: when to take them
(:mod:`fastff.distill.rounds`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fastff.distill.split import Split
from fastff.inference import predict
from fastff.labels import Frame
from fastff.models import Student

LOST = 0.5
"""Root mean square error of a frame's forces, in units of the root mean square force of all frames, beyond which the
student knows nothing of it."""


def find_lost(student: Student, frames: Sequence[Frame]) -> frozenset[int]:
    """Trajectories of frames whose forces the student misses by more than :data:`LOST`.

    Parameters
    ----------
    student : Student
    frames : sequence of Frame
        Labelled, of gate walkers. Each counts as much as any other in the root mean square force, in eV/Å, but for
        those beyond the median times ten, as a single one of atoms on top of each other would hide all others.
    """
    if not frames:
        return frozenset()
    sizes = np.array([_measure_size(frame.labels.forces) for frame in frames])
    usual = sizes[sizes <= 10.0 * np.median(sizes)]
    limit = LOST * _measure_size(usual)
    predicted = predict(student, [frame.atoms for frame in frames], charges="ignore")
    return frozenset(
        frame.trajectory
        for frame, found in zip(frames, predicted, strict=True)
        if not _measure_size(np.asarray(found.forces) - frame.labels.forces) <= limit
    )


def adopt_frames(split: Split, trajectories: Collection[int]) -> tuple[Split, list[Frame]]:
    """The same frames with validation trajectories moved to the training frames, and what was moved."""
    moved = [frame for frame in split.validation if frame.trajectory in trajectories]
    left = [frame for frame in split.validation if frame.trajectory not in trajectories]
    return replace(split, train=[*split.train, *moved], validation=left), moved


def _measure_size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
