"""Triton kernel that fills rows of a neighbor matrix over many small cells by brute force.

Here: one program per atom that tries every atom of its structure under every image, in float64. Not here: the kernel
over bins (``kernels.py``), the images (``many.py``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig

ROWS_CONFIG = LaunchConfig({"TILE": 64}, 1, 1)
"""Senders tried together, by one warp; not a tuned choice."""


@triton.jit(do_not_specialize=["n_slots", "code_bits"])
def rows_kernel(
    points,
    rows,
    batch,
    pointers,
    code_pointers,
    translations,
    square,
    due,
    entries,
    counts,
    n_slots,
    code_bits,
    TILE: tl.constexpr,
):
    """Row of one atom, by code and then by sender.

    ``points`` (n_atoms, 3) and ``translations`` (n_codes, 3) float64; ``rows``: the atoms to be listed; ``batch``,
    ``pointers``, ``code_pointers``: see ``CellTable``; ``square`` (1,): squared reach; ``due`` (n_systems,): rows of
    structures where it is zero stay. ``counts`` is true even if the row is full.
    """
    atom = tl.load(rows + tl.program_id(0).to(tl.int64)).to(tl.int64)
    owner = tl.load(batch + atom)
    begin = tl.load(pointers + owner)
    end = tl.load(pointers + owner + 1)
    first = tl.load(code_pointers + owner)
    last = tl.load(code_pointers + owner + 1)
    home = first + (last - first) // 2
    wanted = tl.load(due + owner) != 0
    last = tl.where(wanted, last, first)
    squared_reach = tl.load(square)
    x0 = tl.load(points + atom * 3)
    y0 = tl.load(points + atom * 3 + 1)
    z0 = tl.load(points + atom * 3 + 2)
    row = entries + atom * n_slots
    count = tl.program_id(0) * 0
    for code in range(first, last):
        ox = tl.load(translations + code * 3) - x0
        oy = tl.load(translations + code * 3 + 1) - y0
        oz = tl.load(translations + code * 3 + 2) - z0
        itself = tl.where(code == home, atom, -1)
        for start in range(begin, end, TILE):
            other = start + tl.arange(0, TILE)
            inside = other < end
            x = tl.load(points + other * 3, mask=inside, other=0.0) + ox
            y = tl.load(points + other * 3 + 1, mask=inside, other=0.0) + oy
            z = tl.load(points + other * 3 + 2, mask=inside, other=0.0) + oz
            near = inside & (x * x + y * y + z * z < squared_reach)
            near = near & (other != itself)
            slot = count + tl.cumsum(near.to(tl.int32), 0) - 1
            entry = ((other.to(tl.int64) << code_bits) | code).to(entries.dtype.element_ty)
            tl.store(row + slot, entry, mask=near & (slot < n_slots))
            count += tl.sum(near.to(tl.int32))
    tl.store(counts + atom, count, mask=wanted)
