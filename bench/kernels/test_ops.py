"""Every generic op at production size: Triton against the eager reference and torch.compile of the reference.

Here: values and input gradients, float32, in one run on one GPU; each is first compared with the float64 reference, and
a red comparison is a failure, not a timing. Not here: models (``test_models.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastff import kernels
from fastff.kernels import contract
from fastff.kernels.tuning import find_relative_error
from fastff.report.kernel_work import count_bytes, list_tensors, to_double

GENERIC = ("edge_features", "segment_sum", "segment_gather", "fused_mlp")
SUITES = [
    one
    for one in contract.list_suites()
    if one.function.__name__ in GENERIC and one.differentiated is None
]
VARIANTS = ("triton", "eager", "compiled")


def choose_function(suite: contract.Suite, variant: str) -> Callable[..., Any]:
    if variant == "triton":
        return suite.function
    return torch.compile(suite.reference) if variant == "compiled" else suite.reference


def build_arguments(suite: contract.Suite, device: torch.device, dtype: torch.dtype) -> tuple:
    case = next(case for case in suite.cases if case.production)
    return case.build(device, dtype)


@pytest.fixture(autouse=True)
def forced(request: pytest.FixtureRequest):
    """Triton is forced, so that a fallback cannot be timed in its place."""
    with kernels.use("triton"):
        yield
    torch.compiler.reset()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.function.__name__)
def test_forward(suite, variant, device, bandwidth, time_call, benchmark):
    benchmark.group = f"{suite.function.__name__} forward"
    arguments = build_arguments(suite, device, torch.float32)
    function = choose_function(suite, variant)
    with torch.no_grad():
        output = function(*arguments)
        error = find_relative_error(output, suite.reference(*to_double(arguments)))
        assert error < 1e-5
        n_bytes = count_bytes((arguments, output))
        del output
        time_call(lambda: function(*arguments), n_bytes=n_bytes, bandwidth=bandwidth, error=error)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.function.__name__)
def test_input_gradient(suite, variant, device, bandwidth, time_call, benchmark):
    """Forward and backward together, as one evaluation of forces runs them."""
    benchmark.group = f"{suite.function.__name__} forward and gradient"
    first, *rest = build_arguments(suite, device, torch.float32)
    function = choose_function(suite, variant)
    seeds: list[Tensor] = []

    def evaluate(function: Callable[..., Any], first: Tensor, rest: Any, seeds: list[Tensor]):
        leaf = first.detach().requires_grad_()
        outputs = list_tensors(function(leaf, *rest))
        if not seeds:
            seeds += [torch.randn_like(one) for one in outputs]
        return torch.autograd.grad(outputs, leaf, [seed.to(leaf.dtype) for seed in seeds])[0]

    grad = evaluate(function, first, rest, seeds)
    exact = evaluate(suite.reference, first.double(), to_double(rest), seeds)
    error = find_relative_error(grad, exact)
    assert error < 1e-5
    n_bytes = count_bytes((first, first, grad, seeds, seeds))
    del grad, exact
    time_call(
        lambda: evaluate(function, first, rest, seeds),
        n_bytes=n_bytes,
        bandwidth=bandwidth,
        error=error,
    )
