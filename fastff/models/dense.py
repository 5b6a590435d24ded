"""The dense neighbor layout: one row of slots per atom.

Here: laying out receiver-sorted edges as rows. Not here: what models do with the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseEdges(NamedTuple):
    """Edges laid out as (n_atoms, n_slots).

    Attributes
    ----------
    slots : (n_edges,) int64 tensor
        Flat slot of every edge.
    senders : (n_atoms, n_slots) int64 tensor
        Sender in every slot; an empty slot names its own row.
    vectors : (n_atoms, n_slots, 3) tensor, Å
        Edge vectors; an empty slot holds a vector at the cut-off, where radial functions vanish.
    """

    slots: Tensor
    senders: Tensor
    vectors: Tensor


def lay_out_edges(
    vectors: Tensor, edge_index: Tensor, n_atoms: int, cutoff: float, n_slots: int | None = None
) -> DenseEdges:
    """Assign every edge of a receiver-sorted list to a slot of its receiver's row.

    Parameters
    ----------
    vectors : (n_edges, 3) tensor, Å
    edge_index : (2, n_edges) int64 tensor
        Row 0 ascending.
    n_atoms : int
    cutoff : float, Å
    n_slots : int, optional
        Width of the rows; by default the largest neighbor count, and at least one.

    Raises
    ------
    ValueError
        If an atom has more than ``n_slots`` neighbors.
    """
    receivers, senders = edge_index
    counts = torch.bincount(receivers, minlength=n_atoms)
    widest = max(int(counts.max()), 1)
    n_slots = widest if n_slots is None else n_slots
    if widest > n_slots:
        raise ValueError(f"an atom has {widest} neighbors but the layout only {n_slots} slots")
    first = counts.cumsum(0) - counts
    rank = torch.arange(receivers.shape[0], device=receivers.device) - first[receivers]
    slots = receivers * n_slots + rank
    rows = torch.arange(n_atoms, device=receivers.device).repeat_interleave(n_slots)
    padding = vectors.new_tensor([cutoff, 0.0, 0.0]).expand(n_atoms * n_slots, 3)
    return DenseEdges(
        slots,
        rows.index_copy(0, slots, senders).view(n_atoms, n_slots),
        padding.index_copy(0, slots, vectors).view(n_atoms, n_slots, 3),
    )
