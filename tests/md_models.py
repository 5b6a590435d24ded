"""Analytic device potentials with known answers, and a tame untrained student. Not here: any test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from fastff.checkpoint import save_model
from fastff.graph import edge_vectors
from fastff.models import Student, build_student, configure_student
from fastff.models.dense import lay_out_edges
from fastff.neighbors import atoms_to_graph


def make_copper(architecture: str = "m1", *, force: float = 0.3, **sizes: Any) -> Student:
    """A student of copper, float32, calibrated on a rattled crystal, its forces there ``force`` eV/Å (RMS).

    Messages are made small: untrained ones make a second hop violent.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(configure_student(architecture, (29,), **sizes)).float()
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.positions += np.random.default_rng(0).normal(scale=0.1, size=atoms.positions.shape)
    graph = atoms_to_graph(atoms, student.cutoff)
    dense = lay_out_edges(
        edge_vectors(graph).float(), graph.edge_index, graph.n_atoms, student.cutoff
    )
    student.calibrate(dense.vectors, dense.senders, student.find_species(graph.numbers))
    with torch.no_grad():
        for name, value in student.named_parameters():
            if name.endswith(".message"):
                value.mul_(0.02)
        size = float(student(graph).forces.square().mean().sqrt())
        student.energy_scale.mul_(force / size)
        student.composition_energies.fill_(-1000.0)
    return student.eval().requires_grad_(False)


def write_copper(folder: Path) -> None:
    """Write a small student of copper, and a cubic cell of it: ``cu.safetensors``, ``cu.extxyz``."""
    student = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8))
    save_model(folder / "cu.safetensors", student, {"teacher": {"name": "none"}})
    bulk("Cu", cubic=True).write(folder / "cu.extxyz")


class AnalyticPotential:
    """Base: no interaction at all, an ideal gas; never stale."""

    capturable = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.energy = torch.zeros((), dtype=torch.float64)
        self.virial = torch.zeros(3, 3, dtype=torch.float64)
        self.stale = torch.zeros((), dtype=torch.int32)
        self.forces = torch.zeros(0, 3, dtype=torch.float64)

    def attach(self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor) -> None:
        self.positions, self.cell = positions, cell
        self.forces = torch.zeros_like(positions)

    def compute(self) -> None:
        pass

    def check(self) -> None:
        pass

    def rebuild(self) -> bool:
        return False


class Springs(AnalyticPotential):
    """Every atom on a spring of its own, in eV/Å^2."""

    def __init__(self, sites: Tensor, stiffness: float) -> None:
        super().__init__()
        self.sites, self.stiffness = sites, stiffness

    def compute(self) -> None:
        away = self.positions - self.sites
        self.energy.copy_(0.5 * self.stiffness * away.square().sum())
        self.forces.copy_(-self.stiffness * away)


class Bag(AnalyticPotential):
    """Energy of the cell alone: ``stiffness (V - V_0)^2 / (2 V_0)``, eV/Å^3 and Å^3."""

    def __init__(self, stiffness: float, volume: float) -> None:
        super().__init__()
        self.stiffness, self.volume = stiffness, volume

    def compute(self) -> None:
        volume = torch.linalg.det(self.cell).abs()
        excess = volume - self.volume
        self.energy.copy_(0.5 * self.stiffness * excess**2 / self.volume)
        self.virial.copy_(self.stiffness * excess / self.volume * volume * torch.eye(3))
