"""Running out of memory: how it shows, and what to tell the user; memory that the C library should keep.

Here: recognition and the one line, :func:`keep_freed_memory`. Not here: retries (:mod:`fastff.predict`).
"""

from __future__ import annotations

import ctypes
import sys

import torch

from fastff.errors import FastFFError

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "memory allocation failed")


class DeviceMemoryError(FastFFError):
    """An evaluation does not fit into the memory of its device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or on the host, whoever allocates there."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _WORDS)


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, for the rest of its life.

    Tensors of an evaluation on the CPU come and go in megabytes. By default glibc returns such blocks to the system at
    once, and a third of the time goes into getting them back page by page. Commands do this for their own process;
    in scripts it is the user's choice, because it holds for everything in the process.

    Returns
    -------
    bool
        Whether it took effect: on Linux with glibc alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold, most = -1, -3, 2**30
    return bool(mallopt(mmap_threshold, most) and mallopt(trim_threshold, most))


def release_memory(device: torch.device) -> None:
    """Give cached blocks of a CUDA device back."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe_shortage(n_atoms: int, device: torch.device) -> str:
    """How many atoms were asked for, what the device has, and what to do."""
    memory = ""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = f", {free} of {total} bytes free"
    return (
        f"{n_atoms} atoms at once do not fit into the memory of {device}{memory}; evaluate fewer atoms "
        "at a time or use another device"
    )
