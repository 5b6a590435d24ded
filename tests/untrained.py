"""An untrained student that does no harm. Not here: any test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms
from ase.data import covalent_radii

from fastff.graph import batch_graphs, edge_vectors
from fastff.models import ARCHITECTURES, Student, build_student, configure_student
from fastff.models.dense import lay_out_edges
from fastff.neighbors import atoms_to_graph
from fastff.testing import make_structures
from fastff.testing.structures import NEAR

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "m3-l": ("m3-l", {"n_channels": 6, "n_mixed": 6}),
    "m2-free": ("m2", {"inner_limit": None}),
    "m2-hop3": ("m2", {"n_hops": 3}),
    "m2-directed": ("m2", {"n_hops": 3, "message_degree": 2, "n_channels": 6, "n_mixed": 6}),
}
"""What tests of every student run over: each architecture, one that follows all distances, a third hop, messages up to
degree two."""


def make_dense_structures(elements: Sequence[int]) -> dict[str, Atoms]:
    """Those of the gate with neighbors 1.25 mean diameters apart, for the short cut-offs of tests."""
    reach = 2.5 * float(covalent_radii[list(elements)].mean()) / NEAR
    return make_structures(elements, cutoff=reach)


def make_student(
    kind: str, elements: Sequence[int], *, energy_scale: float = 0.05, **sizes: Any
) -> Student:
    """A student calibrated on small structures, float32, with composition energies of thousands of eV.

    ``kind``: one of :data:`KINDS`; ``sizes`` are for what that leaves open.
    """
    architecture, own = KINDS[kind]
    sizes = {**sizes, **own}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(configure_student(architecture, tuple(elements), **sizes)).float()
    structures = make_dense_structures(student.elements).values()
    graph = batch_graphs([atoms_to_graph(atoms, student.cutoff) for atoms in structures])
    dense = lay_out_edges(
        edge_vectors(graph).float(), graph.edge_index, graph.n_atoms, student.cutoff
    )
    student.calibrate(dense.vectors, dense.senders, student.find_species(graph.numbers))
    student.energy_scale.fill_(energy_scale)
    offsets = torch.arange(len(student.elements), dtype=torch.float64)
    student.composition_energies.copy_(-1000.123456789 - 1500.0 * offsets)
    return student.eval().requires_grad_(False)
