"""The teacher self-check finds nothing in an exact teacher and names what is wrong with a bad one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.teachers import load_teacher
from fastff.teachers.analytic import AnalyticTeacher
from fastff.teachers.selfcheck import SelfCheck, check_teacher


def make_structures() -> list[Atoms]:
    return [bulk("Cu", cubic=True), molecule("CH3OH")]


class Faulty(AnalyticTeacher):
    """An exact teacher with one fault added."""

    fault = ""

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        labels = super()._label_completed(structures)
        return [
            spoil(self.fault, atoms, entry, len(structures))
            for atoms, entry in zip(structures, labels, strict=True)
        ]


def spoil(fault: str, atoms: Atoms, labels: Labels, n_structures: int) -> Labels:
    """Labels with one named fault."""
    energy, forces = labels.energy, labels.forces.copy()
    if fault == "rotation":
        energy += 0.01 * (atoms.cell.array[:, 0] ** 2).sum()
    elif fault == "translation":
        energy += 0.01 * atoms.positions.min()
    elif fault == "permutation":
        forces[0] += 0.01
    elif fault == "batch":
        energy += 0.1 * n_structures
    elif fault == "jitter":
        forces += 0.01 * np.sin(1e7 * atoms.positions)
    elif fault == "extensivity":
        energy += 0.01 * len(atoms) ** 1.5
    elif fault == "slope":
        forces *= 1.2
    return Labels(energy, forces, labels.stress)


def run(fault: str) -> SelfCheck:
    teacher = Faulty("angular", device="cpu")
    teacher.fault = fault
    return check_teacher(teacher, make_structures())


def test_an_exact_teacher_passes() -> None:
    result = run("")
    assert result.noise_force < 1e-8
    assert max(result.rotation_energy, result.translation_energy, result.permutation_energy) < 1e-10
    assert result.rotation_force < 1e-10
    assert result.batch_energy < 1e-12
    assert result.extensivity_energy < 1e-10
    assert result.conservative
    assert result.slope_mismatch < 0.005
    assert result.n_structures == 2
    assert json.loads(json.dumps(result.to_dict()))["conservative"] is True


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ("rotation", "rotation_energy"),
        ("translation", "translation_energy"),
        ("permutation", "permutation_force"),
        ("batch", "batch_energy"),
        ("jitter", "jitter_force"),
        ("extensivity", "extensivity_energy"),
        ("slope", "slope_mismatch"),
    ],
)
def test_each_fault_is_found(fault: str, field: str) -> None:
    sound, faulty = run(""), run(fault)
    assert getattr(faulty, field) > 1e-3
    assert getattr(faulty, field) > 10 * getattr(sound, field)
    if fault in (
        "batch",
        "extensivity",
        "slope",
    ):  # the others spoil either forces or energies as well
        assert faulty.conservative == (fault != "slope")


def test_what_was_not_measured_is_none() -> None:
    record = check_teacher(
        load_teacher("analytic:morse", device="cpu"), [molecule("H2O")]
    ).to_dict()
    assert record["extensivity_energy"] is None
    assert record["batch_energy"] is not None


def test_structures_are_needed_and_left_alone() -> None:
    teacher = load_teacher("analytic:morse", device="cpu")
    with pytest.raises(DataError, match="no structures"):
        check_teacher(teacher, [])
    atoms = bulk("Cu")
    before = atoms.copy()
    check_teacher(teacher, [atoms])
    assert atoms == before


def test_a_real_teacher_is_consistent() -> None:
    pytest.importorskip("sevenn")
    result = check_teacher(load_teacher("sevennet", device="cpu"), [bulk("Cu", cubic=True)])
    assert result.conservative
    assert result.noise_force < 1e-3
    assert result.rotation_energy < 1e-4
