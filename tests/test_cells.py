"""Cells, strains, pressed pairs and thermal draws, of which samples are made. Not here: plans, sampling."""

from __future__ import annotations

import itertools
from dataclasses import replace

import ase
import numpy as np
import pytest
from ase import units
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from emt_frames import EmtTeacher

from fastff.distill.cells import (
    build_supercell,
    draw_strain,
    find_material_axes,
    hold_apart,
    press_pairs,
    strain_cell,
)
from fastff.distill.harmonic import fit_harmonic


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


def test_kinds_of_pairs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few structures would leave one out by chance."""
    monkeypatch.setattr("fastff.distill.cells._make_way", lambda *_: True)
    slab = fcc111("Pt", (4, 4, 3), vacuum=8.0, periodic=True)
    add_adsorbate(slab, molecule("CO"), 1.85, "ontop", mol_index=1)
    rng, seen = np.random.default_rng(0), []
    for turn in range(8):
        pressed = press_pairs(slab, 0.7, rng, turn)
        assert pressed is not None
        moved = np.flatnonzero(np.any(pressed.positions != slab.positions, axis=1))
        seen.append("".join(sorted(slab.symbols[k] for k in moved)))
    assert set(seen[:4]) == {"CO", "CPt", "OPt", "PtPt"}
    assert seen[4:] == seen[:4]


@pytest.mark.parametrize("name", ["CO on Pt", "water"])
def test_atoms_between_those_that_are_pressed_make_way(name: str) -> None:
    """Carbon under its oxygen, hydrogen between two: at 0.3 of a bond forces are thousands of eV/Å."""
    if name == "water":
        atoms = ase.Atoms("OHHOHH", cell=(9.0, 9.0, 9.0), pbc=True)
        atoms.positions = [
            (0, 0, 0), (0.96, 0, 0), (-0.24, 0.93, 0), (2.7, 0, 0), (3.0, 0.6, 0.7), (3.0, 0.6, -0.7)
        ]  # fmt: skip
    else:
        atoms = fcc111("Pt", (2, 2, 3), vacuum=8.0, periodic=True)
        add_adsorbate(atoms, molecule("CO"), 1.85, "ontop", mol_index=1)
    rng = np.random.default_rng(0)
    for _ in range(40):
        pressed = press_pairs(atoms, 0.65, rng)
        assert pressed is not None
        first, second, lengths = neighbor_list("ijd", pressed, 3.0)
        bonds = covalent_radii[pressed.numbers[first]] + covalent_radii[pressed.numbers[second]]
        assert (lengths / bonds).min() > 0.6499


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
