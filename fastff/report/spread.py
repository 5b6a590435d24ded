"""How sure an accuracy is, and how it depends on temperature.

Here: :func:`find_intervals` (bootstrap over trajectories) and :func:`split_by_temperature`. Not here: the accuracy
itself (:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastff.errors import DataError
from fastff.labels import Frame, Labels
from fastff.report.metrics import measure_accuracy, reduce_formula

N_RESAMPLES = 1000
LEAST_TRAJECTORIES = 4
"""With fewer a bootstrap says nothing."""

MOST_TEMPERATURES = 12
"""Label files with more, as from ramps, are not split."""

QUANTITIES = ("force", "energy", "stress")


def find_intervals(
    frames: Sequence[Frame], prediction: Sequence[Labels], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the accuracies, by drawing whole trajectories with replacement.

    Frames of one trajectory resemble each other, so that intervals over frames would be too narrow. Accuracies are
    those of :mod:`fastff.report.metrics`, energy offsets included, from sums over each trajectory.

    Returns
    -------
    dict
        Quantity and ``"overall"`` -> (low, high); empty with fewer than four trajectories, without what is undefined.
    """
    numbers = np.unique([frame.trajectory for frame in frames], return_inverse=True)[1]
    count = int(numbers.max()) + 1
    if count < LEAST_TRAJECTORIES:
        return {}
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), N_RESAMPLES)
    sums = {
        "force": _sum_squares(
            [(f.labels.forces, p.forces) for f, p in zip(frames, prediction, strict=True)],
            numbers, count,
        ),
        "stress": _sum_squares(
            [(f.labels.stress, p.stress) for f, p in zip(frames, prediction, strict=True)],
            numbers, count,
        ),
    }  # fmt: skip
    ratios = {name: (draws @ error, draws @ scale) for name, (error, scale) in sums.items()}
    ratios["energy"] = _scatter_energies(frames, prediction, numbers, draws)
    samples = {}
    for name in QUANTITIES:
        error, scale = ratios[name]
        if (scale > 0.0).all():
            samples[name] = 1.0 - np.sqrt(error / scale)
    if samples:
        samples["overall"] = np.min(list(samples.values()), axis=0)
    found = {}
    for name, values in samples.items():
        low, high = np.quantile(values, (0.025, 0.975))
        found[name] = (float(low), float(high))
    return found


def _sum_squares(
    pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]], numbers: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared errors and of squared references of each trajectory."""
    error, scale = np.zeros(count), np.zeros(count)
    for (reference, found), number in zip(pairs, numbers, strict=True):
        if reference is not None and found is not None:
            error[number] += np.square(found - reference).sum()
            scale[number] += np.square(reference).sum()
    return error, scale


def _scatter_energies(
    frames: Sequence[Frame], prediction: Sequence[Labels], numbers: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared scatter of error and of reference about the mean of each composition, for every draw."""
    sizes = np.array([len(frame.atoms) for frame in frames])
    reference = np.array([frame.labels.energy for frame in frames]) / sizes
    error = np.array([labels.energy for labels in prediction]) / sizes - reference
    formulas = np.array([reduce_formula(frame.atoms) for frame in frames])
    totals = []
    for values in (error, reference):
        total = np.zeros(len(draws))
        for formula in np.unique(formulas):
            chosen = formulas == formula
            centred = values[chosen] - values[chosen].mean()
            n, first, second = (
                draws @ np.bincount(numbers[chosen], weights=centred**k, minlength=draws.shape[1])
                for k in (0, 1, 2)
            )
            total += np.maximum(second - first**2 / np.maximum(n, 1.0), 0.0)
        totals.append(total)
    return totals[0], totals[1]


def split_by_temperature(
    frames: Sequence[Frame], prediction: Sequence[Labels]
) -> tuple[dict[str, Any], ...]:
    """Accuracies of the frames of each temperature, where they carry two or more; the scale is that of these frames."""
    groups: dict[float, list[int]] = {}
    for index, frame in enumerate(frames):
        if np.isfinite(frame.temperature):
            groups.setdefault(round(float(frame.temperature), 1), []).append(index)
    if not 2 <= len(groups) <= MOST_TEMPERATURES:
        return ()
    rows = []
    for temperature, members in sorted(groups.items()):
        try:
            accuracy = measure_accuracy(
                [frames[i].labels for i in members],
                [prediction[i] for i in members],
                [frames[i].atoms for i in members],
            )
        except DataError:  # undefined for so few frames
            continue
        values = {name: getattr(accuracy, name) for name in QUANTITIES}
        rows.append({"temperature": temperature, "n_frames": len(members), **values})
    return tuple(rows)
