"""Dynamics and batches on a GPU: halves of a step and searches from graphs, against torch and first searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from gathered import gather
from md_models import make_copper
from untrained import make_student

from fastff import batch_lists, kernels
from fastff.batch_lists import DeviceLists, HostLists
from fastff.batches import BatchEvaluator
from fastff.distill.explore import ExploreSettings, Walker, _Run, explore
from fastff.inference import predict
from fastff.kernels import replay as replay_module
from fastff.kernels.neighbor_list import build_neighbors
from fastff.md.engine import Engine
from fastff.md.settings import MDSettings
from fastff.md.snapshot import take_restart
from fastff.md.state import State, build_state
from fastff.models import Student
from fastff.packed import Systems
from fastff.resident import ResidentPotential

from .lists import draw_structure

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
        systems = gather(structures)
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


def test_lists_of_many_cells():
    """The launch over all structures against torch, here and on the host."""
    drawn = [draw_structure(k, (bool(k & 1), bool(k & 2), bool(k & 4)))[:3] for k in range(24)]
    sizes = [len(positions) for positions, _, _ in drawn]
    pbc = np.array([flags for _, _, flags in drawn], dtype=bool)
    found = []
    for device, backend in (("cuda", "triton"), ("cuda", "torch"), ("cpu", "torch")):
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(device)
        positions = torch.tensor(np.concatenate([p for p, _, _ in drawn])).to(device)
        cells = torch.tensor(np.array([c for _, c, _ in drawn])).to(device)
        lists = DeviceLists(sizes, pbc, batch, 8.0)
        with kernels.use(backend):
            lists.renew(positions, cells, range(len(sizes)))
            lists.renew(positions + 0.3 * torch.sin(5.0 * positions), cells, [1, 7, 20])
        rows = torch.cat([lists.join_edges()[0].T, lists.join_edges()[1]], dim=1).tolist()
        found.append(sorted(map(tuple, rows)))
    assert len(found[0]) > 1000
    assert found[0] == found[1] == found[2]


def test_fast_walkers():
    """Lists of a GPU are never stale at 4500 K, those of the host give the same path, and runs repeat."""
    student = make_copper("m1", force=0.05).cuda()
    walkers = [
        Walker(bulk("Cu", cubic=True).repeat((n, 2, 2)), t, k, "test")
        for k, (n, t) in enumerate([(1, 300.0), (2, 4500.0), (3, 4500.0), (2, 1e7)])
    ]
    settings = ExploreSettings(60, 2.0, 10, 10, min_contact=0.1)
    first, again = explore(student, walkers, settings), explore(student, walkers, settings)
    assert [ending.reason for ending in first.endings] == ["", "", "", "blow-up"]
    for one, other in zip(first.snapshots, again.snapshots, strict=True):
        assert np.array_equal(one.atoms.positions, other.atoms.positions)
    evaluators = [
        BatchEvaluator(student, skin=skin, lists=kind)
        for skin, kind in ((1.0, DeviceLists), (0.0, HostLists))
    ]
    for step in range(10, 61, 10):
        atoms = [s.atoms for s in first.snapshots if s.step == step]
        counts = torch.tensor([len(one) for one in atoms])
        systems = Systems(
            torch.tensor(np.concatenate([one.positions for one in atoms])),
            torch.tensor(np.concatenate([one.numbers for one in atoms])),
            torch.tensor(np.stack([one.cell.array for one in atoms])),
            torch.tensor(np.stack([one.pbc for one in atoms])),
            torch.arange(len(atoms)).repeat_interleave(counts),
        )
        found, expected = (one.evaluate(systems, only_moved=step > 10) for one in evaluators)
        scale = 1.0 + float(expected.forces.abs().max())
        torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=5e-5 * scale)
        torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=1e-4 * scale)


def test_replayed_walkers(monkeypatch):
    """Graphs of batched dynamics give the bits of the launches they recorded, over renewals and wider lists."""
    student = make_copper("m2", force=0.05).cuda()
    walkers = [
        Walker(bulk("Cu", cubic=True).repeat((n, 2, 2)), t, k, "test")
        for k, (n, t) in enumerate([(2, 300.0), (2, 4500.0), (3, 6000.0), (1, 1e7)])
    ]
    settings = ExploreSettings(200, 2.0, 10, 10, min_contact=0.01, max_force=1e3)
    run = _Run(student, walkers, settings)
    for _ in range(30):
        run.advance()
    evaluator = run.evaluator
    moving = evaluator._moving._again
    replays = (run._begin_step, run._finish_step, moving, evaluator._fused_again)
    assert all(replay.recorded for replay in replays)
    # rows without a slot to spare, which get too narrow now and then
    monkeypatch.setattr(batch_lists, "_fit_slots", lambda widest: widest)
    found = explore(student, walkers, settings)
    monkeypatch.setattr(replay_module, "EAGER_CALLS", 10**9)
    expected = explore(student, walkers, settings)
    assert found.endings == expected.endings
    assert len(found.snapshots) > 40
    for one, other in zip(found.snapshots, expected.snapshots, strict=True):
        assert np.array_equal(one.atoms.positions, other.atoms.positions)
