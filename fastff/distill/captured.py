"""Losses and their backward pass replayed on a GPU, from kernels of torch or compiled for one batch shape.

Training a small student is bound by kernel launches. A CUDA graph removes what the host costs; torch.compile leaves
fewer and larger kernels, after some fifteen seconds a hop for every batch shape. Not here: the losses
(:mod:`fastff.distill.losses`).
"""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fastff.distill.losses import BATCH_FIELDS, ResidualLosses
from fastff.kernels.dispatch import selected_backend
from fastff.kernels.replay import pause_collection

COMPILED_STEPS = 12_000
"""From so many steps on trainings are compiled.

On an H200 that pays from 5,000 (4,096 atoms) to 15,000 steps (1,024 atoms) of three hops of 32 channels, and from
13,000 of ``m2-l`` with 1,024 atoms; see docs/distillation.md.
"""
MOST_VARIANTS = 64
"""Shapes and students that a process may compile for."""

log = logging.getLogger(__name__)

_compiled: set[tuple[Any, ...]] = set()
"""Students and batch shapes that this process has compiled for: their code serves other trainings too."""


class CapturedLosses:
    """Losses replayed from a CUDA graph for the first batch shape seen twice in a row, evaluated eagerly for others.

    Parameters
    ----------
    losses : ResidualLosses
    n_steps : int
        How often they will be called, about: from :data:`COMPILED_STEPS` on, torch.compile comes first, and with fewer
        where this process has code for such a student and batch already. Where it fails, which is logged, the kernels
        of torch are recorded; so are they where there are Hessian-vector targets, whose second differentiation it does
        not know.
    compiled : bool or None
        Compile whatever the steps, or never. Not where there are Hessian-vector targets.
    """

    def __init__(
        self, losses: ResidualLosses, n_steps: int = 0, *, compiled: bool | None = None
    ) -> None:
        self._losses = losses
        self._n_steps, self._wanted = n_steps, compiled
        self._captured: Any = None
        self._shapes: tuple[torch.Size, ...] = ()
        self.compiled = False

    def __call__(self, *fields: Tensor) -> Tensor:
        """Losses of a batch given as by :func:`~fastff.distill.losses.pick_fields`."""
        if not fields[0].is_cuda:
            return self._losses(*fields)
        shapes = tuple(field.shape for field in fields)
        if shapes != self._shapes:
            if self._captured is None:
                self._shapes = shapes
            return self._losses(*fields)
        if self._captured is None:
            self._captured = self._capture(fields)
        return self._captured(*fields)

    def _capture(self, fields: tuple[Tensor, ...]) -> Any:
        losses = self._losses.to(fields[0].device)
        if self._pays(fields):
            try:
                graph = record(compile_losses(losses, fields), fields)
            except Exception as error:  # no compiler, say: slower is better than not at all
                reason = (str(error).strip().splitlines() or [""])[0]
                log.warning("training is not compiled: %s: %s", type(error).__name__, reason[:200])
            else:
                self.compiled = True
                _compiled.add(self._name_code(fields))
                return graph
        return record(copy.copy(losses), fields)

    def _pays(self, fields: tuple[Tensor, ...]) -> bool:
        if len(fields) > len(BATCH_FIELDS):
            return False
        if self._wanted is not None:
            return self._wanted
        return self._n_steps >= COMPILED_STEPS or self._name_code(fields) in _compiled

    def _name_code(self, fields: tuple[Tensor, ...]) -> tuple[Any, ...]:
        shapes = (field.shape for field in fields)
        losses, (backend, _) = self._losses, selected_backend()
        return (losses.student.config, losses.conservative, backend, fields[0].device, *shapes)


def record(losses: nn.Module, fields: tuple[Tensor, ...]) -> Any:
    """A CUDA graph of the losses and of their backward pass."""
    samples = tuple(field.clone() for field in fields)
    with pause_collection():
        return torch.cuda.make_graphed_callables(losses, samples, allow_unused_input=True)


def compile_losses(losses: ResidualLosses, fields: tuple[Tensor, ...]) -> Any:
    """Losses compiled for the shapes of a batch, called once forward and backward: what fails has failed then."""
    from torch._dynamo import config  # takes a second to import

    compiled: Any = torch.compile(copy.copy(losses), dynamic=False, fullgraph=True)
    parameters = [p for p in losses.parameters() if p.requires_grad]
    with warnings.catch_warnings(), config.patch(recompile_limit=MOST_VARIANTS):
        # of the compiler's own work, nothing that a user could act on
        warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor|functorch)")
        found = compiled(*(field.clone() for field in fields)).sum()
        torch.autograd.grad(found, parameters, allow_unused=True)
    return compiled
