"""What Lightning calls while a student trains.

Here: progress, averaged weights, early stopping. Not here: the order of a training (:mod:`fastff.distill.train`), the
loss (:mod:`fastff.distill.module`), signals (:mod:`fastff.distill.signals`), what Lightning says
(:mod:`fastff.distill.quiet`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, WeightAveraging
from torch import Tensor

from fastff.distill.module import DistillationModule
from fastff.distill.ranks import gather_from_ranks


@dataclass(frozen=True)
class TrainProgress:
    """State of a running training: steps done and planned, and the newest validation accuracy if there is one."""

    step: int
    n_steps: int
    accuracy: float | None


class StepReporter(Callback):
    """Passes the progress of a training on to whoever shows it."""

    def __init__(self, on_step: Callable[[TrainProgress], None]) -> None:
        self._on_step = on_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Report after every step."""
        assert isinstance(pl_module, DistillationModule)
        curve = pl_module.learning_curve
        accuracy = curve[-1]["accuracy"] if curve else None
        self._on_step(TrainProgress(trainer.global_step, pl_module.n_steps, accuracy))


FALL = 0.3
"""Loss of accuracy, in two validations one after the other, after which a training has fallen apart."""
LEARNED = 0.5
"""Accuracy of a student that has something to lose."""
SETTLED = 200
"""Steps within which accuracies jump about: no training has fallen apart before."""


class LatePatience(EarlyStopping):
    """Early stopping by the score, which loses patience only after ``begin`` optimiser steps.

    A training that reaches the accuracy ``stop_at``, or that falls apart, ends at once; the former leaves a checkpoint
    at ``path``, since weights of a better score may be less accurate.

    Attributes
    ----------
    reached : bool
        Whether ``stop_at`` was reached.
    fall : tuple of float or None
        Best and newest accuracy of a training that has fallen apart.
    """

    def __init__(
        self, begin: int, stop_at: float | None = None, path: Path | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            monitor="score", mode="max", min_delta=1e-4, check_on_train_epoch_end=False, **kwargs
        )
        self.patience: int
        self.reached = False
        self.fall: tuple[float, float] | None = None
        self._begin, self._stop_at, self._path, self._n_below = begin, stop_at, path, 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge the newest validation."""
        assert isinstance(pl_module, DistillationModule)
        patience = self.patience
        if trainer.global_step < self._begin:
            self.patience, self.wait_count = sys.maxsize, 0
        super().on_validation_end(trainer, pl_module)
        self.patience = patience
        # not from Lightning's metrics, which are in single precision
        curve = [row["accuracy"] for row in pl_module.learning_curve]
        best, newest = gather_from_ranks((max(curve), curve[-1]))[0]  # one judges for all
        self.reached = self._stop_at is not None and newest >= self._stop_at
        if self.reached and self._path is not None:
            trainer.save_checkpoint(self._path, weights_only=False)
        apart = trainer.global_step >= SETTLED and self.falls(best, newest)
        if apart or self.reached:
            trainer.should_stop = True

    def falls(self, best: float, newest: float) -> bool:
        """Whether accuracies as low as this one, and the one before it, are the end."""
        below = best > LEARNED and not newest > best - FALL
        self._n_below = self._n_below + 1 if below else 0
        if self._n_below == 2:
            self.fall = best, newest
        return self.fall is not None


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights, kept on the device that trains, counted on the CPU.

    A counter on a GPU would be waited for at every step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self._decay = decay
        self._latest_update_step: int

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the averaged copy."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Average after every optimiser step; buffers do not change in training."""
        averaged = self._average_model
        if averaged is None or trainer.global_step <= self._latest_update_step:
            return
        own, current = list(averaged.module.parameters()), list(pl_module.parameters())
        if averaged.n_averaged == 0:
            with torch.no_grad():
                torch._foreach_copy_(own, current)
        else:
            average_weights(self._decay, own, current, averaged.n_averaged)
        averaged.n_averaged += 1
        self._latest_update_step = trainer.global_step


@torch.no_grad()
def average_weights(
    decay: float, averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int
) -> None:
    """Exponential moving average in place, with a decay that grows from 0.1 so that early weights fade."""
    n = int(n_averaged)
    torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))
