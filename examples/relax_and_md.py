"""Relax a cell and run molecular dynamics with a student, in plain ASE.

Run ``make demo`` first, then ``.venv/bin/python examples/relax_and_md.py``; any other model file goes as the first
argument.
"""

from __future__ import annotations

import sys

import numpy as np
from ase import units
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from fastff import FastFFCalculator


def main(model: str) -> None:
    """Relax cubic silicon, then 2 ps of Langevin dynamics of 64 atoms at 300 K."""
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.calc = FastFFCalculator(model)
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    lengths = atoms.cell.lengths()
    print(f"relaxed: {atoms.get_potential_energy() / len(atoms):.4f} eV/atom, a = {lengths.mean():.4f} Å, "
          f"largest force {np.abs(atoms.get_forces()).max():.1e} eV/Å")  # fmt: skip

    crystal = atoms.repeat(2)
    crystal.calc = FastFFCalculator(model)
    thermalize_momenta(crystal, temperature_K=600, rng=np.random.default_rng(0))
    dynamics = Langevin(
        crystal, 2 * units.fs, temperature_K=300, friction=0.01 / units.fs,
        fixcm=False, rng=np.random.default_rng(1),
    )  # fmt: skip
    for _ in range(5):
        dynamics.run(200)
        print(f"{dynamics.get_time() / (1000 * units.fs):4.1f} ps  {crystal.get_temperature():5.0f} K  "
              f"{crystal.get_potential_energy() / len(crystal):9.4f} eV/atom")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo-out/student/model.safetensors")
