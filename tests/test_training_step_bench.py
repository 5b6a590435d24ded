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
