"""How a training judges weights against each other: by the loss of validation frames, on the scale of an accuracy.

Here: :class:`Score`. Not here: the accuracy that users are told (:mod:`fastff.report.metrics`), training.

Root mean squares, of which accuracies are made, hang on the worst atoms: a few frames with atoms pushed together hide
that all others still improve. Which of two sets of weights is better, and whether a training still gains, is judged by
the loss that it lowers, which counts such atoms by their relative error and outliers linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fastff.distill.data import LabelStatistics, measure_labels
from fastff.distill.losses import LossWeights, measure_strain, relative_huber
from fastff.errors import DataError
from fastff.labels import Frame, Labels

LEAST_SPREAD = 2e-5
"""eV/atom of the energies about their compositions' mean, below which they say nothing."""


class Score:
    """One minus the root of twice the weighted loss of forces, energies per atom and stress.

    Where no error exceeds a tenth of its unit, this is one minus a weighted root mean square of relative errors. Units
    are those of the median frame of the frames themselves, so that scores of two students on the same frames compare.
    Energies that do not differ, as of a single frame, have no unit and do not count.

    Parameters
    ----------
    frames : sequence of Frame
        Labelled, at least one.
    """

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = list(frames)
        self._statistics = _measure_units(self._frames)
        n_atoms = torch.tensor([len(frame.atoms) for frame in self._frames])
        batch = torch.arange(len(self._frames)).repeat_interleave(n_atoms)
        self._forces = _join_forces([frame.labels for frame in self._frames])
        self._strain, self._strain_of_frame = measure_strain(
            self._forces.norm(dim=1), self._statistics.force_rms, batch, len(self._frames)
        )

    def measure(self, predicted: Sequence[Labels]) -> float:
        """Score of predictions for all frames, in their order; minus infinity where one is not finite."""
        known, weights = self._statistics, LossWeights().at(1.0, 3)
        force_error = (_join_forces(predicted) - self._forces) / self._strain[:, None]
        energy_error = torch.tensor(
            [
                (found.energy - frame.labels.energy) / len(frame.atoms)
                for frame, found in zip(self._frames, predicted, strict=True)
            ],
            dtype=torch.float64,
        )
        terms = [(weights[0], relative_huber(force_error, known.force_rms).mean())]
        if known.energy_spread > LEAST_SPREAD:
            relative = energy_error / self._strain_of_frame
            terms.append((weights[1], relative_huber(relative, known.energy_spread).mean()))
        stressed = [
            (found.stress - frame.labels.stress) / float(strain)
            for frame, found, strain in zip(
                self._frames, predicted, self._strain_of_frame, strict=True
            )
            if frame.labels.stress is not None and found.stress is not None
        ]
        if stressed and known.stress_rms > 0.0:
            error = torch.from_numpy(np.stack(stressed))
            terms.append((weights[2], relative_huber(error, known.stress_rms).mean()))
        total = sum(weight * float(term) for weight, term in terms)
        total /= sum(weight for weight, _ in terms)
        return 1.0 - math.sqrt(2.0 * total) if math.isfinite(total) else -math.inf


def _join_forces(labels: Sequence[Labels]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(one.forces, float) for one in labels]))


def _measure_units(frames: Sequence[Frame]) -> LabelStatistics:
    try:
        return measure_labels(frames)
    except DataError:  # no forces at all: perfect crystals
        return LabelStatistics((), (), force_rms=1.0, energy_spread=1e-3, stress_rms=0.0)
