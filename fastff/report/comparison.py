"""A student against labels: one comparison of a record, and the model's own part of it.

Here: :func:`compare_frames`, :func:`describe_model`, :func:`hash_frames`. Not here: making the frames
(:mod:`fastff.report.heldout`), the order of a run (:mod:`fastff.report.bench`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ase
import numpy as np
from ase.data import chemical_symbols

from fastff.labels import Frame, Labels
from fastff.report.metrics import measure_accuracy, reduce_formula
from fastff.report.plausibility import check_units
from fastff.report.plotdata import compute_coverage, compute_parity
from fastff.report.schema import Comparison, FramesPart, ModelPart
from fastff.report.spread import METHOD, find_intervals, split_by_temperature
from fastff.report.stamps import stamp_part

if TYPE_CHECKING:
    from fastff.models import Student


def describe_model(path: Path, student: Student) -> ModelPart:
    """The model's part of a record, from its header."""
    header = student.header
    limits = header.get("temperature")
    training = header.get("training") or {}
    part = ModelPart(
        name=path.name,
        sha256=header["sha256"],
        architecture=student.config.architecture,
        elements=tuple(chemical_symbols[z] for z in student.elements),
        cutoff=float(student.cutoff),
        n_parameters=sum(p.numel() for p in student.parameters()),
        dtype=str(student.dtype).removeprefix("torch."),
        temperature=(float(limits[0]), float(limits[1])) if limits else None,
        teacher=dict(header.get("teacher") or {}),
        training={
            k: v for k, v in training.items() if k not in ("frame_hashes", "pairs", "request")
        },
    )
    return stamp_part(part)


def compare_frames(
    name: str,
    frames: Sequence[Frame],
    label: Callable[[Sequence[ase.Atoms]], list[Labels]],
    source: Literal["teacher-md", "labels"],
    description: str,
    notes: Sequence[str] = (),
) -> Comparison:
    """Predict ``frames`` with ``label`` (the student) and condense the comparison with their labels (the teacher).

    Raises
    ------
    DataError
        Labels or predictions that are not finite or do not fit, or one side in a different unit.
    """
    images = [frame.atoms for frame in frames]
    reference = [frame.labels for frame in frames]
    prediction = label(images)
    check_units(reference, prediction, images)
    accuracy = replace(
        measure_accuracy(reference, prediction, images),
        intervals=find_intervals(frames, prediction),
        intervals_by=METHOD,
        per_temperature=split_by_temperature(frames, prediction),
    )
    temperatures = [f.temperature for f in frames if np.isfinite(f.temperature)]
    comparison = Comparison(
        name=name,
        frames=FramesPart(
            source=source,
            description=description,
            n_frames=len(frames),
            n_atoms=sum(len(atoms) for atoms in images),
            n_trajectories=len({f.trajectory for f in frames}),
            formulas=tuple(sorted({reduce_formula(atoms) for atoms in images})),
            temperatures=(min(temperatures), max(temperatures)) if temperatures else None,
            digest=hash_frames(frames),
            notes=tuple(notes),
        ),
        accuracy=accuracy.to_dict(),
        parity=compute_parity(reference, prediction, images),
        coverage=compute_coverage(reference, images),
    )
    return stamp_part(comparison)


def hash_frames(frames: Sequence[Frame]) -> str:
    """SHA-256 over structures and labels, rounded to 1e-9 of their units."""
    digest = hashlib.sha256()
    for frame in frames:
        values = [frame.atoms.positions, frame.atoms.cell.array, frame.labels.forces]
        values.append(np.array([frame.labels.energy]))
        if frame.labels.stress is not None:
            values.append(frame.labels.stress)
        digest.update(np.asarray(frame.atoms.numbers, dtype="<i8").tobytes())
        for value in values:
            digest.update(np.round(np.asarray(value, dtype="<f8"), 9).tobytes())
    return digest.hexdigest()
