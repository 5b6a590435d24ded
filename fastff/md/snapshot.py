"""A state on its way to the host.

Here: :class:`Snapshot`, taken without waiting for the device. Not here: files.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastff.md.engine import Engine

FRAME_FIELDS = ("positions", "velocities", "forces", "cell", "energy", "virial")
RESTART_FIELDS = (
    "positions", "velocities", "cell", "heat", "work", "slope", "list_positions", "list_cell",
)  # fmt: skip


class Snapshot:
    """Copies of some tensors, in pinned memory if they come from a GPU.

    Parameters
    ----------
    step : int
    tensors : mapping of str to Tensor
        Copied at once on the device; the transfer runs on while the simulation does.
    """

    def __init__(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        self.step = step
        self._event: torch.cuda.Event | None = None
        self._host: dict[str, Tensor] = {}
        self._device: list[Tensor] = []
        for name, value in tensors.items():
            if not value.is_cuda:
                self._host[name] = value.clone()
                continue
            copy = value.clone()
            self._device.append(copy)
            host = torch.empty(copy.shape, dtype=copy.dtype, pin_memory=True)
            self._host[name] = host.copy_(copy, non_blocking=True)
        if self._device:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> dict[str, np.ndarray]:
        """The arrays; waits for the transfer."""
        if self._event is not None:
            self._event.synchronize()
            self._event, self._device = None, []
        return {name: value.numpy() for name, value in self._host.items()}


def take_frame(engine: Engine) -> Snapshot:
    """Everything that a frame of a trajectory shows."""
    state, potential = engine.state, engine.potential
    values = (
        state.positions, state.velocities, potential.forces, state.cell, potential.energy, potential.virial,
    )  # fmt: skip
    return Snapshot(engine.step, dict(zip(FRAME_FIELDS, values, strict=True)))


def take_restart(engine: Engine) -> Snapshot:
    """Everything from which a run goes on as if it had never stopped."""
    state = engine.state
    values = (
        state.positions, state.velocities, state.cell, state.heat, state.work, state.slope,
        engine.list_positions, engine.list_cell,
    )  # fmt: skip
    return Snapshot(engine.step, dict(zip(RESTART_FIELDS, values, strict=True)))
