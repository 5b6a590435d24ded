"""How sure an accuracy is, and how it depends on temperature.

Here: :func:`find_intervals` (jackknife over trajectories) and :func:`split_by_temperature`. Not here: the accuracy
itself (:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from fastff.errors import DataError
from fastff.labels import Frame, Labels
from fastff.report.metrics import measure_accuracy, reduce_formula

METHOD = "jackknife"
"""What intervals of this version come from, as records name it."""

LEVEL = 0.95
LEAST_TRAJECTORIES = 4
"""With fewer there is no interval worth its name."""

LEAST_SHARE = 1e-12
"""Of a sum of squares that must be left without any one trajectory: what is less is rounding."""

MOST_TEMPERATURES = 12
"""Label files with more, as from ramps, are not split."""

QUANTITIES = ("force", "energy", "stress")


def find_intervals(
    frames: Sequence[Frame], prediction: Sequence[Labels]
) -> dict[str, tuple[float, float]]:
    """95 % intervals of the accuracies, by a jackknife that leaves out one trajectory at a time.

    Frames of one trajectory resemble each other, so that intervals over frames would be too narrow. The logarithm of
    the relative error ``1 - A`` of each quantity has the variance of its values with one trajectory left out, times
    ``n - 1``, and the interval is Student's t with ``n - 1`` degrees of freedom about the estimate corrected for its
    bias; so no end is above one. It always holds the accuracy itself. Accuracies are those of
    :mod:`fastff.report.metrics`, energy offsets included, from sums over each trajectory. The interval of the smallest
    accuracy goes from the smallest lower end to the smallest upper end.

    Returns
    -------
    dict
        Quantity and ``"overall"`` -> (low, high); empty with fewer than four trajectories, without what is undefined.
    """
    numbers = np.unique([frame.trajectory for frame in frames], return_inverse=True)[1]
    count = int(numbers.max()) + 1
    if count < LEAST_TRAJECTORIES:
        return {}
    sums = {
        "force": _sum_squares(
            [(f.labels.forces, p.forces) for f, p in zip(frames, prediction, strict=True)],
            numbers, count,
        ),
        "energy": _scatter_energies(frames, prediction, numbers, count),
        "stress": _sum_squares(
            [(f.labels.stress, p.stress) for f, p in zip(frames, prediction, strict=True)],
            numbers, count,
        ),
    }  # fmt: skip
    found = {}
    for name in QUANTITIES:
        error, scale = sums[name]
        if error.min() > LEAST_SHARE * error[0] and scale.min() > LEAST_SHARE * scale[0]:
            found[name] = _estimate_interval(0.5 * np.log(error / scale))
    if found:
        low, high = np.min(list(found.values()), axis=0)
        found["overall"] = (float(low), float(high))
    return found


def _estimate_interval(logs: np.ndarray) -> tuple[float, float]:
    """Interval of the accuracy from logarithms of the relative error: of everything, then without each trajectory."""
    whole, parts = float(logs[0]), logs[1:]
    count = len(parts)
    deviation = float(np.sqrt((count - 1) / count * np.sum((parts - parts.mean()) ** 2)))
    reach = float(t.ppf(0.5 * (1.0 + LEVEL), count - 1)) * deviation
    centre = count * whole - (count - 1) * float(parts.mean())
    low, high = min(centre - reach, whole), max(centre + reach, whole)
    return float(1.0 - np.exp(high)), float(1.0 - np.exp(low))


def _leave_out(sums: np.ndarray) -> np.ndarray:
    """The sum over all trajectories, then those without each of them."""
    total = sums.sum()
    return np.concatenate([[total], total - sums])


def _sum_squares(
    pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]], numbers: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared errors and of squared references: of all trajectories, then without each of them."""
    error, scale = np.zeros(count), np.zeros(count)
    for (reference, found), number in zip(pairs, numbers, strict=True):
        if reference is not None and found is not None:
            error[number] += np.square(found - reference).sum()
            scale[number] += np.square(reference).sum()
    return _leave_out(error), _leave_out(scale)


def _scatter_energies(
    frames: Sequence[Frame], prediction: Sequence[Labels], numbers: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Squared scatter of error and of reference about the mean of each composition, as :func:`_sum_squares`."""
    sizes = np.array([len(frame.atoms) for frame in frames])
    reference = np.array([frame.labels.energy for frame in frames]) / sizes
    error = np.array([labels.energy for labels in prediction]) / sizes - reference
    formulas = np.array([reduce_formula(frame.atoms) for frame in frames])
    totals = []
    for values in (error, reference):
        total = np.zeros(count + 1)
        for formula in np.unique(formulas):
            chosen = formulas == formula
            centred = values[chosen] - values[chosen].mean()
            n, first, second = (
                _leave_out(np.bincount(numbers[chosen], weights=centred**k, minlength=count))
                for k in (0, 1, 2)
            )
            total += np.maximum(second - first**2 / np.maximum(n, 1.0), 0.0)
        totals.append(total)
    return totals[0], totals[1]


SUMS = (
    "n_atoms", "force_rmse", "force_rms", "n_energies", "energy_rmse", "energy_std", "n_stresses", "stress_rmse",
    "stress_rms",
)  # fmt: skip
"""What each row by temperature holds beside its accuracies, as in the table of all frames."""


def split_by_temperature(
    frames: Sequence[Frame], prediction: Sequence[Labels]
) -> tuple[dict[str, Any], ...]:
    """Accuracies of the frames of each temperature, where they carry two or more; the scale is that of these frames.

    All frames are in the rows: those without a temperature in a last one, whose temperature is None.
    """
    groups: dict[float, list[int]] = {}
    unknown = []
    for index, frame in enumerate(frames):
        if np.isfinite(frame.temperature):
            groups.setdefault(round(float(frame.temperature), 1), []).append(index)
        else:
            unknown.append(index)
    if not 2 <= len(groups) <= MOST_TEMPERATURES:
        return ()
    members: list[tuple[float | None, list[int]]] = [*sorted(groups.items())]
    if unknown:
        members.append((None, unknown))
    return tuple(
        {"temperature": temperature, "n_frames": len(own), **_measure_row(frames, prediction, own)}
        for temperature, own in members
    )


def _measure_row(
    frames: Sequence[Frame], prediction: Sequence[Labels], members: Sequence[int]
) -> dict[str, Any]:
    """Accuracies and :data:`SUMS` of some frames; None where undefined for so few."""
    try:
        accuracy = measure_accuracy(
            [frames[i].labels for i in members],
            [prediction[i] for i in members],
            [frames[i].atoms for i in members],
        )
    except DataError:
        counts = {name: 0 for name in SUMS if name.startswith("n_")}
        counts["n_atoms"] = sum(len(frames[i].atoms) for i in members)
        return dict.fromkeys((*QUANTITIES, *SUMS)) | counts
    return {name: getattr(accuracy, name) for name in (*QUANTITIES, *SUMS)}
