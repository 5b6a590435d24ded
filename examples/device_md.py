"""Molecular dynamics on the device from Python: equilibrate at constant pressure, then sample at constant energy.

Run ``make demo`` first, then ``.venv/bin/python examples/device_md.py``; any other model file of silicon goes as the
first argument.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from ase.build import bulk

from fastff import load_model
from fastff.md.potentials import make_potential
from fastff.md.run import simulate
from fastff.md.settings import MDSettings


def main(model: str) -> None:
    """Silicon, 64 atoms: 2 ps at 300 K and 0 GPa, then 1 ps of NVE."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    potential = make_potential(load_model(model, device=device))
    folder = Path(tempfile.mkdtemp(prefix="fastff-md-"))
    pressed = MDSettings(
        n_steps=1000, timestep=2.0, ensemble="npt", thermostat="rescale", temperature=300.0,
        interval=10, frame_interval=100,
    )  # fmt: skip
    first = simulate(potential, bulk("Si", cubic=True).repeat(2), pressed, folder / "npt")
    free = MDSettings(n_steps=1000, ensemble="nve", velocities="file", interval=10, seed=1)
    second = simulate(potential, first.atoms, free, folder / "nve")
    for name, result in (("npt", first), ("nve", second)):
        s = result.summary
        print(f"{name}: {s.temperature.mean:.0f} K, {s.pressure.mean:.2f} GPa, {s.volume.mean:.0f} Å^3, "
              f"drift {s.drift:.2g} meV/atom/ps, {result.ns_per_day:.2f} ns/day")  # fmt: skip
    print(f"trajectories in {folder}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo-out/student/model.safetensors")
