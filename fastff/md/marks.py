"""Marks: how far a file has come, and what its part so far looks like.

Here: marks of files that only grow (log, extended XYZ), and digests of arrays for the others. Not here: formats.

A restart file holds the mark of each output file. Before one is cut back to its mark, it must show that it is the file
that was marked: nothing that another program, or another run, has written is cut or overwritten.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastff.errors import DataError

Mark = dict[str, Any]

_SAMPLE = 65_536
"""Bytes at either end of the marked part that enter its digest."""


def digest_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over the bytes of some arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def mark_bytes(path: Path, size: int) -> Mark:
    """Mark of the first ``size`` bytes of a file: their number, and a digest of both ends."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        digest.update(handle.read(min(size, _SAMPLE)))
        handle.seek(max(size - _SAMPLE, 0))
        digest.update(handle.read(min(size, _SAMPLE)))
    return {"bytes": size, "sha256": digest.hexdigest()}


def check_bytes(path: Path, mark: Mark) -> None:
    """Refuse a file that is missing, shorter than its mark, or another than the marked one.

    Raises
    ------
    DataError
    """
    check_present(path)
    present, size = path.stat().st_size, mark["bytes"]
    if present < size:
        raise DataError(
            f"{path} has {present} bytes but {size} were written before the restart point; restore it"
        )
    if mark_bytes(path, size) != mark:
        raise describe_foreign(path)


def cut_bytes(path: Path, mark: Mark) -> None:
    """Cut a file back to its mark, after :func:`check_bytes`."""
    check_bytes(path, mark)
    os.truncate(path, mark["bytes"])


def check_present(path: Path) -> None:
    """Refuse a file that should be continued and is missing."""
    if not path.is_file():
        raise DataError(f"{path} is missing, so the run cannot be continued; restore it")


def describe_foreign(path: Path) -> DataError:
    """The error about a file that is not the one that was marked."""
    return DataError(
        f"{path} is not the file that this run has written, so it is left as it is; restore it, "
        "or start anew in another folder"
    )
