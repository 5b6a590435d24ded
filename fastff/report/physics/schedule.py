"""Time for properties: which are measured within a budget, and why others are not.

Here: :class:`Laboratory`, :class:`Task` and the shares of the budget. Not here: which tasks fit a structure
(:mod:`fastff.report.physics.run`).

Every task has a share of the seconds that are left when its turn comes. One that costs more by its estimate waits until
all others had their turn and then takes what they left, at last without the teacher where it can do so; so does one
that ran over and was stopped at the next label. Those that wait come in the order of their cost for its share, so that
what is worth most for its seconds is first. None takes the seconds that the student's own part of the others needs: a
teacher may be slower than its estimate. What was cut short is measured again for longer with the seconds left in the
end.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastff.errors import FastFFError
from fastff.report.ending import NEVER, Watch
from fastff.report.physics.derive import TooShortError, derive_quantities
from fastff.report.physics.record import AnyItem, LeftOut
from fastff.report.physics.side import OutOfTimeError, Side
from fastff.report.stamps import stamp_part

if TYPE_CHECKING:
    import ase

Mode = Literal["auto", "full"]

LENIENCE = 1.5
"""Times its share that a task may run before it is stopped: estimates are rough."""

SLACK = 0.1
"""Of the budget, by how much it may be exceeded: estimates are rough."""

RESERVE = 0.25
"""Most of the seconds left that are kept for what can be done without the teacher."""

COMFORT = 1.5
"""Times the least seconds of each of these that are kept."""

UNDONE = "the run ended early"
"""Reason for what is left out then."""


@dataclass(frozen=True)
class Task:
    """One property.

    Attributes
    ----------
    title : str
    share : float
        Of the budget, relative to those of the other tasks.
    measure : callable
        Receives the seconds it may take.
    cost : callable
        Estimates seconds of the least that is worth measuring.
    against : callable
        A reason why it does not fit, or an empty string; asked when its turn comes.
    cost_alone : callable, optional
        Seconds of the least that is worth measuring of the student alone, where that is worth something.
    incomplete : callable, optional
        Whether an item was cut short, so that more seconds would lengthen it.
    """

    title: str
    share: float
    measure: Callable[[float], AnyItem]
    cost: Callable[[], float]
    against: Callable[[], str]
    cost_alone: Callable[[], float] | None = None
    incomplete: Callable[[Any], bool] = lambda item: False


@dataclass
class Laboratory:
    """Both sides and the clock.

    Attributes
    ----------
    teacher, student : Side
    mode : {"auto", "full"}
        With a budget, or without.
    budget : float
        Seconds.
    progress : callable
        Receives (what is being done, done, total).
    watch : Watch
        Asked before every property.
    alone : bool
        Whether what is measured now is to do without the teacher.
    """

    teacher: Side
    student: Side
    mode: Mode
    budget: float
    progress: Callable[[str, int, int], None]
    watch: Watch = NEVER
    items: list[AnyItem] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    alone: bool = False
    _stopped: dict[str, float] = field(default_factory=dict)
    _open: list[Task] = field(default_factory=list)

    @property
    def remaining(self) -> float:
        """Seconds left, and those that the budget may be exceeded by once the teacher is done; infinite if ``full``."""
        if self.mode == "full":
            return math.inf
        budget = self.budget * (1.0 + SLACK if self.alone else 1.0)
        return max(0.0, budget - (time.perf_counter() - self.started))

    def _count_left(self) -> float:
        return max(0.0, self.budget - (time.perf_counter() - self.started))

    def estimate(self, atoms: ase.Atoms, copies: int = 1) -> float:
        """Seconds of one call of both sides for a batch of ``copies``."""
        return self.teacher.estimate(atoms, copies) + self.student.estimate(atoms, copies)

    def describe_stop(self, title: str) -> str:
        """That a property with the teacher was stopped, if it was; else empty."""
        seconds = self._stopped.get(title)
        return "" if seconds is None else f"it was stopped after {seconds:.0f} s"

    def _find_reserve(self, task: Task | None = None) -> float:
        """Seconds that what is open should have without the teacher; less those of ``task``, if it is done so now."""
        if self.mode == "full":
            return 0.0
        total = 0.0
        for one in self._open:
            with contextlib.suppress(Exception):  # its own attempt says what is wrong
                if one is not task and one.cost_alone is not None and not one.against():
                    total += one.cost_alone()
        return COMFORT * total if self.alone else min(COMFORT * total, RESERVE * self.remaining)

    def limit(self, seconds: float) -> None:
        """Stop both sides at the first label after so many seconds from now."""
        for side in (self.teacher, self.student):
            side.deadline = time.perf_counter() + seconds

    def work(self, tasks: list[Task]) -> None:
        """Do tasks in their order, then those postponed, cheapest for their share first, then lengthen what was cut.

        Where the run ends early, those not done are left out.
        """
        try:
            self._work(tasks)
        finally:
            done = {entry.title for entry in (*self.items, *self.left_out)}
            for task in tasks:
                if task.title not in done:
                    self._leave(task, UNDONE)

    def _work(self, tasks: list[Task]) -> None:
        open_shares = {task.title: task.share for task in tasks}
        self._open = list(tasks)
        postponed: list[tuple[float, Task]] = []
        for task in tasks:
            share = task.share / max(sum(open_shares.values()), 1e-9)
            seconds = math.inf if self.mode == "full" else share * self.remaining
            expected = self._attempt(task, seconds)
            if expected is None:
                del open_shares[task.title]
            else:
                postponed.append((expected, task))
        shares = sum(task.share for _, task in postponed)
        dear: list[tuple[float, Task]] = []
        for known, task in sorted(postponed, key=_weigh_cost):
            fair = task.share / max(shares, 1e-9) * self.remaining
            shares -= task.share
            seconds = min(max(known, fair), self.remaining)
            expected = self._attempt(task, seconds, last=task.cost_alone is None)
            if expected is not None:
                dear.append((expected, task))
        self.alone = True
        for expected, task in dear:
            if task.cost_alone is None or self._attempt_alone(task) is not None:
                takes = f"takes about {expected:.0f} s, " if expected < math.inf else ""
                if stopped := self.describe_stop(task.title):
                    takes = f"{stopped}, "
                self._leave(
                    task,
                    f"{takes}{self._count_left():.0f} s of the budget of {self.budget:.0f} s are left; --physics "
                    "takes more seconds, or full",
                )
        self.alone = False
        self._lengthen(tasks)

    def _attempt_alone(self, task: Task) -> float | None:
        """As :meth:`_attempt`, for the last time, with what others do not need, or the least it needs itself."""
        assert task.cost_alone is not None
        spare = self.remaining - self._find_reserve(task)
        with contextlib.suppress(Exception):  # the attempt says what is wrong
            spare = max(spare, min(task.cost_alone(), self.remaining))
        return self._attempt(task, spare, cost=task.cost_alone, last=True)

    def _lengthen(self, tasks: list[Task]) -> None:
        """Measure what was cut short again, where there is time for twice as much."""
        found = {item.title: item for item in self.items}
        short = [t for t in tasks if t.title in found and t.incomplete(found[t.title])]
        for number, task in enumerate(short):
            seconds, item = self.remaining / (len(short) - number), found[task.title]
            if not 2.0 * item.seconds < seconds < math.inf:
                continue
            self.watch.check()
            self.progress(f"physics: {task.title.lower()}", len(found), 9)
            place = self.items.index(item)
            try:
                self.items[place] = self._measure(task, seconds)
            except (OutOfTimeError, TooShortError):
                continue
            except FastFFError as error:  # a longer run found a fault
                del self.items[place]
                self._leave(task, str(error))
            except Exception:  # of a package or of memory: the shorter run stands
                continue
            finally:
                self.limit(math.inf)

    def _attempt(
        self,
        task: Task,
        seconds: float,
        *,
        cost: Callable[[], float] | None = None,
        last: bool = False,
    ) -> float | None:
        """Measure or leave out, and return None; or return what it would cost if that is more than ``seconds``.

        Unless it is its ``last`` attempt, a task whose runs turn out too short costs more, too; one that was stopped
        costs more than it had.
        """
        self.watch.check()
        self.progress(f"physics: {task.title.lower()}", len(self.items) + len(self.left_out), 9)
        self.limit(self.remaining)
        start = math.inf
        try:
            reason = task.against()
            if reason:
                self._leave(task, reason)
                return None
            expected = (cost or task.cost)() if self.remaining > 0.0 else math.inf
            if cost is None:
                expected = max(expected, LENIENCE * self._stopped.get(task.title, 0.0))
            if expected > seconds:
                return expected
            start = time.perf_counter()
            self.items.append(self._measure(task, seconds))
            self._open.remove(task)
        except TooShortError as error:
            if not last:
                return 2.0 * min(seconds, self.remaining)
            self._leave(task, str(error))
        except OutOfTimeError as error:
            if not last and start < math.inf:
                self._stopped[task.title] = time.perf_counter() - start
                return LENIENCE * self._stopped[task.title]
            self._leave(task, str(error))
        except Exception as error:  # also one of a package or of fastff: the rest is kept
            self._leave(task, explain(error))
        finally:
            self.limit(math.inf)
        return None

    def _measure(self, task: Task, seconds: float) -> AnyItem:
        start = time.perf_counter()
        most = self.remaining - self._find_reserve(task if self.alone else None)
        if not self.alone:
            most += SLACK * self.budget
        self.limit(min(LENIENCE * seconds, most))
        item = task.measure(seconds)
        found = {
            "seconds": time.perf_counter() - start,
            "quantities": derive_quantities(item),
            "identity": {side.role: side.identity for side in (self.teacher, self.student)},
        }
        return stamp_part(item.model_copy(update=found))

    def _leave(self, task: Task, reason: str) -> None:
        if task in self._open:
            self._open.remove(task)
        self.left_out.append(LeftOut(title=task.title, reason=reason))


def _weigh_cost(entry: tuple[float, Task]) -> tuple[float, float]:
    """Seconds for each unit of its share, then seconds; what has no share comes last."""
    cost, task = entry
    return (cost / task.share if task.share else math.inf), cost


def explain(error: Exception) -> str:
    """Why a property was not measured, in one line; says so where the fault is that of a program."""
    if isinstance(error, FastFFError):
        return str(error)
    lines = str(error).strip().splitlines() or [""]
    return f"it failed with {type(error).__name__}: {lines[0][:300]} (please report this)"
