"""The definition of the perceptron against torch's own modules, and its refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from fastff.errors import DataError
from fastff.kernels import dispatch
from fastff.kernels.fused_mlp import fused_mlp, op


def build_network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out, dtype=torch.float64), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def list_parameters(network: nn.Sequential) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [one.weight for one in network[::2]], [one.bias for one in network[::2]]


@pytest.mark.parametrize("widths", [(3, 5, 2), (3, 5, 4, 1)])
def test_equals_sequential(widths):
    network = build_network(*widths)
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.allclose(fused_mlp(x, *list_parameters(network)), network(x), rtol=1e-14)


def test_gradients():
    weights, biases = list_parameters(build_network(2, 3, 3, 1))
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def evaluate(x, *parameters):
        return fused_mlp(x, parameters[:3], parameters[3:])

    assert torch.autograd.gradcheck(evaluate, (x, *weights, *biases))
    assert torch.autograd.gradgradcheck(evaluate, (x, *weights, *biases))


def test_autocast_does_not_reach_the_definition():
    """Which the kernels do not follow: the result has the dtype and the digits of the input."""
    weights, biases = list_parameters(build_network(3, 5, 2).float())
    x = torch.randn(6, 3, requires_grad=True)
    expected = fused_mlp(x, weights, biases)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_mlp(x, weights, biases)
        (pulled,) = op.pull_to_input(x, torch.ones_like(found), *weights, *biases)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    torch.testing.assert_close(pulled, torch.autograd.grad(expected.sum(), x)[0], rtol=0, atol=1e-6)


def test_auto_leaves_training_to_torch(monkeypatch):
    monkeypatch.setattr(dispatch, "_find_device_obstacle", lambda device, forced: None)
    monkeypatch.setattr(dispatch, "_find_capability", lambda index: (9, 0))
    weights, biases = list_parameters(build_network(2, 3, 1).float())
    fused_mlp(torch.ones(1, 2), weights, biases)
    backend, reason = dispatch._last_calls["fused_mlp"]
    assert backend == "torch"
    assert reason.startswith("parameters require their gradient")


def test_what_the_kernels_do_not_take():
    wide = [torch.ones(4, 129), torch.ones(1, 4)]
    assert "129 wide" in op._find_obstacle(torch.ones(1, 129), wide)
    assert "float64" in op._find_obstacle(torch.ones(1, 4).double(), wide)
    assert op._find_obstacle(torch.ones(1, 128), [torch.ones(4, 128), torch.ones(1, 4)]) is None


ONES = torch.ones


@pytest.mark.parametrize(
    ("x", "weights", "biases", "message"),
    [
        (ONES(3), [ONES(2, 3), ONES(1, 2)], [ONES(2), ONES(1)], r"x has shape \(3,\)"),
        (ONES(4, 3), [ONES(2, 3)], [ONES(2)], "1 weights and 1 biases"),
        (ONES(4, 3), [ONES(2, 3), ONES(1, 2)], [ONES(2)], "2 weights and 1 biases"),
        (ONES(4, 3), [ONES(2, 3), ONES(1, 3)], [ONES(2), ONES(1)], r"layer 2 .*pass \(n_out, 2\)"),
        (ONES(4, 3), [ONES(2, 3), ONES(1, 2)], [ONES(1), ONES(1)], "layer 1 has weight"),
        (
            ONES(4, 3),
            [ONES(2, 3).double(), ONES(1, 2)],
            [ONES(2), ONES(1)],
            r"layer 1 is torch\.float64",
        ),
    ],
)
def test_bad_input_is_refused(x, weights, biases, message):
    with pytest.raises(DataError, match=message):
        fused_mlp(x, weights, biases)
