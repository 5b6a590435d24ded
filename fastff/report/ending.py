"""How a bench run ends before everything is measured, and what it then says is missing.

Here: :class:`Watch`, the signals and the clock, and :class:`Agenda`, the stages of a run. Not here: measuring
(:mod:`fastff.report.bench`), exit codes (:mod:`fastff.cli.bench`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from fastff.errors import FastFFError


class EndedEarlyError(BaseException):
    """Nothing more is to be measured. No ``Exception``: what fails is left out while the rest of a run goes on."""


class Watch:
    """Says when a run is to end: at a signal, or after a limit of time.

    Parameters
    ----------
    limit : float
        Seconds from now on after which nothing new is begun.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.limit, self.begun = limit, time.monotonic()
        self.received: list[int] = []
        self._holds = 0

    def check(self) -> None:
        """To be called before something new is begun.

        Raises
        ------
        EndedEarlyError
            A signal came, or the time is over.
        """
        if self.received:
            raise EndedEarlyError(self.name)
        if time.monotonic() - self.begun > self.limit:
            raise EndedEarlyError(f"the time limit of {self.limit:g} s")

    @property
    def name(self) -> str:
        """Of the first signal."""
        return signal.Signals(self.received[0]).name

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Make SIGINT and SIGTERM raise :class:`EndedEarlyError` wherever the work is; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, _: Any) -> None:
            self.received.append(number)
            if self._holds:
                return
            if len(self.received) > 1:
                self.leave()
            raise EndedEarlyError(self.name)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Signals wait for the next check while what was measured is put away."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def close(self) -> None:
        """Signals wait from here on: results are put together and written."""
        self._holds += 1

    def leave(self) -> NoReturn:
        """End the process as the first signal would have."""
        if self.received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received[0])


NEVER = Watch()
"""Lets a run go on to its end."""


@dataclass
class Agenda:
    """The stages of a run in their order, and where it is.

    Attributes
    ----------
    stages : sequence of str
    watch : Watch
    details : list of str or None
        What the present stage has not measured yet; None until it says so, which stands for all of it.
    """

    stages: Sequence[str]
    watch: Watch
    details: list[str] | None = None
    _place: str = ""
    _later: Sequence[str] = ()

    def begin(self, stage: str) -> None:
        """Go on to ``stage`` if there is time; the first one is begun in any case.

        Raises
        ------
        EndedEarlyError
        """
        number = self.stages.index(stage)
        self._place, self.details, self._later = f"before {stage}", None, self.stages[number:]
        if number:
            self.watch.check()
        self._place = f"during {stage}"

    def describe_end(self, cause: str) -> str:
        """In one line: why the run ended, where it was, and what is missing."""
        later = self._later
        missing = [*later] if self.details is None else [*self.details, *later[1:]]
        rest = f"; not measured: {', '.join(missing)}" if missing else ""
        return f"ended early by {cause} {self._place}{rest}"


def describe_fault(error: Exception) -> str:
    """An error as the cause of an early end."""
    lines = str(error).strip().splitlines() or ["no message"]
    kind = "" if isinstance(error, FastFFError) else f"{type(error).__name__}: "
    return f"an error ({kind}{lines[0][:300]})"
