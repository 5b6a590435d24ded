"""Definition of the neighbor matrix: every pair of atoms under every shift in reach, in plain torch.

Here: brute force over images in chunks of receivers, any device. Quadratic in the number of atoms: for checks and small
structures. Not here: bins on the device (``kernels.py``), lists for graphs (:mod:`fastff.neighbors`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.kernels.moment_potential.layout import list_shifts
from fastff.kernels.neighbor_list.plan import Frame, count_images, wrap_positions

_CHUNK = 4_000_000
"""Candidate vectors that one chunk holds."""


def find_pairs(
    positions: Tensor, frame: Frame, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Find all directed pairs ``|r_j - r_i + S cell| < reach`` of wrapped atoms, but no atom with itself at S = 0.

    Parameters
    ----------
    positions : (n_atoms, 3) tensor, Å
    frame : Frame
    reach : float, Å

    Returns
    -------
    receivers, senders, codes : (n_pairs,) int64 tensors
        Sorted by receiver, sender, code; a code is a row of ``list_shifts(images)``.
    wraps : (n_atoms, 3) int32 tensor
        See :class:`~fastff.kernels.neighbor_list.plan.Bins`.
    images : int
    """
    device = positions.device
    images = count_images(frame, reach)
    wrapped, wraps, _ = wrap_positions(positions, frame)
    shifts = list_shifts(images).to(device)
    flags = torch.tensor(frame.periodic, device=device)
    allowed = (shifts.ne(0) & ~flags).any(dim=1).logical_not().nonzero().flatten()
    translations = shifts[allowed].double() @ torch.from_numpy(frame.rows).to(device)
    own = int((shifts[allowed] == 0).all(dim=1).nonzero())
    n_atoms = positions.shape[0]
    chunk = max(1, _CHUNK // max(1, n_atoms * len(allowed)))
    found: list[Tensor] = []
    for start in range(0, n_atoms, chunk):
        centers = wrapped[start : start + chunk]
        vectors = wrapped[None, :] - centers[:, None]
        images_of = vectors[:, :, None, :] + translations
        inside = images_of.square().sum(dim=-1) < reach * reach
        rows = torch.arange(len(centers), device=device)
        inside[rows, rows + start, own] = False
        pairs = inside.nonzero()
        found.append(torch.stack([pairs[:, 0] + start, pairs[:, 1], allowed[pairs[:, 2]]], dim=1))
    table = torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.int64, device=device)
    return table[:, 0], table[:, 1], table[:, 2], wraps, images


def fill_rows(receivers: Tensor, values: Tensor, entries: Tensor, counts: Tensor) -> None:
    """Write values of receiver-sorted pairs to the rows of ``entries``, and how many there are to ``counts``.

    Values that do not fit into a row are left out; ``counts`` is true all the same.
    """
    n_atoms, n_slots = entries.shape
    found = torch.bincount(receivers, minlength=n_atoms)
    first = found.cumsum(0) - found
    rank = torch.arange(len(receivers), device=receivers.device) - first[receivers]
    fits = rank < n_slots
    entries[receivers[fits], rank[fits]] = values[fits].to(entries.dtype)
    counts.copy_(found)
