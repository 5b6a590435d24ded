"""The definition of accuracy against values worked out by hand, and labels that are not what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.units import Bohr, GPa, Hartree

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report.metrics import Accuracy, measure_accuracy, reduce_formula
from fastff.report.plausibility import check_identity, check_units


def make_labels(energy, forces, stress=None):
    stress = None if stress is None else np.array(stress, dtype=float)
    return Labels(float(energy), np.array(forces, dtype=float), stress)


def make_dimer(symbols="CuAu"):
    return Atoms(symbols, positions=[[0, 0, 0], [2, 0, 0]])


def test_force_accuracy_is_one_minus_rmse_over_reference_rms():
    reference = [
        make_labels(0.0, [[3, 0, 0], [-3, 0, 0]]),
        make_labels(1.0, [[0, 4, 0], [0, -4, 0]]),
    ]
    prediction = [
        make_labels(0.0, [[3, 0, 1], [-3, 0, 0]]),
        make_labels(1.0, [[0, 4, 0], [0, -3, 0]]),
    ]
    accuracy = measure_accuracy(reference, prediction, [make_dimer(), make_dimer()])
    # 12 components: squares of the reference 9+9+16+16 = 50, of the error 1+1 = 2.
    assert accuracy.force_rms == pytest.approx(np.sqrt(50 / 12))
    assert accuracy.force_rmse == pytest.approx(np.sqrt(2 / 12))
    assert accuracy.force == pytest.approx(1 - np.sqrt(2 / 50))
    assert accuracy.force_mae == pytest.approx(2 / 12)
    assert accuracy.force_relative_mae == pytest.approx((2 / 12) / (14 / 12))
    assert accuracy.force_cosine == pytest.approx((3 / np.sqrt(10) + 1 + 1 + 1) / 4)
    # Means of the reference components over atoms are zero, so R^2 = 1 - 2 / 50.
    assert accuracy.force_r2 == pytest.approx(0.96)
    # Cu are the first atoms: squares 9 + 16 and one error of 1; Au the second ones, likewise.
    assert accuracy.per_element["Cu"].accuracy == pytest.approx(0.8)
    assert accuracy.per_element["Cu"].rmse == pytest.approx(np.sqrt(1 / 6))
    assert accuracy.per_element["Au"].mae == pytest.approx(1 / 6)


def test_a_reversed_force_has_a_negative_cosine():
    reference = [make_labels(0.0, [[3, 0, 0], [-3, 0, 0]])]
    prediction = [make_labels(0.0, [[-1, 0, 0], [-3, 0, 0]])]
    assert measure_accuracy(reference, prediction, [make_dimer()]).force_cosine == pytest.approx(
        0.0
    )


def test_energy_accuracy_after_one_offset_per_composition():
    copper, gold = make_dimer("Cu2"), make_dimer("Au2")
    frames = [copper, copper, gold, gold]
    moving = [[1, 0, 0], [-1, 0, 0]]
    reference = [make_labels(e, moving) for e in (-10.0, -8.0, -200.0, -196.0)]
    # Cu is off by a constant 6 eV; Au by 0 and 0.8 eV: after its offset -0.2 and +0.2 eV/atom.
    prediction = [make_labels(e, moving) for e in (-4.0, -2.0, -200.0, -195.2)]
    accuracy = measure_accuracy(reference, prediction, frames)
    # Per atom, within a composition: Cu -0.5, 0.5; Au -1, 1.
    assert accuracy.energy_std == pytest.approx(np.sqrt((0.25 + 0.25 + 1 + 1) / 4))
    assert accuracy.energy_rmse == pytest.approx(np.sqrt(2 * 0.2**2 / 4))
    assert accuracy.energy == pytest.approx(1 - 0.2 * np.sqrt(2) / np.sqrt(2.5))
    assert accuracy.energy_mae == pytest.approx(0.1)
    assert accuracy.energy_offsets == pytest.approx({"Cu": 3.0, "Au": 0.2})
    assert accuracy.overall == accuracy.energy
    assert accuracy.limiting == "energy"


def test_unit_cell_and_supercell_share_one_offset():
    single, double = make_dimer("Cu2"), make_dimer("Cu2").repeat((1, 1, 1)) + make_dimer("Cu2")
    one, two = [[1, 0, 0], [-1, 0, 0]], [[1, 0, 0], [-1, 0, 0]] * 2
    reference = [make_labels(-4, one), make_labels(-2, one), make_labels(-6, two)]
    # A student with one eV too much in every frame is not extensive, and that must show.
    prediction = [make_labels(-3, one), make_labels(-1, one), make_labels(-5, two)]
    accuracy = measure_accuracy(reference, prediction, [single, single, double])
    errors = np.array([0.5, 0.5, 0.25]) - 1.25 / 3
    assert accuracy.energy_rmse == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert reduce_formula(single) == reduce_formula(double) == "Cu"


def test_stress_accuracy_over_six_components():
    cell = Atoms("Cu", cell=[2, 2, 2], pbc=True)
    reference = [
        make_labels(0, [[1, 0, 0]], [3, 0, 0, 4, 0, 0]),
        make_labels(1, [[0, 1, 0]], [0] * 6),
    ]
    prediction = [
        make_labels(0, [[1, 0, 0]], [3, 0, 0, 4, 0, 1]),
        make_labels(1, [[0, 1, 0]], [0] * 6),
    ]
    accuracy = measure_accuracy(reference, prediction, [cell, cell])
    assert accuracy.stress == pytest.approx(1 - 1 / 5)
    assert accuracy.stress_mae == pytest.approx(1 / 12)
    assert accuracy.overall == pytest.approx(0.8)
    assert accuracy.force == accuracy.energy == 1.0


def test_swapping_teacher_and_student_changes_the_result():
    teacher, student = [make_labels(0, [[2, 0, 0]])], [make_labels(0, [[1, 0, 0]])]
    frames = [Atoms("Cu")]
    assert measure_accuracy(teacher, student, frames).force == pytest.approx(0.5)
    assert measure_accuracy(student, teacher, frames).force == pytest.approx(0.0)


def test_single_frame_has_no_energy_accuracy_and_says_why():
    accuracy = measure_accuracy(
        [make_labels(0, [[1, 0, 0]])], [make_labels(5, [[1, 0, 0]])], [Atoms("Cu")]
    )
    assert accuracy.energy is accuracy.energy_mae is accuracy.energy_std is None
    assert accuracy.stress is None
    assert accuracy.overall == 1.0
    assert any("energy accuracy is undefined" in note for note in accuracy.notes)
    assert any("stress accuracy is undefined" in note for note in accuracy.notes)


def test_lonely_composition_is_left_out_and_said():
    frames = [make_dimer("Cu2"), make_dimer("Cu2"), make_dimer("Au2")]
    moving = [[1, 0, 0], [-1, 0, 0]]
    reference = [make_labels(e, moving) for e in (0, 2, 50)]
    prediction = [make_labels(e, moving) for e in (0.2, 1.8, 90)]
    accuracy = measure_accuracy(reference, prediction, frames)
    assert accuracy.n_energies == 2
    assert accuracy.energy == pytest.approx(1 - 0.1 / 0.5)
    assert any("single frame" in note for note in accuracy.notes)


def test_zero_reference_forces_are_undefined_not_perfect():
    cell = Atoms("Cu", cell=[2, 2, 2], pbc=True)
    still = [make_labels(0, [[0, 0, 0]], [1] * 6), make_labels(1, [[0, 0, 0]], [2] * 6)]
    accuracy = measure_accuracy(still, still, [cell, cell])
    assert accuracy.force is accuracy.force_cosine is accuracy.force_relative_mae is None
    assert accuracy.per_element["Cu"].accuracy is None
    assert any("force accuracy is undefined" in note for note in accuracy.notes)


def test_nothing_defined_is_an_error():
    still = [make_labels(0, [[0, 0, 0]])]
    with pytest.raises(DataError, match="accuracy is undefined"):
        measure_accuracy(still, still, [Atoms("Cu")])


def test_equal_energies_are_undefined():
    frames = [Atoms("Cu"), Atoms("Cu")]
    reference = [make_labels(-3.0, [[1, 0, 0]]), make_labels(-3.0, [[0, 1, 0]])]
    accuracy = measure_accuracy(reference, reference, frames)
    assert accuracy.energy is None


def test_stress_missing_in_reference_is_said_and_in_prediction_refused():
    cell = Atoms("Cu", cell=[2, 2, 2], pbc=True)
    bare = make_labels(0, [[1, 0, 0]])
    full = make_labels(1, [[1, 0, 0]], [1] * 6)
    accuracy = measure_accuracy([bare, full], [full, full], [cell, cell])
    assert accuracy.n_stresses == 1
    assert any("1 of 2 frames" in note for note in accuracy.notes)
    with pytest.raises(DataError, match="the prediction has none"):
        measure_accuracy([full, full], [full, bare], [cell, cell])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (make_labels(np.nan, [[1, 0, 0], [0, 0, 0]]), "energy is nan"),
        (make_labels(0, [[1, 0, 0], [np.nan, 0, 0]]), "force on atom 1"),
        (make_labels(0, [[1, 0, 0], [np.inf, 0, 0]]), "force on atom 1"),
        (make_labels(0, [[1, 0, 0], [0, 0, 0]], [np.nan] * 6), "stress is"),
        (make_labels(0, [[1, 0, 0]]), "shape"),
        (make_labels(0, [[1, 0, 0], [0, 0, 0]], [0] * 9), "expected \\(6,\\)"),
    ],
)
@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_unusable_labels_are_named(bad, words, side):
    good = make_labels(0, [[1, 0, 0], [0, 1, 0]])
    sides = {"reference": [good, good], "prediction": [good, good]}
    sides[side][1] = bad
    with pytest.raises(DataError, match=words) as caught:
        measure_accuracy(sides["reference"], sides["prediction"], [make_dimer(), make_dimer()])
    assert "frame 1" in str(caught.value)
    assert side in str(caught.value)


def test_lengths_must_match_and_frames_must_exist():
    good = make_labels(0, [[1, 0, 0], [0, 1, 0]])
    with pytest.raises(DataError, match="1 structures, 2 reference labels"):
        measure_accuracy([good, good], [good], [make_dimer()])
    with pytest.raises(DataError, match="no frames"):
        measure_accuracy([], [], [])


def test_accuracy_survives_a_dictionary():
    accuracy = measure_accuracy(
        [make_labels(0, [[1, 0, 0]]), make_labels(1, [[0, 2, 0]])],
        [make_labels(0, [[1, 1, 0]]), make_labels(1.1, [[0, 2, 0]])],
        [Atoms("Cu"), Atoms("Cu")],
    )
    values = accuracy.to_dict()
    assert values["overall"] == accuracy.overall
    assert Accuracy.from_dict(values) == accuracy


@pytest.fixture
def pair():
    """A teacher and a student with five percent of error, over eight periodic frames."""
    random = np.random.default_rng(1)
    frames = [
        Atoms("Cu4", positions=random.normal(size=(4, 3)), cell=[4] * 3, pbc=True) for _ in range(8)
    ]
    reference = [
        make_labels(random.normal(), random.normal(size=(4, 3)), random.normal(size=6))
        for _ in frames
    ]
    prediction = [
        make_labels(
            r.energy + 0.05 * random.normal(),
            r.forces + 0.05 * random.normal(size=(4, 3)),
            r.stress + 0.05 * random.normal(size=6),
        )
        for r in reference
    ]
    return frames, reference, prediction


def scale(labels, *, energy=1.0, forces=1.0, stress=1.0):
    return [make_labels(x.energy * energy, x.forces * forces, x.stress * stress) for x in labels]


def test_units_that_agree_pass(pair):
    frames, reference, prediction = pair
    check_units(reference, prediction, frames)


@pytest.mark.parametrize(
    ("factors", "unit"),
    [
        ({"forces": Bohr / Hartree}, "Hartree/Bohr"),
        ({"forces": 1000.0}, "meV/Å"),
        ({"forces": -1.0}, "wrong sign"),
        ({"forces": 23.06}, "kcal/mol/Å"),
        ({"stress": 1 / GPa}, "GPa"),
        ({"stress": -1.0}, "wrong sign"),
        ({"stress": 10 / GPa}, "kbar"),
        ({"energy": 1 / Hartree}, "Hartree"),
        ({"energy": 96.485}, "kJ/mol"),
    ],
)
@pytest.mark.parametrize("side", ["reference", "prediction"])
def test_wrong_units_are_named(pair, factors, unit, side):
    frames, reference, prediction = pair
    if side == "reference":
        reference = scale(reference, **factors)
    else:
        prediction = scale(prediction, **factors)
    with pytest.raises(DataError, match=unit) as caught:
        check_units(reference, prediction, frames)
    if -1.0 not in factors.values():
        assert f"the {side} were in" in str(caught.value)


def test_a_bad_student_is_not_taken_for_a_wrong_unit(pair):
    frames, reference, _ = pair
    random = np.random.default_rng(3)
    noise = [
        make_labels(random.normal(), random.normal(size=(4, 3)), random.normal(size=6))
        for _ in frames
    ]
    check_units(reference, noise, frames)
    check_units(reference, scale(reference, energy=0.5, forces=0.4, stress=0.3), frames)


def test_identity_of_a_calculator():
    atoms = Atoms("Ar3", positions=[[0, 0, 0], [3.9, 0, 0], [0, 3.7, 0.2]])
    calculator = LennardJones(sigma=3.4, epsilon=0.01, rc=10)
    probe = atoms.copy()
    probe.calc = calculator
    labels = Labels(probe.get_potential_energy(), probe.get_forces(), None)
    assert (
        check_identity(LennardJones(sigma=3.4, epsilon=0.01, rc=10), atoms, labels, "teacher")
        == 0.0
    )
    with pytest.raises(DataError, match="teacher's calculator does not give the teacher's labels"):
        check_identity(LennardJones(sigma=3.3, epsilon=0.01, rc=10), atoms, labels, "teacher")
    shifted = Labels(labels.energy + 0.1, labels.forces, None)
    with pytest.raises(DataError, match="swapped"):
        check_identity(LennardJones(sigma=3.4, epsilon=0.01, rc=10), atoms, shifted, "student")
