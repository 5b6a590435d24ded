"""Every op at production size: Triton beside torch.compile and eager torch, and beside what the device could do.

Here: :func:`measure_kernels` and the record it returns. Not here: the ops and their cases (:mod:`fastff.kernels`),
comparing with an earlier record (:mod:`fastff.report.regression`), the command.

Every variant is first compared with the float64 definition; one that is wrong has no time. The floor of an op is the
time that its least traffic (arguments read once, results written once) takes at the measured copy bandwidth, or its
products of matrices at the measured rate of float32 products, whichever is longer; the share is that floor over the
time. What cannot be measured on this machine stays in the table with its reason.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from fastff import kernels
from fastff.errors import DataError
from fastff.kernels import contract, dispatch
from fastff.kernels.tuning import find_relative_error
from fastff.report.inner import is_shortage, synchronize
from fastff.report.provenance import Provenance, collect_provenance
from fastff.report.speed import summarize

SCHEMA = "fastff-kernels/1"
VARIANTS: tuple[Variant, ...] = ("triton", "compiled", "eager")
Variant = Literal["triton", "compiled", "eager"]
TOLERANCE = 1e-5

ROWS_ON_CPU = {"edge_features": 500_000, "fused_mlp": 50_000}
"""Rows of the first argument on a CPU, where the size of production would take minutes."""


class KernelRow(BaseModel):
    """One op, direction and variant; ``rows`` of its first argument; ``seconds`` holds every repeat, if measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    direction: Literal["forward", "forward and gradient"]
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
    budget: float = 4.0,
    progress: Callable[[str, int, int], None] = lambda message, done, total: None,
) -> KernelRecord:
    """Time every op that has a case of production size, forward and with the gradient in its first argument.

    Parameters
    ----------
    device : torch.device
    budget : float
        Seconds of repeats for each row; at least three repeats are made.
    progress : callable
        Receives (what was done, done, total).
    """
    bandwidth, rate = measure_ceilings(device)
    suites = list_suites()
    rows: list[KernelRow] = []
    total = len(suites) * 2 * len(VARIANTS)
    for suite in suites:
        case = next(case for case in suite.cases if case.production)
        arguments = case.build(device, torch.float32)
        most = ROWS_ON_CPU.get(suite.op.name)
        if device.type == "cpu" and most is not None:
            arguments = (arguments[0][:most].clone(), *arguments[1:])
        for direction in ("forward", "forward and gradient"):
            work = prepare(suite, arguments, gradient=direction != "forward")
            floor = max(work.n_bytes / bandwidth, work.n_operations / rate)
            for variant in VARIANTS:
                row = _measure(work, variant, device, budget)
                row = row.model_copy(
                    update={"direction": direction, "floor": floor, "rows": len(arguments[0])}
                )
                rows.append(row)
                progress(f"{row.op}, {direction}, {variant}", len(rows), total)
        del arguments, work
        torch.compiler.reset()
    record = KernelRecord(
        device=str(device), bandwidth=bandwidth, product_rate=rate, rows=tuple(rows),
        provenance=collect_provenance(),
    )  # fmt: skip
    return record.model_copy(update={"digest": compute_digest(record)})


def list_suites() -> list[contract.Suite]:
    """One suite for each function that has a case of production size."""
    found: dict[str, contract.Suite] = {}
    for suite in contract.list_suites():
        if any(case.production for case in suite.cases):
            found.setdefault(suite.function.__name__, suite)
    return list(found.values())


@dataclass(frozen=True)
class Work:
    """One op and direction, ready to run: ``run(function)`` evaluates it, ``exact`` is its float64 result."""

    suite: contract.Suite
    run: Callable[[Callable[..., Any]], Any]
    exact: Any
    n_bytes: int
    n_operations: float


def prepare(suite: contract.Suite, arguments: tuple[Any, ...], *, gradient: bool) -> Work:
    """Bind arguments, cotangents and the float64 result."""
    doubled = _to_double(arguments)
    products = count_products(suite, arguments)
    if not gradient:

        def run(function: Callable[..., Any]) -> Any:
            with torch.no_grad():
                return function(*arguments)

        with torch.no_grad():
            exact = suite.reference(*doubled)
        return Work(suite, run, exact, count_bytes(arguments) + count_bytes(exact) // 2, products)
    first, *rest = arguments
    outputs = list_tensors(suite.reference(doubled[0], *doubled[1:]))
    generator = torch.Generator(first.device).manual_seed(0)
    seeds = [
        torch.randn(one.shape, generator=generator, device=first.device, dtype=first.dtype)
        for one in outputs
    ]

    def differentiate(function: Callable[..., Any], leaf: Tensor, others: Any) -> Tensor:
        leaf = leaf.detach().requires_grad_()
        found = list_tensors(function(leaf, *others))
        return torch.autograd.grad(found, leaf, [s.to(leaf.dtype) for s in seeds])[0]

    exact = differentiate(suite.reference, doubled[0], doubled[1:])
    n_bytes = count_bytes(arguments) + count_bytes(first) + 2 * count_bytes(seeds)
    return Work(suite, lambda f: differentiate(f, first, rest), exact, n_bytes, 2.0 * products)


def count_products(suite: contract.Suite, arguments: tuple[Any, ...]) -> float:
    """Operations of matrix products: two for each weight and row of a perceptron, none in other ops."""
    if suite.op.name != "fused_mlp":
        return 0.0
    rows, *weights = list_tensors(arguments)
    return 2.0 * rows.shape[0] * sum(one.numel() for one in weights if one.ndim == 2)


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


def _measure(work: Work, variant: Variant, device: torch.device, budget: float) -> KernelRow:
    name = work.suite.function.__name__
    row = KernelRow(op=name, direction="forward", variant=variant, status="not-run")
    if variant == "triton":
        backend, reason = dispatch.decide(work.suite.op, device)
        if backend != "triton":
            return row.model_copy(update={"reason": reason})
    function = _choose(work.suite, variant)
    try:
        with kernels.use("triton" if variant == "triton" else "auto"):
            error = find_relative_error(work.run(function), work.exact)
            if not error < TOLERANCE:
                reason = f"off by {error:.1e} from the definition in float64"
                return row.model_copy(update={"status": "failed", "reason": reason, "error": error})
            seconds = _repeat(lambda: work.run(function), budget)
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


def _choose(suite: contract.Suite, variant: Variant) -> Callable[..., Any]:
    if variant == "triton":
        return suite.function
    return torch.compile(suite.reference) if variant == "compiled" else suite.reference


def _repeat(call: Callable[[], Any], budget: float) -> list[float]:
    """Times of single synchronised calls after a warm-up, in seconds."""
    for _ in range(3):
        call()
    synchronize()
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < 3 or (len(seconds) < 50 and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def list_tensors(values: Any) -> list[Tensor]:
    """Floating tensors of nested arguments or results."""
    return list(_walk(values))


def _walk(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _walk(value)


def count_bytes(values: Any) -> int:
    """Bytes of the floating tensors of nested arguments or results."""
    return sum(one.numel() * one.element_size() for one in list_tensors(values))


def _to_double(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.double() if values.is_floating_point() else values
    if isinstance(values, tuple | list):
        return type(values)(_to_double(value) for value in values)
    return values


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
