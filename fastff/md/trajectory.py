"""Trajectories: extended XYZ, HDF5 in H5MD's layout, ASE's binary format.

Here: one writer per format, each able to go back to a mark it gave. Not here: when frames are written, threads.

H5MD: P. de Buyl, P. H. Colberg and F. Höfling, Comput. Phys. Commun. 185, 1546 (2014). All frames are allocated when
the file is made, so that a killed run leaves a sound file; rows not yet written have step -1.
"""

from __future__ import annotations

import abc
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import h5py
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory as AseTrajectory
from ase.io import write as write_ase
from ase.stress import full_3x3_to_voigt_6_stress

from fastff.errors import DataError, UsageError
from fastff.md.state import make_atoms
from fastff.units import FEMTOSECOND

Mark = dict[str, int]


@dataclass(frozen=True)
class Frame:
    """One frame: ``arrays`` as in :data:`~fastff.md.snapshot.FRAME_FIELDS`, ``time`` in fs."""

    step: int
    time: float
    arrays: dict[str, np.ndarray]

    def to_atoms(self, template: ase.Atoms) -> ase.Atoms:
        """As ASE structure with momenta, energy, forces and, if periodic in all directions, stress."""
        a = self.arrays
        atoms = make_atoms(template, a["positions"], a["velocities"], a["cell"])
        atoms.calc = None
        atoms.info = {"step": self.step, "time_fs": self.time}
        results: dict[str, Any] = {
            "energy": float(a["energy"]),
            "forces": a["forces"].astype(np.float64),
        }
        if atoms.pbc.all():
            results["stress"] = full_3x3_to_voigt_6_stress(a["virial"] / atoms.get_volume())
        atoms.calc = SinglePointCalculator(atoms, **results)
        return atoms


class TrajectoryWriter(abc.ABC):
    """Appends frames to a file."""

    @abc.abstractmethod
    def write(self, frame: Frame) -> None:
        """Append one frame."""

    @abc.abstractmethod
    def mark(self) -> Mark:
        """Bring everything to disk and say how far the file has come."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finish the file."""


class ExtxyzWriter(TrajectoryWriter):
    """Extended XYZ."""

    def __init__(self, path: Path, template: ase.Atoms, n_frames: int, mark: Mark | None) -> None:
        self._template = template
        if mark is not None:
            truncate(path, mark["bytes"])
        self._handle = path.open("ab" if mark is not None else "wb")

    def write(self, frame: Frame) -> None:
        """Append one frame."""
        text = io.StringIO()
        write_ase(text, frame.to_atoms(self._template), format="extxyz")
        self._handle.write(text.getvalue().encode())
        self._handle.flush()

    def mark(self) -> Mark:
        """Bring everything to disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        return {"bytes": self._handle.tell()}

    def close(self) -> None:
        """Finish the file."""
        self._handle.close()


class AseWriter(TrajectoryWriter):
    """ASE's ``.traj``."""

    def __init__(self, path: Path, template: ase.Atoms, n_frames: int, mark: Mark | None) -> None:
        self._path, self._template, self._n_frames = path, template, 0
        if mark is not None:
            self._n_frames = mark["frames"]
            _shorten_ase(path, self._n_frames)
        elif path.exists():
            path.unlink()

    def write(self, frame: Frame) -> None:
        """Append one frame."""
        with AseTrajectory(str(self._path), "a" if self._n_frames else "w") as handle:
            handle.write(frame.to_atoms(self._template))
        self._n_frames += 1

    def mark(self) -> Mark:
        """Bring everything to disk."""
        if self._path.exists():
            with self._path.open("rb") as handle:
                os.fsync(handle.fileno())
        return {"frames": self._n_frames}

    def close(self) -> None:
        """Nothing is open between frames."""


def _shorten_ase(path: Path, n_frames: int) -> None:
    """Keep the first frames of an ASE trajectory, replacing the file in one step."""
    if n_frames == 0:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with AseTrajectory(str(path)) as old, AseTrajectory(str(temporary), "w") as new:
        if len(old) < n_frames:
            raise DataError(f"{path} has {len(old)} frames but {n_frames} were written; restore it")
        for k in range(n_frames):
            new.write(old[k])
    os.replace(temporary, path)


_DATASETS = {
    "position": ("positions", np.float64, "Angstrom"),
    "velocity": ("velocities", np.float64, "Angstrom fs-1"),
    "force": ("forces", np.float32, "eV Angstrom-1"),
}


class H5Writer(TrajectoryWriter):
    """HDF5 in H5MD's layout."""

    def __init__(self, path: Path, template: ase.Atoms, n_frames: int, mark: Mark | None) -> None:
        self._count = 0
        if mark is None:
            self._file = h5py.File(path, "w")
            self._lay_out(template, n_frames)
        else:
            self._file = h5py.File(path, "r+")
            self._count = mark["frames"]
            for dataset in self._list_datasets():
                dataset.resize(max(n_frames, self._count), axis=0)
            self._file["particles/all/step"][self._count :] = -1
        self._file.flush()

    def _lay_out(self, template: ase.Atoms, n_frames: int) -> None:
        file, n_atoms = self._file, len(template)
        header = file.create_group("h5md")
        header.attrs["version"] = np.array([1, 1])
        for name in ("author", "creator"):
            header.create_group(name).attrs["name"] = "fastff"
        header["creator"].attrs["version"] = "0"
        group = file.create_group("particles/all")
        group["species"] = template.numbers
        group["mass"] = template.get_masses()
        box = group.create_group("box")
        box.attrs["dimension"] = 3
        box.attrs["boundary"] = [b"periodic" if flag else b"none" for flag in template.pbc]
        step = self._create("particles/all/step", (n_frames,), np.int64, None, fill=-1)
        time = self._create("particles/all/time", (n_frames,), np.float64, "fs")
        parts = dict.fromkeys(_DATASETS, (n_frames, n_atoms, 3))
        for name, shape in parts.items():
            _, dtype, unit = _DATASETS[name]
            self._create(f"particles/all/{name}/value", shape, dtype, unit)
        self._create("particles/all/box/edges/value", (n_frames, 3, 3), np.float64, "Angstrom")
        self._create("observables/potential_energy/value", (n_frames,), np.float64, "eV")
        self._create("observables/virial/value", (n_frames, 3, 3), np.float64, "eV")
        for name in (*(f"particles/all/{p}" for p in parts), "particles/all/box/edges",
                     "observables/potential_energy", "observables/virial"):  # fmt: skip
            file[name]["step"], file[name]["time"] = step, time

    def _create(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        unit: str | None,
        fill: int | None = None,
    ) -> h5py.Dataset:
        chunk = (1, *shape[1:]) if len(shape) > 1 else (max(shape[0], 1),)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk(chunk)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        if fill is None:
            creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        else:
            creation.set_fill_value(np.array(fill, dtype=dtype))
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED, *shape[1:]))
        links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        links.set_create_intermediate_group(True)
        identity = h5py.h5d.create(
            self._file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, creation, links
        )  # fmt: skip
        dataset = h5py.Dataset(identity)
        if unit:
            dataset.attrs["unit"] = unit
        return dataset

    def _list_datasets(self) -> list[h5py.Dataset]:
        names = ["particles/all/step", "particles/all/time", "particles/all/box/edges/value"]
        names += [f"particles/all/{name}/value" for name in _DATASETS]
        names += ["observables/potential_energy/value", "observables/virial/value"]
        return [self._file[name] for name in names]

    def write(self, frame: Frame) -> None:
        """Write the next frame into its place; the step comes last."""
        k, group, a = self._count, self._file["particles/all"], frame.arrays
        group["position/value"][k] = a["positions"]
        group["velocity/value"][k] = a["velocities"] * FEMTOSECOND
        group["force/value"][k] = a["forces"]
        group["box/edges/value"][k] = a["cell"]
        self._file["observables/potential_energy/value"][k] = a["energy"]
        self._file["observables/virial/value"][k] = a["virial"]
        group["time"][k] = frame.time
        group["step"][k] = frame.step
        self._count += 1
        self._file.flush()

    def mark(self) -> Mark:
        """Bring everything to disk."""
        self._file.flush()
        with open(self._file.filename, "rb") as handle:
            os.fsync(handle.fileno())
        return {"frames": self._count}

    def close(self) -> None:
        """Cut what was never written, and close."""
        for dataset in self._list_datasets():
            dataset.resize(self._count, axis=0)
        self._file.close()


_WRITERS: dict[str, type] = {
    ".extxyz": ExtxyzWriter, ".xyz": ExtxyzWriter, ".traj": AseWriter, ".h5": H5Writer, ".hdf5": H5Writer,
    ".h5md": H5Writer,
}  # fmt: skip


def open_trajectory(
    path: Path, template: ase.Atoms, n_frames: int, mark: Mark | None
) -> TrajectoryWriter:
    """Writer for the format that the suffix names; with a mark, the file is cut back to it first.

    Raises
    ------
    UsageError
        If no format has that suffix.
    DataError
        If a file that should be continued is missing or shorter than its mark.
    """
    check_suffix(path)
    if mark is not None and not path.exists() and any(mark.values()):
        raise DataError(f"{path} is missing, so the run cannot be continued; restore it")
    writer: TrajectoryWriter = _WRITERS[path.suffix.lower()](path, template, n_frames, mark)
    return writer


def check_suffix(path: Path) -> None:
    """Refuse a trajectory whose suffix names no format."""
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(
            f"no trajectory format has the suffix {path.suffix!r} of {path}; use one of {', '.join(_WRITERS)}"
        )


def truncate(path: Path, size: int) -> None:
    """Cut a file to the size it had; refuse one that has become shorter."""
    present = path.stat().st_size if path.exists() else 0
    if present < size:
        raise DataError(
            f"{path} has {present} bytes but {size} were written before the restart point; restore it"
        )
    os.truncate(path, size)
