"""Steps of fastff's dynamics: conservation, reversibility, stale lists, constraints, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from md_models import make_copper

from fastff.calculator import FastFFCalculator
from fastff.errors import DataError, SimulationUnstableError, UsageError
from fastff.md.engine import Engine
from fastff.md.observe import COLUMNS
from fastff.md.pacing import Pacer
from fastff.md.settings import MDSettings
from fastff.md.state import State, build_state, count_free
from fastff.md.torch_potential import StudentPotential
from fastff.models import Student


@pytest.fixture(scope="module")
def student() -> Student:
    return make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8)).double()


@pytest.fixture
def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.positions += np.random.default_rng(1).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def advance(engine: Engine, target: int) -> np.ndarray:
    """Run to ``target``; rows on the way."""
    rows = [np.zeros((0, len(COLUMNS)))]
    while engine.step < target:
        progress = engine.advance(target)
        assert not progress.failed
        rows.append(progress.rows)
    return np.concatenate(rows)


def make_engine(student: Student, atoms: Atoms, settings: MDSettings) -> Engine:
    potential = StudentPotential(student, settings.skin)
    return Engine(potential, build_state(atoms, settings), settings)


@pytest.mark.parametrize(
    "ensemble",
    [
        {"ensemble": "nvt", "thermostat": "langevin"},
        {"ensemble": "nvt", "thermostat": "rescale"},
        {"ensemble": "npt"},
    ],
)
def test_compiled_steps_keep_the_same_accounts(
    student: Student, crystal: Atoms, ensemble: dict[str, str]
) -> None:
    found = []
    for compiled in (False, True):
        settings = MDSettings(
            n_steps=20,
            timestep=1.0,
            temperature=300,
            interval=5,
            compile_steps=compiled,
            **ensemble,
        )  # type: ignore[arg-type]
        engine = make_engine(student, crystal, settings)
        found.append((advance(engine, 20), float(engine.state.heat), float(engine.state.work)))
    (rows, heat, work), (other, same_heat, same_work) = found
    assert heat != 0.0
    assert same_heat == pytest.approx(heat, rel=1e-6)
    assert same_work == pytest.approx(work, rel=1e-6)
    np.testing.assert_allclose(other, rows, rtol=1e-6, atol=1e-9)


def test_energy_error_falls_with_the_square_of_the_step(student: Student, crystal: Atoms) -> None:
    errors = []
    for timestep in (1.0, 0.5):
        settings = MDSettings(
            n_steps=int(200 / timestep),
            timestep=timestep,
            ensemble="nve",
            temperature=600,
            interval=1,
        )
        rows = advance(make_engine(student, crystal, settings), settings.n_steps)
        conserved = rows[:, COLUMNS.index("conserved_eV")]
        errors.append(conserved.std())
        assert conserved.std() < 0.02 * rows[:, COLUMNS.index("kinetic_eV")].std()
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.3)


def test_reversible(student: Student, crystal: Atoms) -> None:
    """Turning velocities around leads back to the start."""
    settings = MDSettings(n_steps=80, ensemble="nve", temperature=500, timestep=2.0)
    engine = make_engine(student, crystal, settings)
    start = engine.state.positions.clone()
    advance(engine, 40)
    assert (engine.state.positions - start).abs().max() > 0.05
    engine.state.velocities.neg_()
    advance(engine, 80)
    assert (engine.state.positions - start).abs().max() < 1e-10


def test_same_trajectory_as_ase(student: Student, crystal: Atoms) -> None:
    settings = MDSettings(n_steps=30, ensemble="nve", temperature=500, timestep=2.0)
    engine = make_engine(student, crystal, settings)
    crystal.set_velocities(engine.state.velocities.numpy())
    crystal.calc = FastFFCalculator(student, dtype="float64", device="cpu")
    VelocityVerlet(crystal, 2.0 * units.fs).run(30)
    advance(engine, 30)
    np.testing.assert_allclose(engine.state.positions, crystal.positions, atol=1e-9)
    np.testing.assert_allclose(engine.state.velocities, crystal.get_velocities(), atol=1e-9)


def test_same_statistics_as_ase_langevin(student: Student) -> None:
    """Mean potential energy of four atoms under our Langevin thermostat and under ASE's.

    At 30 K, where these atoms stay in one minimum of an untrained student; at 300 K they wander among several, for
    longer than this takes.
    """
    atoms = bulk("Cu", cubic=True)
    settings = MDSettings(
        n_steps=1200, timestep=4.0, temperature=30, relaxation=50.0, interval=1, seed=4
    )
    ours = advance(make_engine(student, atoms, settings), 1200)[200:, COLUMNS.index("potential_eV")]
    atoms.calc = FastFFCalculator(student, dtype="float64", device="cpu")
    dynamics = Langevin(
        atoms, 4 * units.fs, temperature_K=30, friction=0.02 / units.fs, fixcm=False,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    theirs: list[float] = []
    dynamics.attach(lambda: theirs.append(atoms.get_potential_energy()))
    dynamics.run(1200)
    means, errors = [], []
    for values in (ours, np.array(theirs[200:])):
        blocks = values[: len(values) // 10 * 10].reshape(10, -1).mean(axis=1)
        means.append(blocks.mean())
        errors.append(blocks.std(ddof=1) / np.sqrt(10))
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors)
    assert np.hypot(*errors) < 0.5 * ours.std()


def test_momentum_stays(student: Student, crystal: Atoms) -> None:
    settings = MDSettings(n_steps=60, temperature=800, thermostat="rescale")
    engine = make_engine(student, crystal, settings)
    advance(engine, 60)
    momentum = (engine.state.velocities * engine.state.masses).sum(dim=0)
    assert momentum.abs().max() < 1e-10


def test_no_pair_is_missed(student: Student, crystal: Atoms) -> None:
    """A list with a thin skin is rebuilt many times, and the trajectory is the same bit for bit."""
    results = {}
    for skin in (0.15, 3.0):
        settings = MDSettings(
            n_steps=150, temperature=1500, skin=skin, timestep=2.0, relaxation=50.0
        )
        engine = make_engine(student, crystal, settings)
        advance(engine, 150)
        results[skin] = engine.state.positions.clone(), engine.state.velocities.clone()
        if skin < 1:
            assert engine.n_rebuilds > 10
    for a, b in zip(results[0.15], results[3.0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_queued_steps_wait_for_the_list(student: Student, crystal: Atoms, ensemble: str) -> None:
    """As on a GPU, where steps are queued blindly: those behind a stale list change nothing."""

    class Blind(StudentPotential):
        capturable = True

    settings = MDSettings(
        n_steps=90, temperature=1500, skin=0.2, timestep=2.0, ensemble=ensemble, relaxation=50.0,  # type: ignore[arg-type]
        compressibility=0.5, interval=7,
    )  # fmt: skip
    engines, rows = [], []
    for kind in (StudentPotential, Blind):
        engine = Engine(kind(student, 0.2), build_state(crystal, settings), settings)
        rows.append(advance(engine, 90))
        engines.append(engine)
        assert engine.n_rebuilds > 3
    assert torch.equal(engines[0].state.positions, engines[1].state.positions)
    np.testing.assert_array_equal(rows[0], rows[1])
    assert rows[0][:, 0].tolist() == list(range(7, 90, 7))


def test_list_too_thin_for_any_step(student: Student, crystal: Atoms) -> None:
    class NeverFresh(StudentPotential):
        def check(self) -> None:
            self.stale.fill_(1)

    settings = MDSettings(n_steps=5)
    with pytest.raises(SimulationUnstableError, match="larger skin"):
        advance(Engine(NeverFresh(student), build_state(crystal, settings), settings), 5)


def test_unsound_steps_are_not_taken(student: Student, crystal: Atoms) -> None:
    settings = MDSettings(n_steps=50, temperature=300, max_displacement=1e-3)
    engine = make_engine(student, crystal, settings)
    before = engine.state.positions.clone()
    progress = engine.advance(50)
    assert progress.failed
    assert progress.step == 0
    assert torch.equal(engine.state.positions, before)
    engine = make_engine(student, crystal, MDSettings(n_steps=50))
    engine.potential.forces[3, 1] = torch.nan
    assert engine.advance(50).failed
    assert torch.isfinite(engine.state.velocities).all()


def test_fixed_atoms_stay(student: Student, crystal: Atoms) -> None:
    crystal.set_constraint(FixAtoms([0, 5]))
    for thermostat in ("langevin", "rescale"):
        settings = MDSettings(n_steps=20, thermostat=thermostat)  # type: ignore[arg-type]
        engine = make_engine(student, crystal, settings)
        assert engine.state.n_free == 3 * 30
        advance(engine, 20)
        moved = (engine.state.positions.numpy() - crystal.positions) != 0.0
        assert moved.any(axis=1).tolist() == [k not in (0, 5) for k in range(32)]


def test_refusals(crystal: Atoms) -> None:
    settings = MDSettings(n_steps=1)
    crystal.set_constraint(FixBondLength(0, 1))
    with pytest.raises(UsageError, match="FixBondLength"):
        build_state(crystal, settings)
    crystal.set_constraint(FixAtoms(range(32)))
    with pytest.raises(UsageError, match="all 32 atoms"):
        build_state(crystal, settings)
    crystal.set_constraint(FixAtoms([1]))
    with pytest.raises(UsageError, match="1 atoms are fixed"):
        build_state(crystal, replace(settings, ensemble="npt"))
    with pytest.raises(UsageError, match="FFF"):
        build_state(molecule("H2O"), replace(settings, ensemble="npt"))
    crystal.set_constraint()
    with pytest.raises(DataError, match="no velocities"):
        build_state(crystal, replace(settings, velocities="file"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestep": 0.0}, {"n_steps": -1}, {"ensemble": "nph"}, {"temperature": -1.0}, {"skin": 0.0},
        {"ensemble": "nve", "final_temperature": 500.0}, {"thermostat": "rescale", "temperature": 0.0},
        {"seed": -1}, {"pressure": float("nan")},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        MDSettings(**{"n_steps": 1, **wrong})  # type: ignore[arg-type]


def test_start_velocities(crystal: Atoms) -> None:
    settings = MDSettings(n_steps=1, temperature=700.0, thermostat="rescale")
    big = crystal.repeat(4)
    state = build_state(big, settings)
    assert measure_temperature(state) == pytest.approx(700.0, rel=0.05)
    assert (state.velocities * state.masses).sum(dim=0).abs().max() < 1e-9
    assert torch.equal(state.velocities, build_state(big, settings).velocities)
    assert not torch.equal(state.velocities, build_state(big, replace(settings, seed=1)).velocities)
    big.set_velocities(np.random.default_rng(0).normal(size=(len(big), 3)))
    kept = build_state(big, replace(settings, velocities="file")).velocities.numpy()
    given = big.get_velocities()
    np.testing.assert_allclose(kept, given - given.mean(axis=0), atol=1e-12)


def measure_temperature(state: State) -> float:
    kinetic = 0.5 * float((state.velocities.square() * state.masses).sum())
    return 2.0 * kinetic / (state.n_free * units.kB)


def test_degrees_of_freedom() -> None:
    free = np.zeros(5, dtype=bool)
    nve, langevin = MDSettings(n_steps=1, ensemble="nve"), MDSettings(n_steps=1)
    assert count_free(free, nve) == 12
    assert count_free(free, langevin) == 15
    assert count_free(free[:1], nve) == 3
    held = free.copy()
    held[0] = True
    assert count_free(held, nve) == 12


def test_pressure_of_a_row(student: Student, crystal: Atoms) -> None:
    """Stress is that of the calculator plus the kinetic part of ASE's, and pressure minus its mean."""
    settings = MDSettings(n_steps=1, ensemble="nve", temperature=600)
    engine = make_engine(student, crystal, settings)
    row = engine.observe().rows[0]
    crystal.set_velocities(engine.state.velocities.numpy())
    crystal.calc = FastFFCalculator(student, dtype="float64", device="cpu")
    expected = crystal.get_stress(include_ideal_gas=True) / units.GPa
    np.testing.assert_allclose(row[6:12], expected, atol=1e-8)
    assert row[5] == pytest.approx(-expected[:3].mean(), abs=1e-8)
    assert row[12] == pytest.approx(crystal.get_volume())


def test_pacer_asks_for_few_steps_when_a_list_is_old() -> None:
    pacer = Pacer()
    pacer.advance(40, rebuilt=True)
    assert pacer.suggest() == 32
    pacer.advance(32, rebuilt=False)
    assert pacer.suggest() == 4
