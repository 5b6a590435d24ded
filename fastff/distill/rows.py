"""The columns of a label file and the way frames become rows.

Here: column names, types and meaning, and the conversion between :class:`~fastff.labels.Frame` and arrays.
Not here: files (:mod:`fastff.distill.store`).

A set of frames is two tables. ``frames`` has one row per structure, ``atoms`` one row per atom; the atoms of
frame ``i`` are rows ``first_atom[i] : first_atom[i] + n_atoms[i]``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import ase
import numpy as np

from fastff.distill.content import CHARGE_KEYS, HASH_BYTES
from fastff.errors import UsageError
from fastff.labels import Frame, HessianVector, Labels

SOURCE_BYTES = 32
REASON_BYTES = 160

FRAME_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "energy": ("<f8", ()),  # eV
    "stress": ("<f8", (6,)),  # eV/Å^3, ASE's Voigt order and sign; nan where has_stress is 0
    "cell": ("<f8", (3, 3)),  # Å, rows are vectors
    "pbc": ("u1", (3,)),
    "charge": ("<f8", ()),  # e, nan if not stated
    "spin": ("<f8", ()),  # multiplicity, nan if not stated
    "source": (f"S{SOURCE_BYTES}", ()),
    "trajectory": ("<i8", ()),
    "temperature": ("<f8", ()),  # K, nan if not from dynamics
    "step": ("<i8", ()),  # -1 if not from dynamics
    "held_out": ("u1", ()),  # 1 for frames made for testing only
    "has_stress": ("u1", ()),
    "has_energies": ("u1", ()),
    "has_momenta": ("u1", ()),
    "first_atom": ("<i8", ()),
    "n_atoms": ("<i8", ()),
    "crc": ("<u4", ()),  # CRC-32 of everything else in the frame except first_atom
    "hash": ("u1", (HASH_BYTES,)),  # content hash of the structure and teacher
    "reason": (f"S{REASON_BYTES}", ()),  # why a frame is in quarantine, else empty
}
ATOM_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "numbers": ("<i4", ()),
    "positions": ("<f8", (3,)),  # Å
    "forces": ("<f8", (3,)),  # eV/Å
    "momenta": ("<f8", (3,)),  # ASE units (amu Å per ASE time), nan if there are none
    "energies": ("<f8", ()),  # eV per atom, nan if there are none
}

HESSIAN_FRAME_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "hvp_step": ("<f8", ()),  # h in Å, nan if the frame has no Hessian-vector target
}
HESSIAN_ATOM_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "hvp_direction": ("<f8", (3,)),  # u; nan where there is no target
    "hvp_forces_plus": ("<f8", (3,)),  # eV/Å at R + h u
    "hvp_forces_minus": ("<f8", (3,)),  # eV/Å at R - h u
}
"""Columns that a file has only once a frame needs them."""

Rows = dict[str, np.ndarray]


def list_columns(hessian: bool) -> tuple[dict[str, tuple[str, tuple[int, ...]]], ...]:
    """Return the columns of the ``frames`` and of the ``atoms`` table, with or without Hessian-vector targets."""
    if not hessian:
        return FRAME_COLUMNS, ATOM_COLUMNS
    return FRAME_COLUMNS | HESSIAN_FRAME_COLUMNS, ATOM_COLUMNS | HESSIAN_ATOM_COLUMNS


def pack_frames(
    frames: Sequence[Frame],
    hashes: Sequence[bytes],
    reasons: Sequence[str],
    held_out: bool,
    first_atom: int,
    hessian: bool = False,
) -> tuple[Rows, Rows]:
    """Turn frames into rows of the two tables.

    Parameters
    ----------
    frames : sequence of Frame
        At least one frame.
    hashes : sequence of bytes
        Content hash of each frame.
    reasons : sequence of str
        Reason for quarantine of each frame, empty for sound frames.
    held_out : bool
        Whether the frames were made for testing only.
    first_atom : int
        Row of the ``atoms`` table at which these frames will start.
    hessian : bool
        Whether the tables have the columns of Hessian-vector targets.

    Raises
    ------
    UsageError
        A source name is longer than the column.
    """
    n_frames = len(frames)
    frame_columns, atom_columns = list_columns(hessian)
    frame_rows = {
        name: np.zeros((n_frames, *shape), dtype) for name, (dtype, shape) in frame_columns.items()
    }
    counts = np.array([len(frame.atoms) for frame in frames], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    atom_rows = {
        name: np.full((starts[-1], *shape), np.nan if "f" in dtype else 0, dtype)
        for name, (dtype, shape) in atom_columns.items()
    }
    for index, frame in enumerate(frames):
        rows = slice(starts[index], starts[index + 1])
        _pack_frame(frame, frame_rows, atom_rows, index, rows)
        frame_rows["hash"][index] = np.frombuffer(hashes[index], dtype="u1")
        frame_rows["reason"][index] = reasons[index].encode()[:REASON_BYTES]
        frame_rows["held_out"][index] = held_out
        frame_rows["n_atoms"][index] = counts[index]
        frame_rows["first_atom"][index] = first_atom + starts[index]
        frame_rows["crc"][index] = compute_crc(frame_rows, atom_rows, index, rows)
    return frame_rows, atom_rows


def _pack_frame(frame: Frame, frames: Rows, atoms: Rows, index: int, rows: slice) -> None:
    labels, structure = frame.labels, frame.atoms
    source = frame.source.encode()
    if len(source) > SOURCE_BYTES:
        raise UsageError(
            f"source name {frame.source!r} is longer than {SOURCE_BYTES} bytes; shorten it"
        )
    frames["source"][index] = source
    frames["energy"][index] = labels.energy
    frames["stress"][index] = np.nan if labels.stress is None else labels.stress
    frames["has_stress"][index] = labels.stress is not None
    frames["has_energies"][index] = labels.energies is not None
    frames["has_momenta"][index] = structure.has("momenta")
    frames["cell"][index] = np.asarray(structure.cell)
    frames["pbc"][index] = structure.pbc
    frames["trajectory"][index] = frame.trajectory
    frames["temperature"][index] = frame.temperature
    frames["step"][index] = frame.step
    for key in CHARGE_KEYS:
        value = structure.info.get(key)
        frames[key][index] = np.nan if value is None else float(value)
    atoms["numbers"][rows] = structure.numbers
    atoms["positions"][rows] = structure.positions
    atoms["forces"][rows] = labels.forces
    if labels.energies is not None:
        atoms["energies"][rows] = labels.energies
    if structure.has("momenta"):
        atoms["momenta"][rows] = structure.get_momenta()
    if "hvp_step" in frames:
        target = frame.hessian_vector
        frames["hvp_step"][index] = np.nan if target is None else target.step
        if target is not None:
            for name in HESSIAN_ATOM_COLUMNS:
                atoms[name][rows] = getattr(target, name.removeprefix("hvp_"))


def unpack_frame(frames: Rows, atoms: Rows, index: int, rows: slice) -> Frame:
    """Return row ``index`` as a :class:`~fastff.labels.Frame`; its atoms are at ``rows``."""
    structure = ase.Atoms(
        numbers=atoms["numbers"][rows],
        positions=atoms["positions"][rows],
        cell=frames["cell"][index],
        pbc=frames["pbc"][index].astype(bool),
    )
    if frames["has_momenta"][index]:
        structure.set_momenta(atoms["momenta"][rows])
    for key in CHARGE_KEYS:
        value = float(frames[key][index])
        if np.isfinite(value):
            structure.info[key] = int(value) if value.is_integer() else value
    stress, energies = frames["stress"][index], atoms["energies"][rows]
    labels = Labels(
        energy=float(frames["energy"][index]),
        forces=atoms["forces"][rows].astype(np.float64),
        stress=stress.astype(np.float64) if frames["has_stress"][index] else None,
        energies=energies.astype(np.float64) if frames["has_energies"][index] else None,
    )
    return Frame(
        atoms=structure,
        labels=labels,
        source=frames["source"][index].decode(),
        trajectory=int(frames["trajectory"][index]),
        temperature=float(frames["temperature"][index]),
        step=int(frames["step"][index]),
        hessian_vector=_unpack_hessian_vector(frames, atoms, index, rows),
    )


def _unpack_hessian_vector(
    frames: Rows, atoms: Rows, index: int, rows: slice
) -> HessianVector | None:
    if not _has_hessian_vector(frames, index):
        return None
    arrays = {
        name.removeprefix("hvp_"): atoms[name][rows].astype(np.float64)
        for name in HESSIAN_ATOM_COLUMNS
    }
    return HessianVector(step=float(frames["hvp_step"][index]), **arrays)


def _has_hessian_vector(frames: Rows, index: int) -> bool:
    return "hvp_step" in frames and bool(np.isfinite(frames["hvp_step"][index]))


def compute_crc(frames: Rows, atoms: Rows, index: int, rows: slice) -> int:
    """Return the CRC-32 of one frame's row and of its atoms' rows."""
    crc = 0
    frame_columns, atom_columns = list_columns(_has_hessian_vector(frames, index))
    for name in frame_columns:
        if name not in ("crc", "first_atom"):
            crc = zlib.crc32(np.ascontiguousarray(frames[name][index]).tobytes(), crc)
    for name in atom_columns:
        crc = zlib.crc32(np.ascontiguousarray(atoms[name][rows]).tobytes(), crc)
    return crc
