"""Triton kernels of the adjoint of the moments, and their launch configurations.

Here: gradients in the moments to gradients in every edge vector, summed on the receiver and scattered to the sender,
with the virial, the core repulsion and the message gradients in the same pass. Not here: where sums go
(``scatter.py``), the gather that replaces the scatter (``gather.py``), shared device functions
(:mod:`fastff.kernels.moments.edges`), launches (:mod:`fastff.kernels.moment_potential`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastff.kernels.moments.edges import (
    N_RADIAL,
    PADDED_RADIAL,
    compress_distance,
    contract_harmonics,
    evaluate_basis,
    evaluate_envelope,
    evaluate_harmonics,
    evaluate_wave,
    load_center,
    load_edges,
    locate_factors,
    read_factors,
    split8,
)
from fastff.kernels.moments_adjoint.scatter import add_at, find_home, put_term, turn_factor
from fastff.kernels.products import multiply_coarsely
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

LARGEST_FORCE = 1e9
"""eV/Å; where the pairs of an atom push it harder, or its gradients are no numbers, its results are void."""

ADJOINT_SPACE = LaunchSpace(
    "moments_adjoint",
    LaunchConfig({"TILE": 32, "ATOMS": 1}, 1, 1),
    tuple(
        LaunchConfig({"TILE": tile, "ATOMS": atoms}, num_warps, 1)
        for tile, num_warps in ((16, 1), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2))
        for atoms in (1, 4)
    ),
    (
        (
            make_key(torch.float32, channels=16, degree=1),
            LaunchConfig({"TILE": 16, "ATOMS": 1}, 1, 1),
        ),
        *(
            (
                make_key(torch.float32, channels=channels, degree=1),
                LaunchConfig({"TILE": 32, "ATOMS": 1}, 2, 1),
            )
            for channels in (32, 64, 128)
        ),
    ),
)
_SIZES = ["n_atoms", "n_slots", "n_species", "code_bits"]
_LARGEST: tl.constexpr = tl.constexpr(LARGEST_FORCE)
_PI: tl.constexpr = tl.constexpr(3.141592653589793)


@triton.jit
def contract_slope(gradient, sine, cosine, amplitude, slope, inverse_cutoff):
    """``sum_k dB_k/dd gradient[:, k]`` with ``B_k = sin(k pi d / r_c) amplitude(d)``."""
    g1, g2, g3, g4, g5, g6, g7, g8 = split8(gradient)
    two = 2.0 * cosine
    c2 = two * cosine - 1.0
    c3 = two * c2 - cosine
    c4 = two * c3 - c2
    c5 = two * c4 - c3
    c6 = two * c5 - c4
    c7 = two * c6 - c5
    c8 = two * c7 - c6
    waves = cosine * g1 + 2.0 * c2 * g2 + 3.0 * c3 * g3 + 4.0 * c4 * g4
    waves += 5.0 * c5 * g5 + 6.0 * c6 * g6 + 7.0 * c7 * g7 + 8.0 * c8 * g8
    s2 = two * sine
    s3 = two * s2 - sine
    s4 = two * s3 - s2
    s5 = two * s4 - s3
    s6 = two * s5 - s4
    s7 = two * s6 - s5
    s8 = two * s7 - s6
    height = sine * g1 + s2 * g2 + s3 * g3 + s4 * g4 + s5 * g5 + s6 * g6 + s7 * g7 + s8 * g8
    return waves * (_PI * inverse_cutoff) * amplitude + height * slope


@triton.jit
def evaluate_core(distance, inverse, pair, core, inside):
    """Half the screened core repulsion of a pair, and its slope; see ``moment_potential.reference.evaluate_core``."""
    inverse_length = tl.load(core + pair * 4, mask=inside, other=1.0)
    reach = tl.load(core + pair * 4 + 1, mask=inside, other=1.0)
    strength = tl.load(core + pair * 4 + 2, mask=inside, other=0.0)
    t = distance * inverse_length
    t1 = 0.18175 * tl.exp(-3.19980 * t)
    t2 = 0.50986 * tl.exp(-0.94229 * t)
    t3 = 0.28022 * tl.exp(-0.40290 * t)
    t4 = 0.02817 * tl.exp(-0.20162 * t)
    screen = t1 + t2 + t3 + t4
    decay = -(3.19980 * t1 + 0.94229 * t2 + 0.40290 * t3 + 0.20162 * t4)
    envelope, envelope_slope = evaluate_envelope(tl.minimum(distance / reach, 1.0))
    bare = strength * inverse
    slope = (decay * inverse_length - screen * inverse) * envelope
    return bare * screen * envelope, bare * (slope + screen * envelope_slope / reach)


@triton.constexpr_function
def choose_part(channels, degree):
    """Channels that are taken at a time: all, where what that keeps in registers fits there."""
    return channels if channels <= (16 if degree else 32) else 16


@triton.jit
def load_layers(radial_row, moment_row, C: tl.constexpr, PART: tl.constexpr):
    """Radial weights (16, PART) and (PART, 8), gradients in the moments (16, PART) and (PART, 16) of PART channels."""
    channels = tl.arange(0, PART)
    radials = tl.arange(0, N_RADIAL)
    padded = tl.arange(0, PADDED_RADIAL)
    components = tl.arange(0, 16)
    mix = tl.load(
        radial_row + padded[:, None] * C + channels[None, :],
        mask=(padded < N_RADIAL)[:, None],
        other=0.0,
    )
    unmix = tl.load(radial_row + radials[None, :] * C + channels[:, None])
    pull = tl.load(moment_row + components[:, None] * C + channels[None, :])
    push = tl.load(moment_row + components[None, :] * C + channels[:, None])
    return mix, unmix, pull, push


@triton.jit
def pull_in_parts(
    harmonics,
    basis,
    basis_gradient,
    harmonics_gradient,
    radial_row,
    moment_row,
    place,
    target,
    inside,
    x,
    y,
    z,
    C: tl.constexpr,
    BY_SENDER: tl.constexpr,
    DEGREE: tl.constexpr,
    SCATTER: tl.constexpr,
    PRECISION: tl.constexpr,
    PART: tl.constexpr,
):
    """Gradients in basis and harmonics of a tile of slots, and what messages add to that in the unit vectors.

    PART channels at a time, of which weights and gradients are loaded anew for every tile: with 64 channels they would
    fill the registers. ``place`` and ``target`` (n, PART) point to each slot's first factors and their accumulators.
    """
    there = inside[:, None]
    tx = tl.zeros_like(x)
    ty = tl.zeros_like(x)
    tz = tl.zeros_like(x)
    empty = tl.zeros((x.shape[0], PART), dtype=tl.float32)
    for first in range(0, C, PART):
        mix, unmix, pull, push = load_layers(radial_row + first, moment_row + first, C, PART)
        here, back_here = place + first, target + first
        factor = read_factors(here, inside, x, y, z, C, BY_SENDER, DEGREE)
        gradient = multiply_coarsely(harmonics, pull, empty, PRECISION)
        basis_gradient = multiply_coarsely(gradient * factor, unmix, basis_gradient, PRECISION)
        radial = multiply_coarsely(basis, mix, empty, PRECISION)
        harmonics_gradient = multiply_coarsely(radial * factor, push, harmonics_gradient, PRECISION)
        if BY_SENDER:
            back = gradient * radial
            add_at(back_here, back, there, SCATTER)
            if DEGREE > 0:
                ty += turn_factor(here + C, back_here + C, back, y, there, SCATTER)
                tz += turn_factor(here + 2 * C, back_here + 2 * C, back, z, there, SCATTER)
                tx += turn_factor(here + 3 * C, back_here + 3 * C, back, x, there, SCATTER)
    return basis_gradient, harmonics_gradient, tx, ty, tz


@triton.jit(do_not_specialize=_SIZES)
def adjoint_kernel(
    sites,
    translations,
    neighbors,
    counts,
    weights,
    factors,
    gradients,
    core,
    forces,
    terms,
    edges,
    message_gradients,
    n_atoms,
    n_slots,
    n_species,
    code_bits,
    cutoff,
    core_reach,
    inner_reach,
    C: tl.constexpr,
    BY_SENDER: tl.constexpr,
    DEGREE: tl.constexpr,
    HAS_CORE: tl.constexpr,
    HAS_INNER: tl.constexpr,
    WITH_VIRIAL: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SCATTER: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS: tl.constexpr,
):
    """Forces and per-atom terms from ``gradients`` (n_atoms, 16, C), dE/dA.

    ``forces`` (n_atoms, 4) are accumulators, int64 unless SCATTER is ``float``, that already hold zeros or an earlier
    hop; the last of each four is set where the others cannot hold the force; ``terms`` (n_atoms, 8): virial xx, yy, zz,
    yz, xz, xy, core energy, unused, overwritten unless ACCUMULATE; ``edges`` (n_atoms, n_slots, 4): dE/d(vector), where
    SCATTER is ``store``; ``message_gradients`` (n_atoms, (DEGREE + 1)^2, C): accumulators like ``forces``, where
    BY_SENDER; where SCATTER is ``store`` instead (n_atoms, n_slots, C) float32: gradients in the factors of every slot.
    """
    PART: tl.constexpr = choose_part(C, DEGREE)
    channels = tl.arange(0, PART)
    inverse_cutoff = 1.0 / cutoff
    first = tl.program_id(0).to(tl.int64) * ATOMS
    for atom in range(first, tl.minimum(first + ATOMS, n_atoms)):
        count = tl.load(counts + atom)
        x0, y0, z0, species0 = load_center(sites, atom)
        row = neighbors + atom * n_slots
        radial_row = weights + species0 * (N_RADIAL * C)
        moment_row = gradients + atom * (16 * C)
        if PART == C:
            mix, unmix, pull, push = load_layers(radial_row, moment_row, C, PART)
        fx = tl.zeros((TILE,), dtype=tl.float32)
        fy = tl.zeros((TILE,), dtype=tl.float32)
        fz = tl.zeros((TILE,), dtype=tl.float32)
        core_energy = tl.zeros((TILE,), dtype=tl.float32)
        if WITH_VIRIAL:
            wxx = tl.zeros((TILE,), dtype=tl.float32)
            wyy = tl.zeros((TILE,), dtype=tl.float32)
            wzz = tl.zeros((TILE,), dtype=tl.float32)
            wyz = tl.zeros((TILE,), dtype=tl.float32)
            wxz = tl.zeros((TILE,), dtype=tl.float32)
            wxy = tl.zeros((TILE,), dtype=tl.float32)
        for start in range(0, count, TILE):
            slots = start + tl.arange(0, TILE)
            inside = slots < count
            entries = tl.load(row + slots, mask=inside, other=0)
            dx, dy, dz, sender, species = load_edges(
                sites, translations, entries, inside, x0, y0, z0, code_bits, cutoff
            )
            squared = dx * dx + dy * dy + dz * dz
            inverse = tl.rsqrt(squared)
            distance = squared * inverse
            ux = dx * inverse
            uy = dy * inverse
            uz = dz * inverse
            pair = species0 * n_species + species
            source = locate_factors(sender, pair, C, BY_SENDER, DEGREE)
            place = factors + source[:, None] + channels[None, :]
            home = find_home(source, atom * n_slots + slots, C, SCATTER)
            if PART == C:
                factor = read_factors(place, inside, ux, uy, uz, C, BY_SENDER, DEGREE)
            harmonics = evaluate_harmonics(ux, uy, uz)
            none = tl.zeros((TILE, N_RADIAL), dtype=tl.float32)
            if PART == C:
                empty = tl.zeros((TILE, C), dtype=tl.float32)
                channel_gradient = multiply_coarsely(harmonics, pull, empty, PRECISION)
                basis_gradient = multiply_coarsely(
                    channel_gradient * factor, unmix, none, PRECISION
                )
            seen = distance
            near = inverse
            if HAS_INNER:  # noqa: SIM102 (compile-time, then run-time)
                if tl.min(distance) < inner_reach:
                    seen, _ = compress_distance(distance, pair, core, inside)
                    near = 1.0 / seen
            x = tl.minimum(seen * inverse_cutoff, 1.0)
            sine, cosine = evaluate_wave(x)
            envelope, envelope_slope = evaluate_envelope(x)
            amplitude = envelope * near
            slope = (envelope_slope * inverse_cutoff - amplitude) * near
            basis = evaluate_basis(sine, cosine, amplitude)
            nothing = tl.zeros((TILE, 16), dtype=tl.float32)
            if PART == C:
                radial = multiply_coarsely(basis, mix, empty, PRECISION)
                harmonics_gradient = multiply_coarsely(radial * factor, push, nothing, PRECISION)
                if BY_SENDER:
                    back = channel_gradient * radial
                    target = message_gradients + home[:, None] + channels[None, :]
                    add_at(target, back, inside[:, None], SCATTER)
            else:
                target = message_gradients + home[:, None] + channels[None, :]
                basis_gradient, harmonics_gradient, tx, ty, tz = pull_in_parts(
                    harmonics, basis, none, nothing, radial_row, moment_row, place, target, inside,
                    ux, uy, uz, C, BY_SENDER, DEGREE, SCATTER, PRECISION, PART,
                )  # fmt: skip
            along = contract_slope(basis_gradient, sine, cosine, amplitude, slope, inverse_cutoff)
            if HAS_INNER:  # noqa: SIM102
                if tl.min(distance) < inner_reach:
                    _, share = compress_distance(distance, pair, core, inside)
                    along *= share
            gx, gy, gz = contract_harmonics(harmonics_gradient, ux, uy, uz)
            if PART < C:
                gx += tx
                gy += ty
                gz += tz
            elif BY_SENDER and DEGREE > 0:
                there = inside[:, None]
                gy += turn_factor(place + C, target + C, back, uy, there, SCATTER)
                gz += turn_factor(place + 2 * C, target + 2 * C, back, uz, there, SCATTER)
                gx += turn_factor(place + 3 * C, target + 3 * C, back, ux, there, SCATTER)
            if HAS_CORE:  # noqa: SIM102 (compile-time, then run-time)
                if tl.min(distance) < core_reach:
                    value, core_slope = evaluate_core(distance, inverse, pair, core, inside)
                    core_energy += value
                    along += core_slope
            along -= (gx * ux + gy * uy + gz * uz) * inverse
            gx = gx * inverse + along * ux
            gy = gy * inverse + along * uy
            gz = gz * inverse + along * uz
            fx += gx
            fy += gy
            fz += gz
            if SCATTER == "store":
                edge = edges + (atom * n_slots + slots) * 4
                tl.store(edge, gx, mask=inside)
                tl.store(edge + 1, gy, mask=inside)
                tl.store(edge + 2, gz, mask=inside)
            else:
                add_at(forces + sender * 4, -gx, inside, SCATTER)
                add_at(forces + sender * 4 + 1, -gy, inside, SCATTER)
                add_at(forces + sender * 4 + 2, -gz, inside, SCATTER)
            if WITH_VIRIAL:
                wxx += dx * gx
                wyy += dy * gy
                wzz += dz * gz
                wyz += dy * gz + dz * gy
                wxz += dx * gz + dz * gx
                wxy += dx * gy + dy * gx
        if SCATTER != "store":
            sx = tl.sum(fx)
            sy = tl.sum(fy)
            sz = tl.sum(fz)
            add_at(forces + atom * 4, sx, None, SCATTER)
            add_at(forces + atom * 4 + 1, sy, None, SCATTER)
            add_at(forces + atom * 4 + 2, sz, None, SCATTER)
            if SCATTER == "fixed":
                held = tl.abs(sx) + tl.abs(sy) + tl.abs(sz) < _LARGEST  # False for NaN
                tl.store(forces + atom * 4 + 3, 1, mask=held == 0)
        if WITH_VIRIAL:
            put_term(terms + atom * 8, tl.sum(wxx), ACCUMULATE)
            put_term(terms + atom * 8 + 1, tl.sum(wyy), ACCUMULATE)
            put_term(terms + atom * 8 + 2, tl.sum(wzz), ACCUMULATE)
            put_term(terms + atom * 8 + 3, 0.5 * tl.sum(wyz), ACCUMULATE)
            put_term(terms + atom * 8 + 4, 0.5 * tl.sum(wxz), ACCUMULATE)
            put_term(terms + atom * 8 + 5, 0.5 * tl.sum(wxy), ACCUMULATE)
        if HAS_CORE:
            put_term(terms + atom * 8 + 6, tl.sum(core_energy), False)
