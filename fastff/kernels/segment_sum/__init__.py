"""Sum of rows over consecutive segments, and its adjoint."""

from __future__ import annotations

from fastff.kernels.segment_sum.op import segment_gather, segment_sum

__all__ = ["segment_gather", "segment_sum"]
