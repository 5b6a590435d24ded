"""Triton kernels around the sums: positions to the grid before them, totals after them.

Here: quantisation of positions (clearing the accumulators on the way), conversion of the force accumulators, and
the sum of energies and virials in float64. Not here: anything with neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl

_GRID: tl.constexpr = tl.constexpr(2.0**26)
_FARTHEST: tl.constexpr = tl.constexpr(2.0**36)
"""Coordinates in Å up to which grid units are counted in 64 bits."""
_SCALE: tl.constexpr = tl.constexpr(2.0**32)


@triton.jit(do_not_specialize=["n_atoms"])
def place_kernel(
    positions, species, sites, forces, n_atoms, CLEAR: tl.constexpr, BLOCK: tl.constexpr
):
    """Positions (n_atoms, 3) in Å and species to sites (n_atoms, 4) on the grid; zeros into ``forces`` (n_atoms, 4).

    But 1 into the last column of an atom that has no place on the grid, which is written without CLEAR, too.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, 4)[None, :]
    inside = (rows < n_atoms)[:, None]
    value = tl.load(positions + rows[:, None] * 3 + column, mask=inside & (column < 3), other=0.0)
    value = value.to(tl.float64)
    placed = tl.abs(value) < _FARTHEST  # False for NaN
    units = tl.floor(tl.where(placed, value, 0.0) * _GRID + 0.5).to(tl.int64).to(tl.int32)
    lost = tl.max(tl.where(placed, 0, 1), axis=1)
    kind = tl.load(species + rows, mask=rows < n_atoms, other=0).to(tl.int32)
    target = rows[:, None] * 4 + column
    tl.store(sites + target, tl.where(column < 3, units, kind[:, None]), mask=inside)
    if CLEAR:
        clear = tl.where(column < 3, 0, lost[:, None]).to(forces.dtype.element_ty)
        tl.store(forces + target, clear, mask=inside)
    else:
        tl.store(forces + rows * 4 + 3, lost.to(forces.dtype.element_ty), mask=rows < n_atoms)


@triton.jit(do_not_specialize=["n_atoms", "stride"])
def finish_kernel(
    sites,
    node_energies,
    terms,
    composition,
    accumulators,
    forces,
    energies,
    partials,
    n_atoms,
    stride,
    HOPS: tl.constexpr,
    HAS_CORE: tl.constexpr,
    WITH_VIRIAL: tl.constexpr,
    FIXED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Forces (n_atoms, 3) float32, energies (n_atoms,) float64, and partial sums (n_programs, 8) float64.

    ``node_energies`` (HOPS, stride). Partial sums: the virial's six components, energy, unused. All are NaN of an atom
    whose last of four ``accumulators`` is not zero, its ``terms`` too.
    """
    program = tl.program_id(0).to(tl.int64)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    inside = rows < n_atoms
    column = tl.arange(0, 4)[None, :]
    value = tl.load(accumulators + rows[:, None] * 4 + column, mask=inside[:, None], other=0)
    void = tl.max(tl.where(column < 3, 0, value), axis=1) != 0
    species = tl.load(sites + rows * 4 + 3, mask=inside, other=0)
    energy = tl.load(composition + species, mask=inside, other=0.0)
    for hop in tl.static_range(HOPS):
        part = tl.load(node_energies + rows + hop * stride.to(tl.int64), mask=inside, other=0.0)
        energy += part.to(tl.float64)
    if HAS_CORE:
        energy += tl.load(terms + rows * 8 + 6, mask=inside, other=0.0).to(tl.float64)
    energy = tl.where(void, float("nan"), energy)
    tl.store(energies + rows, energy, mask=inside)
    tl.store(partials + program * 8 + 6, tl.sum(energy))
    if WITH_VIRIAL:
        for part in tl.static_range(6):
            term = tl.load(terms + rows * 8 + part, mask=inside, other=0.0).to(tl.float64)
            term = tl.where(void, float("nan"), term)
            tl.store(terms + rows * 8 + part, term.to(tl.float32), mask=void)
            tl.store(partials + program * 8 + part, tl.sum(term))
    if FIXED:
        value = value.to(tl.float32) * (1.0 / _SCALE)
    value = tl.where(void[:, None], float("nan"), value)
    tl.store(forces + rows[:, None] * 3 + column, value, mask=inside[:, None] & (column < 3))


@triton.jit(do_not_specialize=["n_partials"])
def total_kernel(partials, totals, n_partials, BLOCK: tl.constexpr):
    """Sum partial sums (n_partials, 8) to totals (8,), one program per column, always in the same order."""
    column = tl.program_id(0)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, n_partials, BLOCK):
        rows = (start + tl.arange(0, BLOCK)).to(tl.int64)
        total += tl.load(partials + rows * 8 + column, mask=rows < n_partials, other=0.0)
    tl.store(totals + column, tl.sum(total))
