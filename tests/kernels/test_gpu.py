"""The contract of every op on a GPU: float64 reference, derivatives, poisoned outputs, run-to-run bits."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest
import torch

from fastff import kernels
from fastff.kernels import candidates, contract, dispatch, tuning

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

_ALL = [
    pytest.param(suite, case, dtype, id=f"{suite.function.__name__}-{case.name}-{dtype}")
    for suite in contract.list_suites()
    for case in suite.cases
    for dtype in suite.dtypes
    if not (case.production and dtype == torch.float64)
]
_SMALL = [run for run in _ALL if not run.values[1].production]
N_PROCESSES = min(os.cpu_count() or 1, 12)


def compile_share(first: int) -> list[str]:
    """Launch the kernels of every ``N_PROCESSES``-th run, derivatives included; an error or nothing for each."""
    device, errors = torch.device("cuda"), []
    for run in _SMALL[first::N_PROCESSES]:
        suite, case, dtype = run.values
        try:
            contract.check_bits(
                suite.function, case, device, dtype, differentiated=suite.differentiated
            )
            contract.check_derivatives(
                suite.op,
                suite.function,
                suite.reference,
                case,
                device,
                dtype,
                tolerance=suite.tolerance,
                differentiated=suite.differentiated,
            )
            errors.append("")
        except Exception as error:  # the test of this run says what is wrong
            errors.append(repr(error)[:300])
    return errors


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Compile the kernels of all cases at once on all cores; the tests find them in Triton's cache."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_PROCESSES, mp_context=context) as pool:
        shares = [pool.submit(compile_share, first) for first in range(N_PROCESSES)]
        errors = [error for share in shares for error in share.result()]
    assert "" in errors, f"not one of {len(errors)} runs passed: {errors[:3]}"


@pytest.mark.parametrize(("suite", "case", "dtype"), _ALL)
def test_forward(suite, case, dtype, cuda):
    contract.check_forward(
        suite.function, suite.reference, case, cuda, dtype, tolerance=suite.tolerance
    )


@pytest.mark.parametrize(("suite", "case", "dtype"), _SMALL)
def test_derivatives(suite, case, dtype, cuda):
    contract.check_derivatives(
        suite.op,
        suite.function,
        suite.reference,
        case,
        cuda,
        dtype,
        tolerance=suite.tolerance,
        differentiated=suite.differentiated,
    )


@pytest.mark.parametrize(
    ("suite", "case", "dtype"), [run for run in _SMALL if run.values[0].op.deterministic]
)
def test_bits(suite, case, dtype, cuda):
    contract.check_bits(suite.function, case, cuda, dtype, differentiated=suite.differentiated)


def test_auto_takes_triton(cuda):
    with kernels.use("auto"):
        rows = kernels.explain(cuda)
    assert {row.backend for row in rows} == {"triton"}


def test_measured_configuration_is_looked_up(cuda, tmp_path, monkeypatch):
    """One workload, the default and another candidate, through the table and back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._load_user_table.cache_clear()
    workload = next(contract.list_workloads({"n_edges": 1 << 16}, cuda))
    space = replace(workload.space, candidates=workload.space.candidates[:2])
    workload = replace(workload, space=space)
    measured = [one for one in candidates.measure(workload) if one.rejected is None]
    assert measured
    assert all(one.time_ms > 0 and one.error < workload.tolerance for one in measured)
    slowest = max(measured, key=lambda one: one.time_ms)
    arch = tuning.find_arch(cuda.index)
    provenance = tuning.describe_machine(cuda)
    assert provenance["gpu"]
    assert provenance["driver"]
    tuning.write_table(tuning.find_user_table(arch), [slowest], provenance)
    assert tuning.lookup(workload.space, workload.key, cuda) == slowest.config
    tuning._load_user_table.cache_clear()


def test_compiled_op_is_one_graph(cuda):
    from fastff.kernels.segment_sum import segment_sum

    values = torch.randn(10, 4, device=cuda, requires_grad=True)
    pointers = torch.tensor([0, 3, 10], device=cuda)
    compiled = torch.compile(segment_sum, fullgraph=True)
    with kernels.use("triton"):
        out = compiled(values, pointers)
        (grad,) = torch.autograd.grad(out.sum(), values)
    assert torch.equal(grad, torch.ones_like(grad))
    assert dispatch._last_calls["segment_sum"][0] == "triton"
