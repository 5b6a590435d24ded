"""First and second derivatives of a reference, for what an op has no kernel of its own.

Here: vector-Jacobian products of a torch function over flat tuples of tensors. Not here: formulas of any op.

To be called from an op's registered backward, not from inside a ``custom_op``: there autograd is off for good. When the
caller differentiates again (``create_graph=True``) the results carry their graph, so no derivative is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., tuple[Tensor, ...]]


def pull_back(
    function: Function, inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradient of ``sum_k <grads[k], function(*inputs)[k]>`` in every input; zeros where it does not depend on it."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [one if one.requires_grad else one.detach().requires_grad_() for one in inputs]
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
