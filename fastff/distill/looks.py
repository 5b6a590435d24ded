"""How near atoms have come, and how unsure a student is, of many structures.

Here: :func:`look_at`. Not here: when a walker is looked at and what follows (:mod:`fastff.distill.explore`), the
uncertainty itself (:mod:`fastff.models.uncertainty`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ase
import torch
from ase.data import covalent_radii
from torch import Tensor

from fastff.gathering import gather_graph
from fastff.graph import Graph, edge_vectors, select_structures
from fastff.inference import split_chunks
from fastff.models import Student
from fastff.models.uncertainty import measure_uncertainty

CHECK_ATOMS = 8192
"""Most atoms whose uncertainty is measured together."""


def look_at(
    student: Student, structures: Sequence[ase.Atoms], graph: Graph | None = None
) -> list[tuple[float, float, float]]:
    """For each structure: closest contact, largest extrapolation grade, spread of the energy in eV/atom.

    The contact is the smallest distance over the sum of the covalent radii, infinite for atoms that see no other;
    grade and spread are nan if the student has no uncertainty.

    Parameters
    ----------
    student : Student
    structures : sequence of ase.Atoms
    graph : Graph, optional
        Of structures of these sizes, with the student's cut-off and on its device; made from them by default.
    """
    found: list[tuple[float, float, float]] = []
    for chunk in split_chunks(structures, CHECK_ATOMS):
        if graph is None:
            part = gather_graph(chunk, student.cutoff, student.device)
        else:
            part = select_structures(graph, range(len(found), len(found) + len(chunk)))
        contacts = _measure_contacts(part)
        if student.uncertainty is None:
            found += [(contact, math.nan, math.nan) for contact in contacts.tolist()]
            continue
        uncertainty = measure_uncertainty(student, part)
        grades = torch.full_like(contacts, -math.inf)
        grades = grades.scatter_reduce(0, part.batch, uncertainty.grades.double(), "amax")
        spreads = uncertainty.energy / torch.bincount(part.batch)
        table = torch.stack([contacts, grades, spreads.double()], dim=1)
        found += [(contact, grade, spread) for contact, grade, spread in table.tolist()]
    return found


def _measure_contacts(graph: Graph) -> Tensor:
    """Smallest distance over the sum of the covalent radii in each structure, (n_systems,) float64."""
    radii = torch.as_tensor(covalent_radii, dtype=torch.float64, device=graph.numbers.device)
    radii = radii[graph.numbers]
    receivers, senders = graph.edge_index
    ratios = edge_vectors(graph).norm(dim=1) / (radii[receivers] + radii[senders])
    closest = torch.full((graph.n_systems,), math.inf, dtype=torch.float64, device=radii.device)
    return closest.scatter_reduce(0, graph.batch[receivers], ratios.double(), "amin")
