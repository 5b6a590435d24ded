"""The search of a list again and again over the same atoms in the same cell, as a CUDA graph holds it.

Here: :class:`RepeatedSearch`. Not here: the first search (``op.py``), which also serves where this one may not.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastff.kernels import dispatch
from fastff.kernels.neighbor_list.op import OP, NeighborList, launch_list
from fastff.kernels.neighbor_list.plan import MAX_TURNS, assign_bins, transform

REPEAT_UP_TO = 200_000
"""Atoms; beyond, launches cost little beside the search, and a graph's memory much."""


def can_repeat(found: NeighborList, device: torch.device) -> bool:
    """Whether a search can be repeated, and is worth it.

    The kernel must run there, and the cell be periodic along every axis: along others bins depend on where atoms are.
    """
    few = found.matrix.n_atoms <= REPEAT_UP_TO
    return few and all(found.frame.periodic) and dispatch.decide(OP, device)[0] == "triton"


class RepeatedSearch:
    """A search into the tensors of a list that exists, without waiting for the device.

    Parameters
    ----------
    positions : (n_atoms, 3) float64 tensor, Å
        Changed in place between searches.
    cell : (3, 3) float64 tensor, Å
        Must be the same at every search; on the device.
    found : NeighborList
        Of a first search over the same atoms and cell; matrix, order and wraps are written in place.
    reach : float, Å
    sort_atoms : bool
        As in the first search.

    Attributes
    ----------
    verdict : (3,) int64 tensor
        Largest number of neighbors, whether all positions had a place, whether the cell was that of the list. The list
        is good if the first does not exceed the width of the rows and the others are not zero; otherwise build it anew.

    Notes
    -----
    Gives the lists of :func:`~fastff.kernels.neighbor_list.build_neighbors`, entry by entry.
    """

    def __init__(
        self,
        positions: Tensor,
        cell: Tensor,
        found: NeighborList,
        reach: float,
        *,
        sort_atoms: bool,
    ) -> None:
        device = positions.device
        self._positions, self._cell, self._list, self._sorts = positions, cell, found, sort_atoms
        bins = assign_bins(positions, found.frame, reach)
        self._bins = bins
        self._inverse = torch.from_numpy(found.frame.inverse).to(device)
        self._rows = torch.from_numpy(found.frame.rows).to(device)
        numbers = [*found.frame.rows.flatten().tolist(), reach * reach]
        self._scalars = torch.tensor(numbers, dtype=torch.float64).to(device)
        self._count = torch.tensor(bins.shape, dtype=torch.int64, device=device)
        self._density = self._count.double()
        n_bins = bins.shape[0] * bins.shape[1] * bins.shape[2]
        self._edges = torch.arange(n_bins + 1, device=device)
        self._identity = torch.arange(len(positions), device=device)
        self.verdict = torch.zeros(3, dtype=torch.int64, device=device)

    def __call__(self) -> None:
        """Search; fixed launches over fixed buffers."""
        found, shape = self._list, self._bins.shape
        fractional = transform(self._positions, self._inverse)
        turns = fractional.floor()
        wrapped = self._positions - transform(turns, self._rows)
        place = ((fractional - turns) * self._density).nan_to_num(0.0, 0.0, 0.0)
        place = torch.minimum(place.to(torch.int64).clamp_min(0), self._count - 1)
        keys = (place[:, 0] * shape[1] + place[:, 1]) * shape[2] + place[:, 2]
        keys, order = keys.sort(stable=True)
        wraps = turns.nan_to_num(0.0, 0.0, 0.0).to(torch.int32)
        starts = torch.searchsorted(keys, self._edges)
        labels = self._identity if self._sorts else order
        bins = replace(self._bins, keys=keys, wraps=wraps, wrapped=wrapped)
        launch_list(wrapped[order], labels, keys, starts, self._scalars, bins, found.matrix)
        if self._sorts:
            found.order.copy_(order)
            wraps = wraps[order]
        found.wraps.copy_(wraps)
        placed = (fractional.abs() <= MAX_TURNS).all()
        good = torch.stack([placed, (self._cell == self._rows).all()])
        self.verdict[:1] = found.matrix.counts.max()
        self.verdict[1:] = good

    def read(self) -> tuple[bool, bool]:
        """Whether the list is good, and whether the cell was that of the list; waits for the device."""
        widest, finite, same = self.verdict.tolist()
        return bool(finite and same and widest <= self._list.matrix.n_slots), bool(same)
