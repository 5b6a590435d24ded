"""Definition of the half steps of molecular dynamics, in plain torch.

Here: what a half step does to positions and velocities, as functions from tensors to new tensors; formulas and their
papers are in :mod:`fastff.md.integrators`. Not here: when a half is taken, cells that move.

Shapes: positions, velocities, forces and noise (n_atoms, 3); masses and their inverses (n_atoms, 1), the inverse zero
for a fixed atom. Any units in which ``forces * inverse_masses * timestep`` is a velocity; any floating dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kick(velocities: Tensor, forces: Tensor, inverse_masses: Tensor, timestep: float) -> Tensor:
    """Velocities after half a step under forces."""
    return velocities + forces * (0.5 * timestep * inverse_masses)


def drift(positions: Tensor, velocities: Tensor, timestep: float) -> Tensor:
    """Positions after a step of free flight."""
    return positions + timestep * velocities


def add_noise(
    velocities: Tensor, inverse_masses: Tensor, decay: float, thermal: Tensor, noise: Tensor
) -> Tensor:
    """Velocities after a step of the Ornstein-Uhlenbeck process: ``decay`` is exp(-friction * timestep)."""
    width = torch.sqrt((1.0 - decay**2) * inverse_masses)
    return decay * velocities + noise * width * torch.sqrt(thermal)


def measure_kinetic(velocities: Tensor, masses: Tensor) -> Tensor:
    """Kinetic energy, shape ()."""
    return 0.5 * (velocities * velocities * masses).sum()


def find_rescaling(
    kinetic: Tensor, thermal: Tensor, decay: float, first: Tensor, squares: Tensor
) -> Tensor:
    """Factor of all velocities in canonical rescaling: Bussi, Donadio and Parrinello 2007, eq. A7.

    Parameters
    ----------
    kinetic, thermal : () tensors
        Kinetic energy and k_B T.
    decay : float
        exp(-timestep / relaxation).
    first, squares : () tensors
        A standard normal number, and the sum of the squares of as many others as there are degrees of freedom less one.
    """
    share = 0.5 * thermal * (1.0 - decay) / kinetic
    square = decay + share * (first * first + squares)
    return torch.sqrt(square + 2.0 * first * torch.sqrt(decay * share))
