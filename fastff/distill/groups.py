"""The groups of held-out frames that a student is judged by, and when their accuracies meet a target.

Here: names, division and the target. Not here: measuring (:mod:`fastff.distill.ladder`), when it is done
(:mod:`fastff.distill.rounds`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fastff.distill.harvest import SOURCE
from fastff.distill.plan import find_round
from fastff.distill.split import PHYSICAL_SOURCES
from fastff.labels import Frame
from fastff.report.metrics import Accuracy

TEACHER, STUDENT, HOT = "teacher-driven", "student-driven", "student-driven, hot"
"""Names of the groups of held-out frames."""
ALLOWANCE = 0.03
"""By how much the force accuracy above the range of temperatures may fall short of the target."""


def group_frames(
    teacher_driven: Sequence[Frame], student_driven: Sequence[Frame], hot: Collection[int]
) -> dict[str, list[Frame]]:
    """Divide frames; ``hot`` are the trajectories above the range of temperatures. Empty groups are left out.

    Of frames of the first sampling those that look like simulations count, if there are any.
    """
    physical = [frame for frame in teacher_driven if frame.source in PHYSICAL_SOURCES]
    groups = {
        TEACHER: physical or list(teacher_driven),
        STUDENT: [frame for frame in student_driven if frame.trajectory not in hot],
        HOT: [frame for frame in student_driven if frame.trajectory in hot],
    }
    return {name: frames for name, frames in groups.items() if frames}


def group_test_frames(
    frames: Sequence[Frame], last: int, hot: Collection[int]
) -> dict[str, list[Frame]]:
    """Divide the test frames of a run with rounds: those of the first sampling, and of walkers of the ``last`` gate.

    ``hot`` are the trajectories above the range of temperatures.
    """
    first = [frame for frame in frames if frame.source != SOURCE]
    driven = [f for f in frames if f.source == SOURCE and find_round(f.trajectory) == last]
    return group_frames(first, driven, hot)


def meets_target(accuracy: dict[str, Accuracy], target: float) -> bool:
    """Whether all groups are there and accurate enough.

    Above the range of temperatures the forces alone count, and may fall short by :data:`ALLOWANCE`: energies of one hot
    temperature spread so little that their accuracy says nothing.
    """
    if TEACHER not in accuracy or STUDENT not in accuracy:
        return False
    hot = accuracy[HOT].force if HOT in accuracy else None
    enough = all(accuracy[name].overall >= target for name in (TEACHER, STUDENT))
    return enough and (hot is None or hot >= target - ALLOWANCE)
