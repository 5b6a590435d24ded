"""Teacher and student timed in one run on the same structures.

Here: :func:`race`, which prepares the structures, checks that the calculators are the ones whose labels were compared,
and times both. Not here: the rules of timing (:mod:`fastff.report.timing`), the teacher's fastest settings
(:mod:`fastff.report.fastest`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ase
import numpy as np

from fastff.labels import Frame, Labels
from fastff.report.baselines import Baseline
from fastff.report.fastest import choose_fastest
from fastff.report.heldout import choose_time_step
from fastff.report.inner import time_student
from fastff.report.plausibility import check_identity
from fastff.report.speed import SpeedCurve
from fastff.report.stamps import stamp_part
from fastff.report.supercells import build_supercells
from fastff.report.timing import (
    Timed,
    TimingPlan,
    judge_dynamics,
    time_calculators,
    time_dynamics,
)

if TYPE_CHECKING:
    from fastff.models import Student
    from fastff.teachers.base import Teacher

HEADLINE_ATOMS = 500
"""The size nearest to this, and the smallest, are always measured for both sides."""


def find_headline(counts: Sequence[int]) -> int:
    """The atom count nearest to 500, on a logarithmic scale."""
    return min(counts, key=lambda count: abs(np.log(count / HEADLINE_ATOMS)))


def find_headline_size(curves: Sequence[SpeedCurve]) -> int | None:
    """The size that a record quotes: the one nearest to 500 among those of ASE calls; None without any."""
    counts = [p.n_atoms for c in curves if c.mode == "ase-call" for p in c.points]
    return find_headline(counts) if counts else None


def race(
    student: Timed,
    teacher: Teacher,
    structure: ase.Atoms,
    frame: Frame,
    predicted: Labels,
    *,
    sizes: Sequence[int],
    md_atoms: int,
    temperature: float,
    budget: float,
    progress: Callable[[str, int, int], None],
    model: Student | None = None,
    baselines: Sequence[Baseline] = (),
) -> tuple[SpeedCurve, ...]:
    """Time ``student`` and ``teacher`` on supercells of ``structure``.

    Parameters
    ----------
    student : Timed
        Role ``"student"``, its identity the SHA-256 of its tensors.
    teacher : Teacher
        Timed with the fastest of its settings, which is chosen here.
    structure : ase.Atoms
        The material.
    frame : Frame
        One frame that was compared, with the teacher's labels.
    predicted : Labels
        What the student said of it.
    sizes : sequence of int
        Atom counts.
    md_atoms : int
        The size nearest to this is always among those of dynamics; see :func:`choose_dynamics_sizes`.
    temperature : float
        K, at which all dynamics begins, that of ASE and fastff's own.
    budget : float
        Seconds for each size and calculator.
    progress : callable
        Receives (what was done, done, total).
    model : Student, optional
        The student itself: model alone, list and model, and fastff's own dynamics are then timed too.
    baselines : sequence of Baseline
        Timed in the same way, each at the sizes that its speed allows.

    Returns
    -------
    tuple of SpeedCurve
        Calls and steps of each side.

    Raises
    ------
    DataError
        A calculator does not reproduce the labels of its side.
    """
    from fastff.teachers.base import complete_structure

    def complete(atoms: ase.Atoms) -> ase.Atoms:
        return complete_structure(atoms, teacher.padding, all_periodic=teacher.periodic_only)

    check_identity(student.factory(), frame.atoms, predicted, "student")
    cells = [complete(cell) for cell in build_supercells(structure, sizes)]
    counts = [len(cell) for cell in cells]
    best = choose_fastest(
        teacher, complete(frame.atoms), frame.labels, cells[counts.index(find_headline(counts))],
        device=student.device, budget=budget, larger=cells,
        progress=lambda message: progress(f"timing: {message}", 0, 0),
    )  # fmt: skip
    entries = [student, best.small]
    for baseline in baselines:
        entries.append(
            Timed(
                baseline.name,
                baseline.name,
                baseline.factory,
                baseline.identity,
                student.device,
                own_process=baseline.own_process,
            )
        )
        expected = baseline.label([frame.atoms])[0]
        check_identity(baseline.factory(), baseline.complete(frame.atoms), expected, baseline.name)
    models = {student.role: model, **{b.name: b.model for b in baselines}}
    timed = [(entry, one) for entry in entries if (one := models.get(entry.role)) is not None]
    total = len(entries) * (len(cells) + 1) + 3 * len(timed)
    done = 0

    def report(message: str) -> None:
        nonlocal done
        done += 1
        progress(f"timing: {message}", done, total)

    plan = TimingPlan(budget=budget, required=(counts[0], find_headline(counts)))
    curves = []
    for entry in entries:
        parts = best.split(cells) if entry is best.small else [(entry, cells)]
        curves += join_curves(
            [c for one, part in parts for c in time_calculators([one], part, plan, report)]
        )
    # of students the model alone is timed on its own, not inside the ASE call
    own = {entry.role for entry, _ in timed}
    curves = [c for c in curves if c.mode != "model" or c.role not in own]
    time_step = choose_time_step(cells[0].numbers)
    for entry, one in timed:
        curves += time_student(
            entry, one, cells, plan, report, time_step=time_step, temperature=temperature
        )
    calls = {c.role: c for c in curves if c.mode == "ase-call"}
    always = min(counts, key=lambda count: abs(np.log(count / md_atoms)))
    wanted = choose_dynamics_sizes(list(calls.values()), always, budget)
    chosen = [cell for cell in cells if len(cell) in wanted]
    for entry in entries:
        parts = best.split(chosen) if entry is best.small else [(entry, chosen)]
        found = [
            time_dynamics(
                one, part, temperature=temperature, time_step=time_step, budget=budget,
                calls=calls[entry.role], required=(always,),
            )
            for one, part in parts
        ]  # fmt: skip
        curves += join_curves(found)
        report(f"{entry.label}, dynamics through ASE")
    return tuple(stamp_part(add_conditions(curve, cells, temperature)) for curve in curves)


def join_curves(curves: Sequence[SpeedCurve]) -> list[SpeedCurve]:
    """One curve of each mode, of the points of all."""
    joined: dict[str, SpeedCurve] = {}
    for curve in curves:
        first = joined.get(curve.mode)
        if first is not None:
            remarks = first.includes + curve.includes.removeprefix(first.includes.split(";")[0])
            update = {"points": (*first.points, *curve.points), "includes": remarks}
            curve = first.model_copy(update=update)
        joined[curve.mode] = curve
    return list(joined.values())


def add_conditions(curve: SpeedCurve, cells: Sequence[ase.Atoms], temperature: float) -> SpeedCurve:
    """With the volume per atom of every point, and the temperature at which dynamics began."""
    volumes = {len(cell): cell.get_volume() / len(cell) for cell in cells if cell.pbc.all()}
    points = tuple(
        point.model_copy(update={"volume_per_atom": volumes.get(point.n_atoms)})
        for point in curve.points
    )
    start = temperature if curve.time_step is not None else None
    return curve.model_copy(update={"points": points, "start_temperature": start})


def choose_dynamics_sizes(calls: Sequence[SpeedCurve], always: int, budget: float) -> set[int]:
    """Sizes of dynamics through ASE: ``always``, the headline's, and the largest that each calculator has time for."""
    sizes = {always, find_headline([point.n_atoms for point in calls[0].points])}
    for curve in calls:
        fits = [p.n_atoms for p in curve.points if judge_dynamics(p, budget) is None]
        sizes |= {max(fits)} if fits else set()
    return sizes
