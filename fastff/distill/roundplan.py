"""How a budget of teacher evaluations is divided among rounds of distillation.

Here: the budget as the user writes it, and :class:`RoundsPlan`. Not here: carrying rounds out
(:mod:`fastff.distill.rounds`), what the first sampling labels (:mod:`fastff.distill.planning`).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ase
import numpy as np

from fastff.errors import UsageError

if TYPE_CHECKING:
    from fastff.teachers import Teacher

DEFAULT_BUDGET = 1000
"""Evaluations where the user gives none and rounds follow the first sampling."""
LABEL_SHARE = 0.5
"""Part of a budget of minutes that the teacher may take."""
LEAST_GATE, MOST_GATE = 8, 240
_ROUNDS = ((150, 0), (300, 1), (600, 2), (3000, 3))
"""Rounds below each number of evaluations; four from the last on."""


@dataclass(frozen=True)
class Budget:
    """Evaluations of the teacher, or minutes of wall time; neither means the default."""

    evaluations: int | None = None
    minutes: float | None = None


def parse_budget(value: int | str | None) -> Budget:
    """Read ``20000`` (evaluations) or ``25min``, ``0.5h``.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if value is None:
        return Budget()
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(min|h)?\s*", str(value))
    if match is None or float(match[1]) <= 0 or (match[2] is None and "." in match[1]):
        raise UsageError(
            f"budget {value!r} is neither teacher evaluations such as 20000 nor a time such as 25min"
        )
    if match[2] is None:
        return Budget(evaluations=int(match[1]))
    return Budget(minutes=float(match[1]) * (60.0 if match[2] == "h" else 1.0))


@dataclass(frozen=True)
class RoundsPlan:
    """Evaluations of the teacher by purpose.

    Attributes
    ----------
    first : int or None
        Of the sampling before the first round; None lets the sampling choose.
    n_rounds : int
    gate : int
        Frames of student dynamics that each gate labels, half to decide by and half to report; a last gate follows the
        last round.
    train : int
        Frames of student dynamics that each round labels for training.
    minutes : float or None
        Wall time after which no further round begins.
    seconds_each : float
        Of an evaluation, nan until measured.
    """

    first: int | None
    n_rounds: int
    gate: int = 0
    train: int = 0
    minutes: float | None = None
    seconds_each: float = math.nan

    @property
    def total(self) -> int | None:
        """Most evaluations; None if the sampling chooses its own and no rounds follow."""
        if self.first is None:
            return None
        return (
            self.first + self.n_rounds * (self.gate + self.train) + self.gate * (self.n_rounds > 0)
        )

    def __str__(self) -> str:
        if self.n_rounds == 0:
            return "no rounds of student-driven dynamics"
        text = (
            f"up to {self.n_rounds} rounds of student-driven dynamics, each {self.train} frames to train on and "
            f"{self.gate} to judge by, {self.gate} more to judge the last; {self.total} evaluations in all"
        )
        if self.total is not None and math.isfinite(self.seconds_each):
            text += f", about {self.total * self.seconds_each / 60.0:.1f} min of the teacher"
        return text + (f"; no new round after {self.minutes:g} min" if self.minutes else "")


def plan_rounds(
    evaluations: int | None, n_rounds: int | None = None, minutes: float | None = None
) -> RoundsPlan:
    """Divide a budget.

    The sampling before the first round gets half of a budget of up to 1,000 evaluations, falling to a quarter at
    10,000: a frame of student dynamics costs one evaluation, one of teacher dynamics the steps since its predecessor.

    Parameters
    ----------
    evaluations : int, optional
        All of them; :data:`DEFAULT_BUDGET` if rounds are wanted and none are given.
    n_rounds : int, optional
        Chosen by the budget if left out; 0 gives everything to the sampling.
    minutes : float, optional
        Passed on.

    Raises
    ------
    UsageError
        If the budget is too small for the rounds asked for.
    """
    if n_rounds is None:
        known = DEFAULT_BUDGET if evaluations is None else evaluations
        n_rounds = next((count for limit, count in _ROUNDS if known < limit), 4)
    if n_rounds == 0:
        return RoundsPlan(evaluations, 0, minutes=minutes)
    total = DEFAULT_BUDGET if evaluations is None else evaluations
    gate = int(np.clip(round(0.04 * total), LEAST_GATE, MOST_GATE)) // 2 * 2
    position = np.clip(math.log10(total / 1000.0), 0.0, 1.0)
    first = round(total * (0.5 - 0.25 * position))
    train = (total - first - gate * (n_rounds + 1)) // n_rounds
    if train < 8 or first < 30:
        raise UsageError(
            f"a budget of {total} evaluations is too small for {n_rounds} rounds; raise --budget or lower --rounds"
        )
    return RoundsPlan(total - n_rounds * (gate + train) - gate, n_rounds, gate, train, minutes)


def estimate_evaluations(teacher: Teacher, cells: Sequence[ase.Atoms], minutes: float) -> int:
    """Evaluations of such cells that a teacher does in its share of some minutes.

    Measured on the largest cell, slightly rattled; two calls warm the teacher up.
    """
    largest = max(cells, key=len).copy()
    seconds = math.inf
    for attempt in range(4):
        largest.rattle(0.01, seed=attempt)
        start = time.perf_counter()
        teacher.label([largest])
        seconds = time.perf_counter() - start
    per_atom = seconds / len(largest)
    mean = float(np.mean([len(cell) for cell in cells]))
    return max(60, int(60.0 * minutes * LABEL_SHARE / (per_atom * mean)))
