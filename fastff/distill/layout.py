"""The inside of a label file: groups, arrays, and forcing them to disk.

Here: the HDF5 layout and its schema number. Not here: what the columns mean (:mod:`fastff.distill.rows`), or the
order of writes that keeps a file whole (:mod:`fastff.distill.store`).

Layout: attributes ``format``, ``schema`` and ``teacher`` (JSON); array ``committed`` of shape (2, 2), the number of
frames and atoms in each group; groups ``frames`` and ``quarantine``, each with the tables ``frames`` and ``atoms``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastff.distill.rows import ATOM_COLUMNS, FRAME_COLUMNS, Rows

FORMAT = "fastff-labels"
SCHEMA = 1
GROUPS = ("frames", "quarantine")
"""Sound frames, and frames set aside with a reason."""

Capacity = Mapping[str, tuple[int, int]]
"""Rows for frames and rows for atoms, of each group."""


def read_rows(group: h5py.Group, rows: slice) -> Rows:
    """Return the given rows of every column of a table."""
    return {name: dataset[rows] for name, dataset in group.items()}


def create_layout(file: h5py.File, teacher: Mapping[str, Any], capacity: Capacity) -> None:
    """Create all groups and arrays of an empty label file."""
    file.attrs["format"] = FORMAT
    file.attrs["schema"] = SCHEMA
    file.attrs["teacher"] = json.dumps(teacher)
    for name in GROUPS:
        for part, columns in enumerate((FRAME_COLUMNS, ATOM_COLUMNS)):
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


def write_counts(file: h5py.File, counts: Capacity) -> None:
    """Write the number of committed frames and atoms of each group."""
    file["committed"][...] = np.array([counts[name] for name in GROUPS], dtype="<i8")


def copy_rows(old: h5py.File, new: h5py.File, counts: Capacity) -> None:
    """Copy the committed rows of one label file into another that has room for them."""
    for name in GROUPS:
        for part, columns in enumerate((FRAME_COLUMNS, ATOM_COLUMNS)):
            rows = slice(0, counts[name][part])
            for column in columns if rows.stop else ():
                place = f"{name}/{('frames', 'atoms')[part]}/{column}"
                new[place][rows] = old[place][rows]


def sync_file(file: h5py.File) -> None:
    """Force everything written so far to disk."""
    file.flush()
    os.fsync(file.id.get_vfd_handle())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (a rename) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
