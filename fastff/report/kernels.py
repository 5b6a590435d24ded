"""Every op at production size: Triton beside torch.compile and eager torch, and beside what the device could do.

Here: :func:`measure_kernels` and the record it returns. Not here: what is run (:mod:`fastff.report.kernel_work`,
:mod:`fastff.report.kernel_steps`), comparing with an earlier record (:mod:`fastff.report.regression`), the command.

Every variant is first compared with the float64 definition; one that is wrong has no time. The floor of an op is the
time that its least traffic (arguments read once, results written once) takes at the measured copy bandwidth, or its
operations (of generic ops those of matrix products alone) at the measured rate of float32 products, whichever is
longer; the share is that floor over the time. What cannot be measured on this machine stays in the table with its
reason, but kernels that run on a CUDA device alone are left out elsewhere.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from fastff import kernels
from fastff.errors import DataError, UsageError
from fastff.report import kernel_steps
from fastff.report.inner import is_shortage, synchronize
from fastff.report.kernel_work import Direction, Variant, Work, list_makers
from fastff.report.provenance import Provenance, collect_provenance
from fastff.report.speed import summarize

SCHEMA = "fastff-kernels/1"
VARIANTS: tuple[Variant, ...] = ("triton", "compiled", "eager")


class KernelRow(BaseModel):
    """One op, direction and variant; ``rows`` of its first argument; ``seconds`` holds every repeat, if measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    direction: Direction
    variant: Variant
    rows: int = 0
    status: Literal["measured", "not-run", "failed", "out-of-memory"]
    reason: str = ""
    error: float | None = None
    seconds: tuple[float, ...] = ()
    median: float | None = None
    floor: float | None = None

    @property
    def share(self) -> float | None:
        """Floor over time."""
        if self.floor is None or self.median is None:
            return None
        return self.floor / self.median


class KernelRecord(BaseModel):
    """All rows, and the ceilings of the device: bytes and floating-point operations per second."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal["fastff-kernels/1"] = "fastff-kernels/1"
    device: str
    bandwidth: float
    product_rate: float
    rows: tuple[KernelRow, ...]
    provenance: Provenance
    digest: str = ""


def measure_kernels(
    device: torch.device,
    *,
    ops: Sequence[str] | None = None,
    budget: float = 4.0,
    progress: Callable[[str, int, int], None] = lambda message, done, total: None,
) -> KernelRecord:
    """Time every op at production size; those with derivatives also with the gradient in their first argument.

    Parameters
    ----------
    device : torch.device
    ops : sequence of str, optional
        Names of :func:`list_ops`, or what comes before a comma in some; all by default.
    budget : float
        Seconds of repeats for each row; at least three repeats are made.
    progress : callable
        Receives (what was done, done, total).

    Raises
    ------
    UsageError
        One of ``ops`` is no such name, or of something that cannot be measured on this device.
    """
    chosen = choose_ops(ops, list_ops(device))
    bandwidth, rate = measure_ceilings(device)
    makers = [*list_makers(device), *kernel_steps.list_makers(device)]
    rows: list[KernelRow] = []
    total = sum(name in chosen for _, names in makers for name in names) * len(VARIANTS)
    for make, names in makers:
        if not chosen.intersection(names):
            continue
        for work in make(device):
            if work.op not in chosen:
                continue
            floor = max(work.n_bytes / bandwidth, work.n_operations / rate)
            for variant in VARIANTS:
                row = _measure(work, variant, budget).model_copy(update={"floor": floor})
                rows.append(row)
                progress(f"{row.op}, {row.direction}, {variant}", len(rows), total)
            torch.compiler.reset()
            del work
        gc.collect()
        torch.cuda.empty_cache()
    record = KernelRecord(
        device=str(device), bandwidth=bandwidth, product_rate=rate, rows=tuple(rows),
        provenance=collect_provenance(),
    )  # fmt: skip
    return record.model_copy(update={"digest": compute_digest(record)})


def list_ops(device: torch.device) -> tuple[str, ...]:
    """Names of everything that is measured on a device, in this order."""
    makers = [*list_makers(device), *kernel_steps.list_makers(device)]
    return tuple(dict.fromkeys(name for _, names in makers for name in names))


def choose_ops(ops: Sequence[str] | None, known: Sequence[str]) -> frozenset[str]:
    """The names that ``ops`` asks for: those, or with ``evaluation`` every ``evaluation, ...``.

    Raises
    ------
    UsageError
        With the names that there are.
    """
    if ops is None:
        return frozenset(known)
    found = {op: {name for name in known if op in (name, name.split(",")[0])} for op in ops}
    if unknown := [op for op, names in found.items() if not names]:
        raise UsageError(
            f"--op {', '.join(unknown)}: nothing of that name is measured here; choose from "
            + ", ".join(repr(name) if "," in name else name for name in known)
        )
    return frozenset().union(*found.values())


def measure_ceilings(device: torch.device) -> tuple[float, float]:
    """Copy bandwidth in bytes per second (read and written), and float32 matrix products per second."""
    on_gpu = device.type == "cuda"
    source = torch.randn(1 << (28 if on_gpu else 25), device=device)
    target = torch.empty_like(source)
    n_bytes = 2 * source.numel() * source.element_size()
    bandwidth = n_bytes / min(_repeat(lambda: target.copy_(source), 1.0))
    size = 8192 if on_gpu else 1024
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    rate = 2.0 * size**3 / min(_repeat(lambda: torch.matmul(a, b), 1.0))
    return bandwidth, rate


def _measure(work: Work, variant: Variant, budget: float) -> KernelRow:
    row = KernelRow(
        op=work.op, direction=work.direction, variant=variant, rows=work.rows, status="not-run"
    )
    if variant == "triton" and work.triton is None:
        return row.model_copy(update={"reason": work.obstacle})
    restore = work.restore if variant == "triton" else None
    try:
        call = _choose(work, variant)
        with kernels.use("triton" if variant == "triton" else "auto"):
            if restore is not None:
                restore()
            error = work.compare(call())
            if not error < work.tolerance:
                reason = f"off by {error:.1e} from the definition in float64"
                return row.model_copy(update={"status": "failed", "reason": reason, "error": error})
            seconds = _repeat(call, budget, restore)
    except Exception as error:  # compilers fail in ways of their own; the table says how
        status = "out-of-memory" if is_shortage(error) else "failed"
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0][:160]}"
        return row.model_copy(update={"status": status, "reason": reason})
    found = summarize(1, "", seconds, None)
    return row.model_copy(
        update={
            "status": "measured", "error": error, "seconds": found.seconds, "median": found.median,
        }
    )  # fmt: skip


def _choose(work: Work, variant: Variant) -> Callable[[], Any]:
    if variant == "triton":
        assert work.triton is not None
        return work.triton
    return work.definition(torch.compile if variant == "compiled" else lambda function: function)


def _repeat(
    call: Callable[[], Any], budget: float, restore: Callable[[], Any] | None = None
) -> list[float]:
    """Times of single synchronised calls after a warm-up, in seconds; ``restore`` before each is not timed."""
    for _ in range(3):
        call()
    synchronize()
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < 3 or (len(seconds) < 50 and time.perf_counter() - begin < budget):
        if restore is not None:
            restore()
            synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def compute_digest(record: KernelRecord) -> str:
    """SHA-256 over the record without its digest, as canonical JSON."""
    content = record.model_dump(mode="json", exclude={"digest"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_kernels(path: Path) -> KernelRecord:
    """Read and verify a record of :func:`measure_kernels`.

    Raises
    ------
    DataError
        No such record, edited, or a median that does not follow from its repeats.
    """
    try:
        record = KernelRecord.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path} is no record of 'fastff bench --kernels': {first}") from error
    if record.digest != compute_digest(record):
        raise DataError(f"{path} was changed after it was written: its digest does not match")
    for row in record.rows:
        fresh = summarize(1, "", row.seconds, None).median if row.seconds else None
        if row.median != fresh:
            raise DataError(f"{path}: {row.op}, {row.variant}: the median does not follow")
    return record
