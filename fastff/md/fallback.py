"""A potential that goes on in torch where a Triton kernel does not compile.

Here: :class:`FallbackPotential`. Not here: the kernels' potential (:mod:`fastff.resident`), that in torch
(:mod:`fastff.md.torch_potential`), the rule (:func:`fastff.kernels.dispatch.attempt`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.kernels import dispatch
from fastff.kernels.moment_potential.op import OP
from fastff.md.torch_potential import StudentPotential
from fastff.resident import ResidentPotential


class FallbackPotential:
    """The fused kernels as :class:`~fastff.md.protocol.DevicePotential`; torch, once one of them does not compile.

    Parameters
    ----------
    kernels : ResidentPotential

    Notes
    -----
    Kernels are compiled when they are first launched, and again for arguments of another kind: a failure may come in
    the middle of a run. There is one warning, :func:`fastff.kernels.explain` tells, and torch makes a list of its own
    at the present positions. From then on ``capturable`` is False. The tensors of the results stay the same ones. Where
    Triton is forced, the call raises a :class:`~fastff.kernels.BackendError` instead.
    """

    def __init__(self, kernels: ResidentPotential) -> None:
        self.kernels = kernels
        self.student, self.skin, self.device = kernels.student, kernels.skin, kernels.device
        self.stale = kernels.stale
        self._torch: StudentPotential | None = None
        self._point()

    def _point(self) -> None:
        kernels = self.kernels
        self.energy, self.forces, self.virial = kernels.energy, kernels.forces, kernels.virial

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold ``check`` and ``compute``."""
        return self._torch is None and self.kernels.capturable

    @property
    def n_builds(self) -> int:
        """Lists built since the potential was made."""
        return self.kernels.n_builds + (0 if self._torch is None else self._torch.n_builds)

    def attach(self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor) -> None:
        """Bind to the tensors of a simulation and build a list; see :class:`~fastff.resident.ResidentPotential`."""
        self._bound = positions, numbers, cell, pbc
        self._torch = None
        dispatch.run(OP, self.device, self._attach_kernels, self._make_torch)

    def _attach_kernels(self) -> None:
        self.kernels.attach(*self._bound)
        self.kernels.compute()  # which compiles nearly all, before anyone asks whether graphs can hold it
        self._point()

    def check(self) -> None:
        """Set ``stale`` if the list may miss a pair within the cut-off."""
        if self._torch is None:
            dispatch.attempt(OP, self.kernels.check, self._make_torch)
        else:
            self._torch.check()
            self.stale.copy_(self._torch.stale)

    def compute(self) -> None:
        """Update energy, forces and virial from the current positions and cell."""
        if self._torch is None:
            dispatch.attempt(OP, self.kernels.compute, self._make_torch)
        else:
            self._compute_torch(self._torch)

    def rebuild(self) -> bool:
        """Build the list from the current positions and cell and clear ``stale``; whether graphs are void."""
        if self._torch is None:
            return dispatch.attempt(OP, self.kernels.rebuild, self._make_torch)
        self.stale.zero_()
        return self._torch.rebuild()

    def measure_closest(self, limit: float) -> Tensor:
        """Least squared distance of a pair nearer than ``limit`` Å at the last evaluation, Å^2, else infinite."""
        if self._torch is None:
            return dispatch.attempt(
                OP, lambda: self.kernels.measure_closest(limit), lambda: self._measure_torch(limit)
            )
        return self._measure_torch(limit)

    def _make_torch(self) -> bool:
        """Let torch take over: a list of its own, and results, at the present positions; graphs are void."""
        potential = StudentPotential(self.student, self.skin)
        potential.attach(*self._bound)
        if len(self.forces) != len(potential.forces):  # the kernels were never bound
            self.forces = torch.zeros_like(potential.forces, dtype=torch.float64)
        self._torch = potential
        self.stale.zero_()
        self._compute_torch(potential)
        return True

    def _compute_torch(self, potential: StudentPotential) -> None:
        potential.compute()
        self.energy.copy_(potential.energy)
        self.forces.copy_(potential.forces)
        self.virial.copy_(potential.virial)

    def _measure_torch(self, limit: float) -> Tensor:
        if self._torch is None:
            self._make_torch()
        assert self._torch is not None
        return self._torch.measure_closest(limit)
