"""Timings of dynamics through ASE against the number of atoms.

Here: :func:`time_dynamics` (steps of ASE's velocity Verlet) and :func:`judge_dynamics`. Not here: single calls and the
rules that are the same for both (:mod:`fastff.report.timing`), fastff's own dynamics (:mod:`fastff.report.inner`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

import ase
import numpy as np
import torch
from ase import units

from fastff.report.ending import NEVER, Watch
from fastff.report.inner import SHORTAGES, is_shortage, synchronize
from fastff.report.memory import PeakMemory
from fastff.report.repeats import needs_more
from fastff.report.speed import SpeedCurve, SpeedPoint, Timed, summarize

MD_INCLUDES = "one velocity Verlet step of ASE from {temperature:g} K: forces, neighbor list as the calculator keeps it"
FEWEST_STEPS = 8
"""Steps that the shortest timing of dynamics takes, its warm-up included, with something to spare."""

WARM_STEPS = 20
"""Steps of warm-up of dynamics where the budget allows: compilers see new numbers of neighbors in the first ones."""

MOST_EXCESS = 1.5
"""Times the median that the mean of blocks may be; above it something else than dynamics was in a block."""


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
        usual = max(3, math.ceil(max_steps / block))
        while needs_more(
            seconds, time.perf_counter() - begin, least=3, usual=usual, budget=budget, share=0.6
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
