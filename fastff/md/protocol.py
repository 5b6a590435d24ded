"""What molecular dynamics asks of a potential that lives on a device.

Here: :class:`DevicePotential`. Not here: potentials, integrators.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class DevicePotential(Protocol):
    """Energy, forces and virial of one system, updated in place on the device.

    Attributes
    ----------
    device : torch.device
    capturable : bool
        Whether :meth:`check` and :meth:`compute` never wait for the device, so that a CUDA graph can hold them.
    energy : () float64 tensor, eV
    forces : (n_atoms, 3) float32 or float64 tensor, eV/Å
    virial : (3, 3) float64 tensor, eV
        ``sum v (dE/dv)^T`` over edges, symmetric: stress times volume, positive under tension.
    stale : () tensor
        Not zero if the neighbor list may miss a pair within the cut-off.

    Notes
    -----
    :meth:`check` may run beside :meth:`compute`: they must share nothing that either writes. The four tensors keep
    their addresses until :meth:`attach` is called or :meth:`rebuild` returns True. Results are a function of the
    positions and cell at the last (re)build and of the current ones, and of nothing else: a run restarted from both
    gives the same bits. A potential may also have ``measure_closest(limit)``, see
    :meth:`fastff.resident.ResidentPotential.measure_closest`: dynamics then looks for close contacts wherever it
    records a row, otherwise in frames alone.
    """

    @property
    def device(self) -> torch.device:
        """Where everything lives."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold ``check`` and ``compute``."""

    @property
    def energy(self) -> Tensor:
        """Energy, eV, float64, shape ()."""

    @property
    def forces(self) -> Tensor:
        """Forces, eV/Å, shape (n_atoms, 3)."""

    @property
    def virial(self) -> Tensor:
        """Virial, eV, float64, shape (3, 3)."""

    @property
    def stale(self) -> Tensor:
        """Flag of the neighbor list, shape ()."""

    def attach(self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor) -> None:
        """Bind to the tensors of a simulation, which changes them in place, and build a list. May synchronise.

        Parameters
        ----------
        positions : (n_atoms, 3) float64 tensor, Å
            Not wrapped.
        numbers : (n_atoms,) int64 tensor
        cell : (3, 3) float64 tensor, Å
            Rows are cell vectors; rows of directions that are not periodic count for nothing.
        pbc : (3,) bool tensor
        """

    def compute(self) -> None:
        """Update energy, forces and virial from the current positions and cell."""

    def check(self) -> None:
        """Write ``stale`` from the current positions and cell."""

    def rebuild(self) -> bool:
        """Build the list from the current positions and cell and clear ``stale``; True if tensors have moved."""
