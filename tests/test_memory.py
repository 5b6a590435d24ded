"""Memory that the C library keeps, and how running out of it is recognised."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fastff.memory import is_out_of_memory, keep_freed_memory

COUNT_FAULTS = """
import resource, torch
from fastff.memory import keep_freed_memory
kept = keep_freed_memory()
def work():
    for _ in range(5):
        parts = [torch.ones(3_000_000) for _ in range(12)]
work()
faults = []
for _ in range(3):  # the system may take pages back at any time, but hardly three times
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(faults))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_kept() -> None:
    command = [sys.executable, "-c", COUNT_FAULTS]
    kept, faults = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    if kept == "False":
        pytest.skip("this C library has no mallopt")
    assert int(faults) < 20_000, "60 blocks of 12 MB cost 70,000 faults without the setting"


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("x"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("could not allocate memory"), True),
        (RuntimeError("Failed to allocate 1234 bytes on device 'cuda:0'"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("cudaErrorMemoryAllocation"), True),
        (RuntimeError("device lost"), False),
        (RuntimeError("Failed to allocate a port"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_recognition(error: Exception, answer: bool) -> None:
    assert is_out_of_memory(error) is answer
