"""Equations of motion: one step as two halves around an evaluation of the forces.

Here: velocity Verlet, Langevin dynamics and canonical velocity rescaling, as functions from tensors to new tensors that
wait for nothing. Not here: the cell's motion (:mod:`fastff.md.barostat`), when a half is taken
(:mod:`fastff.md.engine`).

NVE is velocity Verlet (L. Verlet, Phys. Rev. 159, 98 (1967); W. C. Swope et al., J. Chem. Phys. 76, 637 (1982)).
The Langevin thermostat is the splitting BAOAB of B. Leimkuhler and C. Matthews, J. Chem. Phys. 138, 174102 (2013).
Velocity rescaling follows G. Bussi, D. Donadio and M. Parrinello, J. Chem. Phys. 126, 014101 (2007), eq. A7, with the
velocity Verlet step between two rescalings.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.md_step import reference
from fastff.kernels.md_step.op import Motion, Schedule
from fastff.md.barostat import Barostat, build_barostat, strain_cell
from fastff.md.random import RandomBlock
from fastff.md.settings import MDSettings
from fastff.md.state import State
from fastff.units import BOLTZMANN_EV_PER_K, FEMTOSECOND


class FirstHalf(NamedTuple):
    """What the first half of a step leads to. ``heat`` and ``work`` are changes of the energy, eV."""

    positions: Tensor
    velocities: Tensor
    cell: Tensor | None
    heat: Tensor | None
    work: Tensor | None
    strain: Tensor | None


class SecondHalf(NamedTuple):
    """What the second half of a step leads to. ``heat`` and ``work`` are changes of the energy, eV."""

    velocities: Tensor
    heat: Tensor | None
    work: Tensor | None
    slope: Tensor | None


def measure_kinetic(state: State, velocities: Tensor) -> Tensor:
    """Kinetic energy, eV, shape ()."""
    return reference.measure_kinetic(velocities, state.masses)


class Integrator:
    """The two halves of a step of one ensemble.

    Parameters
    ----------
    settings : MDSettings
    state : State
        Gives sizes and masses; it is read by the halves and never written.
    """

    def __init__(self, settings: MDSettings, state: State) -> None:
        self.timestep = settings.timestep * FEMTOSECOND
        thermal = settings.ensemble != "nve"
        self.langevin = thermal and settings.thermostat == "langevin"
        self.rescales = thermal and settings.thermostat == "rescale"
        self.barostat: Barostat | None = (
            build_barostat(settings) if settings.ensemble == "npt" else None
        )
        self.decay = math.exp(-settings.timestep / settings.relaxation)
        self.n_free = state.n_free
        start, end = settings.temperature, settings.final_temperature
        self._thermal = BOLTZMANN_EV_PER_K * start
        self._rise = 0.0
        if end is not None and settings.n_steps > 0:
            self._rise = BOLTZMANN_EV_PER_K * (end - start) / settings.n_steps
        self._constant = torch.full_like(state.heat, self._thermal)
        self._seed, self._limit = settings.seed, settings.max_displacement
        self.random: RandomBlock | None = None
        if thermal:
            squares = state.n_free - 1 if self.rescales else 0
            n_noisy = state.n_atoms if self.langevin else 0
            self.random = RandomBlock(settings.seed, n_noisy, squares, state.positions.device)

    def plan_kernels(self, state: State) -> tuple[Motion, Schedule]:
        """What the kernels of :mod:`fastff.kernels.md_step` need, at constant volume."""
        thermostat = "langevin" if self.langevin else "rescale" if self.rescales else "none"
        motion = Motion(
            state.positions, state.velocities, state.inverse_masses, state.step, state.target, state.pending,
            state.failed, state.heat,
        )  # fmt: skip
        schedule = Schedule(
            self.timestep, self._limit, thermostat, self.decay, self._thermal, self._rise, self._seed,
            self.random.scalars if self.rescales and self.random is not None else None,
            self.random.start if self.rescales and self.random is not None else None,
        )  # fmt: skip
        return motion, schedule

    def find_thermal(self, step: Tensor) -> Tensor:
        """k_B T of the thermostat at a step, eV, shape ()."""
        if self._rise == 0.0:
            return self._constant
        return self._thermal + self._rise * step.double()

    def begin(self, state: State, forces: Tensor) -> FirstHalf:
        """Kick and drift, with noise and strain of the cell where the ensemble has them."""
        velocities = self._kick(state, forces)
        positions, cell, heat, work, strain = state.positions, None, None, None, None
        thermal = self.find_thermal(state.step)
        if self.barostat is not None:
            assert self.random is not None
            normals, _ = self.random.pick_scalars(state.step)
            strain = self.barostat.draw_strain(state, thermal, normals[1:4])
            work = 0.5 * (state.slope * strain).sum()
            cell, stretch, shrink = strain_cell(state.cell, strain)
            positions, velocities = positions @ stretch, velocities @ shrink
        if not self.langevin:
            moved = reference.drift(positions, velocities, self.timestep)
            return FirstHalf(moved, velocities, cell, heat, work, strain)
        assert self.random is not None
        half = reference.drift(positions, velocities, 0.5 * self.timestep)
        noise = self.random.pick_noise(state.step)
        noisy = reference.add_noise(velocities, state.inverse_masses, self.decay, thermal, noise)
        heat = measure_kinetic(state, noisy) - measure_kinetic(state, velocities)
        moved = reference.drift(half, noisy, 0.5 * self.timestep)
        return FirstHalf(moved, noisy, cell, heat, work, strain)

    def _kick(self, state: State, forces: Tensor) -> Tensor:
        return reference.kick(state.velocities, forces, state.inverse_masses, self.timestep)

    def finish(self, state: State, forces: Tensor, virial: Tensor) -> SecondHalf:
        """Kick with the new forces, and rescale where the thermostat does."""
        velocities = self._kick(state, forces)
        heat, work, slope = None, None, None
        if self.rescales:
            kinetic = measure_kinetic(state, velocities)
            factor = self._find_factor(kinetic, state.step)
            velocities = velocities * factor
            heat = kinetic * (factor * factor - 1.0)
        if self.barostat is not None:
            slope = self.barostat.measure_slope(state, velocities, virial)
            work = 0.5 * (slope * state.strain).sum()
        return SecondHalf(velocities, heat, work, slope)

    def _find_factor(self, kinetic: Tensor, step: Tensor) -> Tensor:
        """Factor of all velocities, from the exact solution of the thermostat's equation over one step."""
        assert self.random is not None
        normals, squares = self.random.pick_scalars(step)
        thermal = self.find_thermal(step)
        return reference.find_rescaling(kinetic, thermal, self.decay, normals[0], squares)
