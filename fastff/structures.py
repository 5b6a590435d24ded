"""Reading the user's structures, and refusing those that no model can use.

Here: files of any format ASE knows to checked :class:`ase.Atoms`. Not here: labels beside structures
(:mod:`fastff.distill`), element support (each model and teacher knows its own), neighbor lists.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes
from ase.data import chemical_symbols
from ase.io import read
from ase.io.formats import UnknownFileTypeError, filetype

from fastff.errors import DataError, UnsupportedElementError
from fastff.neighbors import build_edges, complete_cell

CLOSEST_DISTANCE = 0.1
"""Å; atoms nearer than this are taken for the same atom written twice."""

OCCUPANCY_TOLERANCE = 1e-3
"""How far from one a site's occupancy may be and still count as full."""

CloseContacts = Literal["raise", "warn", "ignore"]


def read_header_structures(header: Mapping[str, Any]) -> list[Atoms]:
    """Seed structures that a model file holds as extended XYZ; empty if it has none."""
    text = header.get("structures")
    return list(read(io.StringIO(text), index=":", format="extxyz")) if text else []


def read_structures(path: str | Path, *, close_contacts: CloseContacts = "raise") -> list[Atoms]:
    """Read every structure of a file and check each.

    Parameters
    ----------
    path : path
        Any format of ``ase.io.read``, recognized by name or content: extended XYZ, CIF, POSCAR, ASE trajectories,
        LAMMPS data and many more. All frames are read.
    close_contacts : {"raise", "warn", "ignore"}
        See :func:`check_structure`.

    Returns
    -------
    list of ase.Atoms
        At least one, in file order. Energies and forces that the file holds stay attached as ASE attaches them.

    Raises
    ------
    DataError
        If the file is missing, empty, unreadable, has a site of partial occupancy, or holds a structure that
        :func:`check_structure` refuses; the message names file and frame.
    """
    path = Path(path)
    _check_file(path)
    frames = _parse(path)
    if not frames:
        raise DataError(f"{path} holds no structures; check the file")
    for number, atoms in enumerate(frames):
        name = f"{path}, frame {number}" if len(frames) > 1 else str(path)
        check_occupancy(atoms, name=name)
        check_structure(atoms, name=name, close_contacts=close_contacts)
    return frames


def _parse(path: Path) -> list[Atoms]:
    # ASE takes relative names like "mysql..." for addresses of databases
    absolute = str(path.absolute())
    kind = "a structure file"
    try:
        kind = filetype(absolute)
        return list(read(absolute, index=":", format=kind, do_not_split_by_at_sign=True))
    except UnknownFileTypeError as error:
        raise DataError(
            f"{path} has no structure format that ASE reads; convert it to extended XYZ, CIF or POSCAR"
        ) from error
    except Exception as error:  # parsers of some 80 formats, each with exceptions of its own
        reason = " ".join(str(error).split()) or "no further message"
        raise DataError(
            f"cannot read {path} as {kind} ({type(error).__name__}: {reason}); "
            "check the file, or convert it to extended XYZ, CIF or POSCAR"
        ) from error


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a structure file")
    if not path.exists():
        raise DataError(f"no structure file at {path}; check the path")
    try:
        with path.open("rb") as handle:
            empty = not handle.read(1)
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}; check its permissions") from error
    if empty:
        raise DataError(f"{path} is empty; write the structure file again")


def check_structure(
    atoms: Atoms, *, name: str = "structure", close_contacts: CloseContacts = "raise"
) -> None:
    """Refuse a structure for which no energy can be computed.

    Parameters
    ----------
    atoms : ase.Atoms
    name : str
        What the message calls the structure.
    close_contacts : {"raise", "warn", "ignore"}
        What to do about two atoms, or an atom and its own image, within :data:`CLOSEST_DISTANCE`.

    Raises
    ------
    DataError
        If there are no atoms, a position or cell entry is not finite, the cell is zero or singular along periodic
        axes, or two atoms coincide.
    UnsupportedElementError
        If an atomic number is not that of an element; ASE's dummy atom ``X`` has 0.
    """
    if len(atoms) == 0:
        raise DataError(f"{name}: no atoms; a structure needs at least one")
    _check_finite(atoms, name)
    _check_numbers(atoms, name)
    positions = np.asarray(atoms.positions, dtype=np.float64)
    pbc = np.asarray(atoms.pbc, dtype=bool)
    try:
        cell = complete_cell(positions, atoms.cell.array, pbc, CLOSEST_DISTANCE)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if close_contacts != "ignore":
        _check_contacts(positions, cell, pbc, name, close_contacts)


def list_changes(
    old: Atoms | None, new: Atoms, tolerance: float, ignored: Collection[str] = ()
) -> list[str]:
    """In what a structure differs from an earlier one, by the rules of ``ase.calculators.calculator.compare_atoms``.

    Parameters
    ----------
    old : ase.Atoms or None
        None differs in everything.
    new : ase.Atoms
    tolerance : float
        Numbers further apart than this differ, and so do those that are not numbers.
    ignored : collection of str
        Names that do not count.

    Returns
    -------
    list of str
        Some of :data:`ase.calculators.calculator.all_changes`. Arrays that are the same bit for bit, which they mostly
        are, cost one comparison.
    """
    if old is None:
        return list(all_changes)
    changes = []
    for name in all_changes:
        if name in ignored:
            continue
        if name in ("cell", "pbc"):
            pair = (old.cell.array, new.cell.array) if name == "cell" else (old.pbc, new.pbc)
        else:
            first, second = old.arrays.get(name), new.arrays.get(name)
            if first is None or second is None:
                if first is not second:
                    changes.append(name)
                continue
            pair = (first, second)
        if not _agree(*pair, tolerance):
            changes.append(name)
    return changes


def is_same_array(one: np.ndarray, other: np.ndarray) -> bool:
    """As ``numpy.array_equal``, which takes three times as long for small arrays."""
    return one.shape == other.shape and bool((one == other).all())


def _agree(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    if is_same_array(one, other):
        return True
    if one.shape != other.shape:
        return False
    with np.errstate(invalid="ignore"):
        return bool((np.abs(one.astype(np.float64) - other) <= tolerance).all())


def measure_sound_cell(cell: np.ndarray) -> float | None:
    """Volume of a cell that is far from singular, Å^3; None for all others, which need a closer look.

    With unit rows of determinant d, the least singular value is at least d / 1.5.
    """
    rows = cell.tolist()
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = rows
    volume = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    scale = 1.0
    for x, y, z in rows:
        scale *= math.sqrt(x * x + y * y + z * z)
    sound = scale > 1e-6 and abs(volume) > 1e-3 * scale and math.isfinite(volume)
    return abs(volume) if sound else None


def check_occupancy(atoms: Atoms, *, name: str = "structure") -> None:
    """Refuse a disordered structure: ASE keeps one species per site and drops the rest.

    Parameters
    ----------
    atoms : ase.Atoms
        As ASE reads it from a CIF file, with ``info["occupancy"]``: kind of site -> {symbol: occupancy}.
    name : str
        What the message calls the structure.

    Raises
    ------
    DataError
        If a site is shared by several species or not full; the message names the site and its occupancies.
    """
    occupancy = atoms.info.get("occupancy")
    if not isinstance(occupancy, Mapping):
        return
    kinds = np.asarray(atoms.arrays.get("spacegroup_kinds", []), dtype=np.int64)
    for kind, species in occupancy.items():
        if not isinstance(species, Mapping):
            continue
        values = list(species.values())
        if len(values) == 1 and abs(float(values[0]) - 1.0) <= OCCUPANCY_TOLERANCE:
            continue
        parts = ", ".join(f"{symbol} {float(value):g}" for symbol, value in species.items())
        members = np.flatnonzero(kinds == int(kind))
        place = f"site {kind}"
        if len(members):
            at = np.round(atoms.positions[members[0]], 3).tolist()
            place += f" (atom {members[0]} at {at} Å)"
        raise DataError(
            f"{name}: {place} has partial occupancy ({parts}); build an ordered supercell first"
        )


def _check_finite(atoms: Atoms, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise DataError(
            f"{name}: position of atom {bad[0]} is not finite: {atoms.positions[bad[0]].tolist()} "
            f"({len(bad)} such atoms); repair the structure"
        )
    rows = np.flatnonzero(~np.isfinite(atoms.cell.array).all(axis=1))
    if len(rows):
        raise DataError(
            f"{name}: cell vector {'abc'[rows[0]]} is not finite: "
            f"{atoms.cell.array[rows[0]].tolist()}; repair the structure"
        )


def _check_numbers(atoms: Atoms, name: str) -> None:
    numbers = atoms.numbers
    bad = np.flatnonzero((numbers < 1) | (numbers >= len(chemical_symbols)))
    if len(bad):
        raise UnsupportedElementError(
            f"{name}: atom {bad[0]} has atomic number {numbers[bad[0]]}, which is no element "
            f"({len(bad)} such atoms); remove dummy atoms"
        )


def _check_contacts(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, name: str, reaction: CloseContacts
) -> None:
    try:
        edges, shifts = build_edges(positions, cell, pbc, CLOSEST_DISTANCE)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if not edges.shape[1]:
        return
    i, j = (int(index) for index in edges[:, 0])
    distance = float(np.linalg.norm(positions[j] - positions[i] + shifts[0] @ cell))
    other = f"atom {j}" if j != i else "its own image"
    message = (
        f"{name}: atom {i} and {other} are {distance:.3g} Å apart, closer than {CLOSEST_DISTANCE} Å; "
        "remove duplicate atoms or check the cell"
    )
    if reaction == "raise":
        raise DataError(message)
    warnings.warn(message, stacklevel=3)
