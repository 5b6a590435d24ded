"""Half steps of dynamics in Triton's interpreter, against the same engine in torch.

Run by ``test_engine.py`` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest
tests/kernels/interpreted_md.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from ase import Atoms
from ase.constraints import FixAtoms
from md_models import Springs

from fastff import kernels
from fastff.kernels import contract, dispatch, philox
from fastff.kernels.md_step.kernels import draw_normals
from fastff.md.engine import Engine
from fastff.md.observe import COLUMNS
from fastff.md.settings import MDSettings
from fastff.md.snapshot import take_restart
from fastff.md.state import build_state

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_engine.py"
)
N_ATOMS = 150  # more than one program
CASES = {
    "nve": {"ensemble": "nve"},
    "langevin": {"relaxation": 20.0},
    "langevin ramp": {"relaxation": 20.0, "final_temperature": 900.0},
    "rescale": {"thermostat": "rescale", "relaxation": 20.0},
    "rescale ramp": {"thermostat": "rescale", "relaxation": 20.0, "final_temperature": 900.0},
}


class Hop(Springs):
    """Springs whose list goes stale every few evaluations, in the given dtype of forces."""

    capturable = True

    def __init__(self, sites: torch.Tensor, dtype: torch.dtype, period: int) -> None:
        super().__init__(sites, 1.5)
        self._dtype, self._period, self._checks = dtype, period, 0

    def attach(self, *tensors: torch.Tensor) -> None:
        super().attach(*tensors)
        self.forces = self.forces.to(self._dtype)

    def check(self) -> None:
        self._checks += 1
        if self._period and self._checks % self._period == 0:
            self.stale.fill_(1)

    def rebuild(self) -> bool:
        self.stale.zero_()
        return False


def make_gas() -> Atoms:
    rng = np.random.default_rng(0)
    atoms = Atoms(
        "ArNe" * (N_ATOMS // 2), rng.uniform(0, 20, (N_ATOMS, 3)), cell=[20.0] * 3, pbc=True
    )
    atoms.set_constraint(FixAtoms([3, N_ATOMS - 1]))
    return atoms


def make_engine(
    settings: MDSettings, dtype: torch.dtype = torch.float64, period: int = 0
) -> Engine:
    atoms = make_gas()
    sites = torch.tensor(atoms.positions) + 0.2
    return Engine(Hop(sites, dtype, period), build_state(atoms, settings), settings)


def run(engine: Engine, target: int) -> np.ndarray:
    rows = [np.zeros((0, len(COLUMNS)))]
    while engine.step < target:
        progress = engine.advance(target)
        assert not progress.failed
        rows.append(progress.rows)
    return np.concatenate(rows)


@triton.jit
def _draw(seed, step, out, BLOCK: tl.constexpr):
    rows = tl.arange(0, BLOCK)
    a, b, c = draw_normals(tl.load(seed), rows.to(tl.int64), tl.load(step))
    tl.store(out + rows * 3, a)
    tl.store(out + rows * 3 + 1, b)
    tl.store(out + rows * 3 + 2, c)


@pytest.mark.parametrize(("seed", "step"), [(0, 0), (2**63 + 12345, 7), (2**64 - 1, 2**40 + 3)])
def test_noise_is_that_of_the_definition(seed, step):
    out = torch.empty(256, 3, dtype=torch.float64)
    signed = seed - 2**64 if seed >= 2**63 else seed
    _draw[(1,)](torch.tensor([signed]), torch.tensor([step]), out, BLOCK=256)
    expected = philox.draw_normals(torch.arange(256), torch.tensor([step]), seed)
    np.testing.assert_allclose(out, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("period", [0, 5])
@pytest.mark.parametrize("name", CASES)
def test_same_trajectory_as_torch(name, period):
    """Positions, velocities, heat, rows; with lists that go stale in between, and fixed atoms."""
    settings = MDSettings(
        n_steps=24, timestep=3.0, temperature=400.0, interval=4, seed=9, max_displacement=5.0, **CASES[name]
    )  # fmt: skip
    found = {}
    for backend in ("torch", "triton"):
        with kernels.use(backend), contract.poison_allocations():
            engine = make_engine(settings, period=period)
            assert (engine._kernels is None) == (backend == "torch")
            found[backend] = engine, run(engine, 24)
            assert (engine.n_rebuilds > 24 // engine._period) == (period > 0)
    one, other = found["torch"][0].state, found["triton"][0].state
    for field in ("positions", "velocities", "heat"):
        expected = getattr(one, field)
        np.testing.assert_allclose(getattr(other, field), expected, rtol=1e-10, atol=1e-11)
    assert int(other.step) == 24
    assert not bool(other.pending)
    np.testing.assert_allclose(found["triton"][1], found["torch"][1], rtol=1e-9, atol=1e-9)
    assert (float(one.heat) != 0.0) == (name != "nve")
    assert torch.equal(other.positions[3], torch.tensor(make_gas().positions[3]))


def test_lists_are_renewed_before_they_end():
    """At multiples of a number of steps that follows from the settings, wherever chunks end."""
    settings = MDSettings(n_steps=60, timestep=3.0, ensemble="nve", temperature=400.0, skin=0.5)
    for stops in ((60,), (7, 20, 33, 60)):
        engine = make_engine(settings)
        for stop in stops:
            run(engine, stop)
        assert 3 < engine._period < 15
        assert engine.n_rebuilds == (60 - 1) // engine._period


@pytest.mark.parametrize("name", ["langevin", "rescale ramp"])
@pytest.mark.parametrize("stop", [13, 0])
def test_restart_gives_the_same_bits(name, stop):
    """At any step, and (0) at one before which the list is renewed."""
    settings = MDSettings(
        n_steps=30, timestep=3.0, temperature=400.0, seed=9, max_displacement=5.0, **CASES[name]
    )
    with kernels.use("triton"):
        whole = make_engine(settings, torch.float32)
        run(whole, 30)
        half = make_engine(settings, torch.float32)
        stop = stop or half._period
        run(half, stop)
        kept = take_restart(half).read()
        atoms = make_gas()
        state = build_state(atoms, settings)
        for field in ("positions", "velocities", "cell", "heat", "work", "slope"):
            getattr(state, field).copy_(torch.from_numpy(kept[field]))
        state.step.fill_(stop)
        reference = tuple(torch.from_numpy(kept[f]) for f in ("list_positions", "list_cell"))
        sites = torch.tensor(atoms.positions) + 0.2
        again = Engine(Hop(sites, torch.float32, 0), state, settings, reference)
        run(again, 30)
    for field in ("positions", "velocities", "heat"):
        assert torch.equal(getattr(whole.state, field), getattr(again.state, field)), field


@pytest.mark.parametrize("name", ["nve", "langevin"])
def test_unsound_steps_are_taken_back(name):
    settings = MDSettings(
        n_steps=20, timestep=3.0, temperature=400.0, max_displacement=5.0, **CASES[name]
    )
    with kernels.use("triton"):
        engine = make_engine(settings)
        run(engine, 5)
        engine.potential.forces[7, 1] = torch.nan
        before = (
            engine.state.positions.clone(),
            engine.state.velocities.clone(),
            engine.state.heat.clone(),
        )
        progress = engine.advance(20)
        assert progress.failed
        assert progress.complete
        assert progress.step == 5
        after = engine.state.positions, engine.state.velocities, engine.state.heat
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert engine.advance(20).step == 5
        engine = make_engine(MDSettings(n_steps=20, max_displacement=1e-4, **CASES[name]))
        start = engine.state.positions.clone()
        assert engine.advance(20).failed
        assert torch.equal(engine.state.positions, start)


def test_an_energy_that_is_no_number_ends_the_run():
    class Broken(Hop):
        def compute(self) -> None:
            super().compute()
            if self._checks > 6:
                self.energy.fill_(torch.nan)

    settings = MDSettings(n_steps=20, ensemble="nve", max_displacement=5.0)
    answers = []
    for backend in ("torch", "triton"):
        with kernels.use(backend):
            atoms = make_gas()
            potential = Broken(torch.tensor(atoms.positions), torch.float64, 0)
            engine = Engine(potential, build_state(atoms, settings), settings)
            progress = engine.advance(20)
            answers.append((progress.failed, progress.complete, progress.step))
    assert answers[0] == answers[1]
    assert answers[0][0]


def test_cells_that_move_are_left_to_torch():
    settings = MDSettings(n_steps=2, ensemble="npt")
    atoms = make_gas()
    atoms.set_constraint()
    with kernels.use("triton"):
        potential = Springs(torch.tensor(atoms.positions), 0.1)
        assert Engine(potential, build_state(atoms, settings), settings)._kernels is None
