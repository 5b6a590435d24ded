"""Neighbor lists of the structures of a batch, some of which are renewed at a time: on the host, or on the device.

Here: :class:`HostLists` and :class:`DeviceLists`. Not here: when a list must be renewed and what is computed with it
(:mod:`fastff.batches`), one structure (:mod:`fastff.neighbors`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.layout import NeighborMatrix, list_shifts, unpack_neighbors
from fastff.kernels.neighbor_list import build_neighbors
from fastff.kernels.neighbor_list.many import CellTable, search_cells
from fastff.kernels.neighbor_list.op import OP, round_slots
from fastff.kernels.neighbor_list.plan import count_images, make_frame
from fastff.kernels.neighbor_list.reference import fill_rows
from fastff.neighbors import build_edges, check_density, complete_cell
from fastff.packed import PackedBatch, pack_batch

BINS_FROM = 1000
"""Atoms of a structure from which its list is built by itself, with bins; smaller ones are searched all at once."""
_INT32 = 2**31


class HostLists:
    """Lists through vesin, one structure after another.

    Parameters
    ----------
    sizes : sequence of int
        Atoms of each structure.
    pbc : (n_systems, 3) bool array
    batch : (n_atoms,) int64 tensor
    reach : float, Å
        Cut-off plus skin.
    """

    shares_work = False
    """Whether to renew many structures costs hardly more than to renew one."""
    stay_in_place = False
    """Whether renewed lists are in the buffers of the old ones, unless ``pack`` gives another object."""

    def __init__(self, sizes: Sequence[int], pbc: np.ndarray, batch: Tensor, reach: float) -> None:
        self._starts = np.cumsum([0, *sizes])
        self._pbc, self._batch, self._reach = pbc, batch, reach
        self._edges = [batch] * len(sizes)
        self._shifts = [batch] * len(sizes)
        self._joined: tuple[Tensor, Tensor] | None = None
        self._packed: PackedBatch | None = None

    def renew(
        self, positions: Tensor, cells: Tensor, stale: Sequence[int]
    ) -> tuple[list[int], Tensor, Tensor]:
        """List the neighbors of some structures anew.

        Parameters
        ----------
        positions : (n_atoms, 3) float64 tensor, Å
        cells : (n_systems, 3, 3) float64 tensor, Å
        stale : sequence of int

        Returns
        -------
        renewed : list of int
            These, and maybe more.
        completed : (n_renewed, 3, 3) float64 tensor, Å
            Their cells, of which none is singular.
        positions : (n_atoms, 3) float64 tensor, Å
            In the images that the lists of the renewed are for; of others, anything.

        Raises
        ------
        DataError
            If positions or a cell cannot be used; the message names the structure. Lists are then void.
        """
        device = self._batch.device
        on_host, rows = positions.cpu().numpy(), cells.cpu().numpy()
        completed = torch.empty(len(stale), 3, 3, dtype=torch.float64)
        for place, k in enumerate(stale):
            own = on_host[self._starts[k] : self._starts[k + 1]]
            with name_structure(k):
                edges, shifts, cell = list_on_host(own, rows[k], self._pbc[k], self._reach)
            self._edges[k], self._shifts[k] = edges.to(device), shifts.to(device)
            completed[place] = torch.from_numpy(cell)
        self._joined = self._packed = None
        return list(stale), completed.to(device), positions

    def join_edges(self) -> tuple[Tensor, Tensor]:
        """Edges (2, n_edges), sorted by receiver, and shifts (n_edges, 3) of all structures."""
        if self._joined is None:
            starts = self._starts[:-1].tolist()
            edges = torch.cat([e + s for e, s in zip(self._edges, starts, strict=True)], dim=1)
            self._joined = edges, torch.cat(self._shifts)
        return self._joined

    def pack(self) -> PackedBatch:
        """What the fused kernels read; the same object until lists are renewed."""
        if self._packed is None:
            self._packed = pack_batch(*self.join_edges(), self._batch, len(self._edges))
        return self._packed


class DeviceLists:
    """Lists of all structures at once on the device, as rows of one matrix; arguments and methods of HostLists.

    Notes
    -----
    Only cells go to the host. Every structure has codes of its own for the images that its cell needs; where a cell
    comes to need more, all are renewed.
    """

    shares_work = stay_in_place = True

    def __init__(self, sizes: Sequence[int], pbc: np.ndarray, batch: Tensor, reach: float) -> None:
        self._sizes, self._pbc, self._batch, self._reach = list(sizes), pbc, batch, reach
        self._starts = np.cumsum([0, *sizes]).astype(np.int64)
        self._pointers = torch.from_numpy(self._starts).to(batch.device)
        self._images = np.full((len(self._sizes), 3), -1, dtype=np.int64)
        self._cells = np.full((len(self._sizes), 3, 3), np.nan)
        self._completed = np.zeros((len(self._sizes), 3, 3))
        small = np.repeat(np.array(self._sizes) < BINS_FROM, self._sizes)
        self._small_rows = torch.from_numpy(np.flatnonzero(small)).to(batch.device)
        self._matrix: NeighborMatrix | None = None
        self._joined: tuple[Tensor, Tensor] | None = None
        self._packed: PackedBatch | None = None

    def renew(
        self, positions: Tensor, cells: Tensor, stale: Sequence[int]
    ) -> tuple[list[int], Tensor, Tensor]:
        """See :meth:`HostLists.renew`."""
        rows = cells.cpu().numpy()
        images = self._images.copy()
        chosen = list(stale)
        for k in chosen:
            self._read_cell(k, rows[k], images)
        if (images > self._images).any():
            others = sorted(set(range(len(self._sizes))) - set(chosen))
            for k in others:
                self._read_cell(k, rows[k], images)
            chosen = list(range(len(self._sizes)))
            self._number_images(images)
        device = positions.device
        completed = torch.from_numpy(self._completed).to(device)
        wrapped = wrap_into(positions, completed, self._periodic, self._batch)
        self._check_finite(wrapped, chosen)
        steps = self._steps.to(torch.float64)
        translations = (steps[:, None, :] @ completed[self._owners])[:, 0]
        self._table = CellTable(
            self._starts, self._code_starts, self._pointers, self._code_pointers, self._batch,
            translations,
        )  # fmt: skip
        self._fill(wrapped, chosen)
        self._joined = None
        return chosen, completed[torch.tensor(chosen, device=device)], wrapped

    def _read_cell(self, k: int, cell: np.ndarray, images: np.ndarray) -> None:
        """Complete the cell of a structure, and widen the images that it needs, if it is not the last one."""
        flags, reach = self._pbc[k], self._reach
        if (cell[flags] == self._cells[k][flags]).all() and images[k, 0] >= 0:
            return
        with name_structure(k):
            check_cell(cell, flags)
            self._completed[k] = complete_cell(np.zeros((0, 3)), cell, flags, reach)
            check_density(self._sizes[k], self._completed[k], flags, reach)
            frame = make_frame(self._completed[k], (bool(flags[0]), bool(flags[1]), bool(flags[2])))
            count_images(frame, reach)
        need = [math.ceil(reach / h) if p else 0 for h, p in zip(frame.heights, flags, strict=True)]
        images[k] = np.maximum(images[k], need)
        self._cells[k] = cell

    def _number_images(self, images: np.ndarray) -> None:
        """Give every structure codes for its images."""
        device = self._batch.device
        self._images = images
        numbers = (2 * images + 1).prod(axis=1)
        steps = [
            torch.cartesian_prod(*(torch.arange(-int(n), int(n) + 1) for n in own))
            for own in images
        ]
        self._steps = torch.cat(steps).to(device)
        self._owners = torch.from_numpy(np.repeat(np.arange(len(images)), numbers)).to(device)
        self._code_starts = np.cumsum([0, *numbers]).astype(np.int64)
        self._code_pointers = torch.from_numpy(self._code_starts).to(device)
        self._periodic = torch.from_numpy(self._pbc).to(device)
        self._matrix = None

    def _check_finite(self, wrapped: Tensor, chosen: Sequence[int]) -> None:
        good = wrapped.isfinite().all(dim=1)
        if bool(good.all()):
            return
        bad = (~good).nonzero().flatten().cpu().numpy()
        for k in chosen:
            own = bad[(bad >= self._starts[k]) & (bad < self._starts[k + 1])]
            if len(own):
                raise DataError(
                    f"structure {k}: position of atom {own[0] - self._starts[k]} is not finite; "
                    "the structure or the dynamics is broken"
                )

    @property
    def renews_itself(self) -> bool:
        """Whether :meth:`renew_due` does for all structures, and without the host.

        None is so large that bins are worth while, and a CUDA device searches with Triton.
        """
        device = self._batch.device
        apart = device.type != "cuda" or dispatch.decide(OP, device)[0] == "triton"
        return apart and max(self._sizes) < BINS_FROM

    @property
    def n_slots(self) -> int:
        """Neighbors that a row has room for."""
        assert self._matrix is not None
        return self._matrix.n_slots

    def renew_due(self, wrapped: Tensor, due: Tensor) -> Tensor:
        """List the neighbors of small structures anew in the cells they had.

        Parameters
        ----------
        wrapped : (n_atoms, 3) float64 tensor, Å
            Inside their cells where a structure is due.
        due : (n_systems,) int32 tensor
            Not zero where a structure's lists are to be renewed.

        Returns
        -------
        () int32 tensor
            Most neighbors of an atom. If more than :attr:`n_slots`, rows were cut: :meth:`widen`, and renew all.
        """
        matrix = self._matrix
        assert matrix is not None
        self._joined = None
        search_cells(
            wrapped, self._table, self._small_rows, due, self._reach, matrix.entries, matrix.counts,
            matrix.code_bits,
        )  # fmt: skip
        widest = matrix.counts.amax()
        matrix.counts.clamp_(max=matrix.n_slots)  # kernels read as many as are counted
        return widest

    def widen(self, widest: int) -> None:
        """Make room for ``widest`` neighbors; all structures must be renewed next."""
        self._matrix = self._allocate(_fit_slots(max(widest, self.n_slots + 1)))
        self._joined = self._packed = None

    def forget_edges(self) -> None:
        """Lists were renewed by a replayed :meth:`renew_due`."""
        self._joined = None

    def _fill(self, wrapped: Tensor, chosen: Sequence[int]) -> None:
        """Write rows until they are wide enough."""
        due = torch.zeros(len(self._sizes), dtype=torch.int32)
        due[list(chosen)] = 1
        due = due.to(wrapped.device)
        large = [self._search_bins(wrapped, k) for k in chosen if self._sizes[k] >= BINS_FROM]
        if self._matrix is None:
            self._matrix = self._allocate(8)
            self._matrix.counts.zero_()
        while True:
            matrix = self._matrix
            search_cells(
                wrapped, self._table, self._small_rows, due, self._reach, matrix.entries,
                matrix.counts, matrix.code_bits,
            )  # fmt: skip
            for receivers, values, rows in large:
                fill_rows(receivers, values, matrix.entries, matrix.counts, rows)
            widest = int(matrix.counts.max())
            if widest <= matrix.n_slots:
                break
            wider = self._allocate(_fit_slots(widest))
            wider.entries[:, : matrix.n_slots] = matrix.entries
            wider.counts.copy_(matrix.counts)
            self._matrix, self._packed = wider, None
        if self._packed is None or self._packed.matrix is not matrix:
            self._packed = PackedBatch(matrix, self._steps.double(), self._owners, self._pointers)

    def _search_bins(self, wrapped: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Receivers and entries (n_edges,) of one structure in the numbers of the batch, and its atoms."""
        start, stop = int(self._starts[k]), int(self._starts[k + 1])
        with name_structure(k):
            edges, shifts, _ = list_on_device(
                wrapped[start:stop], self._completed[k], self._pbc[k], self._reach
            )
        own = torch.from_numpy(self._images[k]).to(wrapped.device)
        sides = 2 * own + 1
        place = shifts + own
        codes = (place[:, 0] * sides[1] + place[:, 1]) * sides[2] + place[:, 2]
        codes = codes + int(self._code_starts[k])
        values = ((edges[1] + start) << self._code_bits) | codes
        return edges[0] + start, values, torch.arange(start, stop, device=wrapped.device)

    @property
    def _code_bits(self) -> int:
        return max(1, (int(self._code_starts[-1]) - 1).bit_length())

    def _allocate(self, n_slots: int) -> NeighborMatrix:
        device, n_atoms = self._batch.device, len(self._batch)
        wide = n_atoms << self._code_bits > _INT32
        return NeighborMatrix(
            torch.zeros(
                n_atoms, n_slots, dtype=torch.int64 if wide else torch.int32, device=device
            ),
            torch.zeros(n_atoms, dtype=torch.int32, device=device),
            torch.zeros(int(self._code_starts[-1]), 4, dtype=torch.int32, device=device),
            self._code_bits,
        )

    def join_edges(self) -> tuple[Tensor, Tensor]:
        """See :meth:`HostLists.join_edges`."""
        if self._joined is None:
            assert self._matrix is not None
            senders, codes, filled = unpack_neighbors(self._matrix)
            atoms = torch.arange(len(senders), device=senders.device)
            receivers = atoms[:, None].expand_as(senders)
            edges = torch.stack([receivers[filled], senders[filled]])
            self._joined = edges, self._steps[codes[filled]]
        return self._joined

    def pack(self) -> PackedBatch:
        """See :meth:`HostLists.pack`."""
        assert self._packed is not None
        return self._packed


def _fit_slots(widest: int) -> int:
    """Slots for rows of ``widest`` neighbors and some more; multiples of 16, one kind of width for Triton."""
    return -(-round_slots(widest) // 16) * 16


@contextmanager
def name_structure(number: int) -> Iterator[None]:
    """Put a structure's number before the message of a DataError."""
    try:
        yield
    except DataError as error:
        raise DataError(f"structure {number}: {error}") from error


def wrap_into(positions: Tensor, cells: Tensor, periodic: Tensor, batch: Tensor) -> Tensor:
    """Positions (n_atoms, 3) inside the cells (n_systems, 3, 3) of their structures along periodic axes."""
    inverses = torch.where(periodic[:, None, :], torch.linalg.inv_ex(cells)[0], 0.0)
    return turn_back(positions, inverses[batch], cells[batch])


def turn_back(positions: Tensor, inverses: Tensor, cells: Tensor) -> Tensor:
    """Positions (n_atoms, 3) inside their cells, given those and their inverses per atom (n_atoms, 3, 3).

    Columns of inverses are zero where a cell is not periodic.
    """
    turns = (positions[:, None, :] @ inverses)[:, 0].floor()
    return positions - (turns[:, None, :] @ cells)[:, 0]


def check_positions(positions: np.ndarray) -> None:
    """Refuse positions (n_atoms, 3) that are no numbers."""
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise DataError(
            f"position of atom {bad[0]} is not finite: {positions[bad[0]].tolist()}; "
            "the structure or the dynamics is broken"
        )


def check_cell(cell: np.ndarray, pbc: np.ndarray) -> None:
    """Refuse cell vectors that are no numbers."""
    if not np.isfinite(cell[pbc]).all():
        raise DataError(
            f"cell {cell.tolist()} is not finite; the structure or the dynamics is broken"
        )


def list_on_host(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Edges, shifts and completed cell of one structure, through vesin."""
    check_positions(positions)
    check_cell(cell, pbc)
    completed = complete_cell(positions, cell, pbc, reach)
    edges, shifts = build_edges(positions, completed, pbc, reach)
    return torch.from_numpy(edges), torch.from_numpy(shifts), completed


def list_on_device(
    positions: Tensor, cell: np.ndarray, pbc: np.ndarray, reach: float
) -> tuple[Tensor, Tensor, np.ndarray]:
    """As :func:`list_on_host` with our own kernel; edges of an atom are in the order of the search."""
    flags = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
    found = build_neighbors(positions, cell, flags, reach)
    senders, codes, filled = unpack_neighbors(found.matrix)
    receivers = torch.arange(len(positions), device=positions.device)[:, None].expand_as(senders)
    i, j = receivers[filled], senders[filled]
    shifts = list_shifts(found.images).to(positions.device)[codes[filled]]
    shifts = shifts + found.wraps[i].long() - found.wraps[j].long()
    return torch.stack([i, j]), shifts, np.asarray(found.frame.rows)
