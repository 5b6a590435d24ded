"""Constant pressure by stochastic cell rescaling.

Here: how the cell vectors change in a step, and the enthalpy they change. Not here: thermostats, pressure averages.

Isotropic: M. Bernetti and G. Bussi, J. Chem. Phys. 153, 114107 (2020), in the variable sqrt(V), where noise is
additive. Anisotropic: V. Del Tatto, P. Raiteri, M. Bernetti and G. Bussi, Appl. Sci. 12, 1139 (2022), restricted to the
lengths of the three cell vectors: angles stay, and the stationary measure is flat in the lengths. Positions are
stretched with the cell and velocities shrunk, so that the pressure is the instantaneous one, kinetic part included.

The cell moves between the first kick and the drift, where forces and virial of the beginning of the step are at hand:
no further evaluation is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.md.settings import MDSettings
from fastff.md.state import State
from fastff.units import EV_PER_A3_TO_GPA


class Barostat:
    """Stochastic cell rescaling.

    Parameters
    ----------
    pressure : float
        eV/Å^3.
    mobility : float
        Compressibility times time step over relaxation time, Å^3/eV.
    isotropic : bool
    """

    def __init__(self, pressure: float, mobility: float, *, isotropic: bool) -> None:
        self.pressure, self.mobility, self.isotropic = pressure, mobility, isotropic

    def measure_slope(self, state: State, velocities: Tensor, virial: Tensor) -> Tensor:
        """Derivative of the enthalpy in the logarithm of each cell vector's length, eV, shape (3,).

        With ``V`` the volume and ``P_k`` the pressure along vector ``k``, this is ``V (P - P_k)``; if isotropic, all
        three are the mean.
        """
        momentum = velocities.T @ (velocities * state.masses)
        inverse = invert_cell(state.cell)
        inner = (state.cell @ (virial - momentum) @ inverse).diagonal()
        slope = inner + self.pressure * measure_volume(state.cell)
        return slope.mean().expand(3).clone() if self.isotropic else slope

    def draw_strain(self, state: State, thermal: Tensor, normals: Tensor) -> Tensor:
        """Logarithmic strain of every cell vector in this step, shape (3,).

        Parameters
        ----------
        state : State
            With ``slope`` of the current configuration.
        thermal : () tensor
            k_B T, eV.
        normals : (3,) tensor
            Independent standard normal numbers.
        """
        volume = measure_volume(state.cell)
        if not self.isotropic:
            width = torch.sqrt(2.0 * thermal * self.mobility / (3.0 * volume))
            return -self.mobility / (3.0 * volume) * state.slope + width * normals
        root = torch.sqrt(volume)
        drift = -0.5 * self.mobility / root * (state.slope[0] - 0.5 * thermal)
        width = torch.sqrt(0.5 * thermal * self.mobility)
        change = torch.log1p((drift + width * normals[0]) / root)
        return (2.0 / 3.0) * change.expand(3)


def build_barostat(settings: MDSettings) -> Barostat:
    """The barostat of a run."""
    mobility = settings.compressibility * EV_PER_A3_TO_GPA
    return Barostat(
        settings.pressure / EV_PER_A3_TO_GPA,
        mobility * settings.timestep / settings.pressure_relaxation,
        isotropic=settings.barostat == "isotropic",
    )


def measure_volume(cell: Tensor) -> Tensor:
    """Volume of a cell, Å^3, shape (); waits for nothing, unlike ``torch.linalg.det``."""
    return (cell[0] * torch.linalg.cross(cell[1], cell[2])).sum().abs()


def invert_cell(cell: Tensor) -> Tensor:
    """Inverse of a 3 x 3 matrix; waits for nothing, unlike ``torch.linalg.inv``."""
    a, b, c = cell[0], cell[1], cell[2]
    columns = [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)]
    return torch.stack(columns, dim=1) / (a * columns[0]).sum()


def strain_cell(cell: Tensor, strain: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stretch every cell vector by ``exp(strain)``.

    Returns
    -------
    cell : (3, 3) tensor
    stretch : (3, 3) tensor
        New positions are ``positions @ stretch``.
    shrink : (3, 3) tensor
        New velocities are ``velocities @ shrink``, the inverse transpose of ``stretch``.
    """
    inverse = invert_cell(cell)
    longer = torch.exp(strain)[:, None] * cell
    shorter = torch.exp(-strain)[:, None] * cell
    return longer, inverse @ longer, (inverse @ shorter).T
