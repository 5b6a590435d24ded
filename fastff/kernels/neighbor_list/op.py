"""Public function of the neighbor list: checks, dispatch, buffers that grow.

Here: :func:`build_neighbors` and its record :class:`NeighborList`. Not here: the definition (``reference.py``), the
kernel (``kernels.py``), when a list must be rebuilt (:mod:`fastff.kernels.skin_check`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import dispatch, tuning
from fastff.kernels.moment_potential.layout import NeighborMatrix, list_shifts, make_translations
from fastff.kernels.neighbor_list import reference
from fastff.kernels.neighbor_list.plan import (
    Array,
    Bins,
    Frame,
    assign_bins,
    have_places,
    make_frame,
)

OP = dispatch.register(dispatch.Op("neighbor_list", derivative_order=0, deterministic=True))
_INT32 = 2**31
BROKEN = "positions are not finite, or 2^30 cells away; the structure or the dynamics is broken"
BINS_FROM = 1000
"""Atoms from which torch looks for pairs in bins, too: all by all, 4,000 atoms take it half a minute on a CPU."""


@dataclass(frozen=True)
class NeighborList:
    """A neighbor matrix and how its rows relate to the atoms it was made of.

    Attributes
    ----------
    matrix : NeighborMatrix
        Row ``p`` belongs to atom ``order[p]``; senders are rows too.
    order : (n_atoms,) int64 tensor
        ``0, 1, 2, ...`` unless the list is sorted in space.
    wraps : (n_atoms, 3) int32 tensor
        Of the atom of each row: the matrix holds for ``positions[order] - wraps @ cell``.
    images : int
        Largest component of a shift; codes are rows of ``list_shifts(images)``.
    frame : Frame
        Cell that the list was built in.
    """

    matrix: NeighborMatrix
    order: Tensor
    wraps: Tensor
    images: int
    frame: Frame


def build_neighbors(
    positions: Tensor,
    cell: Tensor | Array,
    pbc: tuple[bool, bool, bool],
    reach: float,
    *,
    n_slots: int | None = None,
    sort_atoms: bool = False,
    reverse: bool = False,
    out: NeighborMatrix | None = None,
) -> NeighborList:
    """Find all neighbours nearer than ``reach``, periodic images included.

    Parameters
    ----------
    positions : (n_atoms, 3) floating tensor, Å
        Wrapped or not.
    cell : (3, 3) tensor or array, Å
        Rows are cell vectors, of either hand; rows of non-periodic axes are ignored. On a device it is copied to the
        host.
    pbc : three bool
    reach : float, Å
        Cut-off plus skin.
    n_slots : int, optional
        Least width of the rows.
    sort_atoms : bool
        Number the rows by bin, so that neighbours lie near each other in memory.
    reverse : bool
        Add the reverse index.
    out : NeighborMatrix, optional
        Its ``entries``, ``counts`` and ``translations`` are written in place if they are large enough and of the right
        kind, so that addresses stay; a reverse index is made anew, if asked for.

    Returns
    -------
    NeighborList
        Rows hold no gaps. Entries are in the order of the search, which depends on nothing but the arguments.

    Raises
    ------
    DataError
        Positions that are not finite or 2^30 cells away (Å where there are no images), shapes that do not fit, a cell
        without volume.

    Notes
    -----
    Not differentiable: a list is a set of integers. Waits for the device to learn the largest number of neighbours; if
    it exceeds the width, wider rows are allocated and the search is repeated. Entries are int64 where int32 would
    overflow.
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or not positions.is_floating_point():
        raise DataError(
            f"positions have shape {tuple(positions.shape)} and dtype {positions.dtype}; pass floating (n_atoms, 3)"
        )
    if not 0.0 < reach < math.inf:
        raise DataError(f"reach {reach} Å must be positive and finite")
    rows = cell.detach().double().cpu().numpy() if isinstance(cell, Tensor) else np.asarray(cell)
    if rows.shape != (3, 3) or len(pbc) != 3:
        raise DataError(
            f"cell has shape {rows.shape} and there are {len(pbc)} flags of periodicity; pass (3, 3) and three"
        )
    flags = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    frame = make_frame(rows, flags)
    positions = positions.detach()
    found = dispatch.run(
        OP,
        positions.device,
        lambda: _search_bins(positions, frame, reach, n_slots, sort_atoms, out),
        lambda: _search_all(positions, frame, reach, n_slots, sort_atoms, out),
    )
    return _add_reverse(found) if reverse else found


def _search_bins(
    positions: Tensor,
    frame: Frame,
    reach: float,
    n_slots: int | None,
    sort_atoms: bool,
    out: NeighborMatrix | None,
) -> NeighborList:
    n_atoms, device = positions.shape[0], positions.device
    placed = have_places(positions, frame)
    bins = assign_bins(positions, frame, reach)
    keys, order = bins.keys.sort(stable=True)
    identity = torch.arange(n_atoms, device=device)
    search = prepare_search(bins, keys, order, identity if sort_atoms else order, frame, reach)
    if n_slots is None:
        n_slots = out.n_slots if out is not None else _guess_slots(n_atoms, reach, bins, frame)
    while True:
        matrix = provide_matrix(n_atoms, n_slots, bins.images, device, out)
        launch_list(*search, matrix)
        widest, good = _read_back(matrix.counts, placed)
        if not good:
            raise DataError(BROKEN)
        if widest <= matrix.n_slots:
            break
        n_slots = round_slots(widest)
    matrix.translations.copy_(
        make_translations(torch.from_numpy(frame.rows), bins.images).to(device)
    )
    if sort_atoms:
        return NeighborList(matrix, order, bins.wraps[order], bins.images, frame)
    return NeighborList(matrix, identity, bins.wraps, bins.images, frame)


def _search_all(
    positions: Tensor,
    frame: Frame,
    reach: float,
    n_slots: int | None,
    sort_atoms: bool,
    out: NeighborMatrix | None,
) -> NeighborList:
    n_atoms, device = positions.shape[0], positions.device
    if not bool(have_places(positions, frame)):
        raise DataError(BROKEN)
    order = torch.arange(n_atoms, device=device)
    if sort_atoms:
        order = assign_bins(positions, frame, reach).keys.argsort(stable=True)
    few = n_atoms < BINS_FROM
    search = reference.find_pairs if few else reference.find_pairs_by_bins
    receivers, senders, codes, wraps, images = search(positions[order], frame, reach)
    if not few:  # from the order of bins to that of the definition: by receiver, sender and code
        place = (senders * (2 * images + 1) ** 3 + codes).argsort()
        place = place[receivers[place].argsort(stable=True)]
        receivers, senders, codes = receivers[place], senders[place], codes[place]
    if n_slots is None and out is not None:
        n_slots = out.n_slots
    widest = int(torch.bincount(receivers, minlength=1).max()) if n_atoms else 0
    if n_slots is None or widest > n_slots:
        n_slots = round_slots(widest)
    matrix = provide_matrix(n_atoms, n_slots, images, device, out)
    reference.fill_rows(
        receivers, (senders << matrix.code_bits) | codes, matrix.entries, matrix.counts
    )
    matrix.translations.copy_(make_translations(torch.from_numpy(frame.rows), images).to(device))
    return NeighborList(matrix, order, wraps, images, frame)


def prepare_search(
    bins: Bins, keys: Tensor, order: Tensor, labels: Tensor, frame: Frame, reach: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Bins]:
    """What :func:`launch_list` takes before the matrix, of atoms whose sorted ``keys`` are in ``order``."""
    device = keys.device
    scalars = torch.tensor([*frame.rows.flatten().tolist(), reach * reach], dtype=torch.float64)
    n_bins = bins.shape[0] * bins.shape[1] * bins.shape[2]
    starts = torch.searchsorted(keys, torch.arange(n_bins + 1, device=device))
    return bins.wrapped[order], labels, keys, starts, scalars.to(device), bins


def launch_list(
    points: Tensor,
    labels: Tensor,
    keys: Tensor,
    starts: Tensor,
    scalars: Tensor,
    bins: Bins,
    matrix: NeighborMatrix,
) -> None:
    """Launch ``list_kernel`` over atoms sorted by bin; writes ``matrix.entries`` and ``matrix.counts``."""
    from fastff.kernels.neighbor_list.kernels import LIST_SPACE, list_kernel

    if matrix.n_atoms == 0:
        return
    periodic = (1 if p else 0 for p in bins.periodic)
    config = tuning.lookup(LIST_SPACE, tuning.make_key(torch.float64), points.device)
    with dispatch.on_device(points.device):
        list_kernel[(matrix.n_atoms,)](
            points,
            labels,
            keys,
            starts,
            scalars,
            matrix.entries,
            matrix.counts,
            matrix.n_slots,
            *bins.shape,
            *bins.spans,
            *periodic,
            bins.images,
            matrix.code_bits,
            **config.to_arguments(),
        )


def round_slots(widest: int) -> int:
    """Width of rows that hold ``widest`` neighbours and a few more, in multiples of eight."""
    return max(8, -(-(widest + widest // 10) // 8) * 8)


def count_code_bits(images: int) -> int:
    """Bits that the codes of shifts up to ``images`` take; at least one."""
    return max(1, ((2 * images + 1) ** 3 - 1).bit_length())


def _guess_slots(n_atoms: int, reach: float, bins: Bins, frame: Frame) -> int:
    """Width for a homogeneous density, but no more than there are atoms and images; the first search corrects it."""
    volume = abs(float(np.linalg.det(frame.rows))) * bins.extent
    expected = 1.1 * 4.19 * reach**3 * n_atoms / max(volume, 1.0)
    most = n_atoms * (2 * bins.images + 1) ** sum(frame.periodic)
    return round_slots(int(min(expected, most)) + 8)


def provide_matrix(
    n_atoms: int, n_slots: int, images: int, device: torch.device, out: NeighborMatrix | None
) -> NeighborMatrix:
    """A matrix to write to: ``out`` if it has the size, the kind and room, else a new one; without a reverse index."""
    code_bits = count_code_bits(images)
    dtype = torch.int64 if n_atoms << code_bits > _INT32 else torch.int32
    if (
        out is not None
        and out.n_atoms == n_atoms
        and out.n_slots >= n_slots
        and out.code_bits == code_bits
        and out.translations.shape[0] == (2 * images + 1) ** 3
        and out.entries.dtype == dtype
        and out.entries.device == device
    ):
        return out if out.reverse is None else replace(out, reverse=None)
    return NeighborMatrix(
        torch.empty(n_atoms, n_slots, dtype=dtype, device=device),
        torch.empty(n_atoms, dtype=torch.int32, device=device),
        torch.empty((2 * images + 1) ** 3, 4, dtype=torch.int32, device=device),
        code_bits,
    )


def _read_back(counts: Tensor, placed: Tensor) -> tuple[int, bool]:
    """Largest count and whether all positions have a place, in one transfer."""
    if not len(counts):
        return 0, bool(placed)
    widest, good = torch.stack([counts.max().long(), placed.long()]).tolist()
    return widest, bool(good)


def _add_reverse(found: NeighborList) -> NeighborList:
    """The same list with the reverse index of its matrix.

    Rounding may list a pair as far apart as the reach from one side alone; such a slot is its own reverse, and what a
    gather subtracts from it is nothing, as beyond any cut-off.
    """
    matrix = found.matrix
    n_atoms, n_slots = matrix.entries.shape
    device = matrix.entries.device
    base = 2 * found.images + 1
    filled = torch.arange(n_slots, device=device)[None] < matrix.counts[:, None]
    slots = filled.flatten().nonzero().flatten()
    receivers = slots // n_slots
    entries = matrix.entries.flatten()[slots].long()
    senders, codes = entries >> matrix.code_bits, entries & ((1 << matrix.code_bits) - 1)
    ordered, order = ((receivers * n_atoms + senders) * base**3 + codes).sort()
    wanted = (senders * n_atoms + receivers) * base**3 + (base**3 - 1 - codes)
    dtype = torch.int64 if n_atoms * n_slots > _INT32 else torch.int32
    back = torch.zeros(n_atoms * n_slots, dtype=dtype, device=device)
    place = torch.searchsorted(ordered, wanted).clamp_max(len(slots) - 1)
    back[slots] = torch.where(ordered[place] == wanted, slots[order[place]], slots).to(dtype)
    return replace(found, matrix=replace(matrix, reverse=back.view(n_atoms, n_slots)))


def list_edges(found: NeighborList) -> tuple[Tensor, Tensor]:
    """Edges (2, n_edges) and integer shifts (n_edges, 3) of the atoms as they were given, unwrapped, sorted.

    With these, ``r_j - r_i + shifts @ cell`` is the vector of a pair; for checks and the torch path.
    """
    from fastff.kernels.moment_potential.layout import unpack_neighbors

    senders, codes, filled = unpack_neighbors(found.matrix)
    device = senders.device
    receivers = torch.arange(found.matrix.n_atoms, device=device)[:, None].expand_as(senders)
    i, j = receivers[filled], senders[filled]
    shifts = list_shifts(found.images).to(device)[codes[filled]]
    shifts = shifts + found.wraps[i].long() - found.wraps[j].long()
    edges = torch.stack([found.order[i], found.order[j]])
    keys = [edges[0], edges[1], *shifts.unbind(1)]
    order = torch.arange(len(i), device=device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return edges[:, order], shifts[order]
