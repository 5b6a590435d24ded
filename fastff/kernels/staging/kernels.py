"""Triton kernels that bring positions to the rows of a neighbor matrix and results back, and look for close contacts.

Here: kernels, nothing else. Not here: launches and layouts (``op.py``), the evaluation between them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.moments.edges import load_center, load_edges
from fastff.kernels.tuning import LaunchConfig, LaunchSpace

STAGE_SPACE = LaunchSpace("stage", LaunchConfig({"BLOCK": 128}, 4, 1))
PUBLISH_SPACE = LaunchSpace("publish", LaunchConfig({"BLOCK": 128}, 4, 1))
CONTACT_SPACE = LaunchSpace("contacts", LaunchConfig({"TILE": 64}, 1, 1))
_GRID: tl.constexpr = tl.constexpr(2.0**26)
_FAR: tl.constexpr = tl.constexpr(0x7F800000)


@triton.jit
def combine_rows(a, b, c, cell, k: tl.constexpr):
    """Component k of ``(a, b, c) @ cell``."""
    total = a * tl.load(cell + k) + b * tl.load(cell + 3 + k)
    return total + c * tl.load(cell + 6 + k)


@triton.jit(do_not_specialize=["n_atoms", "n_codes", "n_blocks"])
def stage_kernel(
    positions,
    order,
    wraps,
    cell,
    shifts,
    staged,
    translations,
    nearest,
    n_atoms,
    n_codes,
    n_blocks,
    BLOCK: tl.constexpr,
):
    """``positions[order] - wraps @ cell`` to ``staged`` (n_atoms, 3), ``shifts @ cell`` to the grid.

    The first ``n_blocks`` programs take atoms, the others codes. ``nearest`` (1,) int32 is reset to infinity.
    """
    program = tl.program_id(0)
    if program < n_blocks:
        rows = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n_atoms
        source = tl.load(order + rows, mask=inside, other=0) * 3
        a = tl.load(wraps + rows * 3, mask=inside, other=0).to(tl.float64)
        b = tl.load(wraps + rows * 3 + 1, mask=inside, other=0).to(tl.float64)
        c = tl.load(wraps + rows * 3 + 2, mask=inside, other=0).to(tl.float64)
        for k in tl.static_range(3):
            value = tl.load(positions + source + k, mask=inside, other=0.0)
            value -= combine_rows(a, b, c, cell, k)
            tl.store(staged + rows * 3 + k, value, mask=inside)
    else:
        rows = (program - n_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = rows < n_codes
        a = tl.load(shifts + rows * 3, mask=inside, other=0).to(tl.float64)
        b = tl.load(shifts + rows * 3 + 1, mask=inside, other=0).to(tl.float64)
        c = tl.load(shifts + rows * 3 + 2, mask=inside, other=0).to(tl.float64)
        for k in tl.static_range(3):
            units = tl.floor(combine_rows(a, b, c, cell, k) * _GRID + 0.5)
            tl.store(translations + rows * 4 + k, units.to(tl.int64).to(tl.int32), mask=inside)
        tl.store(translations + rows * 4 + 3, (rows * 0).to(tl.int32), mask=inside)
        tl.store(nearest, _FAR)


@triton.jit(do_not_specialize=["n_slots", "code_bits"])
def contact_kernel(
    sites,
    translations,
    entries,
    counts,
    nearest,
    n_slots,
    code_bits,
    squared_limit,
    TILE: tl.constexpr,
):
    """Least squared distance below a limit, Å^2, as the bits of a float32, into ``nearest`` (1,) int32."""
    atom = tl.program_id(0).to(tl.int64)
    x0, y0, z0, _kind = load_center(sites, atom)
    count = tl.load(counts + atom)
    row = entries + atom * n_slots
    closest = tl.zeros((TILE,), dtype=tl.float32) + squared_limit
    for start in range(0, count, TILE):
        slots = start + tl.arange(0, TILE)
        inside = slots < count
        entry = tl.load(row + slots, mask=inside, other=0)
        dx, dy, dz, _sender, _species = load_edges(
            sites, translations, entry, inside, x0, y0, z0, code_bits, 30.0
        )
        closest = tl.minimum(closest, dx * dx + dy * dy + dz * dz)
    least = tl.min(closest, axis=0)
    bits = least.to(tl.int32, bitcast=True)
    tl.atomic_min(nearest, bits, mask=least < squared_limit, sem="relaxed")


@triton.jit(do_not_specialize=["n_atoms"])
def publish_kernel(
    forces,
    energies,
    totals,
    nearest,
    stale,
    order,
    results,
    n_atoms,
    BLOCK: tl.constexpr,
):
    """Everything that leaves the device, float64: energy, virial (9), least squared distance, stale, forces, energies.

    ``forces`` (n_atoms, 3) and ``energies`` (n_atoms,) of rows go to the atoms ``order`` names; ``totals``: xx, yy, zz,
    yz, xz, xy and energy.
    """
    program = tl.program_id(0).to(tl.int64)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_atoms
    target = tl.load(order + rows, mask=inside, other=0)
    for k in tl.static_range(3):
        value = tl.load(forces + rows * 3 + k, mask=inside, other=0.0).to(tl.float64)
        tl.store(results + 12 + target * 3 + k, value, mask=inside)
    energy = tl.load(energies + rows, mask=inside, other=0.0)
    tl.store(results + 12 + 3 * n_atoms.to(tl.int64) + target, energy, mask=inside)
    if program == 0:
        tl.store(results, tl.load(totals + 6))
        for k in tl.static_range(3):
            tl.store(results + 1 + 4 * k, tl.load(totals + k))
        yz = tl.load(totals + 3)
        xz = tl.load(totals + 4)
        xy = tl.load(totals + 5)
        tl.store(results + 2, xy)
        tl.store(results + 4, xy)
        tl.store(results + 3, xz)
        tl.store(results + 7, xz)
        tl.store(results + 6, yz)
        tl.store(results + 8, yz)
        squared = tl.load(nearest).to(tl.float32, bitcast=True)
        tl.store(results + 10, squared.to(tl.float64))
        tl.store(results + 11, tl.load(stale).to(tl.float64))
