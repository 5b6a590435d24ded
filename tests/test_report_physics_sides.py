"""Physical properties beside calculations of another kind, of two sides that differ by a known factor.

The student is twice the teacher in energies, forces and stresses: volumes and distances agree, moduli, depths and
formation energies are twice as large, frequencies sqrt(2) times. A wrong unit or exchanged sides cannot hide in that.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.spacegroup import crystal as make_crystal
from md_models import make_copper
from scipy.optimize import minimize_scalar

from fastff.calculator import FastFFCalculator
from fastff.distill.dynamics import draw_momenta
from fastff.labels import Labels
from fastff.report.physics import crystal as crystals
from fastff.report.physics import dimers, endurance, motion
from fastff.report.physics.derive import derive_quantities
from fastff.report.physics.material import describe_material
from fastff.report.physics.side import Side

H = 0.002
"""Strain, and displacement in Å, of differences of energies."""


def label_by_emt(factor):
    def label(structures):
        found = []
        for atoms in structures:
            image = atoms.copy()
            image.calc = EMT()
            stress = image.get_stress() if image.pbc.all() else None
            found.append(
                Labels(
                    factor * image.get_potential_energy(),
                    factor * image.get_forces(),
                    None if stress is None else factor * stress,
                )
            )
        return found

    return label


def make_sides():
    return Side("teacher", label_by_emt(1.0), {}), Side("student", label_by_emt(2.0), {})


def build_alloy(a=3.75):
    """Cu3Au along its cubic axes."""
    sites, cell = [(0, 0, 0), (0.5, 0.5, 0)], [a, a, a, 90, 90, 90]
    return make_crystal(("Au", "Cu"), sites, spacegroup=221, cellpar=cell)


def find_energy(atoms, strain=None):
    image = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    if strain is not None:
        image.set_cell(image.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    image.calc = EMT()
    return image.get_potential_energy()


@pytest.fixture(scope="module")
def ideal():
    """The alloy at the lattice constant of lowest energy."""
    found = minimize_scalar(
        lambda a: find_energy(build_alloy(a)), bounds=(3.5, 4.0), method="bounded"
    )
    return build_alloy(found.x)


@pytest.fixture(scope="module")
def crystal():
    """Given along odd axes and with another cell than the smallest."""
    atoms = build_alloy()
    atoms.set_cell(atoms.cell.array[[2, 0, 1]] + np.array([[0, 0, 0], [0, 0, 0], [3.75, 0, 0]]))
    atoms.rotate(37, (1, 2, 3), rotate_cell=True)
    return crystals.Crystal(describe_material(atoms.repeat((1, 1, 2))), *make_sides())


def derive(item):
    return {q.name: (q.teacher, q.student) for q in derive_quantities(item)}


def differentiate_twice(energies):
    return (energies[0] - 2.0 * energies[1] + energies[2]) / H**2


def test_equation_of_state(crystal, ideal):
    found = derive(crystals.measure_eos(crystal))
    volume = ideal.get_volume() / len(ideal)
    assert found["V0"] == pytest.approx((volume, volume), rel=2e-3)
    # E(s) at lengths of 1 + s: the volume is V (1 + s)^3, and d2E/ds2 = 9 V B at the minimum
    energies = [find_energy(ideal, s * np.eye(3)) for s in (-H, 0.0, H)]
    modulus = differentiate_twice(energies) / (9.0 * ideal.get_volume()) / units.GPa
    assert found["B0"] == pytest.approx((modulus, 2.0 * modulus), rel=0.02)


def test_elastic_constants_are_curvatures_of_the_energy_along_cubic_axes(crystal, ideal):
    pytest.importorskip("spglib")
    item = crystals.measure_elastic(crystal)
    assert item.cubic
    assert "standard axes" in item.description
    found = derive(item)

    def measure(*entries):
        strain = np.zeros((3, 3))
        for a, b, value in entries:
            strain[a, b] += value
        energies = [find_energy(ideal, s * strain) for s in (-H, 0.0, H)]
        return differentiate_twice(energies) / ideal.get_volume() / units.GPa

    c11 = measure((0, 0, 1.0))
    c12 = 0.5 * measure((0, 0, 1.0), (1, 1, 1.0)) - c11
    c44 = measure((1, 2, 0.5), (2, 1, 0.5))  # an angle changed by the whole of H
    for name, value in (("C11", c11), ("C12", c12), ("C44", c44)):
        assert found[name] == pytest.approx((value, 2.0 * value), rel=0.02), name
    assert found["bulk modulus (Hill)"][0] == pytest.approx((c11 + 2.0 * c12) / 3.0, rel=0.02)


def list_frequencies(atoms):
    """THz, imaginary ones negative, of displacements that all cells share; the masses' own differences of forces."""
    image = atoms.copy()
    image.calc = EMT()
    start = image.get_positions()
    hessian = []
    for k in range(start.size):
        forces = []
        for sign in (1.0, -1.0):
            moved = start.copy().ravel()
            moved[k] += sign * H
            image.set_positions(moved.reshape(-1, 3))
            forces.append(image.get_forces().ravel())
        hessian.append((forces[1] - forces[0]) / (2.0 * H))
    weights = 1.0 / np.sqrt(np.repeat(atoms.get_masses(), 3))
    symmetric = 0.5 * (np.array(hessian) + np.array(hessian).T)
    values = np.linalg.eigvalsh(symmetric * np.outer(weights, weights))
    # eV/(Å^2 amu) to rad/s, then to cycles in 1e12/s
    scale = np.sqrt(units._e / units._amu) * 1e10 / (2.0 * np.pi) * 1e-12
    return np.sort(np.sign(values) * np.sqrt(np.abs(values)) * scale)


def test_frequencies_are_those_of_the_cell_and_of_two_cells(crystal, ideal):
    pytest.importorskip("phonopy")
    item = crystals.measure_phonons(crystal)
    places = {name: item.path.index(min(item.path, key=lambda x: abs(x - p))) for p, name in item.marks}  # fmt: skip
    center = list_frequencies(ideal)
    for role, factor in (("teacher", 1.0), ("student", np.sqrt(2.0))):
        bands = np.array(getattr(item, role))
        assert bands[places["Γ"]] == pytest.approx(factor * center, abs=0.05)
    # waves of two cells are those at Γ and X
    both = list_frequencies(ideal.repeat((2, 1, 1)))
    mine = np.sort(np.concatenate([center, np.array(item.teacher)[places["X"]]]))
    assert "X" not in item.interpolated
    assert mine == pytest.approx(both, abs=0.06)
    highest = derive(item)["highest frequency"]
    assert highest == pytest.approx((np.max(item.teacher), np.max(item.student)))
    assert highest[1] == pytest.approx(np.sqrt(2.0) * highest[0], rel=1e-3)


def test_vacancies(crystal, ideal):
    item = crystals.measure_vacancies(crystal)
    perfect = ideal.repeat(round((item.n_atoms / 4) ** (1 / 3)))
    assert len(perfect) == item.n_atoms
    total = 0.0
    for symbol, count in (("Cu", 3), ("Au", 1)):
        hole = perfect.copy()
        del hole[hole.get_chemical_symbols().index(symbol)]
        hole.calc = EMT()
        unrelaxed = hole.get_potential_energy()
        BFGS(hole, logfile=None).run(fmax=0.03, steps=60)
        assert hole.get_potential_energy() < unrelaxed - 0.01
        total += count * hole.get_potential_energy()
    energy = total - (4 - 4 / len(perfect)) * find_energy(perfect)
    (found,) = derive(item).values()
    assert found == pytest.approx((energy, 2.0 * energy), rel=0.01)
    assert 1.0 < energy / 4.0 < 2.0


def test_isolated_pairs():
    item = dimers.measure_dimers(*make_sides(), [("Cu", "Cu"), ("Cu", "Au")], 6.0)
    for curve in item.curves:
        symbols = curve.pair.split("-")
        values = []
        for r in curve.distances:
            pair = Atoms(symbols, [[0, 0, 0], [r, 0, 0]], calculator=EMT())
            values.append(pair.get_potential_energy())
        expected = np.array(values) - values[-1]
        assert curve.teacher == pytest.approx(expected, abs=1e-9)
        assert curve.student == pytest.approx(2.0 * expected, abs=1e-9)
    depth = derive(item)["Cu-Cu, depth"]
    assert depth[1] == pytest.approx(2.0 * depth[0])


def vibrate(atoms, n_frames=24, n_replicas=1):
    """Frames 50 fs apart, all displacements drawn anew."""
    random = np.random.default_rng(3)
    replicas = []
    for _ in range(n_replicas):
        images = [atoms.copy() for _ in range(n_frames)]
        for image in images:
            image.positions += random.normal(scale=0.04, size=image.positions.shape)
        replicas.append(images)
    return motion.Run(replicas, 10.0)


def test_pair_distributions_count_neighbors_of_each_side():
    """Around gold twelve copper atoms, around copper four gold ones; a student's lattice that is 4 % wider."""
    runs = [vibrate(build_alloy(a).repeat(4)) for a in (3.75, 3.9)]
    pairs = [("Cu", "Au"), ("Au", "Cu"), ("Cu", "Cu"), ("Au", "Au")]
    item = motion.compare_distributions(*runs, pairs, 300.0)
    expected = {"Cu-Au": 4.0, "Au-Cu": 12.0, "Cu-Cu": 8.0}
    share = {"Cu": 3.0, "Au": 1.0}
    for curve in item.curves[:3]:
        r = np.array(curve.radii)
        for role, a in (("teacher", 3.75), ("student", 3.9)):
            g = np.array(getattr(curve, role))
            density = share[curve.pair.split("-")[1]] / a**3
            shell = r < 0.85 * a
            count = 4.0 * np.pi * density * float((g * r**2)[shell].sum()) * motion.BIN
            assert count == pytest.approx(expected[curve.pair], rel=0.01), (curve.pair, role)
    peaks = [derive(item)[f"{pair}, first peak at"] for pair in expected]
    for teacher, student in peaks:
        assert (teacher, student) == pytest.approx((3.75 / np.sqrt(2), 3.9 / np.sqrt(2)), abs=0.03)
    assert derive(item)["Au-Au, first peak at"] == pytest.approx((3.75, 3.9), abs=0.03)


def test_errors_of_pair_distributions_are_those_of_means_of_blocks():
    """Of frames that are independent, the scatter of the mean over blocks is that of frames over sqrt(frames)."""
    run = vibrate(build_alloy().repeat(2), 50, n_replicas=6)
    (curve,) = motion.compare_distributions(None, run, [("Cu", "Cu")], 300.0).curves
    images = [image for images in run.replicas for image in images]
    frames = np.array([motion.count_pairs(image, [("Cu", "Cu")])[0] for image in images])
    expected = frames.std(axis=0, ddof=1) / np.sqrt(len(frames))
    top = int(np.argmax(curve.student))
    near = slice(top - 3, top + 4)
    ratio = np.mean(curve.student_error[near]) / np.mean(expected[near])
    assert 0.7 < ratio < 1.4
    assert curve.student == pytest.approx(frames.mean(axis=0))


def walk(scale, drift=0.0):
    """Frames 10 fs apart: steps of variance ``scale``^2 per coordinate, all atoms carried along by ``drift``, Å."""
    random = np.random.default_rng(5)
    paths = np.cumsum(random.normal(scale=scale, size=(510, 60, 3)), axis=0)
    paths += drift * np.arange(510)[:, None, None]
    images = [Atoms("Ar60", positions, cell=[15] * 3, pbc=True) for positions in paths]
    return motion.Run([images], 2.0)


def test_diffusion_of_each_side_in_its_unit():
    """D = s^2 / (2 dt): 4.5 and 2 Å^2/ps, which are 45 and 20 times 1e-5 cm^2/s; a common drift is no diffusion."""
    item = motion.compare_diffusion(walk(0.3, drift=0.05), walk(0.2), 300.0)
    teacher, student = derive(item)["diffusion coefficient of Ar"]
    assert teacher == pytest.approx(45.0, rel=0.15)
    assert student == pytest.approx(20.0, rel=0.15)
    (curve,) = item.curves
    assert curve.times[:2] == pytest.approx((0.0, 0.01))
    # 6 D t
    assert curve.teacher[-1] == pytest.approx(27.0 * curve.times[-1], rel=0.2)
    assert curve.student[-1] == pytest.approx(12.0 * curve.times[-1], rel=0.2)


def trace(atoms, calculator, time_step, n_steps):
    """Total energy of every step of ASE's velocity Verlet, meV/atom less the first."""
    image = atoms.copy()
    image.calc = calculator
    dynamics = VelocityVerlet(image, timestep=time_step * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(image.get_total_energy()), interval=1)
    dynamics.run(n_steps)
    return 1e3 * (np.array(energies) - energies[0]) / len(image)


def test_energies_of_dynamics_are_those_of_ase(monkeypatch, tmp_path):
    monkeypatch.setattr(endurance, "LEAST_NVE", 0.1)
    monkeypatch.setattr(endurance, "SETTLING", 0.04)
    model = make_copper(cutoff=3.5, n_channels=4, n_mixed=4, hidden=(8, 8)).double()
    start = bulk("Cu", cubic=True).repeat(2)
    start.rattle(0.05, seed=1)
    start.set_momenta(draw_momenta(start, 600.0, 21, 0))
    item = endurance.measure_nve(make_sides()[0], model, start, 300.0, 4.0, 60, 40)
    assert item.teacher.times == pytest.approx(0.004 * np.arange(41))
    assert item.student.times == pytest.approx(0.04 * np.arange(7))
    teacher = trace(start, EMT(), 4.0, 40)
    student = trace(start, FastFFCalculator(model, dtype="float64", device="cpu"), 4.0, 60)
    assert item.teacher.energies == pytest.approx(teacher, rel=1e-3, abs=1e-4)
    assert item.student.energies == pytest.approx(student[::10], rel=1e-2, abs=1e-4)
    assert np.ptp(teacher) > 0.02
    found = derive(item)
    for role, rows, k in (("teacher", teacher, 0), ("student", student[::10], 1)):
        times = np.array(getattr(item, role).times)
        kept = times > 0.039
        slope = np.polyfit(times[kept], rows[kept], 1)[0]
        assert found["drift of the energy"][k] == pytest.approx(slope, rel=0.02, abs=1e-3), role


def test_frames_of_a_run_are_as_far_apart_as_it_says():
    teacher = make_sides()[0]
    dynamics = motion.Dynamics(bulk("Cu", cubic=True).repeat(2), 300.0, 2.0, 60, 3)
    run = motion.run_side(teacher, dynamics)
    assert run.length == pytest.approx(len(run.replicas[0]) * 0.01)
    steps = [np.abs(b.positions - a.positions).max() for a, b in pairwise(run.replicas[0])]
    # 10 fs apart at 300 K: a few hundredths of an Å
    assert 0.005 < np.mean(steps) < 0.2
