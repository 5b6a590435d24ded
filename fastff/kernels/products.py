"""Matrix products of the kernels at a chosen precision.

Here: one device function over ``tl.dot``. Not here: the choice of the precision
(:class:`fastff.kernels.moment_potential.workspace.Options`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_to_tf32(value):
    """Every float32 rounded to the nearest number of eleven significant bits: exact on tensor cores that read tf32."""
    bits = (value.to(tl.int32, bitcast=True) + 4096) & -8192
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def cut_to_tf32(value):
    """Leading eleven bits of every float32: one operation less than :func:`round_to_tf32`."""
    bits = value.to(tl.int32, bitcast=True) & -8192
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def multiply(left, right, total, PRECISION: tl.constexpr):
    """``left @ right + total`` in float32.

    PRECISION: ``ieee``, ``tf32``, or ``tf32x3``, the sum of three tf32 products that keeps about 22 bits. Two things in
    it matter as much as the third product. The high parts are rounded to nearest: cut off, they leave low parts of one
    sign, whose dropped product and dropped last bits add up instead of averaging out. And ``total`` stays out of the
    tensor cores, which cut the sum of every few products towards zero.
    """
    if PRECISION == "tf32x3":
        high_left = round_to_tf32(left)
        high_right = round_to_tf32(right)
        part = tl.dot(high_left, right - high_right, tl.zeros_like(total), input_precision="tf32")
        part = tl.dot(left - high_left, high_right, part, input_precision="tf32")
        part = tl.dot(high_left, high_right, part, input_precision="tf32")
        total += part
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def multiply_coarsely(left, right, total, PRECISION: tl.constexpr):
    """Like :func:`multiply`, with a bias of about 4e-7 and fewer registers.

    For products whose error reaches the forces once and directly; where moments or messages pass it on, it grows.
    """
    if PRECISION == "tf32x3":
        high_left = cut_to_tf32(left)
        high_right = cut_to_tf32(right)
        total = tl.dot(left - high_left, high_right, total, input_precision="tf32")
        total = tl.dot(high_left, right - high_right, total, input_precision="tf32")
        total = tl.dot(high_left, high_right, total, input_precision="tf32")
    else:
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total
