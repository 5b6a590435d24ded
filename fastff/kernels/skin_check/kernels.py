"""Triton kernel of the skin check. Not here: the criterion in words (``reference.py``), launches (``op.py``).

Every program judges its own atoms with the deformation of the cell, which each works out for itself: no reduction, and
nothing is written unless a pair may be missing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

CHECK_SPACE = LaunchSpace("skin_check", LaunchConfig({"BLOCK": 256}, 4, 1))
FRAME_SIZE = 24
"""Numbers of a snapshot's frame: inverse of the old rows (9), old rows (9), periodic (3), cut-off, reach, span."""


@triton.jit
def load_row(cell, frame, k: tl.constexpr):
    """Row k of the current cell, or of the old one where it is not periodic; and its change since."""
    periodic = tl.load(frame + 18 + k) > 0.5
    old_x = tl.load(frame + 9 + 3 * k)
    old_y = tl.load(frame + 10 + 3 * k)
    old_z = tl.load(frame + 11 + 3 * k)
    x = tl.where(periodic, tl.load(cell + 3 * k), old_x)
    y = tl.where(periodic, tl.load(cell + 3 * k + 1), old_y)
    z = tl.where(periodic, tl.load(cell + 3 * k + 2), old_z)
    change = tl.abs(x - old_x) + tl.abs(y - old_y) + tl.abs(z - old_z)
    return x, y, z, change


@triton.jit
def find_lowest(e00, e11, e22, e12, e02, e01, steps):
    """A bound from below on the least eigenvalue of a symmetric matrix.

    Newton's iteration on the characteristic polynomial, which has real roots alone, rises to the least one from any
    start below it. The mean of the roots is taken out first: three equal ones would cost two thirds of the digits. The
    margin covers what rounding does to two equal ones.
    """
    mean = (e00 + e11 + e22) / 3.0
    a = e00 - mean
    b = e11 - mean
    c = e22 - mean
    minors = a * b - e01 * e01 + a * c - e02 * e02 + b * c - e12 * e12
    determinant = a * (b * c - e12 * e12) - e01 * (e01 * c - e12 * e02)
    determinant += e02 * (e01 * e12 - b * e02)
    size = tl.sqrt(a * a + b * b + c * c + 2.0 * (e12 * e12 + e02 * e02 + e01 * e01))
    root = -size
    for _ in range(0, steps):
        value = (root * root + minors) * root - determinant
        slope = 3.0 * root * root + minors
        step = tl.where(slope > 0.0, -value / tl.where(slope > 0.0, slope, 1.0), 0.0)
        root += tl.maximum(step, 0.0)
    return mean + root - 1e-7 * size


@triton.jit(do_not_specialize=["n_atoms"])
def check_kernel(positions, old_positions, cell, frame, stale, n_atoms, BLOCK: tl.constexpr):
    """Set ``stale`` to 1 if an atom or the cell has moved too far; see ``reference.is_stale``."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_atoms
    ax, ay, az, da = load_row(cell, frame, 0)
    bx, by, bz, db = load_row(cell, frame, 1)
    cx, cy, cz, dc = load_row(cell, frame, 2)
    changed = da + db + dc != 0.0
    one = tl.where(changed, 0.0, 1.0).to(tl.float64)
    i00 = tl.where(changed, tl.load(frame), 0.0)
    i01 = tl.where(changed, tl.load(frame + 1), 0.0)
    i02 = tl.where(changed, tl.load(frame + 2), 0.0)
    i10 = tl.where(changed, tl.load(frame + 3), 0.0)
    i11 = tl.where(changed, tl.load(frame + 4), 0.0)
    i12 = tl.where(changed, tl.load(frame + 5), 0.0)
    i20 = tl.where(changed, tl.load(frame + 6), 0.0)
    i21 = tl.where(changed, tl.load(frame + 7), 0.0)
    i22 = tl.where(changed, tl.load(frame + 8), 0.0)
    f00 = i00 * ax + i01 * bx + i02 * cx + one
    f01 = i00 * ay + i01 * by + i02 * cy
    f02 = i00 * az + i01 * bz + i02 * cz
    f10 = i10 * ax + i11 * bx + i12 * cx
    f11 = i10 * ay + i11 * by + i12 * cy + one
    f12 = i10 * az + i11 * bz + i12 * cz
    f20 = i20 * ax + i21 * bx + i22 * cx
    f21 = i20 * ay + i21 * by + i22 * cy
    f22 = i20 * az + i21 * bz + i22 * cz + one
    e00 = f00 * f00 + f10 * f10 + f20 * f20 - 1.0
    e11 = f01 * f01 + f11 * f11 + f21 * f21 - 1.0
    e22 = f02 * f02 + f12 * f12 + f22 * f22 - 1.0
    lowest = find_lowest(
        e00,
        e11,
        e22,
        f01 * f02 + f11 * f12 + f21 * f22,
        f00 * f02 + f10 * f12 + f20 * f22,
        f00 * f01 + f10 * f11 + f20 * f21,
        tl.where(changed, 48, 0),
    )
    sigma = tl.sqrt(tl.maximum(1.0 + lowest, 0.0))
    stretch = tl.sqrt(tl.maximum(e00 + e11 + e22 + 3.0 - 2.0 * sigma * sigma, 0.0))
    x = tl.load(old_positions + rows * 3, mask=inside, other=0.0)
    y = tl.load(old_positions + rows * 3 + 1, mask=inside, other=0.0)
    z = tl.load(old_positions + rows * 3 + 2, mask=inside, other=0.0)
    ux = tl.load(positions + rows * 3, mask=inside, other=0.0) - (x * f00 + y * f10 + z * f20)
    uy = tl.load(positions + rows * 3 + 1, mask=inside, other=0.0) - (x * f01 + y * f11 + z * f21)
    uz = tl.load(positions + rows * 3 + 2, mask=inside, other=0.0) - (x * f02 + y * f12 + z * f22)
    reach = tl.load(frame + 22)
    slack = sigma * reach - tl.load(frame + 21)
    slack = tl.minimum(slack, tl.load(frame + 23) - stretch * reach)
    squared = 4.0 * (ux * ux + uy * uy + uz * uz)
    allowed = tl.where(slack > 0.0, slack * slack, 0.0)
    good = tl.where(squared < allowed, 1, 0)
    bad = tl.sum(tl.where(inside, 1 - good, 0))
    tl.store(stale, 1, mask=bad > 0)
