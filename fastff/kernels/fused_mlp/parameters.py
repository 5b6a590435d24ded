"""Triton kernel of the gradients of the small perceptron in its parameters, first and second.

Here: the kernel and its candidate configurations. Not here: the result and its gradients in the rows (``kernels.py``).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.fused_mlp.kernels import (
    apply_first,
    load_bias,
    load_tile,
    multiply_first,
    sigmoid,
)
from fastff.kernels.tuning import LaunchConfig, LaunchSpace

PARAMETERS_SPACE = LaunchSpace(
    "fused_mlp_parameters",
    LaunchConfig({"BLOCK_ROWS": 64, "CHUNK": 64, "PROGRAMS": 264}, num_warps=4),
    tuple(
        LaunchConfig({"BLOCK_ROWS": rows, "CHUNK": chunk, "PROGRAMS": programs}, num_warps=4)
        for rows in (16, 32, 64)
        for chunk in (32, 64)
        for programs in (264, 528)
    ),
)
"""Programs are a number of its own, not that of multiprocessors: it decides the order in which rows are added."""


@triton.constexpr_function
def count_sums(n_in, n_hidden1, n_hidden2, n_out, n_layers):
    """Numbers that a program of :func:`parameters_kernel` adds up."""
    middle = n_hidden2 * (n_hidden1 + 1) if n_layers == 3 else 0
    return n_in * n_hidden1 + middle + n_out * n_hidden2 + n_hidden1


@triton.jit
def bend(x):
    """``x sigmoid(x)`` with its first and second derivative."""
    s = sigmoid(x)
    flat = s * (1.0 - s)
    return x * s, s + x * flat, flat * (2.0 + x * (1.0 - 2.0 * s))


@triton.jit
def add_products(
    sums,
    later,
    left,
    right,
    left2,
    right2,
    rows,
    n_rows,
    n_columns: tl.constexpr,
    N,
    CHUNK: tl.constexpr,
    TWO: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add ``left[rows]^T @ right``, and where TWO that of the others, to ``sums`` (N, width of right) in memory.

    CHUNK rows of the sums at a time, because all of them and what else a block needs do not fit in registers. They
    begin from zero unless ``later``.
    """
    WIDTH: tl.constexpr = right.shape[1]
    columns = tl.arange(0, CHUNK)
    for first in range(0, N, CHUNK):
        place = sums + (first + columns)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
        total = tl.where(later, tl.load(place), 0.0)
        part = load_tile(left, rows, n_rows, first, columns, n_columns)
        total = tl.dot(tl.trans(part), right, total, input_precision=PRECISION)
        if TWO:
            part = load_tile(left2, rows, n_rows, first, columns, n_columns)
            total = tl.dot(tl.trans(part), right2, total, input_precision=PRECISION)
        tl.store(place, total)


@triton.jit
def store_tile(out, tile, rows, n_rows, first, columns, n_columns: tl.constexpr):
    """Store a tile where :func:`load_tile` loads one."""
    at = first + columns
    mask = (rows < n_rows)[:, None] & (at < n_columns)[None, :]
    tl.store(out + rows[:, None] * n_columns + at[None, :], tile, mask=mask)


@triton.jit(do_not_specialize=["n_rows"])
def parameters_kernel(
    x,
    grad_out,
    direction,
    weight1,
    bias1,
    weight2,
    bias2,
    weight3,
    grad_x,
    grad_grad,
    scratch,
    sums,
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
    SECOND: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Gradients in the parameters of <grad_out, out>; SECOND: of <direction, gradient of that in x>, and its gradients
    in x (n_rows, n_in) and grad_out (n_rows, n_out).

    One pass over the rows, hidden layers computed again. With t_k the change of layer k along ``direction``, and p_k
    and q_k the gradients after and before its silu: ``r_k = p_k t_k silu'' + (r_{k+1} W_{k+1}) silu'`` is the gradient
    in layer k that silu's curvature gives, and each W_k has ``q_k^T`` times the changes below it plus ``r_k^T`` times
    the values.

    ``sums`` (PROGRAMS, IN H1 + H2 H1 + OUT H2 + H1 + H2) get those of each program, to be added up: W1
    transposed, W2, W3 and the biases but the last, padded; of two layers without W2 and its bias. ``scratch``
    (PROGRAMS, BLOCK_ROWS, 4 H1 + 2 H2) is for three layers.
    """
    CHUNK1: tl.constexpr = min(CHUNK, HIDDEN1)
    CHUNK2: tl.constexpr = min(CHUNK, HIDDEN2)
    CHUNK3: tl.constexpr = min(CHUNK, OUT)
    SIZE: tl.constexpr = count_sums(IN, HIDDEN1, HIDDEN2, OUT, LAYERS)
    program = tl.program_id(0).to(tl.int64)
    lines = tl.arange(0, BLOCK_ROWS)
    columns, columns1 = tl.arange(0, CHUNK), tl.arange(0, CHUNK1)
    columns2, columns3 = tl.arange(0, CHUNK2), tl.arange(0, CHUNK3)
    hidden1, hidden2 = tl.arange(0, HIDDEN1), tl.arange(0, HIDDEN2)
    # a number unknown at compile time keeps loops from being unrolled, and all their loads from being live at once
    zero = tl.minimum(n_rows, 0)
    for_b1 = tl.zeros((HIDDEN1,), dtype=tl.float32)
    for_b2 = tl.zeros((HIDDEN2,), dtype=tl.float32)
    pushed = scratch + program * (BLOCK_ROWS * (4 * HIDDEN1 + 2 * HIDDEN2))
    turned = pushed + BLOCK_ROWS * HIDDEN2
    inner = turned + BLOCK_ROWS * HIDDEN2
    moved = inner + BLOCK_ROWS * HIDDEN1
    value = moved + BLOCK_ROWS * HIDDEN1
    change = value + BLOCK_ROWS * HIDDEN1
    for_w1 = sums + program * SIZE
    for_w2 = for_w1 + IN * HIDDEN1
    for_w3 = for_w2 + (HIDDEN2 * HIDDEN1 if LAYERS == 3 else 0)
    step = PROGRAMS * BLOCK_ROWS
    for first in range(program * BLOCK_ROWS, n_rows, step):
        rows = first + lines
        later = first >= step
        tl.debug_barrier()  # between what the block before wrote and its reading
        z1 = apply_first(
            x, weight1, bias1, rows, n_rows, n_in, n_hidden1, IN, HIDDEN1, CHUNK, PRECISION
        )
        a1, d1, c1 = bend(z1)
        if SECOND:
            t1 = multiply_first(
                direction, weight1, rows, n_rows, n_in, n_hidden1, IN, HIDDEN1, CHUNK, PRECISION
            )
            u1 = d1 * t1
        if LAYERS == 3:
            store_tile(inner, z1, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
            store_tile(value, a1, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
            if SECOND:
                store_tile(moved, t1, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
                store_tile(change, u1, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
            tl.debug_barrier()
            z2 = tl.zeros((BLOCK_ROWS, HIDDEN2), dtype=tl.float32)
            t2 = tl.zeros((BLOCK_ROWS, HIDDEN2), dtype=tl.float32)
            for start in range(0, HIDDEN1 + zero, CHUNK1):
                w2 = load_tile(weight2, hidden2, n_hidden2, start, columns1, n_hidden1)
                part = load_tile(value, lines, BLOCK_ROWS, start, columns1, HIDDEN1)
                z2 = tl.dot(part, tl.trans(w2), z2, input_precision=PRECISION)
                if SECOND:
                    part = load_tile(change, lines, BLOCK_ROWS, start, columns1, HIDDEN1)
                    t2 = tl.dot(part, tl.trans(w2), t2, input_precision=PRECISION)
            p = tl.zeros((BLOCK_ROWS, HIDDEN2), dtype=tl.float32)
            for start in range(0, OUT + zero, CHUNK3):
                g = load_tile(grad_out, rows, n_rows, start, columns3, n_out)
                w3 = load_tile(weight3, start + columns3, n_out, 0, hidden2, n_hidden2)
                p = tl.dot(g, w3, p, input_precision=PRECISION)
            a2, d2, c2 = bend(z2 + load_bias(bias2, n_hidden2, HIDDEN2))
            q2 = p * d2
            store_tile(pushed, q2, lines, BLOCK_ROWS, 0, hidden2, HIDDEN2)
            if SECOND:
                r2 = p * t2 * c2
                last = d2 * t2
                store_tile(turned, r2, lines, BLOCK_ROWS, 0, hidden2, HIDDEN2)
                for_b2 += tl.sum(r2, axis=0)
            else:
                last = a2
                for_b2 += tl.sum(q2, axis=0)
        elif SECOND:
            last = u1
        else:
            last = a1
        add_products(
            for_w3, later, grad_out, last, grad_out, last, rows, n_rows, n_out, OUT + zero, CHUNK3,
            False, PRECISION,
        )  # fmt: skip
        if SECOND:
            for start in range(0, OUT + zero, CHUNK3):
                w3 = load_tile(weight3, start + columns3, n_out, 0, hidden2, n_hidden2)
                part = tl.dot(last, tl.trans(w3), input_precision=PRECISION)
                store_tile(grad_grad, part, rows, n_rows, start, columns3, n_out)
        if LAYERS == 3:
            tl.debug_barrier()
            a1 = load_tile(value, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
            if SECOND:
                u1 = load_tile(change, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
                add_products(
                    for_w2, later, pushed, u1, turned, a1, lines, BLOCK_ROWS, HIDDEN2, HIDDEN2 + zero,
                    CHUNK2, True, PRECISION,
                )  # fmt: skip
            else:
                add_products(
                    for_w2, later, pushed, a1, pushed, a1, lines, BLOCK_ROWS, HIDDEN2, HIDDEN2 + zero,
                    CHUNK2, False, PRECISION,
                )  # fmt: skip
            p = tl.zeros((BLOCK_ROWS, HIDDEN1), dtype=tl.float32)
            bent = tl.zeros((BLOCK_ROWS, HIDDEN1), dtype=tl.float32)
            for start in range(0, HIDDEN2 + zero, CHUNK2):
                w2 = load_tile(weight2, start + columns2, n_hidden2, 0, hidden1, n_hidden1)
                part = load_tile(pushed, lines, BLOCK_ROWS, start, columns2, HIDDEN2)
                p = tl.dot(part, w2, p, input_precision=PRECISION)
                if SECOND:
                    part = load_tile(turned, lines, BLOCK_ROWS, start, columns2, HIDDEN2)
                    bent = tl.dot(part, w2, bent, input_precision=PRECISION)
            if SECOND:
                t1 = load_tile(moved, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1)
            a1, d1, c1 = bend(load_tile(inner, lines, BLOCK_ROWS, 0, hidden1, HIDDEN1))
        else:
            p = tl.zeros((BLOCK_ROWS, HIDDEN1), dtype=tl.float32)
            for start in range(0, OUT + zero, CHUNK3):
                g = load_tile(grad_out, rows, n_rows, start, columns3, n_out)
                w3 = load_tile(weight3, start + columns3, n_out, 0, hidden1, n_hidden1)
                p = tl.dot(g, w3, p, input_precision=PRECISION)
        q1 = p * d1
        if SECOND:
            r1 = p * t1 * c1
            if LAYERS == 3:
                r1 += bent * d1
            for_b1 += tl.sum(r1, axis=0)
            for start in range(0, IN + zero, CHUNK):
                w1 = load_tile(weight1, hidden1, n_hidden1, start, columns, n_in)
                part = tl.dot(r1, w1, input_precision=PRECISION)
                store_tile(grad_x, part, rows, n_rows, start, columns, n_in)
            add_products(
                for_w1, later, x, r1, direction, q1, rows, n_rows, n_in, IN + zero, CHUNK,
                True, PRECISION,
            )  # fmt: skip
        else:
            for_b1 += tl.sum(q1, axis=0)
            add_products(
                for_w1, later, x, q1, x, q1, rows, n_rows, n_in, IN + zero, CHUNK, False, PRECISION
            )
    for_biases = for_w3 + OUT * HIDDEN2
    tl.store(for_biases + hidden1, for_b1)
    if LAYERS == 3:
        tl.store(for_biases + HIDDEN1 + hidden2, for_b2)
