"""Where a run of molecular dynamics writes.

Here: :class:`RunFiles`, and the refusal to write over other files. Not here: what is written.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fastff.errors import UsageError
from fastff.md.trajectory import check_suffix

LOG_NAME, RESTART_NAME, FINAL_NAME = "log.csv", "restart.safetensors", "final.extxyz"
GOOD_NAME, BAD_NAME, RECORD_NAME = "last-good.extxyz", "unstable.extxyz", "run.json"


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes."""

    folder: Path
    trajectory: Path

    @property
    def log(self) -> Path:
        """Table of observables."""
        return self.folder / LOG_NAME

    @property
    def restart(self) -> Path:
        """Restart file."""
        return self.folder / RESTART_NAME

    @property
    def final(self) -> Path:
        """Last structure, with velocities."""
        return self.folder / FINAL_NAME

    @property
    def good(self) -> Path:
        """Last sound structure of unstable dynamics."""
        return self.folder / GOOD_NAME

    @property
    def bad(self) -> Path:
        """The structure for which dynamics were stopped."""
        return self.folder / BAD_NAME

    @property
    def record(self) -> Path:
        """Settings, versions and figures."""
        return self.folder / RECORD_NAME

    def list_binding(self) -> dict[str, str]:
        """What a continued run must share with its beginning: the place of the trajectory, seen from the folder."""
        return {
            "trajectory": Path(
                os.path.relpath(self.trajectory.resolve(), self.folder.resolve())
            ).as_posix()
        }


def plan_files(folder: Path, trajectory: Path | None, n_atoms: int, *, restart: bool) -> RunFiles:
    """Where a run writes; refuses to write over anything else.

    Raises
    ------
    UsageError
        If no format fits the trajectory's suffix; if the folder or the trajectory exists and ``restart`` is False; or
        if it is True, a file exists that would be written, and there is no restart file to say that it is the run's.
    """
    if trajectory is None:
        trajectory = folder / ("trajectory.extxyz" if n_atoms <= 10_000 else "trajectory.h5")
    check_suffix(trajectory)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder")
    files = RunFiles(folder, trajectory)
    if not restart:
        taken = folder.is_dir() and any(folder.iterdir())
        for path, present in ((folder, taken), (trajectory, trajectory.exists())):
            if present:
                raise UsageError(
                    f"{path} exists; add --restart to continue its run, or choose another place"
                )
    elif not files.restart.exists():
        for path in (trajectory, files.log, files.final, files.good, files.bad, files.record):
            if path.exists():
                raise UsageError(
                    f"{path} exists but {files.restart} does not, so there is no run to continue; "
                    "choose another place"
                )
    return files
