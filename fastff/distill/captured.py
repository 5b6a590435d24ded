"""Losses and their backward pass replayed on a GPU, from kernels of torch or compiled for one batch shape.

Training a small student is bound by kernel launches. A CUDA graph removes what the host costs; torch.compile leaves
fewer and larger kernels, after some ten seconds a hop for every batch shape. Not here: the losses
(:mod:`fastff.distill.losses`).
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastff.distill.losses import BATCH_FIELDS, ResidualLosses
from fastff.kernels.replay import pause_collection

COMPILED_STEPS = 15_000
"""From so many steps on, compiling costs less than it saves."""

log = logging.getLogger(__name__)


class CapturedLosses:
    """Losses replayed from a CUDA graph for the first batch shape seen, evaluated eagerly for any other.

    Parameters
    ----------
    losses : ResidualLosses
    compiled : bool
        Whether torch.compile comes first. Where it fails, which is logged, the kernels of torch are recorded; so are
        they where there are Hessian-vector targets, whose second differentiation it does not know.
    """

    def __init__(self, losses: ResidualLosses, *, compiled: bool = False) -> None:
        self._losses = losses
        self.compiled = compiled
        self._captured: Any = None
        self._shapes: tuple[torch.Size, ...] = ()

    def __call__(self, *fields: Tensor) -> Tensor:
        """Losses of a batch given as by :func:`~fastff.distill.losses.pick_fields`."""
        if not fields[0].is_cuda:
            return self._losses(*fields)
        shapes = tuple(field.shape for field in fields)
        if self._captured is None:
            self._shapes = shapes
            self._captured = self._capture(fields)
        return self._captured(*fields) if shapes == self._shapes else self._losses(*fields)

    def _capture(self, fields: tuple[Tensor, ...]) -> Any:
        if self.compiled and len(fields) == len(BATCH_FIELDS):
            try:
                return record(compile_losses(self._losses, fields), fields)
            except (
                Exception
            ) as error:  # a compiler is absent, say: slower is better than not at all
                self.compiled = False
                reason = (str(error).strip().splitlines() or [""])[0]
                log.warning("training is not compiled: %s: %s", type(error).__name__, reason[:200])
        return record(copy.copy(self._losses), fields)


def record(losses: nn.Module, fields: tuple[Tensor, ...]) -> Any:
    """A CUDA graph of the losses and of their backward pass."""
    samples = tuple(field.clone() for field in fields)
    with pause_collection():
        return torch.cuda.make_graphed_callables(losses, samples, allow_unused_input=True)


def compile_losses(losses: ResidualLosses, fields: tuple[Tensor, ...]) -> Any:
    """Losses compiled for the shapes of a batch, called once forward and backward: what fails has failed then."""
    compiled: Any = torch.compile(copy.copy(losses), dynamic=False, fullgraph=True)
    parameters = [p for p in losses.parameters() if p.requires_grad]
    with quiet_compiler():
        found = compiled(*(field.clone() for field in fields)).sum()
        torch.autograd.grad(found, parameters, allow_unused=True)
    return compiled


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """What torch.compile says of its own work is nothing that a user could act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor|functorch)")
        yield
