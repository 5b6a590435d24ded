"""Definition of the neighbor matrix: every pair of atoms under every shift in reach, in plain torch.

Here: brute force over images in chunks of receivers, any device, quadratic in the number of atoms: for checks and small
structures; and the same pairs by bins, at sizes that brute force does not reach. Not here: bins in Triton
(``kernels.py``), lists for graphs (:mod:`fastff.neighbors`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastff.kernels.moment_potential.layout import list_shifts
from fastff.kernels.neighbor_list.plan import (
    Frame,
    assign_bins,
    count_images,
    transform,
    wrap_positions,
)

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


def find_pairs_by_bins(
    positions: Tensor, frame: Frame, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Find the pairs of :func:`find_pairs` among atoms of near bins; linear in the number of atoms.

    Parameters and results are those of :func:`find_pairs`, but pairs are in the order of the search, and ``images`` may
    be larger where bins are. One sweep over all atoms for each bin in reach of a bin; waits for the device in each.
    """
    device = positions.device
    bins = assign_bins(positions, frame, reach)
    shape, images = bins.shape, bins.images
    keys, order = bins.keys.sort(stable=True)
    points = bins.wrapped[order]
    n_bins = shape[0] * shape[1] * shape[2]
    starts = torch.searchsorted(keys, torch.arange(n_bins + 1, device=device))
    steps = torch.tensor([shape[1] * shape[2], shape[2], 1], device=device)
    counts = torch.tensor(shape, device=device)
    flags = torch.tensor(frame.periodic, device=device)
    rows = torch.from_numpy(frame.rows).to(device)
    place = keys[:, None] // steps % counts
    spans = [torch.arange(-span, span + 1, device=device) for span in bins.spans]
    found = [
        _sweep(place + offset, points, starts, steps, counts, flags, rows, reach, images)
        for offset in torch.cartesian_prod(*spans)
    ]
    table = torch.cat(found)
    return order[table[:, 0]], order[table[:, 1]], table[:, 2], bins.wraps, images


def _sweep(
    target: Tensor,
    points: Tensor,
    starts: Tensor,
    steps: Tensor,
    counts: Tensor,
    flags: Tensor,
    rows: Tensor,
    reach: float,
    images: int,
) -> Tensor:
    """Pairs (n_pairs, 3) of sorted atoms, center, other and code, with others from one bin ``target`` (n_atoms, 3)."""
    device = points.device
    turns = target.div(counts, rounding_mode="floor")
    allowed = (turns.eq(0) | flags).all(dim=1)
    bin_of = ((target - turns * counts) * steps).sum(dim=1)
    first = starts[bin_of]
    number = torch.where(allowed, starts[bin_of + 1] - first, 0)
    atoms = torch.arange(len(points), device=device)
    centers = atoms.repeat_interleave(number)
    begin = first - (number.cumsum(0) - number)
    others = torch.arange(len(centers), device=device) + begin[centers]
    moved = points - transform(turns.double(), rows)
    inside = (points[others] - moved[centers]).square().sum(dim=1) < reach * reach
    inside &= (centers != others) | turns.ne(0).any(dim=1)[centers]
    i, j = centers[inside], others[inside]
    x, y, z = (turns + images).unbind(1)
    base = 2 * images + 1
    codes = (x * base + y) * base + z
    return torch.stack([i, j, codes[i]], dim=1)


def fill_rows(
    receivers: Tensor,
    values: Tensor,
    entries: Tensor,
    counts: Tensor,
    rows: Tensor | None = None,
) -> None:
    """Write values of receiver-sorted pairs to the rows of ``entries``, and how many there are to ``counts``.

    Values that do not fit into a row are left out; ``counts`` is true all the same. ``rows`` (int64) are those that are
    written, where that is not all.
    """
    n_atoms, n_slots = entries.shape
    found = torch.bincount(receivers, minlength=n_atoms)
    first = found.cumsum(0) - found
    rank = torch.arange(len(receivers), device=receivers.device) - first[receivers]
    fits = rank < n_slots
    entries[receivers[fits], rank[fits]] = values[fits].to(entries.dtype)
    if rows is None:
        counts.copy_(found)
    else:
        counts[rows] = found[rows].to(counts.dtype)
