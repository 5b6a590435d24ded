"""How ops are differentiated: their place in autograd, and derivatives of a reference where they have no kernel.

Here: :func:`join_autograd`; vector-Jacobian products of a torch function over flat tuples of tensors; what keeps
autocast from definitions. Not here: formulas of any op.

The latter are to be called from an op's registered backward, not from inside a ``custom_op``: there autograd is off
for good. When the caller differentiates again (``create_graph=True``) the results carry their graph, so no derivative
is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Function = Callable[..., tuple[Tensor, ...]]


def join_autograd(
    name: str,
    function: Callable[..., Any],
    shape: Callable[..., Any],
    keep: Callable[[Any, tuple[Any, ...], Any], None],
    differentiate: Callable[..., Any],
) -> Callable[..., Any]:
    """A function that autograd and torch.compile know.

    While torch traces it is the custom op ``fastff::name``; called eagerly it is an ``autograd.Function``, which
    keeps the host busy for less time.

    Parameters
    ----------
    name : str
    function : callable
        Of tensors and plain values, without a graph; annotated, as custom ops must be.
    shape : callable
        Empty results for the same arguments.
    keep : callable
        ``keep(context, inputs, output)`` saves what ``differentiate`` needs.
    differentiate : callable
        ``differentiate(context, *grads)`` returns a gradient, or None, for each argument. It is differentiable itself
        if what it calls is.
    """
    op = torch.library.custom_op(f"fastff::{name}", function, mutates_args=())
    op.register_fake(shape)
    op.register_autograd(differentiate, setup_context=keep)

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, *inputs: Any
        ) -> Any:  # setup_context would inspect signatures at every call
            output = function(*inputs)
            keep(ctx, inputs, output)
            return output

        backward = staticmethod(differentiate)

    def call(*inputs: Any) -> Any:
        return op(*inputs) if is_traced() else Call.apply(*inputs)

    return call


def is_traced() -> bool:
    """Whether torch follows what is called now, which only a registered op allows."""
    traced = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    return bool(traced or torch._C._are_functorch_transforms_active())


def leave_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Products in the dtype of their factors, as the kernels take them, also where ``torch.autocast`` is on."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def pull_back(
    function: Function, inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradient of ``sum_k <grads[k], function(*inputs)[k]>`` in every input; zeros where it does not depend on it.

    Inputs may depend on each other: gradients are partial ones.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), leave_autocast(grads[0].device):
        # A view has a place of its own in the graph: the way from one input to another does not pass through it.
        leaves = [
            one.view_as(one) if one.requires_grad else one.detach().requires_grad_()
            for one in inputs
        ]
        found = torch.autograd.grad(
            function(*leaves), leaves, grads, create_graph=create_graph, allow_unused=True
        )
    return tuple(
        torch.zeros_like(leaf) if grad is None else grad
        for leaf, grad in zip(leaves, found, strict=True)
    )


def pull_back_twice(
    function: Function,
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    directions: Sequence[Tensor],
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Derivatives of ``sum_i <directions[i], pull_back(function, inputs, grads)[i]>``.

    Returns
    -------
    tuple
        The gradients in ``inputs`` (the Hessian-vector product) and in ``grads`` (the Jacobian-vector product).
    """
    n_inputs = len(inputs)

    def differentiate(*values: Tensor) -> tuple[Tensor, ...]:
        pulled = pull_back(function, values[:n_inputs], values[n_inputs:])
        # A gradient that is constant still needs a place in the graph.
        return tuple(one + 0.0 * value for one, value in zip(pulled, values, strict=False))

    found = pull_back(differentiate, (*inputs, *grads), directions)
    return found[:n_inputs], found[n_inputs:]
