"""What the kernel benchmarks run, and the clock of the device.

Here: the sources of work of ``fastff bench --kernels``, entries taken one by one, timing by device events. Not here:
the entries (:mod:`fastff.report.kernel_work`, :mod:`fastff.report.kernel_steps`), what is stored (``conftest.py``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastff import kernels
from fastff.report import kernel_steps, kernel_work
from fastff.report.kernel_work import Maker, Work

GPU = torch.device("cuda")
SOURCES = [*kernel_work.list_makers(GPU), *kernel_steps.list_makers(GPU)]
VARIANTS = ("triton", "eager", "compiled")
SMALL_TOLERANCE = 2e-5
"""With ``--tiny``: 4 atoms with random parameters lose more digits in float32 than a crystal of production size."""


def name_run(op: str, names: tuple[str, ...], place: int) -> str:
    """Name of a benchmark without what ``pytest -k`` does not take; numbered where a source gives an op twice."""
    plain = op.removeprefix("evaluation, ").replace(", ", "_").replace(" ", "_").replace("=", "")
    return f"{plain}_{names[:place].count(op)}" if names.count(op) > 1 else plain


class Works:
    """Work of the sources, one at a time, because an entry holds gigabytes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._source: Maker | None = None
        self._rest: Iterator[Work] = iter(())
        self._place = -1
        self._work: Work | None = None

    def take(self, source: Maker, place: int) -> Work:
        """The entry at a place of a source; quick for the one that was taken last and the ones after it."""
        if source is not self._source or place < self._place:
            self.clear()
            self._source, self._rest = source, source(self.device)
        try:
            while self._place < place:
                self._work = None
                with kernels.use("triton"):  # so that an op which cannot run says so at once
                    self._work = next(self._rest)
                self._place += 1
        except Exception:
            self.clear()
            raise
        assert self._work is not None
        return self._work

    def clear(self) -> None:
        """Let go of everything."""
        self._source, self._rest, self._place, self._work = None, iter(()), -1, None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def time_on_device(
    call: Callable[[], Any], restore: Callable[[], Any] | None, device: torch.device
) -> float:
    """Median seconds of one call by device events, warm and with the cache cleared before each call."""
    if device.type == "cpu":
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    clear = torch.empty(1 << 26, dtype=torch.int32, device=device)
    for _ in range(3):
        if restore is not None:
            restore()
        call()
    torch.cuda.synchronize(device)
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < 5 or (len(seconds) < 50 and time.perf_counter() - start < 0.3):
        if restore is not None:
            restore()
        clear.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(1e-3 * begin.elapsed_time(end))
    return statistics.median(seconds)


def time_variant(
    work: Work,
    variant: str,
    *,
    benchmark: Any,
    device: torch.device,
    ceilings: tuple[float, float],
) -> None:
    """Time a variant with pytest-benchmark (host clock around a synchronised call) and by device events.

    Compared with float64 first: a red comparison is a failure, not a timing. Stored beside the times: the floor that
    bytes and operations set at the measured ``ceilings`` of both, and the share of it that is reached.
    """
    on_gpu = device.type == "cuda"
    if variant == "triton":
        assert work.triton is not None
        call, restore = work.triton, work.restore
    else:
        compiler = torch.compile if variant == "compiled" else lambda function: function
        call, restore = work.definition(compiler), None

    def prepare() -> None:
        if restore is not None:
            restore()
        if on_gpu:
            torch.cuda.synchronize(device)

    def call_and_wait() -> None:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)

    # Triton is forced, so that a fallback cannot be timed in its place
    with kernels.use("triton" if variant == "triton" else "torch"):
        prepare()
        error = work.compare(call())
        assert error < (work.tolerance if on_gpu else max(work.tolerance, SMALL_TOLERANCE))
        seconds = time_on_device(call, restore, device)
        benchmark.group = f"{work.op}, {work.direction}, {work.rows} rows"
        benchmark.extra_info.update(
            op=work.op, direction=work.direction, rows=work.rows, variant=variant,
            device_ms=1e3 * seconds, relative_error=error, **find_floor(work, ceilings, seconds),
        )  # fmt: skip
        benchmark.pedantic(call_and_wait, setup=prepare, rounds=20 if on_gpu else 1)


def find_floor(work: Work, ceilings: tuple[float, float], seconds: float) -> dict[str, Any]:
    """Least time of a work by the ceilings of bytes and operations a second, and the share that a time reaches."""
    bandwidth, rate = ceilings
    floors = {"memory": work.n_bytes / bandwidth, "arithmetic": work.n_operations / rate}
    bound = max(floors, key=floors.__getitem__)
    return {
        "bytes": work.n_bytes, "operations": work.n_operations, "copy_bytes_per_s": bandwidth,
        "float32_products_per_s": rate, "floor_of": bound, "floor_ms": 1e3 * floors[bound],
        "roofline_fraction": floors[bound] / seconds,
    }  # fmt: skip
