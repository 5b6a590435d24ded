"""FastFFCalculator: ASE's contract, life cycle, bad input, compatibility arguments, and ASE's own algorithms on it."""

from __future__ import annotations

import copy
import io
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
from ase.calculators.calculator import PropertyNotImplementedError
from ase.constraints import FixAtoms
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from untrained import make_student

from fastff.calculator import FastFFCalculator
from fastff.checkpoint import load_model, save_model
from fastff.errors import DataError, ModelFileError, UnsupportedElementError, UsageError
from fastff.models import Student
from fastff.predict import predict

ELEMENTS = (1, 8, 29)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "student.safetensors"
    save_model(path, make_student("m1", ELEMENTS), {"teacher": {"name": "none"}})
    return path


@pytest.fixture
def calculator(model_path: Path) -> FastFFCalculator:
    return FastFFCalculator(model_path, dtype="float64")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of atoms of every evaluation of a student."""
    seen: list[int] = []
    forward = Student.forward

    def count(self: Student, graph: Any) -> Any:
        seen.append(graph.n_atoms)
        return forward(self, graph)

    monkeypatch.setattr(Student, "forward", count)
    return seen


def expect(calculator: FastFFCalculator, atoms: Atoms) -> None:
    """The calculator says what prediction from scratch says."""
    labels = predict(calculator.student, [atoms])[0]
    assert atoms.get_potential_energy() == pytest.approx(labels.energy, abs=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), labels.forces, rtol=0, atol=1e-11)
    if labels.stress is not None:
        np.testing.assert_allclose(atoms.get_stress(), labels.stress, rtol=0, atol=1e-12)


class TestResults:
    def test_kinds_and_shapes(self, calculator: FastFFCalculator, copper: Atoms) -> None:
        copper.calc = calculator
        assert type(copper.get_potential_energy()) is float
        results = calculator.results
        assert set(results) == {"energy", "free_energy", "forces", "stress", "energies"}
        assert type(results["free_energy"]) is float
        assert results["free_energy"] == results["energy"]
        assert results["forces"].shape == (4, 3)
        assert results["forces"].dtype == np.float64
        assert results["stress"].shape == (6,)
        assert results["energies"].shape == (4,)
        assert copper.get_potential_energies().sum() == pytest.approx(results["energy"])
        assert copper.get_stress(voigt=False).shape == (3, 3)

    def test_same_as_predict(self, calculator: FastFFCalculator, copper: Atoms) -> None:
        copper.calc = calculator
        expect(calculator, copper)

    def test_one_pass_for_everything(
        self, calculator: FastFFCalculator, copper: Atoms, passes: list[int]
    ) -> None:
        copper.calc = calculator
        for _ in range(2):
            copper.get_forces(), copper.get_stress(), copper.get_potential_energy()
            copper.get_potential_energies()
            copper.get_potential_energy(force_consistent=True)
        assert passes == [4]

    def test_export_properties(self, calculator: FastFFCalculator, copper: Atoms) -> None:
        copper.calc = calculator
        copper.get_forces()
        assert set(calculator.export_properties()) == {*calculator.results, "natoms"}
        text = io.StringIO()
        write(text, copper, format="extxyz")
        text.seek(0)
        back = read(text, format="extxyz")
        np.testing.assert_allclose(back.get_forces(), copper.get_forces(), atol=1e-7)

    def test_single_atom(self, calculator: FastFFCalculator) -> None:
        e0 = float(calculator.student.composition_energies[2])
        alone, boxed = Atoms("Cu"), Atoms("Cu", cell=[50, 50, 50], pbc=True)
        for atoms in (alone, boxed):
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(e0, abs=1e-10)
            np.testing.assert_array_equal(atoms.get_forces(), np.zeros((1, 3)))
        np.testing.assert_array_equal(boxed.get_stress(), np.zeros(6))
        with pytest.raises(PropertyNotImplementedError):
            alone.get_stress()

    def test_no_stress_without_a_volume(
        self, calculator: FastFFCalculator, slab: Atoms, water: Atoms
    ) -> None:
        for atoms in (slab, water):
            atoms.calc = calculator
            atoms.get_forces()
            assert "stress" not in calculator.results
            with pytest.raises(PropertyNotImplementedError):
                atoms.get_stress()
            expect(calculator, atoms)

    @pytest.mark.parametrize("skin", [0.0, 1.0])
    def test_stress_of_a_slab_in_a_box_uses_the_volume_of_its_cell(
        self, model_path: Path, slab: Atoms, skin: float
    ) -> None:
        slab.cell[2] = [0, 0, 20.0]
        periodic = slab.copy()
        periodic.pbc = True
        slab.calc = FastFFCalculator(model_path, dtype="float64", skin=skin)
        periodic.calc = FastFFCalculator(model_path, dtype="float64", skin=skin)
        np.testing.assert_allclose(slab.get_stress(), periodic.get_stress(), rtol=0, atol=1e-13)
        assert abs(slab.get_stress()[0]) > 1e-6

    def test_unknown_property(self, calculator: FastFFCalculator, water: Atoms) -> None:
        water.calc = calculator
        with pytest.raises(PropertyNotImplementedError):
            water.get_dipole_moment()
        with pytest.raises(PropertyNotImplementedError):
            calculator.calculate(water, ["hessian"])
        assert calculator.results == {}

    def test_calculate_with_defaults(self, calculator: FastFFCalculator, water: Atoms) -> None:
        calculator.calculate(water)
        assert set(calculator.results) == {"energy", "free_energy", "forces", "energies"}
        with pytest.raises(UsageError, match="no atoms"):
            FastFFCalculator(calculator.student, dtype="float64").calculate()

    def test_finite_differences_by_ase(self, calculator: FastFFCalculator, copper: Atoms) -> None:
        from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

        copper.calc = calculator
        forces, stress = copper.get_forces(), copper.get_stress()
        np.testing.assert_allclose(
            calculate_numerical_forces(copper, eps=1e-4), forces, rtol=0, atol=1e-6
        )
        np.testing.assert_allclose(
            calculate_numerical_stress(copper, eps=1e-5), stress, rtol=0, atol=1e-6
        )

    def test_results_are_the_users_own(self, calculator: FastFFCalculator, copper: Atoms) -> None:
        copper.calc = calculator
        forces = copper.get_forces()
        forces[:] = 7.0
        assert abs(copper.get_forces()).max() < 7.0


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


class TestElectronicState:
    @pytest.mark.parametrize("key", ["charge", "spin"])
    def test_a_change_in_info_is_noticed(
        self, key: str, calculator: FastFFCalculator, water: Atoms, passes: list[int]
    ) -> None:
        water.calc = calculator
        energy = water.get_potential_energy()
        water.info[key] = 2
        with pytest.raises(UsageError, match="2 requested"):
            water.get_potential_energy()
        assert calculator.results == {}
        with pytest.raises(UsageError):
            water.get_forces()
        water.info[key] = 1 if key == "spin" else 0
        assert water.get_potential_energy() == energy
        water.info["unrelated"] = "text"
        water.get_forces()
        assert len(passes) == 2

    def test_initial_charges_count_unless_something_else_says(
        self, calculator: FastFFCalculator, water: Atoms
    ) -> None:
        water.set_initial_charges([-0.8, 0.4, 0.4])
        water.calc = calculator
        water.get_forces()
        water.set_initial_charges([1.0, 0.0, 0.0])
        with pytest.raises(UsageError, match="total charge 1 requested"):
            water.get_forces()
        water.info["charge"] = 0
        water.get_forces()

    def test_constructor_wins(self, calculator: FastFFCalculator, water: Atoms) -> None:
        water.info.update(charge=3, spin=5)
        water.calc = FastFFCalculator(calculator.student, dtype="float64", charge=0, spin=1)
        water.get_forces()
        water.info.clear()
        water.calc = FastFFCalculator(calculator.student, dtype="float64", charge=1)
        with pytest.raises(UsageError, match="distilled for neutral systems"):
            water.get_forces()

    @pytest.mark.parametrize("value", ["x", [1, 2], {}])
    @pytest.mark.parametrize("key", ["charge", "spin"])
    def test_nonsense_is_named(
        self, key: str, value: Any, calculator: FastFFCalculator, water: Atoms
    ) -> None:
        water.calc = calculator
        water.get_forces()
        water.info[key] = value
        with pytest.raises(UsageError, match=f"{key} .* is not a number"):
            water.get_forces()

    def test_absent_values_mean_neutral(self, calculator: FastFFCalculator, water: Atoms) -> None:
        water.info.update(charge=None, spin=None)
        water.calc = calculator
        water.get_forces()


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
            (Atoms("Cu", cell=[0.05, 3, 3], pbc=True), DataError, "0.05 Å apart"),
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


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "dtype"),
        [
            ({}, torch.float32),
            ({"dtype": "float64"}, torch.float64),
            ({"precision": "float32-high"}, torch.float32),
            ({"precision": "float32-highest"}, torch.float32),
            ({"precision": "float64"}, torch.float64),
            ({"use_float64": True}, torch.float64),
            ({"use_float64": False}, torch.float32),
        ],
    )
    def test_dtypes_of_other_calculators(
        self, arguments: dict[str, Any], dtype: torch.dtype, model_path: Path
    ) -> None:
        calculator = FastFFCalculator(model_path, **arguments)
        assert calculator.student.dtype == dtype
        assert calculator.parameters["dtype"] == str(dtype).removeprefix("torch.")

    def test_meaningless_arguments_warn_once(self, model_path: Path) -> None:
        names = [
            "atoms_adapter",
            "system_config",
            "edge_method",
            "max_num_neighbors",
            "half_supercell",
            "conservative",
            "gpu_preprocessing",
            "verbose",
            "energy_terms",
            "matmul_prec",
            "atoms",
        ]
        with pytest.warns(UserWarning, match="atoms_adapter.*ignored") as seen:
            FastFFCalculator(model_path, **dict.fromkeys(names))
        assert len(seen) == 1
        assert all(name in str(seen[0].message) for name in names)
        assert seen[0].filename == __file__

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"cutof": 5}, "unknown argument 'cutof'; FastFFCalculator takes model, device"),
            ({"dtype": "float16"}, "dtype 'float16' is not one of float32, float64"),
            ({"skin": -1.0}, "skin -1.0 Å must not be negative"),
            ({"skin": float("nan")}, "skin nan"),
            (
                {"close_contacts": "maybe"},
                "close_contacts 'maybe' is not one of raise, warn, ignore",
            ),
            ({"device": "abacus"}, "device 'abacus'"),
        ],
    )
    def test_wrong_arguments(
        self, arguments: dict[str, Any], message: str, model_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=message):
            FastFFCalculator(model_path, **arguments)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_where_there_is_none(self, model_path: Path) -> None:
        with pytest.raises(UsageError, match="use device='cpu'"):
            FastFFCalculator(model_path, device="cuda")
        assert FastFFCalculator(model_path).student.device.type == "cpu"
        assert FastFFCalculator(model_path, device="auto").student.device.type == "cpu"

    def test_directory(self, model_path: Path, tmp_path: Path, water: Atoms) -> None:
        water.calc = FastFFCalculator(model_path, directory=str(tmp_path))
        water.get_forces()
        assert not list(tmp_path.iterdir())


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
            assert relaxation.run(fmax=2e-3, steps=200)
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
