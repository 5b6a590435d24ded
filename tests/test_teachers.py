"""What every teacher promises, run on each teacher that is installed."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from fastff.errors import DataError, MissingDependencyError, UnsupportedElementError, UsageError
from fastff.teachers import Teacher, load_teacher
from fastff.teachers.base import complete_structure, label_in_batches, split_by_atoms

PACKAGES = {"sevennet": "sevenn", "chgnet": "chgnet"}
EXACT = ["analytic:morse", "analytic:angular", "analytic:emt"]
LEARNED = ["sevennet:7net-0", "chgnet:0.3.0"]


@lru_cache
def make_teacher(spec: str) -> Teacher:
    return load_teacher(spec, device="cpu")


@pytest.fixture(params=[*EXACT, *LEARNED])
def teacher(request: pytest.FixtureRequest) -> Teacher:
    package = PACKAGES.get(request.param.split(":")[0])
    if package:
        pytest.importorskip(package)
    return make_teacher(request.param)


def get_tolerance(teacher: Teacher) -> float:
    """Relative and absolute tolerance, eV/atom and eV/Å: float64 formulas, or float32 networks."""
    return 1e-9 if teacher.info.family in ("analytic", "ase") else 2e-5


def rattle(atoms: Atoms, seed: int = 0, width: float = 0.08) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=width, size=(len(atoms), 3))
    return atoms


def make_structures() -> list[Atoms]:
    slab = fcc111("Cu", (2, 2, 2), vacuum=None)
    cell = bulk("Cu", cubic=True)
    skewed = bulk("Cu")
    shear = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.2, 0]])
    skewed.set_cell(skewed.cell.array + shear, scale_atoms=True)
    return [rattle(cell), rattle(slab, 1), rattle(skewed, 2), rattle(molecule("NH3"), 3, 0.03)]


def test_batched_equals_single(teacher: Teacher) -> None:
    structures = make_structures()
    together = teacher.label(structures)
    atol = get_tolerance(teacher)
    for atoms, labels in zip(structures, together, strict=True):
        alone = teacher.label([atoms])[0]
        assert abs(labels.energy - alone.energy) / len(atoms) < atol
        np.testing.assert_allclose(labels.forces, alone.forces, rtol=atol, atol=atol)
        assert labels.forces.shape == (len(atoms), 3)
        assert labels.forces.dtype == np.float64
        assert (labels.stress is None) == (not atoms.pbc.all())
        if labels.stress is not None:
            np.testing.assert_allclose(labels.stress, alone.stress, rtol=atol, atol=atol)
        if labels.energies is not None:
            assert abs(labels.energies.sum() - labels.energy) / len(atoms) < atol


def test_equals_its_own_calculator(teacher: Teacher) -> None:
    atoms = rattle(bulk("Cu", cubic=True))
    labels = teacher.label([atoms])[0]
    atoms.calc = teacher.calculator()
    atol = get_tolerance(teacher)
    assert abs(atoms.get_potential_energy() - labels.energy) / len(atoms) < atol
    np.testing.assert_allclose(atoms.get_forces(), labels.forces, rtol=atol, atol=atol)
    np.testing.assert_allclose(atoms.get_stress(), labels.stress, rtol=atol, atol=atol)


def test_forces_are_the_slope_of_the_energy(teacher: Teacher) -> None:
    atoms = rattle(bulk("Cu", cubic=True))
    direction = np.random.default_rng(5).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    exact = get_tolerance(teacher) < 1e-6
    step = 1e-4 if exact else 2e-2
    moved = [atoms.copy(), atoms.copy()]
    moved[0].positions += step * direction
    moved[1].positions -= step * direction
    plus, minus = teacher.label(moved)
    slope = -(plus.energy - minus.energy) / (2 * step)
    expected = (teacher.label([atoms])[0].forces * direction).sum()
    assert slope == pytest.approx(expected, abs=1e-6 if exact else 5e-3)


def test_stress_is_the_slope_of_the_energy(teacher: Teacher) -> None:
    atoms = rattle(bulk("Cu", cubic=True))
    stress = teacher.label([atoms])[0].stress
    exact = get_tolerance(teacher) < 1e-6
    step = 1e-5 if exact else 2e-3
    strained = []
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for row, column in pairs:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[row, column] += 0.5 * sign * step
            strain[column, row] += 0.5 * sign * step
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.append(copy)
    energy = np.array([labels.energy for labels in teacher.label(strained)]).reshape(6, 2)
    slope = (energy[:, 0] - energy[:, 1]) / (2 * step) / atoms.get_volume()
    np.testing.assert_allclose(slope, stress, atol=1e-7 if exact else 3e-4)


def test_slab_without_third_vector_equals_padded_slab(teacher: Teacher) -> None:
    bare = rattle(fcc111("Cu", (2, 2, 2), vacuum=None))
    bare.cell[2] = 0.0
    padded = bare.copy()
    padded.center(vacuum=15.0, axis=2)
    shifted = padded.copy()
    shifted.positions[:, 2] -= 40.0
    first, second, third = teacher.label([bare, padded, shifted])
    atol = get_tolerance(teacher)
    for other in (second, third):
        assert first.stress is None
        assert other.stress is None
        assert abs(first.energy - other.energy) / len(bare) < atol
        np.testing.assert_allclose(first.forces, other.forces, rtol=atol, atol=atol)


def test_molecule_ignores_its_dummy_cell(teacher: Teacher) -> None:
    free = rattle(molecule("NH3"), 3, 0.03)
    boxed = free.copy()
    boxed.set_cell(np.eye(3))
    wire = free.copy()
    wire.set_cell([[0, 0, 0], [0, 0, 0], [0, 0, 25.0]])
    wire.pbc = (False, False, True)
    labels = teacher.label([free, boxed, wire])
    for other in labels[1:]:
        assert abs(labels[0].energy - other.energy) / len(free) < get_tolerance(teacher)
        np.testing.assert_allclose(
            labels[0].forces, other.forces, rtol=1e-5, atol=get_tolerance(teacher)
        )


def test_one_atom_cell_equals_its_supercell(teacher: Teacher) -> None:
    small = bulk("Cu", a=3.5)
    single, large = teacher.label([small, small * (2, 2, 2)])
    atol = get_tolerance(teacher)
    assert abs(single.energy - large.energy / 8) < atol
    np.testing.assert_allclose(single.stress, large.stress, rtol=atol, atol=atol)


def test_left_handed_cell_is_the_same_crystal(teacher: Teacher) -> None:
    """CHGNet would give the stress the sign of the volume."""
    atoms = rattle(bulk("Cu", a=3.5, cubic=True))
    left = atoms.copy()
    left.set_cell(atoms.cell.array[[1, 0, 2]], scale_atoms=False)
    assert np.linalg.det(left.cell.array) < 0
    first, second = teacher.label([atoms, left])
    atol = get_tolerance(teacher)
    assert abs(first.energy - second.energy) / len(atoms) < atol
    np.testing.assert_allclose(first.forces, second.forces, rtol=1e-5, atol=10 * atol)
    np.testing.assert_allclose(first.stress, second.stress, rtol=1e-5, atol=atol)


def test_atoms_many_boxes_away_are_wrapped(teacher: Teacher) -> None:
    atoms = rattle(bulk("Cu", cubic=True))
    away = atoms.copy()
    away.positions += np.array([[7, 0, 0], [0, -3, 0], [0, 0, 0], [2, 2, -9]]) @ atoms.cell.array
    first, second = teacher.label([atoms, away])
    assert abs(first.energy - second.energy) / len(atoms) < get_tolerance(teacher)
    np.testing.assert_allclose(first.forces, second.forces, rtol=1e-5, atol=get_tolerance(teacher))


def test_input_is_left_alone(teacher: Teacher) -> None:
    atoms = fcc111("Cu", (2, 2, 2), vacuum=None)
    atoms.positions -= 30.0
    before = atoms.copy()
    teacher.label([atoms])
    assert atoms == before
    assert atoms.calc is None


def test_info_is_complete_and_json(teacher: Teacher) -> None:
    record = json.loads(json.dumps(teacher.info.to_dict()))
    assert record["licence"]
    assert record["citation"]
    assert record["version"]
    if teacher.info.family in PACKAGES:
        assert len(record["weights_sha256"]) == 64


@pytest.mark.parametrize("spec", ["chgnet:0.3.0", "analytic:emt"])
def test_unknown_elements_are_named(spec: str) -> None:
    if spec.startswith("chgnet"):
        pytest.importorskip("chgnet")
    atoms = Atoms("CuRnCuX", positions=np.arange(12).reshape(4, 3) * 1.0)
    with pytest.raises(UnsupportedElementError, match=r"Rn, X \(atom indices 1, 3\)"):
        make_teacher(spec).label([atoms])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.positions.__setitem__((2, 1), np.nan), "position of atom 2"),
        (lambda a: a.cell.__setitem__(0, 0.0), "cell vector a is zero"),
    ],
)
def test_bad_structures_are_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    atoms = bulk("Cu", cubic=True)
    change(atoms)
    with pytest.raises(DataError, match=message):
        make_teacher("analytic:morse").label([atoms])


def test_no_structures_no_labels_and_one_structure_is_refused() -> None:
    assert make_teacher("analytic:morse").label([]) == []
    with pytest.raises(UsageError, match="sequence"):
        make_teacher("analytic:morse").label(bulk("Cu"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("sevenet", {}, "did you mean 'sevennet'"),
        ("analytic:mors", {}, "did you mean 'morse'"),
        ("analytic:morse", {"cutof": 4.0}, "did you mean 'cutoff'"),
        ("ase:EMT", {}, "not an import path"),
        ("ase:ase.calculators.emt:Nothing", {}, "no calculator 'Nothing'"),
        ("ase:ase.calculators.lj:LennardJones", {"elements": "Ar Qq"}, "'Qq'"),
    ],
)
def test_wrong_requests_are_answered(spec: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_teacher(spec, options=options)


def test_import_path_that_is_not_there() -> None:
    with pytest.raises(MissingDependencyError, match="no_such_package"):
        load_teacher("ase:no_such_package:Calculator")


def test_ase_options_reach_the_calculator() -> None:
    narrow = load_teacher(
        "ase:ase.calculators.lj:LennardJones", options={"epsilon": 1.0, "rc": 5.0}
    )
    double = load_teacher(
        "ase:ase.calculators.lj:LennardJones", options={"epsilon": 2.0, "rc": 5.0}
    )
    atoms = bulk("Ar", a=1.6)
    assert double.label([atoms])[0].energy == pytest.approx(2 * narrow.label([atoms])[0].energy)


def test_what_an_ase_calculator_refuses_is_bad_data() -> None:
    teacher = load_teacher("ase:ase.calculators.emt:EMT", device="cpu")
    with pytest.raises(DataError, match=r"cannot label MgO .*No EMT-potential for Mg.*leave such"):
        teacher.label([bulk("MgO", "rocksalt", a=4.2)])


def test_sevennet_fidelity_must_be_named() -> None:
    pytest.importorskip("sevenn")
    with pytest.raises(UsageError, match="R2SCAN, PBE"):
        load_teacher("sevennet:7net-mf-0", device="cpu")
    with pytest.raises(UsageError, match="leave the option modal"):
        load_teacher("sevennet:7net-0", device="cpu", options={"modal": "PBE"})
    atoms = [rattle(bulk("Cu", cubic=True)), rattle(bulk("Si"), 1)]
    energies = []
    for modal in ("pbe", "R2SCAN"):
        teacher = load_teacher("sevennet:7net-mf-0", device="cpu", options={"modal": modal})
        labels = teacher.label(atoms)
        check = atoms[0].copy()
        check.calc = teacher.calculator()
        assert check.get_potential_energy() == pytest.approx(labels[0].energy, abs=1e-4)
        energies.append(labels[0].energy)
    assert abs(energies[0] - energies[1]) > 1.0


def test_lone_atoms_have_no_forces_in_sevennet() -> None:
    pytest.importorskip("sevenn")
    labels = make_teacher("sevennet:7net-0").label(
        [Atoms("Cu"), Atoms("O2", [[0, 0, 0], [0, 0, 90]])]
    )
    assert [np.abs(entry.forces).max() for entry in labels] == [0.0, 0.0]
    assert all(np.isfinite(entry.energy) for entry in labels)


def test_lone_atoms_are_refused_by_chgnet() -> None:
    pytest.importorskip("chgnet")
    with pytest.raises(DataError, match="isolated"):
        make_teacher("chgnet:0.3.0").label([Atoms("Cu")])
    pair_and_one = Atoms("O2Cu", [[0, 0, 0], [0, 0, 1.2], [0, 0, 40]])
    with pytest.warns(UserWarning, match="no neighbour"):
        make_teacher("chgnet:0.3.0").label([pair_and_one])


def test_unknown_pickle_needs_trust(tmp_path: Path) -> None:
    pytest.importorskip("sevenn")
    from fastff.teachers.sevennet import SHIPPED
    from fastff.teachers.weights import find_package

    folder = find_package("sevenn")
    assert folder is not None
    original = folder / "pretrained_potentials" / SHIPPED["7net-0"].file
    same = tmp_path / "copy.pth"
    same.write_bytes(original.read_bytes())
    assert load_teacher("sevennet", weights=same, device="cpu").info.weights == "7net-0"
    checkpoint = torch.load(original, map_location="cpu", weights_only=False)
    checkpoint["epoch"] = 12345
    other = tmp_path / "other.pth"
    torch.save(checkpoint, other)
    with pytest.raises(UsageError, match="trust=true"):
        load_teacher("sevennet", weights=other, device="cpu")
    trusted = load_teacher("sevennet", weights=other, device="cpu", options={"trust": True})
    assert trusted.info.weights == str(other)
    assert trusted.info.licence.startswith("unknown")
    with pytest.raises(MissingDependencyError, match="not found"):
        load_teacher("sevennet", weights=tmp_path / "absent.pth", device="cpu")


def test_chgnet_file_of_another_kind(tmp_path: Path) -> None:
    pytest.importorskip("chgnet")
    wrong = tmp_path / "page.pth"
    wrong.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="not a CHGNet checkpoint"):
        load_teacher("chgnet", weights=wrong, device="cpu")


def test_batches_are_cut_by_atom_count() -> None:
    structures = [bulk("Cu") * (n, 1, 1) for n in (1, 3, 2, 9, 1, 1)]
    assert split_by_atoms(structures, 4) == [[0, 1], [2], [3], [4, 5]]


def test_out_of_memory_halves_the_batch() -> None:
    structures = [bulk("Cu")] * 8
    sizes: list[int] = []

    def label(batch: list[Atoms]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        return [len(atoms) for atoms in batch]

    assert label_in_batches(structures, 8, label) == [1] * 8  # type: ignore[arg-type,comparison-overlap]
    assert sizes == [8, 4, 2, 2, 2, 2]


def test_completed_structure_keeps_order_charges_and_info() -> None:
    atoms = molecule("CH3OH")
    atoms.info["charge"] = -1
    atoms.set_initial_charges(np.arange(6) / 10)
    whole = complete_structure(atoms, 5.0)
    assert whole.cell.rank == 3
    assert whole.info == {"charge": -1}
    np.testing.assert_array_equal(whole.get_initial_charges(), atoms.get_initial_charges())
    np.testing.assert_allclose(whole.get_all_distances(), atoms.get_all_distances(), atol=1e-12)
    np.testing.assert_array_equal(whole.pbc, False)
    assert complete_structure(atoms, 5.0, all_periodic=True).pbc.all()


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 1, 0), (0, 0, 0)])
def test_completed_structure_lies_inside_its_cell(pbc: tuple[int, int, int]) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.positions += [-31.0, 17.0, 90.0]
    atoms.pbc = pbc
    whole = complete_structure(atoms, 4.0)
    fractional = whole.cell.scaled_positions(whole.positions)
    assert fractional.min() >= 0.0
    assert fractional.max() < 1.0
    heights = np.abs(np.linalg.det(whole.cell.array)) / np.array(
        [np.linalg.norm(np.cross(whole.cell[k - 2], whole.cell[k - 1])) for k in range(3)]
    )
    extent = np.ptp(atoms.positions, axis=0)
    free = ~np.array(pbc, dtype=bool)
    assert (heights[free] >= extent[free] + 8.0).all()


def test_angular_teacher_is_the_sum_over_bond_pairs() -> None:
    from ase.data import covalent_radii

    atoms = rattle(molecule("NH3"), 4, 0.1)
    plain = load_teacher("analytic:angular", device="cpu", options={"strength": 0.0}).label([atoms])
    angular = load_teacher("analytic:angular", device="cpu", options={"strength": 2.0}).label(
        [atoms]
    )
    total = 0.0
    for i in range(4):
        bonds = []
        for j in set(range(4)) - {i}:
            vector = atoms.positions[j] - atoms.positions[i]
            distance = np.linalg.norm(vector)
            rest = covalent_radii[atoms.numbers[[i, j]]].sum()
            weight = np.exp(-((distance / rest) ** 2)) * (1 - (distance / 5.0) ** 2) ** 3
            bonds.append((weight, vector / distance))
        for first in range(3):
            for second in range(first):
                (w1, u1), (w2, u2) = bonds[first], bonds[second]
                total += 2.0 * w1 * w2 * (u1 @ u2 + 1 / 3) ** 2
    assert angular[0].energy - plain[0].energy == pytest.approx(total, rel=1e-12)
