"""Students in TorchSim: its own validators, batched relaxations and dynamics."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.optimize import FIRE
from md_models import make_copper
from untrained import make_student

from fastff.calculator import FastFFCalculator
from fastff.checkpoint import save_model
from fastff.errors import UnsupportedElementError, UsageError
from fastff.models import Student

pytest.importorskip("torch_sim", reason="torch-sim-atomistic is not installed (extra torchsim)")

import torch_sim as ts
from torch_sim.models.interface import validate_model_outputs

from fastff.integrations.torchsim import FastFFModel

CPU = torch.device("cpu")
ELEMENTS = (1, 6, 8, 12, 14, 20, 22, 26, 29)


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student("m2", ELEMENTS)


@pytest.fixture(scope="module")
def copper_student() -> Student:
    return make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8)).double()


def make_crystals() -> list[Atoms]:
    crystals = [
        bulk("Cu", cubic=True),
        bulk("Cu", cubic=True).repeat((2, 1, 1)),
        bulk("Cu").repeat(2),
    ]
    for k, atoms in enumerate(crystals):
        atoms.rattle(0.08, seed=k)
    return crystals


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_its_own_validator(student: Student, precision: str, dtype: torch.dtype) -> None:
    model = FastFFModel(student, device="cpu", dtype=dtype, precision=precision)
    assert model.memory_scales_with == "n_atoms_x_density"
    validate_model_outputs(model, CPU, dtype)


def test_all_its_structures_as_the_calculator_sees_them(student: Student) -> None:
    testing = pytest.importorskip("torch_sim.testing", reason="TorchSim before 0.4 has no testing")
    model = FastFFModel(student, device="cpu", precision="float64")
    calculator = FastFFCalculator(student, device="cpu", dtype="float64")
    seen = []
    for name, make in testing.SIMSTATE_GENERATORS.items():
        state = make(CPU, torch.float64)
        if not set(state.atomic_numbers.tolist()) <= set(ELEMENTS):
            continue
        model.compute_stress = bool(torch.as_tensor(state.pbc).all())
        testing.assert_model_calculator_consistency(model, calculator, state)
        seen.append(name)
    assert len(seen) > 8


def test_results(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, student, {"teacher": {"name": "none"}})
    model = FastFFModel(path, device="cpu")
    assert model.student.dtype == torch.float32
    assert model.explain().path == "torch"
    crystals = make_crystals()
    state = ts.io.atoms_to_state(crystals, CPU, torch.float64)
    found = model(state)
    calculator = FastFFCalculator(student, device="cpu")
    for k, atoms in enumerate(crystals):
        atoms.calc = calculator
        assert float(found["energy"][k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        forces = found["forces"][state.system_idx == k]
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=2e-5)
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(found["stress"][k], stress, rtol=0, atol=1e-6)
    assert all(value.dtype == torch.float64 for value in found.values())
    model.compute_forces = model.compute_stress = False
    assert set(model(state)) == {"energy"}
    loose = ts.io.atoms_to_state([molecule("CH4")], CPU, torch.float64)
    model.compute_stress = True
    assert model(loose)["stress"].isnan().all()
    fields = {name: getattr(state, name) for name in ("positions", "cell", "pbc", "atomic_numbers")}
    as_mapping = model({**fields, "system_idx": state.system_idx})
    assert torch.equal(as_mapping["energy"], found["energy"])
    twin = copy.deepcopy(model)
    assert torch.equal(twin(state)["energy"], found["energy"])


def test_refusals(student: Student) -> None:
    with pytest.raises(UsageError, match=r"dtype torch\.float16"):
        FastFFModel(student, device="cpu", dtype=torch.float16)
    with pytest.raises(UsageError, match="precision 'half'"):
        FastFFModel(student, device="cpu", precision="half")
    state = ts.io.atoms_to_state([bulk("Au")], CPU, torch.float64)
    with pytest.raises(UnsupportedElementError, match="Au"):
        FastFFModel(student, device="cpu")(state)


def choose_flavor(kind: str):
    """Optimizers and integrators by the names of either generation."""
    if hasattr(ts, "Optimizer"):
        return {
            "fire": ts.Optimizer.fire,
            "nve": ts.Integrator.nve,
            "nvt": ts.Integrator.nvt_langevin,
        }[kind]
    return {
        "fire": ts.optimizers.fire,
        "nve": ts.integrators.nve,
        "nvt": ts.integrators.nvt_langevin,
    }[kind]


@pytest.mark.parametrize("autobatcher", [False, True])
def test_batched_relaxation(copper_student: Student, autobatcher: bool) -> None:
    """Several crystals at once reach the energies that ASE reaches one by one."""
    model = FastFFModel(copper_student, device="cpu")
    batcher: object = False
    if autobatcher:
        batcher = ts.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=13)
    final = ts.optimize(
        make_crystals(),
        model,
        optimizer=choose_flavor("fire"),
        convergence_fn=ts.generate_force_convergence_fn(force_tol=2e-3, include_cell_forces=False),
        max_steps=400,
        steps_between_swaps=5,
        autobatcher=batcher,
    )
    for k, atoms in enumerate(make_crystals()):
        atoms.calc = FastFFCalculator(copper_student, device="cpu", dtype="float64")
        FIRE(atoms, logfile=None).run(fmax=2e-3, steps=400)
        assert float(final.energy[k]) == pytest.approx(atoms.get_potential_energy(), abs=2e-4)
        forces = final.forces[final.system_idx == k]
        assert float(forces.norm(dim=1).max()) < 3e-3


def test_batched_dynamics(copper_student: Student) -> None:
    """Energies of every crystal stay, each as if it ran alone; few lists are built."""
    model = FastFFModel(copper_student, device="cpu")
    start = ts.io.atoms_to_state(make_crystals(), CPU, torch.float64)
    final = ts.integrate(
        start, model, integrator=choose_flavor("nve"), n_steps=60, timestep=0.002, temperature=300.0
    )
    builds = model.evaluator.n_builds
    assert builds < 10
    assert float((final.positions - start.positions).abs().max()) > 0.05
    kinetic = final.calc_kinetic_energy() if hasattr(final, "calc_kinetic_energy") else None
    alone = FastFFModel(copper_student, device="cpu")
    again = alone(final[1])
    assert float(again["energy"][0]) == pytest.approx(float(final.energy[1]), abs=1e-9)
    assert kinetic is None or kinetic.shape == (3,)
    hot = ts.integrate(
        start, model, integrator=choose_flavor("nvt"), n_steps=20, timestep=0.002, temperature=500.0
    )
    assert torch.isfinite(hot.positions).all()
