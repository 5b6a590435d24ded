"""What a run records of a state: one row of numbers, made on the device.

Here: :data:`COLUMNS`, :func:`measure_row`. Not here: files, averages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.md.barostat import measure_volume
from fastff.md.integrators import measure_kinetic
from fastff.md.protocol import DevicePotential
from fastff.md.state import State
from fastff.units import BOLTZMANN_EV_PER_K, EV_PER_A3_TO_GPA, VOIGT

COLUMNS = (
    "step", "temperature_K", "potential_eV", "kinetic_eV", "conserved_eV", "pressure_GPa",
    "stress_xx_GPa", "stress_yy_GPa", "stress_zz_GPa", "stress_yz_GPa", "stress_xz_GPa", "stress_xy_GPa",
    "volume_A3", "a_A", "b_A", "c_A",
)  # fmt: skip
"""Numbers of a row. Stress is positive under tension and, like the pressure, has its kinetic part."""


def measure_row(state: State, potential: DevicePotential, pressure: float | None) -> Tensor:
    """Numbers of :data:`COLUMNS` for a complete step, float64, shape (16,).

    Parameters
    ----------
    state : State
    potential : DevicePotential
        With energy and virial of this state.
    pressure : float or None
        eV/Å^3 of the barostat; None at constant volume. The conserved quantity is the total energy, plus pressure times
        volume, less what thermostat and barostat have put in.
    """
    kinetic = measure_kinetic(state, state.velocities)
    temperature = 2.0 * kinetic / (max(state.n_free, 1) * BOLTZMANN_EV_PER_K)
    volume = measure_volume(state.cell)
    conserved = potential.energy + kinetic - state.heat - state.work
    if pressure is not None:
        conserved = conserved + pressure * volume
    momentum = state.velocities.T @ (state.velocities * state.masses)
    stress = (potential.virial - momentum) / volume * EV_PER_A3_TO_GPA
    stress = torch.where(state.pbc.all(), stress, torch.full_like(stress, torch.nan))
    voigt = torch.stack([stress[a, b] for a, b in VOIGT])
    lengths = state.cell.square().sum(dim=1).sqrt()
    scalars = torch.stack(
        [
            state.step.double(), temperature, potential.energy, kinetic, conserved,
            -stress.diagonal().mean(),
        ]
    )  # fmt: skip
    return torch.cat([scalars, voigt, volume.reshape(1), lengths])
