"""Neighbors in many small cells at once: every pair of a structure under every shift in reach, in one launch.

Here: :class:`CellTable`, :func:`search_cells` and its definition in torch. Not here: bins, which pay from about a
thousand atoms (``op.py``), when a list must be renewed (:mod:`fastff.batches`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastff.kernels import dispatch
from fastff.kernels.neighbor_list.op import OP
from fastff.kernels.neighbor_list.reference import fill_rows

CHUNK = 16_000_000
"""Candidates that the definition holds at a time, some hundred bytes each."""


@dataclass(frozen=True)
class CellTable:
    """Structures and the images of their cells; of structure k, atoms ``starts[k]`` and codes ``code_starts[k]`` on.

    Attributes
    ----------
    starts, code_starts : (n_systems + 1,) int64 array
    pointers, code_pointers : (n_systems + 1,) int64 tensor
        The same, on the device.
    batch : (n_atoms,) int64 tensor
        Structure of every atom.
    translations : (n_codes, 3) float64 tensor, Å
        Odd in number for each structure; that in the middle is zero.
    """

    starts: np.ndarray
    code_starts: np.ndarray
    pointers: Tensor
    code_pointers: Tensor
    batch: Tensor
    translations: Tensor


def search_cells(
    points: Tensor,
    table: CellTable,
    rows: Tensor,
    due: Tensor,
    reach: float,
    entries: Tensor,
    counts: Tensor,
    code_bits: int,
) -> None:
    """Write the rows of the atoms of structures that are due; other rows stay. On Triton nothing waits for the device.

    Parameters
    ----------
    points : (n_atoms, 3) float64 tensor, Å
        Inside their cells along periodic axes, or no farther apart than ``table`` allows for.
    table : CellTable
    rows : (n_rows,) int64 tensor
        Atoms that may be listed, ascending.
    due : (n_systems,) int32 tensor
        Not zero where a structure's rows are to be written.
    reach : float, Å
    entries : (n_atoms, n_slots) int32 or int64 tensor
        ``sender << code_bits | code`` in the order of the search; neighbors beyond the width are left out.
    counts : (n_atoms,) int32 tensor
        True even where a row is full.
    code_bits : int
    """
    if not len(rows):
        return

    def search_all() -> None:
        chosen = rows[due[table.batch[rows]] != 0]
        atoms = chosen.cpu().numpy()
        receivers, senders, codes = find_near(points, table, atoms, reach)
        fill_rows(receivers, (senders << code_bits) | codes, entries, counts, chosen)

    dispatch.run(
        OP,
        points.device,
        lambda: launch_rows(points, table, rows, due, reach, entries, counts, code_bits),
        search_all,
    )


def launch_rows(
    points: Tensor,
    table: CellTable,
    rows: Tensor,
    due: Tensor,
    reach: float,
    entries: Tensor,
    counts: Tensor,
    code_bits: int,
) -> None:
    """Launch ``rows_kernel`` over some atoms."""
    from fastff.kernels.neighbor_list.rows import ROWS_CONFIG, rows_kernel

    square = torch.full((1,), reach * reach, dtype=torch.float64, device=points.device)
    with dispatch.on_device(points.device):
        rows_kernel[(len(rows),)](
            points.contiguous(),
            rows,
            table.batch,
            table.pointers,
            table.code_pointers,
            table.translations,
            square,
            due,
            entries,
            counts,
            entries.shape[1],
            code_bits,
            **ROWS_CONFIG.to_arguments(),
        )


def find_near(
    points: Tensor, table: CellTable, atoms: np.ndarray, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Receivers, senders and codes (n_pairs,) of all pairs of some atoms, by brute force in torch.

    Sorted like ``atoms``, then by sender and code.
    """
    owners = np.searchsorted(table.starts, atoms, side="right") - 1
    costs = (np.diff(table.starts) * np.diff(table.code_starts))[owners]
    ends = costs.cumsum()
    found, first = [torch.zeros(3, 0, dtype=torch.int64, device=points.device)], 0
    while first < len(atoms):
        before = ends[first] - costs[first]
        last = max(first + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
        total = int(ends[last - 1] - before)
        here = torch.from_numpy(atoms[first:last]).to(points.device)
        found.append(_find_in_chunk(points, table, here, total, reach))
        first = last
    receivers, senders, codes = torch.cat(found, dim=1)
    return receivers, senders, codes


def _find_in_chunk(
    points: Tensor, table: CellTable, here: Tensor, total: int, reach: float
) -> Tensor:
    owner = table.batch[here]
    start, code_start = table.pointers[owner], table.code_pointers[owner]
    n_codes = table.code_pointers[owner + 1] - code_start
    number = (table.pointers[owner + 1] - start) * n_codes
    place = torch.arange(len(here), device=here.device)
    which = place.repeat_interleave(number, output_size=total)
    offset = torch.arange(total, device=here.device) - (number.cumsum(0) - number)[which]
    width = n_codes[which]
    step = offset.div(width, rounding_mode="floor")
    image = offset - step * width
    senders, receivers, codes = start[which] + step, here[which], code_start[which] + image
    vectors = points[senders] - points[receivers] + table.translations[codes]
    near = vectors.square().sum(dim=1) < reach * reach
    near &= (senders != receivers) | (image != width // 2)
    picks = near.nonzero().flatten()
    return torch.stack([receivers[picks], senders[picks], codes[picks]])
