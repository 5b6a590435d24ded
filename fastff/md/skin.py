"""How far a neighbor list should reach beyond the cut-off.

Here: :func:`choose_skin`, an estimate before a run begins. Not here: lists, the test of when they end.

A thick skin makes lists last; a thin one keeps rows short, and the fused kernels take neighbors :data:`TILE` at a
time: 54 of them cost two tiles, 78 three. On an H100 a third tile adds 28 to 32 % to an evaluation of copper, and a
rebuild costs 17 to 42 % of one (``bench/results/engine/md-warm-h100.json``, a million atoms).
"""

from __future__ import annotations

import math

import ase
import torch
from ase import units

from fastff.evaluator import choose_path
from fastff.kernels.neighbor_list import build_neighbors
from fastff.md.settings import MDSettings
from fastff.models import Student
from fastff.models.moment import MomentStudent

DEFAULT = 1.0
"""Å; where kernels take the pairs within the cut-off alone, and where nothing moves."""
CANDIDATES = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Å."""
TILE = 32
_FIXED, _PER_TILE = 0.4, 0.3
"""Time of an evaluation, of one with two tiles for each atom: that of an atom, and of each of its tiles."""
_REBUILD, _REBUILD_ATOMS = 0.4, 4000.0
"""Time of a rebuild, of an evaluation of one hop: that of many atoms, and the number at which waiting equals one."""
_FASTEST = 4.5
"""Speed of the fastest atom, in standard deviations of one component."""


def choose_skin(student: Student, atoms: ase.Atoms, settings: MDSettings) -> float:
    """Skin in Å with which steps should take least time; the same for the same arguments.

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
    float
        One of :data:`CANDIDATES`; :data:`DEFAULT` where the fused kernels do not run.

    Notes
    -----
    A list ends when an atom has moved by half the skin. The estimate lets the fastest atom fly straight, which it
    does not do for long, so lists last somewhat longer than it says.
    """
    if not isinstance(student, MomentStudent) or choose_path(student).path != "fused":
        return DEFAULT
    hottest = max(settings.temperature, settings.final_temperature or 0.0)
    lightest = float(atoms.get_masses().min())
    if not (hottest > 0.0 and lightest > 0.0):
        return DEFAULT
    speed = _FASTEST * math.sqrt(units.kB * hottest / lightest) * units.fs  # Å/fs
    stride = 2.0 * speed * settings.timestep
    rebuild = (_REBUILD + _REBUILD_ATOMS / len(atoms)) / student.n_hops
    costs = {
        skin: _FIXED + _PER_TILE * tiles + rebuild * max(stride / skin, 0.01)
        for skin, tiles in _count_tiles(student, atoms).items()
    }
    return min(costs, key=lambda skin: (costs[skin], -skin))


def _count_tiles(student: Student, atoms: ase.Atoms) -> dict[float, float]:
    """Mean number of tiles of a row for every candidate."""
    positions = torch.tensor(atoms.positions, dtype=torch.float64, device=student.device)
    flags = (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2]))
    found = {}
    for skin in CANDIDATES:
        rows = build_neighbors(positions, atoms.cell.array, flags, student.cutoff + skin)
        counts = rows.matrix.counts.double()
        found[skin] = float((counts / TILE).ceil().clamp(min=1.0).mean())
    return found
