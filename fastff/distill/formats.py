"""Reading labelled frames in the formats people have.

Here: :func:`read_labels` for label files (HDF5), extended XYZ, ASE trajectories and databases, NumPy archives and VASP
output. Not here: the label file itself (:mod:`fastff.distill.store`), writing (:mod:`fastff.distill.export`), or
judging what was read (:mod:`fastff.distill.validate`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress

from fastff.distill.content import find_label_fault
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, Labels

ENERGY_KEYS: tuple[str, ...] = (
    *("energy", "REF_energy", "ref_energy", "dft_energy", "DFT_energy", "total_energy"),
    *("potential_energy", "Energy", "TotEnergy", "energies", "free_energy"),
)
FORCES_KEYS = ("forces", "REF_forces", "ref_forces", "dft_forces", "DFT_forces", "force", "Forces")
STRESS_KEYS = ("stress", "REF_stress", "ref_stress", "dft_stress", "DFT_stress", "Stress")
VIRIAL_KEYS = ("virial", "REF_virial", "ref_virial", "dft_virial", "virials", "Virial")
TRAJECTORY_KEYS = ("trajectory", "traj", "traj_id", "replica", "md_id", "mdid", "run", "config_id")
N_BLOCKS = 20
"""Consecutive frames are taken as this many trajectories where a file does not name them."""
RARE = 0.05
"""Share of a file's frames in formed blocks, up to which the names of the others are what counts."""

NAMES = "use .h5, .hdf5, .xyz, .extxyz, .traj, .db, .npz, OUTCAR or vasprun.xml"


@dataclass(frozen=True)
class LabelledSet:
    """Labelled frames read from a file.

    Attributes
    ----------
    frames : list of Frame
        Frames with usable labels.
    teacher : dict
        Record of who made the labels; empty if the file does not say.
    held_out : frozenset of int
        Trajectories that were made for testing only.
    quarantined : list of (Frame, str)
        Frames set aside, with the reason.
    blocks : bool
        Trajectories, or some of them, are consecutive blocks of a file that does not name them.
    record : dict
        What else a label file tells of its labels, see :meth:`fastff.distill.store.LabelStore.note`.
    """

    frames: list[Frame]
    teacher: dict[str, Any]
    held_out: frozenset[int] = frozenset()
    quarantined: list[tuple[Frame, str]] = field(default_factory=list)
    blocks: bool = False
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in files that have their own; None means the usual ones are tried.

    A virial that is named is taken before a stress that is not.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    virial: str | None = None


def read_labels(
    path: str | Path, keys: LabelKeys | None = None, *, group: bool = True
) -> LabelledSet:
    """Read labelled frames.

    Parameters
    ----------
    path : path-like
        Label file (.h5, .hdf5), extended XYZ (.xyz, .extxyz), ASE trajectory (.traj) or database (.db),
        NumPy archive (.npz), OUTCAR or vasprun.xml. Units are eV and Å; stress has ASE's sign and is
        taken from the virial as ``-virial / volume`` if there is only that.
    keys : LabelKeys, optional
        Names of the labels where they are not the usual ones (``REF_energy``, ``dft_forces``, ...); not of label files
        and NumPy archives, which have names of their own.
    group : bool
        Whether to form blocks; without, trajectories are numbered as the file has them.

    Returns
    -------
    LabelledSet
        Frames in the order of the file; see :func:`group_unnamed` for what it says too little of trajectories.

    Raises
    ------
    DataError
        Missing or unreadable file, unknown format, no frames, or labels missing (they are named).
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5", ".npz") and keys not in (None, LabelKeys()):
        raise UsageError(
            f"{path}: labels of this kind of file have fixed names; leave --label-key out"
        )
    if suffix in (".h5", ".hdf5"):
        with LabelStore(path) as store:
            result = LabelledSet(
                store.read(),
                store.teacher,
                store.held_out,
                store.read_quarantine(),
                record=store.record,
            )
    elif suffix == ".npz":
        result = _read_npz(path)
    else:
        structures, teacher = _read_structures(path)
        result = _collect_frames(path, structures, keys or LabelKeys(), teacher)
    if not result.frames:
        aside = f" ({len(result.quarantined)} with unusable labels)" if result.quarantined else ""
        raise DataError(f"{path} holds no labelled frames{aside}")
    return group_unnamed(result) if group else result


def _read_structures(path: Path) -> tuple[list[ase.Atoms], dict[str, Any]]:
    suffix, name = path.suffix.lower(), path.name
    formats = {".xyz": "extxyz", ".extxyz": "extxyz", ".traj": "traj"}
    try:
        if suffix == ".db":
            return _read_database(path)
        if "OUTCAR" in name:
            kind = "vasp-out"
        elif name.endswith("vasprun.xml"):
            kind = "vasp-xml"
        elif suffix in formats:
            kind = formats[suffix]
        else:
            raise DataError(f"{path}: labels cannot be read from this kind of file; {NAMES}")
        import ase.io

        structures = list(ase.io.iread(path, index=":", format=kind))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return structures, _read_teacher(structures)


def _read_teacher(structures: Iterable[ase.Atoms]) -> dict[str, Any]:
    records = {json.dumps(atoms.info.get("teacher"), sort_keys=True) for atoms in structures}
    if len(records) > 1:
        raise DataError(f"frames name {len(records)} different teachers; split the file by teacher")
    value = json.loads(records.pop()) if records else None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = {"name": value}
    return value if isinstance(value, dict) else {}


def _read_database(path: Path) -> tuple[list[ase.Atoms], dict[str, Any]]:
    from ase.db import connect

    database = connect(path)
    structures = []
    for row in database.select():
        atoms = row.toatoms()
        atoms.info.update(row.key_value_pairs)
        for name, value in row.data.items():
            if np.ndim(value) and np.shape(value)[0] == len(atoms):
                atoms.arrays.setdefault(name, np.asarray(value))
            else:
                atoms.info[name] = value
        structures.append(atoms)
    return structures, dict(database.metadata.get("teacher", {}))


def _collect_frames(
    path: Path, structures: Sequence[ase.Atoms], keys: LabelKeys, teacher: dict[str, Any]
) -> LabelledSet:
    labels: list[Labels] = []
    missing: dict[str, list[int]] = {}
    for index, atoms in enumerate(structures):
        try:
            labels.append(_read_one(atoms, keys))
        except KeyError as error:
            missing.setdefault(str(error.args[0]), []).append(index)
    if missing:
        what = "; ".join(
            f"no {name} in {len(where)} of {len(structures)} frames (first: {where[0]})"
            for name, where in missing.items()
        )
        first = structures[0]
        results = first.calc.results if first.calc is not None else {}
        names = {*first.info, *first.arrays, *results} - {"numbers", "positions"}
        seen = ", ".join(sorted(names))
        raise DataError(f"{path}: {what}. Entries of the first frame: {seen or 'none'}")
    trajectories = _number_trajectories(structures)
    frames, aside, held_out = [], [], set()
    for atoms, label, trajectory in zip(structures, labels, trajectories, strict=True):
        frame = Frame(
            atoms=_strip(atoms),
            labels=label,
            source=str(atoms.info.get("source", "file")),
            trajectory=trajectory,
            temperature=float(atoms.info.get("temperature", math.nan)),
            step=int(atoms.info.get("step", -1)),
        )
        reason = find_label_fault(frame.atoms, label)
        if reason:
            aside.append((frame, reason))
        else:
            frames.append(frame)
        if atoms.info.get("held_out"):
            held_out.add(trajectory)
    return LabelledSet(frames, teacher, frozenset(held_out), aside)


def _read_one(atoms: ase.Atoms, keys: LabelKeys) -> Labels:
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    n_atoms = len(atoms)

    def find(chosen: str | None, usual: Sequence[str], accepts: Callable[[Any], bool]) -> Any:
        for name in (chosen,) if chosen else usual:
            for place in (results, atoms.info, atoms.arrays):
                if name in place and accepts(place[name]):
                    return place[name]
        return None

    energy = find(keys.energy, ENERGY_KEYS, lambda value: np.size(value) == 1)
    if energy is None:
        raise KeyError(keys.energy or "energy")
    forces = find(keys.forces, FORCES_KEYS, lambda value: np.shape(value) == (n_atoms, 3))
    if forces is None:
        raise KeyError(keys.forces or "forces")
    stress = None
    if atoms.pbc.all():
        stress = find(keys.stress, STRESS_KEYS, lambda value: np.size(value) in (6, 9))
        virial = find(keys.virial, VIRIAL_KEYS, lambda value: np.size(value) in (6, 9))
        for chosen, value in ((keys.stress, stress), (keys.virial, virial)):
            if chosen and value is None:
                raise KeyError(chosen)
        if keys.virial and not keys.stress:
            stress = None
        if stress is None and virial is not None:
            stress = -_convert_to_voigt(virial) / atoms.get_volume()
        elif stress is not None:
            stress = _convert_to_voigt(stress)
    energies = find(None, ("energies",), lambda value: np.shape(value) == (n_atoms,))
    return Labels(
        energy=float(np.reshape(energy, ())),
        forces=np.array(forces, dtype=np.float64),
        stress=stress,
        energies=None if energies is None else np.array(energies, dtype=np.float64),
    )


def _convert_to_voigt(value: Any) -> np.ndarray:
    value = np.array(value, dtype=np.float64)
    if value.size == 6:
        return value.reshape(6)
    return np.asarray(full_3x3_to_voigt_6_stress(value.reshape(3, 3)), dtype=np.float64)


def _strip(atoms: ase.Atoms) -> ase.Atoms:
    """Return the bare structure with momenta, charge and spin, if stated."""
    bare = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if atoms.has("momenta"):
        bare.set_momenta(atoms.get_momenta(), apply_constraint=False)
    for key in ("charge", "spin"):
        if key in atoms.info:
            bare.info[key] = atoms.info[key]
    return bare


def _number_trajectories(structures: Sequence[ase.Atoms]) -> list[int]:
    """Numbers that the frames state, or one each, which means that they state none."""
    for key in TRAJECTORY_KEYS:
        if structures and all(key in atoms.info for atoms in structures):
            names = [str(atoms.info[key]) for atoms in structures]
            if all(name.lstrip("-").isdigit() for name in names):
                return [int(name) for name in names]
            order = {name: number for number, name in enumerate(dict.fromkeys(names))}
            return [order[name] for name in names]
    return list(range(len(structures)))


def group_unnamed(labelled: LabelledSet) -> LabelledSet:
    """Form blocks of consecutive frames where trajectories are not named, so that no split separates neighbors in time.

    Names that occur once say nothing, and fewer than three cannot be divided into training, validation and test. Such
    frames form blocks of one composition and source, about 20 in a file of no other frames. A file is said to be one of
    blocks unless they hold less than a twentieth of it. Files that mark trajectories as held out are left as they are.
    """
    frames = labelled.frames
    sizes = Counter(frame.trajectory for frame in frames)
    few = len(sizes) < 3
    if labelled.held_out or not (few or 1 in sizes.values()):
        return labelled
    length = max(1, math.ceil(len(frames) / N_BLOCKS))
    number = -1 if few or len(sizes) == len(frames) else max(sizes)
    open_blocks: dict[Any, tuple[int, int]] = {}  # number and frames of the newest block of a kind
    grouped = []
    for frame in frames:
        if few or sizes[frame.trajectory] == 1:
            composition = tuple(sorted(frame.atoms.numbers))
            kind = (composition, frame.source, frame.trajectory if few else None)
            block, filled = open_blocks.get(kind, (number, length))
            if filled == length:
                number += 1
                block, filled = number, 0
            open_blocks[kind] = block, filled + 1
            frame = replace(frame, trajectory=block)
        grouped.append(frame)
    n_formed = len(frames) if few else sum(size for size in sizes.values() if size == 1)
    return replace(labelled, frames=grouped, blocks=n_formed > RARE * len(frames))


def _read_npz(path: Path) -> LabelledSet:
    """Read frames of one composition from arrays.

    ``numbers (n_atoms)``, ``positions (n, n_atoms, 3)``, ``cell (n, 3, 3)``, ``energy (n)``,
    ``forces (n, n_atoms, 3)``, and where present ``stress (n, 6)``, ``pbc``, ``temperature``, ``replica`` and ``step``;
    ``record``, JSON, may name the ``teacher`` with licence and citation.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise DataError(f"{path} cannot be read as a NumPy archive: {error}") from error
    needed = ("numbers", "positions", "cell", "energy", "forces")
    missing = [name for name in needed if name not in data]
    if missing:
        found = ", ".join(sorted(data)) or "nothing"
        raise DataError(f"{path}: missing {', '.join(missing)}; the archive holds {found}")
    n_frames = len(data["energy"])
    shape = (n_frames, len(data["numbers"]), 3)
    wanted = {
        "positions": shape,
        "forces": shape,
        "cell": (n_frames, 3, 3),
        "stress": (n_frames, 6),
    }
    for name, expected in wanted.items():
        if name in data and data[name].shape != expected:
            raise DataError(f"{path}: {name} has shape {data[name].shape}; need {expected}")
    pbc = np.broadcast_to(data.get("pbc", True), (n_frames, 3))
    structures = []
    for index in range(n_frames):
        atoms = ase.Atoms(
            data["numbers"], data["positions"][index], cell=data["cell"][index], pbc=pbc[index]
        )
        atoms.arrays["forces"] = data["forces"][index]
        atoms.info["energy"] = data["energy"][index]
        for name in ("stress", "temperature", "step", "replica"):
            if name in data:
                atoms.info[name] = data[name][index]
        atoms.info.setdefault("source", "teacher-md" if "replica" in data else "file")
        structures.append(atoms)
    return replace(
        _collect_frames(path, structures, LabelKeys(), {}), teacher=_parse_teacher(path, data)
    )


def _parse_teacher(path: Path, data: dict[str, np.ndarray]) -> dict[str, Any]:
    """Who made the labels of an archive, if its record says so; records of others are none of ours."""
    try:
        record = json.loads(str(data["record"])) if "record" in data else {}
    except ValueError:
        return {}
    teacher = record.get("teacher") if isinstance(record, dict) else None
    if teacher is None:
        return {}
    if not isinstance(teacher, dict):
        raise DataError(
            f"{path}: the record names the teacher as {teacher!r}; need an object with its name, licence and citation"
        )
    return teacher
