"""The Lightning module that trains a student on labels.

Here: optimiser, schedule, validation by the one accuracy definition. Not here: the loss
(:mod:`fastff.distill.losses`), data, callbacks, files.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch_geometric.data import Batch

from fastff.distill.captured import CapturedLosses
from fastff.distill.data import LabelStatistics
from fastff.distill.losses import LossWeights, ResidualLosses, count_labels, pick_fields
from fastff.distill.ranks import count_ranks, find_rank, gather_from_ranks, sum_over_ranks
from fastff.distill.score import Score
from fastff.distill.soap import Soap
from fastff.errors import DataError
from fastff.gathering import gather_graph
from fastff.graph import Graph
from fastff.inference import split_chunks, split_prediction
from fastff.labels import Frame, Labels
from fastff.models import Student
from fastff.report.metrics import Accuracy, measure_accuracy

CHECK_INTERVAL = 50
"""Steps between looks at the losses on a GPU."""

VALIDATION_ATOMS = 4096
"""Atoms validated together."""


class DistillationModule(pl.LightningModule):
    """Trains a student on a teacher's energies, forces, stresses and Hessian-vector products.

    Parameters
    ----------
    student : Student
        Already calibrated.
    statistics : LabelStatistics
    validation : list of Frame
        Frames of the validation loader, in order.
    n_steps : int
        Length of the cosine schedule in optimiser steps.
    learning_rate : float
    weights : LossWeights
    conservative : bool
        See :class:`~fastff.distill.losses.ResidualLosses`.
    optimizer : str
        ``"soap"`` (:class:`~fastff.distill.soap.Soap`) or ``"adamw"``, to compare.
    compiled : bool or None
        Whether losses are compiled on a GPU; see :class:`~fastff.distill.captured.CapturedLosses`.
    """

    def __init__(
        self,
        student: Student,
        statistics: LabelStatistics,
        validation: list[Frame],
        *,
        n_steps: int,
        learning_rate: float,
        weights: LossWeights | None = None,
        conservative: bool = True,
        optimizer: Literal["soap", "adamw"] = "soap",
        compiled: bool | None = None,
    ) -> None:
        super().__init__()
        for parameter in student.parameters():
            parameter.requires_grad_(parameter.numel() > 0)  # messages of a last hop have none
        self.student = student
        self.statistics = statistics
        self.validation_frames = validation
        self.n_steps = n_steps
        self.learning_rate = learning_rate
        self.optimizer_name = optimizer
        self.loss_weights = weights or LossWeights()
        self.learning_curve: list[dict[str, float]] = []
        losses = ResidualLosses(student, statistics, conservative=conservative)
        self._losses = CapturedLosses(losses, n_steps, compiled=compiled)
        self._unseen: list[tuple[int, Tensor, Tensor]] = []
        self._validation_graphs: list[Graph] = []
        self._score: Score | None = None
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Time since this module was made, and that of the runs it continues."""
        return self._seconds_before + time.perf_counter() - self._started

    def training_step(self, batch: Batch | dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch; looked at every :data:`CHECK_INTERVAL` steps, so that a GPU is not waited for.

        Raises
        ------
        DataError
            If a loss was not finite, naming the frames of that batch; the last checkpoint is untouched.
        """
        fields = pick_fields(batch)
        losses = self._losses(*fields)
        if count_ranks() > 1:  # averaged over ranks, these are the losses of the whole batch
            counts = count_labels(fields)
            losses = losses * (counts * count_ranks() / sum_over_ranks(counts).clamp_min(1.0))
        progress = min(self.global_step / max(self.n_steps, 1), 1.0)
        weights = self.loss_weights.at(progress, len(losses))
        loss = sum(
            (w * term for w, term in zip(weights, losses, strict=True)), losses.new_zeros(())
        )
        self._unseen.append((self.global_step, loss.detach(), batch["frame_index"]))
        if len(self._unseen) >= (CHECK_INTERVAL if loss.is_cuda else 1):
            self._check_losses()
        return loss

    def _check_losses(self) -> None:
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        values = (
            sum_over_ranks(torch.stack([loss for _, loss, _ in unseen])) / count_ranks()
        ).tolist()
        for value, (step, _, frames) in zip(values, unseen, strict=True):
            if not math.isfinite(value):
                own = sorted(k for part in gather_from_ranks(frames.tolist()) for k in part)
                raise DataError(
                    f"the loss is {value} at step {step} (training frames {own}); lower --learning-rate "
                    "or check these labels; --resume continues from the last checkpoint"
                )
        self.log("loss", sum(values) / len(values), prog_bar=True, batch_size=1)

    def on_validation_start(self) -> None:
        """Never validate or keep weights that a loss out of bounds has spoilt."""
        self._check_losses()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accuracy and score over all validation frames, predicted as a user predicts, with the averaged weights."""
        predicted = self._predict_validation()
        accuracy = measure_frames(self.validation_frames, predicted)
        self._score = self._score or Score(self.validation_frames)
        score = self._score.measure(predicted)
        several = count_ranks() > 1
        self.log("score", score, batch_size=1, sync_dist=several)
        self.log("accuracy", accuracy.overall, prog_bar=True, batch_size=1, sync_dist=several)
        self.log("force_accuracy", accuracy.force or 0.0, batch_size=1, sync_dist=several)
        self.learning_curve.append(
            {
                "step": self.global_step,
                "score": score,
                "accuracy": accuracy.overall,
                "force_accuracy": accuracy.force or 0.0,
                "force_mae": accuracy.force_mae,
            }
        )

    def _predict_validation(self) -> list[Labels]:
        """As :func:`fastff.inference.predict`, with neighbors found once and kept; each rank predicts its part."""
        rank, n_ranks = find_rank(), count_ranks()
        if not self._validation_graphs:
            structures = [frame.atoms for frame in self.validation_frames[rank::n_ranks]]
            for chunk in split_chunks(structures, VALIDATION_ATOMS):
                graph = gather_graph(chunk, self.student.cutoff, self.device)
                self._validation_graphs.append(graph)
        predicted: list[Labels] = []
        for graph in self._validation_graphs:
            predicted += split_prediction(self.student(graph), graph)
        parts = gather_from_ranks(predicted)
        return [parts[k % n_ranks][k // n_ranks] for k in range(len(self.validation_frames))]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the learning curve, the time, the name of the optimiser and the inner limit with the checkpoint."""
        checkpoint["inner_limit"] = self.student.config.inner_limit
        checkpoint["optimizer"] = self.optimizer_name
        checkpoint["learning_curve"] = self.learning_curve
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the learning curve and the time.

        Raises
        ------
        DataError
            If the training was begun with another optimiser.
        """
        begun = checkpoint.get("optimizer", "adamw")  # the only one, before this was written down
        if begun != self.optimizer_name:
            raise DataError(
                f"this training was begun with the optimiser {begun} and cannot go on with {self.optimizer_name}; "
                "train again in a new folder"
            )
        self.adopt(checkpoint)
        self.learning_curve = list(checkpoint["learning_curve"])
        self._seconds_before = float(checkpoint.get("seconds", 0.0))

    def adopt(self, checkpoint: dict[str, Any]) -> None:
        """Let the student follow near distances as that of a checkpoint did: all, before it was written down.

        Raises
        ------
        DataError
            If the checkpoint is of a student of other sizes.
        """
        own = self.state_dict()
        for name, value in checkpoint["state_dict"].items():
            if name in own and own[name].shape != value.shape:
                raise DataError(
                    f"this training was begun with a student of other sizes ({name} had shape {tuple(value.shape)}, "
                    f"now {tuple(own[name].shape)}), by another version of fastff or with other settings; train again "
                    "in a new folder"
                )
        limit = checkpoint.get("inner_limit")
        self.student.config = replace(self.student.config, inner_limit=limit)

    def _build_optimizer(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        if self.optimizer_name == "soap":
            return Soap(parameters, lr=self.learning_rate)
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            fused=self.device.type == "cuda" or None,
        )

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser, a short warm-up and a cosine schedule that ends at a thousandth of the learning rate."""
        optimizer = self._build_optimizer()
        warmup = max(1, min(400, self.n_steps // 10))
        schedule = torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, warmup),
                torch.optim.lr_scheduler.CosineAnnealingLR(
                    optimizer, max(self.n_steps - warmup, 1), self.learning_rate * 1e-3
                ),
            ],
            [warmup],
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def measure_frames(frames: list[Frame], predicted: list[Labels]) -> Accuracy:
    """Accuracy of predictions against the labels of the same frames."""
    return measure_accuracy([f.labels for f in frames], predicted, [f.atoms for f in frames])
