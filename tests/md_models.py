"""Analytic device potentials with known answers. Not here: any test."""

from __future__ import annotations

import torch
from torch import Tensor


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
