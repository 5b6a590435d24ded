"""``bench/kernels``: every op and student is a benchmark, and one that is wrong has no time. Not here: times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastff.kernels import contract
from fastff.report.kernel_work import Work

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def run(*arguments: str, **environment: str) -> str:
    """Output of a run of the benchmarks; one that took itself for a worker of xdist would measure nothing."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "bench/kernels",
            *arguments,
        ],
        env={**own, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def works(monkeypatch):
    """The module beside the benchmarks."""
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "kernels"))
    import works

    yield works
    del sys.modules["works"]


def test_every_op_and_student_has_a_benchmark_of_each_variant():
    """Those of torch.compile, which take longest, come last."""
    listed = [line.split("::", 1)[1] for line in run("--collect-only").splitlines() if "::" in line]
    variants = ("triton", "eager", "compiled")
    named = [line.split("[", 1)[1].removesuffix("]").rsplit("-", 1) for line in listed]
    assert {variant for _, variant in named} == set(variants)
    by_name = {name: {v for n, v in named if n == name} for name, _ in named}
    assert all(found == set(variants) for found in by_name.values())
    generic = {
        suite.function.__name__
        for suite in contract.list_suites()
        if any(case.production for case in suite.cases)
    }
    fused = {"moments", "invariants", "node_perceptron", "invariants_adjoint", "moments_adjoint"}
    students = {"1_hop", "2_hops", "m2-l", "painn", "2_hops_directed", "m2-l_directed", "m3-l"}
    around = {"neighbor_list", "skin_check", "md_step_NVT", "staging_contacts"}
    assert by_name.keys() >= fused | students | around | {f"{name}_1" for name in generic}
    compiled = [variant == "compiled" for _, variant in named]
    assert compiled == sorted(compiled)


def test_a_run_stores_roofline_and_provenance(tmp_path):
    """Four small ones, in the interpreter."""
    chosen = "segment_sum_0 or moments_directed or moments_adjoint_directed or 1_hop"
    path = tmp_path / "record.json"
    more = ("--tiny", "-k", f"({chosen}) and not compiled", f"--benchmark-json={path}")
    run(*more, TRITON_INTERPRET="1")
    record = json.loads(path.read_text())
    assert {"commit", "date", "gpu", "driver", "command"} <= record["machine_info"].keys()
    assert {"torch", "triton"} <= record["machine_info"]["packages"].keys()
    assert "commit_info" not in record
    assert {one["params"]["variant"] for one in record["benchmarks"]} == {"triton", "eager"}
    assert "0x" not in path.read_text()  # nothing of how Python shows functions
    rows = {(one["extra_info"]["op"], one["extra_info"]["variant"]) for one in record["benchmarks"]}
    names = ("segment_sum", "moments, directed", "moments_adjoint, directed", "evaluation, 1 hop")
    assert rows == {(name, variant) for name in names for variant in ("triton", "eager")}
    for one in record["benchmarks"]:
        info = one["extra_info"]
        assert 0 <= info["relative_error"] < 2e-5
        assert info["roofline_fraction"] == pytest.approx(info["floor_ms"] / info["device_ms"])
        floors = (
            info["bytes"] / info["copy_bytes_per_s"],
            info["operations"] / info["float32_products_per_s"],
        )
        assert info["floor_ms"] == pytest.approx(1e3 * max(floors))
        assert one["stats"]["rounds"] == 1


def make_work() -> Work:
    ones = torch.ones(8)
    return Work(
        "double", "forward", 8, 2 * ones.double(), 64.0, 8.0, lambda: 2 * ones,
        lambda compiler: compiler(lambda: ones + ones),
    )  # fmt: skip


def time(works, work: Work, variant: str) -> dict:
    benchmark = SimpleNamespace(
        extra_info={}, pedantic=lambda call, setup, rounds: (setup(), call())
    )
    works.time_variant(work, variant, benchmark=benchmark, device=CPU, ceilings=(1e9, 1e8))
    return benchmark.extra_info


def test_a_wrong_variant_has_no_time(works):
    right = make_work()
    assert time(works, right, "triton")["floor_of"] == "arithmetic"
    assert time(works, replace(right, n_operations=0.0), "eager")["floor_ms"] == pytest.approx(
        6.4e-5
    )
    wrong = replace(right, triton=lambda: 2.001 * torch.ones(8))
    time(works, wrong, "eager")
    with pytest.raises(AssertionError):
        time(works, wrong, "triton")


def test_kernels_are_rated_by_the_work_of_their_hop(works):
    """Directed messages are read in later hops alone; perceptrons with them are not rated."""
    from student_report import rate_kernels

    ceilings = {"copy_TB_per_s": 3.0, "float32_TFLOP_per_s": 50.0, "tf32_TFLOP_per_s": 400.0}
    row = {"channels": 16, "atoms": 1000, "median_ms": 1.0}
    names = ("moments 1", "moments 2", "node_perceptron 2", "place")
    found = {
        (one["kernel"], one["message_degree"]): one.get("roofline_fraction")
        for degree in (0, 1)
        for one in rate_kernels(
            [row | {"kernel": name, "message_degree": degree} for name in names], ceilings
        )
    }
    assert found["moments 1", 0] == found["moments 2", 0] == found["moments 1", 1]
    assert found["moments 2", 1] > found["moments 2", 0] > 0
    assert found["node_perceptron 2", 0] > 0
    assert found["node_perceptron 2", 1] is found["place", 0] is None


def test_stored_gradients_are_rated_by_what_they_move(works):
    """Sums and gathers of later hops are rated, not of the first, which has no messages; each launch is compiled."""
    from student_launches import list_calls, list_jobs, list_stored_calls
    from student_report import rate_kernels

    names = list_stored_calls(3)
    assert set(names) - set(list_calls(3)) == {
        "gather_forces 1", "gather_forces 2", "gather_forces 3", "gather_messages 2", "gather_messages 3",
    }  # fmt: skip
    assert {job[2] for job in list_jobs() if job[:2] == (3, "store")} == set(names)
    row = {"channels": 64, "message_degree": 1, "atoms": 1000, "median_ms": 1.0, "scatter": "store"}
    ceilings = {"copy_TB_per_s": 3.0, "float32_TFLOP_per_s": 50.0, "tf32_TFLOP_per_s": 400.0}
    rows = rate_kernels([row | {"kernel": name} for name in names], ceilings)
    found = {one["kernel"]: one.get("roofline_fraction") for one in rows}
    assert {name for name in names if found[name] is None} == {
        "moments_adjoint 1", "gather_forces 1", *(f"node_perceptron {hop}" for hop in (1, 2, 3)),
    }  # fmt: skip
    moved = 54 * (4 * 64 + 8) + 4 * 64 * 5 + 20
    assert found["gather_messages 3"] == pytest.approx(moved / 3.0e12 * 1000 * 1e3)


def test_work_is_made_once_in_order(works):
    made = []

    def source(device):
        for k in range(3):
            made.append(k)
            yield replace(make_work(), rows=k)

    taken = works.Works(CPU)
    assert [taken.take(source, k).rows for k in (0, 0, 1, 2, 2)] == [0, 0, 1, 2, 2]
    assert made == [0, 1, 2]
    assert taken.take(source, 1).rows == 1
    assert made == [0, 1, 2, 0, 1]
