"""One of two processes that train together as srun starts them, with nobody to end the other; sends itself a signal.

Run as ``signal_probe.py FOLDER RANK:SIGNAL:STEP``. Not here: any test.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from ddp_probe import SETTINGS
from emt_frames import label_by_emt, make_alloys, make_mixed

from fastff.cli.root import report_exception
from fastff.distill.signals import SharedSignals
from fastff.distill.train import TrainProgress, TrainSettings, train_student
from fastff.errors import FastFFError

INTERVAL = 7
WHOLE = TrainSettings(**{**SETTINGS, "stop_at": None, "patience": 9, "devices": 2})  # type: ignore[arg-type]


def ask_sometimes(self: SharedSignals, trainer: object, module: object) -> None:
    """As on a GPU, where not every step asks."""
    begin(self, trainer, module)  # type: ignore[arg-type]
    self._steps = INTERVAL


begin = SharedSignals.on_train_start


def main(folder: Path, plan: str) -> None:
    torch.set_num_threads(1)
    SharedSignals.on_train_start = ask_sometimes  # type: ignore[method-assign,assignment]
    rank, name, step = plan.split(":")

    def send(progress: TrainProgress) -> None:
        if rank == os.environ["RANK"] and progress.step == int(step):
            os.kill(os.getpid(), getattr(signal, name))

    validation = label_by_emt(make_alloys(5, seed=9))
    try:
        train_student(make_mixed(), validation, WHOLE, folder, resume=True, on_step=send)
    except FastFFError as error:
        sys.exit(report_exception(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
