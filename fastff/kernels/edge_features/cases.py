"""Named inputs of the edge features, shared by tests, benchmarks and tuning.

Here: :data:`CASES` and the workloads that ``fastff tune`` measures. Not here: what is checked with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

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
from fastff.kernels.edge_features import op, reference

Arguments = tuple[Any, ...]
Builder = Callable[[torch.device, torch.dtype], Arguments]


def _draw(n_edges: int, cutoff: float) -> Tensor:
    """Vectors of random direction with lengths from 0.15 to 1.05 cut-offs."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(n_edges, 3, generator=generator, dtype=torch.float64)
    lengths = cutoff * (0.15 + 0.9 * torch.rand(n_edges, generator=generator, dtype=torch.float64))
    return directions / directions.norm(dim=1, keepdim=True) * lengths[:, None]


def _build(n_edges: int, cutoff: float = 5.0, n_radial: int = 8, l_max: int = 3) -> Builder:
    def build(device: torch.device, dtype: torch.dtype) -> Arguments:
        return _draw(n_edges, cutoff).to(device, dtype), cutoff, n_radial, l_max

    return build


def _build_axes(device: torch.device, dtype: torch.dtype) -> Arguments:
    axes = torch.cat([torch.eye(3, dtype=torch.float64), -torch.eye(3, dtype=torch.float64)])
    return torch.cat([axes, 2.5 * axes]).to(device, dtype), 3.0, 8, 3


def _build_boundary(device: torch.device, dtype: torch.dtype) -> Arguments:
    lengths = torch.tensor([0.4, 4.5, 4.999, 5.0, 5.001, 7.0, 100.0], dtype=torch.float64)
    direction = torch.tensor([0.48, -0.6, 0.64], dtype=torch.float64)
    return (lengths[:, None] * direction).to(device, dtype), 5.0, 8, 3


def _build_strided(device: torch.device, dtype: torch.dtype) -> Arguments:
    return _draw(9, 5.0).to(device, dtype).T.contiguous().T, 5.0, 4, 2


def _build_sliced(device: torch.device, dtype: torch.dtype) -> Arguments:
    return _draw(18, 5.0).to(device, dtype)[1::2], 5.0, 4, 3


CASES = (
    Case("tiny", _build(5)),
    Case("one edge", _build(1)),
    Case("no edges", _build(0)),
    Case("axes", _build_axes),
    Case("near and beyond the cut-off", _build_boundary),
    Case("l_max 0", _build(7, l_max=0)),
    Case("l_max 1", _build(7, l_max=1)),
    Case("l_max 2", _build(7, l_max=2)),
    Case("one radial function", _build(7, n_radial=1)),
    Case("odd sizes", _build(301, cutoff=6.25, n_radial=11)),
    Case("transposed", _build_strided),
    Case("sliced", _build_sliced),
    Case("production", _build(5_000_000), production=True),
)


SUITES = (Suite(op.OP, op.edge_features, reference.edge_features, CASES),)


def list_builds() -> Iterator[Build]:
    """The three kernels, float32: for eight radial functions and degrees up to 3, and for the widths of ``painn``."""
    from fastff.kernels.edge_features import kernels

    for student, n_radial, l_max in (("", 8, 3), (" painn", PAINN["n_radial"], PAINN["l_max"])):
        n_harmonics = (l_max + 1) ** 2
        widths = {"n_radial": n_radial, "n_harmonics": n_harmonics, "RADIAL": n_radial}
        key = tuning.make_key(torch.float32, radial=n_radial, harmonics=n_harmonics)
        for space, kernel in (
            (kernels.FORWARD_SPACE, kernels.forward_kernel),
            (kernels.BACKWARD_SPACE, kernels.backward_kernel),
            (kernels.DOUBLE_BACKWARD_SPACE, kernels.double_backward_kernel),
        ):

            def make(
                end: str,
                config: tuning.LaunchConfig,
                kernel: Any = kernel,
                name: str = f"{space.kernel}{student}",
                widths: dict[str, int] = widths,
            ) -> Build:
                constexprs = {"cutoff": 5.0, "norm": math.sqrt(0.4), **widths, **config.blocks}
                signature = sign_floats(kernel, constexprs, "n_edges")
                return Build(name + end, kernel, signature, constexprs, config)

            builds = list_launched(make, space, key)
            yield from restrict_targets(builds, PAINN_TARGETS) if student else builds


def list_workloads(widths: Mapping[str, int], device: torch.device) -> Iterator[tuning.Workload]:
    """The three kernels; ``widths`` has ``n_radial`` (default 8) and ``l_max`` (default 3).

    Nothing for moment students (``n_mixed``), whose fused kernels compute them.
    """
    from fastff.kernels.edge_features import kernels

    if "n_mixed" in widths:
        return
    n_radial, l_max, cutoff, n_edges = (
        widths.get("n_radial", 8),
        widths.get("l_max", 3),
        5.0,
        widths.get("n_edges", 1 << 20),
    )
    n_harmonics = (l_max + 1) ** 2
    key = tuning.make_key(torch.float32, radial=n_radial, harmonics=n_harmonics)
    vectors = _draw(n_edges, cutoff).to(device, torch.float32)
    grads = (
        torch.randn(n_edges, n_radial, device=device),
        torch.randn(n_edges, n_harmonics, device=device),
    )
    directions = torch.randn(n_edges, 3, device=device)
    exact, exact_grads = vectors.double(), tuple(one.double() for one in grads)

    def evaluate(values: Tensor) -> tuple[Tensor, Tensor]:
        return reference.edge_features(values, cutoff, n_radial, l_max)

    def differentiate_twice() -> tuple[Tensor, ...]:
        first, second = derivatives.pull_back_twice(
            evaluate, (exact,), exact_grads, (directions.double(),)
        )
        return *first, *second

    yield tuning.Workload(
        kernels.FORWARD_SPACE,
        key,
        lambda: op.launch_forward(vectors, cutoff, n_radial, l_max),
        lambda: evaluate(exact),
    )
    yield tuning.Workload(
        kernels.BACKWARD_SPACE,
        key,
        lambda: op.launch_backward(vectors, *grads, cutoff),
        lambda: derivatives.pull_back(evaluate, (exact,), exact_grads),
    )
    yield tuning.Workload(
        kernels.DOUBLE_BACKWARD_SPACE,
        key,
        lambda: op.launch_double_backward(vectors, *grads, directions, cutoff),
        differentiate_twice,
    )
