"""Limits of what atoms send to their neighbors. Not here: symmetries and derivatives of students that send it."""

from __future__ import annotations

import pytest
import torch

from fastff.graph import edge_vectors
from fastff.kernels.moments.messages import bound_moments, direct_messages, direct_messages_adjoint
from fastff.kernels.node_block.reference import bound_messages
from fastff.models.dense import lay_out_edges
from fastff.models.moment import MomentStudent
from fastff.neighbors import atoms_to_graph
from fastff.testing import make_structures
from tests.untrained import make_student


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_small_messages_and_moments_stay_and_large_ones_end_at_the_limit() -> None:
    curb = torch.tensor([0.25, 0.5], dtype=torch.float64)
    small, large = 1e-4 * draw(5, 2), 1e9 * draw(5, 2)
    torch.testing.assert_close(bound_messages(small, curb)[0], small, rtol=1e-6, atol=0)
    torch.testing.assert_close(bound_messages(large, curb)[0], large.sign() / curb)
    small, large = 1e-4 * draw(5, 3, 2), 1e9 * draw(5, 3, 2)
    torch.testing.assert_close(bound_moments(small, curb)[0], small, rtol=1e-6, atol=0)
    ends = bound_moments(large, curb)[0]
    torch.testing.assert_close(ends.norm(dim=1), (1.0 / curb).expand(5, 2))
    assert (torch.cross(ends, large, dim=1).norm(dim=1) < 1e-6 * large.norm(dim=1)).all()


@pytest.mark.parametrize("degree", [1, 2])
def test_the_adjoint_of_what_is_sent(degree: int) -> None:
    messages = draw(4, (degree + 1) * 3).requires_grad_()
    mixed = draw(4, 16, 3, seed=1).requires_grad_()
    curb, gradient = (
        torch.full((3 * (degree + 1),), 0.4).double(),
        draw(4, (degree + 1) ** 2, 3, seed=2),
    )
    sent = direct_messages(messages, mixed, 3, curb)
    expected = torch.autograd.grad(sent, (messages, mixed), gradient)
    of_messages, of_mixed = direct_messages_adjoint(gradient, messages, mixed, curb)
    torch.testing.assert_close(of_messages, expected[0])
    assert of_mixed is not None
    torch.testing.assert_close(of_mixed, expected[1][:, : (degree + 1) ** 2])


def test_atoms_pushed_together_send_no_more_than_the_limit() -> None:
    """Moments of the hops after them are those of strange neighbors, not powers of them."""
    student = make_student("m2-directed", (26, 28, 29), inner_limit=None).double()
    assert isinstance(student, MomentStudent)

    def find_largest(distance: float) -> tuple[float, list[float]]:
        atoms = make_structures(student.elements)["bulk"].repeat(2)
        atoms.positions[1] = atoms.positions[0] + [distance, 0.0, 0.0]
        graph = atoms_to_graph(atoms, student.cutoff)
        vectors = edge_vectors(graph).double()
        dense = lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff)
        species = student.find_species(graph.numbers)
        blocks = [block.weights for block in student.blocks]
        geometry = student._describe(dense.vectors, dense.senders, species)
        _, hops, _ = student._run(geometry, dense.senders, species, blocks)
        ratios = [
            float((hop.messages * block.message_curb).abs().max())
            for hop, block in zip(hops[:-1], blocks, strict=False)
        ]
        return max(ratios), [float(hop.cache.mixed.abs().max()) for hop in hops]

    usual = find_largest(2.4)
    largest, moments = find_largest(0.05)
    assert largest <= 1.0 + 1e-9
    assert moments[2] / usual[1][2] < moments[0] / usual[1][0]
