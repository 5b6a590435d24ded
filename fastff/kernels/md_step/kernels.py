"""Triton kernels of the half steps of molecular dynamics.

Here: kernels, nothing else. Not here: the definition (``reference.py``), launches and their order (``op.py``).

``begin_kernel`` and ``finish_kernel`` move atoms and read the flags of the run; ``settle_kernel``, one program after
them, is the only one to write flags, so that no program sees them change. What a first half overwrites is kept: it may
turn out to move an atom too far, and is then taken back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

BEGIN_SPACE = LaunchSpace("md_begin", LaunchConfig({"BLOCK": 128}, 4, 1))
FINISH_SPACE = LaunchSpace("md_finish", LaunchConfig({"BLOCK": 128}, 4, 1))
SETTLE_SPACE = LaunchSpace("md_settle", LaunchConfig({"BLOCK": 256}, 1, 1))
SCALE_SPACE = LaunchSpace("md_scale", LaunchConfig({"BLOCK": 512}, 4, 1))

TIMESTEP: tl.constexpr = tl.constexpr(0)
LIMIT: tl.constexpr = tl.constexpr(1)
DECAY: tl.constexpr = tl.constexpr(2)
THERMAL: tl.constexpr = tl.constexpr(3)
RISE: tl.constexpr = tl.constexpr(4)
N_CONSTANTS = 8
"""Places of constants: time step, largest displacement, decay, k_B T at step 0, its rise per step; the rest unused."""
_UNIT: tl.constexpr = tl.constexpr(2.0**-32)
_QUARTER: tl.constexpr = tl.constexpr(1.5707963267948966)
_ATOM_STREAM: tl.constexpr = tl.constexpr(1)


@triton.jit
def turn(fraction):
    """Sine and cosine of ``2 pi fraction``, for a fraction in (0, 1), to the last bits of float64."""
    quarter = tl.floor(4.0 * fraction + 0.5)
    x = (4.0 * fraction - quarter) * _QUARTER
    s = x * x
    sine = -1.0 / 355687428096000.0 * s + 1.0 / 1307674368000.0
    sine = 1.0 / 6227020800.0 - sine * s
    sine = 1.0 / 39916800.0 - sine * s
    sine = 1.0 / 362880.0 - sine * s
    sine = 1.0 / 5040.0 - sine * s
    sine = 1.0 / 120.0 - sine * s
    sine = 1.0 / 6.0 - sine * s
    sine = x - x * s * sine
    cosine = -1.0 / 20922789888000.0 * s + 1.0 / 87178291200.0
    cosine = 1.0 / 479001600.0 - cosine * s
    cosine = 1.0 / 3628800.0 - cosine * s
    cosine = 1.0 / 40320.0 - cosine * s
    cosine = 1.0 / 720.0 - cosine * s
    cosine = 1.0 / 24.0 - cosine * s
    cosine = 0.5 - cosine * s
    cosine = 1.0 - s * cosine
    place = quarter.to(tl.int32) & 3
    odd = (place & 1) == 1
    first = tl.where(odd, cosine, sine)
    second = tl.where(odd, sine, cosine)
    first = tl.where(place >= 2, -first, first)
    second = tl.where((place == 1) | (place == 2), -second, second)
    return first, second


@triton.jit
def draw_normals(seed, atoms, step):
    """Three standard normal numbers of every atom at a step, float64; see ``fastff.kernels.philox.draw_normals``."""
    low = (step & 0xFFFFFFFF).to(tl.uint32)
    high = ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = (atoms * 0).to(tl.uint32)
    a, b, c, d = tl.philox(
        seed, atoms.to(tl.uint32), zero + low, zero + high, zero + _ATOM_STREAM, n_rounds=10
    )
    u = (a.to(tl.float64) + 0.5) * _UNIT
    sine, cosine = turn((b.to(tl.float64) + 0.5) * _UNIT)
    radius = tl.sqrt(-2.0 * tl.log(u))
    w = (c.to(tl.float64) + 0.5) * _UNIT
    _, other = turn((d.to(tl.float64) + 0.5) * _UNIT)
    return radius * cosine, radius * sine, tl.sqrt(-2.0 * tl.log(w)) * other


@triton.jit
def is_going(step, target, failed):
    """Whether anything may move."""
    return (tl.load(step) < tl.load(target)) & (tl.load(failed) == 0)


@triton.jit
def is_finite(value):
    """False for NaN and infinities."""
    return value - value == 0.0


@triton.jit(do_not_specialize=["n_atoms"])
def begin_kernel(
    positions,
    velocities,
    forces,
    inverse_masses,
    constants,
    seed,
    step,
    target,
    pending,
    failed,
    unsound,
    old_positions,
    old_velocities,
    partials,
    n_atoms,
    LANGEVIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """First half of a step, if one may begin: kick, noise, drift. Sets ``unsound`` where an atom would move too far.

    Keeps positions and velocities of before in ``old_positions`` and ``old_velocities``; the heat that noise brings is
    left in ``partials`` (n_programs, 8), column 0.
    """
    program = tl.program_id(0).to(tl.int64)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(step)
    ready = is_going(step, target, failed) & (tl.load(pending) == 0)
    inside = rows < n_atoms
    keep = rows < tl.where(ready, n_atoms, 0)
    timestep = tl.load(constants + TIMESTEP)
    limit = tl.load(constants + LIMIT)
    inverse = tl.load(inverse_masses + rows, mask=inside, other=0.0)
    kick = 0.5 * timestep * inverse
    heat = tl.zeros((BLOCK,), dtype=tl.float64)
    bad = tl.zeros((BLOCK,), dtype=tl.int32)
    if LANGEVIN:
        decay = tl.load(constants + DECAY)
        thermal = tl.load(constants + THERMAL) + tl.load(constants + RISE) * number.to(tl.float64)
        width = tl.sqrt((1.0 - decay * decay) * inverse) * tl.sqrt(thermal)
        mass = tl.where(inverse > 0.0, 1.0 / tl.where(inverse > 0.0, inverse, 1.0), 0.0)
        n0, n1, n2 = draw_normals(tl.load(seed), rows, number)
    for k in tl.static_range(3):
        place = rows * 3 + k
        x = tl.load(positions + place, mask=inside, other=0.0)
        v = tl.load(velocities + place, mask=inside, other=0.0)
        tl.store(old_positions + place, x, mask=keep)
        tl.store(old_velocities + place, v, mask=keep)
        v += tl.load(forces + place, mask=inside, other=0.0).to(tl.float64) * kick
        if LANGEVIN:
            if k == 0:
                normal = n0
            elif k == 1:
                normal = n1
            else:
                normal = n2
            noisy = decay * v + normal * width
            heat += 0.5 * mass * (noisy * noisy - v * v)
            x += 0.5 * timestep * v
            v = noisy
            x += 0.5 * timestep * v
        else:
            x += timestep * v
        tl.store(positions + place, x, mask=keep)
        tl.store(velocities + place, v, mask=keep)
        bad += tl.where(tl.abs(v) * timestep <= limit, 0, 1)
    count = tl.sum(tl.where(keep, bad, 0))
    tl.store(unsound, 1, mask=count > 0)
    if LANGEVIN:
        tl.store(partials + program * 8, tl.sum(tl.where(keep, heat, 0.0)))


@triton.jit
def may_finish(step, target, pending, failed, unsound, stale, energy):
    """Whether the second half of a step may be taken, but for an energy that is not finite; and with that."""
    begun = (tl.load(pending) != 0) | (tl.load(unsound) == 0)
    ready = is_going(step, target, failed) & begun & (tl.load(stale) == 0)
    return ready, ready & is_finite(tl.load(energy))


@triton.jit(do_not_specialize=["n_atoms"])
def finish_kernel(
    velocities,
    forces,
    inverse_masses,
    constants,
    step,
    target,
    pending,
    failed,
    unsound,
    stale,
    energy,
    partials,
    n_atoms,
    RESCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Second half of a step, if it may be taken: kick. Its kinetic energy goes to ``partials``, column 1."""
    program = tl.program_id(0).to(tl.int64)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    _ready, go = may_finish(step, target, pending, failed, unsound, stale, energy)
    inside = rows < n_atoms
    keep = rows < tl.where(go, n_atoms, 0)
    inverse = tl.load(inverse_masses + rows, mask=inside, other=0.0)
    kick = 0.5 * tl.load(constants + TIMESTEP) * inverse
    square = tl.zeros((BLOCK,), dtype=tl.float64)
    for k in tl.static_range(3):
        place = rows * 3 + k
        v = tl.load(velocities + place, mask=inside, other=0.0)
        v += tl.load(forces + place, mask=inside, other=0.0).to(tl.float64) * kick
        tl.store(velocities + place, v, mask=keep)
        square += v * v
    if RESCALE:
        mass = tl.where(inverse > 0.0, 1.0 / tl.where(inverse > 0.0, inverse, 1.0), 0.0)
        tl.store(partials + program * 8 + 1, 0.5 * tl.sum(mass * square))


@triton.jit
def sum_column(partials, column, n_partials, BLOCK: tl.constexpr):
    """Sum of a column of ``partials`` (n_partials, 8), always in the same order."""
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, n_partials, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        total += tl.load(partials + rows * 8 + column, mask=rows < n_partials, other=0.0)
    return tl.sum(total)


@triton.jit(do_not_specialize=["n_begin", "n_finish", "length"])
def settle_kernel(
    constants,
    step,
    target,
    pending,
    failed,
    unsound,
    stale,
    energy,
    partials,
    heat,
    factor,
    scalars,
    start,
    n_begin,
    n_finish,
    length,
    LANGEVIN: tl.constexpr,
    RESCALE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """After both halves, one program of one warp, which reads before it writes: flags, step counter, heat, and the
    factor of velocities that rescaling asks for.

    ``scalars`` (length, 5) holds random numbers of the steps from ``start``: the first is normal, the last a sum of
    squares.
    """
    ready, go = may_finish(step, target, pending, failed, unsound, stale, energy)
    number = tl.load(step)
    going = is_going(step, target, failed)
    fresh = going & (tl.load(pending) == 0)
    too_far = fresh & (tl.load(unsound) != 0)
    begun = fresh & (tl.load(unsound) == 0)
    total = tl.load(heat)
    if LANGEVIN:
        total += tl.where(begun, sum_column(partials, 0, n_begin, BLOCK), 0.0)
    if RESCALE:
        kinetic = sum_column(partials, 1, n_finish, BLOCK)
        decay = tl.load(constants + DECAY)
        thermal = tl.load(constants + THERMAL) + tl.load(constants + RISE) * number.to(tl.float64)
        row = tl.minimum(tl.maximum(number - tl.load(start), 0), length - 1)
        first = tl.load(scalars + row * 5)
        squares = tl.load(scalars + row * 5 + 4)
        share = 0.5 * thermal * (1.0 - decay) / kinetic
        square = decay + share * (first * first + squares)
        square += 2.0 * first * tl.sqrt(decay * share)
        scale = tl.where(go, tl.sqrt(square), 1.0)
        total += tl.where(go, kinetic * (scale * scale - 1.0), 0.0)
        tl.store(factor, scale)
    broken = (tl.load(failed) != 0) | too_far | (ready & ~go)
    waiting = ((tl.load(pending) != 0) | begun) & ~go
    tl.store(heat, total)
    tl.store(failed, broken.to(tl.uint8))
    tl.store(pending, waiting.to(tl.uint8))
    tl.store(step, number + go.to(tl.int64))
    tl.store(unsound, 0)


@triton.jit(do_not_specialize=["n_values"])
def scale_kernel(velocities, factor, n_values, BLOCK: tl.constexpr):
    """Multiply all velocities by the factor that ``settle_kernel`` has left."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < n_values
    v = tl.load(velocities + places, mask=inside, other=0.0)
    tl.store(velocities + places, v * tl.load(factor), mask=inside)
