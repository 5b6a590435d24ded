"""The label file: an HDF5 file of labelled frames that survives being killed at any moment.

Here: :class:`LabelStore`. Not here: other file formats (:mod:`fastff.distill.formats`), the columns
(:mod:`fastff.distill.rows`), how frames are read (:mod:`fastff.distill.reading`), what makes a frame unique or
unusable (:mod:`fastff.distill.content`).

HDF5 has no journal: a process that dies while the file's own structure is being changed can leave it unreadable.
Hence its structure never changes in place. All arrays are contiguous and lie in space that is there before any frame
is written. An append writes rows into free space, forces them to disk, and then writes the four counters in
``committed``, which alone say how many rows exist; rows beyond them are leftovers of an append that was cut short and
are erased when the file is next opened for writing. When the space is used up, a copy with twice the room replaces the
file in one atomic rename. Closing trims unused space the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import ase
import h5py
import numpy as np

from fastff.distill.content import (
    AppendReport,
    describe_teacher,
    find_fault,
    find_outlier,
    hash_structure,
    leave_out_folders,
    require_same_teacher,
)
from fastff.distill.layout import (
    GROUPS,
    Capacity,
    Header,
    erase_leftovers,
    open_file,
    read_header,
    sync_file,
    write_copy,
    write_counts,
)
from fastff.distill.reading import guard, read_counts, read_group
from fastff.distill.rows import pack_frames
from fastff.errors import DataError, UsageError
from fastff.labels import Frame

INITIAL_FRAMES = 64
MOST_RESERVED = 2**20
"""Atoms for which :meth:`LabelStore.reserve` makes room at once, about 100 MB, beside the frames that they make up."""

_Result = TypeVar("_Result")


class LabelStore:
    """An appendable, resumable file of frames labelled by one teacher.

    Parameters
    ----------
    path : path-like
        The HDF5 file.
    mode : {"r", "a", "w"}
        Read (also while another process appends); append, creating the file if missing; or create, refusing to
        overwrite.
    teacher : Teacher, TeacherInfo, mapping or None
        Who makes the labels. Stored in a new file; compared with the stored record otherwise.

    Attributes
    ----------
    n_cut : int
        Rows of an unfinished append that were found (and, when writable, erased) on opening.

    Raises
    ------
    DataError
        Missing, damaged, foreign or newer file; another teacher; or in use by another writer.

    Examples
    --------
    >>> with LabelStore("labels.h5", "a", teacher=teacher) as store:  # doctest: +SKIP
    ...     store.append(frames)
    """

    def __init__(
        self, path: str | Path, mode: Literal["r", "a", "w"] = "r", teacher: Any = None
    ) -> None:
        if mode not in ("r", "a", "w"):
            raise UsageError(f"mode of a label file is {mode!r}; use 'r', 'a' or 'w'")
        self.path = Path(path)
        self.writable = mode != "r"
        exists = self.path.exists()
        self._is_new = not exists
        if mode == "r" and not exists:
            raise DataError(f"{self.path}: no such label file")
        if mode == "w" and exists:
            raise DataError(f"{self.path} exists already; choose another name or append to it")
        given = describe_teacher(teacher)
        if not exists:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(
                    f"{self.path.parent} cannot be made a folder ({error.strerror}); choose another place for labels"
                ) from error
            room = dict.fromkeys(GROUPS, (INITIAL_FRAMES, INITIAL_FRAMES * 64))
            new = Header(leave_out_folders(given))
            self._guard("write", lambda: self._replace_file(new, room))
        else:
            self._file = open_file(self.path, self.writable)
            if self.writable:
                for stray in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                    stray.unlink(missing_ok=True)
        try:
            self._header = read_header(self._file, self.path)
            if teacher is not None:
                require_same_teacher(self.teacher, given, str(self.path))
            self._counts = self._read_counts()
            self.n_cut = erase_leftovers(self._file, self._counts, dry=not self.writable)
            self._hashes = self._read_hashes()
        except BaseException:
            self._file.close()
            raise

    # --- content ---

    def __len__(self) -> int:
        return self._counts["frames"][0]

    @property
    def teacher(self) -> dict[str, Any]:
        """Stored record of the teacher."""
        return self._header.teacher

    @property
    def record(self) -> dict[str, Any]:
        """What else is stored about the labels, see :meth:`note`."""
        return self._header.record

    @property
    def n_hessian_vectors(self) -> int:
        """Number of sound frames that have a Hessian-vector target."""
        if not self._header.hessian:
            return 0
        return int(np.isfinite(self.read_column("hvp_step")).sum())

    @property
    def n_quarantined(self) -> int:
        """Number of frames set aside."""
        return self._counts["quarantine"][0]

    @property
    def held_out(self) -> frozenset[int]:
        """Trajectories made for testing only."""
        flags = self.read_column("held_out").astype(bool)
        return frozenset(int(number) for number in self.read_column("trajectory")[flags])

    def hash(self, atoms: ase.Atoms) -> bytes:
        """Return the content hash of a structure labelled by this store's teacher."""
        return hash_structure(atoms, self.teacher)

    def has(self, content: bytes | ase.Atoms) -> bool:
        """Whether a structure (or its hash) is stored, soundly or in quarantine."""
        key = content if isinstance(content, bytes) else self.hash(content)
        return key in self._hashes

    def find(self, atoms: ase.Atoms) -> Frame | None:
        """Return the stored sound frame of a structure, or None."""
        group, index = self._hashes.get(self.hash(atoms), ("quarantine", -1))
        return self.read([index])[0] if group == "frames" else None

    def read_column(self, name: str, group: str = "frames") -> np.ndarray:
        """Return one per-frame column (see :data:`fastff.distill.rows.FRAME_COLUMNS`)."""
        values: np.ndarray = self._frames(group)[name][: self._counts[group][0]]
        return values

    def list_hashes(self, group: str = "frames") -> list[bytes]:
        """Return the content hashes of a group's frames, in order.

        Those of files whose teacher is named by where its weights lay, as earlier versions did, are made anew.
        """
        if leave_out_folders(self.teacher) == self.teacher:
            return [row.tobytes() for row in self.read_column("hash", group)]
        return [self.hash(frame.atoms) for frame, _ in self._read_group(group, None)]

    def read(self, indices: Sequence[int] | None = None) -> list[Frame]:
        """Return the sound frames, all or those at ``indices``.

        Raises
        ------
        DataError
            A frame's checksum is wrong, i.e. the file was damaged after writing.
        """
        return [frame for frame, _ in self._read_group("frames", indices)]

    def read_quarantine(self) -> list[tuple[Frame, str]]:
        """Return the frames set aside, each with the reason."""
        return self._read_group("quarantine", None)

    # --- writing ---

    def append(
        self,
        frames: Sequence[Frame],
        *,
        held_out: bool = False,
        force_limit: float | None = None,
        reasons: Sequence[str] | None = None,
    ) -> AppendReport:
        """Store frames; all of them, or none if the process dies in between.

        Frames whose structure is stored already are skipped. Frames whose labels are not finite, or whose largest
        force exceeds ``force_limit``, go to quarantine with the reason.

        Parameters
        ----------
        frames : sequence of Frame
            Labelled structures.
        held_out : bool
            Mark the frames' trajectories as made for testing only.
        force_limit : float, optional
            Largest accepted length of a force, eV/Å.
        reasons : sequence of str, optional
            For each frame, why it is to be set aside; an empty one lets the labels decide.

        Raises
        ------
        DataError
            Labels of the wrong shape, or the disk refuses.
        UsageError
            The store was opened for reading.
        """
        self._require_writable()
        batches: dict[str, list[tuple[Frame, bytes, str]]] = {name: [] for name in GROUPS}
        seen: set[bytes] = set()
        duplicates = 0
        for frame, given in zip(frames, reasons or [""] * len(frames), strict=True):
            key = self.hash(frame.atoms)
            if key in self._hashes or key in seen:
                duplicates += 1
                continue
            seen.add(key)
            reason = given or find_fault(frame) or find_outlier(frame, force_limit) or ""
            batches["quarantine" if reason else "frames"].append((frame, key, reason))
        if seen:
            self._guard("write", lambda: self._write_batches(batches, held_out))
        return AppendReport(
            added=len(batches["frames"]),
            duplicates=duplicates,
            quarantined=tuple(reason for _, _, reason in batches["quarantine"]),
        )

    def reserve(self, n_frames: int, n_atoms: int) -> None:
        """Make room for frames that are expected, so that the file is not copied as it grows.

        Raises
        ------
        UsageError
            The store was opened for reading.
        """
        self._require_writable()
        share = min(1.0, MOST_RESERVED / max(n_atoms, 1))
        more = math.ceil(share * n_frames), math.ceil(share * n_atoms)
        capacity = {group: self._capacity(group) for group in GROUPS}
        stored = self._counts["frames"]
        capacity["frames"] = tuple(  # type: ignore[assignment]
            max(have, count + extra)
            for have, count, extra in zip(capacity["frames"], stored, more, strict=True)
        )
        if any(self._capacity(group) != capacity[group] for group in GROUPS):
            self._guard("write", lambda: self._replace_file(self._header, capacity))

    def note(self, **facts: Any) -> None:
        """Store facts about the labels, such as the teacher's self-check; they must be JSON-able.

        Raises
        ------
        UsageError
            The store was opened for reading.
        """
        self._require_writable()
        record = json.loads(json.dumps({**self.record, **facts}))
        if record != self.record:
            capacity = {group: self._capacity(group) for group in GROUPS}
            header = replace(self._header, record=record)
            self._guard("write", lambda: self._replace_file(header, capacity))

    def close(self) -> None:
        """Trim unused space, unless the disk has no room for a copy, and close the file. Closing twice is allowed."""
        if not self._file:
            return
        try:
            if self.writable and any(self._capacity(n) != self._counts[n] for n in GROUPS):
                with suppress(DataError):  # the file is whole without it
                    self._guard("trim", lambda: self._replace_file(self._header, self._counts))
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is not None and self._is_new and not any(n for n, _ in self._counts.values()):
            self.path.unlink(missing_ok=True)  # what failed before there was a label leaves nothing

    # --- the file ---

    def _write_batches(
        self, batches: Mapping[str, list[tuple[Frame, bytes, str]]], held_out: bool
    ) -> None:
        counts = dict(self._counts)
        self._make_room({name: [one for one, _, _ in batch] for name, batch in batches.items()})
        for name, batch in batches.items():
            if not batch:
                continue
            frames, keys, reasons = zip(*batch, strict=True)
            first_frame, first_atom = self._counts[name]
            frame_rows, atom_rows = pack_frames(
                frames, keys, reasons, held_out, first_atom, self._header.hessian
            )
            end = first_frame + len(batch), first_atom + len(atom_rows["numbers"])
            for column, values in frame_rows.items():
                self._frames(name)[column][first_frame : end[0]] = values
            for column, values in atom_rows.items():
                self._atoms(name)[column][first_atom : end[1]] = values
            counts[name] = end
        sync_file(self._file)
        write_counts(self._file, counts)
        sync_file(self._file)
        for name, batch in batches.items():
            for index, (_, key, _) in enumerate(batch):
                self._hashes[key] = (name, self._counts[name][0] + index)
        self._counts = counts

    def _make_room(self, new: Mapping[str, Sequence[Frame]]) -> None:
        """Let the file take new frames of every group, before any is written: a copy holds committed rows alone."""
        present = {group: self._capacity(group) for group in GROUPS}
        capacity, header = dict(present), self._header
        for name, frames in new.items():
            more = len(frames), sum(len(frame.atoms) for frame in frames)
            needed = [count + extra for count, extra in zip(self._counts[name], more, strict=True)]
            if any(have < need for have, need in zip(capacity[name], needed, strict=True)):
                capacity[name] = (2 * needed[0] + INITIAL_FRAMES, 2 * needed[1] + INITIAL_FRAMES)
            if any(frame.hessian_vector for frame in frames):
                header = replace(header, hessian=True)
        if header != self._header or capacity != present:
            self._replace_file(header, capacity)

    def _replace_file(self, header: Header, capacity: Capacity) -> None:
        """Write a file with the given room, copy the committed rows into it, and put it in place."""
        old: h5py.File | None = getattr(self, "_file", None)
        counts = self._counts if old else dict.fromkeys(GROUPS, (0, 0))
        write_copy(self.path, header, capacity, old, counts)
        self._file = open_file(self.path, self.writable)
        self._header = header
        if old:
            old.close()

    def _read_counts(self) -> dict[str, tuple[int, int]]:
        counts = self._guard("read", lambda: read_counts(self._file))
        for name, pair in counts.items():
            room = self._capacity(name)
            if not (0 <= pair[0] <= room[0] and 0 <= pair[1] <= room[1]):
                raise DataError(f"{self.path} is damaged: {name} counts {pair}, room for {room}")
        return counts

    def _read_hashes(self) -> dict[bytes, tuple[str, int]]:
        return {
            content: (name, index)
            for name in GROUPS
            for index, content in enumerate(self.list_hashes(name))
        }

    def _read_group(self, name: str, indices: Sequence[int] | None) -> list[tuple[Frame, str]]:
        n_frames = self._counts[name][0]
        return self._guard("read", lambda: read_group(self._file, name, n_frames, indices))

    def _require_writable(self) -> None:
        if not self.writable:
            raise UsageError(f"{self.path} was opened for reading; open it with mode 'a' to write")

    def _frames(self, group: str) -> h5py.Group:
        return self._file[f"{group}/frames"]

    def _atoms(self, group: str) -> h5py.Group:
        return self._file[f"{group}/atoms"]

    def _capacity(self, group: str) -> tuple[int, int]:
        return self._frames(group)["energy"].shape[0], self._atoms(group)["numbers"].shape[0]

    def _guard(self, action: str, function: Callable[[], _Result]) -> _Result:
        return guard(self.path, action, function)
