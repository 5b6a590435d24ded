"""Whole students at production size: Triton against the eager definition and torch.compile of it.

Here: energy, forces and virial from positions and a neighbor list, float32, in one run on one GPU; forces are first
compared with float64, and a red comparison is a failure, not a timing. The share of the measured bandwidth is stored
beside each time. ``painn`` differentiates by autograd inside, which torch.compile does not take: it has no compiled
variant. Not here: single ops (``test_ops.py``), steps of dynamics (``bench/md_gpu.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastff import kernels
from fastff.kernels.moment_potential.cases import System, build_lattice, draw_weights
from fastff.kernels.moment_potential.costs import count_costs
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import unpack_neighbors
from fastff.kernels.moment_potential.op import convert_weights
from fastff.kernels.moment_potential.reference import evaluate_reference
from fastff.kernels.tuning import find_relative_error
from fastff.models import ARCHITECTURES, build_student, configure_student
from fastff.report.kernel_work import compile_all, count_bytes

REACH = 5.4
CELLS = {"m1": 30, "m2": 30, "m2-l": 30, "painn": 12}
"""Cubic cells of copper along each axis; the edges of ``painn`` are in memory."""
VARIANTS = ("triton", "eager", "compiled")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Model:
    """Ways to evaluate forces, what they must be, and the fewest bytes that must move."""

    ways: dict[str, Callable[[], Tensor]]
    exact: Tensor
    n_bytes: int


def build_model(name: str, device: torch.device, cells: int) -> Model:
    """A student of the built-in size with random weights, over a rattled crystal."""
    system = build_lattice("Cu", cells, REACH, device, rattle=0.1)
    return build_painn(system) if name == "painn" else build_moment(name, system)


def build_moment(name: str, system: System) -> Model:
    device, own = system.positions.device, ARCHITECTURES[name]
    width = own.get("n_channels", 16)
    geometry = (system.positions, system.species, system.matrix, system.translations)
    sample = build_lattice("Cu", 2, REACH, "cpu", rattle=0.1, seed=3)
    weights = draw_weights(own["n_hops"], 1, sample, n_channels=width, n_mixed=width)
    single = convert_weights(weights, device, torch.float32)
    potential = FusedPotential(weights, device)
    with torch.no_grad():
        double = convert_weights(weights, device, torch.float64)
        exact = evaluate_reference(double, *geometry).forces
    choose = compile_all(lambda: evaluate_reference(single, *geometry).forces)
    ways = {
        "triton": lambda: potential.evaluate(*geometry[:3]).forces,
        "eager": choose(lambda function: function),
        "compiled": choose(torch.compile),
    }
    costs = count_costs(system.matrix.n_slots, width, width).values()
    per_atom = sum(cost.n_bytes for cost in costs) * own["n_hops"]
    return Model(ways, exact, int(per_atom * len(exact)))


def build_painn(system: System) -> Model:
    device = system.positions.device
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(configure_student("painn", (29,))).float()
    student = student.to(device).eval().requires_grad_(False)
    senders, codes, filled = unpack_neighbors(system.matrix)
    receivers = torch.arange(len(senders), device=device)[:, None].expand_as(senders)[filled]
    edges = torch.stack([receivers, senders[filled].long()])
    vectors = system.positions[edges[1]] - system.positions[edges[0]]
    vectors = vectors + system.translations[codes[filled].long()]
    species = torch.zeros(len(senders), dtype=torch.int64, device=device)

    def evaluate(vectors: Tensor, backend: str) -> Tensor:
        with kernels.use(backend):
            gradient = student.evaluate_edges(vectors, edges, species)[1]
        forces = torch.zeros(len(senders), 3, dtype=gradient.dtype, device=device)
        return forces.index_add(0, edges[0], gradient).index_add(0, edges[1], -gradient)

    student.double()
    exact = evaluate(vectors, "torch")
    student.float()
    single = vectors.float()
    ways = {
        "triton": lambda: evaluate(single, "triton"),
        "eager": lambda: evaluate(single, "torch"),
    }
    return Model(ways, exact, count_bytes((single, single)) + edges.numel() * 8)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", CELLS)
def test_forces(name, variant, device, bandwidth, time_call, benchmark):
    benchmark.group = f"{name}, {4 * CELLS[name] ** 3} atoms, 54 listed neighbors"
    model = build_model(name, device, CELLS[name])
    if variant not in model.ways:
        pytest.skip("torch.compile does not take derivatives inside of what it compiles")
    way = model.ways[variant]
    error = find_relative_error(way(), model.exact)
    assert error < TOLERANCE
    benchmark.extra_info.update(atoms=len(model.exact))
    time_call(way, n_bytes=model.n_bytes, bandwidth=bandwidth, error=error)
    torch.compiler.reset()
    torch.cuda.empty_cache()
