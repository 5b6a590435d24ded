"""The inside of a label file: groups, arrays, and forcing them to disk.

Here: the HDF5 layout and its schema number. Not here: what the columns mean (:mod:`fastff.distill.rows`), or the
order of writes that keeps a file whole (:mod:`fastff.distill.store`).

Layout: attributes ``format``, ``schema``, ``teacher`` and ``record`` (both JSON); array ``committed`` of shape (2, 2),
the number of frames and atoms in each group; groups ``frames`` and ``quarantine``, each with the tables ``frames`` and
``atoms``.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastff.distill.rows import Rows, list_columns
from fastff.errors import DataError

FORMAT = "fastff-labels"
SCHEMA = 2
"""2: attribute ``record`` and columns of Hessian-vector targets, both of which may be missing."""
GROUPS = ("frames", "quarantine")
"""Sound frames, and frames set aside with a reason."""

Capacity = Mapping[str, tuple[int, int]]
"""Rows for frames and rows for atoms, of each group."""

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""What the system says where a disk is full, or a quota or limit is reached."""
MOST_METADATA = 1 << 16
"""Bytes of a label file beside its rows and its header, at most."""


def read_rows(group: h5py.Group, rows: slice) -> Rows:
    """Return the given rows of every column of a table."""
    return {name: dataset[rows] for name, dataset in group.items()}


@dataclass(frozen=True)
class Header:
    """What a label file says of itself.

    Attributes
    ----------
    teacher : dict
        Who made the labels.
    record : dict
        What else is known of them: the teacher's self-check, how they were made.
    hessian : bool
        Whether the file has columns for Hessian-vector targets.
    """

    teacher: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    hessian: bool = False


def open_file(path: Path, writable: bool) -> h5py.File:
    """Open a label file.

    Raises
    ------
    DataError
        It is no HDF5 file, or another process writes it.
    """
    try:
        return h5py.File(path, "r+" if writable else "r", locking=writable)
    except BlockingIOError as error:
        message = f"{path} is being written by another process; wait for it"
        raise DataError(message) from error
    except OSError as error:
        raise DataError(f"{path} is not a readable HDF5 file: {error}") from error


def read_header(file: h5py.File, path: Path) -> Header:
    """Read what a label file says of itself.

    Raises
    ------
    DataError
        It is no label file, one of a newer fastff, or damaged.
    """
    if file.attrs.get("format") != FORMAT:
        raise DataError(f"{path} is an HDF5 file but not a fastff label file")
    schema = int(file.attrs.get("schema", 0))
    if schema > SCHEMA:
        raise DataError(
            f"{path} has label schema {schema}; this fastff reads up to {SCHEMA}. Update fastff."
        )
    try:
        teacher = json.loads(file.attrs["teacher"])
        record = json.loads(file.attrs.get("record", "{}"))
        return Header(teacher, record, "hvp_step" in file["frames/frames"])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: its teacher record cannot be read") from error


def create_layout(file: h5py.File, header: Header, capacity: Capacity) -> None:
    """Create all groups and arrays of an empty label file."""
    file.attrs["format"] = FORMAT
    file.attrs["schema"] = SCHEMA
    file.attrs["teacher"] = json.dumps(header.teacher)
    file.attrs["record"] = json.dumps(header.record)
    for name in GROUPS:
        for part, columns in enumerate(list_columns(header.hessian)):
            group = file.create_group(f"{name}/{('frames', 'atoms')[part]}")
            for column, (dtype, shape) in columns.items():
                _create_array(group, column, (capacity[name][part], *shape), dtype)
    _create_array(file, "committed", (len(GROUPS), 2), "<i8")


def _create_array(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: str) -> None:
    """Create a contiguous array whose space exists from the start, so that writing changes data only."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_obj_track_times(False)
    group.create_dataset(name, shape=shape, dtype=dtype, dcpl=layout)


def require_space(path: Path, header: Header, capacity: Capacity) -> None:
    """Find out whether the disk takes a label file of this room, before HDF5 does, which crashes where it does not.

    Raises
    ------
    OSError
        It is full, or a quota or limit is reached.
    """
    n_bytes = MOST_METADATA + sum(len(json.dumps(part)) for part in (header.teacher, header.record))
    for name in GROUPS:
        for part, columns in enumerate(list_columns(header.hessian)):
            each = sum(
                np.dtype(kind).itemsize * math.prod(shape) for kind, shape in columns.values()
            )
            n_bytes += capacity[name][part] * each
    try:
        with path.open("wb") as file:
            _allocate(file.fileno(), n_bytes)
    finally:
        path.unlink(missing_ok=True)


def allocate_space(path: Path) -> None:
    """Give a file all blocks of the disk that its size says, so that later writes do not find it full.

    Raises
    ------
    OSError
        As :func:`require_space`.
    """
    with path.open("r+b") as file:
        _allocate(file.fileno(), path.stat().st_size)


def _allocate(descriptor: int, n_bytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, n_bytes)
    except OSError as error:
        if error.errno in FULL:
            raise
    except AttributeError:  # not on macOS
        return


def write_counts(file: h5py.File, counts: Capacity) -> None:
    """Write the number of committed frames and atoms of each group."""
    file["committed"][...] = np.array([counts[name] for name in GROUPS], dtype="<i8")


def erase_leftovers(file: h5py.File, counts: Capacity, *, dry: bool) -> int:
    """Count the rows of an append that was cut short, and erase their hashes unless ``dry``."""
    n_cut = 0
    for name in GROUPS:
        column = file[f"{name}/frames/hash"]
        start = counts[name][0]
        leftovers = int(np.any(column[start:], axis=1).sum()) if column.shape[0] > start else 0
        if leftovers and not dry:
            column[start:] = 0
        n_cut += leftovers
    return n_cut


def copy_rows(old: h5py.File, new: h5py.File, counts: Capacity) -> None:
    """Copy the committed rows of one label file into another that has room for them.

    Columns that only the new file has are filled with nan: they are those of Hessian-vector targets.
    """
    for name in GROUPS:
        for part, table in enumerate(("frames", "atoms")):
            rows = slice(0, counts[name][part])
            source, target = old[f"{name}/{table}"], new[f"{name}/{table}"]
            for column in target if rows.stop else ():
                target[column][rows] = source[column][rows] if column in source else np.nan


def sync_file(file: h5py.File) -> None:
    """Force everything written so far to disk.

    Where space was there before, a sync of the data alone leaves the journal of the file system, which all processes
    that write to it wait for, out of it; it takes a tenth of the time.
    """
    file.flush()
    getattr(os, "fdatasync", os.fsync)(file.id.get_vfd_handle())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (a rename) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_copy(
    path: Path, header: Header, capacity: Capacity, old: h5py.File | None, counts: Capacity
) -> None:
    """Write a label file with the given room, copy committed rows of an old one into it, and put it in place.

    Raises
    ------
    OSError
        The disk refuses; what was there before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        require_space(temporary, header, capacity)
        with h5py.File(temporary, "w", libver=("earliest", "v110")) as new:
            create_layout(new, header, capacity)
            if old:
                copy_rows(old, new, counts)
            write_counts(new, counts)
            sync_file(new)
        allocate_space(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
