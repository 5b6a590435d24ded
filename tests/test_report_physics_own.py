"""Each side at its own relaxed cell, in its own supercell and its own run.

The student is the teacher with all lengths 3 % larger, at the same energies: volumes, moduli and frequencies follow by
hand, and only where each side is measured at the minimum that is its own.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from fastff.distill.cells import build_supercell
from fastff.labels import Labels
from fastff.models import build_student, configure_student
from fastff.report.physics import crystal as crystals
from fastff.report.physics import motion
from fastff.report.physics.derive import derive_quantities
from fastff.report.physics.material import describe_material
from fastff.report.physics.sampling import make_runs, plan_runs
from fastff.report.physics.schedule import Laboratory
from fastff.report.physics.side import Side
from tests.test_sampling import EmtTeacher

LARGER = 1.03


def label_stretched(structures, factor=1.0):
    """EMT of the structure with all lengths divided by ``factor``; energies as they are."""
    found = []
    for atoms in structures:
        image = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        image.set_cell(atoms.cell / factor, scale_atoms=True)
        image.calc = EMT()
        energy, forces, stress = (
            image.get_potential_energy(),
            image.get_forces(),
            image.get_stress(),
        )
        found.append(Labels(energy, forces / factor, stress / factor**3))
    return found


@pytest.fixture(scope="module")
def crystal():
    student = partial(label_stretched, factor=LARGER)
    sides = Side("teacher", label_stretched, {}), Side("student", student, {})
    return crystals.Crystal(describe_material(bulk("Cu")), *sides)


def derive(item):
    return {q.name: (q.teacher, q.student) for q in derive_quantities(item)}


def test_cells_are_those_of_each_side(crystal):
    sides = (crystal.teacher, crystal.student)
    small, large = (crystal.relax(side).get_volume() for side in sides)
    assert large / small == pytest.approx(LARGER**3, rel=1e-3)


def test_elastic_constants_are_those_of_the_own_cell(crystal):
    for name, (teacher, student) in derive(crystals.measure_elastic(crystal)).items():
        assert student == pytest.approx(teacher / LARGER**3, rel=5e-3), name


def test_vacancies_are_those_of_the_own_cell(crystal):
    ((teacher, student),) = derive(crystals.measure_vacancies(crystal)).values()
    assert teacher > 0.5
    assert student == pytest.approx(teacher, abs=5e-3)


def test_frequencies_are_those_of_the_own_cell(crystal):
    pytest.importorskip("phonopy")
    found = derive(crystals.measure_phonons(crystal))
    for name in ("highest frequency", "mean frequency"):
        assert found[name][1] == pytest.approx(found[name][0] / LARGER, rel=5e-3), name


@pytest.mark.parametrize(
    "matrix", [[[1, 0, 0], [1, 2, 0], [0, 0, 1]], [[2, 1, 0], [0, 1, 1], [0, 0, 1]]]
)
def test_displacements_are_in_the_supercell_that_is_named(matrix):
    """Rows are its vectors; phonopy has them as columns."""
    pytest.importorskip("phonopy")
    unit = bulk("Cu", "hcp", a=2.5, c=4.1)
    seen = []

    def label(structures):
        seen.extend(structures)
        return label_stretched(structures)

    crystals._compute_bands(Side("teacher", label, {}), unit, np.array(matrix), np.zeros((1, 3)))
    assert seen
    for image in seen:
        assert len(image) == len(unit) * round(np.linalg.det(matrix))
        assert image.cell.array == pytest.approx(np.array(matrix) @ unit.cell.array)


def test_both_sides_run_and_each_its_own_dynamics(monkeypatch):
    monkeypatch.setattr(motion, "LEAST_BLOCK", 0.02)
    torch.manual_seed(0)
    model = build_student(configure_student("m1", (29,), cutoff=4.0))
    teacher = EmtTeacher()
    labels = []

    def label(structures):
        found = teacher.label(structures)
        labels.extend(
            (a.positions.copy(), f.forces) for a, f in zip(structures, found, strict=True)
        )
        return found

    lab = Laboratory(
        Side("teacher", label, {}), Side("student", teacher.label, {}), "auto", 60.0,
        lambda message, done, total: None,
    )  # fmt: skip
    material = describe_material(bulk("Cu"))
    runs = make_runs(lab, material, model, (50.0, 50.0))
    monkeypatch.setattr(runs, "estimate_own", lambda box: 1e-3)
    plan_runs(lab, material, runs)[0].measure(4.0)
    assert set(runs.sides) == {"teacher", "student"}
    for role, run in runs.sides.items():
        known = [
            any(np.allclose(image.positions, positions, atol=1e-9) for positions, _ in labels)
            for image in run.replicas[0]
        ]
        assert all(known) if role == "teacher" else not any(known), role


def test_runs_begin_with_twice_the_heat():
    """Half of it goes into the positions of what starts at rest."""
    box = build_supercell(bulk("Cu", cubic=True), 16.0, 600).atoms
    heated = motion.Dynamics(box, 300.0, 2.0, 100).heat(0)
    assert heated.get_temperature() == pytest.approx(600.0, rel=0.15)
