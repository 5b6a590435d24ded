"""How far dynamics runs before the host looks.

Here: :class:`Pacer`. Not here: the run (:mod:`fastff.md.engine`), renewals of lists at fixed steps.
"""

from __future__ import annotations


class Pacer:
    """How many steps to queue before the flags are read: many while the list is young, few when it should end."""

    def __init__(self) -> None:
        self._lifetime: float | None = None
        self._age = 0

    def suggest(self) -> int:
        """Steps of the next chunk."""
        if self._lifetime is None:
            return 16
        left = int(0.8 * self._lifetime) - self._age
        return max(1, left, int(0.1 * self._lifetime))

    def advance(self, n_steps: int, *, rebuilt: bool, early: bool = False) -> None:
        """Take note of steps done, and of a rebuild after them; an early one came before the list had ended."""
        self._age += n_steps
        if early:
            self._lifetime = max(self._lifetime or 0.0, 1.25 * self._age)
            self._age = 0
        elif rebuilt:
            last = self._lifetime
            self._lifetime = self._age if last is None else 0.5 * (last + self._age)
            self._age = 0
        elif self._lifetime is None or self._age > self._lifetime:
            self._lifetime = float(self._age) if self._age > 16 else None
