"""The Lightning module that trains a student on labels.

Here: loss, optimiser, schedule, validation by the one accuracy definition. Not here: data, callbacks, files.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Batch

from fastff.distill.data import LabelStatistics, stack_voigt
from fastff.errors import DataError
from fastff.graph import Graph, batch_graphs
from fastff.labels import Frame, Labels
from fastff.models import Student
from fastff.neighbors import atoms_to_graph
from fastff.predict import split_chunks, split_prediction
from fastff.report.metrics import Accuracy, measure_accuracy


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, each of which is a squared relative error.

    Forces are compared in units of their root mean square, energies per atom in units of their spread, stress in
    units of its root mean square: the terms are the squares of one minus the accuracies they train. The energy
    weight ramps from ``energy_start`` to ``energy`` over the run.
    """

    forces: float = 1.0
    energy: float = 0.3
    energy_start: float = 0.03
    stress: float = 0.1


BATCH_FIELDS = (
    "vectors",
    "senders",
    "species",
    "batch",
    "volume",
    "n_atoms",
    "target_energy",
    "target_forces",
    "target_stress",
)
"""What the loss reads of a batch, in order."""


CHECK_INTERVAL = 50
"""Steps between looks at the losses on a GPU."""

VALIDATION_ATOMS = 4096
"""Atoms validated together."""


class ResidualLosses(nn.Module):
    """Force, energy and stress terms of a batch; fixed shapes, no synchronisation, so that a GPU can replay it.

    ``n_atoms`` (n_systems,) counts the atoms of each frame without padding ones, which feel and exert no force. Each
    term is a Huber loss of the error over its scale in ``statistics``, quadratic up to one.
    """

    def __init__(self, student: Student, statistics: LabelStatistics) -> None:
        super().__init__()
        self.student = student
        scale = float(student.energy_scale)
        self.force_unit = statistics.force_rms / scale
        self.energy_unit = statistics.energy_spread / scale
        self.stress_unit = max(statistics.stress_rms, 1e-12) / scale

    def forward(
        self,
        vectors: Tensor,
        senders: Tensor,
        species: Tensor,
        batch: Tensor,
        volume: Tensor,
        n_atoms: Tensor,
        target_energy: Tensor,
        target_forces: Tensor,
        target_stress: Tensor,
    ) -> Tensor:
        """Losses (3,): forces, energy per atom, stress; missing stress labels are masked before arithmetic."""
        energies, gradient = self.student.evaluate_dense(vectors, senders, species)
        n_systems = target_energy.shape[0]
        forces = gradient.sum(dim=1).index_add(0, senders.flatten(), -gradient.flatten(0, 1))
        virial = torch.einsum("nsa,nsb->nab", vectors, gradient)
        virial = virial.new_zeros(n_systems, 3, 3).index_add(0, batch, virial)
        stress = stack_voigt(0.5 * (virial + virial.transpose(1, 2)) / volume[:, None, None])
        energy = energies.new_zeros(n_systems).index_add(0, batch, energies)
        known = torch.isfinite(target_stress)
        wanted = torch.where(known, target_stress, stress.detach())
        return torch.stack(
            [
                relative_huber(forces - target_forces, self.force_unit).sum() / (3 * n_atoms.sum()),
                relative_huber((energy - target_energy) / n_atoms, self.energy_unit).mean(),
                relative_huber(stress - wanted, self.stress_unit).sum() / known.sum().clamp_min(1),
            ]
        )


def relative_huber(error: Tensor, unit: float) -> Tensor:
    """Huber loss of ``error / unit``, quadratic up to one, elementwise."""
    return functional.huber_loss(error / unit, torch.zeros_like(error), reduction="none")


class CapturedLosses:
    """Losses replayed from a CUDA graph for the first batch shape seen, evaluated eagerly for any other.

    Training a small student is bound by kernel launches: replaying forward and backward removes them.
    """

    def __init__(self, losses: ResidualLosses) -> None:
        self._losses = losses
        self._captured: Any = None
        self._shapes: tuple[torch.Size, ...] = ()

    def __call__(self, *fields: Tensor) -> Tensor:
        """Losses (3,) of a batch given as :data:`BATCH_FIELDS`."""
        if not fields[0].is_cuda:
            return self._losses(*fields)
        shapes = tuple(field.shape for field in fields)
        if self._captured is None:
            self._shapes = shapes
            replica = copy.copy(self._losses)
            samples = tuple(field.clone() for field in fields)
            self._captured = torch.cuda.make_graphed_callables(
                replica, samples, allow_unused_input=True
            )
        return self._captured(*fields) if shapes == self._shapes else self._losses(*fields)


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
        self._losses = CapturedLosses(ResidualLosses(student, statistics))
        self._unseen: list[tuple[int, Tensor, Tensor]] = []
        self._validation_graphs: list[tuple[list[Graph], Graph]] = []
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
        losses = self._losses(*(batch[name] for name in BATCH_FIELDS))
        progress = min(self.global_step / max(self.n_steps, 1), 1.0)
        w = self.loss_weights
        energy_weight = w.energy_start + (w.energy - w.energy_start) * progress
        loss = w.forces * losses[0] + energy_weight * losses[1] + w.stress * losses[2]
        self._unseen.append((self.global_step, loss.detach(), batch["frame_index"]))
        if len(self._unseen) >= (CHECK_INTERVAL if loss.is_cuda else 1):
            self._check_losses()
        return loss

    def _check_losses(self) -> None:
        unseen, self._unseen = self._unseen, []
        if not unseen:
            return
        values = torch.stack([loss for _, loss, _ in unseen]).tolist()
        for value, (step, _, frames) in zip(values, unseen, strict=True):
            if not math.isfinite(value):
                raise DataError(
                    f"the loss is {value} at step {step} (training frames {frames.tolist()}); lower --learning-rate "
                    "or check these labels; --resume continues from the last checkpoint"
                )
        self.log("loss", sum(values) / len(values), prog_bar=True, batch_size=1)

    def on_validation_start(self) -> None:
        """Never validate or keep weights that a loss out of bounds has spoilt."""
        self._check_losses()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure the accuracy over all validation frames, predicted as a user predicts, with the averaged weights."""
        accuracy = measure_frames(self.validation_frames, self._predict_validation())
        self.log("accuracy", accuracy.overall, prog_bar=True, batch_size=1)
        self.log("force_accuracy", accuracy.force or 0.0, prog_bar=True, batch_size=1)
        self.learning_curve.append(
            {
                "step": self.global_step,
                "accuracy": accuracy.overall,
                "force_accuracy": accuracy.force or 0.0,
                "force_mae": accuracy.force_mae,
            }
        )

    def _predict_validation(self) -> list[Labels]:
        """As :func:`fastff.predict.predict`, with neighbors found once and kept."""
        if not self._validation_graphs:
            structures = [frame.atoms for frame in self.validation_frames]
            for chunk in split_chunks(structures, VALIDATION_ATOMS):
                graphs = [atoms_to_graph(atoms, self.student.cutoff) for atoms in chunk]
                self._validation_graphs.append((graphs, batch_graphs(graphs).to(self.device)))
        predicted: list[Labels] = []
        for graphs, batch in self._validation_graphs:
            predicted += split_prediction(self.student(batch), graphs)
        return predicted

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the learning curve and the time with the checkpoint."""
        checkpoint["learning_curve"] = self.learning_curve
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the learning curve and the time."""
        self.learning_curve = list(checkpoint["learning_curve"])
        self._seconds_before = float(checkpoint.get("seconds", 0.0))

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with a short warm-up and a cosine schedule that ends at a thousandth of the learning rate."""
        optimizer = torch.optim.AdamW(
            self.student.parameters(),
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            fused=self.device.type == "cuda" or None,
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


def measure_frames(frames: list[Frame], predicted: list[Labels]) -> Accuracy:
    """Accuracy of predictions against the labels of the same frames."""
    return measure_accuracy([f.labels for f in frames], predicted, [f.atoms for f in frames])
