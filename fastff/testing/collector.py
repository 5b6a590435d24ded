"""Checks of one run of the gate as they are made: which were asked for, and errors that are failures.

Here: :class:`Collector`. Not here: which tests there are (:mod:`fastff.testing.gate`), what they give
(:mod:`fastff.testing.report`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator

from fastff.errors import UsageError
from fastff.testing.report import Check, CheckReport

OnCheck = Callable[[Check], None]


class Collector:
    """Checks in the order in which they are made."""

    def __init__(
        self,
        on_check: OnCheck | None,
        only: Collection[str] | None,
        *,
        keep_errors: bool = False,
    ) -> None:
        self._checks: list[Check] = []
        self._on_check, self._only, self._keep_errors = on_check, only, keep_errors
        self._asked: set[str] = set()

    def wants(self, test: str) -> bool:
        """Whether a test was asked for."""
        self._asked.add(test)
        return self._only is None or test in self._only

    def add(
        self,
        test: str,
        measure: Callable[[], float],
        limit: float,
        unit: str,
        name: str = "",
        reason: str = "",
    ) -> None:
        """Measure, unless the test was not asked for."""
        if not self.wants(test):
            return
        check = None
        with self.watch(test, name=name):
            check = Check(test, measure(), limit, unit, name, reason)
        if check is not None:
            self._keep(check)

    def skip(self, test: str, reason: str, name: str = "") -> None:
        """List a test as not applicable."""
        if self.wants(test):
            self._keep(Check(test, None, 0.0, "", name, reason))

    @contextlib.contextmanager
    def watch(self, *tests: str, name: str = "", refusal: str = "") -> Iterator[None]:
        """Keep an error of a foreign calculator as failed checks; with a ``refusal``, as that why none were made."""
        try:
            yield
        except Exception as error:
            if not self._keep_errors:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            for test in tests:
                if refusal:
                    self.skip(test, f"{refusal} ({reason})")
                elif self.wants(test):
                    self._keep(Check(test, math.nan, 0.0, "", name, reason))

    def _keep(self, check: Check) -> None:
        self._checks.append(check)
        if self._on_check is not None:
            self._on_check(check)

    def report(self) -> CheckReport:
        """All checks.

        Raises
        ------
        UsageError
            If one was asked for that does not exist.
        """
        if unknown := sorted(set(self._only or ()) - self._asked):
            raise UsageError(
                f"no test is called {', '.join(map(repr, unknown))}; there are {', '.join(sorted(self._asked))}"
            )
        return CheckReport(tuple(self._checks))
