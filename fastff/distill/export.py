"""Writing labelled frames for other programs.

Here: :func:`write_labels` to label files (HDF5), extended XYZ and ASE databases. Not here: reading them back
(:mod:`fastff.distill.formats`).
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase
from ase.calculators.singlepoint import SinglePointCalculator

from fastff.distill.content import CHARGE_KEYS, describe_teacher, find_label_fault
from fastff.distill.store import LabelStore
from fastff.errors import DataError
from fastff.labels import Frame


def write_labels(
    path: str | Path,
    frames: Sequence[Frame],
    teacher: Any = None,
    held_out: Iterable[int] = (),
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write labelled frames for other programs; the file appears whole or not at all.

    Parameters
    ----------
    path : path-like
        ``.h5``, ``.hdf5``, ``.xyz``, ``.extxyz`` or ``.db``. The file must not exist.
    frames : sequence of Frame
        What to write. In a label file, non-finite labels go to quarantine and a structure that occurs twice is
        kept once; other formats take repeats and refuse non-finite labels.
    teacher : Teacher, TeacherInfo, mapping or None
        Who made the labels.
    held_out : iterable of int
        Trajectories made for testing only.
    record : mapping, optional
        What else is known of the labels, such as the teacher's self-check; label files alone hold it.

    Raises
    ------
    DataError
        The file exists, its name is of no known kind, or a frame's labels are not finite.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.exists():
        raise DataError(f"{path} exists already; choose another name or remove it")
    if suffix not in (".h5", ".hdf5", ".xyz", ".extxyz", ".db"):
        raise DataError(f"{path}: cannot write labels to this kind of file; use .h5, .xyz or .db")
    held, described = frozenset(held_out), describe_teacher(teacher)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if suffix in (".h5", ".hdf5"):
            _write_store(temporary, frames, described, held, record or {})
        elif suffix == ".db":
            _write_database(temporary, [_export_atoms(frame, held) for frame in frames], described)
        else:
            structures = [_export_atoms(frame, held) for frame in frames]
            for atoms in structures if described else ():
                atoms.info["teacher"] = json.dumps(described)
            import ase.io

            ase.io.write(temporary, structures, format="extxyz")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_store(
    path: Path,
    frames: Sequence[Frame],
    teacher: Mapping[str, Any],
    held: frozenset[int],
    record: Mapping[str, Any],
) -> None:
    with LabelStore(path, "w", teacher=teacher) as store:
        store.note(**record)
        for flag, part in itertools.groupby(frames, lambda frame: frame.trajectory in held):
            store.append(list(part), held_out=flag)


def _write_database(path: Path, structures: Sequence[ase.Atoms], teacher: dict[str, Any]) -> None:
    from ase.db import connect

    database = connect(path)
    with database:
        for atoms in structures:
            pairs = dict(atoms.info)
            atoms.info = {}
            data = {key: pairs.pop(key) for key in CHARGE_KEYS if key in pairs}  # reserved as pairs
            if "energies" in atoms.calc.results:
                data["energies"] = atoms.calc.results.pop("energies")
            database.write(atoms, key_value_pairs=pairs, data=data)
    database.metadata = {**database.metadata, "teacher": teacher}


def _export_atoms(frame: Frame, held: frozenset[int]) -> ase.Atoms:
    fault = find_label_fault(frame.atoms, frame.labels)
    if fault:
        raise DataError(f"cannot export a frame of {frame.atoms.get_chemical_formula()}: {fault}")
    atoms, labels = frame.atoms.copy(), frame.labels
    results = {"energy": labels.energy, "forces": labels.forces}
    if labels.stress is not None:
        results["stress"] = labels.stress
    if labels.energies is not None:
        results["energies"] = labels.energies
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(source=frame.source, trajectory=frame.trajectory, step=frame.step)
    if math.isfinite(frame.temperature):
        atoms.info["temperature"] = frame.temperature
    if frame.trajectory in held:
        atoms.info["held_out"] = True
    return atoms
