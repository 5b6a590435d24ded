"""Triton kernels of the small multi-layer perceptron and of its derivatives, and their launch configurations.

Here: kernels and candidate configurations, nothing else. One program owns a block of rows, and hidden layers never
leave registers; for gradients in parameters it owns every n-th block, and parks hidden layers in a scratch of its own.
Every width is padded to a power of two of at least 16 for ``tl.dot``; padded rows of weights are zero, and silu(0) = 0,
so padding adds nothing.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

_CANDIDATES = tuple(
    LaunchConfig({"BLOCK_ROWS": rows, "CHUNK": chunk}, num_warps)
    for rows in (16, 32, 64, 128)
    for chunk in (16, 32, 64)
    for num_warps in (1, 2, 4, 8)
    if 8 * num_warps <= rows <= 32 * num_warps
)
FORWARD_SPACE = LaunchSpace(
    "fused_mlp", LaunchConfig({"BLOCK_ROWS": 64, "CHUNK": 32}, num_warps=4), _CANDIDATES
)
BACKWARD_SPACE = LaunchSpace(
    "fused_mlp_backward",
    LaunchConfig({"BLOCK_ROWS": 32, "CHUNK": 32}, num_warps=4),
    # 64 rows on 8 warps: illegal memory access on sm_90 (triton 3.6), whatever CHUNK, for a reason that was not found;
    # recorded in tables/sm_90.json of commit b50ada0
    tuple(c for c in _CANDIDATES if (c.blocks["BLOCK_ROWS"], c.num_warps) != (64, 8)),
)


@triton.jit
def sigmoid(x):
    """Logistic function."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu_slope(x):
    """Derivative of ``x sigmoid(x)``."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def load_tile(matrix, rows, n_rows, first, columns, n_columns: tl.constexpr):
    """Columns ``first + columns`` of some rows of a row-major matrix, zero outside of it."""
    at = first + columns
    mask = (rows < n_rows)[:, None] & (at < n_columns)[None, :]
    return tl.load(matrix + rows[:, None] * n_columns + at[None, :], mask=mask, other=0.0)


@triton.jit
def load_bias(bias, n_out: tl.constexpr, OUT: tl.constexpr):
    """A bias (n_out,) padded with zeros to (1, OUT)."""
    columns = tl.arange(0, OUT)
    return tl.load(bias + columns, mask=columns < n_out, other=0.0)[None, :]


@triton.jit
def apply_first(
    x,
    weight,
    bias,
    rows,
    n_rows,
    n_in: tl.constexpr,
    n_out: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``x[rows] @ weight^T + bias`` with x in memory, CHUNK input columns at a time to spare registers."""
    total = multiply_first(x, weight, rows, n_rows, n_in, n_out, IN, OUT, CHUNK, PRECISION)
    return total + load_bias(bias, n_out, OUT)


@triton.jit
def multiply_first(
    x,
    weight,
    rows,
    n_rows,
    n_in: tl.constexpr,
    n_out: tl.constexpr,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``x[rows] @ weight^T``."""
    columns, outputs = tl.arange(0, CHUNK), tl.arange(0, OUT)
    total = tl.zeros((rows.shape[0], OUT), dtype=tl.float32)
    for first in range(0, IN, CHUNK):
        part = load_tile(x, rows, n_rows, first, columns, n_in)
        w = load_tile(weight, outputs, n_out, first, columns, n_in)
        total = tl.dot(part, tl.trans(w), total, input_precision=PRECISION)
    return total


@triton.jit
def load_weight(
    weight, n_out: tl.constexpr, n_in: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr
):
    """A weight (n_out, n_in) padded with zeros to (OUT, IN)."""
    return load_tile(weight, tl.arange(0, OUT), n_out, 0, tl.arange(0, IN), n_in)


@triton.jit(do_not_specialize=["n_rows"])
def forward_kernel(
    x,
    weight1,
    bias1,
    weight2,
    bias2,
    weight3,
    bias3,
    out,
    n_rows,
    n_in: tl.constexpr,
    n_hidden1: tl.constexpr,
    n_hidden2: tl.constexpr,
    n_out: tl.constexpr,
    IN: tl.constexpr,
    HIDDEN1: tl.constexpr,
    HIDDEN2: tl.constexpr,
    OUT: tl.constexpr,
    LAYERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """x (n_rows, n_in) -> out (n_rows, n_out). With two layers the second's weight is weight3."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    h = apply_first(x, weight1, bias1, rows, n_rows, n_in, n_hidden1, IN, HIDDEN1, CHUNK, PRECISION)
    h = h * sigmoid(h)
    if LAYERS == 3:
        w2 = load_weight(weight2, n_hidden2, n_hidden1, HIDDEN2, HIDDEN1)
        h = tl.dot(h, tl.trans(w2), input_precision=PRECISION)
        h += load_bias(bias2, n_hidden2, HIDDEN2)
        h = h * sigmoid(h)
    w3 = load_weight(weight3, n_out, n_hidden2, OUT, HIDDEN2)
    y = tl.dot(h, tl.trans(w3), input_precision=PRECISION) + load_bias(bias3, n_out, OUT)
    columns = tl.arange(0, OUT)[None, :]
    mask = (rows < n_rows)[:, None] & (columns < n_out)
    tl.store(out + rows[:, None] * n_out + columns, y, mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def backward_kernel(
    x,
    grad_out,
    weight1,
    bias1,
    weight2,
    bias2,
    weight3,
    grad_x,
    n_rows,
    n_in: tl.constexpr,
    n_hidden1: tl.constexpr,
    n_hidden2: tl.constexpr,
    n_out: tl.constexpr,
    IN: tl.constexpr,
    HIDDEN1: tl.constexpr,
    HIDDEN2: tl.constexpr,
    OUT: tl.constexpr,
    LAYERS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient of <grad_out, out> in x, recomputing the hidden layers."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    z1 = apply_first(
        x, weight1, bias1, rows, n_rows, n_in, n_hidden1, IN, HIDDEN1, CHUNK, PRECISION
    )
    g = load_tile(grad_out, rows, n_rows, 0, tl.arange(0, OUT), n_out)
    w3 = load_weight(weight3, n_out, n_hidden2, OUT, HIDDEN2)
    g = tl.dot(g, w3, input_precision=PRECISION)
    if LAYERS == 3:
        w2 = load_weight(weight2, n_hidden2, n_hidden1, HIDDEN2, HIDDEN1)
        z2 = tl.dot(z1 * sigmoid(z1), tl.trans(w2), input_precision=PRECISION)
        z2 += load_bias(bias2, n_hidden2, HIDDEN2)
        g = tl.dot(g * silu_slope(z2), w2, input_precision=PRECISION)
    g = g * silu_slope(z1)
    columns, outputs = tl.arange(0, CHUNK), tl.arange(0, HIDDEN1)
    for first in range(0, IN, CHUNK):
        w1 = load_tile(weight1, outputs, n_hidden1, first, columns, n_in)
        part = tl.dot(g, w1, input_precision=PRECISION)
        at = first + columns
        mask = (rows < n_rows)[:, None] & (at < n_in)[None, :]
        tl.store(grad_x + rows[:, None] * n_in + at[None, :], part, mask=mask)
