"""Hessian-vector targets for frames that are labelled already.

Here: choosing frames, and labelling them at ``R + h u`` and ``R - h u``. Not here: labelling frames and their targets
at once (:mod:`fastff.distill.labelling`), training on them (:mod:`fastff.distill.losses`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastff.distill.labelling import displace, draw_direction
from fastff.distill.split import PHYSICAL_SOURCES, Split
from fastff.distill.store import LabelStore
from fastff.labels import Frame, HessianVector

DEFAULT_STEP = 0.01
"""Å."""
EVALUATIONS = 2
"""Of the teacher for each target."""
AVOIDED_SOURCES = frozenset({"close-contact"})
"""Frames whose curvature says little about vibrations."""


def choose_frames(frames: Sequence[Frame], count: int) -> list[int]:
    """Indices, ascending, of at most ``count`` evenly spaced frames without targets, those like simulations first."""
    free = [k for k, frame in enumerate(frames) if frame.hessian_vector is None]
    physical = [k for k in free if frames[k].source in PHYSICAL_SOURCES]
    others = [k for k in free if frames[k].source not in PHYSICAL_SOURCES | AVOIDED_SOURCES]
    chosen = _space_out(physical, count)
    return sorted(chosen + _space_out(others, count - len(chosen)))


def _space_out(indices: Sequence[int], count: int) -> list[int]:
    places = np.linspace(0, len(indices) - 1, min(count, len(indices)))
    return [indices[k] for k in np.unique(places.round().astype(int))] if len(places) else []


def add_hessian_vectors(
    teacher: Any,
    frames: Sequence[Frame],
    count: int,
    path: Path,
    *,
    step: float = DEFAULT_STEP,
    batch_atoms: int = 1024,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Frame]:
    """Label at most ``count`` frames beside their positions; all frames in their order, those with their targets.

    Parameters
    ----------
    teacher : Teacher
        The one that labelled the frames.
    frames : sequence of Frame
    count : int
    path : Path
        Label file of the frames with targets; those it holds are not labelled again.
    step : float
        ``h``, Å.
    batch_atoms : int
        Most atoms handed to the teacher, and stored, at once.
    on_batch : callable, optional
        Called with the number of targets done and to do.

    Raises
    ------
    DataError
        The file holds labels of another teacher.
    """
    found = list(frames)
    chosen = choose_frames(frames, count)
    with LabelStore(path, "a", teacher=getattr(teacher, "info", None)) as store:
        waiting = [k for k in chosen if not store.has(frames[k].atoms)]
        done = len(chosen) - len(waiting)
        on_batch(done, len(chosen))
        for batch in _batch(frames, waiting, batch_atoms):
            store.append(_label_beside(teacher, [frames[k] for k in batch], step))
            done += len(batch)
            on_batch(done, len(chosen))
        for k in chosen:
            stored = store.find(frames[k].atoms)
            if stored is not None:  # None where the teacher failed: the frame goes without
                found[k] = replace(frames[k], hessian_vector=stored.hessian_vector)
    return found


def add_to_split(teacher: Any, split: Split, count: int, path: Path) -> Split:
    """Give targets to ``count`` frames of a split, a tenth of them test frames, to learn from and to measure by.

    See :func:`add_hessian_vectors`.
    """
    n_test = min(len(split.test), max(1, count // 10)) if count > 1 else 0
    return replace(
        split,
        train=add_hessian_vectors(teacher, split.train, count - n_test, path),
        test=add_hessian_vectors(teacher, split.test, n_test, path),
    )


def _batch(frames: Sequence[Frame], indices: Sequence[int], batch_atoms: int) -> list[list[int]]:
    batches: list[list[int]] = []
    size = 0
    for k in indices:
        n_atoms = EVALUATIONS * len(frames[k].atoms)
        if not batches or size + n_atoms > batch_atoms:
            batches.append([])
            size = 0
        batches[-1].append(k)
        size += n_atoms
    return batches


def _label_beside(teacher: Any, frames: Sequence[Frame], step: float) -> list[Frame]:
    directions = [draw_direction(frame.atoms) for frame in frames]
    labels = teacher.label(
        [
            displace(frame.atoms, sign * step * direction)
            for sign in (1, -1)
            for frame, direction in zip(frames, directions, strict=True)
        ]
    )
    return [
        replace(frame, hessian_vector=HessianVector(direction, step, plus.forces, minus.forces))
        for frame, direction, plus, minus in zip(
            frames, directions, labels[: len(frames)], labels[len(frames) :], strict=True
        )
    ]
