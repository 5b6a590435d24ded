"""Batched dynamics of a teacher: energy, temperature, blow-ups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule

from fastff.distill.dynamics import LangevinSettings, Replica, draw_momenta, run_langevin
from fastff.distill.planning import plan_sampling
from fastff.errors import UsageError
from fastff.labels import Frame, Labels
from tests.test_sampling import EmtTeacher


def label_springs(structures: Sequence[ase.Atoms]) -> list[Labels]:
    """Every atom on its own spring of 2 eV/Å^2 to the place noted in its array ``home``."""
    moves = [atoms.positions - atoms.arrays["home"] for atoms in structures]
    return [Labels(float(np.sum(u**2)), -2.0 * u, None) for u in moves]


def make_spring_replica(temperature: float, trajectory: int, n_atoms: int = 200) -> Replica:
    atoms = ase.Atoms("Cu" * n_atoms, positions=np.zeros((n_atoms, 3)))
    atoms.arrays["home"] = atoms.positions.copy()
    atoms.set_momenta(draw_momenta(atoms, temperature, 0, trajectory))
    return Replica(atoms, temperature, trajectory)


def run_nve(timestep: float) -> np.ndarray:
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.set_momenta(draw_momenta(atoms, 600.0, 3, 0))
    frames: list[Frame] = []
    settings = LangevinSettings(round(400 / timestep), timestep, friction=0.0)
    run_langevin(
        [Replica(atoms, 600.0, 0)],
        EmtTeacher().label,
        settings,
        source="x",
        on_frames=frames.extend,
    )
    kinetic = [f.atoms.get_kinetic_energy() for f in frames]
    assert np.std(kinetic) > 0.1
    return np.array([f.labels.energy for f in frames]) + kinetic


def test_energy_is_conserved_without_friction() -> None:
    coarse, fine = run_nve(8.0), run_nve(4.0)
    assert np.ptp(fine) / 32 < 1e-3
    assert np.std(coarse) / np.std(fine) == pytest.approx(4.0, rel=0.25)  # second order in time
    assert abs(np.mean(fine[-20:]) - np.mean(fine[:20])) < np.ptp(fine)


@pytest.mark.parametrize("timestep", [2.0, 15.0])
def test_langevin_samples_the_boltzmann_distribution(timestep: float) -> None:
    """Positions of harmonic oscillators are exact for BAOAB at any step; 15 fs is a quarter of their period."""
    frames: list[Frame] = []
    replicas = [make_spring_replica(300.0, 0), make_spring_replica(900.0, 1)]
    settings = LangevinSettings(
        round(2400 / timestep), timestep, stride=10, first_kept=20, friction=0.03, min_distance=0.0
    )
    run_langevin(replicas, label_springs, settings, source="x", on_frames=frames.extend)
    for trajectory, temperature in enumerate((300.0, 900.0)):
        own = [f for f in frames if f.trajectory == trajectory and f.step * timestep > 150]
        squares = np.mean([(f.atoms.positions**2).mean() for f in own])
        assert 2.0 * squares / units.kB / temperature == pytest.approx(1.0, abs=0.05)
        if timestep < 5:
            kinetic = np.mean([f.atoms.get_temperature() for f in own])
            assert kinetic / temperature == pytest.approx(1.0, abs=0.04)


def test_all_replicas_are_labelled_in_one_call_and_move_alone() -> None:
    def run(numbers: Sequence[int]) -> tuple[list[Frame], list[int]]:
        teacher, frames = EmtTeacher(), []
        replicas = []
        for number in numbers:
            atoms = bulk("Cu", cubic=True)
            atoms.set_momenta(draw_momenta(atoms, 500.0, 0, number))
            replicas.append(Replica(atoms, 500.0, number))
        settings = LangevinSettings(8, 4.0, stride=4)
        run_langevin(replicas, teacher.label, settings, source="x", on_frames=frames.extend)
        return frames, teacher.calls

    frames, calls = run([0, 1, 2])
    assert calls == [3] * 9
    assert [(f.trajectory, f.step) for f in frames] == [(n, s) for s in (0, 4, 8) for n in range(3)]
    alone, _ = run([1])
    assert np.array_equal(alone[-1].atoms.positions, frames[-2].atoms.positions)
    assert not np.array_equal(frames[-1].atoms.positions, frames[-2].atoms.positions)
    still = [make_spring_replica(300.0, number, 4) for number in range(2)]
    still[1].atoms.set_momenta(still[0].atoms.get_momenta())
    settings = LangevinSettings(3, 4.0, min_distance=0.0)
    run_langevin(still, label_springs, settings, source="x", on_frames=frames.extend)
    assert not np.array_equal(still[0].atoms.positions, still[1].atoms.positions)  # own noise


@pytest.mark.parametrize("fault", ["force", "contact", "nan"])
def test_a_blow_up_stops_one_replica(fault: str) -> None:
    frames: list[Frame] = []
    replicas = [make_spring_replica(300.0, number, 5) for number in range(2)]
    for replica in replicas:
        replica.atoms.arrays["home"] += 5.0 * np.arange(5)[:, None]
        replica.atoms.positions[:] = replica.atoms.arrays["home"]

    def label(structures: list[ase.Atoms]) -> list[Labels]:
        results = label_springs(structures)
        if len(calls) == 6:
            if fault == "force":
                results[1].forces[2] = 400.0
            elif fault == "nan":
                results[1] = replace(results[1], energy=np.nan)
            else:
                replicas[1].atoms.positions[1] = replicas[1].atoms.positions[0] + 0.1
        calls.append(len(structures))
        return results

    calls: list[int] = []
    settings = LangevinSettings(12, 2.0, stride=4)
    run_langevin(replicas, label, settings, source="x", on_frames=frames.extend)
    assert calls == [2] * 7 + [1] * 6
    assert replicas[0].stopped == ""
    word = {"force": "force of 692.8", "nan": "energy not finite", "contact": "nearer than 0.5"}[
        fault
    ]
    assert word in replicas[1].stopped
    assert "step 6" in replicas[1].stopped
    own = [f.step for f in frames if f.trajectory == 1 and np.isfinite(f.labels.energy)]
    assert own == [0, 4, 5]  # the last sound frame is kept
    assert sum(not np.isfinite(f.labels.energy) for f in frames) == (fault == "nan")
    assert [f.step for f in frames if f.trajectory == 0] == [0, 4, 8, 12]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="make no sense"):
        LangevinSettings(10, -1.0)


def test_every_structure_moves_where_the_budget_allows() -> None:
    molecules = [molecule("CH4")] * 20
    for budget, training, held_out in ((6000, 20, 20), (1000, 10, 3)):
        groups = plan_sampling(molecules, budget=budget).dynamics
        moved = [len({replica.cell for replica in group.replicas}) for group in groups]
        assert moved[0] >= training
        assert moved[1] >= held_out
    alone = plan_sampling([bulk("Cu")], budget=600).dynamics[0]
    assert len(alone.replicas) == 7
