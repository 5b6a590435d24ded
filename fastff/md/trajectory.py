"""Trajectories: extended XYZ, HDF5 in H5MD's layout, ASE's binary format.

Here: one writer per format, each able to go back to a mark it gave. Not here: what marks are
(:mod:`fastff.md.marks`), when frames are written, threads.

H5MD: P. de Buyl, P. H. Colberg and F. Höfling, Comput. Phys. Commun. 185, 1546 (2014). All frames are allocated when
the file is made, so that a killed run leaves a sound file; rows not yet written have step -1.
"""

from __future__ import annotations

import abc
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from fastff.md.marks import (
    Mark,
    check_bytes,
    check_present,
    cut_bytes,
    describe_foreign,
    digest_arrays,
    mark_bytes,
)
from fastff.md.state import make_atoms
from fastff.units import FEMTOSECOND


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

    @staticmethod
    @abc.abstractmethod
    def check(path: Path, mark: Mark) -> None:
        """Refuse a file that is not the marked one; change nothing."""

    @abc.abstractmethod
    def close(self) -> None:
        """Finish the file."""


class ExtxyzWriter(TrajectoryWriter):
    """Extended XYZ."""

    def __init__(self, path: Path, template: ase.Atoms, n_frames: int, mark: Mark | None) -> None:
        self._path, self._template = path, template
        if mark is not None:
            cut_bytes(path, mark)
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
        return mark_bytes(self._path, self._handle.tell())

    @staticmethod
    def check(path: Path, mark: Mark) -> None:
        """Refuse a file that is not the marked one."""
        check_bytes(path, mark)

    def close(self) -> None:
        """Finish the file."""
        self._handle.close()


class AseWriter(TrajectoryWriter):
    """ASE's ``.traj``."""

    def __init__(self, path: Path, template: ase.Atoms, n_frames: int, mark: Mark | None) -> None:
        self._path, self._template, self._n_frames = path, template, 0
        if mark is not None:
            self.check(path, mark)
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
        with self._path.open("rb") as handle:
            os.fsync(handle.fileno())
        with AseTrajectory(str(self._path)) as handle:
            return _mark_frames(len(handle), self._n_frames, partial(_read_ase, handle))

    @staticmethod
    def check(path: Path, mark: Mark) -> None:
        """Refuse a file that is not the marked one."""
        with _reading(path), AseTrajectory(str(path)) as handle:
            _check_frames(path, len(handle), mark, partial(_read_ase, handle))

    def close(self) -> None:
        """Nothing is open between frames."""


def _read_ase(handle: Any, k: int) -> list[np.ndarray]:
    atoms = handle[k]
    return [np.array(atoms.info["step"]), atoms.positions, atoms.get_momenta(), atoms.cell.array]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what readers of binary formats raise about files of other kinds into one error."""
    check_present(path)
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # h5py and ASE raise nearly anything
        raise describe_foreign(path) from error


def _mark_frames(present: int, n_frames: int, read: Callable[[int], list[np.ndarray]]) -> Mark:
    """Mark of the first frames of a file: their number, and a digest of the first and the last of them."""
    ends = sorted({0, n_frames - 1}) if 0 < n_frames <= present else []
    return {
        "frames": n_frames,
        "sha256": digest_arrays(array for k in ends for array in read(k)),
    }


def _check_frames(
    path: Path, present: int, mark: Mark, read: Callable[[int], list[np.ndarray]]
) -> None:
    if present < mark["frames"]:
        raise DataError(
            f"{path} has {present} frames but {mark['frames']} were written before the restart point; restore it"
        )
    if _mark_frames(present, mark["frames"], read) != mark:
        raise describe_foreign(path)


def _shorten_ase(path: Path, n_frames: int) -> None:
    """Keep the first frames of an ASE trajectory, replacing the file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    with AseTrajectory(str(path)) as old, AseTrajectory(str(temporary), "w") as new:
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
            self.check(path, mark)
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
        group = self._file["particles/all"]
        return _mark_frames(len(group["step"]), self._count, partial(_read_h5, group))

    @staticmethod
    def check(path: Path, mark: Mark) -> None:
        """Refuse a file that is not the marked one."""
        with _reading(path), h5py.File(path, "r") as file:
            group = file["particles/all"]
            present = int((group["step"][:] >= 0).sum())
            _check_frames(path, present, mark, partial(_read_h5, group))

    def close(self) -> None:
        """Cut what was never written, and close."""
        for dataset in self._list_datasets():
            dataset.resize(self._count, axis=0)
        self._file.close()


def _read_h5(group: h5py.Group, k: int) -> list[np.ndarray]:
    names = ("step", "position/value", "velocity/value", "box/edges/value")
    return [np.asarray(group[name][k]) for name in names]


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
        If a file that should be continued is missing, shorter than its mark, or another one.
    """
    check_suffix(path)
    writer: TrajectoryWriter = _WRITERS[path.suffix.lower()](path, template, n_frames, mark)
    return writer


def check_suffix(path: Path) -> None:
    """Refuse a trajectory whose suffix names no format."""
    if path.suffix.lower() not in _WRITERS:
        raise UsageError(
            f"no trajectory format has the suffix {path.suffix!r} of {path}; use one of {', '.join(_WRITERS)}"
        )
