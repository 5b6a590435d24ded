"""Outcome of the physics gate.

Here: one measured invariant, the report over all of them, its text and its JSON form. Not here: measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastff.errors import DataError

Status = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True)
class Check:
    """One invariant on one structure: the largest violation found and the largest allowed.

    Attributes
    ----------
    test : str
        Which invariant.
    value : float or None
        Largest violation; None where the test does not apply, for the ``reason`` given.
    limit : float
    unit : str
    structure : str
        Name of the structure, or empty where the test builds its own.
    reason : str
        Why the test does not apply, or what the value belongs to (the worst pair of elements, a slope).
    """

    test: str
    value: float | None
    limit: float
    unit: str
    structure: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        """Test and structure."""
        return f"{self.test}, {self.structure}" if self.structure else self.test

    @property
    def status(self) -> Status:
        """``"pass"``, ``"fail"`` or ``"n/a"``; a violation that is not a number fails."""
        if self.value is None:
            return "n/a"
        return "pass" if self.value <= self.limit else "fail"

    @property
    def passed(self) -> bool:
        """Whether the violation is within the limit; not so for nan, nor for a test that does not apply."""
        return self.status == "pass"

    @property
    def severity(self) -> float:
        """Violation over limit; infinite for nan, minus one where the test does not apply."""
        if self.value is None:
            return -1.0
        if math.isnan(self.value):
            return math.inf
        if self.limit == 0.0:
            return math.inf if self.value > 0.0 else 0.0
        return self.value / self.limit

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record; a value that is not finite is written as text."""
        value = self.value
        if value is not None and not math.isfinite(value):
            value = str(value)  # type: ignore[assignment]
        return {
            "test": self.test,
            "structure": self.structure,
            "value": value,
            "limit": self.limit,
            "unit": self.unit,
            "status": self.status,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class CheckReport:
    """Outcome of a gate; as text, one line per check."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; those that do not apply are in :attr:`not_applicable`."""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.status == "fail")

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """Names of the checks that could not be made."""
        return tuple(check.name for check in self.checks if check.status == "n/a")

    def summarize(self) -> tuple[Check, ...]:
        """The worst check of every test, in the order in which the tests first appear."""
        worst: dict[str, Check] = {}
        for check in self.checks:
            if check.test not in worst or check.severity > worst[check.test].severity:
                worst[check.test] = check
        return tuple(worst.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record for a model's header."""
        return {"passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> CheckReport:
        """The report that :meth:`to_dict` wrote.

        Raises
        ------
        DataError
            If the record is not of that form.
        """
        keys = ("test", "value", "limit", "unit", "structure", "reason")
        try:
            checks = []
            for entry in record["checks"]:
                given = {key: entry[key] for key in keys}
                given["value"] = None if given["value"] is None else float(given["value"])
                checks.append(Check(**given))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"not the record of a physics check ({type(error).__name__}: {error}); "
                "run `fastff check` again"
            ) from error
        return cls(tuple(checks))

    def __str__(self) -> str:
        return "\n".join(describe_check(check) for check in self.checks)


def describe_check(check: Check) -> str:
    """One line: outcome, name, violation, limit, reason."""
    mark = {"pass": "ok  ", "fail": "FAIL", "n/a": "n/a "}[check.status]
    if check.value is None:
        return f"{mark} {check.name:<34} {check.reason}"
    found = f"{check.value:9.2e} (limit {check.limit:.0e} {check.unit})"
    return f"{mark} {check.name:<34} {found} {check.reason}".rstrip()
