"""The log of on-policy rounds: one row per gate, as JSON and as CSV.

Here: :class:`GateRow`, its files, how well an uncertainty is calibrated. Not here: deciding anything
(:mod:`fastff.distill.rounds`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastff.checkpoint import write_atomically
from fastff.gathering import gather_graph
from fastff.inference import split_chunks
from fastff.labels import Frame
from fastff.models import Student
from fastff.models.uncertainty import predict_with_uncertainty
from fastff.report.metrics import Accuracy

JSON_NAME, CSV_NAME = "rounds.json", "rounds.csv"
LEAST_CALIBRATED = 4
"""Frames below which nothing is said of calibration."""


@dataclass(frozen=True)
class GateRow:
    """What a gate showed.

    Attributes
    ----------
    round : int
        From 1; the student judged was trained in all earlier ones.
    student : str
    evaluations : int
        Of the teacher, up to and including this gate.
    n_train : int
        Frames the student was trained on.
    seconds : float
        Wall time up to this gate.
    accuracy : dict of str to Accuracy
        On held-out validation frames, by group.
    dynamics : dict
        Record of the walkers, see :class:`~fastff.distill.harvest.Harvest`, and ``gate_lost``, how many gate walkers
        went where the student is lost (:mod:`fastff.distill.lost`); rows of earlier versions lack that.
    calibration : dict
        See :func:`measure_calibration`.
    decision : str
        ``"another round"``, or why this was the last gate.
    """

    round: int
    student: str
    evaluations: int
    n_train: int
    seconds: float
    accuracy: dict[str, Accuracy]
    dynamics: dict[str, Any]
    calibration: dict[str, float]
    decision: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        record = {k: v for k, v in asdict(self).items() if k != "accuracy"}
        record["accuracy"] = {name: value.to_dict() for name, value in self.accuracy.items()}
        return record

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> GateRow:
        """Inverse of :meth:`to_dict`."""
        accuracy = {name: Accuracy.from_dict(value) for name, value in record["accuracy"].items()}
        return cls(**{**record, "accuracy": accuracy})

    def flatten(self) -> dict[str, Any]:
        """One level of short columns."""
        row: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("round", "student", "evaluations", "n_train", "seconds")
        }
        for name, value in self.accuracy.items():
            stem = name.replace(", ", "-")
            for part in ("overall", "force", "energy", "stress"):
                row[f"{stem}.{part}"] = getattr(value, part)
            row[f"{stem}.frames"] = value.n_frames
        row |= {key: value for key, value in self.dynamics.items() if key != "last"}
        row |= {f"calibration.{key}": value for key, value in self.calibration.items()}
        return {**row, "decision": self.decision}


def write_rows(folder: Path, rows: Sequence[GateRow]) -> None:
    """Write all rows, as JSON and as CSV, each file in one piece."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([row.to_dict() for row in rows], indent=1)
    flat = [row.flatten() for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(flat)
    write_atomically(folder / CSV_NAME, stream.getvalue().encode())
    write_atomically(folder / JSON_NAME, text.encode())


def read_rows(folder: Path) -> list[GateRow]:
    """Rows that an earlier process wrote; none if there is no file or it cannot be read (it is made anew)."""
    try:
        return [GateRow.from_dict(row) for row in json.loads((folder / JSON_NAME).read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def measure_calibration(student: Student, frames: Sequence[Frame]) -> dict[str, float]:
    """How well an uncertainty says which frames are wrong, and by how much.

    Returns
    -------
    dict
        ``z_rms``: root mean square of energy error over its standard deviation, 1 where errors are as large as
        foretold; ``rank_correlation``: Spearman's, between the largest grade of a frame and its force RMSE;
        ``beyond``: share of atoms whose grade exceeds one. Empty for fewer than four frames or without uncertainty.
    """
    if student.uncertainty is None or len(frames) < LEAST_CALIBRATED:
        return {}
    errors, deviations, grades, rmse, atoms_beyond = [], [], [], [], []
    remaining = list(frames)
    for chunk in split_chunks([frame.atoms for frame in frames], 4096):
        graph = gather_graph(chunk, student.cutoff, student.device)
        prediction, uncertainty = predict_with_uncertainty(student, graph)
        sizes = [len(atoms) for atoms in chunk]
        parts = zip(
            prediction.energy.tolist(),
            uncertainty.energy.tolist(),
            uncertainty.grades.cpu().split(sizes),
            prediction.forces.cpu().split(sizes),
            strict=True,
        )
        for energy, deviation, grade, forces in parts:
            frame = remaining.pop(0)
            errors.append((energy - frame.labels.energy) / len(frame.atoms))
            deviations.append(deviation / len(frame.atoms))
            grades.append(float(grade.max()))
            atoms_beyond += (grade > 1.0).tolist()
            difference = forces - torch.as_tensor(frame.labels.forces, dtype=forces.dtype)
            rmse.append(float(difference.square().mean().sqrt()))
    z = np.array(errors) / np.maximum(deviations, 1e-12)
    found = {
        "z_rms": float(np.sqrt(np.mean(z**2))),
        "rank_correlation": _correlate_ranks(np.array(grades), np.array(rmse)),
        "beyond": float(np.mean(atoms_beyond)),
    }
    return {key: round(value, 4) for key, value in found.items() if math.isfinite(value)}


def _correlate_ranks(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of values without ties."""
    ranks = np.stack([np.argsort(np.argsort(x)) for x in (a, b)]).astype(float)
    return float(np.corrcoef(ranks)[0, 1])
