"""Files of the processes of one labelling job, in a folder beside the file that they become.

Here: their names, what they hold, joining and dropping them. Not here: labelling into them
(:mod:`fastff.distill.scaling`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastff.distill.merging import MergeReport, merge_labels
from fastff.distill.store import LabelStore
from fastff.errors import DataError

if TYPE_CHECKING:
    from fastff.teachers import Teacher


def name_folder(out: Path) -> Path:
    """Folder of the files of single processes."""
    return out.with_name(f"{out.name}.parts")


def list_parts(out: Path) -> list[Path]:
    """Files of single processes that are there."""
    return sorted(name_folder(out).glob("*.h5"))


def find_stored(paths: Sequence[Path], teacher: Teacher) -> set[bytes]:
    """Content hashes of all frames in those of some files that exist.

    Raises
    ------
    DataError
        A file of another teacher.
    """
    found: set[bytes] = set()
    for path in paths:
        if path.exists():
            with LabelStore(path, "r", teacher=teacher) as store:
                for group in ("frames", "quarantine"):
                    found.update(store.list_hashes(group))
    return found


def join_parts(out: Path) -> MergeReport:
    """Join what processes stored with what ``out`` holds, and remove their folder."""
    sources = ([out] if out.exists() else []) + list_parts(out)
    report = merge_labels(sources, out, replace=True, partial=True)
    shutil.rmtree(name_folder(out))
    return report


def drop_empty(out: Path) -> None:
    """Remove files of processes that ended before they had a label, and the folder if it is then empty."""
    for path in list_parts(out):
        with suppress(DataError):  # another process writes it
            with LabelStore(path, "a") as store:
                empty = not (len(store) or store.n_quarantined)
            if empty:
                path.unlink(missing_ok=True)
    with suppress(OSError):
        name_folder(out).rmdir()


def require_unused(out: Path, teacher: Teacher) -> None:
    """Make sure that no process still writes what a run of several processes left.

    Raises
    ------
    DataError
        One does, or a file is of another teacher.
    """
    for path in list_parts(out):
        LabelStore(path, "a", teacher=teacher).close()
