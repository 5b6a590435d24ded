"""Starting one process for each device of this machine, for the length of one training.

Here: the job file they read, torchrun, what they tell this process, and ending them. Not here: what they do
(:mod:`fastff.distill.worker`, :mod:`fastff.distill.train`), several nodes (srun or torchrun start those).

The processes live as long as the training: whoever calls needs no group of its own, and can label, explore and train
again. Frames travel as arrays without pickle.
"""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import fastff.errors
from fastff.checkpoint import write_atomically
from fastff.distill.content import hash_structure
from fastff.distill.ranks import share_cores
from fastff.distill.rows import pack_frames, unpack_frame
from fastff.distill.signals import raise_on_sigterm
from fastff.errors import FastFFError
from fastff.labels import Frame

JOB_NAME, START_NAME, LOG_NAME = "job.npz", "start.safetensors", "processes.log"
MARK = "fastff-worker "
"""Begins the lines that workers write for the process that started them."""

GRACE = 5.0
"""Seconds that processes have to end when asked to, and again once the one that started them was killed."""


def write_job(
    path: Path, training: Sequence[Frame], validation: Sequence[Frame], settings: dict[str, Any]
) -> None:
    """Write frames and JSON-able settings for workers."""
    arrays: dict[str, Any] = {}
    for part, frames in (("training", training), ("validation", validation)):
        hessian = any(frame.hessian_vector is not None for frame in frames)
        keys = [hash_structure(frame.atoms) for frame in frames]
        rows = pack_frames(frames, keys, [""] * len(frames), False, 0, hessian)
        for table, columns in zip(("frames", "atoms"), rows, strict=True):
            arrays |= {f"{part}.{table}.{name}": values for name, values in columns.items()}
    arrays["settings"] = np.frombuffer(json.dumps(settings).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def read_job(path: Path) -> tuple[list[Frame], list[Frame], dict[str, Any]]:
    """Training frames, validation frames and settings of a job file."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    parts: list[list[Frame]] = []
    for part in ("training", "validation"):
        tables = [
            {
                name.removeprefix(f"{part}.{table}."): values
                for name, values in arrays.items()
                if name.startswith(f"{part}.{table}.")
            }
            for table in ("frames", "atoms")
        ]
        frames = []
        for index in range(len(tables[0]["n_atoms"])):
            start = int(tables[0]["first_atom"][index])
            rows = slice(start, start + int(tables[0]["n_atoms"][index]))
            frames.append(unpack_frame(tables[0], tables[1], index, rows))
        parts.append(frames)
    return parts[0], parts[1], json.loads(arrays["settings"].tobytes())


def run_workers(
    folder: Path, n_processes: int, on_message: Callable[[dict[str, Any]], None]
) -> None:
    """Train as the job file in ``folder`` says, with torchrun, and pass on what the first process tells.

    Parameters
    ----------
    folder : Path
        Holds :data:`JOB_NAME`; the processes' other output goes to :data:`LOG_NAME` there.
    n_processes : int
    on_message : callable
        Called with every message.

    Raises
    ------
    FastFFError
        What a process raised, or that it died.
    SystemExit
        This process has received SIGTERM.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={n_processes}", "-m", "fastff.distill.worker", str(folder)]
    threads = str(share_cores(n_processes))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    failure: FastFFError | None = None
    log_path = folder / LOG_NAME
    with (
        log_path.open("wb") as log,
        raise_on_sigterm(),
        _start(command, environment, log) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith(MARK.encode()):
                log.write(line)
                continue
            message = json.loads(line[len(MARK) :])
            if "error" in message:
                failure = failure or _revive(message)
            else:
                on_message(message)
        code = process.wait()
    if failure is not None:
        raise failure
    if code != 0:
        raise FastFFError(
            f"a training process ended with code {code}; {log_path} has the reason, --resume continues"
        )


@contextmanager
def _start(
    command: Sequence[str], environment: dict[str, str], log: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun and its workers, none of which outlives the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()  # its workers notice
                process.wait()
        if process.stdout is not None:
            _await_end(process.stdout.fileno(), GRACE)
            process.stdout.close()


def _await_end(descriptor: int, seconds: float) -> None:
    """Read a pipe until the last process that can write to it has ended, or time is up."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0.0:
        ready, _, _ = select.select([descriptor], [], [], left)
        if ready and not os.read(descriptor, 65536):
            return


def _revive(message: dict[str, Any]) -> FastFFError:
    """The error that a worker raised."""
    kind = getattr(fastff.errors, str(message["error"]), FastFFError)
    return kind(str(message["text"])) if issubclass(kind, FastFFError) else FastFFError(kind)
