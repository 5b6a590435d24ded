"""Dynamics of both sides at the middle of the training range: how long, in which box, how many replicas.

Here: :class:`Runs`, which pair distributions and diffusion share, and :func:`plan_runs`, the tasks of both. Not here:
the runs themselves and what is compared of them (:mod:`fastff.report.physics.motion`), other properties
(:mod:`fastff.report.physics.run`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from fastff.distill.cells import build_supercell
from fastff.report.heldout import choose_time_step
from fastff.report.physics import endurance, motion
from fastff.report.physics.derive import PropertyError
from fastff.report.physics.material import WORDS, Material
from fastff.report.physics.schedule import Laboratory, Task
from fastff.report.physics.side import Side

if TYPE_CHECKING:
    import ase

    from fastff.models import Student

MOST_STEPS = {"auto": 2000, "full": 20_000}
"""Steps of runs of both sides, more only where pair distributions or diffusion would say nothing."""

REPLICAS = (2, 4, 8)
BATCH_COST = 2.0
"""How many times a step of one replica a step of several may cost."""

DISTRIBUTIONS = "Pair distributions"

TRIAL = 0.1
"""Share of the seconds that finding out what a batch costs may take."""


@dataclass
class Runs:
    """Dynamics of both sides that pair distributions and diffusion share, the teacher's only if there was time."""

    model: Student
    student: Side
    temperature: float
    time_step: float
    sides: dict[str, motion.Run] = field(default_factory=dict)
    absence: str = ""
    _own: dict[int, float] = field(default_factory=dict)

    def estimate_own(self, box: ase.Atoms) -> float:
        """Seconds of a step of the student, measured once at each size."""
        if len(box) not in self._own:
            self._own[len(box)] = endurance.measure_own_step(
                self.model, box, self.temperature, self.time_step, self.student.deadline
            )
        return self._own[len(box)]

    def estimate(self, teacher: Side, box: ase.Atoms, n_replicas: int = 1) -> float:
        """Seconds of a step of both sides."""
        return teacher.estimate(box, n_replicas) + n_replicas * self.estimate_own(box)


def make_runs(
    lab: Laboratory, material: Material, model: Student, temperatures: tuple[float, float]
) -> Runs:
    """No run yet, at the middle of a range of temperatures in K."""
    middle, time_step = 0.5 * sum(temperatures), choose_time_step(material.box.numbers)
    return Runs(model, lab.student, middle, time_step)


def plan_runs(lab: Laboratory, material: Material, runs: Runs) -> list[Task]:
    """Pair distributions and diffusion, from the same runs."""
    middle = runs.temperature
    periodic = material.kind in ("crystal", "disordered")
    fits = "" if periodic else f"the structure is {WORDS[material.kind]}, without a density"
    still = "" if material.kind == "disordered" else f"the structure is {WORDS[material.kind]}"
    boxes = [material.box]
    if material.kind == "crystal":
        boxes.append(build_supercell(material.unit, 6.0, 60).atoms)

    def measure_distributions(seconds: float) -> Any:
        _run_sides(lab, material, boxes, runs, seconds)
        return motion.compare_distributions(
            runs.sides.get("teacher"), runs.sides["student"], material.pairs, middle, runs.absence
        )

    def measure_diffusion(_: float) -> Any:
        if "student" not in runs.sides:
            raise PropertyError("there are no runs of pair distributions")
        if _are_short(runs):
            return _measure_own_diffusion(lab, material, runs)
        return motion.compare_diffusion(
            runs.sides.get("teacher"), runs.sides["student"], middle, runs.absence
        )

    def estimate_diffusion() -> float:
        if runs.sides and not _are_short(runs):
            return 0.0
        n_steps = motion.count_steps(motion.LEAST_DIFFUSION, runs.time_step)
        return n_steps * runs.estimate_own(material.box)

    return [
        Task(
            DISTRIBUTIONS, 6.0 if still else 12.0,
            measure=measure_distributions,
            cost=lambda: _find_cheapest(lab, boxes[-1], runs)[0] / 0.9,
            against=lambda: fits,
            cost_alone=lambda: count_least(1, runs.time_step) * runs.estimate_own(boxes[-1]),
        ),
        Task(
            "Diffusion", 0.0,
            measure=measure_diffusion,
            # waits for the runs
            cost=lambda: estimate_diffusion() if runs.sides else math.inf,
            against=lambda: still,
            cost_alone=estimate_diffusion,
        ),
    ]  # fmt: skip


def count_least(n_replicas: int, time_step: float) -> int:
    """Steps of the shortest runs that say something of pair distributions: two blocks, one of each of many replicas."""
    n_blocks = 1 if n_replicas >= motion.MOST_BLOCKS else 2
    return motion.count_steps(n_blocks * motion.LEAST_BLOCK, time_step)


def _find_cheapest(lab: Laboratory, box: ase.Atoms, runs: Runs) -> tuple[float, int]:
    """Seconds of the shortest runs of both sides, and how many replicas they have: one, or many for half the steps."""
    single = runs.estimate(lab.teacher, box)
    found = [(count_least(1, runs.time_step) * single, 1)]
    for count in REPLICAS:
        if count >= motion.MOST_BLOCKS and 3 * count * single <= TRIAL * lab.remaining:
            cost = runs.estimate(lab.teacher, box, count)
            found.append((count_least(count, runs.time_step) * cost, count))
    return min(found)


def _describe_cheapest(lab: Laboratory, box: ase.Atoms, runs: Runs, seconds: float) -> str:
    """Why there is no time for the teacher."""
    _, count = _find_cheapest(lab, box, runs)
    n_steps = count_least(count, runs.time_step)
    takes = n_steps * lab.teacher.estimate(box, count)
    replicas = "" if count == 1 else f" in {count} replicas"
    return f"{n_steps} steps of it{replicas} take about {takes:.0f} s, {seconds:.0f} s were left"


def _run_sides(
    lab: Laboratory, material: Material, boxes: list[ase.Atoms], runs: Runs, seconds: float
) -> None:
    """Both sides in the largest box in which there is time for the teacher, else the student alone.

    Replicas of the teacher run side by side where a batch of them costs little more than one, unless one alone can run
    long enough for a diffusion coefficient and they cannot.
    """
    box, n_replicas, least, with_teacher = boxes[-1], 1, count_least(1, runs.time_step), False
    lengths: list[Callable[[int], int]] = [partial(count_least, time_step=runs.time_step)]
    if material.kind == "disordered":
        diffusing = motion.count_steps(motion.LEAST_DIFFUSION, runs.time_step)
        lengths.insert(0, lambda _: diffusing)
    for length, candidate in () if lab.alone else product(lengths, boxes):
        count = count_replicas(lab.teacher, candidate, runs.estimate, length, 0.9 * seconds)
        takes = length(count) * runs.estimate(lab.teacher, candidate, count)
        if 0.9 * seconds * (1.0 + 1e-9) >= takes:
            box, n_replicas, least, with_teacher = candidate, count, length(count), True
            break
    if not with_teacher:
        stopped = lab.describe_stop(DISTRIBUTIONS)
        runs.absence = stopped or _describe_cheapest(lab, box, runs, seconds)
    cost = runs.estimate(lab.teacher, box, n_replicas) if with_teacher else runs.estimate_own(box)
    # the student alone is no comparison: it leaves time for other properties
    part = 0.8 if with_teacher else 0.2
    most = MOST_STEPS[lab.mode]
    if material.kind == "disordered":
        most = max(most, motion.count_steps(motion.LEAST_DIFFUSION, runs.time_step))
    steps = part * seconds / cost
    n_steps = int(max(least, min(most, steps) if math.isfinite(steps) else most))
    dynamics = _make_dynamics(runs, box, n_steps, n_replicas)
    found = {"student": endurance.run_own(runs.model, dynamics, lab.student.deadline)}
    if with_teacher:
        found["teacher"] = motion.run_side(lab.teacher, dynamics)
    runs.sides.update(found)


def _make_dynamics(
    runs: Runs, box: ase.Atoms, n_steps: int, n_replicas: int = 1
) -> motion.Dynamics:
    """From a box that is disturbed a little."""
    start = box.copy()
    start.rattle(0.02, seed=7)
    return motion.Dynamics(start, runs.temperature, runs.time_step, n_steps, n_replicas=n_replicas)


def _are_short(runs: Runs) -> bool:
    """Whether there are runs, which are enough for pair distributions, but not for diffusion."""
    least = motion.LEAST_DIFFUSION * (1.0 - 1e-9)
    return any(run.length < least for run in runs.sides.values())


def _measure_own_diffusion(lab: Laboratory, material: Material, runs: Runs) -> Any:
    """Diffusion of the student alone, in a run of its own that is long enough."""
    n_steps = motion.count_steps(motion.LEAST_DIFFUSION, runs.time_step)
    takes = n_steps * lab.teacher.estimate(material.box)
    dynamics = _make_dynamics(runs, material.box, n_steps)
    own = endurance.run_own(runs.model, dynamics, lab.student.deadline)
    return motion.compare_diffusion(
        None, own, runs.temperature, f"{n_steps} steps of it take about {takes:.0f} s",
        where=f"in a run of {own.length:.3g} ps of the student alone",
    )  # fmt: skip


def count_replicas(
    teacher: Side,
    box: ase.Atoms,
    estimate: Callable[[Side, ase.Atoms, int], float],
    least: Callable[[int], int],
    seconds: float,
) -> int:
    """Replicas for whose ``least`` steps there is time and whose batch costs at most :data:`BATCH_COST` times one.

    To find out takes three calls of each batch: none is tried whose calls, one after the other, take more than
    :data:`TRIAL` of the seconds.
    """
    single = estimate(teacher, box, 1)
    n_replicas = 1
    for count in REPLICAS:
        if 3 * count * single > TRIAL * seconds:
            break
        cost = estimate(teacher, box, count)
        if cost > BATCH_COST * single:
            break
        if least(count) * cost <= seconds:
            n_replicas = count
    return n_replicas
