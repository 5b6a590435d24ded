"""Named inputs of the small multi-layer perceptron, shared by tests, benchmarks and tuning.

Here: :data:`CASES`, the builds for ahead-of-time compilation and the workloads that ``fastff tune`` measures. Not here:
what is checked with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fastff.kernels import derivatives, tuning
from fastff.kernels.contract import (
    PAINN,
    PAINN_TARGETS,
    Build,
    Case,
    Suite,
    list_launched,
    restrict_targets,
    sign_floats,
)
from fastff.kernels.fused_mlp import op, reference

Arguments = tuple[Any, ...]
Builder = Callable[[torch.device, torch.dtype], Arguments]


def _build(n_rows: int, *widths: int) -> Builder:
    """Builder of random rows and of weights of the size of an untrained network."""

    def build(device: torch.device, dtype: torch.dtype) -> Arguments:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return numbers.to(device, dtype)

        x = draw(n_rows, widths[0])
        pairs = list(itertools.pairwise(widths))
        weights = [draw(n_out, n_in) / max(n_in, 1) ** 0.5 for n_in, n_out in pairs]
        return x, weights, [0.1 * draw(n_out) for _, n_out in pairs]

    return build


def _build_strided(device: torch.device, dtype: torch.dtype) -> Arguments:
    x, weights, biases = _build(12, 10, 8, 6)(device, dtype)
    return x[::2], [weight.T.contiguous().T for weight in weights], biases


CASES = (
    Case("tiny", _build(5, 4, 4, 2)),
    Case("one row", _build(1, 16, 16, 16, 1)),
    Case("no rows", _build(0, 16, 16, 16, 1)),
    Case("one feature", _build(3, 1, 1, 1)),
    Case("two layers", _build(70, 32, 64, 16)),
    Case("three layers", _build(70, 64, 64, 64, 1)),
    Case("odd widths", _build(131, 37, 21, 50, 3)),
    Case("widest", _build(20, 128, 128, 128, 128)),
    Case("strided", _build_strided),
    Case("production", _build(500_000, 128, 64, 64, 1), production=True),
)
_FUNCTIONS = (op.OP, op.fused_mlp, reference.fused_mlp, CASES, (torch.float32,), 1e-5)
SUITES = (Suite(*_FUNCTIONS), Suite(*_FUNCTIONS, differentiated=(0,)))
"""With gradients in everything, and in x alone as inference takes them."""


def list_builds() -> Iterator[Build]:
    """All kernels for widths 128, 64, 64, 1, and for the perceptrons of message and update of ``painn``.

    That of the parameters for first and second derivatives, but for ``painn``, as losses of forces take it.
    """
    from fastff.kernels.fused_mlp import kernels, parameters

    message, update = list_shapes(PAINN)
    shapes = (("", (128, 64, 64, 1)), (" painn message", message), (" painn update", update))
    for student, shape in shapes:
        given = [torch.empty(n_out, n_in) for n_in, n_out in itertools.pairwise(shape)]
        for space, kernel, end, options in (
            (kernels.FORWARD_SPACE, kernels.forward_kernel, "", {}),
            (kernels.BACKWARD_SPACE, kernels.backward_kernel, "", {}),
            (
                parameters.PARAMETERS_SPACE,
                parameters.parameters_kernel,
                " second",
                {"SECOND": True},
            ),
            (
                parameters.PARAMETERS_SPACE,
                parameters.parameters_kernel,
                " first",
                {"SECOND": False},
            ),
        ):
            if student and end == " first":
                continue

            def make(
                end: str,
                config: tuning.LaunchConfig,
                kernel: Any = kernel,
                name: str = f"{space.kernel}{student}{end}",
                weights: list[torch.Tensor] = given,
                options: dict[str, bool] = options,
            ) -> Build:
                constexprs = {**op.list_constants(weights, config), "PRECISION": "tf32x3"}
                constexprs |= options
                signature = sign_floats(kernel, constexprs, "n_rows")
                return Build(
                    name + end, kernel, signature, constexprs, config, {"PRECISION": "ieee"}
                )

            builds = list_launched(make, space, op.make_key(given, torch.float32))
            yield from restrict_targets(builds, PAINN_TARGETS) if student else builds


def list_shapes(widths: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Layers from input to output: of the perceptrons of message and update of ``painn`` at ``n_channels``, without it
    of a node network of ``n_features`` (default 128) and ``n_hidden`` (64). None of moment students (``n_mixed``),
    which have a kernel of their own.
    """
    if "n_mixed" in widths:
        return []
    n_hidden = widths.get("n_hidden", 64)
    if "n_channels" in widths:
        n_channels = widths["n_channels"]
        return [(n_in, n_hidden, 3 * n_channels) for n_in in (n_channels, 2 * n_channels)]
    return [(widths.get("n_features", 128), n_hidden, n_hidden, 1)]


def list_workloads(widths: Mapping[str, int], device: torch.device) -> Iterator[tuning.Workload]:
    """All kernels for each perceptron of :func:`list_shapes` that they take."""
    n_rows = widths.get("n_edges", 1 << 18)
    for shape in list_shapes(widths):
        if max(shape) <= op.MAX_WIDTH:
            yield from _list_all(n_rows, shape, device)


def _list_all(
    n_rows: int, shape: tuple[int, ...], device: torch.device
) -> Iterator[tuning.Workload]:
    from fastff.kernels.fused_mlp import kernels, parameters

    x, weights, biases = _build(n_rows, *shape)(device, torch.float32)
    grad, direction = (torch.randn(n_rows, n, device=device) for n in (shape[-1], shape[0]))
    key = op.make_key(weights, torch.float32)
    exact = [one.double() for one in weights], [one.double() for one in biases]

    def differentiate() -> torch.Tensor:
        def evaluate(value: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (reference.fused_mlp(value, *exact),)

        return derivatives.pull_back(evaluate, (x.double(),), (grad.double(),))[0]

    yield tuning.Workload(
        kernels.FORWARD_SPACE,
        key,
        lambda: op.launch_forward(x, weights, biases),
        lambda: reference.fused_mlp(x.double(), *exact),
    )
    yield tuning.Workload(
        kernels.BACKWARD_SPACE,
        key,
        lambda: op.launch_input_gradient(x, weights, biases, grad),
        differentiate,
    )

    def differentiate_twice() -> tuple[torch.Tensor, ...]:
        inputs = [one.double() for one in (x, grad, *weights, *biases)]
        with torch.no_grad():
            return derivatives.pull_back(op.pull_to_input, inputs, (direction.double(),))

    yield tuning.Workload(
        parameters.PARAMETERS_SPACE,
        key,
        lambda: op.launch_gradients(x, weights, biases, grad, direction),
        differentiate_twice,
    )
