"""Small multi-layer perceptron whose hidden layers stay in registers."""

from __future__ import annotations

from fastff.kernels.fused_mlp.op import fused_mlp

__all__ = ["fused_mlp"]
