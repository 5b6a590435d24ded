"""Near distances, which what is learned does not follow. Not here: kernels (``kernels/interpreted_evaluation.py``)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii
from torch import Tensor
from untrained import make_student

from fastff.errors import DataError
from fastff.graph import edge_vectors
from fastff.kernels.moments.reference import FROZEN_SHARE, compress_distance
from fastff.models import Student, StudentConfig, build_student, configure_student
from fastff.neighbors import atoms_to_graph


def make_near_pairs(student: Student) -> tuple[Tensor, Tensor]:
    """Distances of two atoms through all of the inner range, and the inner distance."""
    inner = student.inner_distances
    assert inner is not None
    inner = inner[0, 0]
    return torch.linspace(0.3, 1.2, 181, dtype=torch.float64) * inner, inner


@pytest.mark.parametrize("architecture", ["m1", "m2-l", "m3-l"])
def test_what_is_learned_does_not_follow_near_distances(architecture: str) -> None:
    """Constant below half the sum of covalent radii, as without a limit from 0.65 of it on."""
    student = make_student(architecture, (14,), energy_scale=1.0).double()
    free = build_student(replace(student.config, inner_limit=None)).double()
    free.load_state_dict(student.state_dict())
    distances, inner = make_near_pairs(student)
    frozen, beyond = distances <= 0.5 / 0.65 * inner, distances >= inner

    def learn(model: Student) -> tuple[Tensor, Tensor]:
        vectors = torch.stack([distances, 0 * distances, 0 * distances], dim=1)
        pairs = 2 * torch.arange(len(distances))
        index = torch.stack(
            [torch.stack([pairs, pairs + 1], 1), torch.stack([pairs + 1, pairs], 1)]
        )
        both = torch.stack([vectors, -vectors], dim=1).reshape(-1, 3)
        species = torch.zeros(2 * len(distances), dtype=torch.int64)
        energies, gradient = model.evaluate_edges(both, index.reshape(2, -1), species)
        return energies.reshape(-1, 2).sum(dim=1), gradient.reshape(-1, 2, 3)[:, 0, 0]

    (energy, slope), (other, other_slope) = learn(student), learn(free)
    assert energy[frozen].std() < 1e-12
    assert (slope[frozen] == 0.0).all()
    assert other[frozen].std() > 0.01
    torch.testing.assert_close(energy[beyond], other[beyond], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slope[beyond], other_slope[beyond], rtol=1e-10, atol=1e-10)


def test_the_inner_range_is_smooth() -> None:
    """The seen distance has continuous first and second derivatives, and the stated slope is its derivative."""
    inner = torch.tensor(1.3, dtype=torch.float64)
    grid = torch.linspace(0.9, 1.4, 100_001, dtype=torch.float64)
    seen, slope = compress_distance(grid, inner)
    step = grid[1] - grid[0]
    torch.testing.assert_close(
        seen.diff() / step, slope[:-1] + 0.5 * slope.diff(), atol=1e-6, rtol=0
    )
    bends = slope.diff() / step
    assert bends.diff().abs().max() < 2e-3
    assert slope[0] == 0.0
    assert slope[-1] == 1.0
    assert seen[-1] == grid[-1]
    assert (slope >= 0.0).all()


def test_autograd_takes_the_stated_slope_at_both_ends_of_the_inner_range() -> None:
    """Second derivatives are trained on through autograd, which splits ties of a maximum in halves."""
    inner = torch.tensor([1.3, 0.7, 2.0, 2.0], dtype=torch.float64)
    ends = torch.tensor(
        [1.3, 0.7, FROZEN_SHARE * 2.0, 1.0], dtype=torch.float64, requires_grad=True
    )
    seen, slope = compress_distance(ends, inner)
    (found,) = torch.autograd.grad(seen.sum(), ends)
    assert found.tolist() == slope.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("architecture", ["m1", "m3-l"])
def test_near_atoms_of_several_elements(architecture: str) -> None:
    """Forces and Hessian-vector products as differences say; features alone are those of a whole evaluation."""
    student = make_student(architecture, (1, 8, 26)).double()
    radii = torch.tensor(covalent_radii[[1, 8, 26]])
    assert student.inner_distances is not None
    torch.testing.assert_close(student.inner_distances, 0.65 * (radii[:, None] + radii))
    numbers, species = [1, 8, 26, 8, 1, 26], torch.tensor([0, 1, 2, 1, 0, 2])
    sites = [
        [0, 0, 0],
        [0.55, 0.1, 0],
        [1.2, 1.1, 0.1],
        [1.6, 0.3, 1],
        [0.1, 0.42, 0.2],
        [0, 2.2, 1],
    ]
    graph = atoms_to_graph(Atoms(numbers, sites, cell=[4, 4.3, 4.1], pbc=True), student.cutoff)
    base = edge_vectors(graph)
    receivers, senders = graph.edge_index
    shares = base.norm(dim=1) / student.inner_distances[species[receivers], species[senders]]
    assert ((shares > FROZEN_SHARE) & (shares < 1.0)).sum() >= 6
    direction = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along = direction[senders] - direction[receivers]

    def learn(vectors: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradient = student.evaluate_edges(vectors, graph.edge_index, species)
        return energies.sum(), gradient

    step = 1e-6
    with torch.no_grad():
        ahead, behind = learn(base + step * along), learn(base - step * along)
    vectors = base.clone().requires_grad_()
    _, gradient = learn(vectors)
    (product,) = torch.autograd.grad(gradient, vectors, along)
    energy_slope = (ahead[0] - behind[0]) / (2 * step)
    torch.testing.assert_close((gradient * along).sum().detach(), energy_slope, rtol=1e-6, atol=0.0)
    change = (ahead[1] - behind[1]) / (2 * step)
    torch.testing.assert_close(product, change, rtol=1e-5, atol=1e-5 * float(change.abs().max()))
    with torch.no_grad():
        whole, alone = student.predict_features(graph)[1], student.compute_features(graph)
    assert torch.equal(alone.values, whole.values)
    assert torch.equal(alone.unbounded, whole.unbounded)


def test_inner_limits_need_a_core() -> None:
    for limit, core in ((0.65, False), (0.9, True), (0.0, True)):
        with pytest.raises(DataError, match=r"inner_limit .* needs core_repulsion"):
            StudentConfig("m1", (14,), inner_limit=limit, core_repulsion=core)
    assert configure_student("m1", (14,), core_repulsion=False).inner_limit is None
    assert "inner_limit" not in StudentConfig("m1", (14,)).to_dict()  # as files of earlier versions
    kept = configure_student("m1", (14,)).to_dict()
    assert StudentConfig(**kept).inner_limit == 0.65
