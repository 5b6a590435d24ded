"""Measurement apart: a candidate that takes its process down costs itself alone, and is named."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from fastff.kernels import tuning
from fastff.kernels.measuring import measure_apart

from .faulty import CONFIGS, make_tools

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends processes by signals")


def measure(*ops, **options):
    return measure_apart([{"width": 8}], CPU, ops=ops, tools=make_tools(), **options)


@pytest.mark.parametrize(
    ("op", "reason", "options"),
    [
        ("kills", "its process was ended by signal 9", {}),
        ("loses", "RuntimeError: CUDA error: an illegal memory access was encountered", {}),
        ("hangs", "nothing came for 1 s", {"candidate_limit": 1.0}),
    ],
)
def test_a_fault_costs_one_candidate(op, reason, options, tmp_path):
    outcome = measure(op, **options)
    assert outcome.n_unmeasured == 0
    assert len(outcome.measurements) == 2 * len(CONFIGS)
    failed = [one for one in outcome.measurements if one.faulted]
    assert [one.config for one in failed] == 2 * [CONFIGS[1]]
    assert {one.rejected for one in failed} == {reason}
    assert outcome.remarks[0] == (
        f"{op} width=8,number=0 BLOCK=2, warps=1, stages=1 failed: {reason}"
    )
    assert len(outcome.remarks) == 2
    path = tmp_path / "sm_90.json"
    tuning.write_table(path, outcome.measurements, {"gpu": "G"})
    assert tuning.read_table(path)[op, "width=8,number=1"] == CONFIGS[0]
    listed = json.loads(path.read_text())["failed"][op]["width=8,number=0"]
    assert listed == [CONFIGS[1].to_dict() | {"reason": reason}]


def test_an_error_that_leaves_the_device_alive_needs_no_new_process():
    outcome = measure("rejects")
    assert not outcome.remarks
    assert [one.rejected for one in outcome.measurements if one.rejected] == (
        2 * ["too much of something"]
    )


def test_a_workload_that_cannot_be_built_is_named_and_left_out():
    seen = []
    outcome = measure("unbuildable", "fine", report=seen.append)
    assert outcome.remarks == (
        "unbuildable at {'width': 8} was left out: its workload failed: ValueError: no such lattice",
    )
    assert len(outcome.measurements) == 2 * len(CONFIGS)
    assert seen[0] == "fine width=8,number=0"


def test_no_candidate_is_begun_after_the_budget():
    outcome = measure("slow", "fine", budget=2.5)
    assert outcome.n_unmeasured == 2
    assert len(outcome.measurements) <= 1
