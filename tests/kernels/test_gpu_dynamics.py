"""Dynamics and batches on a GPU: halves of a step and searches from graphs, against torch and first searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from md_models import make_copper
from untrained import make_student

from fastff import kernels
from fastff.batches import BatchEvaluator, Systems
from fastff.inference import predict
from fastff.kernels.neighbor_list import build_neighbors
from fastff.md.engine import Engine
from fastff.md.settings import MDSettings
from fastff.md.snapshot import take_restart
from fastff.md.state import State, build_state
from fastff.models import Student
from fastff.resident import ResidentPotential

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CASES = {
    "nve": {"ensemble": "nve"},
    "langevin": {"relaxation": 50.0, "final_temperature": 900.0},
    "rescale": {"thermostat": "rescale", "relaxation": 50.0},
}


class TorchHalves(Engine):
    """Halves of a step in torch, whatever the device."""

    def _choose_kernels(self) -> None:
        return None


@pytest.fixture(scope="module")
def copper() -> Student:
    return make_copper("m1", force=0.003).to("cuda")


def make_crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(5)
    atoms.rattle(0.05, seed=1)
    return atoms


def run(engine: Engine, target: int) -> None:
    while engine.step < target:
        assert not engine.advance(target).failed


def make_engine(
    student: Student, settings: MDSettings, kind: type[Engine] = Engine, kept: dict | None = None
) -> Engine:
    state, reference = build_state(make_crystal(), settings, "cuda"), None
    if kept is not None:
        for field in ("positions", "velocities", "cell", "heat", "work", "slope"):
            getattr(state, field).copy_(torch.from_numpy(kept[field]))
        state.step.fill_(kept["step"])
        reference = tuple(torch.from_numpy(kept[f]).cuda() for f in ("list_positions", "list_cell"))
    return kind(ResidentPotential(student, skin=settings.skin), state, settings, reference)


def compare_bits(one: State, other: State) -> None:
    for field in ("positions", "velocities", "heat"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("name", CASES)
def test_halves_of_a_step(copper, name):
    """Kernels follow torch for a few steps; their runs are the same bits again, and cut in two."""
    settings = MDSettings(n_steps=12, temperature=600.0, seed=5, **CASES[name])
    engines = [make_engine(copper, settings, kind) for kind in (Engine, TorchHalves)]
    for engine in engines:
        run(engine, 12)
    assert engines[0]._kernels is not None
    one, other = (engine.state for engine in engines)
    for field in ("positions", "velocities", "heat"):
        np.testing.assert_allclose(
            getattr(one, field).cpu(), getattr(other, field).cpu(), rtol=1e-6, atol=1e-6
        )
    settings = MDSettings(n_steps=400, temperature=900.0, seed=5, skin=0.4, **CASES[name])
    whole, half = make_engine(copper, settings), make_engine(copper, settings)
    run(whole, 400)
    assert whole.n_rebuilds > 4
    assert whole._replays[0].recorded
    run(half, 171)
    again = make_engine(copper, settings, kept={**take_restart(half).read(), "step": 171})
    run(again, 400)
    compare_bits(whole.state, again.state)
    same = make_engine(copper, settings)
    run(same, 400)
    compare_bits(whole.state, same.state)


def test_unsound_steps_are_taken_back(copper):
    engine = make_engine(copper, MDSettings(n_steps=100, temperature=300.0))
    run(engine, 40)
    engine.potential.forces[7, 1] = torch.nan
    before = engine.state.positions.clone()
    progress = engine.advance(100)
    assert progress.failed
    assert progress.complete
    assert torch.equal(engine.state.positions, before)


@pytest.mark.parametrize("repeats", [3, 14])
def test_searches_from_graphs(copper, repeats):
    """Rows of lists that a graph has built are those of a first search; sorted atoms at the larger size."""
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.rattle(0.05, seed=1)
    positions, cell = torch.tensor(atoms.positions).cuda(), torch.tensor(atoms.cell.array).cuda()
    potential = ResidentPotential(copper, skin=0.5)
    pbc = (True, True, True)
    potential.attach(positions, torch.tensor(atoms.numbers), cell, torch.tensor(pbc))
    rng = np.random.default_rng(0)
    for _ in range(6):
        positions += torch.tensor(rng.normal(scale=0.1, size=positions.shape)).cuda()
        assert potential.rebuild() is False
        fresh = build_neighbors(
            positions, cell, pbc, potential.cutoff + 0.5, sort_atoms=len(atoms) >= 10_000
        )
        kept = potential._neighbors
        for name in ("order", "wraps"):
            assert torch.equal(getattr(kept, name), getattr(fresh, name))
        counts = fresh.matrix.counts
        assert torch.equal(kept.matrix.counts, counts)
        filled = torch.arange(fresh.matrix.n_slots, device="cuda")[None] < counts[:, None]
        rows = kept.matrix.entries[:, : fresh.matrix.n_slots]
        assert torch.equal(rows[filled[:, : rows.shape[1]]], fresh.matrix.entries[filled])
    assert potential._again.recorded
    positions[1] = positions[0] + 0.1
    potential.rebuild()
    potential.compute()
    assert float(potential.measure_closest(0.5)) == pytest.approx(0.03, abs=1e-6)


@pytest.mark.parametrize("architecture", ["m1", "m2"])
def test_batches(architecture):
    """Different cells in one evaluation, one of them listed on the device; and predictions."""
    student = make_student(architecture, (1, 8, 29)).cuda()
    exact = make_student(architecture, (1, 8, 29)).double()
    structures = [
        molecule("H2O"),
        bulk("Cu", cubic=True),
        bulk("Cu", cubic=True).repeat(7),
        Atoms("Cu"),
    ]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
    evaluator = BatchEvaluator(student)
    for turn in range(3):
        counts = torch.tensor([len(atoms) for atoms in structures])
        systems = Systems(
            torch.tensor(np.concatenate([atoms.positions for atoms in structures])),
            torch.tensor(np.concatenate([atoms.numbers for atoms in structures])),
            torch.tensor(np.stack([atoms.cell.array for atoms in structures])),
            torch.tensor(np.stack([atoms.pbc for atoms in structures])),
            torch.arange(len(structures)).repeat_interleave(counts),
        )
        assert evaluator.explain().path == "fused"
        found, labels = evaluator.evaluate(systems), predict(student, structures)
        with kernels.use("torch"):
            expected = BatchEvaluator(exact).evaluate(systems)
        scale = 1.0 + 0.2 * float(expected.forces.abs().max())
        np.testing.assert_allclose(found.forces.cpu(), expected.forces, rtol=0, atol=5e-5 * scale)
        np.testing.assert_allclose(
            found.energies.cpu(), expected.energies, rtol=0, atol=1e-4 * scale
        )
        forces = np.concatenate([one.forces for one in labels])
        np.testing.assert_allclose(forces, expected.forces, rtol=0, atol=5e-5 * scale)
        volumes = [abs(np.linalg.det(cell)) or 1.0 for cell in systems.cells]
        for k, volume in enumerate(volumes):
            one, other = found.virial[k].cpu() / volume, expected.virial[k] / volume
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-5 * scale)
        structures[2].wrap()
        structures[1].set_cell(structures[1].cell.array * (1.0 - 0.04 * turn), scale_atoms=True)
