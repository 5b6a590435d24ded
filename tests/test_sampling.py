"""Sampling: cells, springs, plans, and continuing where a label file stops."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from fastff.distill.cells import (
    build_supercell,
    draw_strain,
    find_material_axes,
    hold_apart,
    press_pairs,
    strain_cell,
)
from fastff.distill.content import hash_structure
from fastff.distill.harmonic import fit_harmonic
from fastff.distill.sampling import SamplingProgress, measure_teacher, plan_sampling, run_sampling
from fastff.distill.split import split_frames
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.labels import Frame, Labels


class EmtTeacher:
    """ASE's effective medium theory; counts what it labels and can be told to die or to fail."""

    def __init__(self, die_after: float = np.inf) -> None:
        self.n_labelled, self.calls, self.die_after = 0, [], die_after
        self.fault: Callable[[int, Labels], Labels] | None = None

    def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
        self.calls.append(len(structures))
        results = []
        for atoms in structures:
            if self.n_labelled >= self.die_after:
                raise KeyboardInterrupt
            atoms = atoms.copy()
            atoms.calc = EMT()
            stress = atoms.get_stress() if atoms.pbc.all() else None
            labels = Labels(atoms.get_potential_energy(), atoms.get_forces(), stress)
            results.append(self.fault(self.n_labelled, labels) if self.fault else labels)
            self.n_labelled += 1
        return results


# --- cells ---


@pytest.mark.parametrize(
    ("atoms", "n_atoms", "width"),
    [
        (bulk("Si"), 64, 10.0),
        (bulk("Si", cubic=True), 64, 10.0),
        (bulk("Cu"), 108, 10.0),
        (bulk("Mg"), 64, 10.0),
        (bulk("Fe"), 120, 9.0),
        (bulk("NaCl", "rocksalt", a=5.64), 64, 10.0),
        (bulk("Cu", cubic=True) * (4, 4, 4), 256, 14.0),
    ],
)
def test_supercells_are_wide_and_small(atoms: ase.Atoms, n_atoms: int, width: float) -> None:
    cell = build_supercell(atoms, 10.0, 120)
    assert len(cell.atoms) == n_atoms
    assert cell.width >= width
    assert cell.atoms.get_volume() / n_atoms == pytest.approx(atoms.get_volume() / len(atoms))
    a, b = atoms.copy(), cell.atoms.copy()
    if set(a.symbols) <= {"Cu"}:
        a.calc, b.calc = EMT(), EMT()
        assert a.get_potential_energy() / len(a) == pytest.approx(b.get_potential_energy() / len(b))


def test_empty_directions_are_left_alone() -> None:
    slab = fcc111("Pt", (1, 1, 3), vacuum=8.0, periodic=True)
    assert find_material_axes(slab) == (True, True, False)
    cell = build_supercell(slab, 10.0, 120)
    assert cell.repeats == ((5, 0, 0), (0, 5, 0), (0, 0, 1))
    strained = strain_cell(cell, 0.05 * np.eye(3))
    assert strained.cell.lengths() == pytest.approx(cell.atoms.cell.lengths() * [1.05, 1.05, 1])
    assert strained.positions[:, 2] == pytest.approx(cell.atoms.positions[:, 2])
    alone = build_supercell(molecule("H2O"), 10.0, 120)
    assert len(alone.atoms) == 3
    moved = strain_cell(alone, draw_strain(np.random.default_rng(0), 0.1, 0.1))
    assert np.array_equal(moved.positions, alone.atoms.positions)
    boxed = molecule("H2O", vacuum=6.0, pbc=True)
    assert build_supercell(boxed, 10.0, 120).axes == (False, False, False)


def test_strain_is_a_strain_of_everything() -> None:
    cell = build_supercell(bulk("Cu"), 6.0, 60)
    strain = draw_strain(np.random.default_rng(1), 0.05, 0.03)
    atoms = strain_cell(cell, strain)
    assert np.allclose(atoms.cell, np.asarray(cell.atoms.cell) @ (np.eye(3) + strain).T)
    assert np.allclose(atoms.get_scaled_positions(False), cell.atoms.get_scaled_positions(False))


def test_pressed_pairs_have_the_wanted_distance() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (2, 2, 2)
    rng = np.random.default_rng(0)
    distances: dict[str, float] = {}
    for _ in range(20):
        pressed = press_pairs(atoms, 0.7, rng)
        changed = np.flatnonzero(np.any(pressed.positions != atoms.positions, axis=1))
        assert len(changed) == 4  # two pairs for 64 atoms
        for i, j in itertools.combinations(changed, 2):
            kind = "".join(sorted((pressed[i].symbol, pressed[j].symbol)))
            apart = float(pressed.get_distance(i, j, mic=True))
            distances[kind] = min(apart, distances.get(kind, 9.0))
    assert distances["ClNa"] == pytest.approx(0.7 * 2.82, abs=1e-6)
    assert press_pairs(ase.Atoms("H"), 0.7, rng) is None
    # no bond between two of the same kind: 0.65 stands for 0.75 of a bond, and 0.7 for a seventh of the way back
    for kind, number in (("ClCl", 17), ("NaNa", 11)):
        least = min(0.65 * 5.64 / 2**0.5, 0.75 * 2.0 * covalent_radii[number])
        expected = 5.64 / 2**0.5 - (5.64 / 2**0.5 - least) * 0.3 / 0.35
        assert distances[kind] == pytest.approx(expected, abs=1e-6), kind


def test_atoms_that_are_not_bonded_are_pressed_as_near_as_bonds() -> None:
    """Oxygen of CO, which stands on its carbon, and platinum: at 0.65 of their distance a student knows no core."""
    slab = fcc111("Pt", (4, 4, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, molecule("CO"), 1.85, "ontop", mol_index=1)
    oxygen, nearest = len(slab) - 2, []
    rng = np.random.default_rng(0)
    for _ in range(60):
        pressed = press_pairs(slab, 0.65, rng)
        assert pressed is not None
        to_metal = pressed.get_distances(oxygen, range(48), mic=True).min()
        if pressed[oxygen].position.tolist() != slab[oxygen].position.tolist():
            nearest.append(float(to_metal))
    assert slab[oxygen].symbol == "O"
    assert min(nearest) == pytest.approx(0.75 * float(covalent_radii[[8, 78]].sum()), abs=1e-6)


def test_pairs_are_pressed_no_nearer_than_students_follow() -> None:
    carbon_monoxide = molecule("CO")
    pressed = press_pairs(carbon_monoxide, 0.5, np.random.default_rng(0))
    assert pressed is not None
    followed = 0.65 * float(covalent_radii[[6, 8]].sum())
    assert pressed.get_distance(0, 1) == pytest.approx(followed)
    copper = press_pairs(bulk("Cu", cubic=True) * 3, 0.7, np.random.default_rng(0))
    assert copper is not None
    assert neighbor_list("d", copper, 2.4).min() == pytest.approx(0.7 * 3.61 / 2**0.5)


def test_thermal_draws_keep_atoms_apart() -> None:
    atoms, rng = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * 2, np.random.default_rng(0)
    small = rng.normal(scale=0.05, size=(64, 3))
    assert hold_apart(atoms, small) is small
    toward = np.zeros((64, 3))
    neighbor = int(
        np.argmin(np.where(np.arange(64) == 0, 9.0, atoms.get_all_distances(mic=True)[0]))
    )
    toward[0] = 0.4 * atoms.get_distance(0, neighbor, mic=True, vector=True)  # to 0.6 of a bond
    far = int(np.argmax(atoms.get_all_distances(mic=True)[0]))
    toward[far] = 0.1
    held = hold_apart(atoms, toward)
    assert held[0] == pytest.approx(0.95**6 * toward[0])  # 0.95**5 leaves 0.69 of it
    np.testing.assert_array_equal(held[1:], toward[1:])  # others move on
    moved = atoms.copy()
    moved.positions += held
    assert 0.7 < moved.get_distance(0, neighbor, mic=True) / 2.82 < 0.71
    # distances of like ions are other than those of unlike ones
    cations = np.flatnonzero(atoms.numbers == 11)
    other = int(cations[np.argsort(atoms.get_all_distances(mic=True)[0, cations])[1]])
    toward[0] = 0.35 * atoms.get_distance(0, other, mic=True, vector=True)
    assert np.abs(hold_apart(atoms, toward)).max() < np.abs(toward).max()
    alone = np.ones((1, 3))
    assert hold_apart(ase.Atoms("H"), alone) is alone


# --- springs ---


def test_thermal_draws_have_thermal_energy() -> None:
    teacher, rng = EmtTeacher(), np.random.default_rng(0)
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    probes = [atoms.copy(), atoms.copy()]
    for probe in probes:
        probe.positions += rng.normal(scale=0.04, size=(32, 3))
    reference, *labels = teacher.label([atoms, *probes])
    model = fit_harmonic(atoms, reference, list(zip(probes, labels, strict=True)))
    assert model.misfit < 0.2
    assert model.temperature == pytest.approx(0.0, abs=1.0)
    energies, squares = [], []
    for _ in range(30):
        warm, cold = atoms.copy(), atoms.copy()
        warm.positions += model.draw(300.0, rng)
        cold.positions += model.draw(30.0, rng)
        drawn = teacher.label([warm, cold])
        energies.append(drawn[0].energy - reference.energy)
        squares.append(np.mean(drawn[1].forces ** 2))
    assert np.mean(energies) / (1.5 * 31 * units.kB * 300) == pytest.approx(1.0, abs=0.15)
    # equipartition over modes: <F^2> = kT tr(H); independent displacements would give 1.3 times that
    moves = [probe.positions - atoms.positions for probe in probes]
    work = sum(np.sum(x.forces * u) for x, u in zip(labels, moves, strict=True))
    stiffness = -work / sum(np.sum(u**2) for u in moves)
    assert np.mean(squares) / (units.kB * 30 * stiffness) == pytest.approx(1.0, abs=0.15)
    hot = fit_harmonic(
        atoms, replace(reference, forces=rng.normal(size=(32, 3))), [(probes[0], labels[0])]
    )
    assert hot.temperature > 300
    assert np.abs(hot.draw(300.0, rng)).max() < np.abs(model.draw(300.0, rng)).max()


def test_molecules_are_not_shifted_or_turned() -> None:
    teacher, rng = EmtTeacher(), np.random.default_rng(0)
    atoms = molecule("CH3CH2OH")
    probe = atoms.copy()
    probe.positions += rng.normal(scale=0.03, size=(9, 3))
    reference, labels = teacher.label([atoms, probe])
    model = fit_harmonic(atoms, reference, [(probe, labels)])
    moves = model.draw(100.0, rng)
    assert moves.mean(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
    centred = atoms.positions - atoms.positions.mean(axis=0)
    assert np.cross(centred, moves).sum(axis=0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert 1e-3 < np.abs(moves).max() < 0.5


# --- plans ---


@pytest.mark.parametrize("budget", [60, 160, 600, 3000])
@pytest.mark.parametrize("seed", ["Cu", "H2O", "slab"])
def test_a_plan_keeps_to_its_budget(budget: int, seed: str) -> None:
    atoms = {"Cu": bulk("Cu"), "H2O": molecule("H2O"), "slab": fcc111("Cu", (2, 2, 3), vacuum=8)}[
        seed
    ]
    plan = plan_sampling([atoms], budget=budget)
    assert 0.85 * budget <= plan.n_evaluations <= budget
    assert 0 < plan.n_held_out < plan.n_frames <= plan.n_evaluations
    text = str(plan)
    for word in ("teacher-md, held out", "close-contact", "total", "fs", f"{plan.n_frames}"):
        assert word in text
    assert ("strain" in plan.counts) == (seed != "H2O")
    assert plan.fingerprint == plan_sampling([atoms], budget=budget).fingerprint
    assert plan.fingerprint != plan_sampling([atoms], budget=budget, seed=1).fingerprint
    timesteps = {group.settings.timestep for group in plan.dynamics}
    assert timesteps == {0.5 if seed == "H2O" else 2.0}


def test_a_plan_for_a_number_of_frames() -> None:
    assert plan_sampling([bulk("Cu")], n_frames=1000).n_frames == pytest.approx(1000, rel=0.1)
    assert plan_sampling([bulk("Cu")], n_frames=300, budget=1000).n_frames < 620


def test_many_structures_are_thinned_and_that_is_said() -> None:
    plan = plan_sampling([bulk("Cu")] * 50, budget=150)
    assert len(plan.cells) == 10
    assert "10 of 50 structures" in str(plan)


def test_plans_that_cannot_be() -> None:
    class Info:
        name, elements = "tiny", (29,)

    with pytest.raises(UnsupportedElementError, match="structure 1 contains Si, unknown to tiny"):
        plan_sampling([bulk("Cu"), bulk("Si")], Info())
    with pytest.raises(UsageError, match="0 < lowest <= highest"):
        plan_sampling([bulk("Cu")], temperatures=(900, 300))
    with pytest.raises(UsageError, match="use at least 15"):
        plan_sampling([bulk("Cu")], budget=10)
    with pytest.raises(DataError, match="no structures"):
        plan_sampling([])
    with pytest.raises(DataError, match="no atoms"):
        plan_sampling([ase.Atoms()])
    broken = bulk("Cu")
    broken.positions[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        plan_sampling([broken])
    with pytest.raises(DataError, match="length zero"):
        plan_sampling([ase.Atoms("Cu", pbc=True)])


# --- carrying plans out ---

PLAN = plan_sampling([bulk("Cu", cubic=True)], budget=70, cutoff=3.0, max_atoms=8)


def sample(path: Path, teacher: EmtTeacher) -> list[Frame]:
    with LabelStore(path, "a", teacher={"name": "emt"}) as store:
        run_sampling(teacher, PLAN, store)
        return store.read()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    return sample(tmp_path_factory.mktemp("whole") / "a.h5", EmtTeacher())


def assert_same_frames(left: list[Frame], right: list[Frame]) -> None:
    assert len(left) == len(right)
    by_place = {(f.trajectory, f.step): f for f in right}
    assert len(by_place) == len(right)
    for a in left:
        b = by_place[a.trajectory, a.step]
        assert np.array_equal(a.atoms.positions, b.atoms.positions)
        assert np.array_equal(a.labels.forces, b.labels.forces)
        assert a.source == b.source


def test_a_plan_is_carried_out(tmp_path: Path) -> None:
    teacher, seen = EmtTeacher(), []
    with LabelStore(tmp_path / "a.h5", "a") as store:
        plan = measure_teacher(teacher, PLAN, store)
        assert 0 < plan.seconds < 60
        report = run_sampling(teacher, plan, store, on_progress=seen.append)
        frames, held_out = store.read(), store.held_out
    assert teacher.n_labelled == plan.n_evaluations
    assert report.n_labelled + report.n_found == plan.n_evaluations
    assert len(frames) + report.n_quarantined == plan.n_frames
    assert isinstance(seen[-1], SamplingProgress)
    assert (seen[-1].done, seen[-1].total) == (plan.n_evaluations, plan.n_evaluations)
    test = [f for f in frames if f.trajectory in held_out]
    assert len(test) == plan.n_held_out
    assert {f.source for f in test} == {"teacher-md"}
    assert min(f.step for f in test) > 0
    split = split_frames(frames, held_out=held_out)
    assert len(split.test) == len(test)
    sources = {f.source for f in frames}
    assert sources == {
        "seed",
        "rattle",
        "strain",
        "shear",
        "close-contact",
        "thermal",
        "teacher-md",
    }
    volumes = [f.atoms.get_volume() for f in frames if f.source == "strain"]
    assert np.ptp(volumes) / np.mean(volumes) > 0.15
    forces = {
        s: np.max([np.abs(f.labels.forces).max() for f in frames if f.source == s]) for s in sources
    }
    assert forces["close-contact"] > 2 * forces["thermal"]


def test_atoms_of_thermal_structures_keep_apart(tmp_path: Path) -> None:
    """Of a crystal with springs so soft that its neighbors would pass through each other."""
    teacher = EmtTeacher()
    teacher.fault = lambda _, labels: replace(labels, forces=0.02 * labels.forces)
    with LabelStore(tmp_path / "a.h5", "a") as store:
        run_sampling(teacher, PLAN, store)
        frames = store.read()
    drawn = [f for f in frames if f.source == "thermal" or (f.source, f.step) == ("teacher-md", 0)]
    assert {f.source for f in drawn} == {"thermal", "teacher-md"}
    nearest = [neighbor_list("d", f.atoms, 4.0).min() for f in drawn]
    assert min(nearest) > 0.7 * 0.97 * 3.61 / 2**0.5
    assert min(nearest) < 0.75 * 3.61 / 2**0.5


def test_the_cell_of_every_trajectory_is_known(tmp_path: Path) -> None:
    seeds = [bulk("Cu", cubic=True), bulk("Au", cubic=True), bulk("Al", cubic=True)]
    plan = plan_sampling(seeds, budget=160, cutoff=3.0, max_atoms=8)
    with LabelStore(tmp_path / "a.h5", "a") as store:
        run_sampling(EmtTeacher(), plan, store)
        frames = store.read()
    assert {frame.source for frame in frames} >= {"seed", "thermal", "teacher-md"}
    for frame in frames:
        cell = plan.find_cell(frame.trajectory)
        assert cell is not None
        assert plan.cells[cell].atoms.get_chemical_formula() == frame.atoms.get_chemical_formula()
    assert plan.find_cell(plan.number_trajectory(-1)) is None
    assert plan.find_cell(plan.number_trajectory(1 << 19)) is None


def test_cells_of_many_trajectories_are_found_without_hashing_the_plan_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round asks for every frame several times; with hundreds of cells that took minutes."""
    seeds = [bulk("Cu", cubic=True), bulk("Au", cubic=True), bulk("Al", cubic=True)]
    plan = plan_sampling(seeds, budget=160, cutoff=3.0, max_atoms=8)
    hashed: list[int] = []

    def count(atoms: ase.Atoms) -> bytes:
        hashed.append(len(atoms))
        return hash_structure(atoms)

    monkeypatch.setattr("fastff.distill.plan.hash_structure", count)
    for index in range(plan.n_static):
        plan.find_cell(plan.number_trajectory(index))
    assert len(hashed) <= len(plan.cells)
    assert replace(plan, seed=plan.seed + 1).fingerprint != plan.fingerprint


def test_the_same_seed_gives_the_same_frames(tmp_path: Path, uninterrupted: list[Frame]) -> None:
    assert_same_frames(uninterrupted, sample(tmp_path / "a.h5", EmtTeacher()))


@pytest.mark.parametrize("die_after", [1, 20, 45, 52, 64])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, die_after: int, uninterrupted: list[Frame]
) -> None:
    path, first, second = tmp_path / "a.h5", EmtTeacher(die_after), EmtTeacher()
    store = LabelStore(path, "a", teacher={"name": "emt"})
    with pytest.raises(KeyboardInterrupt):
        run_sampling(first, PLAN, store)
    store._file.close()  # no farewell
    assert_same_frames(uninterrupted, sample(path, second))
    assert first.n_labelled + second.n_labelled < PLAN.n_evaluations + 20
    third = EmtTeacher()
    assert_same_frames(uninterrupted, sample(path, third))
    assert third.n_labelled == 0


SCRIPT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from tests.test_sampling import EmtTeacher, sample
    class Slow(EmtTeacher):
        def label(self, structures):
            print(len(structures), flush=True)
            time.sleep(0.02)
            return super().label(structures)
    sample(Path(sys.argv[1]), Slow())
    """
)


def test_killed_sampling_loses_and_doubles_nothing(
    tmp_path: Path, uninterrupted: list[Frame]
) -> None:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    rng = np.random.default_rng(2)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "a.h5")],
            env=environment,
            stdout=subprocess.PIPE,
            cwd=root,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert_same_frames(uninterrupted, sample(tmp_path / "a.h5", EmtTeacher()))


def test_a_replica_that_blew_up_stays_down_after_a_restart(tmp_path: Path) -> None:
    plan = plan_sampling([bulk("Cu", cubic=True)], budget=160, cutoff=2.0, max_atoms=4)
    first = plan.dynamics[0]
    assert (len(first.replicas), first.settings.stride) == (2, 4)

    def explode(number: int, labels: Labels) -> Labels:
        fifth_step_of_second = plan.n_static + 2 * 5 + 1
        return (
            replace(labels, forces=labels.forces * 1e6)
            if number == fifth_step_of_second
            else labels
        )

    teacher = EmtTeacher()
    teacher.fault = explode
    with LabelStore(tmp_path / "a.h5", "a", teacher={"name": "emt"}) as store:
        report = run_sampling(teacher, plan, store)
        assert len(report.stopped) == 1
        assert "replica 1" in str(report)
        assert "at step 5" in str(report)
        frames = store.read()
        idle = EmtTeacher()
        again = run_sampling(idle, plan, store)
        assert idle.n_labelled == again.n_labelled == 0
        assert len(again.stopped) == 1
        assert_same_frames(frames, store.read())
    trajectory = plan.number_trajectory(plan.n_static + 1)
    assert sorted(f.step for f in frames if f.trajectory == trajectory) == [0, 4]


def test_labels_a_teacher_cannot_give_are_set_aside(tmp_path: Path) -> None:
    teacher = EmtTeacher()
    teacher.fault = lambda n, x: replace(x, energy=np.nan) if n in (4, 9) else x
    with LabelStore(tmp_path / "a.h5", "a") as store:
        report = run_sampling(teacher, PLAN, store)
        assert report.n_quarantined == store.n_quarantined == 2
        assert "2 set aside" in str(report)
    teacher = EmtTeacher()
    teacher.fault = lambda n, x: replace(x, energy=np.nan) if n == 0 else x
    with (
        LabelStore(tmp_path / "b.h5", "a") as store,
        pytest.raises(DataError, match="as given: energy"),
    ):
        run_sampling(teacher, PLAN, store)


def test_a_cold_teacher_is_warmed_up_before_it_is_timed(tmp_path: Path) -> None:
    """Also when an earlier run has stored what would have warmed it up."""

    class Cold(EmtTeacher):
        n_calls = 0

        def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
            self.n_calls += 1
            if self.n_calls <= 2:
                time.sleep(0.5)
            return super().label(structures)

    for _ in range(2):
        with LabelStore(tmp_path / "labels.h5", "a") as store:
            plan = measure_teacher(Cold(), PLAN, store)
        assert plan.seconds_per_atom * len(plan.cells[0].atoms) < 0.4
