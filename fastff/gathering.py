"""Structures of any sizes as one graph on a device.

Here: :func:`gather_graph`. Not here: graphs of single structures (:mod:`fastff.neighbors`), batches that are evaluated
again and again (:mod:`fastff.batches`).
"""

from __future__ import annotations

from collections.abc import Sequence

import ase
import numpy as np
import torch

from fastff.batch_lists import DeviceLists, check_positions, name_structure
from fastff.errors import DataError
from fastff.graph import Graph, batch_graphs
from fastff.neighbors import atoms_to_graph


def gather_graph(
    structures: Sequence[ase.Atoms], cutoff: float, device: torch.device | str, *, first: int = 0
) -> Graph:
    """Join structures in one graph; on a CUDA device neighbors are found there, for all at once.

    Parameters
    ----------
    structures : sequence of ase.Atoms
    cutoff : float, Å
    device : torch.device or str
    first : int
        Number of the first structure, for errors.

    Returns
    -------
    Graph
        On the device, in float64, edges sorted by receiver. Cell vectors of directions that are not periodic, and the
        order of an atom's edges, depend on where neighbors were found; positions may be those of other images.

    Raises
    ------
    DataError
        If positions or a cell cannot be used, or there are no atoms; the message names the structure.
    """
    place = torch.device(device)
    if place.type != "cuda":
        return batch_graphs(search_one_by_one(structures, cutoff, first)).to(place)
    try:
        return search_on_device(structures, cutoff, place)
    except DataError:
        search_one_by_one(structures, cutoff, first)  # which names the structure
        raise


def search_one_by_one(
    structures: Sequence[ase.Atoms], cutoff: float, first: int = 0
) -> list[Graph]:
    """Graphs of structures, on the host; errors name them, counting from ``first``."""
    graphs = []
    for number, atoms in enumerate(structures, start=first):
        with name_structure(number):
            check_positions(atoms.positions)
            graphs.append(atoms_to_graph(atoms, cutoff))
    return graphs


def search_on_device(structures: Sequence[ase.Atoms], cutoff: float, device: torch.device) -> Graph:
    """As :func:`gather_graph`, with the lists of batches whatever the device."""
    if not all(len(atoms) for atoms in structures):
        raise DataError("no atoms: a structure is empty")
    sizes = [len(atoms) for atoms in structures]
    positions = torch.as_tensor(np.concatenate([a.positions for a in structures]), device=device)
    numbers = torch.as_tensor(np.concatenate([a.numbers for a in structures]), device=device)
    cells = torch.as_tensor(np.stack([a.cell.array for a in structures]), device=device)
    pbc = np.stack([np.asarray(a.pbc, dtype=bool) for a in structures])
    batch = torch.as_tensor(np.repeat(np.arange(len(sizes)), sizes), device=device)
    lists = DeviceLists(sizes, pbc, batch, cutoff)
    _, completed, wrapped = lists.renew(positions, cells, range(len(sizes)))
    edges, shifts = lists.join_edges()
    return Graph(
        positions=wrapped,
        numbers=numbers.to(torch.int64),
        cell=completed,
        pbc=torch.as_tensor(pbc, device=device),
        batch=batch,
        edge_index=edges,
        shifts=shifts,
    )
