"""Uncertainties beside errors that are planted in the labels, so that every number is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from untrained import make_student

from fastff.inference import predict
from fastff.labels import Frame, Labels
from fastff.models.uncertainty import fit_uncertainty, predict_with_uncertainty
from fastff.neighbors import atoms_to_graph
from fastff.report.calibration import CalibrationData, calibrate
from fastff.report.tables import describe_calibration
from fastff.report.verdict import list_lines
from fastff.units import show_formula


def draw_cells(n_cells, a, scale, seed):
    cells = []
    for number in range(n_cells):
        atoms = bulk("Cu", cubic=True, a=a)
        atoms.numbers[0] = 79
        atoms.rattle(scale, seed=seed + number)
        cells.append(atoms)
    return cells


@pytest.fixture(scope="module")
def student():
    student = make_student("m1", (29, 79), cutoff=4.0, energy_scale=0.02).double()
    cells = draw_cells(16, 3.7, 0.05, 0)
    graphs = [atoms_to_graph(atoms, student.cutoff) for atoms in cells]
    energies = [e.energy + 0.01 * k for k, e in enumerate(predict(student, cells[10:]))]
    student.uncertainty = fit_uncertainty(student, graphs[:10], graphs[10:], energies)
    return student


def make_frames(student, cells, error, force_error):
    """Labels below the student's energy by ``error`` an atom, eV, and ``force_error`` off in every component."""
    frames = []
    for number, (atoms, labels) in enumerate(zip(cells, predict(student, cells), strict=True)):
        wrong = Labels(
            labels.energy - error[number] * len(atoms), labels.forces - force_error, None
        )
        frames.append(
            Frame(
                atoms=atoms,
                labels=wrong,
                source="test",
                trajectory=0,
                step=number,
                temperature=300.0,
            )
        )
    return frames


def find_deviation(student, atoms):
    """Of the energy, eV/atom."""
    graph = atoms_to_graph(atoms, student.cutoff)
    return float(predict_with_uncertainty(student, graph)[1].energy[0]) / len(atoms)


def test_energies_and_their_errors_are_those_of_an_atom(student):
    """A cell and twice that cell have the same error and the same deviation; the sign is student less label."""
    (cell,) = draw_cells(1, 3.7, 0.05, 40)
    frames = make_frames(student, [cell, cell.repeat((2, 1, 1))], [0.003, -0.003], 0.0)
    (first, second) = calibrate(student, [("held-out frames", frames)]).energy
    assert first[0] == second[0] == 0
    assert first[1] == pytest.approx(find_deviation(student, cell), rel=1e-9)
    assert second[1] == pytest.approx(first[1], rel=1e-6)
    assert (first[2], second[2]) == pytest.approx((0.003, -0.003), rel=1e-6)


def test_shares_within_one_and_two_deviations(student):
    """Errors of a half, two of 1.75 and one of three deviations: one of four and three of four."""
    cells = draw_cells(4, 3.7, 0.05, 50)
    times = (0.5, -1.75, -1.75, 3.0)
    errors = [k * find_deviation(student, atoms) for k, atoms in zip(times, cells, strict=True)]
    data = calibrate(student, [("held-out frames", make_frames(student, cells, errors, 0.0))])
    assert data.within == (0.25, 0.75)


def test_constant_offsets_of_compositions_are_no_errors(student):
    """As in the accuracy: a constant of 1 eV an atom leaves the shares as they are, one for each composition."""
    cells = draw_cells(8, 3.7, 0.05, 50)
    for atoms in cells[4:]:
        atoms.numbers[1] = 79
    times = 2 * (0.5, -1.75, -1.75, 3.0)
    plain = [k * find_deviation(student, atoms) for k, atoms in zip(times, cells, strict=True)]
    shifted = [error + (1.0 if k < 4 else -0.5) for k, error in enumerate(plain)]
    found = [
        calibrate(student, [("held-out frames", make_frames(student, cells, errors, 0.0))])
        for errors in (plain, shifted)
    ]
    assert found[0].within == found[1].within == (0.25, 0.75)
    assert found[1].energy == pytest.approx(np.array(found[0].energy), abs=1e-9)
    assert "less the constant offset of each composition" in describe_calibration(found[1])


def test_of_a_composition_with_one_frame_there_is_no_offset(student):
    (cell, *others) = draw_cells(3, 3.7, 0.05, 50)
    cell.numbers[1] = 79
    frames = make_frames(student, [cell, *others], [0.7, 0.2, 0.4], 0.0)
    errors = [row[2] for row in calibrate(student, [("held-out frames", frames)]).energy]
    assert errors == pytest.approx([0.7, -0.1, 0.1], rel=1e-6)


def test_force_errors_are_those_of_a_component_by_grade_and_set(student):
    """0.02 and 0.2 eV/Å in every component; cells far from the training beyond it, those near within."""
    near, far = draw_cells(3, 3.7, 0.05, 60), draw_cells(3, 3.2, 0.3, 60)
    sets = [
        (name, make_frames(student, cells, [0.0] * 3, force_error))
        for name, cells, force_error in (("near", near, 0.02), ("far", far, 0.2))
    ]
    data = calibrate(student, sets)
    assert data.names == ("near", "far")
    assert [row[0] for row in data.energy] == [0, 0, 0, 1, 1, 1]
    assert data.grades[0].force_rmse == pytest.approx(0.02, rel=1e-6)
    assert data.grades[-1].force_rmse == pytest.approx(0.2, rel=1e-6)
    assert np.all(np.diff([b.grade for b in data.grades]) >= 0.0)
    assert data.beyond[0] < 0.5
    assert data.beyond[1] == 1.0


def make_calibration(comparisons, beyond, error):
    """Twenty frames of each comparison, with errors of ``error`` deviations."""
    rows = tuple(
        (k, 1.0, sign * value)
        for k, value in enumerate(error)
        for _ in range(10)
        for sign in (1, -1)
    )
    data = CalibrationData(
        names=tuple(c.name for c in comparisons), energy=rows, within=(0.0, 0.0), grades=(),
        beyond=tuple(beyond), centered="composition",
    )  # fmt: skip
    return data.model_copy(update={"within": data.count_within()})


def test_the_verdict_says_where_the_student_is_beyond_its_training(whole_record):
    """By its own grades, wherever they are a large share; what its error bars are worth there is said with it."""

    def judge(beyond, error):
        chosen = whole_record.comparisons[: len(beyond)]
        data = make_calibration(chosen, beyond, error)
        return list_lines(
            whole_record.model_copy(
                update={
                    "comparisons": chosen,
                    "calibration": data,
                    "verdict": whole_record.verdict.model_copy(update={"wording": None}),
                }
            )
        )

    def find(*given):
        return [line for line in judge(*given) if "error bars" in line.lower()]

    first, second = (c.name for c in whole_record.comparisons[:2])
    formulas = ", ".join(map(show_formula, whole_record.main.frames.formulas))
    assert find((0.01, 0.07), (0.5, 0.5)) == []
    # few atoms beyond: errors outside the training range are the business of the section on trust
    assert find((0.01, 0.07), (0.5, 9.0)) == []
    assert find((0.59, 0.07), (9.0, 9.0)) == [
        f"Beyond the training data by the student's own grades: {first} ({formulas}) 59 % of the atoms; error bars "
        "there are not to be trusted: errors are larger than they say."
    ]
    (line,) = find((0.59, 0.73), (0.5, 9.0))
    assert f"{first} ({formulas}) 59 % of the atoms; {second} ({formulas}) 73 %" in line
    assert line.endswith(
        f"error bars on {second} are not to be trusted: errors are larger than they say."
    )
    (line,) = find((0.59, 0.73), (0.5, 0.5))
    assert line.endswith("error bars there are extrapolated.")
    assert find((0.01,), (9.0,)) == [
        f"Error bars on {first} are not to be trusted: errors are larger than they say."
    ]
    lines = judge((0.59, 0.07), (9.0, 9.0))
    assert [line.split(":")[0] for line in lines].index("Limits") > 1
    assert len(lines) == len(judge((0.0, 0.0), (0.5, 0.5))) + 1
