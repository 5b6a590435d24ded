"""Shared by the kernel benchmarks: the device, its ceilings, timers, what one row stores, provenance of the record.

Run: ``pytest bench/kernels --benchmark-json bench/results/kernels/benchmarks-NAME.json``. Without a CUDA device
everything is skipped, unless ``--tiny`` tries the program in Triton's interpreter (``TRITON_INTERPRET=1``), where times
mean nothing. ``--budget-seconds`` ends a run early: what the time did not suffice for is skipped, and variants of
torch.compile, which take longest, come last.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from works import Works, time_variant

from fastff.kernels import contract, dispatch
from fastff.report import kernel_work
from fastff.report.kernel_work import Work
from fastff.report.kernels import measure_ceilings

START = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tiny", action="store_true", help="small everything, without a GPU")
    parser.addoption(
        "--budget-seconds", type=float, default=float("inf"), help="begin nothing later"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Work that is compiled comes last; the order is kept otherwise."""
    items.sort(key=lambda item: "compiled" in item.name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if time.monotonic() - START > item.config.getoption("--budget-seconds"):
        pytest.skip("not run: the time was used up")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The CUDA device that is timed, or with ``--tiny`` the CPU, and small cases."""
    if not request.config.getoption("--tiny"):
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device: kernel timings mean nothing on a CPU")
        yield torch.device("cuda", torch.cuda.current_device())
        return
    if not dispatch.is_interpreted():
        pytest.exit("--tiny needs TRITON_INTERPRET=1", returncode=4)
    from fastff.kernels.moment_potential import workloads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_work, "CELLS_QUADRATIC", 2)
        patch.setattr(workloads, "REACH", 3.6)
        patch.setattr(kernel_work, "find_production", find_small)
        yield torch.device("cpu")


def find_small(suite: contract.Suite) -> contract.Case:
    """A case that the interpreter takes in no time, in place of the one of production size."""
    return next(case for case in suite.cases if not case.production)


@pytest.fixture(scope="session")
def ceilings(device: torch.device) -> tuple[float, float]:
    """Bytes copied a second, read and written, and operations of float32 matrix products a second."""
    return measure_ceilings(device)


@pytest.fixture(autouse=True)
def cells(
    request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``--tiny`` one cell for the fused kernels, which is as many as the interpreter takes in no time."""
    if device.type == "cpu":
        maker = getattr(request.node.callspec.params["make"], "func", None)
        fused = maker in (kernel_work.make_fused, kernel_work.make_evaluation)
        monkeypatch.setattr(kernel_work, "CELLS", 1 if fused else 2)


@pytest.fixture(scope="session")
def works(device: torch.device) -> Iterator[Works]:
    found = Works(device)
    yield found
    found.clear()


@pytest.fixture
def time_work(
    benchmark: Any, device: torch.device, ceilings: tuple[float, float]
) -> Iterator[Callable[[Work, str], None]]:
    """Time a variant of a work; see :func:`works.time_variant`."""
    yield functools.partial(time_variant, benchmark=benchmark, device=device, ceilings=ceilings)
    torch.compiler.reset()


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Replace the record of the host by what a published result needs, without names of users or hosts."""
    from fastff.report.provenance import collect_provenance

    machine_info.clear()
    machine_info.update(collect_provenance().model_dump())


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave out what differs from run to run, and the commit, which the provenance has."""
    output_json.pop("commit_info", None)
    for one in output_json["benchmarks"]:
        one["params"] = {"variant": one["params"]["variant"]}
        one["param"] = one["name"].partition("[")[2].removesuffix("]")
