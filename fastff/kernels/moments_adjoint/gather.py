"""Triton kernel that collects edge gradients to forces, where they were written out instead of scattered.

Here: the kernel and its launch configuration. Not here: what writes the gradients (``kernels.py``).
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

GATHER_SPACE = LaunchSpace("gather_forces", LaunchConfig({"BLOCK": 32}, 1, 1))


@triton.jit(do_not_specialize=["n_slots"])
def gather_kernel(
    edges,
    reverse,
    counts,
    forces,
    n_slots,
    ACCUMULATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Forces (n_atoms, 4), float32: own edge gradients minus those of the reverse edges.

    ``reverse`` (n_atoms, n_slots) holds the flat slot of the edge from the neighbor back to the atom.
    """
    atom = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + atom)
    column = tl.arange(0, 4)[None, :]
    total = tl.zeros((BLOCK, 4), dtype=tl.float32)
    for start in range(0, count, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        mask = (slots < count)[:, None] & (column < 3)
        own = (atom * n_slots + slots)[:, None] * 4
        back = tl.load(reverse + atom * n_slots + slots, mask=slots < count, other=0)
        total += tl.load(edges + own + column, mask=mask, other=0.0)
        total -= tl.load(edges + back.to(tl.int64)[:, None] * 4 + column, mask=mask, other=0.0)
    target = forces + atom * 4 + tl.arange(0, 4)
    value = tl.sum(total, axis=0)
    if ACCUMULATE:
        value += tl.load(target)
    tl.store(target, value)
