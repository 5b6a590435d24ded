"""Coupling coefficients: symmetry, invariance under rotation, and agreement with integrals over the sphere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastff.kernels.couplings import (
    CUBIC_TRIPLES,
    compute_gaunt,
    list_cubic_terms,
    restore_roots,
)
from fastff.kernels.edge_features.reference import evaluate_harmonics
from fastff.kernels.moments.reference import build_gradient_table
from fastff.kernels.node_block.reference import (
    N_INVARIANT_KINDS,
    build_cubic_table,
    compute_invariants,
    compute_invariants_adjoint,
)


def random_moments(matrix: np.ndarray, n_neighbors: int = 5) -> torch.Tensor:
    """Moments (1, 16, 2) of fixed random neighbors, turned by ``matrix``."""
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(n_neighbors, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) @ matrix.T
    weights = torch.from_numpy(rng.normal(size=(n_neighbors, 2)))
    return (evaluate_harmonics(torch.from_numpy(unit)).T @ weights)[None]


def invariants(moments: torch.Tensor) -> torch.Tensor:
    return compute_invariants(moments, build_cubic_table(torch.float64, torch.device("cpu")))[0]


@pytest.mark.parametrize("determinant", [1.0, -1.0])
def test_invariants_do_not_change_under_rotation_or_inversion(determinant: float) -> None:
    rng = np.random.default_rng(1)
    reference = invariants(random_moments(np.eye(3)))
    assert reference.abs().min() > 1e-3, "an invariant that is always zero says nothing"
    for _ in range(5):
        q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turned = invariants(random_moments(q * np.linalg.det(q) * determinant))
        torch.testing.assert_close(turned, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("triple", CUBIC_TRIPLES)
def test_cubic_invariant_is_the_mean_of_a_product_over_the_sphere(
    triple: tuple[int, int, int],
) -> None:
    """``sum c X_a X_b X_c`` is the mean of ``f1 f2 f3`` with ``f_l = sum_m X_lm Y_lm``."""
    moments = random_moments(np.eye(3))[0, :, 0]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    angles = (np.arange(80) + 0.3) * 2 * np.pi / 80
    sine = np.sqrt(1 - nodes**2)
    points = np.stack(
        [
            np.repeat(nodes, 80),
            np.outer(sine, np.sin(angles)).ravel(),
            np.outer(sine, np.cos(angles)).ravel(),
        ],
        axis=1,
    )
    harmonics = evaluate_harmonics(torch.from_numpy(points))
    product = torch.ones(len(points), dtype=torch.float64)
    for degree in triple:
        part = slice(degree**2, (degree + 1) ** 2)
        product = product * (harmonics[:, part] @ moments[part])
    expected = float((product * torch.from_numpy(np.repeat(weights, 80) / 160)).sum())
    found = sum(
        float(w * moments[a] * moments[b] * moments[c]) for a, b, c, w in list_cubic_terms(*triple)
    )
    assert found == pytest.approx(expected, abs=1e-12)
    kind = 4 + CUBIC_TRIPLES.index(triple)
    assert float(invariants(moments[None, :, None])[0, kind]) == pytest.approx(expected, abs=1e-12)


def test_triples_are_all_even_ones_up_to_three() -> None:
    degrees = itertools.combinations_with_replacement((1, 2, 3), 3)
    allowed = [t for t in degrees if sum(t) % 2 == 0 and t[2] <= t[0] + t[1]]
    assert sorted(CUBIC_TRIPLES) == sorted(allowed)
    assert 4 + len(allowed) == N_INVARIANT_KINDS


def test_gaunt_is_symmetric_and_zero_for_odd_sums() -> None:
    for l1, l2, l3 in itertools.product(range(4), repeat=3):
        table = compute_gaunt(l1, l2, l3)
        assert table.shape == (2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1)
        torch.testing.assert_close(table, compute_gaunt(l2, l1, l3).transpose(0, 1))
        assert bool(table.any()) == ((l1 + l2 + l3) % 2 == 0 and abs(l1 - l2) <= l3 <= l1 + l2)


def test_adjoint_of_the_invariants_is_their_gradient() -> None:
    moments = random_moments(np.eye(3)).requires_grad_()
    table = build_cubic_table(torch.float64, torch.device("cpu"))
    values, products = compute_invariants(moments, table)
    weights = torch.randn(values.shape, dtype=torch.float64)
    (expected,) = torch.autograd.grad((values * weights).sum(), moments)
    found = compute_invariants_adjoint(weights, moments, products, table)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_tables_are_the_same_bits_whoever_computes_them() -> None:
    """Least squares round differently from process to process; the coefficients in use do not."""
    device = torch.device("cpu")
    noise = 1.0 + 1e-15 * torch.randn(16, 27, dtype=torch.float64)
    table = build_gradient_table(torch.float64, device)
    assert torch.equal(restore_roots(table * noise), table)
    assert torch.equal(restore_roots(table), table)
    for triple in CUBIC_TRIPLES:
        gaunt = compute_gaunt(*triple)
        assert torch.equal(restore_roots(gaunt + 1e-14), gaunt)


def test_what_is_no_root_of_a_fraction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4\.7e-06 away"):
        restore_roots(torch.tensor([0.5, np.pi / 4 + 1e-4], dtype=torch.float64))
