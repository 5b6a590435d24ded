"""Rows of a small table, one for every atom, with a backward pass that suits a GPU.

Here: :func:`pick_rows`. Not here: gathering from long tables, where rows are seldom picked twice.

Indexing adds up its gradient row by row. Where thousands of atoms share a handful of species that is a queue, which
took most of a training step on a GPU. A product with a one-hot matrix gives the same values and sums its gradient in
parallel.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pick_rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``.

    Parameters
    ----------
    table : (n_rows, ...) tensor
    index : (n,) integer tensor

    Returns
    -------
    (n, ...) tensor
        Differentiable in ``table`` to any order.
    """
    if not (torch.is_grad_enabled() and table.requires_grad):
        return table[index]
    one_hot = index[:, None] == torch.arange(table.shape[0], device=index.device)
    picked = one_hot.to(table.dtype) @ table.reshape(table.shape[0], -1)
    return picked.view(index.shape[0], *table.shape[1:])
