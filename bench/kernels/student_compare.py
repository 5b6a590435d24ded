"""The fused evaluation and the generic ops beside torch: the definition run eagerly and compiled by torch.compile.

Here: timing of the same work by other means, for the record of ``gpu_student.py``. Not here: the kernels' own timings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from student_timing import DEVICE, measure
from test_ops import SUITES, build_arguments, choose_function, list_tensors

from fastff import kernels
from fastff.kernels.contract import Suite
from fastff.kernels.moment_potential import layout, reference
from fastff.kernels.moment_potential.cases import System
from fastff.kernels.moment_potential.layout import PotentialWeights
from fastff.kernels.moment_potential.op import convert_weights
from fastff.kernels.node_block.reference import build_cubic_table


def compare_single(
    weights: PotentialWeights, system: System, exact: torch.Tensor, found: torch.Tensor
) -> dict[str, float]:
    """Force errors of the definition in float32, and of the kernels against it."""
    single = evaluate_definition(convert_weights(weights, DEVICE, torch.float32), system)
    error, apart = (single - exact).abs(), (found - single).abs()
    return {
        "eager_float32_error_rms": float(error.square().mean().sqrt()),
        "eager_float32_error_max": float(error.max()),
        "difference_to_eager_rms": float(apart.square().mean().sqrt()),
        "difference_to_eager_max": float(apart.max()),
    }


def evaluate_definition(weights: PotentialWeights, system: System) -> torch.Tensor:
    """Forces of the definition; energy and virial are computed too."""
    arguments = (system.positions, system.species, system.matrix, system.translations)
    return reference.evaluate_reference(weights, *arguments).forces


def time_definition(
    weights: PotentialWeights, system: System, fused_ms: float, hops: int
) -> Iterator[dict[str, Any]]:
    """Energy, forces and virial by the definition in float32, eager and compiled."""
    single = convert_weights(weights, DEVICE, torch.float32)
    fix_tables()
    expected = evaluate_definition(single, system)
    for name in ("eager", "compiled"):
        function: Callable[..., torch.Tensor] = evaluate_definition
        if name == "compiled":
            torch.compiler.reset()
            function = torch.compile(evaluate_definition, dynamic=False)
        with torch.no_grad():
            change = float((function(single, system) - expected).abs().max())
            result = measure(lambda f=function: f(single, system), 60.0)
        yield {
            "hops": hops, "atoms": system.matrix.n_atoms, "means": name, "force_change": change,
            "fused_graph_ms": fused_ms, "speedup": result["median_ms"] / fused_ms, **result,
        }  # fmt: skip


def fix_tables() -> None:
    """Hand compiled code the tables of couplings ready: it cannot trace how they are made and kept."""
    table = build_cubic_table(torch.float32, DEVICE)
    exact = build_cubic_table(torch.float64, DEVICE)

    def choose(dtype: torch.dtype, device: torch.device) -> Any:
        if device.type != DEVICE.type:
            return build_cubic_table(dtype, device)
        return table if dtype == torch.float32 else exact

    for module in (reference, layout):
        module.build_cubic_table = choose  # type: ignore[assignment]


def list_generic() -> list[Suite]:
    """Generic ops, each once."""
    return list(SUITES)


def time_generic(suite: Suite, gradient: bool) -> dict[str, Any]:
    """One generic op at production size in float32: Triton, eager reference, compiled reference."""
    first, *rest = build_arguments(suite, DEVICE, torch.float32)
    seeds: list[torch.Tensor] = []

    def differentiate(function: Callable[..., Any]) -> Any:
        leaf = first.detach().requires_grad_()
        outputs = list_tensors(function(leaf, *rest))
        if not seeds:
            seeds.extend(torch.randn_like(one) for one in outputs)
        return torch.autograd.grad(outputs, leaf, seeds)

    def infer(function: Callable[..., Any]) -> Any:
        with torch.no_grad():
            return function(first, *rest)

    row: dict[str, Any] = {
        "op": suite.function.__name__, "pass": "gradient" if gradient else "forward",
    }  # fmt: skip
    call = differentiate if gradient else infer
    torch.compiler.reset()
    with kernels.use("triton"):
        for variant in ("triton", "eager", "compiled"):
            function = choose_function(suite, variant)
            row[variant] = measure(lambda f=function: call(f), 60.0)
    row["speedup_over_compiled"] = row["compiled"]["median_ms"] / row["triton"]["median_ms"]
    return row
