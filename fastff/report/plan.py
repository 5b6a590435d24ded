"""How much a bench run measures, and where its dynamics begins.

Here: :class:`BenchPlan`, the seeds, the temperature range, the dynamics that follow from them. Not here: doing it
(:mod:`fastff.report.bench`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ase
import numpy as np

from fastff.errors import DataError
from fastff.report.heldout import HeldoutPlan, derive_seed, plan_heldout, plan_outside
from fastff.structures import read_header_structures

MAIN = "held-out frames"
"""Name of the comparison that decides."""

RELATED = "frames not trained on"
"""Its name where the frames come from a file that names no trajectories, so that neighbors in time were trained on."""

MOST_SEEDS = 6
"""Held-out dynamics starts from at most this many structures, evenly chosen from those given."""


@dataclass(frozen=True)
class BenchPlan:
    """How much to measure.

    Attributes
    ----------
    n_frames, n_temperatures, n_equilibrate, interval, least_trajectories : int
        Of the held-out dynamics, see :func:`fastff.report.heldout.plan_heldout`.
    dynamics_budget : float
        Seconds within which all sets of trajectories may become more and longer, see
        :func:`fastff.report.heldout.widen_plan` and :func:`fastff.report.heldout.stretch_plan`; zero leaves them as
        planned.
    sizes : tuple of int
        Atom counts to time; the one nearest to 500 is always measured for both sides.
    budget : float
        Seconds for each size and calculator.
    md_atoms : int
        Size at which steps of ASE's velocity Verlet are timed whatever they cost; others as the budget allows.
    outside : bool
        Also judge frames at 1.5 times the highest temperature and under strains of ±5 %.
    n_noise : int
        Frames for the noise floor.
    physics : {"auto", "none", "full"}
        Physical properties beside the teacher's: those that fit into ``physics_budget`` seconds, none, or all.
    required : float or None
        Accuracy that must be reached.
    device : str
        Where both sides run.
    """

    n_frames: int = 36
    n_temperatures: int = 3
    n_equilibrate: int = 60
    interval: int = 10
    least_trajectories: int = 1
    dynamics_budget: float = 0.0
    sizes: tuple[int, ...] = (64, 125, 250, 500, 1000, 2000, 4000, 10000, 20000)
    budget: float = 20.0
    md_atoms: int = 500
    outside: bool = True
    n_noise: int = 4
    physics: Literal["auto", "none", "full"] = "auto"
    physics_budget: float = 150.0
    required: float | None = None
    device: str = "cpu"


FULL_PLAN = BenchPlan(n_frames=30, least_trajectories=5, dynamics_budget=120.0)
"""Of one structure five trajectories of 110 steps, with which there is an interval: 555 calls; three of 170 are 513."""

QUICK_PLAN = BenchPlan(
    n_frames=16, n_temperatures=2, n_equilibrate=30, interval=5,
    sizes=(64, 500, 2000, 10000), budget=6.0, md_atoms=64, outside=False, n_noise=2,
    physics_budget=30.0,
)  # fmt: skip
"""A plan of about two minutes on two idle cores with a SevenNet teacher, five to ten where they are busy."""


def choose_seeds(header: dict[str, Any], structures: Sequence[ase.Atoms] | None) -> list[ase.Atoms]:
    """Structures that dynamics starts from: those given, else those of the model file; at most six, evenly chosen."""
    seeds = list(structures) if structures is not None else read_header_structures(header)
    if len(seeds) <= MOST_SEEDS:
        return seeds
    return [seeds[i] for i in np.linspace(0, len(seeds) - 1, MOST_SEEDS).round().astype(int)]


def plan_run(
    header: dict[str, Any],
    structures: Sequence[ase.Atoms],
    temperature: tuple[float, float] | None,
    plan: BenchPlan,
) -> dict[str, HeldoutPlan]:
    """Dynamics that a run will do: the held-out frames first, then those outside the training range."""
    if not structures:
        raise DataError(
            "the model file holds no structures to start dynamics from: give --structures FILE."
        )
    limits = find_temperature(header, temperature)
    seed = derive_seed(str(header.get("sha256")))
    main = plan_heldout(
        structures,
        limits,
        seed=seed,
        n_frames=plan.n_frames,
        n_temperatures=plan.n_temperatures,
        n_equilibrate=plan.n_equilibrate,
        interval=plan.interval,
        least_trajectories=plan.least_trajectories,
    )
    if not plan.outside:
        return {MAIN: main}
    outside = plan_outside(structures, limits, seed=seed, n_equilibrate=plan.n_equilibrate)
    return {MAIN: main, **outside}


def find_temperature(
    header: dict[str, Any], temperature: tuple[float, float] | None
) -> tuple[float, float]:
    """The range asked for, else the model's, else 300 K."""
    low, high = temperature or header.get("temperature") or (300.0, 300.0)
    return float(low), float(high)
