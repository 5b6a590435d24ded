"""First and second derivatives of a reference, for ops that have no kernel of their own for them.

Here: vector-Jacobian products of a torch function over flat tuples of tensors. Not here: formulas of any op. An op uses
these inside its registered backward and backward-of-backward, so that what it declares is complete on every back end.
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
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in inputs]
        outputs = function(*leaves)
        found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
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
        leaves, seeds = values[:n_inputs], values[n_inputs:]
        found = torch.autograd.grad(
            function(*leaves), leaves, seeds, create_graph=True, allow_unused=True
        )
        return tuple(
            leaf * 0.0 if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)
        )

    found = pull_back(differentiate, (*inputs, *grads), directions)
    return found[:n_inputs], found[n_inputs:]
