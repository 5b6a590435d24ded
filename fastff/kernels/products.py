"""Matrix products of the kernels at a chosen precision.

Here: one device function over ``tl.dot``. Not here: the choice of the precision
(:class:`fastff.kernels.moment_potential.evaluate.Options`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def truncate(value):
    """Leading eleven bits of every float32: exact on tensor cores that read tf32."""
    bits = value.to(tl.int32, bitcast=True) & -8192
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def multiply(left, right, total, PRECISION: tl.constexpr):
    """``left @ right + total`` in float32.

    PRECISION: ``ieee``, ``tf32``, or ``tf32x3``, the sum of three tf32 products that keeps about 21 bits: what Triton's
    own does, without its test for infinities in every partial sum.
    """
    if PRECISION == "tf32x3":
        high_left = truncate(left)
        high_right = truncate(right)
        total = tl.dot(left - high_left, high_right, total, input_precision="tf32")
        total = tl.dot(high_left, right - high_right, total, input_precision="tf32")
        total = tl.dot(high_left, high_right, total, input_precision="tf32")
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total
