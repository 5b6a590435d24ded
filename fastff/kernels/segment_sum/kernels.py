"""Triton kernels of the sum over segments and of its adjoint, and their launch configurations.

Here: kernels and candidate configurations, nothing else. One program owns one segment and one block of features, so the
order of summation depends on the block sizes alone: no atomics, the same bits at every run.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from fastff.kernels.tuning import LaunchConfig, LaunchSpace

_CANDIDATES = tuple(
    LaunchConfig({"BLOCK_ROWS": rows}, num_warps, num_stages)
    for rows in (4, 8, 16, 32)
    for num_warps in (1, 2, 4)
    for num_stages in (1, 3)
)
SUM_SPACE = LaunchSpace("segment_sum", LaunchConfig({"BLOCK_ROWS": 16}, 1, 1), _CANDIDATES)
GATHER_SPACE = LaunchSpace("segment_gather", LaunchConfig({"BLOCK_ROWS": 16}, 1, 1), _CANDIDATES)
MAX_BLOCK_FEATURES = 128


@triton.jit
def sum_kernel(
    values,
    pointers,
    out,
    n_features: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Rows pointers[s] .. pointers[s + 1] of values (n_rows, n_features) into row s of out."""
    segment = tl.program_id(0).to(tl.int64)
    features = tl.program_id(1) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    inside = features < n_features
    begin = tl.load(pointers + segment).to(tl.int64)
    end = tl.load(pointers + segment + 1).to(tl.int64)
    total = tl.zeros((BLOCK_ROWS, BLOCK_FEATURES), dtype=values.dtype.element_ty)
    for first in range(begin, end, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        mask = (rows < end)[:, None] & inside[None, :]
        total += tl.load(values + rows[:, None] * n_features + features[None, :], mask, other=0.0)
    tl.store(out + segment * n_features + features, tl.sum(total, axis=0), mask=inside)


@triton.jit
def gather_kernel(
    values,
    pointers,
    out,
    n_features: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Row s of values (n_segments, n_features) into rows pointers[s] .. pointers[s + 1] of out."""
    segment = tl.program_id(0).to(tl.int64)
    features = tl.program_id(1) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    inside = features < n_features
    begin = tl.load(pointers + segment).to(tl.int64)
    end = tl.load(pointers + segment + 1).to(tl.int64)
    value = tl.load(values + segment * n_features + features, mask=inside, other=0.0)
    tile = tl.broadcast_to(value[None, :], (BLOCK_ROWS, BLOCK_FEATURES))
    for first in range(begin, end, BLOCK_ROWS):
        rows = first + tl.arange(0, BLOCK_ROWS)
        mask = (rows < end)[:, None] & inside[None, :]
        tl.store(out + rows[:, None] * n_features + features[None, :], tile, mask)
