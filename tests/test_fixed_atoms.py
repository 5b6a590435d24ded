"""FixAtoms of the user's structures: who keeps still in sampling, in dynamics of both sides, and after a restart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from ase.io import write
from emt_frames import EmtTeacher, assert_same_frames
from walkers import follow_other

from fastff.checkpoint import load_model
from fastff.distill import harmonic as harmonic_module
from fastff.distill.cells import build_supercell
from fastff.distill.constraints import copy_fixed
from fastff.distill.dynamics import LangevinSettings, draw_momenta, run_langevin
from fastff.distill.explore import ExploreSettings, Walker, _Run, explore
from fastff.distill.formats import read_labels
from fastff.distill.harmonic import fit_harmonic
from fastff.distill.planning import plan_sampling
from fastff.distill.request import DistillRequest, build_request
from fastff.distill.roundlog import GateRow
from fastff.distill.sampling import run_sampling
from fastff.distill.store import LabelStore
from fastff.errors import DataError
from fastff.labels import Frame
from fastff.md.state import find_fixed
from fastff.report.heldout import plan_heldout, run_heldout
from fastff.report.physics.material import describe_material
from fastff.report.physics.motion import Dynamics, Run, compare_diffusion, run_side
from fastff.report.physics.side import Side
from fastff.structures import read_header_structures, read_structures
from tests.test_rounds import Death, assert_same, run, shorten
from tests.test_sampling_dynamics import label_springs, make_spring_replica

from untrained import make_student  # isort: skip

FIXED = [0, 1, 2, 3]


def make_slab() -> ase.Atoms:
    """Two layers of four copper atoms, the lower fixed."""
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0, periodic=True)
    slab.set_constraint(FixAtoms(FIXED))
    return slab


def free(atoms: ase.Atoms) -> ase.Atoms:
    """A copy without constraints."""
    copy = atoms.copy()
    copy.set_constraint()
    return copy


def measure_moves(atoms: ase.Atoms, start: ase.Atoms) -> np.ndarray:
    """Å by which atoms have moved in the cell, whose strain does not count; (n_atoms,)."""
    places = atoms.cell.scaled_positions(atoms.positions)
    moves = (places - start.cell.scaled_positions(start.positions)) @ start.cell.array
    return np.linalg.norm(moves, axis=1)


def assert_held(
    images: Iterable[ase.Atoms], start: ase.Atoms, fixed: Sequence[int] = FIXED
) -> None:
    """The fixed atoms are where they were; each of the others has moved."""
    for atoms in images:
        moves = measure_moves(atoms, start)
        assert moves[fixed] == pytest.approx(0.0, abs=1e-9)
        assert np.delete(moves, fixed).min() > 1e-4


# --- cells and plans ---


@pytest.mark.parametrize("kind", ["primitive", "slab", "molecule"])
def test_every_copy_of_a_fixed_atom_is_fixed(kind: str) -> None:
    atoms = {
        "primitive": bulk("NaCl", "rocksalt", a=5.64),  # not repeated along its own axes
        "slab": fcc111("Cu", (1, 1, 3), vacuum=6.0, periodic=True)[[2, 0, 1]],
        "molecule": molecule("CO"),
    }[kind]
    fixed = {
        "primitive": lambda a: a.symbols == "Na",
        "slab": lambda a: a.positions[:, 2] < 6.1,
        "molecule": lambda a: a.symbols == "O",
    }[kind]
    atoms.set_constraint([FixAtoms(mask=fixed(atoms)), FixAtoms(mask=fixed(atoms))])
    cell = build_supercell(atoms, 10.0, 120).atoms
    assert len(cell) == {"primitive": 64, "slab": 75, "molecule": 2}[kind]
    assert np.array_equal(find_fixed(cell), fixed(cell))
    assert 0 < find_fixed(cell).sum() < len(cell)


def test_a_plan_says_what_is_fixed_and_what_is_lifted() -> None:
    slab = make_slab()
    bound, partly = free(slab), free(slab)
    bound.set_constraint([FixBondLength(4, 5), FixAtoms([0])])
    partly.set_constraint(FixCartesian(0, (True, False, False)))
    plan = plan_sampling([slab, bound, free(slab), partly], budget=200, cutoff=3.0, max_atoms=8)
    assert [int(find_fixed(cell.atoms).sum()) for cell in plan.cells] == [4, 1, 0, 0]
    assert "8 atoms (4 fixed)" in str(plan)
    (note,) = [note for note in plan.notes if "constraint" in note]
    assert "FixBondLengths of structure 1;" in note
    assert "FixCartesian of structure 3" in note
    assert "FixAtoms of" not in note
    alone = plan_sampling([slab], budget=200, cutoff=3.0, max_atoms=8)
    assert not any("constraint" in note for note in alone.notes)
    unfixed = plan_sampling([free(slab)], budget=200, cutoff=3.0, max_atoms=8)
    assert alone.fingerprint != unfixed.fingerprint  # other frames
    slab.set_constraint(FixAtoms(range(8)))
    with pytest.raises(DataError, match="structure 1: all 8 atoms are fixed"):
        plan_sampling([free(slab), slab], budget=200)


def test_plans_without_fixed_atoms_are_those_of_earlier_versions() -> None:
    """Or interrupted runs would sample anew."""
    plan = plan_sampling([bulk("Cu", cubic=True)], budget=70, cutoff=3.0, max_atoms=8)
    assert plan.fingerprint == 266110233


@pytest.mark.parametrize("name", ["POSCAR", "slab.xyz", "slab.traj"])
def test_files_tell_what_is_fixed(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, make_slab())
    (read,) = read_structures(tmp_path / name)
    assert np.flatnonzero(find_fixed(read)).tolist() == FIXED


# --- sampling and the teacher's dynamics ---


def sample(path: Path, teacher: EmtTeacher) -> list[Frame]:
    plan = plan_sampling([make_slab()], budget=60, cutoff=2.0, max_atoms=8)
    with LabelStore(path, "a", teacher={"name": "emt"}) as store:
        run_sampling(teacher, plan, store)
        return store.read()


def test_fixed_atoms_are_still_in_all_sampling_and_after_a_restart(tmp_path: Path) -> None:
    frames, start = sample(tmp_path / "a.h5", EmtTeacher()), make_slab()
    by_source: dict[str, list[Frame]] = {}
    for frame in frames:
        by_source.setdefault(frame.source, []).append(frame)
        assert np.linalg.norm(frame.labels.forces[FIXED], axis=1).min() > 1e-4  # raw labels
    kinds = {"rattle", "strain", "shear", "thermal", "teacher-md"}
    assert set(by_source) == kinds | {"seed", "close-contact"}
    for kind in kinds:
        assert_held((frame.atoms for frame in by_source[kind]), start)
    lengths = [frame.atoms.cell.array[0, 0] for frame in by_source["strain"]]
    assert np.ptp(lengths) > 0.02 * np.mean(lengths)
    for frame in by_source["teacher-md"]:
        momenta = np.linalg.norm(frame.atoms.get_momenta(), axis=1)
        assert not momenta[FIXED].any()
        assert np.delete(momenta, FIXED).all()
    first = EmtTeacher(die_after=44)  # between frames of dynamics
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "b.h5", first)
    with LabelStore(tmp_path / "b.h5") as store:
        assert "teacher-md" in {frame.source for frame in store.read()}
    assert_same_frames(frames, sample(tmp_path / "b.h5", EmtTeacher()))


@pytest.mark.parametrize("by_modes", [True, False])
def test_draws_are_thermal_for_those_that_move(
    monkeypatch: pytest.MonkeyPatch, by_modes: bool
) -> None:
    if not by_modes:
        monkeypatch.setattr(harmonic_module, "MAX_MODE_ATOMS", 1)
    teacher, rng = EmtTeacher(), np.random.default_rng(0)
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    fixed = list(range(20))
    held = atoms.copy()
    held.set_constraint(FixAtoms(fixed))
    probe = atoms.copy()
    probe.positions[20:] += rng.normal(scale=0.04, size=(12, 3))
    reference, labels = teacher.label([atoms, probe])
    model = fit_harmonic(held, reference, [(probe, labels)])
    warm = []
    for _ in range(40):
        moves = model.draw(300.0, rng)
        assert not moves[fixed].any()
        assert np.linalg.norm(moves[20:], axis=1).min() > 1e-4
        image = atoms.copy()
        image.positions += moves
        warm.append(image)
    energies = np.array([found.energy for found in teacher.label(warm)]) - reference.energy
    tolerance = 0.15 if by_modes else 0.3
    assert np.mean(energies) / (1.5 * 12 * units.kB * 300) == pytest.approx(1.0, abs=tolerance)
    # a cell that is warm already: forces on fixed atoms say nothing of that
    forces, softness = (
        np.zeros((32, 3)),
        np.mean(1.0 / model.stiffness[np.isfinite(model.stiffness)]),
    )
    forces[20:] = rng.normal(size=(12, 3))
    expected = np.mean(forces[20:] ** 2) * softness / units.kB
    for value in (0.0, 100.0):
        forces[fixed] = value
        shifted = [replace(found, forces=found.forces + forces) for found in (reference, labels)]
        again = fit_harmonic(held, shifted[0], [(probe, shifted[1])])
        assert again.temperature == pytest.approx(expected, rel=0.3)


def test_movers_have_the_temperature_of_the_thermostat() -> None:
    replica = make_spring_replica(300.0, 0)
    still = np.arange(0, 200, 2)
    replica.atoms.set_constraint(FixAtoms(still))
    momenta = draw_momenta(replica.atoms, 300.0, 0, 0)
    assert not momenta[still].any()
    whole = draw_momenta(free(replica.atoms), 300.0, 0, 0)
    assert np.abs(whole.sum(axis=0)).max() < 1e-9
    assert np.abs(momenta.sum(axis=0)).max() > 1.0  # what holds the fixed atoms takes it up
    frames: list[Frame] = []
    settings = LangevinSettings(
        800, 2.0, stride=5, first_kept=50, friction=0.03, min_distance=0.0, seed=1
    )
    run_langevin([replica], label_springs, settings, source="x", on_frames=frames.extend)
    assert len(frames) > 100
    for frame in frames:
        assert not frame.atoms.positions[still].any()
    masses = replica.atoms.get_masses()[1::2, None]
    kinetic = [np.mean(f.atoms.get_momenta()[1::2] ** 2 / masses) for f in frames]
    assert np.mean(kinetic) / (units.kB * 300) == pytest.approx(1.0, abs=0.05)
    squares = np.mean([(f.atoms.positions[1::2] ** 2).mean() for f in frames])
    assert 2.0 * squares / units.kB / 300 == pytest.approx(1.0, abs=0.07)


# --- the student's dynamics ---


def make_crystals(count: int, temperature: float, fixed: Sequence[int] = (0, 2)) -> list[Walker]:
    rng = np.random.default_rng(1)
    walkers = []
    for k in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.02, size=(4, 3))
        atoms.set_constraint(FixAtoms(fixed) if len(fixed) else None)
        walkers.append(Walker(atoms, temperature, 50 + k, "test"))
    return walkers


def test_walkers_leave_fixed_atoms_where_they_are() -> None:
    """Beside one in which all atoms move, whose way is that of before; without friction as by the other integrator."""
    student = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005)
    settings = ExploreSettings(n_steps=20, timestep=2.0, check=2, stride=10)
    held, moving = make_crystals(2, 300.0), make_crystals(2, 300.0, ())
    found = explore(student, [held[0], moving[1]], settings)
    before = explore(student, moving, settings)
    for one, walker in zip(found.snapshots, [held[0]] * 2 + [moving[1]] * 2, strict=True):
        assert not one.atoms.constraints
        if one.walker == 0:
            assert np.array_equal(one.atoms.positions[[0, 2]], walker.atoms.positions[[0, 2]])
            assert np.abs(one.atoms.positions - walker.atoms.positions)[[1, 3]].max() > 0.005
    for one, other in zip(found.snapshots[2:], before.snapshots[2:], strict=True):
        assert np.allclose(one.atoms.positions, other.atoms.positions, atol=1e-9)
    still = explore(student, held, replace(settings, friction=0.0))
    for k, replica in enumerate(follow_other(student, held)):
        last = [s for s in still.snapshots if s.walker == k][-1]
        assert np.allclose(last.atoms.positions, replica.atoms.positions, atol=1e-5)


@pytest.mark.gpu
def test_replayed_steps_leave_fixed_atoms_where_they_are() -> None:
    student = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005).to("cuda")
    settings = ExploreSettings(n_steps=20, timestep=2.0, check=10, stride=10)
    walkers = [*make_crystals(2, 300.0), *make_crystals(2, 300.0, ())]
    for one in explore(student, walkers, settings).snapshots:
        moves = np.abs(one.atoms.positions - walkers[one.walker].atoms.positions).max(axis=1)
        assert (moves[[0, 2]] == 0.0).all() == (one.walker < 2)
        assert moves[[1, 3]].min() > 1e-3


def test_walkers_that_are_partly_fixed_have_the_temperature() -> None:
    gas = make_student("m1", (29,), cutoff=4.0, energy_scale=0.0002)
    settings = ExploreSettings(n_steps=20, timestep=2.0, check=2, stride=10, friction=0.1)
    moving = _Run(gas, make_crystals(20, 400.0), settings)
    kinetic = []
    for _ in range(120):
        moving.advance()
        kinetic.append((moving.momenta**2 / moving.masses).mean(dim=1).reshape(20, 4).mean(dim=0))
    found = np.mean([row.numpy() for row in kinetic[40:]], axis=0) / (units.kB * 400.0)
    assert found[[0, 2]].tolist() == [0.0, 0.0]
    assert found[[1, 3]].mean() == pytest.approx(1.0, abs=0.12)


# --- whole runs ---


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch.setattr)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> DistillRequest:
    folder = tmp_path_factory.mktemp("fixed")
    crystal = bulk("Cu", cubic=True)
    crystal.set_constraint(FixAtoms([1]))
    write(folder / "cu.traj", crystal)
    return build_request(
        teacher="analytic:emt",
        structures=folder / "cu.traj",
        max_atoms=4,
        temperatures=(300.0, 600.0),
        budget=110,
        rounds=1,
        n_steps=20,
        student="m1",
        cutoff=3.5,
        target=0.9999,
    )


def test_a_run_with_rounds_leaves_them_where_they_are_and_resumes_to_the_same(
    request_: DistillRequest, tmp_path: Path
) -> None:
    """The last gate's walkers start from frames of a round that a killed process had gathered."""
    whole = run(request_, tmp_path / "whole")
    frames = read_labels(tmp_path / "whole" / "labels.h5").frames
    driven = [frame for frame in frames if frame.source == "student-md"]
    assert len({frame.trajectory >> 12 for frame in driven}) == 2  # of both gates
    assert_held((frame.atoms for frame in driven), bulk("Cu", cubic=True), [1])
    (seed,) = read_header_structures(load_model(whole.model).header)
    assert np.flatnonzero(find_fixed(seed)).tolist() == [1]

    def die(row: GateRow) -> None:
        raise Death

    with pytest.raises(Death):
        run(request_, tmp_path / "killed", on_gate=die)
    again = run(request_, tmp_path / "killed")
    assert_same(again, tmp_path / "killed", (tmp_path / "whole", whole))


# --- reports ---


def test_dynamics_of_reports_hold_them(tmp_path: Path) -> None:
    from bench.recipes_measures import measure_endurance

    slab, teacher = make_slab(), EmtTeacher()
    plan = plan_heldout([slab], (300.0, 300.0), seed=3, n_frames=2, n_equilibrate=20, interval=10)
    start = plan.trajectories[0].start
    fixed = np.flatnonzero(find_fixed(start)).tolist()
    assert len(fixed) == len(start) // 2
    assert f"{len(start)} atoms ({len(fixed)} fixed)" in plan.describe()
    frames = run_heldout(teacher, plan)
    assert_held((frame.atoms for frame in frames), build_supercell(slab, 8.0, 120).atoms, fixed)
    box = describe_material(slab).box
    assert find_fixed(box).sum() == len(box) // 2
    side: Any = Side("teacher", teacher.label, {})
    images = run_side(side, Dynamics(box, 300.0, 4.0, 20)).replicas[0]
    assert_held(images, box, np.flatnonzero(find_fixed(box)).tolist())
    student = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005)
    cell = build_supercell(slab, 2.0, 8)
    measure_endurance(student, [cell], 300.0, 2.0, 0.1, 60.0, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as kept:
        replicas = kept["positions"].reshape(-1, 8, 3)
    for positions in replicas:
        assert np.array_equal(positions[FIXED], cell.atoms.positions[FIXED])
        assert np.abs(positions[4:] - cell.atoms.positions[4:]).min(axis=0).max() > 1e-5


def test_diffusion_is_that_of_the_movers() -> None:
    """Beside atoms that are fixed, the centre of mass drifts because movers do."""
    rng = np.random.default_rng(0)
    atoms = ase.Atoms("Cu2Au40", rng.uniform(0, 9, (42, 3)), cell=[9.0] * 3, pbc=True)
    atoms.set_constraint(FixAtoms(range(22)))
    images = []
    for _ in range(1200):
        drift = rng.normal(scale=0.1, size=3)
        atoms.positions[22:] += rng.normal(scale=0.3, size=(20, 3)) + drift
        images.append(atoms.copy())
    item = compare_diffusion(None, Run([images], 1.0), 300.0)
    assert [curve.element for curve in item.curves] == ["Au"]
    assert item.curves[0].student[1] == pytest.approx(3 * (0.3**2 + 0.1**2), rel=0.04)


def test_constraints_are_copied_by_atom() -> None:
    slab = make_slab()
    slab.set_constraint([FixAtoms([-1]), FixAtoms([0]), FixBondLength(1, 2)])
    (kept,) = copy_fixed(slab, 2)
    assert kept.index.tolist() == [0, 7, 8, 15]
    assert copy_fixed(free(slab)) == []
    assert copy_fixed(ase.Atoms()) == []
