"""Reading frames of an open label file, and what is said where that, or writing, fails.

Here: rows to frames, with their checksums. Not here: which rows count and how they are written
(:mod:`fastff.distill.store`), the layout (:mod:`fastff.distill.layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import h5py

from fastff.distill.layout import FULL, GROUPS, read_rows
from fastff.distill.rows import compute_crc, unpack_frame
from fastff.errors import DataError
from fastff.labels import Frame

MOST_GAPS = 4
"""Atoms read for each one that is asked for, at most, where frames are read together."""

_Result = TypeVar("_Result")


def read_counts(file: h5py.File) -> dict[str, tuple[int, int]]:
    """Committed frames and atoms of each group, as the file has them."""
    committed = file["committed"][...]
    return {name: (int(a), int(b)) for name, (a, b) in zip(GROUPS, committed, strict=True)}


def read_group(
    file: h5py.File, name: str, n_frames: int, indices: Sequence[int] | None = None
) -> list[tuple[Frame, str]]:
    """Frames of a group, all ``n_frames`` or those at ``indices``, each with the reason for which it is set aside.

    Raises
    ------
    DataError
        A frame's checksum is wrong, i.e. the file was damaged after writing.
    """
    frames = read_rows(file[f"{name}/frames"], slice(0, n_frames))
    table = file[f"{name}/atoms"]
    chosen = range(n_frames) if indices is None else [int(index) for index in indices]
    starts = frames["first_atom"].astype(int)
    ends = starts + frames["n_atoms"].astype(int)
    low = min((starts[index] for index in chosen), default=0)
    high = max((ends[index] for index in chosen), default=0)
    together = high - low <= MOST_GAPS * sum(ends[index] - starts[index] for index in chosen)
    if together:
        atoms = read_rows(table, slice(low, high))
    result = []
    for index in chosen:
        start, end = starts[index], ends[index]
        rows = slice(start - low, end - low)
        if not together:
            atoms = read_rows(table, slice(start, end))
            rows = slice(0, end - start)
        if compute_crc(frames, atoms, index, rows) != int(frames["crc"][index]):
            raise DataError(f"{file.filename} is damaged: wrong checksum of frame {index} ({name})")
        frame = unpack_frame(frames, atoms, index, rows)
        result.append((frame, frames["reason"][index].decode()))
    return result


def guard(path: Path, action: str, function: Callable[[], _Result]) -> _Result:
    """The result of a function, or what the system or HDF5 refuse it as an error that names the file.

    Raises
    ------
    DataError
        Of one line.
    """
    try:
        return function()
    except OSError as error:
        full = f"{error.strerror}; free space and use the same command again"
        reason = full if error.errno in FULL else str(error)
        raise DataError(f"cannot {action} {path}: {reason}") from error
    except (KeyError, RuntimeError) as error:
        raise DataError(f"cannot {action} {path}: {error}") from error
