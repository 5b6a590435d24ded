"""What a failure of Triton to compile a kernel is, and what is said of it.

Here: telling such failures from others, the kernel and the reason. Not here: what follows from one (``dispatch.py``).
"""

from __future__ import annotations

import importlib.util
import traceback
from functools import lru_cache
from typing import NamedTuple


class Failure(NamedTuple):
    """Why kernels of an op do not compile: the kernel and the last line of the compiler's message; the whole one."""

    reason: str
    message: str


@lru_cache
def has_triton() -> bool:
    """Whether the package triton is installed."""
    return importlib.util.find_spec("triton") is not None


def is_compile_failure(error: Exception) -> bool:
    """Whether ``error`` says that a kernel could not be built, as opposed to failing while it ran."""
    if not has_triton():
        return False
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    if isinstance(error, CompilationError | OutOfResources | PTXASError):
        return True
    return isinstance(error, RuntimeError) and "PassManager::run failed" in str(error)


def describe_failure(error: Exception) -> Failure:
    """Kernel, reason and message of a failure to compile."""
    message = str(error).strip() or type(error).__name__
    last, kernel = message.splitlines()[-1], _find_kernel(error)
    return Failure(f"{kernel}: {last}" if kernel else last, message)


def _find_kernel(error: Exception) -> str | None:
    """Name of the kernel that was being launched when ``error`` was raised."""
    from triton.runtime.jit import KernelInterface

    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, KernelInterface):
            return str(owner.fn.__name__)
    return None
