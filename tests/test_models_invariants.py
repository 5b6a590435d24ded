"""Students obey physics: every invariant for every architecture, and the contract sees planted defects."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor
from untrained import KINDS, make_student

from fastff.errors import UnsupportedElementError
from fastff.graph import batch_graphs
from fastff.models import ARCHITECTURES, Student
from fastff.models.zbl import ScreenedCore
from fastff.neighbors import atoms_to_graph
from fastff.testing import (
    check_student,
    evaluate,
    make_structures,
    measure_forces,
)

ELEMENTS = (8, 14, 29)
STATIC = {
    "forces", "stress", "rotation", "inversion", "translation", "permutation", "supercell", "momentum",
    "jacobian, float32", "rotation, float32", "float32", "skin", "primitive cell", "separation",
    "isolated atoms", "cut-off", "batch", "crosstalk", "repulsion", "saved and loaded",
}  # fmt: skip
"""The gate without dynamics, in which untrained students fall into their own cores unless they are cold."""

COLD = 2.0
"""K."""


@pytest.fixture(scope="module", params=KINDS)
def student(request: pytest.FixtureRequest) -> Student:
    return make_student(request.param, ELEMENTS).double()


def test_every_invariant(student: Student) -> None:
    report = check_student(student, only=STATIC)
    # nothing that is learned lets atoms fall into each other where it does not follow how near they are
    allowed = {"repulsion"} if student.config.inner_limit is None else set()
    assert set(report.failures) <= allowed, f"\n{report}"
    assert {check.test for check in report.checks} == STATIC
    assert not report.not_applicable


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_energy_is_conserved_to_second_order(architecture: str) -> None:
    model = make_student(architecture, ELEMENTS, energy_scale=0.02)
    report = check_student(model, only={"NVE drift", "NVE order"}, temperature=COLD)
    assert report.passed, f"\n{report}"
    assert {check.test for check in report.checks} == {"NVE drift", "NVE order"}


def test_forces_are_large_enough_to_mean_something(student: Student) -> None:
    for name, atoms in make_structures(ELEMENTS).items():
        prediction = evaluate(student, [atoms])
        if name != "one-atom":
            assert prediction.forces.abs().max() > 0.01, name
        assert prediction.stress.abs().amax(dim=(1, 2)) > 1e-6, name


@pytest.mark.parametrize("kind", ["m2", "painn"])
def test_autocast_leaves_predictions_alone(kind: str) -> None:
    """The kernels do not follow it, and three digits of forces are too few."""
    student = make_student(kind, ELEMENTS)
    graph = atoms_to_graph(make_structures(ELEMENTS)["bulk"], student.cutoff)
    expected = student(graph)
    with torch.autocast("cpu", torch.bfloat16):
        found = student(graph)
    assert torch.equal(found.forces, expected.forces)
    assert torch.equal(found.energy, expected.energy)


def test_learned_part_alone(student: Student) -> None:
    """Without core repulsion, which could hide a defect of the rest by its size."""
    bare = copy.deepcopy(student)
    bare.core = None
    atoms = make_structures(ELEMENTS)["bulk"]
    assert evaluate(bare, [atoms]).forces.abs().max() > 1e-3
    assert measure_forces(bare, atoms, step=1e-4) < 2e-7


def test_primitive_and_conventional_cell(student: Student) -> None:
    primitive, cubic = bulk("Cu", a=3.6), bulk("Cu", a=3.6, cubic=True)
    one, four = evaluate(student, [primitive]), evaluate(student, [cubic])
    assert float(four.energy / 4 - one.energy) == pytest.approx(0.0, abs=1e-11)
    torch.testing.assert_close(four.stress, one.stress, rtol=0, atol=1e-12)


def test_skewed_and_left_handed_cells_of_one_lattice(student: Student) -> None:
    atoms = make_structures(ELEMENTS)["bulk"]
    reference = evaluate(student, [atoms])
    for matrix in ([[1, 0, 0], [3, 1, 0], [-2, 4, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]):
        other = atoms.copy()
        other.set_cell(np.array(matrix) @ atoms.cell.array, scale_atoms=False)
        found = evaluate(student, [other])
        torch.testing.assert_close(found.forces, reference.forces, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.stress, reference.stress, rtol=0, atol=1e-12)


def test_dummy_cells_are_ignored_without_periodicity(student: Student) -> None:
    atoms = make_structures(ELEMENTS)["molecule"]
    boxed = atoms.copy()
    boxed.set_cell(np.eye(3))
    torch.testing.assert_close(
        evaluate(student, [boxed]).forces, evaluate(student, [atoms]).forces, rtol=0, atol=0
    )


def test_atom_beside_a_slab_counts(student: Student) -> None:
    slab = make_structures(ELEMENTS)["slab"]
    beside = slab + Atoms("O", [[0, 0, 100.0]])
    alone, both = evaluate(student, [slab]), evaluate(student, [beside])
    difference = float(both.energy - alone.energy - student.composition_energies[0])
    # the lone atom has periodic images of its own within reach, and nothing else
    images = Atoms("O", cell=slab.cell, pbc=slab.pbc)
    own = float(evaluate(student, [images]).energy - student.composition_energies[0])
    assert difference == pytest.approx(own, abs=1e-10)
    assert both.forces.shape == (len(beside), 3)
    assert both.energies.shape == (len(beside),)


def test_energy_is_smooth_while_atoms_cross_the_cutoff(student: Student) -> None:
    """A dimer scan through the cut-off, beside a third atom: the force changes as slowly as its slope says."""
    distances = np.linspace(student.cutoff - 0.2, student.cutoff + 0.1, 301)
    frames = [Atoms("Cu3", [[0, 0, 0], [0, 2.4, 0], [d, 0, 0]]) for d in distances]
    found = evaluate(student, frames)
    forces = found.forces.view(len(frames), 3, 3)
    assert forces[0, 2].abs().max() > 0.0
    second = forces.diff(n=2, dim=0).abs().amax(dim=(1, 2))
    assert second.max() < 1e-6, "a kink in the force"
    beyond = distances > student.cutoff
    assert not forces[beyond, 2].any()
    assert found.energy[beyond].unique().numel() == 1


def test_no_gradient_across_structures(student: Student) -> None:
    structures = list(make_structures(ELEMENTS).values())
    moved = [atoms.copy() for atoms in structures]
    moved[1].rattle(0.1, seed=1)
    before, after = evaluate(student, structures), evaluate(student, moved)
    first = len(structures[0])
    last = first + len(structures[1])
    assert torch.equal(before.energy[[0, 2, 3]], after.energy[[0, 2, 3]])
    assert torch.equal(before.forces[:first], after.forces[:first])
    assert torch.equal(before.forces[last:], after.forces[last:])
    assert not torch.equal(before.forces[first:last], after.forces[first:last])


def test_shapes_of_one_and_of_no_structure_with_edges(student: Student) -> None:
    one = evaluate(student, [Atoms("Cu")])
    assert one.energy.shape == (1,)
    assert one.forces.shape == (1, 3)
    assert one.stress.shape == (1, 3, 3)
    assert not one.stress.any()
    assert one.energy.dtype == one.energies.dtype == torch.float64


def test_far_apart_atoms_have_their_composition_energies(student: Student) -> None:
    found = evaluate(student, [Atoms("CuO", [[0, 0, 0], [100.0, 0, 0]])])
    expected = student.composition_energies[2] + student.composition_energies[0]
    assert float(found.energy) == pytest.approx(float(expected), abs=1e-10)
    assert not found.forces.any()


def test_isolated_atoms_in_single_precision(student: Student) -> None:
    single = copy.deepcopy(student).float()
    for n in (1, 2, 40):
        atoms = Atoms(["Cu"] * n, np.arange(n)[:, None] * [20.0, 0, 0])
        found = evaluate(single, [atoms])
        deviation = found.energies - student.composition_energies[2]
        assert deviation.abs().max() < 1e-7
        assert not found.forces.any()


def test_large_composition_energies_lose_no_digits_in_single_precision(student: Student) -> None:
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.05, seed=0)
    exact, single = copy.deepcopy(student), copy.deepcopy(student).float()
    offset = -4000.123456789012
    learned = float(evaluate(single, [atoms]).energy) - len(atoms) * float(
        single.composition_energies[2]
    )
    for model in (exact, single):
        model.composition_energies.fill_(offset)
    energy = float(evaluate(single, [atoms]).energy)
    assert energy - len(atoms) * offset == pytest.approx(learned, abs=1e-8)
    assert abs(energy - float(evaluate(exact, [atoms]).energy)) / len(atoms) < 1e-6


def test_precise_buffers_survive_conversion(student: Student) -> None:
    before = {k: v.clone() for k, v in student.named_buffers()}
    back = copy.deepcopy(student).float().half().double()
    for name in ("composition_energies", "energy_scale", "core.reach", "core.strength"):
        assert torch.equal(before[name], dict(back.named_buffers())[name]), name
    for dtype in (torch.float32, torch.float64):
        converted = copy.deepcopy(student).to(dtype)
        other = {k for k, v in converted.named_buffers() if v.dtype != dtype}
        other = {k.rpartition(".")[2] for k in other} - {"species_of"}
        precise = {"composition_energies", "energy_scale", "inverse_length", "reach", "strength"}
        assert other == (precise if dtype == torch.float32 else set())


@pytest.mark.parametrize("symbol", ["Xe", "X"])
def test_unknown_elements_are_named_with_their_indices(student: Student, symbol: str) -> None:
    atoms = Atoms(["Cu", symbol, "Cu", symbol], np.arange(4)[:, None] * [2.5, 0, 0])
    with pytest.raises(UnsupportedElementError, match=rf"{symbol} \(indices 1, 3\).*O, Si, Cu"):
        evaluate(student, [atoms])


def test_number_beyond_the_periodic_table(student: Student) -> None:
    with pytest.raises(UnsupportedElementError, match=r"number 119 \(indices 0\)"):
        student.find_species(torch.tensor([119]))


def test_far_from_the_origin_in_single_precision(student: Student) -> None:
    single = copy.deepcopy(student).float()
    atoms = make_structures(ELEMENTS)["bulk"]
    far = atoms.copy()
    far.positions += 1000.0 * atoms.cell.array.sum(axis=0) + [1e3, 0, 0]
    one, other = evaluate(single, [atoms]), evaluate(single, [far])
    assert (one.forces - other.forces).abs().max() < 1e-5


class TestCore:
    """Screened nuclear repulsion alone."""

    @staticmethod
    def scan(distances: np.ndarray, pair: tuple[int, int] = (8, 29)) -> tuple[Tensor, Tensor]:
        core = ScreenedCore(ELEMENTS)
        vectors = torch.zeros(2 * len(distances), 3, dtype=torch.float64)
        vectors[:, 0] = torch.from_numpy(distances).repeat_interleave(2)
        vectors[1::2] *= -1
        n = torch.arange(len(distances))
        edges = torch.stack([2 * n, 2 * n + 1], dim=1)
        index = torch.stack([edges.flatten(), edges.flip(1).flatten()])
        species = torch.tensor([ELEMENTS.index(z) for z in pair]).repeat(len(distances))
        energies, gradient = core(vectors, index, species)
        return energies.view(-1, 2).sum(dim=1), gradient[::2, 0] * 2

    @pytest.mark.parametrize("pair", [(8, 8), (8, 29), (29, 29)])
    def test_monotone_and_smooth(self, pair: tuple[int, int]) -> None:
        distances = np.linspace(0.05, 2.5, 2000)
        energy, slope = self.scan(distances, pair)
        assert (energy.diff() <= 0).all()
        assert energy[0] > 100.0
        numeric = np.gradient(energy.numpy(), distances)
        inner = slice(200, -1)
        np.testing.assert_allclose(slope.numpy()[inner], numeric[inner], atol=2e-3 * 300, rtol=5e-3)
        assert energy[-1] == slope[-1] == 0.0
        reach = float(distances[(energy > 0).numpy()].max())
        near = abs(distances - reach) < 0.003
        assert slope[near].abs().max() < 0.2, "no step where it is switched off"

    def test_bare_coulomb_at_contact(self) -> None:
        energy, _ = self.scan(np.array([1e-4]))
        assert float(energy[0]) == pytest.approx(14.399645 * 8 * 29 / 1e-4, rel=5e-3)

    def test_known_value(self) -> None:
        """ZBL of Cu-Cu at 1 Å, screening function by hand, envelope ``u(1 / 2.112)``."""
        a = 0.4685 / (2 * 29**0.23)
        x = 1.0 / a
        phi = (
            0.18175 * np.exp(-3.1998 * x)
            + 0.50986 * np.exp(-0.94229 * x)
            + 0.28022 * np.exp(-0.4029 * x)
            + 0.02817 * np.exp(-0.20162 * x)
        )
        u = 1 / (0.8 * 2 * 1.32)
        envelope = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
        energy, _ = self.scan(np.array([1.0]), (29, 29))
        assert float(energy[0]) == pytest.approx(14.399645 * 29**2 * phi * envelope, rel=1e-6)


def test_batch_of_one_is_that_graph(water: Atoms) -> None:
    graph = atoms_to_graph(water, 5.0)
    assert batch_graphs([graph]) is graph
