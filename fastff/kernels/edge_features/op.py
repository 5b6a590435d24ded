"""Public function of the edge features: checks, dispatch, registration.

Here: :func:`edge_features`, its registered derivatives, and the launchers of the kernels. Not here: the formulas
(``reference.py``) and the kernels (``kernels.py``).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import derivatives, dispatch, tuning
from fastff.kernels.edge_features import reference

OP = dispatch.register(dispatch.Op("edge_features", derivative_order=2, deterministic=True))
_DTYPES = (torch.float32, torch.float64)


def edge_features(
    vectors: Tensor, cutoff: float, n_radial: int, l_max: int
) -> tuple[Tensor, Tensor]:
    """Radial basis times envelope, and real spherical harmonics, of every edge vector.

    Parameters
    ----------
    vectors : Tensor
        Edge vectors r_j - r_i + S @ cell in Å, shape (n_edges, 3); float32 or float64 for Triton, any floating dtype
        for torch. Their lengths must not be zero; pad with any vector longer than the cut-off.
    cutoff : float
        Cut-off radius r_c in Å.
    n_radial : int
        Number K of radial functions, at least 1.
    l_max : int
        Largest degree of the harmonics, 0 to 3.

    Returns
    -------
    basis : Tensor
        Shape (n_edges, n_radial), ``sqrt(2 / r_c) sin(k pi d / r_c) / d * u(d / r_c)`` in Å^-3/2; zero from r_c on.
        Gasteiger, Groß and Günnemann, ICLR 2020 (DimeNet), equations 7 and 8 with p = 6.
    harmonics : Tensor
        Shape (n_edges, (l_max + 1)^2), 'component' normalisation, orders m = -l..l; dimensionless. Not zero beyond the
        cut-off: multiply with the basis.

    Raises
    ------
    DataError
        A shape, dtype or number that does not fit.
    BackendError
        Triton is selected and cannot run.

    Notes
    -----
    The Triton implementation has kernels for the first and the second derivative in ``vectors`` and raises on a third;
    the reference is differentiable to any order. Deterministic on both. A vector of length zero gives NaN.
    """
    _check(vectors, cutoff, n_radial, l_max)
    cutoff = float(cutoff)

    def run_triton() -> tuple[Tensor, Tensor]:
        call = _forward if dispatch.is_differentiated(vectors) else launch_forward
        return call(vectors, cutoff, n_radial, l_max)

    return dispatch.run(
        OP,
        vectors.device,
        run_triton,
        lambda: reference.edge_features(vectors, cutoff, n_radial, l_max),
        _find_obstacle(vectors),
    )


def _run_forward(
    vectors: Tensor, cutoff: float, n_radial: int, l_max: int
) -> tuple[Tensor, Tensor]:
    return dispatch.attempt(
        OP,
        lambda: launch_forward(vectors, cutoff, n_radial, l_max),
        lambda: reference.edge_features(vectors, cutoff, n_radial, l_max),
    )


def _run_backward(
    vectors: Tensor, grad_basis: Tensor, grad_harmonics: Tensor, cutoff: float
) -> Tensor:
    return launch_backward(vectors, grad_basis, grad_harmonics, cutoff)


@torch.library.custom_op("fastff::edge_features_double_backward", mutates_args=())
def _double_backward(
    vectors: Tensor, grad_basis: Tensor, grad_harmonics: Tensor, directions: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_double_backward(vectors, grad_basis, grad_harmonics, directions, cutoff)


@_double_backward.register_fake
def _(
    vectors: Tensor, grad_basis: Tensor, grad_harmonics: Tensor, directions: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]
        vectors.new_empty(one.shape) for one in (vectors, grad_basis, grad_harmonics)
    )


def _keep_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.cutoff = inputs[1]


def _differentiate_forward(
    ctx: Any, grad_basis: Tensor, grad_harmonics: Tensor
) -> tuple[Tensor, None, None, None]:
    (vectors,), cutoff, grads = ctx.saved_tensors, ctx.cutoff, (grad_basis, grad_harmonics)
    grad_vectors = dispatch.attempt(
        OP,
        lambda: _backward(vectors, *grads, cutoff),
        lambda: derivatives.pull_back(_close_reference(*grads, cutoff), (vectors,), grads)[0],
    )
    return grad_vectors, None, None, None


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.cutoff = inputs[3]


def _differentiate_backward(ctx: Any, directions: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    vectors, grad_basis, grad_harmonics = ctx.saved_tensors
    grads, cutoff = (grad_basis, grad_harmonics), ctx.cutoff

    def differentiate() -> tuple[Tensor, ...]:
        function = _close_reference(*grads, cutoff)
        first, second = derivatives.pull_back_twice(function, (vectors,), grads, (directions,))
        return *first, *second

    found = dispatch.attempt(
        OP, lambda: _double_backward(vectors, *grads, directions, cutoff), differentiate
    )
    return found[0], found[1], found[2], None


def _shape_forward(
    vectors: Tensor, cutoff: float, n_radial: int, l_max: int
) -> tuple[Tensor, Tensor]:
    n_edges = vectors.shape[0]
    return vectors.new_empty((n_edges, n_radial)), vectors.new_empty((n_edges, (l_max + 1) ** 2))


_forward = derivatives.join_autograd(
    "edge_features", _run_forward, _shape_forward, _keep_forward, _differentiate_forward
)
_backward = derivatives.join_autograd(
    "edge_features_backward",
    _run_backward,
    lambda vectors, *others: vectors.new_empty(vectors.shape),
    _keep_backward,
    _differentiate_backward,
)


def launch_forward(
    vectors: Tensor, cutoff: float, n_radial: int, l_max: int
) -> tuple[Tensor, Tensor]:
    """Launch ``forward_kernel``; arguments and result as :func:`edge_features`, without autograd."""
    from fastff.kernels.edge_features import kernels

    n_edges, n_harmonics = vectors.shape[0], (l_max + 1) ** 2
    basis = vectors.new_empty((n_edges, n_radial))
    harmonics = vectors.new_empty((n_edges, n_harmonics))
    if n_edges > 0:
        grid, fixed = _plan(kernels.FORWARD_SPACE, vectors, cutoff, n_radial, n_harmonics)
        with dispatch.on_device(vectors.device):
            kernels.forward_kernel[grid](vectors.contiguous(), basis, harmonics, n_edges, **fixed)
    return basis, harmonics


def launch_backward(
    vectors: Tensor, grad_basis: Tensor, grad_harmonics: Tensor, cutoff: float
) -> Tensor:
    """Launch ``backward_kernel``: gradient of ``<grad_basis, basis> + <grad_harmonics, harmonics>``, (n_edges, 3)."""
    from fastff.kernels.edge_features import kernels

    n_edges, n_radial, n_harmonics = *grad_basis.shape, grad_harmonics.shape[1]
    out = vectors.new_empty((n_edges, 3))
    if n_edges > 0:
        grid, fixed = _plan(kernels.BACKWARD_SPACE, vectors, cutoff, n_radial, n_harmonics)
        tensors = (vectors.contiguous(), grad_basis.contiguous(), grad_harmonics.contiguous(), out)
        with dispatch.on_device(vectors.device):
            kernels.backward_kernel[grid](*tensors, n_edges, **fixed)
    return out


def launch_double_backward(
    vectors: Tensor, grad_basis: Tensor, grad_harmonics: Tensor, directions: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch ``double_backward_kernel``: gradients of ``<directions, backward>`` in its three tensors."""
    from fastff.kernels.edge_features import kernels

    n_edges, n_radial, n_harmonics = *grad_basis.shape, grad_harmonics.shape[1]
    inputs = tuple(one.contiguous() for one in (vectors, grad_basis, grad_harmonics, directions))
    outputs = tuple(vectors.new_empty(one.shape) for one in inputs[:3])
    if n_edges > 0:
        grid, fixed = _plan(kernels.DOUBLE_BACKWARD_SPACE, vectors, cutoff, n_radial, n_harmonics)
        with dispatch.on_device(vectors.device):
            kernels.double_backward_kernel[grid](*inputs, *outputs, n_edges, **fixed)
    return outputs[0], outputs[1], outputs[2]


def _plan(
    space: tuning.LaunchSpace, vectors: Tensor, cutoff: float, n_radial: int, n_harmonics: int
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and compile-time arguments of the three kernels."""
    key = tuning.make_key(vectors.dtype, radial=n_radial, harmonics=n_harmonics)
    config = tuning.lookup(space, key, vectors.device)
    fixed = {
        "cutoff": cutoff,
        "norm": math.sqrt(2.0 / cutoff),
        "n_radial": n_radial,
        "n_harmonics": n_harmonics,
        "RADIAL": 1 << (n_radial - 1).bit_length(),
        **config.to_arguments(),
    }
    return (-(-vectors.shape[0] // config.blocks["BLOCK_EDGES"]),), fixed


def _close_reference(
    grad_basis: Tensor, grad_harmonics: Tensor, cutoff: float
) -> derivatives.Function:
    n_radial, l_max = grad_basis.shape[1], math.isqrt(grad_harmonics.shape[1]) - 1
    return lambda vectors: reference.edge_features(vectors, cutoff, n_radial, l_max)


def _find_obstacle(vectors: Tensor) -> str | None:
    if vectors.dtype not in _DTYPES:
        return f"vectors are {vectors.dtype}, the kernels take float32 and float64"
    return None


def _check(vectors: Tensor, cutoff: float, n_radial: int, l_max: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not vectors.is_floating_point():
        raise DataError(
            f"edge_features: vectors have shape {tuple(vectors.shape)} and dtype {vectors.dtype}; "
            "pass floating (n_edges, 3)"
        )
    if not 0.0 < cutoff < math.inf:
        raise DataError(f"edge_features: cut-off {cutoff}; pass a positive length in Å")
    if n_radial < 1:
        raise DataError(f"edge_features: n_radial {n_radial}; pass at least 1")
    if not 0 <= l_max <= reference.MAX_DEGREE:
        raise DataError(f"edge_features: l_max {l_max}; pass 0 to {reference.MAX_DEGREE}")
