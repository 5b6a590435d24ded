"""What a training judges weights by: no worse than the accuracy on thermal frames, and deaf to single atoms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from fastff.distill.losses import LossWeights
from fastff.distill.module import measure_frames
from fastff.distill.score import Score
from fastff.labels import Frame, Labels


def make_frames(n: int = 6) -> list[Frame]:
    """Crystals of eight atoms with random labels."""
    rng = np.random.default_rng(0)
    atoms = bulk("Si", cubic=True)
    return [
        Frame(
            atoms,
            Labels(rng.normal(), rng.normal(size=(8, 3)), rng.normal(size=6) * 0.01),
            "teacher-md",
            0,
            300.0,
            k,
        )
        for k in range(n)
    ]


def predict(frames: list[Frame], error: float) -> list[Labels]:
    """Forces of ``1 + error`` times the labels; energy and stress without error."""
    return [replace(f.labels, forces=(1.0 + error) * f.labels.forces) for f in frames]


def test_small_errors_score_as_a_weighted_accuracy() -> None:
    frames = make_frames()
    squares = [np.square(frame.labels.forces).mean() for frame in frames]
    weights = LossWeights().at(1.0, 3)
    relative = 0.01 * math.sqrt(np.mean(squares) / np.median(squares))
    expected = 1.0 - relative * math.sqrt(weights[0] / sum(weights))
    assert Score(frames).measure(predict(frames, 0.01)) == pytest.approx(expected, rel=1e-6)
    assert Score(frames).measure([f.labels for f in frames]) == 1.0


@pytest.mark.parametrize("part", ["forces", "energy", "stress"])
def test_every_error_lowers_the_score(part: str) -> None:
    frames = make_frames()
    labels = [f.labels for f in frames]
    labels[2] = replace(labels[2], **{part: getattr(labels[2], part) + 0.001})
    assert 0.5 < Score(frames).measure(labels) < 1.0


def test_one_atom_pushed_into_another_does_not_decide() -> None:
    """The accuracy prefers what is twice as wrong everywhere else; the score does not."""
    frames = make_frames()
    frames[0].labels.forces[0] = 60.0
    better, worse = predict(frames, 0.02), predict(frames, 0.04)
    better[0].forces[0] = 55.0
    worse[0].forces[0] = 60.0
    assert measure_frames(frames, better).overall < measure_frames(frames, worse).overall
    assert Score(frames).measure(better) > Score(frames).measure(worse)


def test_what_is_not_finite_is_worst_and_perfect_crystals_have_a_score() -> None:
    frames = make_frames()
    bad = predict(frames, 0.0)
    bad[1].forces[0, 0] = np.nan
    assert Score(frames).measure(bad) == -math.inf
    still = [replace(f, labels=Labels(1.0, np.zeros((8, 3)), None)) for f in frames]
    assert Score(still).measure([f.labels for f in still]) == 1.0
    moved = [Labels(1.0, np.full((8, 3), 0.01), None) for _ in still]
    assert 0.9 < Score(still).measure(moved) < 1.0


def test_energy_does_not_decide_where_there_is_nothing_to_tell_apart() -> None:
    """One frame has no spread of energies: 1 meV/atom off would outweigh any error of forces."""
    frames = make_frames(1)
    good = [replace(one, energy=one.energy + 0.008) for one in predict(frames, 0.05)]
    bad = [replace(one, energy=one.energy + 0.004) for one in predict(frames, 0.3)]
    assert Score(frames).measure(bad) < Score(frames).measure(good)
    assert Score(frames).measure(good) > 0.9
