"""Makes the structures of the ANI-1x recipes: a box of water and small organic molecules.

    python train/structures/build.py FILE.fnx

The molecules are those of ASE's G2 set (``ase.build.molecule``). The box is 27 randomly turned water molecules on a
grid at 1.0 g/cm^3, relaxed and then run for half a picosecond at 320 K with the ANI model given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.collections import g2
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from scipy.spatial.transform import Rotation

from fastff.teachers import load_teacher

HERE = Path(__file__).parent
ELEMENTS = {1, 6, 7, 8}
SPACING = 3.106  # Å, of a water molecule at 1.0 g/cm^3


def build_water(n_side: int = 3, seed: int = 0) -> Atoms:
    """Water molecules on a cubic grid, each turned at random."""
    rng = np.random.default_rng(seed)
    box = Atoms(cell=np.eye(3) * n_side * SPACING, pbc=True)
    for place in np.ndindex(n_side, n_side, n_side):
        water = molecule("H2O")
        centred = water.positions - water.get_center_of_mass()
        turned = Rotation.random(random_state=int(rng.integers(2**31))).apply(centred)
        water.positions = turned + (np.array(place) + 0.5) * SPACING
        box += water
    return box


def equilibrate(box: Atoms, model: str, temperature: float, steps: int) -> Atoms:
    """Relax for at most 60 steps, then Langevin dynamics with steps of 0.5 fs."""
    box.calc = load_teacher(f"fennol:{model}", device="cpu").calculator()
    FIRE(box, logfile=None).run(fmax=0.5, steps=60)
    thermalize_momenta(box, temperature_K=temperature, rng=np.random.default_rng(1))
    rng = np.random.default_rng(2)
    Langevin(box, 0.5 * units.fs, temperature_K=temperature, friction=0.05 / units.fs, rng=rng).run(
        steps
    )
    return Atoms(box.numbers, box.positions, cell=box.cell, pbc=True)


def choose_molecules(least: int = 5, most: int = 14) -> list[Atoms]:
    """Closed-shell molecules of H, C, N and O with carbon."""
    chosen = []
    for name in g2.names:
        atoms = molecule(name)
        numbers = set(atoms.numbers)
        closed = not atoms.get_initial_magnetic_moments().any() and atoms.numbers.sum() % 2 == 0
        if 6 in numbers and numbers <= ELEMENTS and closed and least <= len(atoms) <= most:
            chosen.append(Atoms(atoms.numbers, atoms.positions, info={"name": name}))
    return chosen


if __name__ == "__main__":
    molecules = choose_molecules()
    write(HERE / "organics.xyz", molecules, format="extxyz")
    print(len(molecules), "molecules:", ", ".join(atoms.info["name"] for atoms in molecules))
    water = equilibrate(build_water(), sys.argv[1], 320.0, 1000)
    water.wrap()
    write(HERE / "water.xyz", water, format="extxyz")
