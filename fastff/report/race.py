"""Teacher and student timed in one run on the same structures.

Here: :func:`race`, which prepares the structures, checks that the calculators are the ones whose labels were compared,
and times both. Not here: the rules of timing (:mod:`fastff.report.timing`), the teacher's fastest settings
(:mod:`fastff.report.fastest`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ase
import numpy as np

from fastff.distill.constraints import hold_atoms
from fastff.labels import Frame, Labels
from fastff.md.state import find_fixed
from fastff.report.baselines import Baseline
from fastff.report.ending import NEVER, Watch
from fastff.report.fastest import choose_fastest
from fastff.report.heldout import choose_time_step
from fastff.report.inner import time_student
from fastff.report.plausibility import check_identity
from fastff.report.speed import CLOCK_INCLUDES, Mode, SpeedCurve
from fastff.report.stamps import stamp_part
from fastff.report.stepping import judge_dynamics, time_dynamics
from fastff.report.supercells import build_supercells
from fastff.report.tables import PATHS
from fastff.report.timing import Timed, TimingPlan, time_calculators

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
    watch: Watch = NEVER,
    timings: Timings | None = None,
) -> tuple[SpeedCurve, ...]:
    """Time ``student`` and ``teacher`` on supercells of ``structure``.

    Parameters
    ----------
    student : Timed
        Role ``"student"``, its identity the SHA-256 of its tensors.
    teacher : Teacher
        Timed with the fastest of its settings, which is chosen here.
    structure : ase.Atoms
        The material. Dynamics holds its FixAtoms.
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
    watch : Watch
        Asked before every size and calculator.
    timings : Timings, optional
        Receives the curves, of a race that ends early as far as it came.

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
        completed = complete_structure(atoms, teacher.padding, all_periodic=teacher.periodic_only)
        return hold_atoms(completed, atoms)

    cells = [complete(cell) for cell in build_supercells(structure, sizes)]
    counts = [len(cell) for cell in cells]
    models = {student.role: model, **{b.name: b.model for b in baselines}}
    own = {role for role, one in models.items() if one is not None}
    timings = Timings() if timings is None else timings
    curves = timings.curves
    for role, label in (
        (student.role, student.label), ("teacher", teacher.name), *((b.name, b.name) for b in baselines),
    ):  # fmt: skip
        timings.want(role, label, counts, own)
    try:
        check_identity(student.factory(), frame.atoms, predicted, "student")
        best = choose_fastest(
            teacher, complete(frame.atoms), frame.labels, cells[counts.index(find_headline(counts))],
            device=student.device, budget=budget, larger=cells,
            progress=lambda message: progress(f"timing: {message}", 0, 0), watch=watch,
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
            image = baseline.complete(frame.atoms)
            check_identity(baseline.factory(), image, expected, baseline.name)
        timed = [
            (entry, network) for entry in entries if (network := models.get(entry.role)) is not None
        ]
        total = len(entries) * (len(cells) + 1) + 3 * len(timed)
        done = 0

        def report(message: str) -> None:
            nonlocal done
            done += 1
            progress(f"timing: {message}", done, total)

        plan = TimingPlan(budget=budget, required=(counts[0], find_headline(counts)), watch=watch)
        for entry in entries:
            for one, part in best.split(cells) if entry is best.small else [(entry, cells)]:
                time_calculators([one], part, plan, report, found=curves)
        time_step = choose_time_step(cells[0].numbers)
        for entry, network in timed:
            time_student(
                entry, network, cells, plan, report,
                time_step=time_step, temperature=temperature, found=curves,
            )  # fmt: skip
        calls = {c.role: c for c in settle_curves(curves, own) if c.mode == "ase-call"}
        always = min(counts, key=lambda count: abs(np.log(count / md_atoms)))
        wanted = choose_dynamics_sizes(list(calls.values()), always, budget)
        chosen = [cell for cell in cells if len(cell) in wanted]
        for entry in entries:
            for one, part in best.split(chosen) if entry is best.small else [(entry, chosen)]:
                time_dynamics(
                    one, part, temperature=temperature, time_step=time_step, budget=budget,
                    calls=calls[entry.role], required=(always,), watch=watch, found=curves,
                )  # fmt: skip
            report(f"{entry.label}, dynamics through ASE")
    finally:
        with watch.hold():
            settled = [
                stamp_part(add_conditions(curve, cells, temperature))
                for curve in settle_curves(curves, own)
            ]
            curves[:] = settled
    return tuple(curves)


@dataclass
class Timings:
    """What a race has measured, and what it is to measure: by role and mode, in words, and the largest size."""

    curves: list[SpeedCurve] = field(default_factory=list)
    wanted: dict[tuple[str, Mode], tuple[str, int]] = field(default_factory=dict)

    def want(self, role: str, label: str, counts: Sequence[int], own: set[str]) -> None:
        """Note what is to be timed of one calculator; those in ``own`` are students, with paths of their own."""
        modes: tuple[Mode, ...] = ("ase-call", "ase-md")
        if role in own:
            modes = ("ase-call", "model", "model-list", "md-loop", "ase-md")
        for mode in modes:  # sizes of dynamics through ASE are chosen late
            largest = counts[0] if mode == "ase-md" else counts[-1]
            self.wanted[role, mode] = (f"{label} {PATHS[mode]}", largest)

    def list_missing(self) -> list[str]:
        """What has not been timed, with the size above which it has not."""
        missing = []
        for (role, mode), (words, largest) in self.wanted.items():
            found = [c for c in self.curves if (c.role, c.mode) == (role, mode)]
            last = max((p.n_atoms for c in found for p in c.points), default=0)
            if not last:
                missing.append(words)
            elif last < largest:
                missing.append(f"{words} above {last} atoms")
        return missing


def settle_curves(curves: Sequence[SpeedCurve], own: set[str]) -> list[SpeedCurve]:
    """Curves with points, one of each calculator and mode.

    Of those in ``own`` the model alone is timed on its own, not inside the ASE call.
    """
    return join_curves(
        [
            curve
            for curve in curves
            if curve.points and not (curve.role in own and curve.includes == CLOCK_INCLUDES)
        ]
    )


def join_curves(curves: Sequence[SpeedCurve]) -> list[SpeedCurve]:
    """One curve of each calculator and mode, of the points of all."""
    joined: dict[tuple[str, str], SpeedCurve] = {}
    for curve in curves:
        first = joined.get((curve.role, curve.mode))
        if first is not None:
            remarks = first.includes + curve.includes.removeprefix(first.includes.split(";")[0])
            update = {"points": (*first.points, *curve.points), "includes": remarks}
            curve = first.model_copy(update=update)
        joined[curve.role, curve.mode] = curve
    return list(joined.values())


def add_conditions(curve: SpeedCurve, cells: Sequence[ase.Atoms], temperature: float) -> SpeedCurve:
    """With the volume per atom of every point; of dynamics, the fixed atoms and the temperature at which it began."""
    volumes = {len(cell): cell.get_volume() / len(cell) for cell in cells if cell.pbc.all()}
    moves = curve.time_step is not None
    fixed = {len(cell): int(find_fixed(cell).sum()) or None for cell in cells if moves}
    points = tuple(
        point.model_copy(
            update={
                "volume_per_atom": volumes.get(point.n_atoms),
                "n_fixed": fixed.get(point.n_atoms),
            }
        )
        for point in curve.points
    )
    start = temperature if moves else None
    return curve.model_copy(update={"points": points, "start_temperature": start})


def choose_dynamics_sizes(calls: Sequence[SpeedCurve], always: int, budget: float) -> set[int]:
    """Sizes of dynamics through ASE: ``always``, the headline's, and the largest that each calculator has time for."""
    sizes = {always, find_headline([point.n_atoms for point in calls[0].points])}
    for curve in calls:
        fits = [p.n_atoms for p in curve.points if judge_dynamics(p, budget) is None]
        sizes |= {max(fits)} if fits else set()
    return sizes
