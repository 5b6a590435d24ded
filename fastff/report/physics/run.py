"""Which properties are measured, in which order, and what is left out.

Here: :func:`measure_physics`, which takes what fits the structure and what there is time for, and
:func:`verify_physics`. Not here: the properties, pair distributions and diffusion of both sides
(:mod:`fastff.report.physics.sampling`), the clock (:mod:`fastff.report.physics.schedule`).

``"auto"`` keeps to a budget of seconds, of which each property has a share. What compares both sides comes before what
the student does alone. ``"full"`` has no budget and longer runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastff.distill.dynamics import draw_momenta
from fastff.report.ending import NEVER, Watch
from fastff.report.physics import crystal as crystals
from fastff.report.physics import dimers, endurance
from fastff.report.physics.axes import find_axis_faults
from fastff.report.physics.derive import PropertyError, derive_quantities
from fastff.report.physics.magnitudes import find_magnitude_faults
from fastff.report.physics.material import WORDS, Material, describe_material
from fastff.report.physics.record import PhysicsPart
from fastff.report.physics.sampling import Runs, make_runs, plan_runs
from fastff.report.physics.schedule import Laboratory, Mode, Task
from fastff.report.physics.side import Side, relax_bare
from fastff.units import show_number

if TYPE_CHECKING:
    import ase

    from fastff.models import Student

ENERGY = "Conservation of energy"

ENGINE_STEPS = {"auto": 1000, "full": 20_000}
"""Steps of the student's own loop, more where stability would say nothing or they take few seconds."""

MOST_ENGINE = 10_000
"""Steps that it takes in mode ``"auto"`` where these take no more than :data:`ENGINE_SECONDS`."""

ENGINE_SECONDS = 4.0

TEACHER_STEPS = {"auto": 1000, "full": 2000}
"""Of the teacher at constant energy, at most."""

LARGEST_ORDERED = 24
"""Atoms of a unit cell; a larger one is disordered, as a rule, and relaxes slowly."""

PHONOPY_SECONDS = 2.5
"""phonopy's own work for both sides: symmetry, force constants, bands."""

RECOGNITION = 0.1
"""Share of the budget for relaxing a disturbed crystal before its primitive cell is searched."""


def measure_physics(
    structure: ase.Atoms,
    teacher: Side,
    student: Side,
    model: Student,
    *,
    temperatures: tuple[float, float],
    mode: Mode = "auto",
    budget: float = 150.0,
    progress: Callable[[str, int, int], None] = lambda message, done, total: None,
    watch: Watch = NEVER,
    keep: Callable[[PhysicsPart], None] = lambda part: None,
) -> PhysicsPart:
    """Compare the physical properties that fit ``structure``.

    Parameters
    ----------
    structure : ase.Atoms
        The material, as near to its ideal form as there is.
    teacher, student : Side
        Their labels must have been checked against those of the compared frames.
    model : Student
        For fastff's own dynamics.
    temperatures : (float, float)
        Training range in K: runs are at its middle, stability is tested at its upper end and 1.5 times that.
    mode : {"auto", "full"}
    budget : float
        Seconds in mode ``"auto"``, about.
    progress : callable
        Receives (what is being done, done, total).
    watch : Watch
        Asked before every property.
    keep : callable
        Receives the result, of a run that ends early as far as it came.
    """
    lab = Laboratory(teacher, student, mode, budget, progress, watch)
    lab.limit(RECOGNITION * lab.remaining)
    material = describe_material(structure, partial(relax_bare, student))
    runs = make_runs(lab, material, model, temperatures)
    crystal = crystals.Crystal(material, teacher, student)
    tasks = [
        _plan_dimers(lab, material, float(model.cutoff)),
        *_plan_crystal(lab, crystal),
        *plan_runs(lab, material, runs),
        *plan_student(lab, material, runs, temperatures[1]),
    ]
    try:
        lab.work(tasks)
    finally:
        with watch.hold():
            part = PhysicsPart(
                mode=mode,
                material=material.words,
                teacher=teacher.identity,
                student=student.identity,
                items=tuple(lab.items),
                left_out=tuple(lab.left_out),
                symmetry=crystal.find_symmetries(),
                given_symmetry=material.cell.symmetry if crystal.relaxed else None,
            )
            keep(part)
    return part


def _plan_dimers(lab: Laboratory, material: Material, cutoff: float) -> Task:
    import ase

    pairs = material.pairs
    first = ase.Atoms(list(pairs[0]), [[0, 0, 0], [0, 0, 2.0]])
    # a teacher that labels in batches is judged by a batch, but by a small one in case it does not
    batches = dimers.N_DISTANCES / 4 * min(len(pairs), dimers.MOST_PAIRS)
    return Task(
        "Isolated pairs", 1.0,
        measure=lambda _: dimers.measure_dimers(lab.teacher, lab.student, pairs, cutoff),
        cost=lambda: batches * lab.estimate(first, copies=4),
        against=str,
    )  # fmt: skip


def plan_student(lab: Laboratory, material: Material, runs: Runs, highest: float) -> list[Task]:
    """Conservation of energy and stability up to ``highest`` and beyond, in the student's own loop."""
    box, model, time_step, middle = material.box, runs.model, runs.time_step, runs.temperature
    least_nve, least_stability = (
        math.ceil(round(least * 1e3 / time_step, 6))
        for least in (endurance.LEAST_NVE, endurance.LEAST_STABILITY)
    )
    n_steps = max(ENGINE_STEPS[lab.mode], least_nve, least_stability)
    complete = n_steps * time_step * 1e-3 * (1.0 - 1e-6)
    most_teacher = max(TEACHER_STEPS[lab.mode], least_nve)

    def count_own() -> int:
        return max(n_steps, min(MOST_ENGINE, int(ENGINE_SECONDS / runs.estimate_own(box))))

    def measure_nve(seconds: float) -> Any:
        takes = lab.teacher.estimate(box)
        spare = 0.9 * seconds - least_nve * runs.estimate_own(box)
        n_teacher = int(max(0.0, min(spare / takes + 1e-6, most_teacher)))
        absence = ""
        if lab.alone or n_teacher < least_nve:
            n_teacher = 0
            needed, left = (show_number(x, 2) for x in (least_nve * takes, max(spare, 0.0)))
            absence = f"{least_nve} steps of it take about {needed} s, {left} s were left"
            absence = lab.describe_stop(ENERGY) or absence
        start = box.copy()
        # Twice the temperature: half of it goes into the potential energy of what starts at rest.
        start.set_momenta(draw_momenta(start, 2.0 * middle, 21, 0))
        return endurance.measure_nve(
            lab.teacher if n_teacher else None, model, start, middle,
            time_step, count_own(), n_teacher, seconds - n_teacher * takes, absence=absence,
        )  # fmt: skip

    return [
        Task(
            ENERGY, 2.0,
            measure=measure_nve,
            cost=lambda: least_nve * runs.estimate(lab.teacher, box) / 0.9,
            against=str,
            cost_alone=lambda: least_nve * runs.estimate_own(box),
            incomplete=lambda item: item.student.times[-1] < complete,
        ),
        Task(
            "Stability", 3.0,
            measure=lambda seconds: endurance.measure_stability(
                model, box, highest, time_step, count_own(), seconds
            ),
            cost=lambda: 2 * least_stability * runs.estimate_own(box),
            against=str,
            cost_alone=lambda: 2 * least_stability * runs.estimate_own(box),
            incomplete=lambda item: any(run.n_steps < n_steps and not run.reason for run in item.runs),
        ),
    ]  # fmt: skip


def _plan_crystal(lab: Laboratory, crystal: crystals.Crystal) -> list[Task]:
    material, unit = crystal.material, crystal.material.unit
    fits = "" if material.kind == "crystal" else f"the structure is {WORDS[material.kind]}"
    many = ""
    if sum(material.formula.values()) > 6 or len(material.formula) > 3:
        many = "the formula unit is too large for a set of vacancies"
    # calls: relaxations of a cell take about twenty steps, strained cells with free positions about five, of more than
    # two atoms about fifteen; those of a disordered cell of 108 atoms took 93 and 25
    ordered = len(unit) <= LARGEST_ORDERED
    free = (1 if len(unit) == 1 else 5 if len(unit) == 2 else 15) if ordered else 25

    def estimate_units(n_calls: int) -> float:
        relaxation = 0 if crystal.relaxed else 20 if ordered else 90
        return (n_calls + relaxation) * lab.estimate(unit)

    def estimate_phonons() -> float:
        crystals.import_phonopy()
        cell = crystals.build_phonon_cell(unit).atoms
        # one or two displacements of each kind of atom in the cell, as a rule
        n_calls = 2 * len(set(unit.numbers)) + 1
        return n_calls * lab.estimate(cell) + estimate_units(0) + PHONOPY_SECONDS

    def estimate_vacancies() -> float:
        hole = crystals.build_vacancy_cell(unit)
        steps = 16 if ordered else 40
        return steps * len(material.formula) * lab.estimate(hole) + estimate_units(0)

    return [
        Task(
            "Phonons", 4.0,
            measure=lambda _: crystals.measure_phonons(crystal),
            cost=estimate_phonons,
            against=lambda: fits or material.cell.fault,
        ),
        Task(
            "Equation of state", 4.0,
            measure=lambda _: crystals.measure_eos(crystal),
            cost=lambda: estimate_units(len(crystals.SCALES) * free),
            against=lambda: fits,
        ),
        Task(
            "Elastic constants", 4.0,
            measure=lambda _: crystals.measure_elastic(crystal),
            cost=lambda: estimate_units(12 * free),
            against=lambda: fits,
        ),
        Task(
            "Vacancies", 4.0,
            measure=lambda _: crystals.measure_vacancies(crystal),
            cost=estimate_vacancies,
            against=lambda: fits or many,
        ),
    ]  # fmt: skip


def verify_physics(part: PhysicsPart) -> list[str]:
    """What cannot be: axes, sizes that matter does not have, quantities that do not follow from their curves."""
    faults = find_axis_faults(part)
    if faults:  # nothing can be derived from such curves
        return faults
    sizes: list[str] = []
    for item in part.items:
        try:
            expected = derive_quantities(item)
        except PropertyError as error:
            faults.append(f"{item.title}: {error}")
            continue
        sizes += find_magnitude_faults(item)
        for stored, fresh in zip(item.quantities, expected, strict=False):
            same = stored.name == fresh.name and stored.unit == fresh.unit
            for key in ("teacher", "student", "teacher_error", "student_error"):
                a, b = getattr(stored, key), getattr(fresh, key)
                same &= a is b or (
                    a is not None and b is not None and bool(np.isclose(a, b, rtol=1e-6, atol=1e-9))
                )
            if not same:
                faults.append(
                    f"{item.title}: {stored.name} does not follow from the curves beside it"
                )
        if len(item.quantities) != len(expected):
            faults.append(
                f"{item.title}: {len(item.quantities)} quantities, its curves give {len(expected)}"
            )
    return faults + sizes
