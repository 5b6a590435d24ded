"""Makes the structures of the recipes.

    python train/structures/build.py solids surface melts
    python train/structures/build.py molecules --ani FILE.fnx

Here: lattices, a surface, liquids from short dynamics of a teacher, molecules. ``melts`` takes SevenNet-0 some minutes
on one core. Every part comes out the same each time, melts to rounding. Not here: what recipes do with them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.collections import g2
from ase.constraints import FixAtoms
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from scipy.spatial.transform import Rotation

from fastff.teachers import load_teacher

HERE = Path(__file__).parent
ELEMENTS = {1, 6, 7, 8}
SPACING = 3.106  # Å, of a water molecule at 1.0 g/cm^3
EXPANSIONS = (1.0, 1.025, 0.98)
"""Of the lengths of a crystal: the first is the lattice constant of the teacher, or near it."""


def build_alloy(expansion: float, seed: int) -> Atoms:
    """CuAu without order on an fcc lattice of 108 sites."""
    atoms = bulk("Cu", "fcc", a=3.93 * expansion, cubic=True) * (3, 3, 3)
    atoms.numbers[np.random.default_rng(seed).permutation(len(atoms))[: len(atoms) // 2]] = 79
    return atoms


def build_rutile(expansion: float = 1.0) -> Atoms:
    """TiO2 as rutile, 2 x 2 x 3 cells of six atoms."""
    u = 0.305
    titanium = [(0, 0, 0), (0.5, 0.5, 0.5)]
    oxygen = [(u, u, 0), (-u, -u, 0), (0.5 + u, 0.5 - u, 0.5), (0.5 - u, 0.5 + u, 0.5)]
    lengths = np.array([4.65, 4.65, 2.97]) * expansion
    cell = Atoms("Ti2O4", scaled_positions=titanium + oxygen, cell=lengths, pbc=True)
    return cell * (2, 2, 3)


def build_layered(expansion: float = 1.0) -> Atoms:
    """LiCoO2, layered, 3 x 3 x 1 hexagonal cells of twelve atoms."""
    height, symbols, places = 0.2605, "", []
    for x, y, z in ((0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3)):
        symbols += "LiCoO2"
        places += [(x, y, z + 0.5), (x, y, z), (x, y, z + height), (x, y, z - height)]
    lengths = np.array([2.86, 2.86, 14.2]) * expansion
    cell = Atoms(symbols, scaled_positions=places, cell=[*lengths, 90, 90, 120], pbc=True)
    return cell * (3, 3, 1)


def build_surface(site: str, height: float) -> Atoms:
    """One CO on Pt(111): three layers of sixteen atoms, in-plane periodic, 10 Å of vacuum on each side.

    The bottom layer is fixed: free, the slab sometimes reconstructed in dynamics of students.
    """
    slab = fcc111("Pt", (4, 4, 3), a=3.97, orthogonal=True, vacuum=10.0)
    add_adsorbate(slab, Atoms("CO", [(0, 0, 0), (0, 0, 1.16)]), height, site)
    bottom = FixAtoms(mask=slab.get_tags() == 3)
    return Atoms(
        slab.numbers, slab.positions, cell=slab.cell, pbc=(True, True, False), constraint=bottom
    )


def melt(crystal: Atoms, length: float, timestep: float, stages: list[tuple[float, int]]) -> Atoms:
    """A liquid: the crystal scaled to ``length`` times its size, through ``stages`` of (K, steps) of SevenNet-0.

    ``timestep`` is in fs.
    """
    box = crystal.copy()
    box.set_cell(box.cell * length, scale_atoms=True)
    box.calc = load_teacher("sevennet:7net-0", device="cpu").calculator()
    thermalize_momenta(box, temperature_K=2 * stages[0][0], rng=np.random.default_rng(1))
    for number, (temperature, steps) in enumerate(stages):
        run_langevin(box, temperature, steps, timestep, seed=number)
    box.wrap()
    return Atoms(box.numbers, box.positions, cell=box.cell, pbc=True)


def run_langevin(box: Atoms, kelvin: float, steps: int, timestep: float, seed: int) -> None:
    """Langevin dynamics of atoms that have momenta and a calculator, in place; ``timestep`` in fs."""
    dynamics = Langevin(
        box, timestep * units.fs, temperature_K=kelvin, friction=0.05 / units.fs,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    dynamics.run(steps)


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
    run_langevin(box, temperature, steps, 0.5, seed=2)
    box.wrap()
    return Atoms(box.numbers, box.positions, cell=box.cell, pbc=True)


def choose_molecules(least: int = 5, most: int = 14) -> list[Atoms]:
    """Closed-shell molecules of H, C, N and O with carbon, of ASE's G2 set (``ase.build.molecule``)."""
    chosen = []
    for name in g2.names:
        atoms = molecule(name)
        numbers = set(atoms.numbers)
        closed = not atoms.get_initial_magnetic_moments().any() and atoms.numbers.sum() % 2 == 0
        if 6 in numbers and numbers <= ELEMENTS and closed and least <= len(atoms) <= most:
            chosen.append(Atoms(atoms.numbers, atoms.positions, info={"name": name}))
    return chosen


def build_solids() -> dict[str, list[Atoms]]:
    """Crystals at several volumes."""
    return {
        "cuau": [build_alloy(length, seed) for seed, length in enumerate(EXPANSIONS)],
        "tio2": [build_rutile(length) for length in EXPANSIONS],
        "licoo2": [build_layered(length) for length in EXPANSIONS],
    }


def build_surfaces() -> dict[str, list[Atoms]]:
    """CO on top of an atom of Pt(111), and in a hollow."""
    return {"pt111-co": [build_surface("ontop", 1.85), build_surface("fcc", 1.35)]}


def build_melts() -> dict[str, list[Atoms]]:
    """Crystals and their liquids, these at about the densities of experiment near the melting point."""
    silicon = bulk("Si", "diamond", a=5.46, cubic=True) * (2, 2, 2)
    salt = bulk("NaCl", "rocksalt", a=5.68, cubic=True) * (2, 2, 2)
    return {
        "silicon-melt": [silicon, melt(silicon, 0.97, 2.0, [(4500.0, 130), (1900.0, 100)])],
        "nacl": [salt, melt(salt, 1.09, 3.0, [(3500.0, 130), (1300.0, 100)])],
    }


def build_molecules(ani: str | None) -> dict[str, list[Atoms]]:
    """Organic molecules; and 27 water molecules after half a picosecond at 320 K with the ANI model given."""
    found = {"organics": choose_molecules()}
    if ani:
        found["water"] = [equilibrate(build_water(), ani, 320.0, 1000)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="+", choices=("solids", "surface", "melts", "molecules"), metavar="PART"
    )
    parser.add_argument("--ani", help="FeNNol file of an ANI model, for water.xyz")
    arguments = parser.parse_args()
    builders: dict[str, Any] = {
        "solids": build_solids,
        "surface": build_surfaces,
        "melts": build_melts,
        "molecules": lambda: build_molecules(arguments.ani),
    }
    for part in arguments.parts:
        for name, structures in builders[part]().items():
            write(HERE / f"{name}.xyz", structures, format="extxyz")
            print(f"{name}.xyz:", ", ".join(atoms.get_chemical_formula() for atoms in structures))


if __name__ == "__main__":
    main()
