"""The materials of the study, and the replicas that ``study_labels.py`` runs. Not here: dynamics and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.build import bulk

ROOT = Path(__file__).resolve().parents[1]
SHEAR = 0.007
"""Standard deviation of the anisotropic strain of a replica."""


@dataclass(frozen=True)
class Ladder:
    """Replicas of one phase at evenly spaced temperatures.

    Attributes
    ----------
    phase : str
    replicas : int
    low, high : float
        K.
    expansion : tuple of float
        Range of the linear strain.
    melt : float
        Temperature at which replicas are mixed before, K; 0 leaves that out.
    """

    phase: str
    replicas: int
    low: float
    high: float
    expansion: tuple[float, float]
    melt: float = 0.0


@dataclass(frozen=True)
class System:
    """One material of the study; ``timestep`` in fs, a frame every ``stride`` steps."""

    name: str
    build: Callable[[np.random.Generator], ase.Atoms]
    ladders: tuple[Ladder, ...]
    timestep: float
    stride: int
    masses: dict[str, float] = field(default_factory=dict)
    melt_steps: int = 150


def build_alloy(rng: np.random.Generator) -> ase.Atoms:
    atoms = bulk("Cu", "fcc", a=3.95, cubic=True) * (3, 3, 3)
    atoms.positions[:] = atoms.positions[rng.permutation(len(atoms))]
    atoms.numbers[len(atoms) // 2 :] = 79
    return atoms


def build_rutile(rng: np.random.Generator) -> ase.Atoms:
    u = 0.305
    titanium = [(0, 0, 0), (0.5, 0.5, 0.5)]
    oxygen = [(u, u, 0), (-u, -u, 0), (0.5 + u, 0.5 - u, 0.5), (0.5 - u, 0.5 + u, 0.5)]
    cell = ase.Atoms("Ti2O4", scaled_positions=titanium + oxygen, cell=[4.65, 4.65, 2.97], pbc=True)
    return cell * (2, 2, 3)


def build_layered(rng: np.random.Generator) -> ase.Atoms:
    cobalt, lithium, height = [], [], 0.2605
    oxygen = []
    for shift in ((0, 0, 0), (2 / 3, 1 / 3, 1 / 3), (1 / 3, 2 / 3, 2 / 3)):
        x, y, z = shift
        cobalt.append((x, y, z))
        lithium.append((x, y, z + 0.5))
        oxygen += [(x, y, z + height), (x, y, z - height)]
    cell = ase.Atoms(
        "Li3Co3O6",
        scaled_positions=lithium + cobalt + oxygen,
        cell=[2.86, 2.86, 14.2, 90, 90, 120],
        pbc=True,
    )
    return cell * (3, 3, 1)


def build_water(rng: np.random.Generator) -> ase.Atoms:
    return ase.io.read(ROOT / "train" / "structures" / "water.xyz")


SYSTEMS = (
    System(
        "cuau",
        build_alloy,
        (Ladder("solid", 96, 300, 1600, (-0.02, 0.03)),),
        timestep=4.0,
        stride=6,
        masses={"Au": 63.5},
    ),
    System(
        "si",
        lambda rng: bulk("Si", "diamond", a=5.46, cubic=True) * (2, 2, 2),
        (
            Ladder("solid", 48, 200, 1700, (-0.02, 0.02)),
            Ladder("liquid", 48, 1500, 2600, (-0.045, 0.0), melt=4500),
        ),
        timestep=2.5,
        stride=10,
    ),
    System(
        "nacl",
        lambda rng: bulk("NaCl", "rocksalt", a=5.68, cubic=True) * (2, 2, 2),
        (
            Ladder("solid", 48, 200, 1300, (-0.02, 0.04)),
            Ladder("liquid", 48, 1100, 1900, (0.06, 0.14), melt=3500),
        ),
        timestep=4.0,
        stride=10,
    ),
    System(
        "water",
        build_water,
        (Ladder("liquid", 96, 280, 700, (-0.02, 0.02), melt=1000),),
        timestep=1.0,
        stride=6,
        masses={"H": 4.0},
    ),
    System(
        "tio2",
        build_rutile,
        (Ladder("solid", 96, 300, 2000, (-0.02, 0.025)),),
        timestep=2.0,
        stride=8,
    ),
    System(
        "licoo2",
        build_layered,
        (Ladder("solid", 96, 300, 1500, (-0.02, 0.025)),),
        timestep=2.0,
        stride=6,
        masses={"Li": 16.0},
    ),
)


def list_replicas(system: System, total: int | None = None) -> list[tuple[Ladder, float]]:
    """Ladder and temperature of every replica, in the order of their trajectory numbers; ``total`` thins them."""
    share = 1.0 if total is None else total / sum(ladder.replicas for ladder in system.ladders)
    return [
        (ladder, float(temperature))
        for ladder in system.ladders
        for temperature in np.linspace(
            ladder.low, ladder.high, max(1, round(share * ladder.replicas))
        )
    ]


def build_start(system: System, ladder: Ladder, index: int, seed: int) -> ase.Atoms:
    """The strained lattice, or box, that a replica starts from."""
    rng = np.random.default_rng([seed, index, sum(system.name.encode())])
    atoms = system.build(rng)
    strain = rng.normal(scale=SHEAR, size=(3, 3))
    strain = 0.5 * (strain + strain.T)
    strain += (rng.uniform(*ladder.expansion) - np.trace(strain) / 3) * np.eye(3)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    numbers = atoms.get_atomic_numbers()
    masses = {ase.data.atomic_numbers[s]: m for s, m in system.masses.items()}
    own = ase.data.atomic_masses[numbers]
    return ase.Atoms(
        numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=True,
        masses=[masses.get(int(z), m) for z, m in zip(numbers, own, strict=True)],
    )
