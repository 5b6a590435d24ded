"""Device functions that bring reactions to the senders, and gradients to their messages.

Here: accumulators of either kind, and values by slot. Not here: kernels.

Three ways to bring reactions to the senders (SCATTER):

``fixed``
    Integer atomics on 64-bit fixed point of 2^-32 eV/Å. Integers add in any order to the same bits: deterministic,
    no edge buffer.
``float``
    float32 atomics: the order, and the last digits, change from run to run.
``store``
    Edge gradients, and gradients in the factors of every slot, written out for ``gather.py`` to collect through the
    reverse-edge index: deterministic, no atomics, 16 bytes a slot and 4 C more where messages are sent.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.moments.edges import SQRT3

FIXED_BITS = 32
FIXED_UNIT = 2.0**-FIXED_BITS
"""Unit of the fixed-point accumulators: 2.3e-10 eV/Å, range 2e9 eV/Å."""
_SCALE: tl.constexpr = tl.constexpr(2.0**FIXED_BITS)


@triton.jit
def add_at(target, value, mask, SCATTER: tl.constexpr):
    """Add float32 values to float32 accumulators, or to fixed-point ones; with ``store`` write them."""
    if SCATTER == "store":
        tl.store(target, value, mask=mask)
    elif SCATTER == "float":
        tl.atomic_add(target, value, mask=mask, sem="relaxed")
    else:
        tl.atomic_add(target, (value * _SCALE).to(tl.int64), mask=mask, sem="relaxed")


@triton.jit
def turn_factor(place, target, back, along, there, SCATTER: tl.constexpr):
    """One component of messages of degree one: adds its gradient at the sender, and returns that in the direction.

    ``place`` (n, C) points to the component, ``target`` to its accumulators, ``back`` (n, C) is the gradient in the
    factors, ``along`` (n,) the component of the unit vector. With ``store`` adds nothing: the gather turns ``back``.
    """
    message = tl.load(place, mask=there, other=0.0)
    if SCATTER != "store":
        add_at(target, back * (along * SQRT3)[:, None], there, SCATTER)
    return tl.sum(back * message, axis=1) * SQRT3


@triton.jit
def find_home(source, slot, C: tl.constexpr, SCATTER: tl.constexpr):
    """Where gradients in the factors of a tile of slots go: to senders, or with ``store`` to the slots themselves."""
    if SCATTER == "store":
        return slot * C
    else:
        return source


@triton.jit
def put_term(target, value, ACCUMULATE: tl.constexpr):
    """Store a value, added to what an earlier hop left there where ACCUMULATE."""
    if ACCUMULATE:
        value += tl.load(target)
    tl.store(target, value)
