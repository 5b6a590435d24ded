"""Definition of the sum over segments and of its adjoint.

Here: the formulas in plain torch, any device, any floating dtype, differentiable to any order. Not here: checks,
dispatch or launchers (``op.py``), Triton kernels (``kernels.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, pointers: Tensor) -> Tensor:
    """``out[s] = sum_{pointers[s] <= e < pointers[s + 1]} values[e]``. See ``op.segment_sum`` for the contract."""
    n_segments = pointers.shape[0] - 1
    owners = _find_owners(pointers, values.shape[0])
    return values.new_zeros((n_segments, *values.shape[1:])).index_add(0, owners, values)


def segment_gather(values: Tensor, pointers: Tensor, n_rows: int) -> Tensor:
    """``out[e] = values[s]`` for ``pointers[s] <= e < pointers[s + 1]``. See ``op.segment_gather``."""
    return values.index_select(0, _find_owners(pointers, n_rows))


def _find_owners(pointers: Tensor, n_rows: int) -> Tensor:
    """Segment of every row, shape (n_rows,)."""
    segments = torch.arange(pointers.shape[0] - 1, device=pointers.device)
    return segments.repeat_interleave(pointers.diff(), output_size=n_rows)
