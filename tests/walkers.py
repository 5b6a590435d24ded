"""An untrained student with an uncertainty, and walkers for it. Not here: any test."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

from fastff.distill.dynamics import LangevinSettings, Replica, draw_momenta, run_langevin
from fastff.distill.explore import (
    ExploreSettings,
    Walker,
)
from fastff.inference import predict
from fastff.models import Student
from fastff.models.uncertainty import fit_uncertainty
from fastff.neighbors import atoms_to_graph

from untrained import make_student  # isort: skip

SETTINGS = ExploreSettings(n_steps=20, timestep=2.0, check=2, stride=10)


def make_explorer() -> Student:
    """Untrained, for copper, with an uncertainty fitted on rattled cells."""
    model = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005)
    rng = np.random.default_rng(0)
    cells = [rattle(rng, 0.03) for _ in range(8)]
    graphs = [atoms_to_graph(atoms, model.cutoff) for atoms in cells]
    energies = [label.energy + 0.01 * k for k, label in enumerate(predict(model, cells))]
    model.uncertainty = fit_uncertainty(model, graphs[:4], graphs[4:], energies[4:])
    return model


def rattle(rng: np.random.Generator, amplitude: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.positions += rng.normal(scale=amplitude, size=(4, 3))
    return atoms


def make_walkers(*uses: Any, temperature: float = 300.0) -> list[Walker]:
    rng = np.random.default_rng(1)
    return [
        Walker(rattle(rng, 0.02), temperature, 50 + k, use, temperature > 1000)
        for k, use in enumerate(uses)
    ]


def follow_other(student: Student, walkers: list[Walker]) -> list[Replica]:
    """Twenty steps of 2 fs without friction, by the integrator for teachers, from the momenta of walkers at 300 K."""
    replicas = []
    for walker in walkers:
        atoms = walker.atoms.copy()
        atoms.set_momenta(draw_momenta(atoms, 300.0, 0, walker.trajectory))
        replicas.append(Replica(atoms, 300.0, walker.trajectory))
    run_langevin(
        replicas,
        lambda structures: predict(student, structures),
        LangevinSettings(20, 2.0, friction=0.0),
        source="x",
        on_frames=lambda frames: None,
    )
    return replicas
