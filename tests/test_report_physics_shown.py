"""What verdicts, tables and pages say of physical properties: noise, unstable crystals, symmetry, drifts, boxes."""

from __future__ import annotations

from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk

import fastff
from fastff.distill.cells import find_commensurate
from fastff.report.html import render_report
from fastff.report.markdown import write_tables
from fastff.report.physics import crystal as crystals
from fastff.report.physics import motion
from fastff.report.physics.derive import PropertyError, derive_quantities, fit_drift
from fastff.report.physics.material import UnitCell
from fastff.report.physics.present import describe_item, present_physics
from fastff.report.physics.record import (
    DiffusionCurve,
    DiffusionItem,
    ElasticItem,
    EnergyTrace,
    NveItem,
    PhononItem,
    PhysicsPart,
    RdfCurve,
    RdfItem,
    VacancyItem,
)
from fastff.report.physics.rest import POINT_GROUPS, list_symmetries
from fastff.report.physics.scatter import (
    describe_criterion,
    fit_drift_error,
    is_resolved,
    judge_quantity,
)
from fastff.report.physics.summary import describe_physics
from fastff.report.physics_figures import draw_item
from fastff.report.record import read_record
from fastff.report.tables import tabulate_physics
from fastff.report.verdict import _judge_limits, list_lines
from fastff.units import show_formula, show_number

RESULTS = Path(fastff.__file__).parents[1] / "bench" / "results"


def make_part(*items, **more):
    return PhysicsPart(
        mode="auto", material="Cu", teacher={}, student={}, left_out=(),
        items=tuple(item.model_copy(update={"quantities": derive_quantities(item)}) for item in items), **more,
    )  # fmt: skip


def make_rdf(student, error=0.1, n_blocks=4):
    r = np.arange(0.025, 6.0, 0.05)
    g = np.exp(-(((r - 2.5) / 0.3) ** 2)) * 3.0 + (r > 2.0)
    errors = tuple(np.full(len(r), error))
    curve = RdfCurve(
        pair="Cu-Cu", radii=tuple(r), teacher=None if student is None else tuple(g),
        teacher_error=None if student is None else errors,
        student=tuple(g * (student or 1.0)), student_error=errors,
    )  # fmt: skip
    return RdfItem(
        title="Pair distributions",
        description="",
        temperature=300,
        n_blocks=n_blocks,
        curves=(curve,),
        peak="first",
    )


def test_the_verdict_says_what_was_compared_where_nothing_deviates():
    trace = EnergyTrace(times=(0.0, 1.0, 2.0), energies=(0.0, 0.1, 0.3))
    nve = NveItem(
        title="Conservation of energy",
        description="",
        temperature=300,
        time_step=1.0,
        teacher=trace,
        student=trace,
    )
    within = describe_physics(make_part(make_rdf(1.01), nve))
    assert within == "Physics of Cu: all 2 compared quantities are within noise."
    beyond = describe_physics(make_part(make_rdf(1.5, 0.01), nve))
    assert "worst deviations: Cu-Cu, difference of g(r) 50.0 %" in beyond
    alone = describe_physics(make_part(make_rdf(None), nve))
    assert "compared were only conservation of energy, no measure of the student" in alone
    assert "nothing of both sides was measured" in describe_physics(make_part(make_rdf(None)))


def make_phonons(teacher, student, **more):
    """Lowest frequencies at Γ of both sides, and at X if ``edge`` is given."""
    edge = more.pop("edge", 1.0)
    return PhononItem(
        title="Phonons", description="Bands", path=(0.0, 0.5, 1.0), marks=((0.0, "Γ"), (1.0, "X")),
        teacher=((teacher, 5.0), (1.0, 6.0), (edge, 6.0)),
        student=((student, 5.0), (1.0, 6.0), (edge, 6.0)), **more,
    )  # fmt: skip


def make_elastic(*diagonals):
    matrices = (tuple(map(tuple, np.diag(values).tolist())) for values in diagonals)
    teacher, student = matrices
    return ElasticItem(
        title="Elastic constants", description="", cubic=False, teacher=teacher, student=student
    )


def make_vacancy(student):
    return VacancyItem(
        title="Vacancies", description="", formula={"Cu": 1}, n_atoms=32, teacher_perfect=-128.0,
        student_perfect=-128.0, teacher_vacant={"Cu": -123.0}, student_vacant={"Cu": student},
    )  # fmt: skip


def test_imaginary_modes_and_lost_symmetry_are_said():
    both = describe_physics(make_part(make_phonons(-1.97, -1.934)))
    assert (
        "imaginary modes of the teacher (to 1.97i THz at Γ) and the student (to 1.93i THz at Γ)"
        in both
    )
    one = describe_physics(make_part(make_phonons(-1e-7, -0.5)))
    words = (
        "imaginary modes of the student (to 0.50i THz at Γ): the relaxed structure is no minimum"
    )
    assert words in one
    assert "imaginary" not in describe_physics(make_part(make_phonons(-1e-7, -0.05)))
    low, high = "Amm2 (38)", "P4_2/mnm (136)"
    groups = {"teacher": (low, high), "student": (low, high)}
    line = describe_physics(make_part(make_phonons(0.0, 0.0), symmetry=groups))
    assert (
        f"relaxed by the teacher and the student it has space group {low}, {high} only within 0.2 Å"
        in line
    )
    groups["student"] = (high, high)
    line = describe_physics(make_part(make_phonons(0.0, 0.0), symmetry=groups))
    assert f"relaxed by the teacher it has space group {low}" in line
    # before space groups were recorded, elastic constants tell: 409, 383 and 170 GPa in a rutile that is none
    diagonal = (409.0, 383.0, 170.0, 28.0, 56.0, 90.0)
    elastic = make_elastic(diagonal, diagonal)
    old = describe_physics(make_part(make_phonons(-1.97, -1.934), elastic))
    assert "no two of the teacher's C11, C22, C33 agree there (409, 383, 170 GPa)" in old
    assert (
        "C22" not in describe_physics(make_part(make_phonons(0.0, 0.0), elastic)).split("worst")[0]
    )


def test_captions_say_who_ran():
    old = make_rdf(None).model_copy(
        update={
            "description": "81 atoms, 1.01 ps of each side after equilibration; the teacher was not run: slow"
        }
    )
    assert describe_item(old).startswith(
        "81 atoms, 1.01 ps of the student alone after equilibration"
    )
    assert "each side" not in draw_item(old)[0][1]
    both = make_rdf(1.0).model_copy(update={"description": old.description})
    assert "of each side" in describe_item(both)


def tabulate(record, part):
    """Rows of a part by quantity, as a page of ``record`` would show them."""
    headings, rows = tabulate_physics(record.model_copy(update={"physics": part}))
    return {row[1]: dict(zip(headings, row, strict=True)) for row in rows}


def test_what_needs_a_minimum_is_marked_where_there_is_none(whole_record):
    """Elastic constants and vacancies of a saddle are no measure of the student, at Γ or elsewhere, on either side."""
    values = (400.0, 380.0, 170.0, 28.0, 56.0, 90.0)
    changed = (*values[:3], 40.0, *values[4:])
    items = (make_elastic(values, changed), make_vacancy(-123.9))
    for phonons in (make_phonons(-0.99, 0.0), make_phonons(0.0, 0.0, edge=-0.5)):
        part = make_part(phonons, *items)
        line = describe_physics(part)
        assert line.count("C44") == line.count("formation energy") == 1
        assert (
            "elastic constants (C44 +42.9 %) and vacancies (formation energy -90.0 %) not judged: the perfect cell is "
            "unstable" in line
        )
        rows = tabulate(whole_record, part)
        assert rows["C44"]["difference"] == "+42.9 %, perfect cell is unstable"
        assert rows["formation energy"]["difference"].endswith("%, perfect cell is unstable")
        assert "unstable" not in rows["highest frequency"]["difference"]
    stable = make_part(make_phonons(-0.1, 0.0), *items)
    assert "C44 +42.9 %" in describe_physics(stable)
    assert tabulate(whole_record, stable)["C44"]["difference"] == "+42.9 %"


def test_where_modes_are_imaginary_is_said():
    both = make_phonons(-0.3, 0.0, edge=-0.98, interpolated=("X",))
    assert "the teacher (to 0.98i THz at X, interpolated, 0.30i at Γ)" in describe_physics(
        make_part(both)
    )
    exact = both.model_copy(update={"interpolated": ()})
    assert "the student (to 0.98i THz at X):" in describe_physics(make_part(exact))
    old = both.model_copy(update={"interpolated": None})
    assert "the student (to 0.98i THz at X, which may be interpolated)" in describe_physics(
        make_part(old)
    )
    between = both.model_copy(update={"teacher": ((0.0, 5.0), (-2.0, 6.0), (1.0, 6.0))})
    assert "the teacher (to 2.00i THz between Γ and X)" in describe_physics(make_part(between))


def test_symmetry_unlike_that_of_the_input_was_lost():
    """Both tolerances agree on a distorted cell: only what the crystal was before tells."""
    low = dict.fromkeys(("teacher", "student"), ("Amm2 (38)", "Amm2 (38)"))
    high = ("P4_2/mnm (136)", 0.3)
    phonons = make_phonons(0.0, 0.0)
    line = describe_physics(make_part(phonons, symmetry=low, given_symmetry=high))
    assert (
        "has space group Amm2 (38), P4_2/mnm (136) within 0.3 Å before: symmetry was lost" in line
    )
    shown = list_symmetries(make_part(phonons, symmetry=low, given_symmetry=high))
    assert "teacher Amm2 (38) within 0.02 and 0.2 Å; student" in shown
    assert shown.endswith("of the crystal before: P4_2/mnm (136) within 0.3 Å")
    unknown = make_part(phonons, symmetry=low)
    assert "lost" not in describe_physics(unknown)
    assert list_symmetries(unknown).endswith("before: not in this record")
    gained = make_part(
        phonons, symmetry={"teacher": (high[0],) * 2}, given_symmetry=("Amm2 (38)", 0.01)
    )
    assert "lost" not in describe_physics(gained)


def test_orders_of_point_groups_are_those_of_spglib():
    spglib = pytest.importorskip("spglib")
    found = {}
    for hall in range(1, 531):
        rotations = spglib.get_symmetry_from_database(hall)["rotations"]
        found[spglib.get_spacegroup_type(hall).number] = len({r.tobytes() for r in rotations})
    orders = [next(o for last, o in POINT_GROUPS if n <= last) for n in range(1, 231)]
    assert orders == [found[n] for n in range(1, 231)]


def test_the_symmetry_before_is_sought_beyond_the_tolerance_of_the_cell():
    pytest.importorskip("spglib")
    rutile = ase.Atoms(
        "Ti2O4", cell=[4.6, 4.6, 2.95], pbc=True,
        scaled_positions=[(0, 0, 0), (.5, .5, .5), (.305, .305, 0), (.695, .695, 0),
                          (.195, .805, .5), (.805, .195, .5)],
    )  # fmt: skip
    assert UnitCell(rutile).symmetry is None
    assert UnitCell(rutile, tolerance=1e-3).symmetry == ("P4_2/mnm (136)", 3e-3)
    rutile.positions[0, 2] += 0.1
    assert UnitCell(rutile, tolerance=1e-3).symmetry[0] != "P4_2/mnm (136)"
    assert UnitCell(rutile, tolerance=0.1).symmetry == ("P4_2/mnm (136)", pytest.approx(0.3))


@pytest.mark.parametrize(
    ("unit", "exact"),
    [
        # 4 x 4 x 3 is wide enough and leaves R, A and Z out
        (ase.Atoms("CuAu", cell=[2.84, 2.84, 3.72], scaled_positions=[(0, 0, 0), (.5, .5, .5)], pbc=True), "ΓXMZRA"),
        (bulk("NaCl", "rocksalt", a=5.64), "ΓXLW"),
        (bulk("Mg"), "ΓMKALH"),  # thirds
        (bulk("Cu"), "ΓXLW"),  # a little narrower than others
    ],
)  # fmt: skip
def test_zone_boundaries_fit_into_the_supercell_of_phonons(unit, exact):
    cell = crystals.build_phonon_cell(unit)
    points = crystals.list_points(crystals.make_path(unit))
    fits = find_commensurate(np.array(cell.repeats), np.array(list(points.values())))
    assert set(exact) <= {name for name, fit in zip(points, fits, strict=True) if fit}
    assert len(cell.atoms) <= crystals.PHONON_ATOMS
    assert cell.width >= crystals.PHONON_WIDTHS[1] - 1e-6


def test_points_that_are_interpolated_are_named():
    half = find_commensurate(
        np.diag([4, 4, 3]), np.array([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0, 0, 1 / 3]])
    )
    assert half.tolist() == [False, True, True]
    item = make_phonons(0.0, 0.0, interpolated=("X",))
    words = "exact at Γ, which fit into the supercell, interpolated elsewhere, also at X"
    assert words in describe_item(item)
    assert words in draw_item(item)[0][1]
    assert "every named point" in describe_item(make_phonons(0.0, 0.0, interpolated=()))
    assert "which points of the path fit is not in this record" in describe_item(
        make_phonons(0.0, 0.0)
    )


@pytest.mark.parametrize(("top", "status"), [(1.99, "within"), (1.9, "beyond")])
def test_the_place_of_a_broad_top_is_noise(top, status):
    """0.1 Å apart, where the student's curve at the teacher's peak is lower by less, or by more, than two errors."""
    r = np.arange(2.0, 3.0, 0.05)
    places = {"teacher": 10, "student": 12}
    curves = {}
    for role, place in places.items():
        g = np.maximum(0.5, 2.0 - 0.5 * np.abs(np.arange(len(r)) - place))
        curves[role] = g
    curves["student"][places["teacher"]] = top
    curves["student"][11] = 0.5 * (top + 2.0)
    errors = tuple(0.02 + 0.0 * r)
    curve = RdfCurve(
        pair="Cu-Cu", radii=tuple(r), teacher=tuple(curves["teacher"]), teacher_error=errors,
        student=tuple(curves["student"]), student_error=errors,
    )  # fmt: skip
    item = make_rdf(1.0).model_copy(update={"curves": (curve,)})
    quantity = derive_quantities(item)[0]
    assert quantity.student - quantity.teacher > 0.07
    assert judge_quantity(item, quantity).status == status
    assert "level within 2 standard errors" in describe_criterion(make_part(item))


def test_diffusion_of_the_student_alone_is_said():
    curve = DiffusionCurve(
        element="Cu", times=(0.0, 1.0), teacher=None, teacher_blocks=None, student=(0.0, 1.0),
        student_blocks=(0.1, 0.2, 0.1, 0.2),
    )  # fmt: skip
    item = DiffusionItem(title="Diffusion", description="", temperature=300, curves=(curve,))
    words = "diffusion of the student alone, the teacher's runs were too short"
    assert words in describe_physics(make_part(make_rdf(1.01), item))
    assert words not in describe_physics(make_part(make_rdf(None), item))


def test_nothing_is_within_the_noise_of_two_blocks(whole_record):
    """A standard error of two values is itself uncertain by a factor."""
    for n_blocks, verdict, cell in (
        (4, "all 2 compared quantities are within noise", "within noise"),
        (2, "of 2 compared quantities 1 within noise and 1 not judged, noise from 2 blocks only",
         "not judged, noise from 2 blocks only"),
    ):  # fmt: skip
        part = make_part(make_rdf(1.01, n_blocks=n_blocks))
        assert verdict in describe_physics(part)
        row = tabulate(whole_record, part)["Cu-Cu, difference of g(r)"]
        assert row["difference"] == cell
        assert ("from 2 blocks only" in row["student"]) == (n_blocks == 2)
        assert f"the scatter of {n_blocks} blocks" in describe_criterion(part)
        assert ("fewer than 4 blocks" in describe_criterion(part)) == (n_blocks == 2)
    # what is beyond a noise of few blocks is still a deviation
    assert "worst deviations" in describe_physics(make_part(make_rdf(1.5, 0.01, n_blocks=2)))


def test_tables_and_verdicts_have_one_criterion(whole_record):
    """Up to twice what two equal systems would differ by; peaks, the width of a bin."""
    item = make_part(make_rdf(1.01)).items[0]
    peak, area = item.quantities
    assert judge_quantity(item, peak).status == "within"
    apart = peak.model_copy(update={"student": peak.teacher + 0.16})
    sharp = make_part(make_rdf(1.01, 0.01)).items[0]
    assert judge_quantity(sharp, apart).status == "beyond"
    for factor, status in ((1.9, "within"), (2.1, "beyond")):
        changed = area.model_copy(update={"student": factor * area.student_error})
        assert judge_quantity(item, changed).status == status
        part = make_part(item)
        part = part.model_copy(
            update={"items": (item.model_copy(update={"quantities": (changed,)}),)}
        )
        assert (f"{status} noise" in describe_physics(part)) == (status == "within")
        assert tabulate(whole_record, part)[area.name]["difference"] == f"{status} noise"


def make_trace(drift, seed=0, correlated=0.9):
    noise = np.zeros(400)
    random = np.random.default_rng(seed).normal(size=400)
    for k in range(1, 400):
        noise[k] = correlated * noise[k - 1] + random[k]
    times = np.linspace(0.0, 1.0, 400)
    return EnergyTrace(times=tuple(times), energies=tuple(drift * times + 0.01 * noise))


def test_a_drift_smaller_than_its_error_is_not_resolved(whole_record):
    for drift, resolved in ((0.001, False), (1.0, True)):
        trace = make_trace(drift)
        assert is_resolved(trace) is resolved
        item = NveItem(
            title="Conservation of energy", description="", temperature=300, time_step=1.0,
            teacher=None, student=trace,
        )  # fmt: skip
        row = tabulate(whole_record, make_part(item))["drift of the energy"]
        assert "±" in row["student"]
        assert (", not resolved (over 1 ps)" in row["student"]) is not resolved
    short = EnergyTrace(times=(0.0, 1.0, 2.0), energies=(0.0, 0.1, 0.3))
    assert fit_drift_error(short) is None
    part = make_part(item.model_copy(update={"student": short}))
    assert (
        "no error bar (over 2 ps)" in tabulate(whole_record, part)["drift of the energy"]["student"]
    )


def test_drifts_leave_out_the_start_of_a_run_or_say_that_it_is_part_of_them(whole_record):
    """A step of the energy in the first 0.1 ps, and none after it: a drift of runs whose start counts, no other."""
    times = np.linspace(0.0, 1.0, 101)
    trace = EnergyTrace(times=tuple(times), energies=tuple(np.where(times < 0.095, 0.0, 5.0)))
    old = NveItem(
        title="Conservation of energy", description="", temperature=300, time_step=1.0,
        teacher=trace, student=trace,
    )  # fmt: skip
    new = old.model_copy(update={"settling": 0.1})
    drifts = [derive_quantities(item)[0] for item in (old, new)]
    assert drifts[0].student > 1.0
    assert (drifts[1].student, drifts[1].teacher) == pytest.approx((0.0, 0.0), abs=1e-9)
    shown = tabulate(whole_record, make_part(new))["drift of the energy"]
    assert "(over 0.9 ps)" in shown["teacher"]
    assert "(over 0.9 ps)" in shown["student"]
    assert "leave out the first 0.1 ps" in describe_criterion(make_part(new))
    assert "of whole runs" in describe_criterion(make_part(old))
    with pytest.raises(PropertyError, match="nothing is left"):
        derive_quantities(old.model_copy(update={"settling": 1.5}))


def test_errors_of_drifts_are_those_of_repeated_runs():
    """Correlated noise: the plain error of least squares would be four times too small."""
    traces = [make_trace(0.0, seed) for seed in range(60)]
    spread = np.std([fit_drift(trace)[0] for trace in traces])
    errors = [fit_drift_error(trace) for trace in traces]
    assert np.mean(errors) == pytest.approx(spread, rel=0.35)


def test_pair_distributions_end_at_half_the_box():
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 3))
    runs = []
    for seed in range(2):
        images = []
        for k in range(400):
            image = atoms.copy()
            image.rattle(0.05, seed=1000 * seed + k)
            images.append(image)
        runs.append(motion.Run([images], 2.0))
    item = motion.compare_distributions(*runs, [("Cu", "Cu")], 300.0)
    assert item.heights == pytest.approx((7.22, 7.22, 10.83))
    assert item.curves[0].radii[-1] + 0.025 == pytest.approx(3.6)
    assert (
        "box of 7.22 × 7.22 × 10.8 Å between opposite faces, distances up to 3.6 Å, half"
        in item.description
    )


def test_old_pair_distributions_are_cut_at_half_a_cube_of_their_volume(whole_record):
    item = make_rdf(1.02).model_copy(update={"description": "32 atoms at 300 K"})
    part = make_part(item)
    coverage = whole_record.main.coverage.model_copy(update={"volume_per_atom": (11.7, 11.7)})
    main = whole_record.main.model_copy(update={"coverage": coverage})
    (shown,) = present_physics(part, main).items
    assert shown.curves[0].radii[-1] == pytest.approx(3.575)
    assert (
        "a cube of its volume has edges of 7.21 Å: shown and integrated up to half"
        in shown.description
    )
    peak, area = shown.quantities
    assert peak == part.items[0].quantities[0]
    assert area == derive_quantities(shown)[1] != part.items[0].quantities[1]
    # a box that is known or large enough is left as it is
    known = make_part(item.model_copy(update={"heights": (12.0, 12.0, 12.0)}))
    assert present_physics(known, main).items == known.items
    large = make_part(item.model_copy(update={"description": "320 atoms at 300 K"}))
    assert present_physics(large, main).items[0].curves == large.items[0].curves


def test_pages_of_old_records_are_honest():
    record = read_record(RESULTS / "tio2-7net-0-h200.json")
    verdict = "\n".join(list_lines(record))
    assert "C44 +41.9 %" in "\n".join(record.verdict.lines)
    assert (
        "elastic constants (C44 +41.9 %) and vacancies (Schottky energy per formula unit -39.6 %) not"
        in verdict
    )
    assert verdict.count("C44") == verdict.count("Schottky") == 1
    page = render_report(record)
    page = page[: page.index('<script type="application/json"')]
    for text in (page, write_tables(record)):
        assert "Amm2 (38) within 0.02 and 0.2 Å" in text
        assert "perfect cell is unstable" in text
        assert "TiO2: fastff" in text
        assert "e+03" not in text


def test_bulk_moduli_of_cells_that_are_not_cubic_are_said_to_be_of_scaled_cells(whole_record):
    """By the teacher's space group, else by its elastic constants; where neither is known, with a condition."""
    eos, elastic = whole_record.physics.items[:2]
    group = dict.fromkeys(("teacher", "student"), ("P4/mmm (123)", "Pm-3m (221)"))
    cubic = dict.fromkeys(("teacher", "student"), ("Pm-3m (221)", "Pm-3m (221)"))
    skewed = elastic.model_copy(update={"cubic": False})
    for items, symmetry, words in (
        ((eos, elastic), group, "and this cell is not cubic: B0 is that of equal strains"),
        ((eos, skewed), None, "and this cell is not cubic: B0 is that of equal strains"),
        ((eos,), None, "in a cell that is not cubic, B0 is that of equal strains"),
        ((eos, skewed), cubic, ""),
        ((eos, elastic), None, ""),
    ):
        part = make_part(*items, symmetry=symmetry)
        shown = describe_item(present_physics(part, whole_record.main).items[0])
        assert words in shown
        assert bool(words) is ("hydrostatic" in shown)
    page = render_report(read_record(RESULTS / "cuau-7net-0-l10-h200.json"))
    assert "this cell is not cubic" in page[: page.index('<script type="application/json"')]


def test_wide_intervals_are_quoted_with_the_limits(whole_record):
    other = whole_record.main.model_copy(
        update={
            "accuracy": whole_record.main.accuracy
            | {"intervals": {"overall": (0.2, 0.99)}, "intervals_by": "jackknife"}
        }
    )
    line = _judge_limits(whole_record.model, (whole_record.main, other))
    assert line.endswith("% (20.0 to 99.0 %).")
    narrow = other.model_copy(
        update={"accuracy": other.accuracy | {"intervals": {"overall": (0.95, 0.99)}}}
    )
    assert "to 99.0 %" not in _judge_limits(whole_record.model, (whole_record.main, narrow))


def test_numbers_and_formulas_are_as_people_write_them():
    assert [show_number(v) for v in (1034.2, 999.9, 12.34, 0.00123, 1.5e6)] == [
        "1,030", "1,000", "12.3", "0.00123", "1,500,000"
    ]  # fmt: skip
    assert show_number(1034.2, sign="+") == "+1,030"
    assert show_number(-1034.2) == "-1,030"
    assert [show_formula(f) for f in ("O2Ti", "ClNa", "MgO", "CH4", "not one")] == [
        "TiO2", "NaCl", "MgO", "CH4", "not one"
    ]  # fmt: skip
    assert show_formula("H54O27", reduce=True) == "H2O"
