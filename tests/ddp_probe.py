"""One of several processes that train together, started by torchrun; leaves what it saw. Not here: any test.

Run as ``ddp_probe.py FOLDER DEVICES OPTIMIZER-PRECISION ...``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from emt_frames import label_by_emt, make_alloys, make_mixed

from fastff.distill import checkpoints, train
from fastff.distill.callbacks import AveragedWeights
from fastff.distill.module import DistillationModule
from fastff.distill.train import TrainSettings

SETTINGS = {"cutoff": 4.0, "batch_atoms": 14, "n_validations": 6, "device": "cpu", "patience": 1}
SETTINGS |= {
    "n_steps": 40,
    "architecture": "m2",
    "learning_rate": 2e-3,
    "stop_at": 0.05,
    "optimizer": "adamw",
}


def hash_parameters(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for value in module.parameters():
        digest.update(value.detach().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def students_in(precision: str) -> Iterator[None]:
    """Students of ``float64`` instead, for what hangs on rounding."""
    prepare = train.prepare_student

    def prepare_other(*arguments: Any) -> Any:
        student, statistics = prepare(*arguments)
        return student.to(getattr(torch, precision)), statistics

    train.prepare_student = prepare_other
    try:
        yield
    finally:
        train.prepare_student = prepare


def train_watched(out: Path, devices: int, optimizer: str, precision: str) -> None:
    """One training, and what it read, wrote and made."""
    seen: dict[str, Any] = {"frames": [], "written": [], "averages": []}
    step, write, end = (
        DistillationModule.training_step,
        checkpoints.write_atomically,
        AveragedWeights.on_train_end,
    )

    def watch_step(self: Any, batch: Any, index: int) -> torch.Tensor:
        seen["frames"].append(batch["frame_index"].tolist())
        return step(self, batch, index)

    def watch_write(path: Path, payload: bytes) -> None:
        seen["written"].append(path.name)
        write(path, payload)

    def watch_end(self: Any, trainer: Any, module: Any) -> None:
        seen["averages"].append(hash_parameters(self._average_model))
        seen["rank"], seen["step"] = trainer.global_rank, trainer.global_step
        end(self, trainer, module)

    settings = TrainSettings(**{**SETTINGS, "devices": devices, "optimizer": optimizer})  # type: ignore[arg-type]
    validation = label_by_emt(make_alloys(5, seed=9))
    with (
        students_in(precision),
        patch.object(DistillationModule, "training_step", watch_step),
        patch.object(checkpoints, "write_atomically", watch_write),
        patch.object(AveragedWeights, "on_train_end", watch_end),
    ):
        result = train.train_student(make_mixed(), validation, settings, out)
    torch.save(result.student.state_dict(), out / f"student-{seen['rank']}.pt")
    seen |= {
        "student": hash_parameters(result.student),
        "curve": result.learning_curve,
        "stopped": result.stopped,
    }
    (out / f"seen-{seen['rank']}.json").write_text(json.dumps(seen))


def main(out: Path, devices: int, *trainings: str) -> None:
    """Carry out trainings, each named by its optimiser and precision, in a folder of that name."""
    torch.set_num_threads(1)
    for training in trainings:
        train_watched(out / training, devices, *training.split("-"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
