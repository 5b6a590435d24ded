"""Measurement apart: a candidate that takes its process down costs itself alone, and is named."""

from __future__ import annotations

import json
import sys
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from fastff.kernels import measuring, tuning
from fastff.kernels.measuring import Request, measure_apart
from fastff.kernels.tuning import Measurement

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


def test_all_ops_of_the_first_widths_come_first():
    seen = []
    widths = [{"width": 8}, {"width": 4}]
    measure_apart(widths, CPU, ops=("fine", "rejects"), tools=make_tools(), report=seen.append)
    keys = list(dict.fromkeys(line.split(",")[0] for line in seen))
    assert keys == ["fine width=8", "rejects width=8", "fine width=4", "rejects width=4"]


def test_no_candidate_is_begun_after_the_budget():
    outcome = measure("slow", "fine", budget=2.5)
    assert outcome.n_unmeasured == 2
    assert len(outcome.measurements) <= 1
    assert not outcome.finished


def test_what_is_measured_in_part_adds_an_entry_and_replaces_none(tmp_path, monkeypatch):
    """Time is over after five candidates: one key has all of its four, the other one its first alone."""
    monkeypatch.setattr(measuring, "time", SimpleNamespace(time=count(1).__next__))
    tools, sent = make_tools(), []
    request = Request((), "cpu", frozenset(), 7.5, tools)
    connection = SimpleNamespace(send=sent.append)
    complete = [
        measuring._measure_workload(connection, request, workload, set())
        for workload in tools.list_workloads({"width": 8}, CPU, ["fine"])
    ]
    assert complete == [True, False]
    measured = [content for kind, content in sent if kind == "result"]
    finished = [content for kind, content in sent if kind == "finished"]
    assert (len(measured), finished) == (5, [("fine", "width=8,number=0")])
    for earlier, other in ((None, CONFIGS[0]), (CONFIGS[3], CONFIGS[3])):
        path = tmp_path / f"{other.blocks['BLOCK']}.json"
        if earlier is not None:
            known = [Measurement("fine", f"width=8,number={k}", earlier, 9.0, 0.0) for k in (0, 1)]
            tuning.write_table(path, known, {"gpu": "G"})
        tuning.write_table(path, measured, {"gpu": "G"}, finished=finished)
        assert tuning.read_table(path) == {
            ("fine", "width=8,number=0"): CONFIGS[0],
            ("fine", "width=8,number=1"): other,
        }


def test_keys_that_are_measured_whole_are_told():
    outcome = measure("fine", "loses")
    assert outcome.finished == {
        (op, f"width=8,number={k}") for op in ("fine", "loses") for k in (0, 1)
    }


def test_a_new_file_begins_with_the_table_it_is_to_replace(tmp_path):
    base, path = tmp_path / "shipped.json", tmp_path / "new.json"
    tuning.write_table(base, [Measurement("a", "k", CONFIGS[1], 1.0, 0.0)], {"gpu": "old"})
    for config in CONFIGS[2:]:
        tuning.write_table(path, [Measurement("b", "k", config, 1.0, 0.0)], {}, base=base)
        assert tuning.read_table(path) == {("a", "k"): CONFIGS[1], ("b", "k"): config}
        base.unlink(missing_ok=True)  # the second time the file itself is what is added to
    assert json.loads(path.read_text())["entries"]["a"]["k"]["provenance"] == {"gpu": "old"}
