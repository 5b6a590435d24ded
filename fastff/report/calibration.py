"""Whether a student's uncertainty means what it says: predicted against actual errors.

Here: :class:`CalibrationData` and :func:`calibrate`. Not here: the uncertainty (:mod:`fastff.models.uncertainty`),
drawing (:mod:`fastff.report.figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binom

from fastff.labels import Frame
from fastff.report.metrics import reduce_formula
from fastff.report.stamps import Stamped

if TYPE_CHECKING:
    from fastff.models import Student

N_GRADE_BINS = 12

EXPECTED = (0.6827, 0.9545)
"""Shares of normal errors within one and two standard deviations."""

LEAST_WITHIN = (0.5, 0.85)
"""Shares below which an uncertainty is not to be trusted."""

CHANCE = 0.01


class GradeBin(BaseModel):
    """Atoms of similar extrapolation grade: their number, mean grade and RMS force error per component, eV/Å."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    grade: float
    force_rmse: float


class CalibrationData(Stamped):
    """Uncertainties beside errors.

    ``energy`` has a row (comparison, standard deviation, error) for each frame, eV/atom; ``within`` are the shares of
    frames whose error is within one and two standard deviations (68 and 95 % if errors are normal and the calibration
    good), over the frames of the first comparison; ``grades`` are bins of equal population over atoms of all
    comparisons; ``beyond`` is the share of atoms with a grade above one in each comparison; ``identity`` holds the
    SHA-256 of the student's tensors.

    Errors of energies are less the mean of their composition in that comparison, where it has two frames or more, as
    in :mod:`fastff.report.metrics`, if ``centered`` says so; None, in older records, is with any constant offset.
    """

    names: tuple[str, ...]
    energy: tuple[tuple[int, float, float], ...]
    within: tuple[float, float]
    grades: tuple[GradeBin, ...]
    beyond: tuple[float, ...]
    identity: dict[str, Any] | None = None
    centered: Literal["composition"] | None = None

    def list_within(self) -> list[tuple[int, float, float]]:
        """Number of frames and the shares within one and two standard deviations, of each comparison."""
        found = []
        for number in range(len(self.names)):
            rows = np.array([row for row in self.energy if row[0] == number]).reshape(-1, 3)
            ratio = np.abs(rows[:, 2]) / np.maximum(rows[:, 1], 1e-300)
            shares = [float((ratio <= k).mean()) if len(rows) else 1.0 for k in (1.0, 2.0)]
            found.append((len(rows), shares[0], shares[1]))
        return found

    def list_doubtful(self) -> list[str]:
        """Comparisons whose errors are larger than the uncertainty says, beyond chance.

        The share within one or two standard deviations is below :data:`LEAST_WITHIN`, and so small a number of frames
        has a probability below :data:`CHANCE` if errors are normal and the calibration good.
        """
        return [
            name
            for name, (count, *shares) in zip(self.names, self.list_within(), strict=True)
            if any(
                share < least and binom.cdf(round(share * count), count, expected) < CHANCE
                for share, least, expected in zip(shares, LEAST_WITHIN, EXPECTED, strict=True)
            )
        ]

    def count_within(self) -> tuple[float, float]:
        """``within`` from ``energy``."""
        rows = np.array([row for row in self.energy if row[0] == 0])
        ratio = np.abs(rows[:, 2]) / np.maximum(rows[:, 1], 1e-300)
        return float((ratio <= 1.0).mean()), float((ratio <= 2.0).mean())


def calibrate(student: Student, sets: Sequence[tuple[str, Sequence[Frame]]]) -> CalibrationData:
    """Uncertainty and error of every frame.

    Parameters
    ----------
    student : Student
        With uncertainty.
    sets : sequence of (name, frames)
        The held-out frames first.
    """
    from fastff.models.uncertainty import predict_with_uncertainty
    from fastff.neighbors import atoms_to_graph

    energy: list[tuple[int, float, float]] = []
    atoms: list[np.ndarray] = []
    beyond = []
    for number, (_, frames) in enumerate(sets):
        outside = total = 0
        found = []
        for frame in frames:
            graph = atoms_to_graph(frame.atoms, student.cutoff).to(student.device)
            prediction, uncertainty = predict_with_uncertainty(student, graph)
            n_atoms = len(frame.atoms)
            error = float(prediction.energy[0]) - frame.labels.energy
            found.append((float(uncertainty.energy[0]) / n_atoms, error / n_atoms))
            grades = uncertainty.grades.cpu().numpy()
            forces = prediction.forces.double().cpu().numpy() - frame.labels.forces
            atoms.append(np.stack([grades, np.square(forces).mean(axis=1)], axis=1))
            outside += int((grades > 1.0).sum())
            total += n_atoms
        beyond.append(outside / max(total, 1))
        offsets = _find_offsets(frames, [error for _, error in found])
        energy += [
            (number, deviation, error - offset)
            for (deviation, error), offset in zip(found, offsets, strict=True)
        ]
    pooled = np.concatenate(atoms)
    order = np.argsort(pooled[:, 0], kind="stable")
    bins = tuple(
        GradeBin(
            count=len(members),
            grade=float(pooled[members, 0].mean()),
            force_rmse=float(np.sqrt(pooled[members, 1].mean())),
        )
        for members in np.array_split(order, min(N_GRADE_BINS, len(order)))
    )
    data = CalibrationData(
        names=tuple(name for name, _ in sets),
        energy=tuple(energy),
        within=(0.0, 0.0),
        grades=bins,
        beyond=tuple(beyond),
        centered="composition",
    )
    return data.model_copy(update={"within": data.count_within()})


def _find_offsets(frames: Sequence[Frame], errors: Sequence[float]) -> list[float]:
    """Of each frame the mean error of its composition; zero where that has no other frame."""
    members: dict[str, list[float]] = {}
    formulas = [reduce_formula(frame.atoms) for frame in frames]
    for formula, error in zip(formulas, errors, strict=True):
        members.setdefault(formula, []).append(error)
    means = {f: float(np.mean(m)) if len(m) > 1 else 0.0 for f, m in members.items()}
    return [means[formula] for formula in formulas]
