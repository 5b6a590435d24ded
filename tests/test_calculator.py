"""FastFFCalculator: ASE's contract on results, charge and spin, arguments of other calculators."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import read, write
from calculators import expect
from untrained import make_student

from fastff.calculator import FastFFCalculator
from fastff.errors import DataError, UsageError
from fastff.structures import measure_sound_cell


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

    @pytest.mark.parametrize("value", ["x", [1, 2], {}, float("nan"), float("inf")])
    @pytest.mark.parametrize("key", ["charge", "spin"])
    def test_nonsense_is_named(
        self, key: str, value: Any, calculator: FastFFCalculator, water: Atoms
    ) -> None:
        water.calc = calculator
        water.get_forces()
        water.info[key] = value
        with pytest.raises(UsageError, match=f"{key} .* is not a number"):
            water.get_forces()

    @pytest.mark.parametrize("key", ["charge", "spin"])
    def test_nonsense_to_the_constructor(self, key: str, calculator: FastFFCalculator) -> None:
        with pytest.raises(UsageError, match=f"{key} nan is not a number"):
            FastFFCalculator(calculator.student, **{key: float("nan")})

    def test_absent_values_mean_neutral(self, calculator: FastFFCalculator, water: Atoms) -> None:
        water.info.update(charge=None, spin=None)
        water.calc = calculator
        water.get_forces()


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
            ({"skin": float("inf")}, "skin inf"),
            (
                {"close_contacts": "maybe"},
                "close_contacts 'maybe' is not one of raise, warn, ignore",
            ),
            ({"device": "abacus"}, "device 'abacus'"),
            ({"device": "mps"}, "device 'mps' is not supported.*use 'cpu' or 'cuda'"),
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


def test_cells_are_measured_or_looked_at_again(rng: np.random.Generator) -> None:
    """The quick measure agrees with ASE's volume, and declines cells that are nearly flat, zero or not finite."""
    for _ in range(20):
        rows = rng.normal(size=(3, 3)) + np.diag([4.0, -5.0, 6.0])
        assert measure_sound_cell(rows) == pytest.approx(Atoms(cell=rows).cell.volume)
    flat = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 1e-4]])
    broken = np.diag([1.0, np.nan, 1.0])
    assert measure_sound_cell(flat) is None
    assert measure_sound_cell(np.zeros((3, 3))) is None
    assert measure_sound_cell(broken) is None


def test_a_cell_that_becomes_flat_is_refused(copper: Atoms) -> None:
    copper.calc = FastFFCalculator(make_student("m1", (29,)), device="cpu")
    copper.get_forces()
    copper.set_cell(copper.cell.array * 1.01)
    copper.get_forces()
    copper.set_cell(copper.cell.array * [[1], [1], [0]])
    with pytest.raises(DataError, match="cell vector c is zero"):
        copper.get_forces()
