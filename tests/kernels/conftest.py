"""Shared by the kernel tests: devices, and a repair of old interpreters. Not here: any test."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device of tests marked ``gpu``."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


def repair_interpreter() -> None:
    """Let Triton 3.6's interpreter take loaded loop bounds under NumPy 2.4 and newer.

    It converts an array of one element with ``int(array)``, which NumPy no longer allows for one dimension.
    """
    import triton
    from triton.runtime import interpreter

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version >= (3, 7) or np.lib.NumpyVersion(np.__version__) < "2.4.0":
        return
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor, *scope):  # type: ignore[no-untyped-def]
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_with_index


if os.environ.get("TRITON_INTERPRET") == "1":
    repair_interpreter()
