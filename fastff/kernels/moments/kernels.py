"""Triton kernel of the moments, and its launch configurations.

Here: one kernel that goes from positions and a neighbor matrix to the moments of every atom without writing anything
per edge. Not here: shared device functions (``edges.py``), the adjoint (:mod:`fastff.kernels.moments_adjoint`),
launches (:mod:`fastff.kernels.moment_potential`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastff.kernels.moments.edges import (
    N_RADIAL,
    PADDED_RADIAL,
    compress_distance,
    evaluate_basis,
    evaluate_envelope,
    evaluate_harmonics,
    evaluate_wave,
    load_center,
    load_edges,
    locate_factors,
    read_factors,
)
from fastff.kernels.products import multiply
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

MOMENTS_SPACE = LaunchSpace(
    "moments",
    LaunchConfig({"TILE": 32, "ATOMS": 4}, 1, 1),
    tuple(
        LaunchConfig({"TILE": tile, "ATOMS": atoms}, num_warps, 1)
        for tile, num_warps in ((16, 1), (32, 1), (32, 2), (64, 1), (64, 2))
        for atoms in (1, 4)
    ),
    (
        *(
            (
                make_key(torch.float32, channels=channels, degree=1),
                LaunchConfig({"TILE": 16, "ATOMS": 4}, 1, 1),
            )
            for channels in (32, 64, 128)
        ),
        (make_key(torch.float32, channels=128), LaunchConfig({"TILE": 32, "ATOMS": 4}, 2, 1)),
    ),
)
_SIZES = ["n_atoms", "n_slots", "n_species", "code_bits", "ATOMS"]


@triton.jit(do_not_specialize=_SIZES)
def moments_kernel(
    sites,
    translations,
    neighbors,
    counts,
    weights,
    factors,
    core,
    moments,
    n_atoms,
    n_slots,
    n_species,
    code_bits,
    cutoff,
    inner_reach,
    C: tl.constexpr,
    BY_SENDER: tl.constexpr,
    DEGREE: tl.constexpr,
    HAS_INNER: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    ATOMS,
):
    """Moments (n_atoms, 16, C) of every atom.

    ``weights`` (n_species, 8, C) hold the radial weights of the receiver's species, times the norm of the basis;
    ``factors`` are messages (n_atoms, (DEGREE + 1)^2, C) where BY_SENDER, else pair factors (n_species, n_species, C);
    of ``core`` (n_species^2, 4) the inner distances are read where HAS_INNER, by tiles with a pair below
    ``inner_reach``.
    A program takes ATOMS atoms, one after another: known at run time, because no result depends on it.
    """
    channels = tl.arange(0, C)
    radials = tl.arange(0, PADDED_RADIAL)
    components = tl.arange(0, 16)
    first = tl.program_id(0).to(tl.int64) * ATOMS
    for atom in range(first, tl.minimum(first + ATOMS, n_atoms)):
        count = tl.load(counts + atom)
        x0, y0, z0, species0 = load_center(sites, atom)
        row = neighbors + atom * n_slots
        mix = tl.load(
            weights + species0 * (N_RADIAL * C) + radials[:, None] * C + channels[None, :],
            mask=(radials < N_RADIAL)[:, None],
            other=0.0,
        )
        total = tl.zeros((16, C), dtype=tl.float32)
        for start in range(0, count, TILE):
            slots = start + tl.arange(0, TILE)
            inside = slots < count
            entries = tl.load(row + slots, mask=inside, other=0)
            dx, dy, dz, sender, species = load_edges(
                sites, translations, entries, inside, x0, y0, z0, code_bits, cutoff
            )
            squared = dx * dx + dy * dy + dz * dz
            inverse = tl.rsqrt(squared)
            pair = species0 * n_species + species
            seen = squared * inverse
            near = inverse
            if HAS_INNER:  # noqa: SIM102 (compile-time, then run-time)
                if tl.min(seen) < inner_reach:
                    seen, _ = compress_distance(seen, pair, core, inside)
                    near = 1.0 / seen
            x = tl.minimum(seen / cutoff, 1.0)
            sine, cosine = evaluate_wave(x)
            envelope, _ = evaluate_envelope(x)
            basis = evaluate_basis(sine, cosine, envelope * near)
            radial = multiply(basis, mix, tl.zeros((TILE, C), dtype=tl.float32), PRECISION)
            source = locate_factors(sender, pair, C, BY_SENDER, DEGREE)
            place = factors + source[:, None] + channels[None, :]
            ux = dx * inverse
            uy = dy * inverse
            uz = dz * inverse
            factor = read_factors(place, inside, ux, uy, uz, C, BY_SENDER, DEGREE)
            harmonics = evaluate_harmonics(ux, uy, uz)
            total = multiply(tl.trans(harmonics), radial * factor, total, PRECISION)
        out = moments + atom * (16 * C) + components[:, None] * C + channels[None, :]
        tl.store(out, total)
