"""Triton kernel that fills a neighbor matrix from atoms sorted by bin, and its launch configurations.

Here: one program per atom that walks the neighbouring bins, in float64, and writes its row without gaps. Not here:
bins and sorting (``plan.py``, ``op.py``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

LIST_SPACE = LaunchSpace(
    "neighbor_list",
    LaunchConfig({"TILE": 64}, 1, 1),
    tuple(
        LaunchConfig({"TILE": tile}, num_warps, 1) for tile in (32, 64, 128) for num_warps in (1, 2)
    ),
)
_SIZES = ["n_slots", "nx", "ny", "nz", "mx", "my", "mz", "px", "py", "pz", "images", "code_bits"]


@triton.jit
def bound_window(center, span, size, periodic):
    """First and last bin of a window; clipped where there are no images."""
    first = center - span
    last = center + span
    first = tl.where(periodic != 0, first, tl.maximum(first, 0))
    last = tl.where(periodic != 0, last, tl.minimum(last, size - 1))
    return first, last


@triton.jit(do_not_specialize=_SIZES)
def list_kernel(
    points,
    labels,
    keys,
    starts,
    frame,
    entries,
    counts,
    n_slots,
    nx,
    ny,
    nz,
    mx,
    my,
    mz,
    px,
    py,
    pz,
    images,
    code_bits,
    TILE: tl.constexpr,
):
    """Row of the matrix of the atom at one place of the sorted order.

    ``points`` (n_atoms, 3) float64, wrapped, and ``keys``, sorted by bin; ``labels``: the atom's row; ``starts``
    (n_bins + 1,): first place of every bin; ``frame`` (10,) float64: cell vectors and the squared reach. ``n``, ``m``
    and ``p`` are bins, span of the window and periodicity along each axis. ``counts`` is true even if the row is full.
    """
    place = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + place).to(tl.int64)
    row = entries + label * n_slots
    x0 = tl.load(points + place * 3)
    y0 = tl.load(points + place * 3 + 1)
    z0 = tl.load(points + place * 3 + 2)
    key = tl.load(keys + place)
    bz = (key % nz).to(tl.int32)
    by = ((key // nz) % ny).to(tl.int32)
    bx = (key // nz // ny).to(tl.int32)
    squared_reach = tl.load(frame + 9)
    base = 2 * images + 1
    x_first, x_last = bound_window(bx, mx, nx, px)
    y_first, y_last = bound_window(by, my, ny, py)
    z_first, z_last = bound_window(bz, mz, nz, pz)
    lowest = (z_first + images * nz) // nz
    highest = (z_last + images * nz) // nz
    count = bx * 0
    for ix in range(x_first, x_last + 1):
        sx = (ix + images * nx) // nx
        for iy in range(y_first, y_last + 1):
            sy = (iy + images * ny) // ny
            column = (ix + (images - sx) * nx).to(tl.int64) * ny + (iy + (images - sy) * ny)
            for sz in range(lowest, highest + 1):
                moved = (sz - images) * nz
                first = column * nz + tl.maximum(z_first - moved, 0)
                last = column * nz + tl.minimum(z_last - moved, nz - 1)
                begin = tl.load(starts + first)
                end = tl.load(starts + last + 1)
                code = (sx * base + sy) * base + sz
                tx = (sx - images).to(tl.float64)
                ty = (sy - images).to(tl.float64)
                tz = (sz - images).to(tl.float64)
                ox = tx * tl.load(frame) + ty * tl.load(frame + 3) + tz * tl.load(frame + 6) - x0
                oy = (
                    tx * tl.load(frame + 1) + ty * tl.load(frame + 4) + tz * tl.load(frame + 7) - y0
                )
                oz = (
                    tx * tl.load(frame + 2) + ty * tl.load(frame + 5) + tz * tl.load(frame + 8) - z0
                )
                home = (sx == images) & (sy == images) & (sz == images)
                for start in range(begin, end, TILE):
                    other = start + tl.arange(0, TILE)
                    inside = other < end
                    x = tl.load(points + other * 3, mask=inside, other=0.0) + ox
                    y = tl.load(points + other * 3 + 1, mask=inside, other=0.0) + oy
                    z = tl.load(points + other * 3 + 2, mask=inside, other=0.0) + oz
                    near = inside & (x * x + y * y + z * z < squared_reach)
                    near = near & ((other != place) | (not home))
                    sender = tl.load(labels + other, mask=near, other=0).to(tl.int64)
                    slot = count + tl.cumsum(near.to(tl.int32), 0) - 1
                    entry = ((sender << code_bits) | code).to(entries.dtype.element_ty)
                    tl.store(row + slot, entry, mask=near & (slot < n_slots))
                    count += tl.sum(near.to(tl.int32))
    tl.store(counts + label, count)
