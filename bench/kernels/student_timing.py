"""Timing of the fused evaluation: blocks of calls between device events, ceilings of the GPU.

Here: measuring. Not here: what is measured, or the order of stages (``gpu_student.py``).
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch

from fastff.kernels.moment_potential.costs import Cost

DEVICE = torch.device("cuda")


def measure(function: Callable[[], Any], budget_ms: float = 100.0) -> dict[str, float]:
    """Median, 10 and 90 % quantile of the time per call in ms: blocks of calls between device events, warm."""
    for _ in range(2):
        function()
    torch.cuda.synchronize()

    def time_block(calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls

    single = time_block(2)
    calls = max(1, min(200, int(budget_ms / 10 / max(single, 1e-4))))
    blocks = max(3, min(15, int(budget_ms / max(single * calls, 1e-4))))
    times = sorted(time_block(calls) for _ in range(blocks))
    return {
        "median_ms": statistics.median(times),
        "q10_ms": times[len(times) // 10],
        "q90_ms": times[-1 - len(times) // 10],
    }


def capture(function: Callable[[], Any]) -> Callable[[], None]:
    """Record a call in a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def measure_ceilings() -> dict[str, float]:
    """Copy bandwidth (bytes read and written), float32 and tf32 matrix products, on random data."""
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    copy = measure(functools.partial(target.copy_, source))["median_ms"]
    a, b = (torch.randn(8192, 8192, device=DEVICE) for _ in range(2))
    found = {"copy_TB_per_s": 2 * 2**30 / copy * 1e-9}
    for name, allowed in (("float32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        time_ms = measure(functools.partial(torch.matmul, a, b))["median_ms"]
        found[f"{name}_TFLOP_per_s"] = 2 * 8192**3 / time_ms * 1e-9
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def find_floor(cost: Cost, ceilings: dict[str, float]) -> float:
    """Least time per atom in seconds: products as three tf32 ones, the rest in float32, or memory."""
    arithmetic = 3 * cost.product / ceilings["tf32_TFLOP_per_s"]
    arithmetic += (cost.flop - cost.product) / ceilings["float32_TFLOP_per_s"]
    return max(arithmetic, cost.n_bytes / ceilings["copy_TB_per_s"]) * 1e-12
