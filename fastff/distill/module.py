"""The Lightning module that trains a student on labels.

Here: loss, optimiser, schedule, validation by the one accuracy definition. Not here: data, callbacks, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch_geometric.data import Batch

from fastff.distill.data import LabelStatistics, batch_to_graph, stack_voigt
from fastff.labels import Frame
from fastff.models import Prediction, Student
from fastff.neighbors import atoms_to_graph
from fastff.predict import split_prediction
from fastff.report.metrics import Accuracy, measure_accuracy


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, each of which is a squared relative error.

    Forces are compared in units of their root mean square, energies per atom in units of their spread, stress in
    units of its root mean square: the terms are the squares of one minus the accuracies they train. The energy weight ramps
    from ``energy_start`` to ``energy`` over the run.
    """

    forces: float = 1.0
    energy: float = 0.3
    energy_start: float = 0.03
    stress: float = 0.1


def compute_losses(
    prediction: Prediction, batch: Batch, statistics: LabelStatistics
) -> dict[str, Tensor]:
    """Force, energy and stress terms of a batch; missing stress labels are masked before arithmetic.

    Parameters
    ----------
    prediction : Prediction
    batch : torch_geometric.data.Batch
        With labels in float64.
    statistics : LabelStatistics

    Returns
    -------
    dict
        Scalars ``forces`` (Huber, quadratic up to an error of one root mean square), ``energy`` and ``stress``.
    """
    dtype = prediction.forces.dtype
    forces = functional.huber_loss(
        prediction.forces / statistics.force_rms, (batch.forces / statistics.force_rms).to(dtype)
    )
    n_atoms = torch.bincount(batch.batch, minlength=batch.num_graphs)
    per_atom = (prediction.energy - batch.energy) / (n_atoms * statistics.energy_spread)
    energy = functional.huber_loss(per_atom, torch.zeros_like(per_atom)).to(dtype)
    known = torch.isfinite(batch.stress).all(dim=1)
    stress = forces.new_zeros(())
    if statistics.stress_rms > 0.0 and bool(known.any()):
        difference = stack_voigt(prediction.stress)[known] - batch.stress[known].to(dtype)
        difference = difference / statistics.stress_rms
        stress = functional.huber_loss(difference, torch.zeros_like(difference))
    return {"forces": forces, "energy": energy, "stress": stress}


class DistillationModule(pl.LightningModule):
    """Trains a student on a teacher's energies, forces and stresses.

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
    ) -> None:
        super().__init__()
        self.student = student
        self.statistics = statistics
        self.validation_frames = validation
        self.n_steps = n_steps
        self.learning_rate = learning_rate
        self.loss_weights = weights or LossWeights()
        self.learning_curve: list[dict[str, float]] = []
        self._predicted: list[Any] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises
        ------
        FloatingPointError
            If the loss is not finite, naming the frames of the batch; the last checkpoint is untouched.
        """
        losses = compute_losses(self.student(batch_to_graph(batch)), batch, self.statistics)
        progress = min(self.global_step / max(self.n_steps, 1), 1.0)
        w = self.loss_weights
        energy_weight = w.energy_start + (w.energy - w.energy_start) * progress
        loss = (
            w.forces * losses["forces"]
            + energy_weight * losses["energy"]
            + w.stress * losses["stress"]
        )
        if self.global_step % 50 == 0 and not bool(torch.isfinite(loss)):
            raise FloatingPointError(
                f"the loss is {float(loss)} at step {self.global_step} "
                f"(frames {batch.frame_index.tolist()}); lower the learning rate or check these labels"
            )
        self.log("loss", loss, prog_bar=True, batch_size=batch.num_graphs)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of the previous validation."""
        self._predicted = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predict a batch of validation frames."""
        prediction = self.student(batch_to_graph(batch))
        start = len(self._predicted)
        frames = self.validation_frames[start : start + batch.num_graphs]
        graphs = [atoms_to_graph(f.atoms, 0.1) for f in frames]
        self._predicted.extend(split_prediction(prediction, graphs))

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy over all validation frames."""
        if len(self._predicted) != len(self.validation_frames):
            return  # Lightning's sanity check sees only the first batches
        accuracy = measure_frames(self.validation_frames, self._predicted)
        self.log("accuracy", accuracy.overall, prog_bar=True)
        self.log("force_accuracy", accuracy.force, prog_bar=True)
        if not self.trainer.sanity_checking:
            self.learning_curve.append(
                {
                    "step": self.global_step,
                    "accuracy": accuracy.overall,
                    "force_accuracy": accuracy.force,
                    "force_mae": accuracy.force_mae,
                }
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the learning curve with the checkpoint."""
        checkpoint["learning_curve"] = self.learning_curve

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the learning curve."""
        self.learning_curve = list(checkpoint["learning_curve"])

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a short warm-up and a cosine schedule that ends at a thousandth of the learning rate."""
        optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4
        )
        warmup = max(1, min(100, self.n_steps // 20))
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


def measure_frames(frames: list[Frame], predicted: list[Any]) -> Accuracy:
    """Accuracy of predictions against the labels of the same frames."""
    return measure_accuracy([f.labels for f in frames], predicted, [f.atoms for f in frames])
