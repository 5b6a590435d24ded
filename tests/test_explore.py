"""Student-driven dynamics. Not here: which walkers there are, what is chosen of theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk

from fastff.batches import BatchEvaluator, BatchOutcome
from fastff.distill import explore as explore_module
from fastff.distill.explore import (
    Ending,
    ExploreSettings,
    _Run,
    explore,
)
from fastff.distill.looks import look_at
from fastff.errors import UsageError
from fastff.graph import Graph
from fastff.models import Student

from untrained import make_student  # isort: skip
from walkers import SETTINGS, follow_other, make_explorer, make_walkers


@pytest.fixture(scope="module")
def student() -> Student:
    return make_explorer()


def test_steps_are_those_of_the_other_integrator(student: Student) -> None:
    """Without friction both integrators are velocity Verlet."""
    walkers = make_walkers("train", "test")
    settings = replace(SETTINGS, friction=0.0, stop_grade=1e9)
    found = explore(student, walkers, settings)
    for k, replica in enumerate(follow_other(student, walkers)):
        last = [s for s in found.snapshots if s.walker == k][-1]
        assert last.step == 20
        np.testing.assert_allclose(last.atoms.positions, replica.atoms.positions, atol=1e-5)
        assert np.abs(last.atoms.positions - walkers[k].atoms.positions).max() > 0.005
    assert list(found.endings) == [Ending(20), Ending(20)]
    assert [s.step for s in found.snapshots] == [10, 20, 10, 20]


def test_friction_keeps_the_temperature() -> None:
    walkers = make_walkers(*["test"] * 12, temperature=400.0)
    gas = make_student("m1", (29,), cutoff=4.0, energy_scale=0.0002)
    run = _Run(gas, walkers, replace(SETTINGS, friction=0.1))
    kinetic = []
    for _ in range(120):
        run.advance()
        kinetic.append(float((run.momenta**2 / run.masses).mean()))
    assert np.mean(kinetic[40:]) / (units.kB * 400.0) == pytest.approx(1.0, abs=0.15)


def test_a_blow_up_ends_one_walker_and_keeps_what_was_before(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    honest = BatchEvaluator.evaluate

    def explode(self: BatchEvaluator, systems: Any, **options: Any) -> BatchOutcome:
        outcome = honest(self, systems, **options)
        calls.append(1)
        if len(calls) >= 14:  # the start, then step 13
            outcome.forces[systems.batch == 1] *= torch.nan
        return outcome

    monkeypatch.setattr(BatchEvaluator, "evaluate", explode)
    found = explore(student, make_walkers("train", "test"), replace(SETTINGS, stop_grade=1e9))
    assert found.endings == (Ending(20), Ending(13, "blow-up"))
    own = [(s.step, s.urgent) for s in found.snapshots if s.walker == 1]
    assert own == [(10, True), (12, True)]
    assert [(s.step, s.urgent) for s in found.snapshots if s.walker == 0] == [
        (10, False),
        (20, False),
    ]
    assert all(np.isfinite(s.atoms.positions).all() for s in found.snapshots)


def test_a_jump_is_a_blow_up_and_is_not_taken(student: Student) -> None:
    walkers = make_walkers("test", "test")
    hot = replace(walkers[1], temperature=3e6)
    found = explore(student, [walkers[0], hot], SETTINGS)
    assert found.endings[0].reason == ""
    assert found.endings[1] == Ending(1, "blow-up")


@pytest.mark.parametrize("kind", ["extrapolation", "contact"])
def test_walkers_end_where_they_go_too_far(
    student: Student, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def look(
        model: Student, structures: list[Atoms], graph: Graph
    ) -> list[tuple[float, float, float]]:
        looks.append(len(structures))
        grade = 9.0 if kind == "extrapolation" and len(looks) == 4 else 0.5
        contact = 0.3 if kind == "contact" and len(looks) == 4 else 1.0
        return [(contact, grade, 0.01)] * len(structures)

    looks: list[int] = []
    monkeypatch.setattr(explore_module, "look_at", look)
    found = explore(student, make_walkers("train", "validation"), SETTINGS)
    if kind == "extrapolation":
        assert found.endings == (Ending(6, "extrapolation"), Ending(20))
        assert [(s.step, s.urgent) for s in found.snapshots if s.walker == 0] == [
            (4, False),
            (6, False),
        ]
        assert looks == [2] * 4 + [1] * 7
    else:
        assert found.endings == (Ending(6, "blow-up"), Ending(6, "blow-up"))
        assert [s.step for s in found.snapshots] == [2, 4, 2, 4]
        assert len(looks) == 4
        assert all(s.urgent for s in found.snapshots)


def test_looks_measure_contact_grade_and_spread(student: Student) -> None:
    atoms = bulk("Cu", cubic=True)
    near = atoms.copy()
    near.positions[1] = near.positions[0] + [0.0, 0.0, 1.32]
    (first, second) = look_at(student, [atoms, near])
    assert first[0] == pytest.approx(2.5527 / 2.64, rel=1e-3)
    assert second[0] == pytest.approx(0.5)
    assert second[1] > 5 > first[1] > 0
    assert second[2] > first[2] > 0
    blind = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005)
    assert np.isnan(look_at(blind, [atoms])[0][1:]).all()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="makes no sense"):
        ExploreSettings(n_steps=10, timestep=1.0, check=4, stride=10)


def test_a_walker_that_starts_far_out_may_go_further(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = iter([[0.5, 5.0], [2.0, 2.0], [3.5, 14.0], [16.0]])

    def look(
        model: Student, structures: list[Atoms], graph: Graph
    ) -> list[tuple[float, float, float]]:
        return [(1.0, grade, 0.01) for grade in next(grades)]

    monkeypatch.setattr(explore_module, "look_at", look)
    found = explore(student, make_walkers("train", "train"), SETTINGS)
    assert found.endings == (Ending(4, "extrapolation"), Ending(6, "extrapolation"))
