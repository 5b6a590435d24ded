"""Public functions of the sum over segments: checks, dispatch, registration.

Here: :func:`segment_sum`, its adjoint :func:`segment_gather`, and the launchers of their kernels. Not here: the
formulas (``reference.py``) and the kernels (``kernels.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import dispatch, tuning
from fastff.kernels.derivatives import join_autograd
from fastff.kernels.segment_sum import reference

OP = dispatch.register(dispatch.Op("segment_sum", derivative_order=None, deterministic=True))
_DTYPES = (torch.float32, torch.float64)


def segment_sum(values: Tensor, pointers: Tensor) -> Tensor:
    """Sum the rows of every segment: ``out[s] = sum_{pointers[s] <= e < pointers[s + 1]} values[e]``.

    Parameters
    ----------
    values : Tensor
        Shape (n_rows, ...), float32 or float64 for Triton, any floating dtype for torch. Any unit.
    pointers : Tensor
        Shape (n_segments + 1,), int32 or int64, ascending from 0 to n_rows: the first row of every segment. On a CUDA
        device this is not verified, because that would wait for the device.

    Returns
    -------
    Tensor
        Shape (n_segments, ...); zero for an empty segment.

    Raises
    ------
    DataError
        Shapes, dtypes or devices that do not fit; on the CPU also pointers that do not ascend from 0 to n_rows.

    Notes
    -----
    Linear: differentiable to any order in ``values`` on both back ends. The Triton kernel is deterministic; the
    reference is too, on the CPU, while on a CUDA device it uses torch's ``index_add`` (atomics).
    """
    _check("segment_sum", values, pointers)
    if pointers.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_pointers("segment_sum", pointers, values.shape[0])

    def run_triton() -> Tensor:
        flat = values.reshape(values.shape[0], values.shape[1:].numel())
        call = _sum if dispatch.is_differentiated(values) else launch_sum
        return call(flat, pointers).reshape(pointers.shape[0] - 1, *values.shape[1:])

    return dispatch.run(
        OP,
        values.device,
        run_triton,
        lambda: reference.segment_sum(values, pointers),
        _find_obstacle(values),
    )


def segment_gather(values: Tensor, pointers: Tensor, n_rows: int) -> Tensor:
    """Copy the value of every segment to its rows: ``out[e] = values[s]`` for ``pointers[s] <= e < pointers[s + 1]``.

    The adjoint of :func:`segment_sum`.

    Parameters
    ----------
    values : Tensor
        Shape (n_segments, ...), float32 or float64 for Triton, any floating dtype for torch.
    pointers : Tensor
        Shape (n_segments + 1,), int32 or int64, ascending from 0 to ``n_rows``; not verified on a CUDA device.
    n_rows : int
        Number of rows of the result.

    Returns
    -------
    Tensor
        Shape (n_rows, ...).

    Raises
    ------
    DataError
        As for :func:`segment_sum`.

    Notes
    -----
    Linear: differentiable to any order in ``values`` on both back ends; deterministic.
    """
    _check("segment_gather", values, pointers)
    if values.shape[0] != pointers.shape[0] - 1:
        raise DataError(
            f"segment_gather: {values.shape[0]} values for {pointers.shape[0] - 1} segments; pass one per segment"
        )
    if pointers.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_pointers("segment_gather", pointers, n_rows)

    def run_triton() -> Tensor:
        flat = values.reshape(values.shape[0], values.shape[1:].numel())
        call = _gather if dispatch.is_differentiated(values) else launch_gather
        return call(flat, pointers, n_rows).reshape(n_rows, *values.shape[1:])

    return dispatch.run(
        OP,
        values.device,
        run_triton,
        lambda: reference.segment_gather(values, pointers, n_rows),
        _find_obstacle(values),
    )


def _run_sum(values: Tensor, pointers: Tensor) -> Tensor:
    return dispatch.attempt(
        OP,
        lambda: launch_sum(values, pointers),
        lambda: reference.segment_sum(values, pointers),
    )


def _run_gather(values: Tensor, pointers: Tensor, n_rows: int) -> Tensor:
    return dispatch.attempt(
        OP,
        lambda: launch_gather(values, pointers, n_rows),
        lambda: reference.segment_gather(values, pointers, n_rows),
    )


def _keep_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.n_rows = inputs[0].shape[0]


def _differentiate_sum(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _gather(grad, *ctx.saved_tensors, ctx.n_rows), None


def _keep_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _differentiate_gather(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _sum(grad, *ctx.saved_tensors), None, None


_sum = join_autograd(
    "segment_sum",
    _run_sum,
    lambda values, pointers: values.new_empty((pointers.shape[0] - 1, values.shape[1])),
    _keep_sum,
    _differentiate_sum,
)
_gather = join_autograd(
    "segment_gather",
    _run_gather,
    lambda values, pointers, n_rows: values.new_empty((n_rows, values.shape[1])),
    _keep_gather,
    _differentiate_gather,
)


def launch_sum(values: Tensor, pointers: Tensor) -> Tensor:
    """Launch ``sum_kernel`` on values of shape (n_rows, n_features)."""
    from fastff.kernels.segment_sum import kernels

    n_segments, n_features = pointers.shape[0] - 1, values.shape[1]
    out = values.new_empty((n_segments, n_features))
    if out.numel() == 0:
        return out
    grid, arguments = _plan(kernels, kernels.SUM_SPACE, values, n_segments)
    with dispatch.on_device(values.device):
        kernels.sum_kernel[grid](values.contiguous(), pointers.contiguous(), out, **arguments)
    return out


def launch_gather(values: Tensor, pointers: Tensor, n_rows: int) -> Tensor:
    """Launch ``gather_kernel`` on values of shape (n_segments, n_features)."""
    from fastff.kernels.segment_sum import kernels

    out = values.new_empty((n_rows, values.shape[1]))
    if out.numel() == 0:
        return out
    grid, arguments = _plan(kernels, kernels.GATHER_SPACE, values, values.shape[0])
    with dispatch.on_device(values.device):
        kernels.gather_kernel[grid](values.contiguous(), pointers.contiguous(), out, **arguments)
    return out


def _plan(
    kernels: Any, space: tuning.LaunchSpace, values: Tensor, n_segments: int
) -> tuple[tuple[int, int], dict[str, int]]:
    """Grid and compile-time arguments of either kernel."""
    n_features = values.shape[1]
    block = min(1 << (n_features - 1).bit_length(), kernels.MAX_BLOCK_FEATURES)
    key = tuning.make_key(values.dtype, features=n_features)
    config = tuning.lookup(space, key, values.device)
    grid = (n_segments, -(-n_features // block))
    return grid, {"n_features": n_features, "BLOCK_FEATURES": block, **config.to_arguments()}


def _find_obstacle(values: Tensor) -> str | None:
    if values.dtype not in _DTYPES:
        return f"values are {values.dtype}, the kernels take float32 and float64"
    return None


def _check(name: str, values: Tensor, pointers: Tensor) -> None:
    if values.ndim < 1 or not values.is_floating_point():
        raise DataError(
            f"{name}: values have shape {tuple(values.shape)} and dtype {values.dtype}; pass floating (n_rows, ...)"
        )
    if pointers.ndim != 1 or pointers.shape[0] < 1:
        raise DataError(
            f"{name}: pointers have shape {tuple(pointers.shape)}; pass (n_segments + 1,)"
        )
    if pointers.dtype not in (torch.int32, torch.int64):
        raise DataError(f"{name}: pointers are {pointers.dtype}; pass int32 or int64")
    if pointers.device != values.device:
        raise DataError(
            f"{name}: values are on {values.device}, pointers on {pointers.device}; put both on one device"
        )


def _check_pointers(name: str, pointers: Tensor, n_rows: int) -> None:
    if int(pointers[0]) != 0 or int(pointers[-1]) != n_rows or bool((pointers.diff() < 0).any()):
        raise DataError(
            f"{name}: pointers must ascend from 0 to the number of rows {n_rows}, got "
            f"{int(pointers[0])} to {int(pointers[-1])}"
        )
