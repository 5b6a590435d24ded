"""Identity and soundness of labelled frames.

Here: the content hash that makes a frame unique, the identity of a teacher, and the test for unusable labels.
Not here: storing frames (:mod:`fastff.distill.store`) or judging a whole set (:mod:`fastff.distill.validate`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np

from fastff.errors import DataError
from fastff.labels import Frame, Labels
from fastff.teachers.fennol_models import name_members

POSITION_RESOLUTION = 1e-6
"""Å; structures closer than this in every coordinate have the same hash."""

HASH_BYTES = 16

KNOWN_DIGITS = 12
"""Hexadecimal digits of the content hashes that a model file keeps of what it was trained on: of 10,000 other frames
compared with 10,000 of these, one is taken for known with a probability of 4e-7. Earlier files keep all 32."""

CHARGE_KEYS = ("charge", "spin")
"""Entries of ``atoms.info`` that change what a teacher answers."""

WEIGHT_KEYS = ("weights_sha256", "weights")
"""Entries of a teacher record that tell its weights, the surest first."""


@dataclass(frozen=True)
class AppendReport:
    """What became of the frames given to :meth:`fastff.distill.store.LabelStore.append`.

    Attributes
    ----------
    added : int
        Frames stored.
    duplicates : int
        Frames that were there already and were skipped.
    quarantined : tuple of str
        Reason for each frame that was set aside.
    """

    added: int
    duplicates: int
    quarantined: tuple[str, ...]


def describe_teacher(teacher: Any) -> dict[str, Any]:
    """Return a teacher's record as a JSON-able dict.

    Parameters
    ----------
    teacher : mapping, object with ``to_dict()``, object with ``info``, or None
        A stored record, a ``TeacherInfo`` or a ``Teacher``. None gives an empty record.

    Raises
    ------
    DataError
        The record holds something that JSON cannot express.
    """
    if teacher is None:
        return {}
    if hasattr(teacher, "info") and hasattr(teacher.info, "to_dict"):
        teacher = teacher.info
    record = dict(teacher) if isinstance(teacher, Mapping) else teacher.to_dict()
    try:
        result: dict[str, Any] = json.loads(json.dumps(record))
    except (TypeError, ValueError) as error:
        raise DataError(f"teacher record cannot be written as JSON: {error}") from error
    return result


def identify_teacher(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the entries of a teacher record that decide whether labels may be mixed.

    Name, package version, settings that change labels, and the SHA-256 of the weights; where no hash is known, the name
    of the weights. Where the files of FeNNol models lie is left out.
    """
    record = leave_out_folders(record)
    identity = {key: str(record[key]) for key in ("name", "version", "settings") if record.get(key)}
    for key in WEIGHT_KEYS:
        if record.get(key):
            identity[key] = str(record[key])
            break
    return identity


def leave_out_folders(record: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher record whose name has no path or pattern of files; earlier versions named FeNNol models by these."""
    family, _, files = str(record.get("name", "")).partition(":")
    if family.lower() == "fennol" and files and record.get("weights"):
        return {**record, "name": f"fennol:{name_members(str(record['weights']).split(', '))}"}
    return dict(record)


def require_same_teacher(stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raise unless two teacher records name the same teacher, version, settings and weights.

    Raises
    ------
    DataError
        Names the entries that differ and both values.
    """
    if details := describe_difference(stored, given):
        raise DataError(
            f"{where} holds labels of another teacher: {details}. "
            "Write to a new label file, or use the teacher that made this one."
        )


def describe_difference(
    stored: Mapping[str, Any], given: Mapping[str, Any], entries: Sequence[str] | None = None
) -> str:
    """How the identities of two teacher records differ, in words; empty if they do not.

    Parameters
    ----------
    stored, given : mapping
        Records, as :func:`describe_teacher` returns them.
    entries : sequence of str, optional
        Compare these alone, and only those of which the stored record says something.
    """
    left, right = identify_teacher(stored), identify_teacher(given)
    differing = [key for key in sorted(left | right) if left.get(key) != right.get(key)]
    if entries is not None:
        said = {key for key in entries if key in stored} - {k for k in WEIGHT_KEYS if k not in left}
        if ("weights_sha256" in left) != ("weights_sha256" in right):
            said -= {"weights"}  # a name beside a hash
        differing = [key for key in differing if key in said]
    return "; ".join(
        f"{key} is {_name_entry(left, key)} there and {_name_entry(right, key)} now"
        for key in differing
    )


def _name_entry(identity: Mapping[str, str], key: str) -> str:
    usual = "the usual ones" if key == "settings" else "unknown"
    return repr(identity[key]) if key in identity else usual


def hash_structure(atoms: ase.Atoms, teacher: Mapping[str, Any] | None = None) -> bytes:
    """Return the content hash of a structure as seen by a teacher.

    SHA-256 (first 16 bytes) over atomic numbers, positions and cell rounded to
    :data:`POSITION_RESOLUTION`, periodicity, charge and spin, and the teacher's identity. The order of
    atoms counts; velocities do not.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure.
    teacher : mapping, optional
        Teacher record; only its identity enters.
    """
    digest = hashlib.sha256()
    digest.update(np.asarray(atoms.numbers, dtype="<i8").tobytes())
    for values in (atoms.positions, np.asarray(atoms.cell)):
        digest.update(_round_to_bytes(values))
    digest.update(np.asarray(atoms.pbc, dtype=np.uint8).tobytes())
    for key in CHARGE_KEYS:
        value = atoms.info.get(key)
        digest.update(b"-" if value is None else f"{float(value):.6f}".encode())
    digest.update(json.dumps(identify_teacher(teacher or {}), sort_keys=True).encode())
    return digest.digest()[:HASH_BYTES]


def find_known(hashes: Sequence[str], known: Collection[str]) -> list[bool]:
    """Whether each content hash is among known ones, of which some may be cut short.

    Parameters
    ----------
    hashes : sequence of str
        Whole, hexadecimal.
    known : collection of str
        The same, whole or the first digits of each, such as the ``frame_hashes`` of a model file.
    """
    stored, lengths = frozenset(known), {len(entry) for entry in known}
    return [any(key[:length] in stored for length in lengths) for key in hashes]


def _round_to_bytes(values: np.ndarray) -> bytes:
    values = np.ascontiguousarray(values, dtype="<f8")
    if not np.isfinite(values).all():
        return values.tobytes()
    return np.rint(values / POSITION_RESOLUTION).astype("<i8").tobytes()


def find_fault(frame: Frame) -> str | None:
    """Say why a frame cannot be used, Hessian-vector target included, or return None if it can.

    Raises
    ------
    DataError
        Shapes do not fit the structure.
    """
    fault = find_label_fault(frame.atoms, frame.labels)
    target = frame.hessian_vector
    if fault or target is None:
        return fault
    for values in (target.direction, target.forces_plus, target.forces_minus):
        if np.shape(values) != (len(frame.atoms), 3):
            raise DataError(
                f"Hessian-vector target of {frame.atoms.get_chemical_formula()} has shape {np.shape(values)}; "
                f"need {(len(frame.atoms), 3)}"
            )
        if not np.isfinite(values).all():
            return "forces beside the structure not finite"
    return None


def find_label_fault(atoms: ase.Atoms, labels: Labels) -> str | None:
    """Say why labels cannot be used, or return None if they can.

    Raises
    ------
    DataError
        Shapes of the labels do not fit the structure (an error of the caller, not of the teacher).
    """
    n_atoms = len(atoms)
    expected = {"forces": (n_atoms, 3), "stress": (6,), "energies": (n_atoms,)}
    for name, shape in expected.items():
        value = getattr(labels, name)
        if value is not None and np.shape(value) != shape:
            raise DataError(
                f"{name} of {atoms.get_chemical_formula()} have shape {np.shape(value)}; need {shape}"
            )
    if n_atoms == 0:
        return "no atoms"
    checks = {
        "positions": atoms.positions,
        "cell": np.asarray(atoms.cell),
        "energy": labels.energy,
        "forces": labels.forces,
        "stress": labels.stress,
        "per-atom energies": labels.energies,
    }
    for name, value in checks.items():
        if value is not None and not np.isfinite(value).all():
            return f"{name} not finite"
    return None


def find_outlier(frame: Frame, limit: float | None) -> str | None:
    """Say so if a force is longer than ``limit`` (eV/Å), else return None."""
    if limit is None:
        return None
    largest = float(np.linalg.norm(frame.labels.forces, axis=1).max())
    return f"force {largest:.1f} eV/Å above {limit:g}" if largest > limit else None
