"""What is a molecule, what is ordered, and what strains, close contacts and plans make of it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.neighborlist import neighbor_list

from fastff.distill.cells import (
    build_supercell,
    classify_cell,
    draw_strain,
    press_pairs,
    strain_cell,
)
from fastff.distill.molecules import find_molecules, is_disordered
from fastff.distill.planning import SHARES, plan_sampling


def make_liquid(seed: int = 0) -> Atoms:
    """Eight water molecules, turned at random about a cubic lattice 3.2 Å apart and wrapped into their cell."""
    rng = np.random.default_rng(seed)
    liquid = Atoms(cell=[6.4] * 3, pbc=True)
    for place in np.ndindex(2, 2, 2):
        one = molecule("H2O")
        one.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        one.translate(3.2 * np.array(place) - one.get_center_of_mass())
        liquid += one
    liquid.wrap()
    return liquid


def measure_bonds(atoms: Atoms) -> np.ndarray:
    return np.sort(neighbor_list("d", atoms, 1.2))


def test_molecules_are_found_across_boundaries() -> None:
    liquid = make_liquid()
    found = find_molecules(liquid)
    assert sorted(np.bincount(found.owners)) == [3] * 8
    assert not found.endless.any()
    assert np.abs(found.images).max() == 1  # some were cut by the boundary
    whole = liquid.positions + found.images @ liquid.cell.array
    spread = np.linalg.norm(whole - found.find_centers(whole), axis=1)
    assert spread.max() < 1.0
    crystal = find_molecules(bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    assert crystal.endless.all()
    assert set(crystal.owners) == {0}


def test_a_strained_liquid_keeps_its_bonds() -> None:
    cell = build_supercell(make_liquid(), 6.0, 30)
    strain = draw_strain(np.random.default_rng(0), 0.05, 0.03) + 0.04 * np.eye(3)
    strained = strain_cell(cell, strain)
    deformation = np.eye(3) + strain
    assert np.allclose(strained.cell, cell.atoms.cell.array @ deformation.T)
    assert measure_bonds(strained) == pytest.approx(measure_bonds(cell.atoms), abs=1e-9)
    centers = []
    for atoms in (cell.atoms, strained):
        found = find_molecules(atoms)
        whole = atoms.positions + found.images @ atoms.cell.array
        centers.append(atoms.cell.scaled_positions(found.find_centers(whole)) % 1.0)
    difference = (centers[0] - centers[1] + 0.5) % 1.0 - 0.5
    assert np.abs(difference).max() < 1e-9


def test_an_adsorbate_keeps_its_bond_and_the_slab_is_strained() -> None:
    slab = fcc111("Pt", (2, 2, 3), vacuum=8.0, periodic=True)
    far = slab.copy()
    add_adsorbate(far, molecule("CO"), 4.5, "ontop")
    cell = build_supercell(far, 5.0, 14)
    strained = strain_cell(cell, 0.05 * np.eye(3))
    assert strained.get_distance(12, 13) == pytest.approx(far.get_distance(12, 13))
    assert strained.get_distance(0, 1) == pytest.approx(1.05 * far.get_distance(0, 1))


def test_close_contacts_between_molecules_are_made_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastff.distill.cells._make_way", lambda *_: True)  # moves others, too
    liquid = make_liquid()
    owners = find_molecules(liquid).owners
    rng, seen = np.random.default_rng(0), set()
    for _ in range(30):
        pressed = press_pairs(liquid, 0.7, rng)
        assert pressed is not None
        i, j = np.flatnonzero(np.abs(pressed.positions - liquid.positions).max(axis=1) > 0)
        pair = "".join(sorted(str(liquid.symbols[k]) for k in (i, j)))
        seen.add((pair, bool(owners[i] == owners[j])))
    assert seen == {("HO", True), ("HO", False), ("HH", True), ("HH", False), ("OO", False)}


def test_order_is_told_from_disorder() -> None:
    assert not is_disordered(bulk("Si", cubic=True) * (2, 2, 2))
    assert not is_disordered(fcc111("Pt", (2, 2, 3), vacuum=8.0, periodic=True))
    assert is_disordered(make_liquid())
    snapshot = bulk("Cu", cubic=True) * (2, 2, 2)
    snapshot.rattle(0.2, seed=0)
    assert is_disordered(snapshot)
    assert not is_disordered(molecule("H2O"))


@pytest.mark.parametrize("budget", [150, 3000])
def test_liquids_and_molecules_get_dynamics(budget: int) -> None:
    plans = {
        name: plan_sampling([atoms], budget=budget, max_atoms=32)
        for name, atoms in {
            "crystal": bulk("Cu"),
            "disordered": make_liquid(),
            "molecule": molecule("CH3CH2OH"),
        }.items()
    }
    for name, plan in plans.items():
        assert classify_cell(plan.cells[0]) == name
        assert plan.n_evaluations <= budget
    dynamics = {name: plan.n_evaluations - plan.n_static for name, plan in plans.items()}
    assert min(dynamics["disordered"], dynamics["molecule"]) > 1.1 * dynamics["crystal"]
    for kind in ("strain", "close-contact", "thermal"):
        assert plans["disordered"].counts[kind] < plans["crystal"].counts[kind]
    assert "strain" not in plans["molecule"].counts


def test_shares_are_whole() -> None:
    for table in SHARES.values():
        for place in (0, 1):
            assert sum(pair[place] for pair in table.values()) == pytest.approx(1.0)
