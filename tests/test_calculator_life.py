"""FastFFCalculator: life cycle, bad input, and ASE's own algorithms on it."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from calculators import expect

from fastff.calculator import FastFFCalculator
from fastff.checkpoint import load_model
from fastff.errors import DataError, ModelFileError, UnsupportedElementError
from fastff.models import Student


class TestLifeCycle:
    def test_different_structures_in_turn(
        self, calculator: FastFFCalculator, copper: Atoms, slab: Atoms, water: Atoms
    ) -> None:
        oxide = copper.copy()
        oxide.numbers[0] = 8
        flipped = copper.copy()
        flipped.pbc = (True, False, True)
        for atoms in (copper, oxide, flipped, slab, water, Atoms("Cu"), copper):
            atoms.calc = calculator
            expect(calculator, atoms)

    @pytest.mark.parametrize("skin", [0.0, 1.0])
    def test_each_change_alone(self, model_path: Path, copper: Atoms, skin: float) -> None:
        calculator = FastFFCalculator(model_path, dtype="float64", skin=skin)
        copper.calc = calculator
        expect(calculator, copper)
        copper.set_cell(copper.cell.array * 1.01, scale_atoms=False)
        expect(calculator, copper)
        copper.positions[1] += 0.1
        expect(calculator, copper)
        copper.numbers[0] = 8
        expect(calculator, copper)
        copper.pbc[2] = False
        expect(calculator, copper)
        copper.pbc[2] = True
        copper.positions += 40.0
        copper.wrap()
        expect(calculator, copper)
        del copper[2]
        expect(calculator, copper)
        copper.rattle(0.05, seed=1)
        copper.set_cell(copper.cell.array @ (np.eye(3) + 0.05), scale_atoms=True)
        expect(calculator, copper)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_skin_changes_no_bit(self, model_path: Path, copper: Atoms, dtype: str) -> None:
        copper = copper.repeat(2)
        skinned = FastFFCalculator(model_path, dtype=dtype, skin=1.0)
        direct = FastFFCalculator(model_path, dtype=dtype, skin=0.0)
        rng = np.random.default_rng(0)
        for _ in range(8):
            skinned.calculate(copper)
            direct.calculate(copper)
            assert skinned.results["energy"] == direct.results["energy"]
            np.testing.assert_array_equal(skinned.results["forces"], direct.results["forces"])
            np.testing.assert_array_equal(skinned.results["stress"], direct.results["stress"])
            copper.positions += rng.normal(scale=0.06, size=copper.positions.shape)
            copper.set_cell(copper.cell.array * 0.99, scale_atoms=True)
        assert 1 < skinned._cache.n_builds < direct._cache.n_builds == 8

    def test_magnetic_moments_are_ignored(
        self, calculator: FastFFCalculator, copper: Atoms, passes: list[int]
    ) -> None:
        copper.calc = calculator
        copper.get_forces()
        copper.set_initial_magnetic_moments([1.0] * 4)
        copper.get_forces()
        copper.set_initial_magnetic_moments(None)
        copper.set_initial_magnetic_moments(np.ones((4, 3)))
        copper.get_forces()
        assert passes == [4]

    def test_constraints_are_applied_by_ase_alone(
        self, calculator: FastFFCalculator, copper: Atoms
    ) -> None:
        copper.set_constraint(FixAtoms([0]))
        copper.calc = calculator
        assert not copper.get_forces()[0].any()
        assert copper.get_forces(apply_constraint=False)[0].any()
        assert calculator.results["forces"][0].any()

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
    def test_copies(self, duplicate: Any, calculator: FastFFCalculator, copper: Atoms) -> None:
        copper.calc = calculator
        energy = copper.get_potential_energy()
        other = duplicate(calculator)
        assert other._cache.n_builds == 0
        assert other.student is not calculator.student
        twin = copper.copy()
        twin.calc = other
        assert twin.get_potential_energy() == energy
        twin.rattle(0.1, seed=3)
        assert twin.get_potential_energy() != energy
        expect(other, twin)
        assert copper.get_potential_energy() == energy
        again = copy.deepcopy(copper)
        again.calc = duplicate(copper.calc)
        assert again.get_potential_energy() == energy

    def test_shallow_copies_have_buffers_of_their_own(
        self, calculator: FastFFCalculator, copper: Atoms
    ) -> None:
        copper.calc = calculator
        energy = copper.get_potential_energy()
        other = copy.copy(calculator)
        assert other.student is calculator.student
        assert other.evaluator is not calculator.evaluator
        assert other._cache.n_builds == 0
        twin = copper.copy()
        twin.rattle(0.1, seed=3)
        twin.calc = other
        twin.get_forces()
        other.parameters["note"] = 1
        assert copper.get_potential_energy() == energy == calculator.results["energy"]
        assert "note" not in calculator.parameters
        expect(other, twin)
        expect(calculator, copper)

    def test_pickle_goes_to_another_process(
        self, calculator: FastFFCalculator, copper: Atoms, tmp_path: Path
    ) -> None:
        copper.calc = calculator
        copper.get_forces()
        (tmp_path / "c.pickle").write_bytes(pickle.dumps((calculator, copper.copy())))
        script = (
            "import pickle; "
            f"c, a = pickle.load(open({str(tmp_path / 'c.pickle')!r}, 'rb')); a.calc = c; "
            "a.positions[0] += 0.01; print(a.get_potential_energy().hex())"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
        )
        copper.positions[0] += 0.01
        assert done.stdout.strip() == copper.get_potential_energy().hex()

    def test_class_attributes_stay(self, calculator: FastFFCalculator) -> None:
        calculator.implemented_properties.remove("stress")
        assert "stress" in FastFFCalculator.implemented_properties
        assert "stress" in FastFFCalculator(calculator.student).implemented_properties

    def test_single_and_double_side_by_side(self, model_path: Path, copper: Atoms) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            pair = [FastFFCalculator(model_path, dtype=d) for d in ("float32", "float64")]
            energies = []
            for calculator in pair * 2:
                copper.calc = calculator
                copper.rattle(0.0)
                calculator.reset()
                energies.append(copper.get_potential_energy())
        finally:
            torch.set_default_dtype(torch.float32)
        assert [c.student.dtype for c in pair] == [torch.float32, torch.float64]
        assert energies[:2] == energies[2:]
        assert 0 < abs(energies[0] - energies[1]) < 1e-5
        plain = FastFFCalculator(model_path)
        plain.calculate(copper)
        assert plain.results["energy"] == energies[0]

    def test_a_students_dtype_is_left_alone(self, model_path: Path, copper: Atoms) -> None:
        student = load_model(model_path, dtype=torch.float64)
        single = FastFFCalculator(student)
        assert student.dtype == torch.float64
        double = FastFFCalculator(student, dtype="float64")
        assert double.student is student
        for calculator in (single, double):
            calculator.calculate(copper)
        assert single.results["energy"] != double.results["energy"]

    def test_shared_in_a_nudged_elastic_band(
        self, calculator: FastFFCalculator, copper: Atoms
    ) -> None:
        final = copper.copy()
        final.positions[0] += 0.3
        images = [copper, *[copper.copy() for _ in range(3)], final]
        for image in images:
            image.calc = calculator
        band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
        band.interpolate()
        forces = band.get_forces()
        own = [copper, *[image.copy() for image in images[1:-1]], final]
        for image in own:
            image.calc = copy.deepcopy(calculator)
        np.testing.assert_allclose(
            forces, NEB(own, method="improvedtangent").get_forces(), rtol=0, atol=1e-10
        )
        assert abs(forces).max() > 1e-3

    def test_database(self, calculator: FastFFCalculator, copper: Atoms, tmp_path: Path) -> None:
        copper.calc = calculator
        energy = copper.get_potential_energy()
        with connect(tmp_path / "a.db") as database:
            database.write(copper)
            row = database.get(1)
        assert row.calculator == "fastff"
        assert row.energy == energy
        assert row.calculator_parameters["model_sha256"] == calculator.student.header["sha256"]
        assert json.loads(json.dumps(calculator.todict())) == calculator.todict()
        assert calculator.name == "fastff"


class TestBadInput:
    @pytest.mark.parametrize(
        ("atoms", "kind", "message"),
        [
            (Atoms(), DataError, "no atoms"),
            (Atoms("Xe"), UnsupportedElementError, r"Xe \(indices 0\).*knows only H, O, Cu"),
            (Atoms("X"), UnsupportedElementError, "atomic number 0"),
            (Atoms("OCu", [[0, 0, 0], [0, np.inf, 0]]), DataError, "position of atom 1"),
            (Atoms("Cu", cell=[3, 3, np.nan], pbc=True), DataError, "cell vector c is not finite"),
            (Atoms("Cu", pbc=True), DataError, "cell vector a, b, c is zero but pbc is True"),
            (Atoms("Cu", cell=[3, 0, 3], pbc=True), DataError, "cell vector b is zero"),
            (Atoms("Cu", cell=[[3, 0, 0]] * 3, pbc=True), DataError, "linearly dependent"),
            (Atoms("Cu2"), DataError, "atoms 0 and 1 are 0 Å apart"),
            (Atoms("Cu", cell=[0.09, 3, 3], pbc=True), DataError, "0.09 Å apart"),
            (Atoms("Cu", cell=[0.05, 3, 3], pbc=True), DataError, "0.05 Å thin"),
            (Atoms("Cu", cell=[0.01, 0.01, 0.01], pbc=True), DataError, "cell .*0.01.* images"),
        ],
    )
    def test_refused_and_results_left_empty(
        self,
        atoms: Atoms,
        kind: type[Exception],
        message: str,
        calculator: FastFFCalculator,
        copper: Atoms,
    ) -> None:
        calculator.calculate(copper)
        with pytest.raises(kind):
            calculator.calculate(atoms)
        assert calculator.results == {}
        atoms = atoms.copy()
        atoms.calc = calculator
        for _ in range(2):
            with pytest.raises(kind, match=message) as caught:
                atoms.get_potential_energy()
            assert "\n" not in str(caught.value)
            assert calculator.results == {}
        copper.calc = calculator
        expect(calculator, copper)

    def test_close_contacts(self, calculator: FastFFCalculator) -> None:
        near = Atoms("Cu2", [[0, 0, 0], [0.09, 0, 0]])
        for mode in ("warn", "ignore"):
            near.calc = FastFFCalculator(calculator.student, dtype="float64", close_contacts=mode)
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                energy = near.get_potential_energy()
            assert np.isfinite(energy)
            assert np.isfinite(near.get_forces()).all()
            assert len(seen) == (mode == "warn")
        near.positions[1] = 0.0
        with pytest.raises(DataError, match="not finite"):
            near.get_potential_energy()
        assert near.calc.results == {}

    def test_failure_inside_the_model_leaves_nothing(
        self, calculator: FastFFCalculator, copper: Atoms, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copper.calc = calculator
        energy = copper.get_potential_energy()
        copper.positions[0] += 0.01

        def fail(*_: Any) -> None:
            raise RuntimeError("device lost")

        with monkeypatch.context() as patch:
            patch.setattr(Student, "forward", fail)
            with pytest.raises(RuntimeError, match="device lost"):
                copper.get_forces()
        assert calculator.results == {}
        assert copper.get_potential_energy() != energy
        expect(calculator, copper)

    def test_atoms_far_outside_and_integer_positions(self, calculator: FastFFCalculator) -> None:
        atoms = Atoms("Cu2", positions=np.array([[0, 0, 0], [2, 1, 1]]), cell=[4, 4, 4], pbc=True)
        atoms.calc = calculator
        energy = atoms.get_potential_energy()
        atoms.positions += [4000.0, -4000.0, 400.0]
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-9)

    @pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04."])
    def test_model_files_that_are_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m").write_bytes(content)
        with pytest.raises(ModelFileError):
            FastFFCalculator(tmp_path / "m")
        with pytest.raises(ModelFileError, match="no model file"):
            FastFFCalculator(str(tmp_path / "absent"))


def heat(atoms: Atoms, temperature: float = 300.0) -> None:
    """Draw momenta at ``temperature``, K."""
    width = np.sqrt(atoms.get_masses() * units.kB * temperature)
    drawn = np.random.default_rng(4).normal(size=(len(atoms), 3)) * width[:, None]
    atoms.set_momenta(drawn - drawn.mean(axis=0))


class TestAlgorithms:
    """ASE's own algorithms, on forces of an untrained student that energy conservation still binds."""

    def test_relaxation_of_a_cell(self, calculator: FastFFCalculator) -> None:
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=2)
        atoms.calc = calculator
        before = atoms.get_potential_energy()
        with BFGS(FrechetCellFilter(atoms), logfile=None) as relaxation:
            assert relaxation.run(
                fmax=2e-3, steps=600
            )  # far: an untrained surface is rough, 209 steps
        assert atoms.get_potential_energy() < before
        assert abs(atoms.get_forces()).max() < 2e-3
        assert abs(atoms.get_stress()).max() < 1e-3

    def test_dynamics_conserve_energy(self, calculator: FastFFCalculator) -> None:
        atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
        atoms.calc = calculator
        changes = {}
        for step in (2.0, 1.0):
            copied = atoms.copy()
            copied.calc = calculator
            heat(copied)
            energies: list[float] = []
            dynamics = VelocityVerlet(copied, step * units.fs)
            dynamics.attach(lambda a=copied, e=energies: e.append(a.get_total_energy()))
            dynamics.run(int(60 / step))
            changes[step] = np.std(energies)
        assert changes[2.0] < 1e-3
        assert changes[1.0] < changes[2.0] / 3.0, "not of second order in the time step"

    def test_langevin_dynamics(self, calculator: FastFFCalculator) -> None:
        atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
        atoms.calc = calculator
        heat(atoms)
        dynamics = Langevin(
            atoms,
            2 * units.fs,
            temperature_K=300,
            friction=0.02 / units.fs,
            fixcm=False,
            rng=np.random.default_rng(1),
        )
        dynamics.run(60)
        assert 50 < atoms.get_temperature() < 1000
        assert calculator._cache.n_builds < 30
        expect(calculator, atoms)


def test_molecules_without_cell_translate_freely(calculator: FastFFCalculator) -> None:
    atoms = molecule("H2O")
    atoms.calc = calculator
    forces = atoms.get_forces()
    atoms.positions += 40.0
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-11)
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-12)
    torque = np.cross(atoms.positions, forces).sum(axis=0)
    np.testing.assert_allclose(torque, 0.0, atol=1e-10)
