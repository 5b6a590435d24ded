"""Running out of memory: how it shows, and what to tell the user; memory that the C library should keep.

Here: recognition and the one line, :func:`release_memory`, :func:`keep_freed_memory`. Not here: retries
(:mod:`fastff.evaluator`, :mod:`fastff.inference`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import sys
from collections.abc import Iterator

import torch

from fastff.errors import FastFFError

_SHORTAGE = re.compile(
    r"out of memory|(can't|could not|cannot) allocate memory|not enough memory|memory allocation failed"
    r"|failed to allocate \d+ bytes|cublas_status_alloc_failed|cudaerrormemoryallocation|bad_alloc",
    re.IGNORECASE,
)
"""What torch, CUDA, cuBLAS, vesin, warp and the C++ library say."""


class DeviceMemoryError(FastFFError):
    """An evaluation does not fit into the memory of its device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or on the host, whoever allocates there."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


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


def release_memory() -> None:
    """Give unused memory back: Python's garbage, the C library's free lists, torch's CUDA cache."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def explain_shortage(n_atoms: int, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into :class:`DeviceMemoryError`, one line about so many atoms."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(describe_shortage(n_atoms, device)) from error


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
