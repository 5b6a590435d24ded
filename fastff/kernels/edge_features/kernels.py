"""Triton kernels of the edge features and of their first and second derivatives, and the launch configurations.

Here: kernels and candidate configurations, nothing else. One program owns a block of edges; every edge quantity stays
in registers and only the result is written. The formulas are those of ``reference.py``, differentiated by hand: with u
the unit vector, t = (h - u (u.h)) / d its change along h, w the polynomial gradient of <gY, Y> and Q its Hessian,

- gradient             g = s' u + (w - u (u.w)) / d                     with s = <gB, B(d)>
- Hessian times h      s'' (u.h) u + s' t + [Qt - u (u.Qt) - t (u.w) - u (t.w)] / d - (u.h) (w - u (u.w)) / d^2
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

_CANDIDATES = tuple(
    LaunchConfig({"BLOCK_EDGES": edges}, num_warps)
    for edges in (32, 64, 128, 256)
    for num_warps in (1, 2, 4, 8)
    if edges >= 16 * num_warps
)
FORWARD_SPACE = LaunchSpace(
    "edge_features", LaunchConfig({"BLOCK_EDGES": 128}, num_warps=4), _CANDIDATES
)
BACKWARD_SPACE = LaunchSpace(
    "edge_features_backward", LaunchConfig({"BLOCK_EDGES": 128}, num_warps=4), _CANDIDATES
)
DOUBLE_BACKWARD_SPACE = LaunchSpace(
    "edge_features_double_backward", LaunchConfig({"BLOCK_EDGES": 128}, num_warps=4), _CANDIDATES
)

PI = tl.constexpr(3.141592653589793)
SQRT3 = tl.constexpr(1.7320508075688772)
SQRT5 = tl.constexpr(2.23606797749979)
SQRT7 = tl.constexpr(2.6457513110645907)
SQRT15 = tl.constexpr(3.872983346207417)
SQRT105 = tl.constexpr(10.246950765959598)
SQRT21_8 = tl.constexpr(1.6201851746019651)
SQRT35_8 = tl.constexpr(2.091650066335189)


@triton.jit
def sin_pi(t):
    """sin(pi t) for t >= 0; in float32 a polynomial good to 1e-7 after an exact reduction to |t| <= 1/2."""
    if t.dtype == tl.float64:
        value = tl.sin(t * PI)
    else:
        whole = tl.floor(t + 0.5)
        r = t - whole
        s = r * r
        p = -0.007028386403196913 * s + 0.08205040181323527
        p = p * s - 0.5992521978269912
        p = p * s + 2.550163318947563
        p = p * s - 5.167712764624561
        p = p * s + 3.1415926535362897
        value = (1.0 - 2.0 * (whole - 2.0 * tl.floor(0.5 * whole))) * r * p
    return value


@triton.jit
def cos_pi(t):
    """cos(pi t) for t >= 0; as :func:`sin_pi`."""
    if t.dtype == tl.float64:
        value = tl.cos(t * PI)
    else:
        whole = tl.floor(t + 0.5)
        r = t - whole
        s = r * r
        p = -0.024396324381933496 * s + 0.23493731383698163
        p = p * s - 1.3352120030552643
        p = p * s + 4.0587091595567815
        p = p * s - 4.934802137078845
        p = p * s + 1.0
        value = (1.0 - 2.0 * (whole - 2.0 * tl.floor(0.5 * whole))) * p
    return value


@triton.jit
def load_units(vectors, edges, inside):
    """Unit vector, length and inverse length of a block of edges; masked edges get (1, 0, 0)."""
    x = tl.load(vectors + 3 * edges, mask=inside, other=1.0)
    y = tl.load(vectors + 3 * edges + 1, mask=inside, other=0.0)
    z = tl.load(vectors + 3 * edges + 2, mask=inside, other=0.0)
    distance = tl.sqrt(x * x + y * y + z * z)
    inverse = 1.0 / distance
    return x * inverse, y * inverse, z * inverse, distance, inverse


@triton.jit
def evaluate_envelope(x):
    """Envelope u(x) and its first two derivatives, x <= 1."""
    rest = 1.0 - x
    series = 1.0 + x * (3.0 + x * (6.0 + x * (10.0 + x * (15.0 + x * 21.0))))
    x4 = x * x * x * x
    slope = -168.0 * x4 * x * rest * rest
    return rest * rest * rest * series, slope, -168.0 * x4 * rest * (5.0 - 7.0 * x)


@triton.jit
def evaluate_radial(distance, inverse, cutoff, norm, RADIAL: tl.constexpr):
    """Radial basis B and its first two derivatives in the distance, each (BLOCK_EDGES, RADIAL)."""
    x = tl.minimum(distance * (1.0 / cutoff), 1.0)
    u, du, ddu = evaluate_envelope(x)
    u, du, ddu = (
        u[:, None],
        (du * (1.0 / cutoff))[:, None],
        (ddu * (1.0 / (cutoff * cutoff)))[:, None],
    )
    k = (tl.arange(0, RADIAL) + 1).to(distance.dtype)[None, :]
    kappa = k * (PI / cutoff)
    phase = x[:, None] * k
    inverse = inverse[:, None]
    wave = sin_pi(phase) * inverse * norm
    slope = (cos_pi(phase) * kappa * norm - wave) * inverse
    curve = -kappa * kappa * wave - 2.0 * slope * inverse
    return wave * u, slope * u + wave * du, curve * u + 2.0 * slope * du + wave * ddu


@triton.jit
def pack2(a, b):
    """Interleave the last axes of a and b: (n, m), (n, m) -> (n, 2 m)."""
    return tl.reshape(tl.join(a, b), (a.shape[0], 2 * a.shape[1]))


@triton.jit
def pack4(a, b, c, d):
    """Four (n,) blocks as the columns of (n, 4)."""
    return pack2(tl.join(a, c), tl.join(b, d))


@triton.jit
def pack16(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15):
    """Sixteen (n,) blocks as the columns of (n, 16), in order."""
    even = pack2(pack4(a0, a4, a8, a12), pack4(a2, a6, a10, a14))
    odd = pack2(pack4(a1, a5, a9, a13), pack4(a3, a7, a11, a15))
    return pack2(even, odd)


@triton.jit
def split2(a):
    """Even and odd columns of (n, 2 m)."""
    return tl.split(tl.reshape(a, (a.shape[0], a.shape[1] // 2, 2)))


@triton.jit
def unpack4(a):
    """The columns of (n, 4)."""
    even, odd = split2(a)
    a0, a2 = tl.split(even)
    a1, a3 = tl.split(odd)
    return a0, a1, a2, a3


@triton.jit
def unpack16(a):
    """The columns of (n, 16), in order."""
    even, odd = split2(a)
    even0, even2 = split2(even)
    odd1, odd3 = split2(odd)
    a0, a4, a8, a12 = unpack4(even0)
    a2, a6, a10, a14 = unpack4(even2)
    a1, a5, a9, a13 = unpack4(odd1)
    a3, a7, a11, a15 = unpack4(odd3)
    return a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15


@triton.jit
def evaluate_harmonics(x, y, z):
    """The sixteen real spherical harmonics up to l = 3 as columns of (BLOCK_EDGES, 16)."""
    difference, f = x * x - y * y, 5.0 * z * z - 1.0
    return pack16(
        1.0 + 0.0 * x,
        y * SQRT3,
        z * SQRT3,
        x * SQRT3,
        x * y * SQRT15,
        y * z * SQRT15,
        (1.5 * z * z - 0.5) * SQRT5,
        x * z * SQRT15,
        0.5 * difference * SQRT15,
        y * (3.0 * x * x - y * y) * SQRT35_8,
        x * y * z * SQRT105,
        y * f * SQRT21_8,
        z * (2.5 * z * z - 1.5) * SQRT7,
        x * f * SQRT21_8,
        0.5 * z * difference * SQRT105,
        x * (x * x - 3.0 * y * y) * SQRT35_8,
    )


@triton.jit
def push_harmonics(x, y, z, tx, ty, tz):
    """Change of the sixteen harmonics when the unit vector changes by t, as columns of (BLOCK_EDGES, 16)."""
    difference, f = x * x - y * y, 5.0 * z * z - 1.0
    return pack16(
        0.0 * tx,
        ty * SQRT3,
        tz * SQRT3,
        tx * SQRT3,
        (x * ty + y * tx) * SQRT15,
        (y * tz + z * ty) * SQRT15,
        3.0 * z * tz * SQRT5,
        (x * tz + z * tx) * SQRT15,
        (x * tx - y * ty) * SQRT15,
        (6.0 * x * y * tx + 3.0 * difference * ty) * SQRT35_8,
        (y * z * tx + x * z * ty + x * y * tz) * SQRT105,
        (f * ty + 10.0 * y * z * tz) * SQRT21_8,
        1.5 * f * tz * SQRT7,
        (f * tx + 10.0 * x * z * tz) * SQRT21_8,
        (x * z * tx - y * z * ty + 0.5 * difference * tz) * SQRT105,
        (3.0 * difference * tx - 6.0 * x * y * ty) * SQRT35_8,
    )


@triton.jit
def pull_harmonics(x, y, z, grad):
    """Polynomial gradient of <grad, Y> in the components of the unit vector; grad (BLOCK_EDGES, 16)."""
    _, g1, g2, g3, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15 = unpack16(grad)
    difference, f, xy = x * x - y * y, 5.0 * z * z - 1.0, x * y
    wx = g3 * SQRT3 + (g4 * y + g7 * z + g8 * x) * SQRT15
    wx += (6.0 * g9 * xy + 3.0 * g15 * difference) * SQRT35_8
    wx += z * (g10 * y + g14 * x) * SQRT105 + g13 * f * SQRT21_8
    wy = g1 * SQRT3 + (g4 * x + g5 * z - g8 * y) * SQRT15
    wy += (3.0 * g9 * difference - 6.0 * g15 * xy) * SQRT35_8
    wy += z * (g10 * x - g14 * y) * SQRT105 + g11 * f * SQRT21_8
    wz = g2 * SQRT3 + (g5 * y + g7 * x) * SQRT15 + 3.0 * g6 * z * SQRT5
    wz += (g10 * xy + 0.5 * g14 * difference) * SQRT105
    wz += 10.0 * z * (g11 * y + g13 * x) * SQRT21_8 + 1.5 * g12 * f * SQRT7
    return wx, wy, wz


@triton.jit
def curve_harmonics(x, y, z, tx, ty, tz, grad):
    """Polynomial Hessian of <grad, Y> in the components of the unit vector, times t."""
    _, _, _, _, g4, g5, g6, g7, g8, g9, g10, g11, g12, g13, g14, g15 = unpack16(grad)
    xx_yy, xy, xz, yz = x * tx - y * ty, x * ty + y * tx, x * tz + z * tx, y * tz + z * ty
    ztz = z * tz
    qx = (g4 * ty + g7 * tz + g8 * tx) * SQRT15 + 6.0 * (g9 * xy + g15 * xx_yy) * SQRT35_8
    qx += (g10 * yz + g14 * xz) * SQRT105 + 10.0 * g13 * ztz * SQRT21_8
    qy = (g4 * tx + g5 * tz - g8 * ty) * SQRT15 + 6.0 * (g9 * xx_yy - g15 * xy) * SQRT35_8
    qy += (g10 * xz - g14 * yz) * SQRT105 + 10.0 * g11 * ztz * SQRT21_8
    qz = (g5 * ty + g7 * tx) * SQRT15 + 3.0 * g6 * tz * SQRT5
    qz += (g10 * xy + g14 * xx_yy) * SQRT105 + 15.0 * g12 * ztz * SQRT7
    qz += 10.0 * (g11 * yz + g13 * xz) * SQRT21_8
    return qx, qy, qz


@triton.jit(do_not_specialize=["n_edges"])
def forward_kernel(
    vectors,
    basis,
    harmonics,
    n_edges,
    cutoff: tl.constexpr,
    norm: tl.constexpr,
    n_radial: tl.constexpr,
    n_harmonics: tl.constexpr,
    RADIAL: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
):
    """vectors (n_edges, 3) -> basis (n_edges, n_radial), harmonics (n_edges, n_harmonics)."""
    edges = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    inside = edges < n_edges
    x, y, z, distance, inverse = load_units(vectors, edges, inside)
    value, _, _ = evaluate_radial(distance, inverse, cutoff, norm, RADIAL)
    k = tl.arange(0, RADIAL)[None, :]
    tl.store(basis + edges[:, None] * n_radial + k, value, mask=inside[:, None] & (k < n_radial))
    lm = tl.arange(0, 16)[None, :]
    mask = inside[:, None] & (lm < n_harmonics)
    tl.store(harmonics + edges[:, None] * n_harmonics + lm, evaluate_harmonics(x, y, z), mask=mask)


@triton.jit(do_not_specialize=["n_edges"])
def backward_kernel(
    vectors,
    grad_basis,
    grad_harmonics,
    grad_vectors,
    n_edges,
    cutoff: tl.constexpr,
    norm: tl.constexpr,
    n_radial: tl.constexpr,
    n_harmonics: tl.constexpr,
    RADIAL: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
):
    """Gradient of <grad_basis, basis> + <grad_harmonics, harmonics> in vectors."""
    edges = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    inside = edges < n_edges
    x, y, z, distance, inverse = load_units(vectors, edges, inside)
    k, lm = tl.arange(0, RADIAL)[None, :], tl.arange(0, 16)[None, :]
    mask_k = inside[:, None] & (k < n_radial)
    mask_lm = inside[:, None] & (lm < n_harmonics)
    grad_b = tl.load(grad_basis + edges[:, None] * n_radial + k, mask=mask_k, other=0.0)
    grad_y = tl.load(grad_harmonics + edges[:, None] * n_harmonics + lm, mask=mask_lm, other=0.0)
    _, slope, _ = evaluate_radial(distance, inverse, cutoff, norm, RADIAL)
    along = tl.sum(grad_b * slope, axis=1)
    wx, wy, wz = pull_harmonics(x, y, z, grad_y)
    along -= (x * wx + y * wy + z * wz) * inverse
    tl.store(grad_vectors + 3 * edges, along * x + wx * inverse, mask=inside)
    tl.store(grad_vectors + 3 * edges + 1, along * y + wy * inverse, mask=inside)
    tl.store(grad_vectors + 3 * edges + 2, along * z + wz * inverse, mask=inside)


@triton.jit(do_not_specialize=["n_edges"])
def double_backward_kernel(
    vectors,
    grad_basis,
    grad_harmonics,
    directions,
    out_vectors,
    out_basis,
    out_harmonics,
    n_edges,
    cutoff: tl.constexpr,
    norm: tl.constexpr,
    n_radial: tl.constexpr,
    n_harmonics: tl.constexpr,
    RADIAL: tl.constexpr,
    BLOCK_EDGES: tl.constexpr,
):
    """Gradient of <directions, result of backward_kernel> in vectors, grad_basis and grad_harmonics."""
    edges = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
    inside = edges < n_edges
    x, y, z, distance, inverse = load_units(vectors, edges, inside)
    hx = tl.load(directions + 3 * edges, mask=inside, other=0.0)
    hy = tl.load(directions + 3 * edges + 1, mask=inside, other=0.0)
    hz = tl.load(directions + 3 * edges + 2, mask=inside, other=0.0)
    along = x * hx + y * hy + z * hz
    tx, ty, tz = (hx - along * x) * inverse, (hy - along * y) * inverse, (hz - along * z) * inverse
    k, lm = tl.arange(0, RADIAL)[None, :], tl.arange(0, 16)[None, :]
    mask_k = inside[:, None] & (k < n_radial)
    mask_lm = inside[:, None] & (lm < n_harmonics)
    at_k = edges[:, None] * n_radial + k
    at_lm = edges[:, None] * n_harmonics + lm

    _, slope, curve = evaluate_radial(distance, inverse, cutoff, norm, RADIAL)
    tl.store(out_basis + at_k, slope * along[:, None], mask=mask_k)
    tl.store(out_harmonics + at_lm, push_harmonics(x, y, z, tx, ty, tz), mask=mask_lm)
    grad_b = tl.load(grad_basis + at_k, mask=mask_k, other=0.0)
    grad_y = tl.load(grad_harmonics + at_lm, mask=mask_lm, other=0.0)
    wx, wy, wz = pull_harmonics(x, y, z, grad_y)
    qx, qy, qz = curve_harmonics(x, y, z, tx, ty, tz, grad_y)
    uw = (x * wx + y * wy + z * wz) * inverse
    uq = x * qx + y * qy + z * qz
    tw = tx * wx + ty * wy + tz * wz
    stretch = along * inverse * inverse
    on_t = tl.sum(grad_b * slope, axis=1) - uw
    on_u = tl.sum(grad_b * curve, axis=1) * along - (uq + tw) * inverse + uw * along * inverse
    tl.store(out_vectors + 3 * edges, on_u * x + on_t * tx + qx * inverse - wx * stretch, inside)
    tl.store(
        out_vectors + 3 * edges + 1, on_u * y + on_t * ty + qy * inverse - wy * stretch, inside
    )
    tl.store(
        out_vectors + 3 * edges + 2, on_u * z + on_t * tz + qz * inverse - wz * stretch, inside
    )
