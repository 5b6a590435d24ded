"""Public function of the small multi-layer perceptron: checks, dispatch, registration.

Here: :func:`fused_mlp`, its registered derivatives, and the launchers of the kernels. Not here: the formula
(``reference.py``) and the kernels (``kernels.py``, ``parameters.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import derivatives, dispatch, tuning
from fastff.kernels.fused_mlp import reference

OP = dispatch.register(dispatch.Op("fused_mlp", derivative_order=None, deterministic=True))
MAX_WIDTH = 128
"""Widest layer that the kernels keep in registers."""


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Apply a perceptron of two or three linear layers with SiLU between them, and none after the last.

    Parameters
    ----------
    x : Tensor
        Shape (n_rows, n_in); float32 for Triton, any floating dtype for torch.
    weights : sequence of Tensor
        Two or three weights of shape (n_out, n_in) of their layer, as in ``torch.nn.Linear``, of the dtype of ``x``.
    biases : sequence of Tensor
        One of shape (n_out,) per weight.

    Returns
    -------
    Tensor
        Shape (n_rows, n_out of the last layer).

    Raises
    ------
    DataError
        Shapes, dtypes or devices that do not fit.
    BackendError
        Triton is selected and cannot run (another dtype, a layer wider than 128).

    Notes
    -----
    The kernels multiply in three passes of tf32, which keeps the accuracy of float32 (on AMD in float32 itself). There
    are kernels for the result, for its first gradients, and for all gradients of that in ``x``, as losses of forces
    need them. Everything else (gradients of those in the parameters, third derivatives, and all but the first gradient
    in ``x`` where torch traces) is evaluated by torch from the reference, so any order is available on both back ends.
    Auto mode takes torch when a parameter requires its gradient, until the kernels have been measured to be faster in
    training. Deterministic. In the dtype of ``x`` also where ``torch.autocast`` is on.
    """
    weights, biases = list(weights), list(biases)
    _check(x, weights, biases)

    def run_triton() -> Tensor:
        if not dispatch.is_differentiated(x, *weights, *biases):
            return launch_forward(x, weights, biases)
        return (_forward if derivatives.is_traced() else _differentiably)(x, weights, biases)

    return dispatch.run(
        OP,
        x.device,
        run_triton,
        lambda: reference.fused_mlp(x, weights, biases),
        _find_obstacle(x, weights),
        _find_preference(weights, biases),
    )


@torch.library.custom_op("fastff::fused_mlp", mutates_args=())
def _forward(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return dispatch.attempt(
        OP,
        lambda: launch_forward(x, weights, biases),
        lambda: reference.fused_mlp(x, weights, biases),
    )


@torch.library.custom_op("fastff::fused_mlp_input_gradient", mutates_args=())
def _input_gradient(x: Tensor, weights: list[Tensor], biases: list[Tensor], grad: Tensor) -> Tensor:
    return launch_input_gradient(x, weights, biases, grad)


@_forward.register_fake
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return x.new_empty((x.shape[0], weights[-1].shape[0]))


@_input_gradient.register_fake
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor], grad: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, biases = inputs
    ctx.save_for_backward(x, *weights, *biases)
    ctx.n_layers = len(weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, list[Any], list[Any]]:
    """Gradient in x by the kernel where nothing else is asked for; else all gradients, with their graph, by torch.

    Of the op that torch traces; called eagerly it is :func:`_differentiably`.
    """
    n_layers = ctx.n_layers
    x, *parameters = ctx.saved_tensors
    weights, biases = parameters[:n_layers], parameters[n_layers:]

    def differentiate() -> tuple[Tensor, ...]:
        return derivatives.pull_back(_flat_reference, (x, *parameters), (grad,))

    if torch.is_grad_enabled() or any(one.requires_grad for one in parameters):
        found = differentiate()
        return found[0], list(found[1 : n_layers + 1]), list(found[n_layers + 1 :])
    grad_x = dispatch.attempt(
        OP, lambda: _input_gradient(x, weights, biases, grad), lambda: differentiate()[0]
    )
    return grad_x, [None] * n_layers, [None] * n_layers


_forward.register_autograd(_differentiate, setup_context=_keep)


def _differentiably(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """The result with two nodes in the graph, so that autograd runs kernels for what is asked for and no others.

    Forces need the gradient in ``x`` alone while parameters require theirs: a node is told what can be asked of it, not
    what is. Therefore the gradients in the parameters have a node of their own, with an output that nothing reads.
    """
    parameters = (*weights, *biases)
    link = None
    if any(one.requires_grad for one in parameters):
        link = _ParameterGradients.apply(x, *parameters)
    return _Value.apply(link, x, *parameters)


class _Value(torch.autograd.Function):
    """The perceptron, differentiable in ``x``."""

    @staticmethod
    def forward(ctx: Any, link: Tensor | None, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        weights, biases = _halve(parameters)
        return dispatch.attempt(
            OP,
            lambda: launch_forward(x, weights, biases),
            lambda: reference.fused_mlp(x, weights, biases),
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        grad_x = _InputGradient.apply(x, grad, *parameters) if ctx.needs_input_grad[1] else None
        return grad if ctx.needs_input_grad[0] else None, grad_x, *(None for _ in parameters)


class _ParameterGradients(torch.autograd.Function):
    """Stands for the result, without numbers; given the gradient in that, returns those in the parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        n_out = parameters[len(parameters) // 2 - 1].shape[0]
        return x.new_empty(()).expand(x.shape[0], n_out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors

        def evaluate(*values: Tensor) -> tuple[Tensor, ...]:
            return (reference.fused_mlp(x, *_halve(values)),)

        def differentiate() -> tuple[Tensor, ...]:
            return derivatives.pull_back(evaluate, parameters, (grad,))

        if torch.is_grad_enabled():
            return None, *differentiate()
        found = dispatch.attempt(
            OP, lambda: launch_gradients(x, *_halve(parameters), grad)[2:], differentiate
        )
        return None, *found


class _InputGradient(torch.autograd.Function):
    """Gradient of ``<grad, fused_mlp(x)>`` in ``x``, differentiable in everything."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, grad, *parameters)
        return dispatch.attempt(
            OP,
            lambda: launch_input_gradient(x, *_halve(parameters), grad),
            lambda: pull_to_input(x, grad, *parameters)[0],
        )

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor, ...]:
        x, grad, *parameters = inputs = ctx.saved_tensors

        def differentiate() -> tuple[Tensor, ...]:
            return derivatives.pull_back(pull_to_input, inputs, (direction,))

        if torch.is_grad_enabled():
            return differentiate()
        return dispatch.attempt(
            OP, lambda: launch_gradients(x, *_halve(parameters), grad, direction), differentiate
        )


def pull_to_input(x: Tensor, grad: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    """The gradient in ``x`` by torch."""
    return derivatives.pull_back(
        lambda value: (reference.fused_mlp(value, *_halve(parameters)),), (x,), (grad,)
    )


def _halve(parameters: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Weights and biases that were passed in one row."""
    return parameters[: len(parameters) // 2], parameters[len(parameters) // 2 :]


def launch_forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Launch ``forward_kernel``; arguments and result as :func:`fused_mlp`, without autograd."""
    from fastff.kernels.fused_mlp import kernels

    out = x.new_empty((x.shape[0], weights[-1].shape[0]))
    if out.numel() > 0:
        grid, fixed = _plan(kernels.FORWARD_SPACE, x, weights)
        parameters = _order_parameters(weights, biases)
        with dispatch.on_device(x.device):
            kernels.forward_kernel[grid](x.contiguous(), *parameters, out, x.shape[0], **fixed)
    return out


def launch_input_gradient(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], grad: Tensor
) -> Tensor:
    """Launch ``backward_kernel``: gradient of ``<grad, fused_mlp(x)>`` in x, shape (n_rows, n_in)."""
    from fastff.kernels.fused_mlp import kernels

    out = x.new_empty(x.shape)
    if out.numel() > 0:
        grid, fixed = _plan(kernels.BACKWARD_SPACE, x, weights)
        parameters = _order_parameters(weights, biases)[:-1]
        tensors = (x.contiguous(), grad.contiguous(), *parameters, out)
        with dispatch.on_device(x.device):
            kernels.backward_kernel[grid](*tensors, x.shape[0], **fixed)
    return out


def launch_gradients(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grad: Tensor,
    direction: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Launch ``parameters_kernel``: gradients of ``<grad, fused_mlp(x)>`` in the parameters.

    With a direction those of ``<direction, gradient of that in x>``, and those in ``x`` and ``grad``.

    Returns
    -------
    tuple of Tensor
        In ``x`` and ``grad`` (of shape (0,) without a direction), in the weights and in the biases.
    """
    from fastff.kernels.fused_mlp import parameters

    second = direction is not None
    of_x, of_grad = (one.new_empty(one.shape if second else 0) for one in (x, grad))
    if x.shape[0] == 0:
        return of_x, of_grad, *(torch.zeros_like(one) for one in (*weights, *biases))
    _, fixed = _plan(parameters.PARAMETERS_SPACE, x, weights)
    n_in, n_hidden1, n_hidden2, n_out = (fixed[k] for k in ("IN", "HIDDEN1", "HIDDEN2", "OUT"))
    n_layers, n_lines = fixed["LAYERS"], fixed["BLOCK_ROWS"]
    n_programs = min(fixed["PROGRAMS"], -(-x.shape[0] // n_lines))
    size = int(parameters.count_sums(n_in, n_hidden1, n_hidden2, n_out, n_layers))
    sums = x.new_empty((n_programs, size))
    scratch = (
        x.new_empty((n_programs, n_lines, 4 * n_hidden1 + 2 * n_hidden2)) if n_layers == 3 else sums
    )
    x, grad = x.contiguous(), grad.contiguous()
    along = grad if direction is None else direction.contiguous()
    tensors = (x, grad, along, *_order_parameters(weights, biases)[:-1], of_x, of_grad, scratch)
    with dispatch.on_device(x.device):
        parameters.parameters_kernel[(n_programs,)](
            *tensors, sums, x.shape[0], SECOND=second, **fixed
        )
    total = sums.sum(dim=0)
    shapes = [
        (n_in, n_hidden1),
        (n_hidden2, n_hidden1),
        (n_out, n_hidden2),
        (n_hidden1,),
        (n_hidden2,),
    ]
    if n_layers == 2:
        del shapes[1], shapes[-1]
    lengths = [torch.Size(shape).numel() for shape in shapes]
    parts = [part.view(shape) for part, shape in zip(total.split(lengths), shapes, strict=True)]
    parts[0] = parts[0].T
    of_weights = [
        part[: one.shape[0], : one.shape[1]].contiguous()
        for part, one in zip(parts[:n_layers], weights, strict=True)
    ]
    of_biases = [
        part[: one.shape[0]] for part, one in zip(parts[n_layers:], biases[:-1], strict=True)
    ]
    of_biases.append(torch.zeros_like(biases[-1]) if second else grad.sum(dim=0))
    return of_x, of_grad, *of_weights, *of_biases


def _order_parameters(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """First, middle and last weight and bias; with two layers the first stands in for the middle, unread."""
    order = (0, min(1, len(weights) - 2), -1)
    return [values[k].contiguous() for k in order for values in (weights, biases)]


def _plan(
    space: tuning.LaunchSpace, x: Tensor, weights: Sequence[Tensor]
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and compile-time arguments of all kernels; without SECOND, and another grid, those of the parameters'."""
    config = tuning.lookup(space, make_key(weights, x.dtype), x.device)
    fixed = {
        **config.to_arguments(),
        **list_constants(weights, config),
        "PRECISION": "tf32x3" if torch.version.hip is None else "ieee",
    }
    return (-(-x.shape[0] // config.blocks["BLOCK_ROWS"]),), fixed


def list_constants(weights: Sequence[Tensor], config: tuning.LaunchConfig) -> dict[str, int]:
    """Sizes that all kernels are compiled for."""
    widths = _list_widths(weights)
    padded = {name[2:].upper(): _pad(width) for name, width in widths.items()}
    chunk = min(config.blocks["CHUNK"], padded["IN"])
    return {**widths, **padded, "LAYERS": len(weights), **config.blocks, "CHUNK": chunk}


def make_key(weights: Sequence[Tensor], dtype: torch.dtype) -> str:
    """Key of all kernels in the tables."""
    return tuning.make_key(dtype, layers=len(weights), **_list_widths(weights))


def _list_widths(weights: Sequence[Tensor]) -> dict[str, int]:
    """Widths of the layers; with two layers there is one hidden width, given twice."""
    n_hidden1, n_in = weights[0].shape
    n_out, n_hidden2 = weights[-1].shape
    return {"n_in": n_in, "n_hidden1": n_hidden1, "n_hidden2": n_hidden2, "n_out": n_out}


def _pad(width: int) -> int:
    return max(16, 1 << (width - 1).bit_length())


def _flat_reference(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The reference over x, weights and biases in one row."""
    n_layers = len(inputs) // 2
    x, weights, biases = inputs[0], inputs[1 : n_layers + 1], inputs[n_layers + 1 :]
    return (reference.fused_mlp(x, weights, biases),)


def _find_obstacle(x: Tensor, weights: Sequence[Tensor]) -> str | None:
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, the kernels take float32"
    widest = max(max(weight.shape) for weight in weights)
    if widest > MAX_WIDTH:
        return f"a layer is {widest} wide, the kernels take up to {MAX_WIDTH}"
    return None


def _find_preference(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> str | None:
    if torch.is_grad_enabled() and any(one.requires_grad for one in (*weights, *biases)):
        return "parameters require their gradient, whose kernels are not measured to be faster than torch"
    return None


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise DataError(
            f"fused_mlp: x has shape {tuple(x.shape)} and dtype {x.dtype}; pass floating (n_rows, n_in)"
        )
    if len(weights) not in (2, 3) or len(biases) != len(weights):
        raise DataError(
            f"fused_mlp: {len(weights)} weights and {len(biases)} biases; pass two or three of each"
        )
    width = x.shape[1]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise DataError(
                f"fused_mlp: layer {k} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}; "
                f"pass (n_out, {width}) and (n_out,)"
            )
        for one in (weight, bias):
            if one.dtype != x.dtype or one.device != x.device:
                raise DataError(
                    f"fused_mlp: layer {k} is {one.dtype} on {one.device}, x {x.dtype} on {x.device}; "
                    "convert one of them"
                )
        width = weight.shape[0]
        if width < 1:
            raise DataError(f"fused_mlp: layer {k} has no outputs; pass at least one")
