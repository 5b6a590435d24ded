"""What a model file records of its making.

Here: :func:`build_header` and the description of software. Not here: the file (:mod:`fastff.checkpoint`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import ase
import ase.io
import numpy as np

import fastff
from fastff.coverage import find_close_pairs
from fastff.distill.constraints import copy_fixed
from fastff.distill.content import KNOWN_DIGITS, hash_structure
from fastff.distill.request import DistillRequest
from fastff.distill.split import Split
from fastff.distill.train import TrainResult
from fastff.report.metrics import Accuracy
from fastff.report.provenance import collect_provenance

if TYPE_CHECKING:
    from fastff.distill.formats import LabelledSet


def build_header(
    request: DistillRequest,
    labelled: LabelledSet,
    seeds: Sequence[ase.Atoms],
    split: Split,
    result: TrainResult,
    accuracy: Mapping[str, Accuracy],
    rounds: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """What the model file records of its making."""
    text = io.StringIO()
    for atoms in seeds:
        bare = strip_results(atoms)
        columns = ["symbols", "positions"] + ["move_mask"] * bool(bare.constraints)
        ase.io.write(text, bare, format="extxyz", columns=columns)
    temperatures = [f.temperature for f in split.train if np.isfinite(f.temperature)]
    limits = request.temperatures if request.structures else None
    if limits is None and temperatures:
        limits = (min(temperatures), max(temperatures))
    software = describe_software()
    machine = software["provenance"]
    header = {
        "fastff_version": fastff.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": labelled.teacher,
        "elements": list(result.student.elements),
        "cutoff": result.student.cutoff,
        "temperature": list(limits) if limits else None,
        "structures": text.getvalue(),
        "accuracy": {name: value.to_dict() for name, value in accuracy.items()},
        "training": {
            "request": request.model_dump(mode="json"),
            "n_train": len(split.train),
            "n_validation": len(split.validation),
            "n_test": len(split.test),
            "test_kind": split.test_kind,
            "n_steps": result.n_steps,
            "seconds": round(result.seconds, 1),
            "machine": machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores",
            "stopped": result.stopped,
            "learning_curve": result.learning_curve,
            "rounds": [dict(row) for row in rounds],
            "pairs": [
                list(pair)
                for pair in find_close_pairs((f.atoms for f in split.train), result.student.cutoff)
            ],
            "frame_hashes": [
                hash_structure(f.atoms).hex()[:KNOWN_DIGITS]
                for f in (*split.train, *split.validation)
            ],
        },
        **software,
    }
    return {key: replace_undefined(value) for key, value in header.items()}


def replace_undefined(value: Any) -> Any:
    """The same nested record with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: replace_undefined(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_undefined(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def strip_results(atoms: ase.Atoms) -> ase.Atoms:
    """Only what defines a structure: species, positions, cell, periodicity, and which atoms are fixed (FixAtoms)."""
    return ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc,
        constraint=copy_fixed(atoms),
    )  # fmt: skip


def describe_software() -> dict[str, Any]:
    """Machine, versions and kernel back ends of this process."""
    from fastff import kernels

    return {
        "provenance": collect_provenance().model_dump(mode="json"),
        "kernels": [
            {"op": row.op, "backend": row.backend, "reason": row.reason}
            for row in kernels.explain()
        ],
    }
