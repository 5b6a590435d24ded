"""Fair timings of calculators against the number of atoms.

Here: :func:`time_calculators` (one ASE call at each size, several calculators in one run) and :func:`time_calculator`
(one of them). Not here: dynamics (:mod:`fastff.report.stepping`), building the sizes
(:mod:`fastff.report.supercells`), memory (:mod:`fastff.report.memory`), or showing the result.

Rules, the same for everybody: same structures in the same process, one calculator after the other, so that the memory
of one is not counted for the next; warm (the first calls are not counted); the device synchronised before every reading
of the clock; every call on moved atoms - a random rigid shift of 1.5 to 3 Å and a small jitter - so that neither a
result cache nor a neighbor list with a skin can be reused. Cheap calls are repeated until their median is known
(:mod:`fastff.report.repeats`). A calculator stops at the first size whose calls would exceed the time or memory there
is, except at required sizes. A point that cannot be measured stays in the table with its status and reason; nothing is
extrapolated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import ase
import numpy as np
import torch
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from fastff.errors import UsageError
from fastff.report.inner import (
    SHORTAGES,
    ModelClock,
    is_shortage,
    synchronize,
)
from fastff.report.memory import PeakMemory
from fastff.report.speed import (
    CLOCK_INCLUDES,
    SpeedCurve,
    SpeedPoint,
    Status,
    Timed,
    TimingPlan,
    summarize,
)

STANDARD = TimingPlan()
CALL_INCLUDES = "one ASE call on moved atoms: neighbor list, energy, forces{stress}, transfers"
WARM_SHARE = 0.02
"""Of the budget, within which the warm-up is the longer one of the plan."""


def time_calculator(
    factory: Callable[[], BaseCalculator],
    structures: Sequence[ase.Atoms],
    *,
    role: str = "student",
    label: str = "",
    device: str = "cpu",
    plan: TimingPlan = STANDARD,
) -> SpeedCurve:
    """Time one calculator on ``structures``; see :func:`time_calculators`."""
    timed = Timed(role=role, label=label or role, factory=factory, identity={}, device=device)
    return time_calculators([timed], structures, plan)[0]


def time_calculators(
    entries: Sequence[Timed],
    structures: Sequence[ase.Atoms],
    plan: TimingPlan = STANDARD,
    progress: Callable[[str], None] = lambda message: None,
    found: list[SpeedCurve] | None = None,
) -> list[SpeedCurve]:
    """Time one ASE call of each calculator at each size, by the rules of this module's docstring.

    Parameters
    ----------
    entries : sequence of Timed
        The calculators. Each is built once, used for all sizes, and checked against nothing here.
    structures : sequence of ase.Atoms
        One per size, ascending.
    plan : TimingPlan
        A calculator stops at the first size where a warm-up and ``min_repeats`` calls would exceed ``budget`` seconds,
        as far as its previous size tells; sizes in ``required`` are measured all the same.
    progress : callable
        Receives one short line per point.
    found : list of SpeedCurve, optional
        Receives every curve when it is done, or as far as it came.

    Returns
    -------
    list of SpeedCurve
        In the order of ``entries``, each with one point per structure; a calculator that runs a torch module has a
        second curve, of mode ``"model"``, with the part of the same calls that was spent in it.
    """
    if not structures:
        raise UsageError("nothing to time: give at least one structure.")
    if [len(s) for s in structures] != sorted(len(s) for s in structures):
        raise UsageError("structures to time must be in ascending size.")
    curves = [] if found is None else found
    for entry in entries:
        plan.watch.check()
        runner = _Runner(entry, plan)
        try:
            for atoms in structures:
                plan.watch.check()
                point = runner.measure(atoms)
                shown = f"{point.median * 1e3:.4g} ms" if point.median is not None else point.status
                progress(f"{entry.label}, {point.n_atoms} atoms: {shown}")
        finally:
            with plan.watch.hold():
                if runner.clock is not None:
                    runner.clock.close()
                curves += runner.finish()
    return curves


class _Runner:
    """State of one calculator across sizes."""

    def __init__(self, entry: Timed, plan: TimingPlan) -> None:
        self.entry, self.plan = entry, plan
        self.memory = PeakMemory(entry.device, own_process=entry.own_process)
        self.calculator = entry.factory()
        self.points: list[SpeedPoint] = []
        self.stopped = ""
        self.has_stress = True
        self.clock = ModelClock.find(self.calculator)
        self.inner: list[SpeedPoint] = []

    def measure(self, atoms: ase.Atoms) -> SpeedPoint:
        count, formula = len(atoms), atoms.get_chemical_formula(empirical=True)
        required = count in self.plan.required
        status, reason = self._decide(count, required)
        if status != "measured":
            point = SpeedPoint(n_atoms=count, formula=formula, status=status, reason=reason)
        else:
            point = self._time(atoms, count, formula, required)
        if point.status == "out-of-memory":
            self.stopped = f"stopped at {count} atoms: {point.reason}"
        self.points.append(point)
        return point

    def _decide(self, count: int, required: bool) -> tuple[Status, str]:
        """Whether to measure this size, from what the last measured size cost."""
        if self.entry.largest is not None and count > self.entry.largest and not required:
            return "not-run", f"not asked for above {self.entry.largest} atoms"
        if self.stopped:
            return "not-run", self.stopped
        last = next((p for p in reversed(self.points) if p.status == "measured"), None)
        growth = count / last.n_atoms if last is not None else 1.0
        if last is not None and last.peak_memory is not None:
            free = self.memory.measure_free()
            needed = last.peak_memory * growth
            if free is not None and needed > 0.9 * free and growth > 1.0:
                reason = (
                    f"needs about {needed / 2**30:.1f} GiB, going by {last.n_atoms} atoms; "
                    f"{free / 2**30:.1f} GiB are free"
                )
                return "too-large", reason
        if required:
            return "measured", ""
        # Cost grows at most in proportion where overhead counts: only a clear case is not tried at all.
        seconds = 0.0 if last is None or last.median is None else last.median
        if last is None or seconds * growth * self.plan.min_repeats <= 3.0 * self.plan.budget:
            return "measured", ""
        reason = (
            f"a call takes {seconds:.3g} s at {last.n_atoms} atoms already, "
            f"the budget is {self.plan.budget:g} s per size"
        )
        return "too-slow", reason

    def _time(self, atoms: ase.Atoms, count: int, formula: str, required: bool) -> SpeedPoint:
        mover = _Mover(atoms, self.calculator, self.plan.seed)
        self.memory.reset()
        seconds: list[float] = []
        try:
            call = self._warm_up(mover)
            if call * self.plan.min_repeats > self.plan.budget and not required:
                reason = (
                    f"a warm call takes {call:.3g} s, the budget is {self.plan.budget:g} s per size"
                )
                return SpeedPoint(n_atoms=count, formula=formula, status="too-slow", reason=reason)
            begin = time.perf_counter()
            inner: list[float] = []
            if self.clock is not None:
                self.clock.take()
            while self.plan.needs_more(seconds, time.perf_counter() - begin):
                mover.move()
                synchronize()
                start = time.perf_counter()
                self._evaluate(mover.atoms)
                synchronize()
                seconds.append(time.perf_counter() - start)
                if self.clock is not None:
                    inner.append(self.clock.take())
        except SHORTAGES as error:
            if not is_shortage(error):
                raise
            reason = f"{type(error).__name__} in the calculator"
            return SpeedPoint(n_atoms=count, formula=formula, status="out-of-memory", reason=reason)
        if inner and min(inner) > 0.0:
            self.inner.append(summarize(count, formula, inner, None))
        return summarize(count, formula, seconds, self.memory.measure())

    def _warm_up(self, mover: _Mover) -> float:
        """Call ``warmup`` times, or once where that takes the budget; seconds of the last call.

        Where calls are cheap there are ``long_warmup``: a CUDA graph is recorded in the third and fourth.
        """
        begin = time.perf_counter()
        call = 0.0
        for count in range(max(self.plan.warmup, self.plan.long_warmup)):
            if (
                count >= self.plan.warmup
                and time.perf_counter() - begin > WARM_SHARE * self.plan.budget
            ):
                break
            mover.move()
            start = time.perf_counter()
            try:
                self._evaluate(mover.atoms)
            except PropertyNotImplementedError:
                self.has_stress = False
                self._evaluate(mover.atoms)
            synchronize()
            call = time.perf_counter() - start
            if time.perf_counter() - begin > self.plan.budget:
                break
        return call

    def _evaluate(self, atoms: ase.Atoms) -> None:
        atoms.get_forces(apply_constraint=False)
        atoms.get_potential_energy()
        if self.has_stress and atoms.pbc.all():
            atoms.get_stress(apply_constraint=False)

    def finish(self) -> list[SpeedCurve]:
        stress = ", stress where periodic" if self.has_stress else ""
        curve = SpeedCurve(
            role=self.entry.role,
            label=self.entry.label,
            mode="ase-call",
            includes=CALL_INCLUDES.format(stress=stress),
            device=self.entry.device,
            threads=torch.get_num_threads(),
            identity=self.entry.identity,
            memory_kind=self.memory.kind,
            points=tuple(self.points),
        )
        if self.clock is None:
            return [curve]
        if not self.inner or not self.clock.trusted:
            return [curve]
        inner = {"mode": "model", "includes": CLOCK_INCLUDES, "memory_kind": ""}
        return [curve, curve.model_copy(update={**inner, "points": tuple(self.inner)})]


class _Mover:
    """Atoms that are somewhere else at every call, the same places for every calculator with the same seed."""

    def __init__(self, atoms: ase.Atoms, calculator: BaseCalculator, seed: int) -> None:
        self.atoms = atoms.copy()
        self.atoms.calc = calculator
        self._start = atoms.get_positions()
        self._random = np.random.default_rng(seed)

    def move(self) -> None:
        direction = self._random.normal(size=3)
        shift = direction / np.linalg.norm(direction) * self._random.uniform(1.5, 3.0)
        self._start = self._start + shift
        jitter = self._random.normal(scale=0.01, size=self._start.shape)
        self.atoms.set_positions(self._start + jitter, apply_constraint=False)
