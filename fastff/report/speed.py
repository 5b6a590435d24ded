"""What a timing is: what is timed and for how long, points, curves, and the numbers derived from them.

Here: :class:`Timed`, :class:`TimingPlan`, :class:`SpeedPoint`, :class:`SpeedCurve`, :func:`summarize`,
:func:`convert_to_ns_per_day`. Not here: measuring (:mod:`fastff.report.timing`), comparing curves
(:mod:`fastff.report.record`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from fastff.report.ending import NEVER, Watch
from fastff.report.repeats import needs_more
from fastff.report.stamps import Stamped

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

Mode = Literal["ase-call", "ase-md", "model", "model-list", "md-loop", "program"]
"""What is timed: one ASE call; a step of ASE's velocity Verlet; the model on a list that is there; list and model; a
step of fastff's own dynamics; a step of a program that is run as a whole."""

CLOCK_INCLUDES = "forward pass of the torch model inside the ASE call"
"""Of a curve whose times are parts of those of ASE calls, measured in the same calls."""

Status = Literal["measured", "out-of-memory", "too-large", "too-slow", "not-run", "failed"]


@dataclass(frozen=True)
class Timed:
    """One calculator to be timed.

    ``role`` is ``"teacher"``, ``"student"`` or the name of a baseline; ``identity`` says which one it is (for a student
    the SHA-256 of its tensors) and travels with the timings; ``largest`` leaves out bigger structures (reported as not
    run); with ``own_process`` it works in another process, whose memory cannot be measured from here.
    """

    role: str
    label: str
    factory: Callable[[], BaseCalculator]
    identity: dict[str, Any]
    device: str = "cpu"
    largest: int | None = None
    own_process: bool = False


@dataclass(frozen=True)
class TimingPlan:
    """How long to measure: seconds per point, repeats, warm-up calls, and sizes measured whatever they cost.

    ``max_repeats`` is the usual number, see :func:`fastff.report.repeats.needs_more`; ``watch`` is asked before every
    size.
    """

    budget: float = 20.0
    min_repeats: int = 3
    max_repeats: int = 15
    warmup: int = 2
    long_warmup: int = 5
    required: Collection[int] = ()
    seed: int = 0
    watch: Watch = NEVER

    def needs_more(self, seconds: Sequence[float], elapsed: float) -> bool:
        """Whether to repeat once more after ``elapsed`` seconds of repeats, for which there is half of the budget."""
        return needs_more(
            seconds, elapsed, least=self.min_repeats, usual=self.max_repeats, budget=self.budget,
            share=0.5,
        )  # fmt: skip


class SpeedPoint(BaseModel):
    """Time of one call or step at one size; ``seconds`` holds every repeat, empty unless ``status`` is measured.

    ``counts`` says which of mean and median stands for dynamics, the mean where it is None; ``volume_per_atom`` is in
    Å^3, of fully periodic structures; ``n_fixed`` atoms are held where they are in dynamics, None where all move.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_atoms: int
    formula: str
    status: Status
    reason: str = ""
    seconds: tuple[float, ...] = ()
    median: float | None = None
    mean: float | None = None
    q10: float | None = None
    q90: float | None = None
    atom_steps_per_second: float | None = None
    peak_memory: int | None = None
    counts: Literal["mean", "median"] | None = None
    volume_per_atom: float | None = None
    n_fixed: int | None = None

    @property
    def per_step(self) -> float | None:
        """Seconds of a step of dynamics: the mean, which pays for neighbor lists, unless the median counts."""
        return self.median if self.counts == "median" else self.mean


class SpeedCurve(Stamped):
    """Timings of one calculator over sizes, with what they include and what it was.

    ``time_step`` in fs and ``start_temperature`` in K are those of dynamics.
    """

    role: str
    label: str
    mode: Mode
    includes: str
    device: str
    threads: int
    identity: dict[str, Any]
    memory_kind: str = ""
    time_step: float | None = None
    start_temperature: float | None = None
    points: tuple[SpeedPoint, ...]

    def find(self, n_atoms: int) -> SpeedPoint | None:
        """The point at exactly ``n_atoms``, or None."""
        return next((point for point in self.points if point.n_atoms == n_atoms), None)

    @property
    def held(self) -> str:
        """``18 of 36 atoms fixed``, at the smallest size of dynamics that holds some; empty where all atoms move."""
        held = [point for point in self.points if point.n_fixed]
        return f"{held[0].n_fixed} of {held[0].n_atoms} atoms fixed" if held else ""


def summarize(
    n_atoms: int, formula: str, seconds: Sequence[float], peak_memory: int | None, reason: str = ""
) -> SpeedPoint:
    """Make the measured point of ``seconds``: median, 10 and 90 % quantiles, atom-steps per second at the median."""
    median = float(np.median(seconds))
    return SpeedPoint(
        n_atoms=n_atoms,
        formula=formula,
        status="measured",
        reason=reason,
        seconds=tuple(float(s) for s in seconds),
        median=median,
        mean=float(np.mean(seconds)),
        q10=float(np.quantile(seconds, 0.1)),
        q90=float(np.quantile(seconds, 0.9)),
        atom_steps_per_second=n_atoms / median,
        peak_memory=peak_memory,
    )


def find_ratio_range(slower: SpeedPoint, faster: SpeedPoint) -> tuple[float, float]:
    """Least and greatest ratio of two measured times, the 10 and 90 % quantiles of both taken against each other."""
    assert slower.q10 is not None
    assert slower.q90 is not None
    assert faster.q10 is not None
    assert faster.q90 is not None
    return slower.q10 / faster.q90, slower.q90 / faster.q10


def convert_to_ns_per_day(seconds_per_step: float, time_step: float) -> float:
    """Simulated nanoseconds a day at ``time_step`` in fs."""
    return 86400.0 / seconds_per_step * time_step * 1e-6
