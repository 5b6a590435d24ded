"""Triton kernels that collect what was written out by slot instead of scattered: forces and message gradients.

Here: the kernels and their launch configurations. Not here: what writes edge gradients and gradients in the factors
(``kernels.py``). Each slot is read once, from the row of the neighbor that it names, and sums have one order: the same
bits in every run.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastff.kernels.moments.edges import SQRT3, load_center, load_edges
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

GATHER_SPACE = LaunchSpace("gather_forces", LaunchConfig({"BLOCK": 32}, 1, 1))
MESSAGES_SPACE = LaunchSpace(
    "gather_messages",
    LaunchConfig({"TILE": 16}, 1, 1),
    tuple(
        LaunchConfig({"TILE": tile}, num_warps, 1)
        for tile, num_warps in ((8, 1), (16, 1), (16, 2), (32, 1), (32, 2), (64, 2), (64, 4))
    ),
    tuple(
        (make_key(torch.float32, channels=channels, degree=1), LaunchConfig({"TILE": 8}, 1, 1))
        for channels in (64, 128)
    ),
)


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
    """Forces (n_atoms, 4), float32: own edge gradients minus those of the reverse edges; the last column stays.

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
    place = tl.arange(0, 4)
    value = tl.sum(total, axis=0)
    value += tl.load(forces + atom * 4 + place, mask=(place == 3) | ACCUMULATE, other=0.0)
    tl.store(forces + atom * 4 + place, value)


@triton.jit(do_not_specialize=["n_slots", "code_bits"])
def gather_messages_kernel(
    sites,
    translations,
    neighbors,
    counts,
    reverse,
    factor_gradients,
    message_gradients,
    n_slots,
    code_bits,
    cutoff,
    C: tl.constexpr,
    DEGREE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gradients (n_atoms, (DEGREE + 1)^2, C), float32, in what every atom sends.

    ``factor_gradients`` (n_atoms, n_slots, C): of every slot, as the adjoint leaves them. An atom's message is read in
    the reverse slots of its row, along the opposite of its own unit vectors; components are those of
    ``moments.edges.read_factors``. The first C of ``message_gradients`` hold the gradient in the scalars that the atom
    reads itself, and are added to; the others are written.
    """
    atom = tl.program_id(0).to(tl.int64)
    count = tl.load(counts + atom)
    channels = tl.arange(0, C)
    total = tl.zeros((TILE, C), dtype=tl.float32)
    if DEGREE > 0:
        x0, y0, z0, _own = load_center(sites, atom)
        along_x = tl.zeros((TILE, C), dtype=tl.float32)
        along_y = tl.zeros((TILE, C), dtype=tl.float32)
        along_z = tl.zeros((TILE, C), dtype=tl.float32)
    for start in range(0, count, TILE):
        slots = start + tl.arange(0, TILE)
        inside = slots < count
        own = atom * n_slots + slots
        slot = tl.load(reverse + own, mask=inside, other=0).to(tl.int64)
        place = factor_gradients + slot[:, None] * C + channels[None, :]
        back = tl.load(place, mask=inside[:, None], other=0.0)
        total += back
        if DEGREE > 0:
            entries = tl.load(neighbors + own, mask=inside, other=0)
            dx, dy, dz, _sender, _kind = load_edges(
                sites, translations, entries, inside, x0, y0, z0, code_bits, cutoff
            )
            turned = -SQRT3 * tl.rsqrt(dx * dx + dy * dy + dz * dz)
            along_x += back * (dx * turned)[:, None]
            along_y += back * (dy * turned)[:, None]
            along_z += back * (dz * turned)[:, None]
    target = message_gradients + atom * ((DEGREE + 1) * (DEGREE + 1) * C) + channels
    tl.store(target, tl.load(target) + tl.sum(total, axis=0))
    if DEGREE > 0:
        tl.store(target + C, tl.sum(along_y, axis=0))
        tl.store(target + 2 * C, tl.sum(along_z, axis=0))
        tl.store(target + 3 * C, tl.sum(along_x, axis=0))
