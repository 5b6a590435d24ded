"""Triton kernels against torch, on a student's own structures.

Here: whether this machine runs the kernels, and how far their results are from torch's. Not here: tests of single
kernels, which belong to each op.
"""

from __future__ import annotations

import torch
from ase import Atoms

from fastff import kernels
from fastff.kernels.moment_potential.layout import find_obstacle, pack_edges
from fastff.models import Student
from fastff.models.fused import collect_weights
from fastff.models.moment import MomentStudent
from fastff.neighbors import atoms_to_graph
from fastff.testing.subject import evaluate


def explain_backends(model: Student) -> str:
    """Why the kernels cannot be compared here; empty if they can."""
    if model.device.type != "cuda":
        return f"the model is on the {model.device.type}; kernels run on a GPU (--device cuda)"
    if isinstance(model, MomentStudent):
        obstacle = find_obstacle(collect_weights(model))
        return f"no kernels for this student: {obstacle}" if obstacle else ""
    return ""


@torch.no_grad()
def measure_backends(single: Student, exact: Student, atoms: Atoms) -> tuple[float, float]:
    """Error of the kernels beside torch in float64: energy, eV/atom, and root mean square of the forces, eV/Å.

    ``single`` and ``exact`` are the same student in float32 and in float64. Of a structure with large forces it grows
    as they do, as that of torch in float32 does.
    """
    with kernels.use("torch"):
        expected = evaluate(exact, [atoms])
    energy, forces = evaluate_kernels(single, atoms)
    error = forces.double() - expected.forces
    apart = abs(float(energy.double() - expected.energy[0])) / len(atoms)
    return apart, float(error.square().mean().sqrt())


def evaluate_kernels(model: Student, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy and forces of a student in float32 by its kernels."""
    if not isinstance(model, MomentStudent):
        with kernels.use("triton"):
            found = evaluate(model, [atoms])
        return found.energy[0], found.forces
    from fastff.kernels.moment_potential.evaluate import FusedPotential

    graph = atoms_to_graph(atoms, model.cutoff).to(model.device)
    matrix = pack_edges(graph.edge_index, graph.shifts, graph.cell[0], graph.n_atoms)
    potential = FusedPotential(collect_weights(model), model.device)
    result = potential.evaluate(graph.positions, model.find_species(graph.numbers), matrix)
    return result.energy, result.forces
