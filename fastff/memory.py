"""Running out of memory: how it shows, and what to tell the user.

Here: recognition and the one line. Not here: retries (:mod:`fastff.predict`).
"""

from __future__ import annotations

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
