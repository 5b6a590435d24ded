"""Whole students at production size: Triton against the eager definition, torch.compile of it, and the roofline.

Here: energy, forces and virial from positions and a neighbor list, float32, in one run on one GPU, of one and two hops,
of the width of shipped models and with directed messages; and ``painn``, which differentiates by autograd inside, which
torch.compile does not take: it has no compiled variant. Its floor is that of its vectors alone, because the edges
between its layers need not have been in memory. Not here: single ops (``test_ops.py``), steps of dynamics
(``bench/md_gpu.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from works import SOURCES, VARIANTS, name_run

from fastff import kernels
from fastff.kernels.moment_potential.cases import build_lattice
from fastff.kernels.moment_potential.layout import unpack_neighbors
from fastff.models import build_student, configure_student
from fastff.report import kernel_work
from fastff.report.kernel_work import Work

REACH = 5.4
PAINN_CELLS = 12
"""Cubic cells of copper along each axis; the edges of ``painn`` are in memory."""


def make_painn(device: torch.device) -> Iterator[Work]:
    """Forces of ``painn`` with random weights over a rattled crystal."""
    system = build_lattice("Cu", min(PAINN_CELLS, kernel_work.CELLS), REACH, device, rattle=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = build_student(configure_student("painn", (29,))).float().double()
    student = student.to(device).eval().requires_grad_(False)
    senders, codes, filled = unpack_neighbors(system.matrix)
    receivers = torch.arange(len(senders), device=device)[:, None].expand_as(senders)[filled]
    edges = torch.stack([receivers, senders[filled].long()])
    vectors = system.positions[edges[1]] - system.positions[edges[0]]
    vectors = vectors + system.translations[codes[filled].long()]
    species = torch.zeros(len(senders), dtype=torch.int64, device=device)

    def evaluate(vectors: Tensor) -> Tensor:
        gradient = student.evaluate_edges(vectors, edges, species)[1]
        forces = torch.zeros(len(senders), 3, dtype=gradient.dtype, device=device)
        return forces.index_add(0, edges[0], gradient).index_add(0, edges[1], -gradient)

    with kernels.use("torch"):
        exact = evaluate(vectors)
    student.float()
    single = vectors.float()

    def define(compiler: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: evaluate(single)

    n_bytes = float(2 * single.nbytes + edges.nbytes)
    yield Work(
        "evaluation, painn", "forward", len(senders), exact, n_bytes, 0.0,
        functools.partial(evaluate, single), define,
    )  # fmt: skip


RUNS = [
    pytest.param(make, place, id=name_run(op, names, place))
    for make, names in [*SOURCES, (make_painn, ("evaluation, painn",))]
    for place, op in enumerate(names)
    if op.startswith("evaluation")
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("make", "place"), RUNS)
def test_forces(make, place, variant, works, time_work):
    if make is make_painn and variant == "compiled":
        pytest.skip("torch.compile does not take derivatives inside of what it compiles")
    time_work(works.take(make, place), variant)
