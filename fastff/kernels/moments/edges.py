"""Device functions that every kernel over neighbours shares: one tile of slots in, geometry, basis and harmonics out.

Here: loading neighbours from the fixed-point position grid, the radial basis by recurrence, the harmonics and the
contraction of their gradient, stacking columns to tiles and back. Not here: kernels, or launches.

Positions are integers: multiples of :data:`GRID_UNIT` in 32 bits, wrapping around. The difference of two of them is
exact for atoms up to 32 Å apart, wherever they are: a box of a micrometer loses no digit that a small one keeps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.moments.reference import FROZEN_SHARE

GRID_BITS = 26
GRID_UNIT = 2.0**-GRID_BITS
"""Spacing of the position grid in Å (1.5e-8)."""
MAX_REACH = 2.0 ** (31 - GRID_BITS)
"""Largest difference of two coordinates in Å that the grid can hold."""

N_RADIAL: tl.constexpr = tl.constexpr(8)
PADDED_RADIAL: tl.constexpr = tl.constexpr(16)
_UNIT: tl.constexpr = tl.constexpr(GRID_UNIT)
SQRT3: tl.constexpr = tl.constexpr(3.0**0.5)
_SQRT5: tl.constexpr = tl.constexpr(5.0**0.5)
_SQRT7: tl.constexpr = tl.constexpr(7.0**0.5)
_SQRT15: tl.constexpr = tl.constexpr(15.0**0.5)
_SQRT105: tl.constexpr = tl.constexpr(105.0**0.5)
_SQRT21_8: tl.constexpr = tl.constexpr((21.0 / 8.0) ** 0.5)
_FROZEN_SHARE: tl.constexpr = tl.constexpr(FROZEN_SHARE)
SQRT35_8: tl.constexpr = tl.constexpr((35.0 / 8.0) ** 0.5)


@triton.jit
def stack16(c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15):
    """Sixteen columns (n,) to one tile (n, 16)."""
    q0 = tl.join(tl.join(c0, c8), tl.join(c4, c12))
    q1 = tl.join(tl.join(c1, c9), tl.join(c5, c13))
    q2 = tl.join(tl.join(c2, c10), tl.join(c6, c14))
    q3 = tl.join(tl.join(c3, c11), tl.join(c7, c15))
    return tl.reshape(tl.join(tl.join(q0, q2), tl.join(q1, q3)), (c0.shape[0], 16))


@triton.jit
def split4(tile):
    """One tile (n, 4) to its columns."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], 2, 2)))
    c0, c2 = tl.split(even)
    c1, c3 = tl.split(odd)
    return c0, c1, c2, c3


@triton.jit
def split8(tile):
    """One tile (n, 8) to its columns."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], 4, 2)))
    c0, c2, c4, c6 = split4(even)
    c1, c3, c5, c7 = split4(odd)
    return c0, c1, c2, c3, c4, c5, c6, c7


@triton.jit
def split16(tile):
    """One tile (n, 16) to its columns."""
    even, odd = tl.split(tl.reshape(tile, (tile.shape[0], 8, 2)))
    c0, c2, c4, c6, c8, c10, c12, c14 = split8(even)
    c1, c3, c5, c7, c9, c11, c13, c15 = split8(odd)
    return c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15


@triton.jit
def load_center(sites, atom):
    """Grid coordinates and species of one atom."""
    x = tl.load(sites + atom * 4)
    y = tl.load(sites + atom * 4 + 1)
    z = tl.load(sites + atom * 4 + 2)
    return x, y, z, tl.load(sites + atom * 4 + 3)


@triton.jit
def load_edges(sites, translations, entries, inside, x0, y0, z0, code_bits, cutoff):
    """Vectors to the neighbours in one tile of slots, in Å, with their index and species.

    ``sites`` (n_atoms, 4) and ``translations`` (n_codes, 4) hold int32 grid coordinates, and species or zero;
    ``entries`` hold sender and translation code. A slot that is not ``inside`` points along x to the cut-off, where
    nothing counts.
    """
    sender = (entries >> code_bits).to(tl.int64)
    code = entries & ((1 << code_bits) - 1)
    column = tl.arange(0, 4)[None, :]
    there = tl.load(sites + sender[:, None] * 4 + column, mask=inside[:, None], other=0)
    there += tl.load(translations + code[:, None] * 4 + column, mask=inside[:, None], other=0)
    x, y, z, species = split4(there)
    dx = tl.where(inside, (x - x0).to(tl.float32) * _UNIT, cutoff)
    dy = tl.where(inside, (y - y0).to(tl.float32) * _UNIT, 0.0)
    dz = tl.where(inside, (z - z0).to(tl.float32) * _UNIT, 0.0)
    return dx, dy, dz, sender, species


@triton.jit
def locate_factors(sender, pair, C: tl.constexpr, BY_SENDER: tl.constexpr, DEGREE: tl.constexpr):
    """Where the factors of a tile of slots begin: those of senders' messages, or of species pairs."""
    if BY_SENDER:
        return sender * ((DEGREE + 1) * (DEGREE + 1) * C)
    else:
        return pair.to(tl.int64) * C


@triton.jit
def read_factors(
    place, inside, x, y, z, C: tl.constexpr, BY_SENDER: tl.constexpr, DEGREE: tl.constexpr
):
    """Factors of a tile of slots along their unit vectors; see ``moments.messages.read_messages``.

    ``place`` (n, C) points to the first of each slot's factors.
    """
    there = inside[:, None]
    factor = tl.load(place, mask=there, other=0.0)
    if BY_SENDER and DEGREE > 0:
        factor += tl.load(place + C, mask=there, other=0.0) * (y * SQRT3)[:, None]
        factor += tl.load(place + 2 * C, mask=there, other=0.0) * (z * SQRT3)[:, None]
        factor += tl.load(place + 3 * C, mask=there, other=0.0) * (x * SQRT3)[:, None]
    return factor


@triton.jit
def compress_distance(distance, pair, core, inside):
    """What the basis is told of distances, and its slope; see ``moments.reference.compress_distance``.

    The inner distance of a pair of species is the last of four columns of ``core``.
    """
    inner = tl.load(core + pair * 4 + 3, mask=inside, other=1.0)
    width = (1.0 - _FROZEN_SHARE) * inner
    t = tl.minimum(tl.maximum(1.0 - (inner - distance) / width, 0.0), 1.0)
    squared = t * t
    seen = tl.maximum(distance, inner) - width * (0.5 - squared * t * (1.0 - 0.5 * t))
    return seen, squared * (3.0 - 2.0 * t)


@triton.jit
def evaluate_wave(x):
    """``sin(pi x)`` and ``cos(pi x)`` for 0 <= x <= 1 (minimax in (x - 1/2)^2, error below 1e-9 before rounding)."""
    y = x - 0.5
    z = y * y
    sine = 0.2349373138038025 + z * -0.024396324329066618
    sine = 4.058709159556136 + z * (-1.3352120030479917 + z * sine)
    sine = 0.9999999997799043 + z * (-4.9348021370788215 + z * sine)
    cosine = 0.08205040177971344 + z * -0.007028386357545577
    cosine = 2.5501633189466513 + z * (-0.5992521978182968 + z * cosine)
    cosine = 3.141592653536291 + z * (-5.167712764624528 + z * cosine)
    return sine, -y * cosine


@triton.jit
def evaluate_envelope(x):
    """Envelope of the radial basis and its slope (DimeNet eq. 8, p = 6) for 0 <= x <= 1."""
    rest = 1.0 - x
    series = 1.0 + x * (3.0 + x * (6.0 + x * (10.0 + x * (15.0 + x * 21.0))))
    square = rest * rest
    x2 = x * x
    return square * rest * series, -168.0 * x2 * x2 * x * square


@triton.jit
def evaluate_basis(sine, cosine, amplitude):
    """``sin(k pi x)`` times an amplitude, k = 1..8, as a tile (n, 16) whose other columns are zero.

    Sixteen because Triton before 3.9 contracts no fewer.
    """
    two = 2.0 * cosine
    s1 = sine * amplitude
    s2 = two * s1
    s3 = two * s2 - s1
    s4 = two * s3 - s2
    s5 = two * s4 - s3
    s6 = two * s5 - s4
    s7 = two * s6 - s5
    s8 = two * s7 - s6
    zero = tl.zeros_like(sine)
    return stack16(s1, s2, s3, s4, s5, s6, s7, s8, zero, zero, zero, zero, zero, zero, zero, zero)


@triton.jit
def evaluate_harmonics(x, y, z):
    """The sixteen harmonics of a unit vector as a tile (n, 16), as ``edge_features.reference`` defines them."""
    xx = x * x
    yy = y * y
    zz = z * z
    z5 = 5.0 * zz - 1.0
    return stack16(
        tl.zeros_like(x) + 1.0,
        y * SQRT3,
        z * SQRT3,
        x * SQRT3,
        x * y * _SQRT15,
        y * z * _SQRT15,
        (3.0 * zz - 1.0) * (0.5 * _SQRT5),
        x * z * _SQRT15,
        (xx - yy) * (0.5 * _SQRT15),
        y * (3.0 * xx - yy) * SQRT35_8,
        x * y * z * _SQRT105,
        y * z5 * _SQRT21_8,
        z * (z5 - 2.0) * (0.5 * _SQRT7),
        x * z5 * _SQRT21_8,
        z * (xx - yy) * (0.5 * _SQRT105),
        x * (xx - 3.0 * yy) * SQRT35_8,
    )


@triton.jit
def contract_harmonics(gradient, x, y, z):
    """Gradient in the components of the unit vector, given a tile (n, 16) of gradients in the harmonics."""
    _, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15 = split16(gradient)
    xx = x * x
    yy = y * y
    zz = z * z
    z5 = (5.0 * zz - 1.0) * _SQRT21_8
    g4 = g4 * _SQRT15
    g5 = g5 * _SQRT15
    g6 = g6 * (3.0 * _SQRT5)
    g7 = g7 * _SQRT15
    g8 = g8 * _SQRT15
    g9 = g9 * (3.0 * SQRT35_8)
    g10 = g10 * _SQRT105
    g14 = g14 * _SQRT105
    g15 = g15 * (3.0 * SQRT35_8)
    plane = xx - yy
    twice = 2.0 * x * y
    steep = z * (10.0 * _SQRT21_8)
    gx = g3 * SQRT3 + y * g4 + z * g7 + x * g8
    gx += twice * g9 + y * z * g10 + z5 * g13 + x * z * g14 + plane * g15
    gy = g1 * SQRT3 + x * g4 + z * g5 - y * g8
    gy += plane * g9 + x * z * g10 + z5 * g11 - y * z * g14 - twice * g15
    gz = g2 * SQRT3 + y * g5 + z * g6 + x * g7
    gz += x * y * g10 + steep * (y * g11 + x * g13) + 0.5 * plane * g14
    gz += (5.0 * zz - 1.0) * g12 * (1.5 * _SQRT7)
    return gx, gy, gz
