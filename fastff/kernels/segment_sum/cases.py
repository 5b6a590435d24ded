"""Named inputs of the sum over segments, shared by tests, benchmarks and tuning.

Here: :data:`CASES` and the workloads that ``fastff tune`` measures. Not here: what is checked with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastff.kernels import tuning
from fastff.kernels.contract import (
    PAINN,
    PAINN_TARGETS,
    Build,
    Case,
    Suite,
    list_launched,
    restrict_targets,
)
from fastff.kernels.segment_sum import op, reference

Arguments = tuple[Any, ...]
Builder = Callable[[torch.device, torch.dtype], Arguments]


def _build(lengths: list[int] | int, width: tuple[int, ...], *, mean_length: int = 0) -> Builder:
    """Builder of random values over segments of the given lengths (or of random lengths, a fifth of them on a CPU)."""

    def build(device: torch.device, dtype: torch.dtype) -> Arguments:
        generator = torch.Generator().manual_seed(0)
        if isinstance(lengths, int):
            number = lengths if device.type == "cuda" else lengths // 5
            counts = torch.randint(0, 2 * mean_length + 1, (number,), generator=generator)
        else:
            counts = torch.tensor(lengths, dtype=torch.int64)
        pointers = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        values = torch.randn(int(pointers[-1]), *width, generator=generator, dtype=torch.float64)
        return values.to(device, dtype), pointers.to(device)

    return build


def _build_strided(device: torch.device, dtype: torch.dtype) -> Arguments:
    values, pointers = _build([3, 4, 2], (10,))(device, dtype)
    return values[:, ::2], pointers


def _build_transposed(device: torch.device, dtype: torch.dtype) -> Arguments:
    values, pointers = _build([3, 3], (6,))(device, dtype)
    return values.T, pointers


def _build_int32(device: torch.device, dtype: torch.dtype) -> Arguments:
    values, pointers = _build([2, 5], (4,))(device, dtype)
    return values, pointers.to(torch.int32)


CASES = (
    Case("tiny", _build([2, 3], (4,))),
    Case("one segment", _build([5], (8,))),
    Case("one row", _build([1], (1,))),
    Case("no rows", _build([0, 0, 0], (4,))),
    Case("no segments", _build([], (4,))),
    Case("no features", _build([2, 1], (0,))),
    Case("empty segments", _build([0, 4, 0, 0, 3, 0], (5,))),
    Case("odd sizes", _build([17, 1, 33, 16], (13,))),
    Case("vectors", _build([7, 9], (3, 5))),
    Case("scalars", _build([7, 9], ())),
    Case("wide", _build([19, 2], (200,))),
    Case("strided", _build_strided),
    Case("transposed", _build_transposed),
    Case("int32 pointers", _build_int32),
    Case("production", _build(100_000, (64,), mean_length=52), production=True),
)


def _turn_to_sums(case: Case) -> Case:
    """Case of the gather that takes the sums of ``case`` back to its rows."""

    def build(device: torch.device, dtype: torch.dtype) -> Arguments:
        place = device if case.production else torch.device("cpu")  # which sums in one order
        values, pointers = case.build(place, dtype)
        sums = reference.segment_sum(values, pointers)
        return sums.to(device), pointers.to(device), values.shape[0]

    return Case(case.name, build, case.production)


SUITES = (
    Suite(op.OP, op.segment_sum, reference.segment_sum, CASES),
    Suite(
        op.OP, op.segment_gather, reference.segment_gather, tuple(_turn_to_sums(c) for c in CASES)
    ),
)


def list_builds() -> Iterator[Build]:
    """Both kernels, float32: for 64 features, and for the channels and vectors of ``painn``."""
    from fastff.kernels.segment_sum import kernels

    signature = {"values": "*fp32", "pointers": "*i64", "out": "*fp32"}
    own = PAINN["n_channels"]
    for student, width in (("", 64), (" painn", own), (" painn vectors", 3 * own)):
        fixed = {"n_features": width, "BLOCK_FEATURES": 1 << (width - 1).bit_length()}
        key = tuning.make_key(torch.float32, features=width)
        for space, kernel in (
            (kernels.SUM_SPACE, kernels.sum_kernel),
            (kernels.GATHER_SPACE, kernels.gather_kernel),
        ):

            def make(
                end: str,
                config: tuning.LaunchConfig,
                kernel: Any = kernel,
                name: str = f"{space.kernel}{student}",
                fixed: dict[str, int] = fixed,
            ) -> Build:
                return Build(name + end, kernel, signature, {**fixed, **config.blocks}, config)

            builds = list_launched(make, space, key)
            yield from restrict_targets(builds, PAINN_TARGETS) if student else builds


def list_workloads(widths: Mapping[str, int], device: torch.device) -> Iterator[tuning.Workload]:
    """Both kernels at the widths of ``painn``: its channels (``n_channels``), and vectors of as many; 64 without it.

    Nothing for moment students (``n_mixed``), whose fused kernels sum.
    """
    if "n_mixed" in widths:
        return
    n_channels = widths.get("n_channels", 64)
    for factor in (1, 3) if "n_channels" in widths else (1,):
        yield from _list_both(widths.get("n_edges", 5_200_000), factor * n_channels, device)


def _list_both(n_rows: int, n_features: int, device: torch.device) -> Iterator[tuning.Workload]:
    from fastff.kernels.segment_sum import kernels

    n_segments = max(n_rows // 52, 1)
    values, pointers = _build(n_segments, (n_features,), mean_length=52)(device, torch.float32)
    key = tuning.make_key(torch.float32, features=n_features)

    def reference_sum() -> Tensor:
        return reference.segment_sum(values.double(), pointers)

    yield tuning.Workload(
        kernels.SUM_SPACE, key, lambda: op.launch_sum(values, pointers), reference_sum
    )
    sums, n_rows = reference_sum().float(), values.shape[0]
    yield tuning.Workload(
        kernels.GATHER_SPACE,
        key,
        lambda: op.launch_gather(sums, pointers, n_rows),
        lambda: reference.segment_gather(sums, pointers, n_rows),
    )
