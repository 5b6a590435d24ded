"""Which properties are measured, in which order, and what is left out.

Here: :func:`measure_physics`, which takes what fits the structure and what there is time for. Not here: the properties.

``"auto"`` keeps to a budget of seconds: before each property its cost is estimated from timed calls, and one that does
not fit into what is left is left out with that reason. ``"full"`` has no budget and longer runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastff.errors import FastFFError
from fastff.report.heldout import choose_time_step
from fastff.report.physics import crystal as crystals
from fastff.report.physics import dimers, motion
from fastff.report.physics.derive import PropertyError, derive_quantities
from fastff.report.physics.material import WORDS, Material, describe_material
from fastff.report.physics.record import AnyItem, LeftOut, PhysicsPart
from fastff.report.physics.side import Side, relax_bare

if TYPE_CHECKING:
    import ase

    from fastff.models import Student

Mode = Literal["auto", "full"]
LEAST_STEPS = 200
"""Shorter runs say nothing of pair distributions."""

MOST_STEPS = {"auto": 2000, "full": 20_000}
NVE_STEPS = {"auto": 1000, "full": 20_000}


@dataclass
class Laboratory:
    """What the properties share."""

    material: Material
    teacher: Side
    student: Side
    model: Student
    temperature: float
    mode: Mode
    budget: float
    progress: Callable[[str, int, int], None]
    items: list[AnyItem] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    runs: dict[str, motion.Run] = field(default_factory=dict)

    @property
    def remaining(self) -> float:
        """Seconds left; infinite in mode ``"full"``."""
        if self.mode == "full":
            return math.inf
        return self.budget - (time.perf_counter() - self.started)

    def estimate(self, atoms: ase.Atoms) -> float:
        """Seconds of one call of both sides."""
        return self.teacher.estimate(atoms) + self.student.estimate(atoms)

    def attempt(
        self, title: str, fits: str, cost: Callable[[], float], measure: Callable[[], AnyItem]
    ) -> None:
        """Measure one property, or say why not; ``fits`` is a reason against it or empty."""
        self.progress(f"physics: {title.lower()}", len(self.items) + len(self.left_out), 9)
        reason = fits
        start = time.perf_counter()
        try:
            if not reason:
                seconds = cost()
                if seconds > self.remaining:
                    reason = (
                        f"takes about {seconds:.0f} s of calls, {max(0.0, self.remaining):.0f} s of the budget of "
                        f"{self.budget:.0f} s are left; --physics full has no limit"
                    )
            if not reason:
                item = measure()
                item = item.model_copy(update={"seconds": time.perf_counter() - start})
                self.items.append(item.model_copy(update={"quantities": derive_quantities(item)}))
                return
        except FastFFError as error:
            reason = str(error)
        self.left_out.append(LeftOut(title=title, reason=reason))


def measure_physics(
    structure: ase.Atoms,
    teacher: Side,
    student: Side,
    model: Student,
    *,
    temperature: float,
    mode: Mode = "auto",
    budget: float = 150.0,
    progress: Callable[[str, int, int], None] = lambda message, done, total: None,
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
    temperature : float
        K, of runs.
    mode : {"auto", "full"}
    budget : float
        Seconds in mode ``"auto"``, about.
    progress : callable
        Receives (what is being done, done, total).
    """
    material = describe_material(structure, partial(relax_bare, student))
    lab = Laboratory(material, teacher, student, model, temperature, mode, budget, progress)
    _measure_dimers(lab)
    _measure_crystal(lab)
    _measure_motion(lab)
    return PhysicsPart(
        mode=mode,
        material=material.words,
        teacher=teacher.identity,
        student=student.identity,
        items=tuple(lab.items),
        left_out=tuple(lab.left_out),
    )


def _measure_crystal(lab: Laboratory) -> None:
    material, crystal = lab.material, crystals.Crystal(lab.material, lab.teacher, lab.student)
    fits = "" if material.kind == "crystal" else f"the structure is {WORDS[material.kind]}"
    unit = material.unit

    # calls: relaxations take about ten steps, strained cells with free positions about five
    free = 1 if len(unit) == 1 else 5
    lab.attempt(
        "Equation of state", fits, lambda: (10 + len(crystals.SCALES) * free) * lab.estimate(unit),
        lambda: crystals.measure_eos(crystal),
    )  # fmt: skip
    lab.attempt(
        "Elastic constants", fits, lambda: (10 + 12 * free) * lab.estimate(unit),
        lambda: crystals.measure_elastic(crystal),
    )  # fmt: skip

    def estimate_phonons() -> float:
        crystals.import_phonopy()
        cell, _ = crystals.build_phonon_cell(unit)
        # one or two displacements of each kind of atom in the cell, as a rule
        return (2 * len(set(unit.numbers)) + 1) * lab.estimate(cell)

    lab.attempt(
        "Phonons", fits or material.cell.fault, estimate_phonons,
        lambda: crystals.measure_phonons(crystal),
    )  # fmt: skip
    many = ""
    if sum(material.formula.values()) > 6 or len(material.formula) > 3:
        many = "the formula unit is too large for a set of vacancies"
    lab.attempt(
        "Vacancies", fits or many,
        lambda: 16 * len(material.formula) * lab.estimate(crystals.build_vacancy_cell(unit)),
        lambda: crystals.measure_vacancies(crystal),
    )  # fmt: skip


def _measure_dimers(lab: Laboratory) -> None:
    import ase

    pairs = lab.material.pairs
    first = ase.Atoms(list(pairs[0]), [[0, 0, 0], [0, 0, 2.0]])
    count = dimers.N_DISTANCES * min(len(pairs), dimers.MOST_PAIRS)
    lab.attempt(
        "Isolated pairs", "", lambda: count * lab.estimate(first),
        lambda: dimers.measure_dimers(lab.teacher, lab.student, pairs, float(lab.model.cutoff)),
    )  # fmt: skip


def _measure_motion(lab: Laboratory) -> None:
    material, box = lab.material, lab.material.box
    time_step = choose_time_step(box.numbers)
    periodic = material.kind in ("crystal", "disordered")
    fits = "" if periodic else f"the structure is {WORDS[material.kind]}, without a density"
    lab.attempt(
        "Pair distributions", fits, lambda: 1.5 * LEAST_STEPS * lab.estimate(box),
        lambda: _compare_runs(lab, time_step),
    )  # fmt: skip
    still = "" if material.kind == "disordered" else f"the structure is {WORDS[material.kind]}"
    absent = "" if len(lab.runs) == 2 else "there are no runs of both sides, see above"
    lab.attempt(
        "Diffusion", still or absent, lambda: 0.0,
        lambda: motion.compare_diffusion(lab.runs["teacher"], lab.runs["student"], lab.temperature),
    )  # fmt: skip
    lab.attempt(
        "Conservation of energy", "", lambda: NVE_STEPS[lab.mode] * lab.student.estimate(box),
        lambda: _measure_nve(lab, time_step),
    )  # fmt: skip
    ladder = [lab.temperature, 1.5 * lab.temperature]
    n_steps = NVE_STEPS[lab.mode]
    lab.attempt(
        "Stability", "", lambda: 2 * n_steps * lab.student.estimate(box),
        lambda: motion.measure_stability(lab.model, box, ladder, time_step, n_steps),
    )  # fmt: skip


def _compare_runs(lab: Laboratory, time_step: float) -> Any:
    """Runs as long as two thirds of the remaining time allow."""
    # the rest is for what follows: at least the student's own runs
    affordable = 0.5 * lab.remaining / lab.estimate(lab.material.box)
    n_steps = int(min(MOST_STEPS[lab.mode], max(LEAST_STEPS, affordable)))
    for side in (lab.teacher, lab.student):
        start = lab.material.box.copy()
        start.rattle(0.02, seed=7)
        lab.runs[side.role] = motion.run_side(
            side, start, lab.temperature, time_step, n_steps, seed=20
        )
    return motion.compare_distributions(
        lab.runs["teacher"], lab.runs["student"], lab.material.pairs, lab.temperature
    )


def _measure_nve(lab: Laboratory, time_step: float) -> Any:
    box = lab.material.box
    n_steps = NVE_STEPS[lab.mode]
    starts = {}
    for role in ("teacher", "student"):
        starts[role] = lab.runs[role].last if role in lab.runs else box
    affordable = 0.5 * lab.remaining / lab.teacher.estimate(box)
    n_teacher = int(min(n_steps, affordable, 2000))
    teacher = lab.teacher if "teacher" in lab.runs and n_teacher >= 100 else None
    return motion.measure_nve(
        teacher, lab.model, starts, lab.temperature, time_step, n_steps,
        n_teacher if teacher else 0,
    )  # fmt: skip


def verify_physics(part: PhysicsPart) -> list[str]:
    """What contradicts itself: quantities that do not follow from the curves beside them."""
    faults = []
    for item in part.items:
        try:
            expected = derive_quantities(item)
        except PropertyError as error:
            faults.append(f"{item.title}: {error}")
            continue
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
    return faults
