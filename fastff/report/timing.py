"""Fair timings of calculators against the number of atoms.

Here: :func:`time_calculators` (one ASE call at each size, several calculators in one run), :func:`time_calculator` (one
of them) and :func:`time_dynamics` (steps of ASE's velocity Verlet). Not here: building the sizes
(:mod:`fastff.report.supercells`), memory (:mod:`fastff.report.memory`), or showing the result.

Rules, the same for everybody: same structures in the same process, one calculator after the other, so that the memory
of one is not counted for the next; warm (the first calls are not counted); the device synchronised before every reading
of the clock; every call on moved atoms - a random rigid shift of 1.5 to 3 Å and a small jitter - so that neither a
result cache nor a neighbor list with a skin can be reused. A calculator stops at the first size whose calls would
exceed the time or memory there is, except at required sizes. A point that cannot be measured stays in the table with
its status and reason; nothing is extrapolated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import ase
import numpy as np
import torch
from ase import units
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from fastff.errors import UsageError
from fastff.report.ending import NEVER, Watch
from fastff.report.inner import (
    CLOCK_INCLUDES,
    SHORTAGES,
    ModelClock,
    is_shortage,
    synchronize,
)
from fastff.report.memory import PeakMemory
from fastff.report.speed import (
    SpeedCurve,
    SpeedPoint,
    Status,
    Timed,
    TimingPlan,
    summarize,
)

STANDARD = TimingPlan()
CALL_INCLUDES = "one ASE call on moved atoms: neighbor list, energy, forces{stress}, transfers"
MD_INCLUDES = "one velocity Verlet step of ASE from {temperature:g} K: forces, neighbor list as the calculator keeps it"
FEWEST_STEPS = 8
"""Steps that the shortest timing of dynamics takes, its warm-up included, with something to spare."""

WARM_STEPS = 20
"""Steps of warm-up of dynamics where the budget allows: compilers see new numbers of neighbors in the first ones."""

MOST_EXCESS = 1.5
"""Times the median that the mean of blocks may be; above it something else than dynamics was in a block."""


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
            while len(seconds) < self.plan.min_repeats or (
                len(seconds) < self.plan.max_repeats
                and time.perf_counter() - begin < self.plan.budget / 2
            ):
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
        """Call ``warmup`` times, or once where that takes the budget; seconds of the last call."""
        begin = time.perf_counter()
        call = 0.0
        for _ in range(self.plan.warmup):
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


def judge_dynamics(call: SpeedPoint, budget: float) -> SpeedPoint | None:
    """None if dynamics fits into ``budget`` seconds, going by the calculator's call; else the point that says why."""
    if call.median is None:
        return call
    if FEWEST_STEPS * call.median <= budget:
        return None
    reason = f"a call takes {call.median:.3g} s, the budget is {budget:g} s per size"
    return SpeedPoint(n_atoms=call.n_atoms, formula=call.formula, status="too-slow", reason=reason)


def time_dynamics(
    entry: Timed,
    structures: Sequence[ase.Atoms],
    *,
    temperature: float,
    time_step: float,
    budget: float = 20.0,
    calls: SpeedCurve | None = None,
    required: Collection[int] = (),
    max_steps: int = 400,
    seed: int = 0,
    watch: Watch = NEVER,
    found: list[SpeedCurve] | None = None,
) -> SpeedCurve:
    """Time constant-energy dynamics by ASE's velocity Verlet from ``temperature`` (K) with ``time_step`` (fs).

    Steps run in blocks of at least a fifth of a second; each block gives one value, its mean time per step, so that
    neighbor lists rebuilt now and then are paid for in proportion. At least three steps are measured, after a warm-up
    of 20 where that takes no more than 30 % of the budget. Atoms start slightly displaced. Where the mean of the blocks
    is more than 1.5 times their median, the median counts and the curve says so. Going by the ASE ``calls`` of the same
    calculator, sizes that do not fit into ``budget`` seconds are left out, unless they are ``required``. ``watch`` is
    asked before every size; ``found`` receives the curve, of a run that ends early as far as it came.
    """
    memory = PeakMemory(entry.device, own_process=entry.own_process)
    calculator = entry.factory()
    points: list[SpeedPoint] = []
    try:
        for atoms in structures:
            watch.check()
            known = calls is not None and len(atoms) not in required
            call = calls.find(len(atoms)) if calls is not None and known else None
            point = judge_dynamics(call, budget) if call is not None else None
            if point is None:
                image = atoms.copy()
                image.calc = calculator
                point = _time_steps(image, memory, temperature, time_step, budget, max_steps, seed)
            points.append(point)
    finally:
        with watch.hold():
            curve = _draw_steps(entry, points, memory.kind, temperature, time_step)
            if found is not None:
                found.append(curve)
    return curve


def _draw_steps(
    entry: Timed,
    points: Sequence[SpeedPoint],
    memory_kind: str,
    temperature: float,
    time_step: float,
) -> SpeedCurve:
    uneven = ", ".join(str(p.n_atoms) for p in points if p.counts == "median")
    remark = f"; at {uneven} atoms the median of blocks, single ones took far longer"
    return SpeedCurve(
        role=entry.role,
        label=entry.label,
        mode="ase-md",
        includes=MD_INCLUDES.format(temperature=temperature) + (remark if uneven else ""),
        device=entry.device,
        threads=torch.get_num_threads(),
        identity=entry.identity,
        memory_kind=memory_kind,
        time_step=time_step,
        points=tuple(points),
    )


def _time_steps(
    image: ase.Atoms,
    memory: PeakMemory,
    temperature: float,
    time_step: float,
    budget: float,
    max_steps: int,
    seed: int,
) -> SpeedPoint:
    """Blocks of steps at one size; the calculator is attached."""
    from ase.md.verlet import VelocityVerlet

    from fastff.distill.dynamics import draw_momenta

    image.rattle(0.03, seed=seed)
    image.set_momenta(draw_momenta(image, temperature, seed, trajectory=0))
    formula = image.get_chemical_formula(empirical=True)
    memory.reset()
    try:
        dynamics = VelocityVerlet(image, timestep=time_step * units.fs)

        def run(n_steps: int) -> float:
            start = time.perf_counter()
            dynamics.run(n_steps)
            synchronize()
            return (time.perf_counter() - start) / n_steps

        run(2)
        rest = min(WARM_STEPS - 4, int(0.3 * budget / run(1)))
        if rest > 0:
            run(rest)
        single = run(1)
        block = int(np.clip(np.ceil(0.2 / single), 1, max(1, max_steps // 3)))
        seconds: list[float] = []
        begin = time.perf_counter()
        while len(seconds) < 3 or (
            len(seconds) * block < max_steps and time.perf_counter() - begin < 0.6 * budget
        ):
            seconds.append(run(block))
        reason = f"blocks of {block} steps"
        point = summarize(len(image), formula, seconds, memory.measure(), reason)
        excess = np.mean(seconds) / np.median(seconds)
        if excess <= MOST_EXCESS:
            return point
        reason += f", their mean is {excess:.1f} times their median: the median counts"
        return point.model_copy(update={"counts": "median", "reason": reason})
    except SHORTAGES as error:
        if not is_shortage(error):
            raise
        return SpeedPoint(
            n_atoms=len(image),
            formula=formula,
            status="out-of-memory",
            reason=str(type(error).__name__),
        )
