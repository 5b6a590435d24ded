"""The program that times training steps: right gradients on a CPU, and failures that become rows."""

from __future__ import annotations

import pytest
import torch
from programs import load_program

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def program():
    return load_program("kernels/training_step")


@pytest.mark.parametrize(("model", "system"), [("m1", "cuau"), ("painn", "water")])
def test_a_step_has_the_gradients_of_the_student_in_float64(program, model, system):
    setting = program.Setting(model, system, 48, 2, CPU)
    rows = list(setting.list_rows("torch", "plain", 0.01))
    assert [row["up_to"] for row in rows] == ["backward", "backward and optimizer"]
    for row in rows:
        assert row["gradient_error"] < 1e-4
        assert row["median_ms"] > 0.0
    setting.exact[0].mul_(3.0)
    (row, _) = setting.list_rows("torch", "plain", 0.01)
    assert row["gradient_error"] > 1e-3


def test_a_backend_that_cannot_run_is_a_row_with_its_error(program):
    (row,) = program.Setting("painn", "cuau", 32, 2, CPU).list_rows("triton", "plain", 0.01)
    assert "BackendError" in row["error"]
    assert "median_ms" not in row


def test_second_derivatives_of_every_generic_op(program):
    rows = list(program.list_second(CPU, "eager", 0.005, True))
    assert [row["op"] for row in rows] == [
        "edge_features",
        "fused_mlp",
        "segment_sum",
        "segment_gather",
    ]
    assert all(row["error_of_result"] < 1e-5 for row in rows)


@pytest.mark.parametrize("name", ["edge_features", "fused_mlp", "segment_sum", "segment_gather"])
def test_both_ways_to_second_derivatives_give_all_that_training_reads(program, name, monkeypatch):
    """Values and the first gradient are results too, or a compiler leaves out what only they need."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    suite = next(s for s in program.list_suites() if s.function.__name__ == name)
    case = next(c for c in suite.cases if not c.production)
    arguments = case.build(CPU, torch.float64)
    plain, composed = (
        program.differentiate_twice(suite.reference, arguments, compiled)()
        for compiled in (False, True)
    )
    outputs = program.list_tensors(suite.reference(*arguments))
    leaves = program.list_tensors(arguments)
    assert len(plain) == 2 * len(outputs) + 1 + len(leaves)
    for one, other in zip(plain, composed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    for one, output in zip(plain, outputs, strict=False):
        torch.testing.assert_close(one, output)
    assert plain[len(outputs)].shape == leaves[0].shape
