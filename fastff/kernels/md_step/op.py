"""Half steps of molecular dynamics as launches over tensors that stay where they are.

Here: :class:`Motion` and :class:`Schedule`, what moves and how, and :class:`StepKernels`, which takes half steps
without waiting for the device. Not here: kernels, the definition (``reference.py``), the same halves in torch
(:mod:`fastff.md.engine`, which chooses).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastff.kernels import dispatch, tuning

OP = dispatch.register(dispatch.Op("md_step", derivative_order=0, deterministic=True))


@dataclass(frozen=True)
class Motion:
    """What moves, and the flags of its run; all on one device, changed in place.

    Attributes
    ----------
    positions, velocities : (n_atoms, 3) float64 tensors
    inverse_masses : (n_atoms, 1) float64 tensor
        Zero for fixed atoms.
    step, target : () int64 tensors
        Steps done, and the step at which everything stands still.
    pending, failed : () bool tensors
        The first half of a step is done and the second is not; nothing may move any more.
    heat : () float64 tensor
        What the thermostat has put in.
    """

    positions: Tensor
    velocities: Tensor
    inverse_masses: Tensor
    step: Tensor
    target: Tensor
    pending: Tensor
    failed: Tensor
    heat: Tensor


@dataclass(frozen=True)
class Schedule:
    """How it moves, in units where ``forces * inverse_masses * timestep`` is a velocity.

    Attributes
    ----------
    timestep : float
    limit : float
        The largest a coordinate may change in a step.
    thermostat : {"none", "langevin", "rescale"}
    decay : float
        exp(-timestep / relaxation).
    thermal, rise : float
        k_B T of the thermostat at step 0, and what it gains in a step.
    seed : int
        In [0, 2^64), of the noise.
    scalars, start : tensors, optional
        Random numbers (length, 5) float64 of the steps from ``start`` () int64, for rescaling.
    """

    timestep: float
    limit: float
    thermostat: str = "none"
    decay: float = 1.0
    thermal: float = 0.0
    rise: float = 0.0
    seed: int = 0
    scalars: Tensor | None = None
    start: Tensor | None = None


class StepKernels:
    """Steps of NVE and NVT dynamics: velocity Verlet, BAOAB, canonical velocity rescaling.

    Parameters
    ----------
    motion : Motion
    schedule : Schedule

    Notes
    -----
    A step is :meth:`begin`, an evaluation of the forces, :meth:`finish`. A first half is taken if the run is going and
    none is pending; a second half if a first one is done, the list is not stale and the energy is finite. A first half
    that moves an atom too far, or anywhere but to a number, makes the run fail; :meth:`restore` takes it back. The same
    input gives the same bits: sums are taken in a fixed order, and noise depends on seed, step and atom alone.
    """

    def __init__(self, motion: Motion, schedule: Schedule) -> None:
        from fastff.kernels.md_step import kernels

        self.motion, self.schedule = motion, schedule
        device = motion.positions.device
        self._device, self._n_atoms = device, motion.positions.shape[0]
        numbers = [0.0] * kernels.N_CONSTANTS
        numbers[:5] = [
            schedule.timestep, schedule.limit, schedule.decay, schedule.thermal, schedule.rise,
        ]  # fmt: skip
        self._constants = torch.tensor(numbers, dtype=torch.float64, device=device)
        seed = schedule.seed - 2**64 if schedule.seed >= 2**63 else schedule.seed
        self._seed = torch.tensor([seed], dtype=torch.int64, device=device)
        self._pending = motion.pending.view(torch.uint8)
        self._failed = motion.failed.view(torch.uint8)
        self._unsound = torch.zeros(1, dtype=torch.int32, device=device)
        self._factor = torch.ones(1, dtype=torch.float64, device=device)
        self._old = motion.positions.clone(), motion.velocities.clone()
        self._begin_arguments = self._configure(kernels.BEGIN_SPACE)
        self._finish_arguments = self._configure(kernels.FINISH_SPACE)
        self._n_begin = -(-self._n_atoms // self._begin_arguments["BLOCK"])
        self._n_finish = -(-self._n_atoms // self._finish_arguments["BLOCK"])
        size = max(self._n_begin, self._n_finish, 1)
        self._partials = torch.zeros(size, 8, dtype=torch.float64, device=device)
        self._langevin = schedule.thermostat == "langevin"
        self._rescales = schedule.thermostat == "rescale"

    def _configure(self, space: tuning.LaunchSpace) -> dict[str, Any]:
        return tuning.lookup(space, tuning.make_key(torch.float64), self._device).to_arguments()

    def begin(self, forces: Tensor) -> None:
        """Take the first half of a step, if one may begin.

        Parameters
        ----------
        forces : (n_atoms, 3) float32 or float64 tensor
            At the present positions.
        """
        from fastff.kernels.md_step.kernels import begin_kernel

        motion = self.motion
        with dispatch.on_device(self._device):
            begin_kernel[(self._n_begin,)](
                motion.positions,
                motion.velocities,
                forces,
                motion.inverse_masses,
                self._constants,
                self._seed,
                motion.step,
                motion.target,
                self._pending,
                self._failed,
                self._unsound,
                *self._old,
                self._partials,
                self._n_atoms,
                LANGEVIN=self._langevin,
                **self._begin_arguments,
            )

    def finish(self, forces: Tensor, energy: Tensor, stale: Tensor) -> None:
        """Take the second half, if it may be taken, and bring flags and counters up to date.

        Parameters
        ----------
        forces : (n_atoms, 3) float32 or float64 tensor
            At the positions that the first half has led to.
        energy : () float64 tensor
        stale : () int32 tensor
            Not zero if the forces may lack a pair.
        """
        from fastff.kernels.md_step import kernels

        motion, schedule = self.motion, self.schedule
        flags = (
            motion.step,
            motion.target,
            self._pending,
            self._failed,
            self._unsound,
            stale,
            energy,
        )
        with dispatch.on_device(self._device):
            kernels.finish_kernel[(self._n_finish,)](
                motion.velocities,
                forces,
                motion.inverse_masses,
                self._constants,
                *flags,
                self._partials,
                self._n_atoms,
                RESCALE=self._rescales,
                **self._finish_arguments,
            )
            scalars = self._constants if schedule.scalars is None else schedule.scalars
            kernels.settle_kernel[(1,)](
                self._constants,
                *flags,
                self._partials,
                motion.heat,
                self._factor,
                scalars,
                motion.step if schedule.start is None else schedule.start,
                self._n_begin,
                self._n_finish,
                scalars.shape[0],
                LANGEVIN=self._langevin,
                RESCALE=self._rescales,
                **self._configure(kernels.SETTLE_SPACE),
            )
            if self._rescales:
                scaling = self._configure(kernels.SCALE_SPACE)
                n_values = 3 * self._n_atoms
                kernels.scale_kernel[(-(-n_values // scaling["BLOCK"]),)](
                    motion.velocities, self._factor, n_values, **scaling
                )

    def restore(self) -> None:
        """Take back a first half that has made the run fail."""
        self.motion.positions.copy_(self._old[0])
        self.motion.velocities.copy_(self._old[1])
