"""Shared by the kernel benchmarks: the device, the timer of GPU work, provenance in the stored record.

Run: ``pytest bench/kernels --benchmark-json bench/results/kernels.json``. Without a CUDA device everything is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The CUDA device that is timed."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: kernel timings mean nothing on a CPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def bandwidth(device: torch.device) -> float:
    """Measured ceiling of device memory in bytes per second, read plus written."""
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    seconds = time_on_device(lambda: target.copy_(source))
    return 2 * source.numel() * source.element_size() / seconds


def time_on_device(function: Callable[[], Any]) -> float:
    """Median seconds of one call by device events, warm and with the cache cleared before each call."""
    from triton.testing import do_bench

    return 1e-3 * float(do_bench(function, warmup=50, rep=200, return_mode="median"))


@pytest.fixture
def time_call(benchmark: Any, device: torch.device) -> Callable[..., None]:
    """Time a call with pytest-benchmark (host clock around a synchronised call) and by device events.

    ``n_bytes`` are the fewest bytes the call must move; the fraction of the measured bandwidth is stored.
    """

    def run(function: Callable[[], Any], *, n_bytes: int, bandwidth: float, error: float) -> None:
        def call() -> None:
            function()
            torch.cuda.synchronize(device)

        seconds = time_on_device(function)
        benchmark.extra_info.update(
            device_ms=1e3 * seconds,
            bytes=n_bytes,
            bandwidth_fraction=n_bytes / seconds / bandwidth,
            measured_bandwidth=bandwidth,
            relative_error=error,
        )
        benchmark.pedantic(call, rounds=20, warmup_rounds=3)

    return run


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Replace the record of the host by what a published result needs, without names of users or hosts."""
    from fastff.report.provenance import collect_provenance

    machine_info.clear()
    machine_info.update(collect_provenance().model_dump())
