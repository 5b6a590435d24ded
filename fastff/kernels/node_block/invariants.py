"""Triton kernels between moments and invariants, and their launch configurations.

Here: moments to mixed moments and invariants, and gradients in the invariants to gradients in the moments. What passes
between these and the kernel of the perceptron (``perceptron.py``) is 1.5 kB per atom: one that kept all of it in
registers spilled kilobytes. Not here: the unrolled couplings (``cubic.py``), launches
(:mod:`fastff.kernels.moment_potential`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastff.kernels.node_block.cubic import evaluate_cubic, evaluate_cubic_slope, find_degree
from fastff.kernels.products import multiply
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

_NARROW = make_key(torch.float32, channels=16, mixed=16)
_WIDE = make_key(torch.float32, channels=32, mixed=32)
_WIDEST = make_key(torch.float32, channels=64, mixed=64)
_DOUBLE = make_key(torch.float32, channels=128, mixed=128)
INVARIANTS_SPACE = LaunchSpace(
    "invariants",
    LaunchConfig({"ATOMS": 32}, 4, 1),
    tuple(
        LaunchConfig({"ATOMS": atoms}, num_warps, 1)
        for atoms, num_warps in ((16, 1), (16, 2), (16, 4), (16, 8), (32, 2), (32, 4))
    ),
    (
        (_NARROW, LaunchConfig({"ATOMS": 32}, 2, 1)),
        (_WIDE, LaunchConfig({"ATOMS": 16}, 4, 1)),
        (_WIDEST, LaunchConfig({"ATOMS": 16}, 4, 1)),
        (_DOUBLE, LaunchConfig({"ATOMS": 16}, 8, 1)),
    ),
)
PULLBACK_SPACE = LaunchSpace(
    "invariants_adjoint",
    LaunchConfig({"ATOMS": 32}, 4, 1),
    tuple(
        LaunchConfig({"ATOMS": atoms}, num_warps, 1)
        for atoms, num_warps in ((16, 1), (16, 2), (16, 4), (16, 8), (32, 4), (32, 8))
    ),
    (
        (_WIDE, LaunchConfig({"ATOMS": 32}, 8, 1)),
        *((key, LaunchConfig({"ATOMS": 16}, 8, 1)) for key in (_WIDEST, _DOUBLE)),
    ),
)
N_KINDS: tl.constexpr = tl.constexpr(8)


@triton.jit(do_not_specialize=["n_atoms"])
def invariants_kernel(
    moments,
    mixing,
    mixed_out,
    invariants,
    n_atoms,
    C: tl.constexpr,
    Q: tl.constexpr,
    PRECISION: tl.constexpr,
    ATOMS: tl.constexpr,
):
    """Mixed moments (n_atoms, 16, Q) and invariants (n_atoms, 8 Q) of moments (n_atoms, 16, C).

    ``mixed_out`` may be the memory of ``moments`` where C equals Q.
    """
    rows = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)
    there = (rows < n_atoms)[:, None]
    channels = tl.arange(0, C)[None, :]
    mixeds = tl.arange(0, Q)[None, :]
    mixed = ()
    for lm in tl.static_range(16):
        part = tl.load(
            moments + rows[:, None] * (16 * C) + lm * C + channels, mask=there, other=0.0
        )
        mix = tl.load(mixing + find_degree(lm) * (C * Q) + tl.arange(0, C)[:, None] * Q + mixeds)
        tl.debug_barrier()  # all have read before anyone writes, should the memory be the same
        part = multiply(part, mix, tl.zeros((ATOMS, Q), dtype=tl.float32), PRECISION)
        tl.store(mixed_out + rows[:, None] * (16 * Q) + lm * Q + mixeds, part, mask=there)
        mixed = mixed + (part,)  # noqa: RUF005
    for kind in tl.static_range(N_KINDS):
        if kind == 0:
            value = mixed[0]
        elif kind < 4:
            value = tl.zeros_like(mixed[0])
            for m in tl.static_range(2 * kind + 1):
                value += mixed[kind * kind + m] * mixed[kind * kind + m]
            value = value * (1.0 / (2 * kind + 1))
        else:
            value = evaluate_cubic(mixed, kind - 4)
        tl.store(invariants + rows[:, None] * (N_KINDS * Q) + kind * Q + mixeds, value, mask=there)


@triton.jit(do_not_specialize=["n_atoms"])
def pullback_kernel(
    mixed,
    invariant_gradients,
    sent,
    mixing,
    gradients,
    n_atoms,
    C: tl.constexpr,
    Q: tl.constexpr,
    DEGREE: tl.constexpr,
    PRECISION: tl.constexpr,
    ATOMS: tl.constexpr,
):
    """dE/dA (n_atoms, 16, C) from mixed moments (n_atoms, 16, Q) and dE/d(invariants) (n_atoms, 8 Q).

    DEGREE: ``sent`` (n_atoms, 4, Q) holds, but for l = 0, a gradient in the mixed moments that messages were made of.

    Overwrites ``mixed`` with the gradient in it: passing that through memory keeps the layout that products want out of
    the couplings, where it would replicate everything. ``gradients`` may be the memory of ``mixed`` where C equals Q.
    """
    rows = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)
    there = (rows < n_atoms)[:, None]
    channels = tl.arange(0, C)[None, :]
    mixeds = tl.arange(0, Q)[None, :]
    place = mixed + rows[:, None] * (16 * Q) + mixeds
    parts = ()
    for lm in tl.static_range(16):
        parts = parts + (tl.load(place + lm * Q, mask=there, other=0.0),)  # noqa: RUF005
    pulls = ()
    for kind in tl.static_range(N_KINDS):
        source = invariant_gradients + rows[:, None] * (N_KINDS * Q) + kind * Q + mixeds
        pulls = pulls + (tl.load(source, mask=there, other=0.0),)  # noqa: RUF005
    for lm in tl.static_range(16):
        if lm == 0:
            grad = pulls[0]
        else:
            grad = parts[lm] * pulls[find_degree(lm)] * (2.0 / (2 * find_degree(lm) + 1))
            grad += evaluate_cubic_slope(parts, pulls, lm)
            if DEGREE > 0 and lm < 4:
                back = sent + rows[:, None] * (4 * Q) + lm * Q + mixeds
                grad += tl.load(back, mask=there, other=0.0)
        tl.store(place + lm * Q, grad, mask=there)
    tl.debug_barrier()
    for degree in tl.static_range(4):
        mix = tl.load(mixing + degree * (C * Q) + channels * Q + tl.arange(0, Q)[:, None])
        for lm in range(degree * degree, (degree + 1) * (degree + 1)):
            grad = tl.load(place + lm * Q, mask=there, other=0.0)
            tl.debug_barrier()
            grad = multiply(grad, mix, tl.zeros((ATOMS, C), dtype=tl.float32), PRECISION)
            tl.store(gradients + rows[:, None] * (16 * C) + lm * C + channels, grad, mask=there)
