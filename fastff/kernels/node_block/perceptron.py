"""Triton kernel of the perceptron of a node block, and its launch configurations.

Here: invariants through the perceptron to energy and messages, and back to the gradient in the invariants. Not here:
invariants (``invariants.py``), launches (:mod:`fastff.kernels.moment_potential`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastff.kernels.products import multiply
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

_SHALLOW = LaunchConfig({"ATOMS": 16, "DEPTH": 32}, 4, 1)
_DEEP = LaunchConfig({"ATOMS": 16, "DEPTH": 64}, 4, 1)
_DEEPEST = LaunchConfig({"ATOMS": 16, "DEPTH": 64}, 8, 1)


def _key_perceptron(channels: int, degree: int, hidden: int) -> str:
    """Key of a perceptron with as many mixed channels as channels; ``hidden``: the wider of its two layers."""
    directed = {"degree": degree} if degree else {}
    widths = {"channels": channels, "inputs": 8 * channels, "hidden": hidden}
    return make_key(torch.float32, **widths, **directed)


PERCEPTRON_SPACE = LaunchSpace(
    "node_perceptron",
    LaunchConfig({"ATOMS": 32, "DEPTH": 32}, 4, 1),
    tuple(
        LaunchConfig({"ATOMS": atoms, "DEPTH": depth}, num_warps, 1)
        for atoms, num_warps in ((16, 2), (16, 4), (16, 8), (32, 4))
        for depth in (32, 64)
    ),
    (
        *((_key_perceptron(c, 0, 64), _SHALLOW) for c in (32, 64)),
        *((_key_perceptron(c, 1, 64), _SHALLOW) for c in (16, 32, 64)),
        *((_key_perceptron(c, degree, 128), _DEEP) for c in (32, 64) for degree in (0, 1)),
        *((_key_perceptron(128, degree, 64), _DEEP) for degree in (0, 1)),
        *((_key_perceptron(128, degree, 128), _DEEPEST) for degree in (0, 1)),
    ),
)
_SCALE: tl.constexpr = tl.constexpr(2.0**32)
_PART: tl.constexpr = tl.constexpr(16)  # hidden units per product with a hidden layer


@triton.jit
def activate(x):
    """SiLU and its derivative."""
    falling = tl.exp(-tl.abs(x))  # never overflows
    gate = tl.where(x >= 0.0, 1.0, falling) / (1.0 + falling)
    value = x * gate
    return value, gate + value * (1.0 - gate)


@triton.jit
def load_inputs(place, shift, curb, column, mask):
    """Inputs less their shift, and the factor that keeps them within the limit; see ``reference.bound_inputs``."""
    part = tl.load(place, mask=mask, other=0.0) - tl.load(shift + column)[None, :]
    ratio = part * tl.load(curb + column)[None, :]
    return part, tl.rsqrt(1.0 + ratio * ratio)


@triton.jit
def evaluate_messages(
    hidden,
    message,
    message_bias,
    species,
    FIRST: tl.constexpr,
    C: tl.constexpr,
    H2: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """C messages (ATOMS, C) from column FIRST of WIDTH, without limit, from the last hidden layer (ATOMS, H2)."""
    columns = FIRST + tl.arange(0, C)
    layer = tl.load(message + tl.arange(0, H2)[:, None] * WIDTH + columns[None, :])
    bias = tl.load(message_bias + species[:, None] * WIDTH + columns[None, :])
    return multiply(hidden, layer, bias, PRECISION)


@triton.jit
def curb_messages(out, curb):
    """The factor that keeps messages within their limits; see ``reference.bound_messages``."""
    ratio = out * tl.load(curb)[None, :]
    return tl.rsqrt(1.0 + ratio * ratio)


@triton.jit
def curb_moments(moment, curb, there, C: tl.constexpr):
    """The factor that keeps moments of l = 1 within their limit; see ``moments.messages.bound_moments``."""
    total = tl.zeros(moment.shape, dtype=tl.float32)
    for lm in tl.static_range(1, 4):
        part = tl.load(moment + lm * C, mask=there, other=0.0)
        total += part * part
    limit = tl.load(curb)[None, :]
    return tl.rsqrt(1.0 + total * (limit * limit))


@triton.jit
def load_sums(place, mask, FIXED: tl.constexpr):
    """Accumulated gradients as float32."""
    raw = tl.load(place, mask=mask, other=0)
    if FIXED:
        raw = raw.to(tl.float32) * (1.0 / _SCALE)
    return raw


@triton.jit
def multiply_parts(left, layer, down, across, total, PRECISION: tl.constexpr, DEPTH: tl.constexpr):
    """``left @ layer + total`` with a layer in memory, DEPTH of its rows at a time: whole and split in high and low
    parts, it would not fit in registers.

    ``down`` and ``across`` are the steps in memory to the next row and column of the layer.
    """
    HALF: tl.constexpr = left.shape[1] // 2
    halves = tl.permute(tl.reshape(left, (left.shape[0], 2, HALF)), (0, 2, 1))
    first, second = tl.split(halves)
    if HALF > DEPTH:
        total = multiply_parts(first, layer, down, across, total, PRECISION, DEPTH)
        return multiply_parts(second, layer + HALF * down, down, across, total, PRECISION, DEPTH)
    else:
        place = tl.arange(0, HALF)[:, None] * down + tl.arange(0, total.shape[1])[None, :] * across
        total = multiply(first, tl.load(layer + place), total, PRECISION)
        return multiply(second, tl.load(layer + HALF * down + place), total, PRECISION)


@triton.jit(do_not_specialize=["n_atoms"])
def perceptron_kernel(
    sites,
    invariants,
    mixed,
    messages_in,
    shift,
    curb,
    weight1,
    bias1,
    weight2,
    bias2,
    readout,
    vacuum,
    message,
    message_bias,
    message_curb,
    moment_curb,
    energies,
    messages_out,
    message_gradients,
    gradients,
    extra_gradients,
    n_atoms,
    C: tl.constexpr,
    INPUTS: tl.constexpr,
    H1: tl.constexpr,
    H2: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    WITH_ENERGY: tl.constexpr,
    WITH_MESSAGES: tl.constexpr,
    WITH_ADJOINT: tl.constexpr,
    PULL_MESSAGES: tl.constexpr,
    DEGREE: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
    ATOMS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Energies (n_atoms,), messages and dE/d(invariants) (n_atoms, INPUTS) of ATOMS atoms per program.

    Weights are those of ``node_block.reference.NodeWeights`` with the input scale multiplied into ``weight1``; ``curb``
    is the input scale over the limit of the inputs.
    HAS_EXTRA: the atom's own message (``messages_in``) is an input too, and its gradient goes to ``extra_gradients``,
    in fixed point where FIXED. PULL_MESSAGES: ``message_gradients`` (in fixed point where FIXED) are pulled back too.
    Messages and their gradients are (n_atoms, (DEGREE + 1)^2, C). Of degree one they are ``mixed`` moments (n_atoms,
    16, C) times gates; pulled back, the gradient in those moments takes their place in ``messages_out``.
    ``gradients`` may be the memory of ``invariants``. DEPTH inputs are taken at a time.
    """
    rows = tl.program_id(0).to(tl.int64) * ATOMS + tl.arange(0, ATOMS)
    inside = rows < n_atoms
    there = inside[:, None]
    channels = tl.arange(0, C)
    hidden1 = tl.arange(0, H1)
    hidden2 = tl.arange(0, H2)
    WIDTH: tl.constexpr = (DEGREE + 1) * C
    SENT: tl.constexpr = (DEGREE + 1) * WIDTH
    species = tl.load(sites + rows * 4 + 3, mask=inside, other=0)

    pre = tl.load(bias1 + species[:, None] * H1 + hidden1[None, :])
    if HAS_EXTRA:
        own_place = messages_in + rows[:, None] * SENT + channels[None, :]
        own, own_factor = load_inputs(own_place, shift, curb, channels + INPUTS, there)
        layer = tl.load(weight1 + (channels + INPUTS)[:, None] * H1 + hidden1[None, :])
        pre = multiply(own * own_factor, layer, pre, PRECISION)
    for first in range(0, INPUTS, DEPTH):
        column = first + tl.arange(0, DEPTH)
        place = invariants + rows[:, None] * INPUTS + column[None, :]
        part, factor = load_inputs(place, shift, curb, column, there)
        rise = tl.load(weight1 + column[:, None] * H1 + hidden1[None, :])
        pre = multiply(part * factor, rise, pre, PRECISION)
    value1, slope1 = activate(pre)
    pre = tl.load(bias2 + species[:, None] * H2 + hidden2[None, :])
    pre = multiply_parts(value1, weight2, H2, 1, pre, PRECISION, _PART)
    value2, slope2 = activate(pre)
    pull = tl.load(readout + species[:, None] * H2 + hidden2[None, :])
    if WITH_ENERGY:
        energy = tl.sum(value2 * pull, axis=1) - tl.load(vacuum + species)
        tl.store(energies + rows, energy, mask=inside)
    if WITH_MESSAGES:
        out = evaluate_messages(value2, message, message_bias, species, 0, C, H2, WIDTH, PRECISION)
        if DEGREE > 0:
            out *= curb_messages(out, message_curb + channels)
        tl.store(messages_out + rows[:, None] * SENT + channels[None, :], out, mask=there)
        if DEGREE > 0:
            gate = evaluate_messages(
                value2, message, message_bias, species, C, C, H2, WIDTH, PRECISION
            )
            gate *= curb_messages(gate, message_curb + C + channels)
            target = messages_out + rows[:, None] * SENT + channels[None, :]
            moment = mixed + rows[:, None] * (16 * C) + channels[None, :]
            gate *= curb_moments(moment, moment_curb + C + channels, there, C)
            for lm in tl.static_range(1, 4):
                part = tl.load(moment + lm * C, mask=there, other=0.0)
                tl.store(target + lm * C, gate * part, mask=there)
    if WITH_ADJOINT:
        if PULL_MESSAGES:
            sums = message_gradients + rows[:, None] * SENT + channels[None, :]
            raw = load_sums(sums, there, FIXED)
            if DEGREE > 0:
                out = evaluate_messages(
                    value2, message, message_bias, species, 0, C, H2, WIDTH, PRECISION
                )
                keep = curb_messages(out, message_curb + channels)
                raw = raw * (keep * keep * keep)
            layer = tl.load(message + hidden2[None, :] * WIDTH + channels[:, None])
            pull = multiply(raw, layer, pull, PRECISION)
            if DEGREE > 0:
                gate = evaluate_messages(
                    value2, message, message_bias, species, C, C, H2, WIDTH, PRECISION
                )
                keep = curb_messages(gate, message_curb + C + channels)
                gate *= keep
                target = messages_out + rows[:, None] * SENT + channels[None, :]
                moment = mixed + rows[:, None] * (16 * C) + channels[None, :]
                held = curb_moments(moment, moment_curb + C + channels, there, C)
                turn = tl.zeros((ATOMS, C), dtype=tl.float32)
                for lm in tl.static_range(1, 4):
                    raw = load_sums(sums + lm * C, there, FIXED)
                    turn += raw * tl.load(moment + lm * C, mask=there, other=0.0)
                turn *= held
                steep = tl.load(moment_curb + C + channels)[None, :]
                bent = steep * steep * turn * held
                for lm in tl.static_range(1, 4):
                    raw = load_sums(sums + lm * C, there, FIXED)
                    part = tl.load(moment + lm * C, mask=there, other=0.0)
                    tl.store(target + lm * C, gate * held * (raw - bent * part), mask=there)
                layer = tl.load(message + hidden2[None, :] * WIDTH + C + channels[:, None])
                pull = multiply(turn * (keep * keep * keep), layer, pull, PRECISION)
        none = tl.zeros((ATOMS, H1), dtype=tl.float32)
        pull = multiply_parts(pull * slope2, weight2, 1, H2, none, PRECISION, _PART) * slope1
        if HAS_EXTRA:
            layer = tl.load(weight1 + (channels + INPUTS)[None, :] * H1 + hidden1[:, None])
            extra = multiply(pull, layer, tl.zeros((ATOMS, C), dtype=tl.float32), PRECISION)
            own_place = messages_in + rows[:, None] * SENT + channels[None, :]
            _own, own_factor = load_inputs(own_place, shift, curb, channels + INPUTS, there)
            extra = extra * (own_factor * own_factor * own_factor)
            if FIXED:
                extra = (extra * _SCALE).to(tl.int64)
            back = extra_gradients + rows[:, None] * SENT + channels[None, :]
            tl.store(back, extra, mask=there)
            if DEGREE > 0:
                for lm in tl.static_range(1, 4):
                    tl.store(back + lm * C, tl.zeros_like(extra), mask=there)
        for first in range(0, INPUTS, DEPTH):
            column = first + tl.arange(0, DEPTH)
            fall = tl.load(weight1 + column[None, :] * H1 + hidden1[:, None])
            grad = multiply(pull, fall, tl.zeros((ATOMS, DEPTH), dtype=tl.float32), PRECISION)
            place = invariants + rows[:, None] * INPUTS + column[None, :]
            _part, factor = load_inputs(place, shift, curb, column, there)
            tl.debug_barrier()  # all have read before anyone writes, should the memory be the same
            grad = grad * (factor * factor * factor)
            tl.store(gradients + rows[:, None] * INPUTS + column[None, :], grad, mask=there)
