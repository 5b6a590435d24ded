"""Definition of the small multi-layer perceptron.

Here: the formula in plain torch, any device, any floating dtype, differentiable to any order. Not here: checks,
dispatch or launchers (``op.py``), Triton kernels (``kernels.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from fastff.kernels.derivatives import leave_autocast


def fused_mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """``x <- silu(x @ W^T + b)`` per layer, the last one without silu. See ``op.fused_mlp`` for the contract."""
    *hidden, last = zip(weights, biases, strict=True)
    with leave_autocast(x.device):
        for weight, bias in hidden:
            x = functional.silu(functional.linear(x, weight, bias))
        return functional.linear(x, *last)
