"""Joining label files of one teacher, and setting frames of one aside.

Here: :func:`merge_labels`, :func:`quarantine_frames`. Not here: other formats (:mod:`fastff.distill.export`).

Both write a new file beside the old one and put it in place in one atomic rename.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastff.distill.content import require_same_teacher
from fastff.distill.jobs import SHARD
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UsageError
from fastff.labels import Frame

CHUNK = 512
"""Frames in memory at once."""


@dataclass(frozen=True)
class MergeReport:
    """What became of a merge.

    Attributes
    ----------
    n_frames, n_quarantined : int
        In the new file.
    n_duplicates : int
        Frames that several files, or one file twice, held.
    missing : tuple of str
        What shards among the files lack, see :func:`find_missing`.
    """

    n_frames: int
    n_quarantined: int
    n_duplicates: int
    missing: tuple[str, ...] = ()


def merge_labels(
    sources: Sequence[Path],
    out: Path,
    *,
    replace: bool = False,
    aside: Mapping[bytes, str] | None = None,
    partial: bool = False,
) -> MergeReport:
    """Join label files.

    Frames are ordered by trajectory and step, so that shards of a file come back in its order; of frames with the same
    content the first stays. Frames in quarantine stay there. What the files record about their labels is joined.

    Parameters
    ----------
    sources : sequence of Path
        Label files (HDF5) of one teacher; they are left as they are.
    out : Path
    replace : bool
        ``out`` may exist, even among the sources.
    aside : mapping of bytes to str, optional
        Content hashes of frames to set aside, each with the reason.
    partial : bool
        Join shards although some are absent or unfinished.

    Raises
    ------
    DataError
        Files of different teachers, a file that is no label file, a trajectory that is held out in one file and not
        in another, or shards that are not complete.
    UsageError
        No sources, or ``out`` exists.
    """
    if not sources:
        raise UsageError("nothing to merge; name label files")
    if out.exists() and not replace:
        raise UsageError(f"{out} exists already; choose another --out")
    for path in (*sources, out):
        if path.suffix.lower() not in (".h5", ".hdf5"):
            raise UsageError(
                f"{path} is not a label file by its name (.h5, .hdf5); convert it with "
                "`fastff labels FILE --export NEW.h5`"
            )
    temporary = out.with_name(f".{out.name}.{os.getpid()}.merge")
    try:
        with ExitStack() as stack:
            stores = [stack.enter_context(LabelStore(path)) for path in sources]
            for store in stores[1:]:
                require_same_teacher(stores[0].teacher, store.teacher, str(sources[0]))
            missing = find_missing(stores)
            if missing and not partial:
                raise DataError(
                    f"not all that was asked for is labelled in these files: missing {'; '.join(missing)}; finish with "
                    "`fastff label --shard`, or merge all the same with --partial"
                )
            held_out = find_held_out(stores)
            target = stack.enter_context(LabelStore(temporary, "w", teacher=stores[0].teacher))
            record = {
                key: value for store in reversed(stores) for key, value in store.record.items()
            }
            if len(stores) > 1:  # together they are no shard
                record.pop(SHARD, None)
            target.note(**record)
            duplicates = 0
            for frames in read_in_order(stores):
                duplicates += append_frames(target, frames, held_out, aside or {})
            for store in stores:
                kept = store.read_quarantine()
                report = target.append([f for f, _ in kept], reasons=[reason for _, reason in kept])
                duplicates += report.duplicates
            outcome = MergeReport(len(target), target.n_quarantined, duplicates, tuple(missing))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return outcome


def quarantine_frames(path: Path, reasons: Mapping[int, str]) -> MergeReport:
    """Set frames of a label file aside, given by index with the reason for each; the labels stay in the file."""
    with LabelStore(path) as store:
        hashes = store.list_hashes()
    aside = {hashes[index]: reason for index, reason in reasons.items()}
    return merge_labels([path], path, replace=True, aside=aside, partial=True)


def append_frames(
    target: LabelStore,
    frames: Sequence[Frame],
    held_out: frozenset[int],
    aside: Mapping[bytes, str],
) -> int:
    """Append frames with their flags; return how many were there already."""
    duplicates = 0
    for flag in (False, True):
        part = [frame for frame in frames if (frame.trajectory in held_out) == flag]
        reasons = [aside.get(target.hash(frame.atoms), "") for frame in part]
        duplicates += target.append(part, held_out=flag, reasons=reasons).duplicates
    return duplicates


def find_missing(stores: Sequence[LabelStore]) -> list[str]:
    """What the shards among some files lack, in words: whole shards, and frames of those that are unfinished.

    Files that do not say what they are part of lack nothing.
    """
    jobs: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for store in stores:
        if shard := store.record.get(SHARD):
            lacking = shard["n_frames"] - len(store) - store.n_quarantined
            found = jobs[shard["job"], shard["count"]]
            found[shard["index"]] = min(lacking, found.get(shard["index"], lacking))
    missing = []
    for (_, count), found in jobs.items():
        absent = [str(index) for index in range(1, count + 1) if index not in found]
        if absent:
            missing.append(f"shard{'s' * (len(absent) > 1)} {', '.join(absent)} of {count}")
        missing += [
            f"{lacking} frames of shard {index} of {count}"
            for index, lacking in sorted(found.items())
            if lacking > 0
        ]
    return missing


def find_held_out(stores: Sequence[LabelStore]) -> frozenset[int]:
    """Trajectories that are for testing only.

    Raises
    ------
    DataError
        If a trajectory is held out in one file and not in another.
    """
    flags: dict[int, tuple[bool, Path]] = {}
    for store in stores:
        held_out = store.held_out
        for number in {int(number) for number in store.read_column("trajectory")}:
            flag, other = flags.setdefault(number, (number in held_out, store.path))
            if flag != (number in held_out):
                raise DataError(
                    f"trajectory {number} is held out for testing in one of {other} and {store.path} but not in the "
                    "other; these files do not belong together"
                )
    return frozenset(number for number, (flag, _) in flags.items() if flag)


def read_in_order(stores: Sequence[LabelStore]) -> Iterator[list[Frame]]:
    """Sound frames of all files by trajectory, step, file and place in the file, in chunks."""
    keys = [
        np.stack(
            [
                store.read_column("trajectory"),
                store.read_column("step"),
                np.full(len(store), number),
                np.arange(len(store)),
            ],
            axis=1,
        )
        for number, store in enumerate(stores)
    ]
    table = np.concatenate(keys)
    order = table[np.lexsort(table.T[::-1])]
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        frames: dict[int, Frame] = {}
        for number in np.unique(chunk[:, 2]):
            places = np.flatnonzero(chunk[:, 2] == number)
            found = stores[number].read(chunk[places, 3].tolist())
            frames.update(zip(places.tolist(), found, strict=True))
        yield [frames[place] for place in range(len(chunk))]
