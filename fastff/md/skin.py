"""How far a neighbor list should reach beyond the cut-off, and how long it lasts.

Here: estimates before a run begins. Not here: lists, the test of when they end.

A thick skin makes lists last; a thin one keeps rows short, and the fused kernels take neighbors :data:`TILE` at a
time: 54 of them cost two tiles, 78 three. On an H100 a third tile adds 28 to 32 % to an evaluation of a million atoms
of copper and 7 % to one of 1,372, and a rebuild costs 17 to 42 % of an evaluation of a million atoms, and more than one
of 1,372 (``bench/results/engine``).
"""

from __future__ import annotations

import dataclasses
import math

import ase
import numpy as np
import torch
from ase import units

from fastff.evaluator import choose_path
from fastff.kernels.neighbor_list import build_neighbors
from fastff.md.settings import MDSettings
from fastff.memory import is_out_of_memory, release_memory
from fastff.models import Student
from fastff.models.moment import MomentStudent

CANDIDATES = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Å."""
TILE = 32
SMEAR = 0.15
"""Å by which rows are counted farther: atoms of a start structure will move about."""
_PER_TILE, _TILE_ATOMS = 0.3, 4500.0
"""Time of a tile of every row, of an evaluation with two of them: over many atoms, and the number that halves it."""
_REBUILD, _REBUILD_ATOMS = 0.4, 4000.0
"""Time of a rebuild, of an evaluation of one hop: over many atoms, and the number at which waiting takes one."""


def settle_skin(student: Student, atoms: ase.Atoms, settings: MDSettings) -> MDSettings:
    """The same settings with the skin with which steps should take least time.

    Parameters
    ----------
    student : Student
        On the device of the run.
    atoms : ase.Atoms
        Where the run begins.
    settings : MDSettings
        Time step and temperature.

    Returns
    -------
    MDSettings
        With one of :data:`CANDIDATES`, the same for the same arguments; unchanged where the fused kernels do not run
        (only they take pairs beyond the cut-off) and where nothing moves.
    """
    if not isinstance(student, MomentStudent) or choose_path(student).path != "fused":
        return settings
    if not math.isfinite(estimate_lifetime(1.0, atoms.get_masses(), settings)):
        return settings
    rebuild = (_REBUILD + _REBUILD_ATOMS / len(atoms)) / student.n_hops
    per_tile = _PER_TILE * len(atoms) / (len(atoms) + _TILE_ATOMS)

    def find_cost(skin: float) -> tuple[float, float]:
        lifetime = max(1.0, estimate_lifetime(skin, atoms.get_masses(), settings))
        return per_tile * tiles[skin] + rebuild / lifetime, -skin

    tiles = count_tiles(student, atoms)
    return dataclasses.replace(settings, skin=min(tiles, key=find_cost))


def estimate_lifetime(skin: float, masses: np.ndarray, settings: MDSettings) -> float:
    """Steps after which some atom will have moved by half the skin; infinite where nothing moves.

    Parameters
    ----------
    skin : float, Å
    masses : (n_atoms,) or (n_atoms, 1) array, u
    settings : MDSettings
        Time step and temperature; the higher one of a ramp.

    Notes
    -----
    The fastest of n thermal atoms flies straight: its speed is the standard deviation of a velocity component of the
    lightest element times ``sqrt(2 ln 3n)``, the typical largest of 3n normal numbers. Within 12 % of what lists of
    copper lasted on an H100, 1,372 to a million atoms, skins of 0.5 to 1 Å.
    """
    hottest = max(settings.temperature, settings.final_temperature or 0.0)
    lightest = float(masses.min())
    if not (hottest > 0.0 and lightest > 0.0):
        return math.inf
    deviation = math.sqrt(units.kB * hottest / lightest) * units.fs  # Å/fs
    fastest = deviation * math.sqrt(2.0 * math.log(3.0 * masses.size))
    return skin / (2.0 * fastest * settings.timestep)


def count_tiles(student: Student, atoms: ase.Atoms) -> dict[float, float]:
    """Mean number of tiles of a row for every candidate, the thinnest first.

    A list that does not fit into memory ends them: skins as thick as that cannot be had.
    """
    positions = torch.tensor(atoms.positions, dtype=torch.float64, device=student.device)
    flags = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    found = {CANDIDATES[0]: math.inf}
    for skin in CANDIDATES:
        reach = student.cutoff + skin + SMEAR
        try:
            rows = build_neighbors(positions, atoms.cell.array, flags, reach)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            break
        found[skin] = float((rows.matrix.counts.double() / TILE).ceil().clamp(min=1.0).mean())
        del rows
    return found
