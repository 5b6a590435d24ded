"""The one record of a batch of structures that every model reads.

Here: :class:`Graph` and how several structures become one. Not here: finding neighbours
(:mod:`fastff.neighbors`), reading structures from files, or anything a model computes.

==============  ===============  ==============  ==================================================
field           shape            dtype, unit     meaning
==============  ===============  ==============  ==================================================
positions       (n_atoms, 3)     float, Å        Cartesian positions, wrapped or not
numbers         (n_atoms,)       int64           atomic numbers
cell            (n_systems,3,3)  float, Å        rows are cell vectors, as in ASE; completed, never
                                                 singular
pbc             (n_systems, 3)   bool            periodic along each cell vector
batch           (n_atoms,)       int64           index of the structure an atom belongs to, ascending
edge_index      (2, n_edges)     int64           row 0 receiver i, row 1 sender j; sorted by receiver
shifts          (n_edges, 3)     int64           cell vector multiples S of the sender's image
==============  ===============  ==============  ==================================================

The vector of an edge is ``r_j - r_i + S @ cell``. Every pair appears in both directions; an atom may be its
own neighbour through a periodic image, never through ``S = 0``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Graph:
    """A batch of structures with their neighbour lists. See the module's table for the fields."""

    positions: Tensor
    numbers: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    edge_index: Tensor
    shifts: Tensor

    @property
    def n_atoms(self) -> int:
        """Number of atoms over all structures."""
        return int(self.positions.shape[0])

    @property
    def n_edges(self) -> int:
        """Number of directed edges over all structures."""
        return int(self.edge_index.shape[1])

    @property
    def n_systems(self) -> int:
        """Number of structures."""
        return int(self.cell.shape[0])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Graph:
        """Return a copy on ``device`` whose floating-point fields have ``dtype``."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = value.to(
                device=device, dtype=dtype if value.is_floating_point() else None
            )
        return replace(self, **moved)


def edge_vectors(graph: Graph) -> Tensor:
    """Vectors from receiver to sender image, in Å, shape (n_edges, 3); differentiable to any order.

    Evaluated in the dtype of ``graph.positions``: pass float64 positions and convert the result, so that large
    coordinates or long shifts lose no digits.
    """
    receivers, senders = graph.edge_index
    shifts = graph.shifts.to(graph.cell.dtype)
    if graph.n_systems == 1:
        a, b, c = graph.cell[0].unbind(0)
    else:
        a, b, c = graph.cell[graph.batch[receivers]].unbind(1)
    images = shifts[:, :1] * a + shifts[:, 1:2] * b + shifts[:, 2:] * c
    return graph.positions[senders] - graph.positions[receivers] + images


def batch_graphs(graphs: Sequence[Graph]) -> Graph:
    """Concatenate graphs into one; structure ``k`` of the result is structure ``k`` of the input, in order."""
    if len(graphs) == 1:
        return graphs[0]
    atom_offsets, system_offsets, n_atoms, n_systems = [], [], 0, 0
    for graph in graphs:
        atom_offsets.append(n_atoms)
        system_offsets.append(n_systems)
        n_atoms += graph.n_atoms
        n_systems += graph.n_systems
    return Graph(
        positions=torch.cat([g.positions for g in graphs]),
        numbers=torch.cat([g.numbers for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
        pbc=torch.cat([g.pbc for g in graphs]),
        batch=torch.cat([g.batch + o for g, o in zip(graphs, system_offsets, strict=True)]),
        edge_index=torch.cat(
            [g.edge_index + o for g, o in zip(graphs, atom_offsets, strict=True)], dim=1
        ),
        shifts=torch.cat([g.shifts for g in graphs]),
    )


def find_largest(vectors: Tensor, batch: Tensor, n_systems: int) -> Tensor:
    """Largest length of a vector per atom (n_atoms, 3) in each structure, (n_systems,); nan where any is nan."""
    lengths = vectors.norm(dim=1)
    return lengths.new_zeros(n_systems).scatter_reduce(0, batch, lengths, "amax")


def select_structures(graph: Graph, chosen: Sequence[int]) -> Graph:
    """The graph of some structures of a batch, by ascending number."""
    if list(chosen) == list(range(graph.n_systems)):
        return graph
    kept = torch.zeros(graph.n_systems, dtype=torch.bool, device=graph.batch.device)
    kept[torch.tensor(list(chosen), dtype=torch.int64, device=kept.device)] = True
    atoms = kept[graph.batch]
    edges = atoms[graph.edge_index[0]]
    return Graph(
        positions=graph.positions[atoms],
        numbers=graph.numbers[atoms],
        cell=graph.cell[kept],
        pbc=graph.pbc[kept],
        batch=(kept.cumsum(0) - 1)[graph.batch[atoms]],
        edge_index=(atoms.cumsum(0) - 1)[graph.edge_index[:, edges]],
        shifts=graph.shifts[edges],
    )
