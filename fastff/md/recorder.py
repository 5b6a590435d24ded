"""Writing log, trajectory and restart files in a thread of their own.

Here: :class:`Recorder`, :class:`LogWriter`. Not here: other formats (:mod:`fastff.md.trajectory`,
:mod:`fastff.md.restart`), what is due when.

Files are written in the order in which the run hands them over. A restart file is written after log and trajectory have
reached the disk, and holds how far they had come: what comes after is cut off when a killed run continues.
"""

from __future__ import annotations

import csv
import io
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np

from fastff.errors import FastFFError
from fastff.md.marks import Mark, cut_bytes, mark_bytes
from fastff.md.observe import COLUMNS
from fastff.md.restart import write_restart
from fastff.md.snapshot import Snapshot
from fastff.md.trajectory import Frame, TrajectoryWriter
from fastff.neighbors import build_edges, complete_cell

_LONGEST_QUEUE = 8
LOG_COLUMNS = (COLUMNS[0], "time_ps", *COLUMNS[1:])


class LogWriter:
    """The table of observables: CSV, numbers with all their digits, empty where there is none."""

    def __init__(self, path: Path, timestep: float, mark: Mark | None) -> None:
        self._path, self._timestep = path, timestep
        if mark is not None:
            cut_bytes(path, mark)
        self._handle = path.open("ab" if mark is not None else "wb")
        if mark is None:
            self._handle.write((",".join(LOG_COLUMNS) + "\n").encode())

    def write(self, rows: np.ndarray) -> None:
        """Append rows of :data:`~fastff.md.observe.COLUMNS`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for row in rows:
            step = int(row[0])
            cells = ["" if np.isnan(value) else repr(float(value)) for value in row[1:]]
            writer.writerow([step, repr(step * self._timestep / 1000.0), *cells])
        self._handle.write(text.getvalue().encode())
        self._handle.flush()

    def mark(self) -> Mark:
        """Bring everything to disk and say how far the file has come."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return mark_bytes(self._path, self._handle.tell())

    def close(self) -> None:
        """Finish the file."""
        self._handle.close()


class Recorder:
    """Takes rows, frames and restart points from a run and writes them.

    Parameters
    ----------
    log : LogWriter
    trajectory : TrajectoryWriter
    restart : path
    template : ase.Atoms
        Gives what frames do not hold: elements, masses, pbc.
    timestep : float
        fs.
    min_distance : float
        Å; frames with atoms nearer than this are unsound.
    binding : mapping
        Goes into restart files.
    """

    def __init__(
        self,
        log: LogWriter,
        trajectory: TrajectoryWriter,
        restart: Path,
        template: ase.Atoms,
        timestep: float,
        min_distance: float,
        binding: Mapping[str, Any],
    ) -> None:
        self._log, self._trajectory, self._restart = log, trajectory, restart
        self._template, self._timestep = template, timestep
        self._min_distance, self._binding = min_distance, binding
        self.fault = ""
        self.sound_frame: Frame | None = None
        self.bad_frame: Frame | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(_LONGEST_QUEUE)
        self._thread = threading.Thread(target=self._work, name="fastff-md-recorder", daemon=True)
        self._thread.start()

    def add_rows(self, rows: np.ndarray) -> None:
        """Append rows to the log."""
        if len(rows):
            self._put(lambda: self._log.write(rows))

    def add_frame(self, snapshot: Snapshot) -> None:
        """Append a frame to the trajectory and test it for close contacts."""
        self._put(lambda: self._write_frame(snapshot))

    def add_restart(self, snapshot: Snapshot) -> None:
        """Write a restart file, after everything handed over before."""
        self._put(lambda: self._write_restart(snapshot))

    def close(self) -> None:
        """Finish all files; raises what the thread has met.

        Raises
        ------
        OSError or FastFFError
            If something could not be written.
        """
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            self._thread.join()
            self._log.close()
            self._trajectory.close()
        self._raise()

    def _put(self, job: Callable[[], None]) -> None:
        self._raise()
        self._jobs.put(job)

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue  # the run learns of the first error; the queue must not fill up
            try:
                job()
            except (OSError, FastFFError, ValueError, RuntimeError, KeyError) as error:
                self._error = error

    def _write_frame(self, snapshot: Snapshot) -> None:
        frame = Frame(snapshot.step, snapshot.step * self._timestep, snapshot.read())
        self._trajectory.write(frame)
        if self.fault:
            return
        self.fault = self._find_contact(frame)
        if self.fault:
            self.bad_frame = frame
        else:
            self.sound_frame = frame

    def _find_contact(self, frame: Frame) -> str:
        positions, pbc = frame.arrays["positions"], np.asarray(self._template.pbc, dtype=bool)
        if self._min_distance <= 0.0 or not np.isfinite(positions).all():
            return ""
        cell = complete_cell(positions, frame.arrays["cell"], pbc, self._min_distance)
        edges, shifts = build_edges(positions, cell, pbc, self._min_distance)
        if not edges.shape[1]:
            return ""
        i, j = edges[:, 0]
        distance = float(np.linalg.norm(positions[j] - positions[i] + shifts[0] @ cell))
        return (
            f"atoms {i} and {j} are {distance:.3g} Å apart, closer than {self._min_distance:g} Å, "
            f"at step {frame.step}"
        )

    def _write_restart(self, snapshot: Snapshot) -> None:
        if self.fault:
            return
        marks = {"log": self._log.mark(), "trajectory": self._trajectory.mark()}
        write_restart(self._restart, snapshot.step, snapshot.read(), self._binding, marks)
