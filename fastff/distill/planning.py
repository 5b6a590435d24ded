"""Deciding what to label with a budget of teacher evaluations.

Here: :func:`plan_sampling`. Not here: the record it returns (:mod:`fastff.distill.plan`), carrying it out
(:mod:`fastff.distill.sampling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

from fastff.distill.cells import SampleCell, build_supercell, classify_cell
from fastff.distill.constraints import copy_fixed, describe_lifted
from fastff.distill.dynamics import LangevinSettings
from fastff.distill.plan import N_PROBES, PlannedDynamics, PlannedReplica, SamplingPlan
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.teachers.base import format_elements

SMALL_BUDGET = 200
LARGE_BUDGET = 2000
SHARES: dict[str, dict[str, tuple[float, float]]] = {
    "crystal": {
        "rattle": (0.04, 0.03),
        "strain": (0.08, 0.04),
        "shear": (0.05, 0.03),
        "close-contact": (0.04, 0.03),
        "thermal": (0.37, 0.12),
        "teacher-md": (0.24, 0.60),
        "held-out": (0.18, 0.15),
    },
    "disordered": {
        "rattle": (0.02, 0.004),
        "strain": (0.05, 0.015),
        "shear": (0.02, 0.005),
        "close-contact": (0.03, 0.01),
        "thermal": (0.20, 0.066),
        "teacher-md": (0.46, 0.72),
        "held-out": (0.22, 0.18),
    },
    "molecule": {
        "rattle": (0.03, 0.01),
        "strain": (0.0, 0.0),
        "shear": (0.0, 0.0),
        "close-contact": (0.03, 0.01),
        "thermal": (0.25, 0.10),
        "teacher-md": (0.47, 0.70),
        "held-out": (0.22, 0.18),
    },
}
"""Share of the evaluations for each kind with a small and with a large budget; interpolated in the logarithm between.

Independent thermal draws teach more per evaluation, dynamics explore what springs cannot: the larger the budget, the
more dynamics. Springs about a snapshot of a liquid, or about one conformation, explore little; dynamics has to.
Several cells get the mean of their shares.
"""


LEAST_REPLICAS = 7
"""Trajectories that a share of the budget is divided among, or one for each cell if these are more and it allows."""


def plan_sampling(
    seeds: Sequence[ase.Atoms],
    teacher_info: Any = None,
    *,
    temperatures: tuple[float, float] = (300.0, 900.0),
    budget: int | None = None,
    n_frames: int | None = None,
    cutoff: float = 5.0,
    max_atoms: int = 120,
    timestep: float | None = None,
    overheat: float = 1.25,
    max_force: float = 100.0,
    seed: int = 0,
) -> SamplingPlan:
    """Decide what to label.

    Parameters
    ----------
    seeds : sequence of ase.Atoms
        The user's structures. Atoms that FixAtoms holds stay where they are, but for the strain of the cell and for
        close contacts; other constraints are lifted, which the plan notes.
    teacher_info : TeacherInfo, optional
        To check elements and to name the teacher.
    temperatures : tuple of float
        Lowest and highest temperature of interest, K.
    budget : int, optional
        Evaluations of the teacher, test frames included.
    n_frames : int, optional
        Wanted frames, test frames included. With a budget, it sets how densely trajectories are stored; without, the
        budget follows from it. If neither is given, the budget is 600 evaluations.
    cutoff : float
        The student's, Å. Cells are made twice as wide where ``max_atoms`` allows.
    max_atoms : int
        Largest supercell.
    timestep : float, optional
        fs; by default 0.5 with hydrogen, 1 with elements up to neon, else 2.
    overheat : float
        Part of the training frames goes up to this many times the highest temperature.
    max_force : float
        eV/Å; labels with larger forces are set aside, replicas that meet them stopped.
    seed : int
        Seed of every draw.

    Raises
    ------
    UsageError
        Temperatures, budget or number of frames that make no sense.
    DataError, UnsupportedElementError
        No structures, structures of which every atom is fixed, or that the teacher cannot label.
    """
    low, high = (float(value) for value in temperatures)
    if not 0 < low <= high:
        raise UsageError(f"temperatures are {low:g} and {high:g} K; need 0 < lowest <= highest")
    _check_seeds(seeds, teacher_info)
    if budget is None:
        budget = 600 if n_frames is None else _find_budget(n_frames, seeds)
    chosen, notes = _choose_seeds(seeds, budget)
    cells = tuple(build_supercell(seeds[i], 2 * cutoff, max_atoms, i) for i in chosen)
    notes += [
        f"cell of seed {cell.seed_index} is {cell.width:.1f} Å wide, less than two cut-offs"
        for cell in cells
        if cell.width < 2 * cutoff - 0.5
    ]
    notes += describe_lifted({i: seeds[i] for i in chosen})
    least = len(cells) * (1 + N_PROBES) + 12
    if budget < least:
        raise UsageError(f"a budget of {budget} evaluations is too small; use at least {least}")
    counts, md, held_out = _share(budget, cells)
    timestep = timestep or _choose_timestep(cells)
    dynamics = _plan_dynamics(md, held_out, budget, len(cells), (low, high), overheat, timestep)
    if n_frames is not None:
        dynamics = _fit_stride(dynamics, n_frames - sum(counts.values()))
    dynamics = tuple(
        replace(group, settings=replace(group.settings, seed=seed, max_force=max_force))
        for group in dynamics
    )
    return SamplingPlan(
        teacher=getattr(teacher_info, "name", "unknown"),
        cells=cells,
        temperatures=(low, high),
        overheat=overheat,
        counts=counts,
        dynamics=dynamics,
        max_force=max_force,
        seed=seed,
        notes=tuple(notes),
    )


def _check_seeds(seeds: Sequence[ase.Atoms], teacher_info: Any) -> None:
    if len(seeds) == 0:
        raise DataError("no structures to sample from")
    known = set(getattr(teacher_info, "elements", ()) or ())
    for index, atoms in enumerate(seeds):
        if len(atoms) == 0:
            raise DataError(f"structure {index} has no atoms")
        try:
            copy_fixed(atoms)
        except DataError as error:
            raise DataError(f"structure {index}: {error}") from error
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all()):
            raise DataError(f"structure {index} has positions or cell vectors that are not finite")
        if atoms.pbc.any() and (np.linalg.norm(atoms.cell, axis=1)[atoms.pbc] < 1e-6).any():
            raise DataError(f"structure {index} is periodic along a cell vector of length zero")
        if any(key.endswith("occupancy") for key in atoms.info):
            occupancy = next(
                value for key, value in atoms.info.items() if key.endswith("occupancy")
            )
            if _is_disordered(occupancy):
                raise DataError(
                    f"structure {index} has partial occupancies; give an ordered structure"
                )
        missing = sorted(set(atoms.numbers) - known) if known else []
        if missing:
            symbols = ", ".join(chemical_symbols[number] for number in missing)
            name = getattr(teacher_info, "name", "teacher")
            raise UnsupportedElementError(
                f"structure {index} contains {symbols}, unknown to {name}, which knows "
                f"{format_elements(sorted(known))}; choose another teacher"
            )


def _is_disordered(occupancy: Any) -> bool:
    sites = occupancy.values() if isinstance(occupancy, dict) else ()
    return any(isinstance(site, dict) and any(v < 1 for v in site.values()) for site in sites)


def _choose_seeds(seeds: Sequence[ase.Atoms], budget: int) -> tuple[list[int], list[str]]:
    """Evenly spaced seeds, as many as the budget can treat with some depth."""
    limit = max(1, budget // 15)
    if len(seeds) <= limit:
        return list(range(len(seeds))), []
    chosen = sorted({round(i) for i in np.linspace(0, len(seeds) - 1, limit)})
    return chosen, [
        f"{len(chosen)} of {len(seeds)} structures are used, evenly spaced; raise the budget for more"
    ]


def _share(budget: int, cells: Sequence[SampleCell]) -> tuple[dict[str, int], int, int]:
    """Evaluations per static kind, for training dynamics, and for held-out dynamics."""
    n_cells = len(cells)
    left = budget - n_cells * (1 + N_PROBES)
    position = math.log(budget / SMALL_BUDGET) / math.log(LARGE_BUDGET / SMALL_BUDGET)
    weight = min(1.0, max(0.0, position))
    tables = [SHARES[classify_cell(cell)] for cell in cells]
    wanted = {
        kind: float(np.mean([(1 - weight) * t[kind][0] + weight * t[kind][1] for t in tables]))
        for kind in tables[0]
    }
    if not any(any(cell.axes) for cell in cells):
        wanted["thermal"] += wanted.pop("strain") + wanted.pop("shear")
    if all(len(cell.atoms) < 2 for cell in cells):
        wanted["thermal"] += wanted.pop("close-contact")
    evaluations = {kind: round(share * left) for kind, share in wanted.items()}
    md, held_out = evaluations.pop("teacher-md"), evaluations.pop("held-out")
    evaluations["thermal"] += left - sum(evaluations.values()) - md - held_out
    evaluations["rattle"] += n_cells * N_PROBES
    return {"seed": n_cells, **evaluations}, md, held_out


def _choose_timestep(cells: Sequence[SampleCell]) -> float:
    lightest = min(int(cell.atoms.numbers.min()) for cell in cells)
    return 0.5 if lightest == 1 else 1.0 if lightest <= 10 else 2.0


def _plan_dynamics(
    md: int,
    held_out: int,
    budget: int,
    n_cells: int,
    temperatures: tuple[float, float],
    overheat: float,
    timestep: float,
) -> tuple[PlannedDynamics, ...]:
    groups: list[PlannedDynamics] = []
    separation = 8.0 if budget < 400 else 20.0  # fs between kept frames
    if timestep <= 0.5:  # bonds to hydrogen turn round in 5 fs
        separation *= 0.5
    index = 0
    for evaluations, is_held_out in ((md, False), (held_out, True)):
        shortest = math.ceil(24.0 / timestep)
        parts = max(LEAST_REPLICAS, n_cells) + 1  # one to be lost to the first frames
        length = min(max(shortest, evaluations // parts), round(1500 / timestep))
        n_replicas = max(1, min(evaluations // (length + 1), 256))
        n_steps = max(1, evaluations // n_replicas - 1)
        stride = max(1, min(round(separation / timestep), n_steps // 2))
        ladder = np.linspace(*temperatures, n_replicas) if n_replicas > 1 else temperatures[1:]
        replicas = []
        for number, value in enumerate(ladder):
            hot = not is_held_out and n_replicas >= 4 and number % 4 == 3
            temperature = float(value) * (overheat if hot else 1.0)
            replicas.append(PlannedReplica((index + number) % n_cells, temperature, index + number))
        index += n_replicas
        first_kept = stride if is_held_out else 0
        if is_held_out:  # correlated test frames do no harm
            stride = max(1, stride // 2)
        n_steps -= n_steps % stride  # a trajectory ends with a kept frame
        settings = LangevinSettings(n_steps, timestep, stride=stride, first_kept=first_kept)
        groups.append(PlannedDynamics(tuple(replicas), settings, is_held_out))
    return tuple(groups)


def _fit_stride(groups: tuple[PlannedDynamics, ...], n_frames: int) -> tuple[PlannedDynamics, ...]:
    """Choose strides so that about ``n_frames`` frames of the dynamics are kept."""
    steps = sum(len(group.replicas) * group.settings.n_steps for group in groups)
    stride = max(1, round(steps / max(1, n_frames)))
    result = []
    for group in groups:
        n_steps = group.settings.n_steps
        own = min(stride, n_steps)
        settings = replace(
            group.settings,
            n_steps=n_steps - n_steps % own,
            stride=own,
            first_kept=own if group.held_out else 0,
        )
        result.append(replace(group, settings=settings))
    return tuple(result)


def _find_budget(n_frames: int, seeds: Sequence[ase.Atoms]) -> int:
    """Budget of which about ``n_frames`` frames come when one in ten dynamics steps is kept."""
    if n_frames < 1:
        raise UsageError(f"number of frames is {n_frames}; must be positive")
    share = SHARES["crystal"]["teacher-md"][1] + SHARES["crystal"]["held-out"][1]
    return max(round(n_frames / (1 - share + share / 10)), 15 * min(len(seeds), 4))
