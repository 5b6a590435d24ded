"""What a labelling job is going to do, and what became of it, in words.

Here: :class:`LabelPlan`, :class:`LabelReport`. Not here: labelling (:mod:`fastff.distill.labelling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LabelPlan:
    """What is going to be labelled; ``str(plan)`` is a few lines.

    Attributes
    ----------
    n_frames : int
        Frames asked for.
    n_found : int
        Of these, stored by an earlier run.
    n_repeated : int
        Of these, equal to an earlier one.
    n_pending : int
        Frames to be labelled.
    n_evaluations, n_atoms : int
        Structures, and the sum of their atoms, that the teacher will see.
    seconds_per_atom : float
        Time of the teacher, nan until measured.
    n_processes : int
        That share the work.
    """

    n_frames: int
    n_found: int
    n_repeated: int
    n_pending: int
    n_evaluations: int
    n_atoms: int
    seconds_per_atom: float = math.nan
    n_processes: int = 1

    def __str__(self) -> str:
        parts = [f"{self.n_pending} of {self.n_frames} frames to label"]
        if self.n_found:
            parts.append(f"{self.n_found} stored by an earlier run")
        if self.n_repeated:
            parts.append(f"{self.n_repeated} repeated")
        lines = [", ".join(parts)]
        if self.n_pending:
            cost = f"{self.n_evaluations} evaluations of {self.n_atoms} atoms in all"
            seconds = self.seconds_per_atom * self.n_atoms / self.n_processes
            if math.isfinite(seconds):
                cost += f", about {format_duration(seconds)}"
            if self.n_processes > 1:
                cost += f" with {self.n_processes} processes"
            lines.append(cost)
        return "\n".join(lines)


COLD_BATCHES = 2
"""Batches in which a teacher compiles and loads what it needs."""


@dataclass
class LabelReport:
    """What became of the frames asked for; filled while labelling.

    ``seconds`` are those of labelling and storing; of several processes, of the slowest. ``warm_rate`` is atoms per
    second after the first :data:`COLD_BATCHES` of each process, summed over processes.
    """

    n_labelled: int = 0
    n_found: int = 0
    n_repeated: int = 0
    set_aside: list[str] = field(default_factory=list)
    n_atoms: int = 0
    seconds: float = 0.0
    warm_rate: float = 0.0
    n_processes: int = 1

    @classmethod
    def join(cls, reports: Sequence[LabelReport]) -> LabelReport:
        """Report of all processes together; without a warm rate unless all that labelled became warm."""
        all_warm = all(one.warm_rate > 0.0 for one in reports if one.n_atoms)
        return cls(
            n_labelled=sum(one.n_labelled for one in reports),
            n_found=sum(one.n_found for one in reports),
            n_repeated=sum(one.n_repeated for one in reports),
            set_aside=[text for one in reports for text in one.set_aside],
            n_atoms=sum(one.n_atoms for one in reports),
            seconds=max(one.seconds for one in reports),
            warm_rate=sum(one.warm_rate for one in reports) if all_warm else 0.0,
            n_processes=sum(one.n_processes for one in reports),
        )

    def __str__(self) -> str:
        text = f"{self.n_labelled} frames labelled in {format_duration(self.seconds)}"
        if self.n_processes > 1:
            text += f" by {self.n_processes} processes"
        if self.n_atoms and self.seconds:
            text += f" ({1e3 * self.seconds / self.n_atoms:.3g} ms per atom"
            text += f", {1e3 / self.warm_rate:.4g} when warm)" if self.warm_rate else ")"
        for count, what in ((self.n_found, "found stored"), (self.n_repeated, "repeated")):
            text += f", {count} {what}" if count else ""
        if self.set_aside:
            text += f", {len(self.set_aside)} set aside (first: {self.set_aside[0]})"
        return text


def format_duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
