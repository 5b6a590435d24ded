"""Triton kernel of the node block, and its launch configurations.

Here: moments of a block of atoms to invariants, perceptron, energy and messages, and straight back to the gradient in
the moments. Not here: the unrolled couplings (``cubic.py``), launches (:mod:`fastff.kernels.moment_potential`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.node_block.cubic import evaluate_cubic, evaluate_cubic_slope, find_degree
from fastff.kernels.tuning import LaunchConfig, LaunchSpace

NODE_SPACE = LaunchSpace(
    "node_block",
    LaunchConfig({"ATOMS": 16}, 4, 1),
    tuple(
        LaunchConfig({"ATOMS": atoms}, num_warps, 1)
        for atoms in (16, 32, 64)
        for num_warps in (1, 2, 4, 8)
    ),
)
N_KINDS: tl.constexpr = tl.constexpr(8)
_SCALE: tl.constexpr = tl.constexpr(2.0**32)


@triton.jit
def activate(x):
    """SiLU and its derivative."""
    gate = tl.sigmoid(x)
    value = x * gate
    return value, gate + value * (1.0 - gate)


@triton.jit(do_not_specialize=["n_atoms"])
def node_kernel(
    sites,
    moments,
    messages_in,
    mixing,
    shift,
    weight1,
    bias1,
    weight2,
    bias2,
    readout,
    vacuum,
    message,
    message_bias,
    energies,
    messages_out,
    message_gradients,
    gradients,
    extra_gradients,
    n_atoms,
    C: tl.constexpr,
    Q: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    WITH_ENERGY: tl.constexpr,
    WITH_MESSAGES: tl.constexpr,
    WITH_ADJOINT: tl.constexpr,
    PULL_MESSAGES: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
    ATOMS: tl.constexpr,
):
    """Energies (n_atoms,), messages (n_atoms, C) and dE/dA (n_atoms, 16, C) of ATOMS atoms per program.

    Weights are those of ``node_block.reference.NodeWeights`` with the input scale multiplied into ``weight1``.
    HAS_EXTRA: the atom's own message (``messages_in``) is an input too, and its gradient goes to ``extra_gradients``,
    in fixed point where FIXED. PULL_MESSAGES: ``message_gradients`` (in fixed point where FIXED) are pulled back too.
    ``gradients`` may be the memory of ``moments``.
    """
    rows = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)
    inside = rows < n_atoms
    there = inside[:, None]
    channels = tl.arange(0, C)
    mixeds = tl.arange(0, Q)
    hidden1 = tl.arange(0, H1)
    hidden2 = tl.arange(0, H2)
    species = tl.load(sites + rows * 4 + 3, mask=inside, other=0)

    mixed = ()
    for lm in tl.static_range(16):
        part = tl.load(
            moments + rows[:, None] * (16 * C) + lm * C + channels[None, :], mask=there, other=0.0
        )
        mix = tl.load(mixing + find_degree(lm) * (C * Q) + channels[:, None] * Q + mixeds[None, :])
        mixed = mixed + (tl.dot(part, mix, input_precision=PRECISION),)  # noqa: RUF005

    pre = tl.load(bias1 + species[:, None] * H1 + hidden1[None, :])
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
        value = value - tl.load(shift + kind * Q + mixeds)[None, :]
        layer = tl.load(weight1 + (kind * Q + mixeds)[:, None] * H1 + hidden1[None, :])
        pre = tl.dot(value, layer, pre, input_precision=PRECISION)
    if HAS_EXTRA:
        own = tl.load(messages_in + rows[:, None] * C + channels[None, :], mask=there, other=0.0)
        own = own - tl.load(shift + channels + N_KINDS * Q)[None, :]
        layer = tl.load(weight1 + (channels + N_KINDS * Q)[:, None] * H1 + hidden1[None, :])
        pre = tl.dot(own, layer, pre, input_precision=PRECISION)
    value1, slope1 = activate(pre)
    pre = tl.load(bias2 + species[:, None] * H2 + hidden2[None, :])
    layer = tl.load(weight2 + hidden1[:, None] * H2 + hidden2[None, :])
    pre = tl.dot(value1, layer, pre, input_precision=PRECISION)
    value2, slope2 = activate(pre)
    pull = tl.load(readout + species[:, None] * H2 + hidden2[None, :])
    if WITH_ENERGY:
        energy = tl.sum(value2 * pull, axis=1) - tl.load(vacuum + species)
        tl.store(energies + rows, energy, mask=inside)
    if WITH_MESSAGES:
        layer = tl.load(message + hidden2[:, None] * C + channels[None, :])
        out = tl.load(message_bias + species[:, None] * C + channels[None, :])
        out = tl.dot(value2, layer, out, input_precision=PRECISION)
        tl.store(messages_out + rows[:, None] * C + channels[None, :], out, mask=there)
    if WITH_ADJOINT:
        if PULL_MESSAGES:
            raw = tl.load(
                message_gradients + rows[:, None] * C + channels[None, :], mask=there, other=0
            )
            if FIXED:
                raw = raw.to(tl.float32) * (1.0 / _SCALE)
            layer = tl.load(message + hidden2[None, :] * C + channels[:, None])
            pull = tl.dot(raw, layer, pull, input_precision=PRECISION)
        layer = tl.load(weight2 + hidden1[None, :] * H2 + hidden2[:, None])
        pull = tl.dot(pull * slope2, layer, input_precision=PRECISION) * slope1
        grads = ()
        for kind in tl.static_range(N_KINDS):
            layer = tl.load(weight1 + (kind * Q + mixeds)[None, :] * H1 + hidden1[:, None])
            grads = grads + (tl.dot(pull, layer, input_precision=PRECISION),)  # noqa: RUF005
        if HAS_EXTRA:
            layer = tl.load(weight1 + (channels + N_KINDS * Q)[None, :] * H1 + hidden1[:, None])
            extra = tl.dot(pull, layer, input_precision=PRECISION)
            if FIXED:
                extra = (extra * _SCALE).to(tl.int64)
            tl.store(extra_gradients + rows[:, None] * C + channels[None, :], extra, mask=there)
        for lm in tl.static_range(16):
            if lm == 0:
                grad = grads[0]
            else:
                grad = mixed[lm] * grads[find_degree(lm)] * (2.0 / (2 * find_degree(lm) + 1))
                grad += evaluate_cubic_slope(mixed, grads, lm)
            mix = tl.load(
                mixing + find_degree(lm) * (C * Q) + channels[None, :] * Q + mixeds[:, None]
            )
            tl.store(
                gradients + rows[:, None] * (16 * C) + lm * C + channels[None, :],
                tl.dot(grad, mix, input_precision=PRECISION),
                mask=there,
            )
