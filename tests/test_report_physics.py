"""Physical properties against values known by hand, both sides being analytic; and planted errors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule

import fastff
from fastff.checkpoint import load_model
from fastff.errors import DataError
from fastff.inference import predict
from fastff.models import build_student, configure_student
from fastff.report.physics import crystal as crystals
from fastff.report.physics import motion
from fastff.report.physics.derive import (
    PropertyError,
    average_moduli,
    derive_quantities,
    fit_eos,
)
from fastff.report.physics.magnitudes import find_magnitude_faults
from fastff.report.physics.material import describe_material, find_space_group
from fastff.report.physics.record import (
    DimerCurve,
    DimerItem,
    ElasticItem,
    EosItem,
    LeftOut,
    PhysicsPart,
    RdfCurve,
    RdfItem,
    VacancyItem,
)
from fastff.report.physics.run import measure_physics, verify_physics
from fastff.report.physics.side import Side, relax_bare
from fastff.report.physics.summary import describe_physics
from fastff.report.plan import choose_seeds
from fastff.report.stamps import check_stamp
from fastff.teachers import load_teacher

ZOO = Path(fastff.__file__).parent / "zoo"


@pytest.fixture(scope="module")
def copper():
    return load_teacher("analytic:emt", device="cpu")


@pytest.fixture(scope="module")
def part(copper):
    """EMT as both sides: whatever differs is a fault of the measurement."""
    torch.manual_seed(0)
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    sides = [
        Side("teacher", copper.label, {"name": "analytic:emt", "version": "1"}),
        Side("student", copper.label, {"sha256": "0" * 64}),
    ]
    return measure_physics(
        bulk("Cu", cubic=True), *sides, student, temperatures=(300.0, 400.0), budget=15.0
    )


def find(part, kind):
    return next(item for item in part.items if item.kind == kind)


def test_equal_sides_agree(part):
    assert {"dimers", "eos"} <= {item.kind for item in part.items}
    for kind in ("eos", "elastic", "phonons", "vacancy", "dimers"):
        for item in part.items:
            for q in item.quantities if item.kind == kind else ():
                if q.teacher is not None:
                    assert q.student == pytest.approx(q.teacher, rel=1e-3, abs=1e-3), q.name
    assert verify_physics(part) == []


def test_every_item_says_whose_it_is(part):
    for item in part.items:
        assert item.identity == {"teacher": part.teacher, "student": part.student}
        check_stamp(item.title, item, required=True)


def test_numbers_are_those_of_emt(part):
    """EMT's copper: lattice constant 3.59 Å, B 134 GPa, C44 96 GPa or so, vacancy about 1.1 eV."""
    values = {q.name: q.student for item in part.items for q in item.quantities}
    assert values["V0"] == pytest.approx(11.57, abs=0.1)
    assert values["B0"] == pytest.approx(134, abs=8)
    assert values["bulk modulus (Hill)"] == pytest.approx(values["B0"], rel=0.04)
    assert values["C11"] > values["C12"] > 0
    if "formation energy" in values:
        assert 0.8 < values["formation energy"] < 1.5


def test_what_does_not_fit_is_left_out_with_a_reason(part):
    left = {entry.title: entry.reason for entry in part.left_out}
    assert left["Diffusion"] == "the structure is a crystal"
    assert all(left.values())


def test_nothing_is_measured_without_time(copper):
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    sides = [Side("teacher", copper.label, {}), Side("student", copper.label, {})]
    found = measure_physics(bulk("Cu"), *sides, student, temperatures=(300.0, 300.0), budget=0.0)
    assert found.items == ()
    assert all(
        any(
            words in e.reason
            for words in ("--physics takes more", "a crystal", "no runs", "not installed")
        )
        for e in found.left_out
    )


@pytest.mark.parametrize(
    ("atoms", "kind"),
    [
        (bulk("Si"), "crystal"),
        (bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2), "crystal"),
        (fcc111("Pt", (2, 2, 3), vacuum=8.0), "slab"),
        (molecule("H2O"), "molecule"),
        (Atoms("Ar40", np.random.default_rng(0).uniform(0, 12, (40, 3)), cell=[12] * 3, pbc=True),
         "disordered"),
    ],
)  # fmt: skip
def test_material_is_recognised(atoms, kind):
    assert describe_material(atoms).kind == kind


def test_primitive_cell_is_found():
    pytest.importorskip("spglib")
    material = describe_material(bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2))
    assert len(material.unit) == 2
    assert material.formula == {"Na": 1, "Cl": 1}


def disturb(atoms, strain, rattle):
    image = atoms.copy()
    image.set_cell(image.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    image.rattle(rattle, seed=3)
    return image


STRAIN = np.array([[0.02, 0.01, 0.0], [0.01, -0.01, 0.005], [0.0, 0.005, 0.01]])


def test_primitive_cell_of_a_disturbed_crystal_is_found(copper):
    pytest.importorskip("spglib")
    atoms = disturb(bulk("Cu", cubic=True).repeat(2), STRAIN, 0.05)
    student = Side("student", copper.label, {})
    material = describe_material(atoms, partial(relax_bare, student))
    assert len(material.unit) == 1
    assert "after relaxation by the student" in material.words
    assert material.cell.fault == ""
    # a little noise alone needs no relaxation
    slight = disturb(bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2), 0.0, 0.01)
    assert len(describe_material(slight).unit) == 2


def test_a_crystal_without_primitive_cell_says_so_and_has_no_bands(copper):
    pytest.importorskip("spglib")
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.numbers[np.random.default_rng(1).permutation(32)[:16]] = 79
    material = describe_material(disturb(atoms, STRAIN, 0.02))
    assert len(material.unit) == 32
    assert "no primitive cell was found within 0.1 Å" in material.cell.fault


def test_disorder_that_was_repeated_is_no_primitive_cell():
    pytest.importorskip("spglib")
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.rattle(0.01, seed=4)
    material = describe_material(atoms.repeat((2, 1, 1)))
    assert len(material.unit) == 1
    assert "found within" in material.words
    # nor where nothing smaller is there
    atoms.numbers[np.random.default_rng(1).permutation(32)[:16]] = 79
    material = describe_material(atoms.repeat((2, 1, 1)))
    assert "no primitive cell was found" in material.cell.fault


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("nacl", 2), ("tio2", 6)])
def test_primitive_cells_of_shipped_models_are_found(name, size, recwarn):
    pytest.importorskip("spglib")
    student = load_model(ZOO / f"{name}-7net-0.safetensors", device="cpu")
    structure = choose_seeds(student.header, None)[0]
    side = Side("student", partial(predict, student), {})
    assert len(describe_material(structure, partial(relax_bare, side)).unit) == size
    assert not [entry for entry in recwarn if "logm" in str(entry.message)]


def birch(volumes, v0, b0):
    """Birch-Murnaghan energies with B' = 4, where the third-order term is zero; b0 in eV/Å^3."""
    x = (v0 / volumes) ** (2.0 / 3.0)
    return 9.0 * v0 * b0 / 8.0 * (x - 1.0) ** 2


def test_eos_by_hand():
    volumes = np.linspace(18, 22, 9)
    volume, modulus = fit_eos(volumes, birch(volumes, 20.0, 0.625))
    assert volume == pytest.approx(20.0, rel=1e-5)
    assert modulus == pytest.approx(0.625 * 160.21766, rel=1e-4)
    with pytest.raises(PropertyError, match="no minimum"):
        fit_eos(volumes, volumes)


def test_moduli_of_an_isotropic_solid_by_hand():
    lame, shear = 60.0, 30.0
    c = np.zeros((6, 6))
    c[:3, :3] = lame
    c += np.diag([2 * shear] * 3 + [shear] * 3)
    assert average_moduli(c) == pytest.approx((lame + 2 / 3 * shear, shear))
    with pytest.raises(PropertyError, match="positive definite"):
        average_moduli(-c)


def test_cubic_matrices_are_told_from_others():
    c = np.zeros((6, 6))
    c[:3, :3] = 50.0
    c += np.diag([100.0] * 3 + [40.0] * 3)
    assert crystals.is_cubic(c)
    c[2, 2] += 20.0
    assert not crystals.is_cubic(c)


def test_schottky_energy_by_hand():
    item = VacancyItem(
        title="v", description="", formula={"Na": 1, "Cl": 1}, n_atoms=64,
        teacher_perfect=-320.0, student_perfect=-320.0,
        teacher_vacant={"Na": -314.0, "Cl": -313.5}, student_vacant={"Na": -314.0, "Cl": -313.5},
    )  # fmt: skip
    # two cells less one formula unit of two atoms at -5 eV each: -640 + 10
    assert derive_quantities(item)[0].teacher == pytest.approx(-627.5 + 630.0)


def test_ideal_gas_has_no_structure():
    random = np.random.default_rng(1)
    atoms = Atoms("Ar2000", random.uniform(0, 40, (2000, 3)), cell=[40] * 3, pbc=True)
    g = motion.count_pairs(atoms, [("Ar", "Ar")])[0]
    assert g[40:].mean() == pytest.approx(1.0, abs=0.02)


def test_the_first_peak_is_interpolated_and_not_the_highest():
    r = np.arange(0.025, 6.0, 0.05)

    def shells(first):
        return 2.0 * np.exp(-(((r - first) / 0.15) ** 2)) + 3.0 * np.exp(-(((r - 4.4) / 0.15) ** 2))

    zero = tuple(np.zeros(len(r)))
    curve = RdfCurve(
        pair="Cu-Cu", radii=tuple(r), teacher=tuple(shells(2.55)), teacher_error=zero,
        student=tuple(shells(2.563)), student_error=zero,
    )  # fmt: skip
    item = RdfItem(
        title="", description="", temperature=300, n_blocks=2, curves=(curve,), peak="first"
    )
    peak = derive_quantities(item)[0]
    assert peak.name == "Cu-Cu, first peak at"
    assert (peak.teacher, peak.student) == pytest.approx((2.55, 2.563), abs=0.003)
    assert (peak.teacher_error, peak.student_error) == pytest.approx((0.05, 0.05))
    # as records from before were derived
    old = derive_quantities(item.model_copy(update={"peak": None}))[0]
    assert old.name == "Cu-Cu, highest peak at"
    assert old.teacher == pytest.approx(4.4, abs=0.03)


def test_a_repulsive_pair_has_no_minimum():
    r = np.linspace(1.0, 6.0, 28)
    bound = 4.0 * ((2.0 / r) ** 12 - (2.0 / r) ** 6)
    repulsive = np.exp(-r) - np.exp(-6.0)
    curve = DimerCurve(
        pair="Na-Na", distances=tuple(r), teacher=tuple(bound - bound[-1]), student=tuple(repulsive)
    )
    distance, depth = derive_quantities(DimerItem(title="", description="", curves=(curve,)))
    assert distance.name == "Na-Na, distance of the minimum (no minimum: student)"
    assert distance.teacher == pytest.approx(2.0 * 2 ** (1 / 6), abs=0.1)
    assert depth.teacher == pytest.approx(1.0, abs=0.05)
    assert distance.student is None
    assert depth.student is None
    # as records from before were derived; now the energy at contact is a quantity of both sides
    item = DimerItem(title="", description="", curves=(curve,), contact="shortest")
    energy = derive_quantities(item)[2]
    assert energy.name == "Na-Na, energy at 1 Å"
    assert (energy.teacher, energy.student) == (curve.teacher[0], curve.student[0])


@pytest.mark.parametrize("dip", [0.0, 0.01, 0.5])
def test_the_verdict_names_pairs_that_only_the_teacher_binds(dip):
    teacher = (1.0, -2.0, -1.0, 0.0)
    curves = [
        DimerCurve(pair=pair, distances=(1, 2, 3, 4), teacher=teacher, student=student)
        for pair, student in (("Na-Na", (3.0, -dip, 0.0, 0.0)), ("Cl-Na", (1.5, -1.9, -0.9, 0.0)))
    ]
    item = DimerItem(title="", description="", curves=tuple(curves))
    part = PhysicsPart(
        mode="auto", material="NaCl", teacher={}, student={}, items=(item,), left_out=()
    )
    line = describe_physics(part)
    assert ("no bound pair where the teacher binds: Na-Na." in line) == (dip < 0.2)
    assert "Cl-Na" not in line
    # a pair that both sides push apart is no fault
    apart = DimerCurve(pair="Na-Na", distances=(1, 2), teacher=(2.0, 0.0), student=(1.0, 0.0))
    item = item.model_copy(update={"curves": (apart,)})
    assert "bound" not in describe_physics(part.model_copy(update={"items": (item,)}))


def test_sizes_of_rare_matter_are_accepted():
    """Cesium, hydrogen and argon are near the limits or beyond those of bonds."""
    r = np.arange(0.025, 6.0, 0.05)
    zero = tuple(np.zeros(len(r)))
    for pair, place in (("Cs-Cs", 5.3), ("H-H", 0.74), ("Ar-Ar", 3.8)):
        g = tuple(3.0 * np.exp(-(((r - place) / 0.15) ** 2)))
        curve = RdfCurve(
            pair=pair, radii=tuple(r), teacher=g, teacher_error=zero, student=zero, student_error=zero
        )  # fmt: skip
        item = RdfItem(title="", description="", temperature=300, n_blocks=2, curves=(curve,))
        assert find_magnitude_faults(item) == []
        # a student may be wrong where there is a teacher
        wrong = curve.model_copy(update={"teacher": zero, "student": g, "pair": "Cu-Cu"})
        assert find_magnitude_faults(item.model_copy(update={"curves": (wrong,)})) != []
    volumes = np.linspace(100, 130, 9)
    energies = tuple(birch(volumes, 118.0, 0.012))
    eos = EosItem(
        title="", description="", volumes=tuple(volumes), teacher=energies, student=energies
    )
    assert find_magnitude_faults(eos) == []


def plant(part, kind, **changes):
    items = [item.model_copy(update=changes) if item.kind == kind else item for item in part.items]
    return part.model_copy(update={"items": tuple(items)})


def test_wrong_units_and_swapped_sides_are_caught(part):
    eos, elastic = find(part, "eos"), find(part, "elastic")
    assert isinstance(eos, EosItem)
    assert isinstance(elastic, ElasticItem)
    wrong = [
        plant(part, "eos", student=tuple(1e3 * e for e in eos.student)),
        plant(part, "eos", volumes=tuple(v / 0.1482 for v in eos.volumes)),
        plant(
            part, "elastic", teacher=tuple(tuple(10 * c for c in row) for row in elastic.teacher)
        ),
        plant(part, "eos", quantities=eos.quantities[:1]),
    ]
    for planted in wrong:
        assert isinstance(planted, PhysicsPart)
        assert verify_physics(planted) != []
    tilted = tuple(e + 0.02 * k for k, e in enumerate(eos.student))
    swapped = plant(part, "eos", student=eos.teacher, teacher=tilted)
    assert verify_physics(swapped) != []


def test_a_foreign_calculator_is_caught_before_physics(copper):
    from fastff.report.physics.side import LabelCalculator
    from fastff.report.plausibility import check_identity

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    other = load_teacher("analytic:morse", device="cpu")
    side = Side("student", partial(other.label), {})
    with pytest.raises(DataError, match="student's calculator"):
        check_identity(LabelCalculator(side), atoms, copper.label([atoms])[0], "student")


def test_the_verdict_names_the_worst_deviations_and_what_is_missing():
    vacancy = VacancyItem(
        title="Vacancies", description="", formula={"Cu": 1}, n_atoms=32,
        teacher_perfect=-128.0, student_perfect=-128.0,
        teacher_vacant={"Cu": -123.0}, student_vacant={"Cu": -123.23},
    )  # fmt: skip
    vacancy = vacancy.model_copy(update={"quantities": derive_quantities(vacancy)})
    part = PhysicsPart(
        mode="auto", material="Cu, a crystal", teacher={}, student={}, items=(vacancy,),
        left_out=(
            LeftOut(title="Phonons", reason="phonopy is not installed"),
            LeftOut(title="Diffusion", reason="the structure is a crystal"),
        ),
    )  # fmt: skip
    line = describe_physics(part)
    assert "formation energy -23.0 %" in line
    assert "phonons not measured: phonopy is not installed" in line
    assert "diffusion" not in line


def test_symmetries_of_relaxed_cells_are_recorded(copper, part):
    pytest.importorskip("spglib")
    assert part.symmetry == dict.fromkeys(("teacher", "student"), ("Fm-3m (225)", "Fm-3m (225)"))
    tall = bulk("Cu", cubic=True)
    tall.set_cell(tall.cell.array * [[1.0], [1.0], [1.02]], scale_atoms=True)
    assert find_space_group(tall, 0.02) == "I4/mmm (139)"
    assert find_space_group(tall, 0.2) == "Fm-3m (225)"
    crystal = crystals.Crystal(describe_material(bulk("Cu", cubic=True)), copper, copper)
    assert crystal.find_symmetries() is None
    crystal._relaxed["teacher"] = tall
    assert crystal.find_symmetries() == {"teacher": ("I4/mmm (139)", "Fm-3m (225)")}


def test_provenance_names_what_phonons_depend_on():
    pytest.importorskip("phonopy")
    from fastff.report.provenance import collect_provenance

    assert {"phonopy", "spglib"} <= set(collect_provenance().packages)
