"""The definition of the edge features against formulas and properties that do not share its code."""

from __future__ import annotations

import math

import pytest
import torch

from fastff import kernels
from fastff.errors import DataError
from fastff.kernels.edge_features import edge_features, reference


def draw_units(n: int) -> torch.Tensor:
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_values_by_hand():
    """d = 2, r_c = 4: u(1/2) = 1 - 28/64 + 48/128 - 21/256; sin(k pi / 2) = 1, 0, -1."""
    basis, harmonics = edge_features(
        torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64), 4.0, 3, 1
    )
    envelope = 1 - 28 / 64 + 48 / 128 - 21 / 256
    expected = math.sqrt(0.5) / 2 * envelope * torch.tensor([[1.0, 0.0, -1.0]]).double()
    assert torch.allclose(basis, expected, atol=1e-15)
    assert torch.allclose(harmonics, torch.tensor([[1.0, 0.0, math.sqrt(3), 0.0]]).double())


def test_envelope_is_the_published_polynomial():
    x = torch.linspace(0, 1.5, 31, dtype=torch.float64)
    published = torch.where(x < 1, 1 - 28 * x**6 + 48 * x**7 - 21 * x**8, 0.0)
    assert torch.allclose(reference.evaluate_envelope(x)[0], published, atol=1e-14)


def test_envelope_vanishes_to_second_order():
    x = torch.tensor([1.0 - 1e-4, 1.0, 1.0 + 1e-4], dtype=torch.float64, requires_grad=True)
    value, slope = reference.evaluate_envelope(x)
    (curve,) = torch.autograd.grad(slope.sum(), x)
    assert value[1:].tolist() == slope[1:].tolist() == curve[1:].tolist() == [0.0, 0.0]
    assert 0 < value[0] < 1e-10
    assert -1e-5 < slope[0] < 0


def test_harmonics_are_orthonormal_on_the_sphere():
    """Gauss-Legendre in z times equal angles integrates products of degree 6 exactly; the mean of Y^2 is 1."""
    nodes, weights = (torch.from_numpy(a) for a in _gauss_legendre(8))
    angles = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    z = nodes[:, None].expand(8, 16)
    r = (1 - z * z).sqrt()
    units = torch.stack([r * angles.cos(), r * angles.sin(), z], dim=-1).reshape(-1, 3)
    y = reference.evaluate_harmonics(units)
    mean = weights[:, None].expand(8, 16).reshape(-1) / 2 / 16
    gram = torch.einsum("e,ea,eb->ab", mean, y, y)
    assert torch.allclose(gram, torch.eye(16, dtype=torch.float64), atol=1e-13)


def _gauss_legendre(n):
    from numpy.polynomial.legendre import leggauss

    return leggauss(n)


@pytest.mark.parametrize("degree", range(4))
def test_component_normalisation(degree):
    y = reference.evaluate_harmonics(draw_units(20))[:, degree**2 : (degree + 1) ** 2]
    assert torch.allclose(y.square().sum(1), torch.full((20,), 2.0 * degree + 1).double())


def test_order_of_harmonics():
    """m runs from -l to l: rotation about z by a turns (m, -m) by m a."""
    unit, a = draw_units(1)[0], 0.3
    turned = torch.stack(
        [
            unit[0] * math.cos(a) - unit[1] * math.sin(a),
            unit[0] * math.sin(a) + unit[1] * math.cos(a),
            unit[2],
        ]
    )
    before, after = reference.evaluate_harmonics(unit), reference.evaluate_harmonics(turned)
    for degree in range(4):
        center = degree * degree + degree
        assert torch.allclose(after[center], before[center])
        for m in range(1, degree + 1):
            c, s = before[center + m], before[center - m]
            assert torch.allclose(after[center + m], math.cos(m * a) * c - math.sin(m * a) * s)
            assert torch.allclose(after[center - m], math.sin(m * a) * c + math.cos(m * a) * s)


@pytest.mark.parametrize("l_max", range(4))
def test_harmonics_gradient_is_the_derivative(l_max):
    units = draw_units(6)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda u: reference.evaluate_harmonics(u, l_max)))(
        units
    )
    assert torch.allclose(jacobian, reference.harmonics_gradient(units, l_max), atol=1e-13)


def test_radial_slope_is_the_derivative():
    distance = torch.linspace(0.3, 4.2, 14, dtype=torch.float64)
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda d: reference.evaluate_radial(d, 4.0, 6)[0])
    )(distance)
    assert torch.allclose(jacobian, reference.evaluate_radial(distance, 4.0, 6)[1], atol=1e-12)


def test_gradients_of_the_reference():
    vectors = 2.0 * torch.randn(
        4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    vectors.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: edge_features(v, 4.0, 3, 3), (vectors,))
    assert torch.autograd.gradgradcheck(lambda v: edge_features(v, 4.0, 3, 3), (vectors,))


def test_float32_keeps_digits_near_the_cutoff():
    """The factored envelope: relative error, where the plain polynomial has lost every digit."""
    distance = torch.tensor([4.99], dtype=torch.float64)
    exact = reference.evaluate_radial(distance, 5.0, 4)[0]
    single = reference.evaluate_radial(distance.float(), 5.0, 4)[0]
    assert ((single - exact) / exact).abs().max() < 5e-3


def test_zero_vector_is_nan():
    basis, harmonics = edge_features(torch.zeros(1, 3), 5.0, 2, 1)
    assert basis.isnan().all()
    assert harmonics[:, 1:].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), 5.0, 8, 3), r"vectors have shape \(3,\)"),
        ((torch.ones(2, 3, dtype=torch.int64), 5.0, 8, 3), r"dtype torch\.int64"),
        ((torch.ones(2, 3), 0.0, 8, 3), r"cut-off 0\.0"),
        ((torch.ones(2, 3), math.nan, 8, 3), "cut-off nan"),
        ((torch.ones(2, 3), 5.0, 0, 3), "n_radial 0"),
        ((torch.ones(2, 3), 5.0, 8, 4), "l_max 4; pass 0 to 3"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with kernels.use("torch"), pytest.raises(DataError, match=message):
        edge_features(*arguments)
