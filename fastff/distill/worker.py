"""One process of a training with several, started by torchrun: ``-m fastff.distill.worker FOLDER``.

Here: reading the job, training, telling the process that waits. Not here: starting
(:mod:`fastff.distill.launch`), training itself (:mod:`fastff.distill.train`).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from fastff.distill.launch import JOB_NAME, MARK, START_NAME, read_job
from fastff.errors import FastFFError

INTERVAL = 0.1
"""Least seconds between two messages about progress."""


def tell(message: dict[str, Any]) -> None:
    """Write one line in one piece; if nobody reads it any more, this process ends."""
    os.write(sys.stdout.fileno(), (MARK + json.dumps(message) + "\n").encode())


def follow_parent(interval: float = 0.5) -> None:
    """End this process as soon as the one that started it is gone, whatever this one waits for.

    A worker that waits for another in a collective operation answers no signal that Python handles, and torchrun
    starts each in a session of its own, so that no signal to a group reaches it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


def work(folder: Path) -> int:
    """Train; return the exit code."""
    from fastff.checkpoint import load_model
    from fastff.distill.signals import TERMINATED
    from fastff.distill.train import TrainProgress, TrainSettings, train_student

    first = os.environ.get("RANK", "0") == "0"
    told = [0.0]

    def report(progress: TrainProgress) -> None:
        now = time.monotonic()
        if now - told[0] > INTERVAL or progress.step == progress.n_steps:
            told[0] = now
            tell(
                {
                    "step": progress.step,
                    "n_steps": progress.n_steps,
                    "accuracy": progress.accuracy,
                }
            )

    try:
        training, validation, values = read_job(folder / JOB_NAME)
        resume = values.pop("resume")
        settings = TrainSettings(**values)
        start = folder / START_NAME
        train_student(
            training,
            validation,
            settings,
            folder,
            start=load_model(start) if start.is_file() else None,
            resume=resume,
            on_step=report if first else None,
        )
    except FastFFError as error:
        tell({"error": type(error).__name__, "text": str(error)})
        return 1
    except SystemExit as ending:
        if ending.code == TERMINATED and first:
            text = "the processes of this training were ended by SIGTERM; --resume continues"
            tell({"error": FastFFError.__name__, "text": text})
        raise
    return 0


if __name__ == "__main__":
    follow_parent()
    sys.exit(work(Path(sys.argv[1])))
