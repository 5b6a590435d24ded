"""What every op must satisfy, as functions that raise ``AssertionError`` with the figure that was off.

Here: named cases and the checks that tests run on them, on any device and in Triton's interpreter. Not here: the cases of
an op (its ``cases.py``), tests, timings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from fastff.kernels import dispatch
from fastff.kernels.tuning import find_relative_error

TOLERANCES: Final = {torch.float64: 1e-12, torch.float32: 2e-6}
"""Largest ``|out - ref| / |ref|`` against the float64 reference, by dtype of the input."""


@dataclass(frozen=True)
class Case:
    """A named input of an op.

    Attributes
    ----------
    name : str
    build : callable
        ``build(device, dtype)`` returns the positional arguments of the op; the same numbers at every call.
    production : bool
        Large: for GPUs and benchmarks, not for the interpreter.
    """

    name: str
    build: Callable[[torch.device, torch.dtype], tuple[Any, ...]]
    production: bool = False


@contextlib.contextmanager
def poison_allocations() -> Iterator[None]:
    """Fill every uninitialised allocation with NaN (largest integer), so that unwritten outputs show."""
    mode = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def check_forward(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    *,
    backend: str = "triton",
    tolerance: float | None = None,
) -> float:
    """Compare an op with its reference in float64, into poisoned memory; return the relative error."""
    arguments = case.build(device, dtype)
    with dispatch.use(backend), poison_allocations():
        output = function(*arguments)
    expected = reference(*_map_floating(arguments, Tensor.double))
    _check_dtype(output, dtype)
    return _check_error(f"{case.name}: forward", output, expected, dtype, tolerance)


def check_bits(
    function: Callable[..., Any], case: Case, device: torch.device, dtype: torch.dtype
) -> None:
    """Run an op twice on the same input and require the same bits, forward and backward."""
    results = []
    for _ in range(2):
        leaves, arguments = _make_leaves(case.build(device, dtype))
        with dispatch.use("triton"):
            outputs = _as_tuple(function(*arguments))
            grads = torch.autograd.grad(outputs, leaves, _draw_like(outputs, 1), allow_unused=True)
        results.append([*outputs, *(grad for grad in grads if grad is not None)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second), f"{case.name}: two runs differ in their bits"


def check_derivatives(
    op: dispatch.Op,
    function: Callable[..., Any],
    reference: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    *,
    backend: str = "triton",
    tolerance: float | None = None,
) -> None:
    """Compare the first and, where declared, second derivatives with the float64 reference.

    A declared order of 1 or 2 must raise on one derivative more.
    """
    arguments = case.build(device, dtype)
    order = 3 if op.derivative_order is None else op.derivative_order
    highest = min(order, 2)
    exact = _differentiate(reference, _map_floating(arguments, Tensor.double), highest)
    with dispatch.use(backend), poison_allocations():
        found = _differentiate(function, arguments, highest)
    for k, (one, ref) in enumerate(zip(found, exact, strict=True), start=1):
        _check_error(f"{case.name}: derivative {k}", one, ref, dtype, tolerance)
    if op.derivative_order is None:
        return
    with dispatch.use(backend):
        try:
            _differentiate(function, arguments, op.derivative_order + 1)
        except (RuntimeError, NotImplementedError):
            return
    raise AssertionError(f"{op.name} declares order {op.derivative_order} but gave one more")


def _differentiate(
    function: Callable[..., Any], arguments: tuple[Any, ...], order: int
) -> list[tuple[Tensor, ...]]:
    """Derivatives 1..order, each contracted with fixed random cotangents that are differentiated in turn."""
    leaves, arguments = _make_leaves(arguments)
    outputs = _as_tuple(function(*arguments))
    derivatives = []
    for k in range(1, order + 1):
        seeds = _draw_like(outputs, k)
        for seed in seeds:
            seed.requires_grad_()
        kept = [output for output in outputs if output.requires_grad]
        kept_seeds = [s for s, o in zip(seeds, outputs, strict=True) if o.requires_grad]
        grads = torch.autograd.grad(
            kept, leaves, kept_seeds, create_graph=True, allow_unused=True, materialize_grads=True
        )
        derivatives.append(tuple(grad.detach() for grad in grads))
        leaves = [*leaves, *seeds]
        outputs = grads
    return derivatives


def _make_leaves(arguments: tuple[Any, ...]) -> tuple[list[Tensor], tuple[Any, ...]]:
    leaves: list[Tensor] = []

    def detach(value: Tensor) -> Tensor:
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    return leaves, _map_floating(arguments, detach)


def _map_floating(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values) if values.is_floating_point() else values
    if isinstance(values, tuple | list):
        return type(values)(_map_floating(value, change) for value in values)
    return values


def _draw_like(tensors: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """Fixed standard-normal tensors, the same numbers for every dtype and device."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(one.shape, generator=generator, dtype=torch.float64).float().to(one)
        for one in tensors
    ]


def _as_tuple(output: Any) -> tuple[Tensor, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _check_dtype(output: Any, dtype: torch.dtype) -> None:
    for one in _as_tuple(output):
        assert one.dtype == dtype, f"output is {one.dtype}, the input {dtype}"


def _check_error(
    what: str, output: Any, expected: Any, dtype: torch.dtype, tolerance: float | None
) -> float:
    for one, ref in zip(_as_tuple(output), _as_tuple(expected), strict=True):
        assert one.shape == ref.shape, f"{what}: shape {one.shape}, expected {ref.shape}"
    error = find_relative_error(output, expected)
    limit = TOLERANCES[dtype] if tolerance is None else tolerance
    assert error <= limit, f"{what}: relative error {error:.2e} above {limit:.1e}"
    return error
