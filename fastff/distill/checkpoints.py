"""Training checkpoints that survive full disks, killed writers and damaged files.

Here: :class:`SafeCheckpointIO`, which Lightning writes and reads through, and finding a sound checkpoint again. Not
here: what a checkpoint holds (Lightning and :mod:`fastff.distill.module` decide), model files
(:mod:`fastff.checkpoint`).

A checkpoint is complete in memory before a byte is written, goes to a temporary file in the same folder, is forced to
disk and renamed. The one before the last is kept as ``previous.ckpt``. Files are PyTorch's zip archives: their CRC-32
sums tell flipped bits, which ``torch.load`` does not look for. They are read with ``weights_only``: no pickle runs.
"""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from fastff.checkpoint import write_atomically
from fastff.errors import DataError, ModelFileError

logger = logging.getLogger(__name__)

LAST_NAME, PREVIOUS_NAME = "last.ckpt", "previous.ckpt"
REACHED_NAME = "reached.ckpt"
"""Of the weights that met the accuracy at which a training stops."""

NEEDED = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step")
"""What a checkpoint must hold to go on from."""


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints in one step and keeps the last but one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; a file of that name stays as it is until the new one is on disk.

        Raises
        ------
        ModelFileError
            The disk refuses; earlier checkpoints are untouched.
        """
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name == LAST_NAME and path.is_file():
                write_atomically(path.with_name(PREVIOUS_NAME), path.read_bytes())
            write_atomically(path, buffer.getvalue())
        except (OSError, ModelFileError) as error:
            raise ModelFileError(
                f"checkpoint {path} was not written ({error}); earlier ones are intact, free space and use --resume"
            ) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read and check a checkpoint, onto the CPU."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU.

    Raises
    ------
    DataError
        It is missing, truncated, altered, or not a training checkpoint of fastff.
    """
    try:
        payload = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DataError(f"wrong checksum of {damaged.rpartition('/')[2]}")
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    except DataError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(first[:120]) from error
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"no {missing[0]} in it")
    return dict(content)


def find_checkpoint(folder: Path) -> str | None:
    """Newest sound training checkpoint in a folder; None where there is none.

    What damaged ones are passed over is said in one logged warning.
    """
    skipped, found = [], None
    paths = sorted(
        folder.glob("*.ckpt"), key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True
    )
    for path in paths:
        try:
            read_checkpoint(path)
        except DataError as error:
            skipped.append(f"{path.name} ({error})")
            continue
        found = path
        break
    if skipped:
        going_on = f"continuing from {found.name}" if found else "none is sound, starting anew"
        logger.warning("skipping damaged checkpoint %s; %s", ", ".join(skipped), going_on)
    return str(found) if found else None


def read_best(folder: Path, name: str) -> dict[str, Any]:
    """Read the best checkpoint of a finished training, or the best of those that are sound, with a logged warning.

    Raises
    ------
    DataError
        None is sound.
    """
    try:
        return read_checkpoint(folder / name)
    except DataError as error:
        reason = str(error)
    others: list[tuple[float, str, dict[str, Any]]] = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            content = read_checkpoint(path)
        except DataError:
            continue
        curve = content.get("learning_curve") or [{"accuracy": float("-inf")}]
        newest = curve[-1]  # of a version without scores: by accuracy
        others.append((float(newest.get("score", newest["accuracy"])), path.name, content))
    if not others:
        raise DataError(
            f"the best checkpoint {folder / name} is damaged ({reason}) and no other is left; "
            "train again in a new folder"
        )
    score, other, content = max(others, key=lambda entry: entry[:2])
    logger.warning(
        "the best checkpoint %s is damaged (%s); taking %s with validation score %.4f",
        name,
        reason,
        other,
        score,
    )
    return content


def remove_strays(folder: Path) -> None:
    """Remove temporary files that killed writers left."""
    for stray in folder.glob(".*.ckpt.*.tmp"):
        stray.unlink(missing_ok=True)
