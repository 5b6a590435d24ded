"""The program that measures errors of kernels: random students of the study's systems, and an error that shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from programs import load_program

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def program():
    return load_program("kernels/student_errors")


@pytest.mark.parametrize(("system", "architecture", "degree"), [("nacl", "m2", 1), ("si", "m1", 0)])
def test_a_random_student_of_a_system(program, system, architecture, degree):
    row = program.measure_untrained(system, architecture, degree, CPU)
    assert (row["system"], row["architecture"]) == (system, architecture)
    assert row["message_degree"] == degree
    assert row["force_rms"] == pytest.approx(1.0, rel=1e-3)
    for name in ("torch float32", "tf32x3", "tf32", "ieee"):
        assert 0.0 < row[name]["rms"] < 1e-5
        assert row[name]["rms"] < row[name]["max"] < 1e-3
    assert row["path"] != "fused"  # of a CPU


def test_another_student_is_told(program):
    atoms = bulk("Si", cubic=True)
    atoms.positions += np.random.default_rng(0).normal(scale=0.1, size=(8, 3))
    student = program.build_untrained([atoms], "m2", 1, CPU)
    other = program.build_untrained([atoms], "m2", 1, CPU).double()
    other.blocks[0].message[:, -1] *= 1.01  # one gate
    row = program.compare_precisions(student, other, [atoms])
    assert row["tf32x3"]["rms"] > 1e-4


def test_every_system_and_degree_is_measured(program):
    assert len(program.SYSTEMS) == 6
    assert {degree for name, degree in program.UNTRAINED if name != "m1"} == {0, 1}
