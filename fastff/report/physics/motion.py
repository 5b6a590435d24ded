"""Properties from dynamics of both sides under the same thermostat: pair distributions, diffusion.

Here: the teacher's runs, least lengths and the curves that runs leave. Not here: the student's own loop
(:mod:`fastff.report.physics.endurance`), the numbers derived from curves (:mod:`fastff.report.physics.derive`), how
long there is time to run (:mod:`fastff.report.physics.sampling`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ase
import numpy as np

from fastff.distill.cells import measure_widths
from fastff.distill.constraints import describe_size
from fastff.distill.dynamics import LangevinSettings, Replica, draw_momenta, run_langevin
from fastff.labels import Frame
from fastff.md.state import find_fixed
from fastff.neighbors import build_edges, complete_cell, measure_edges
from fastff.report.physics.derive import PropertyError, TooShortError
from fastff.report.physics.record import DiffusionCurve, DiffusionItem, RdfCurve, RdfItem
from fastff.report.physics.side import Side

MOST_BLOCKS = 5
LEAST_BLOCK = 0.5
"""ps of a block of pair distributions; a shorter run has fewer blocks, two at least."""

LEAST_DIFFUSION = 5.0
"""ps after equilibration."""

LINEAR = (0.75, 1.3)
"""Slopes of log mean square displacement over log time that count as diffusion; 0 is vibration, 2 is flight."""

LEAST_MOVED = 1.0
"""Å^2 of mean square displacement of what diffuses."""

REACH = 6.0
"""Å of pair distributions, where half the box allows that."""

BIN = 0.05
"""Å."""

DIFFUSION_BLOCKS = 4
"""Of each replica; fewer would leave the standard error itself uncertain."""

FRICTION = 0.005
"""Of the thermostat, 1/fs: weak, so that diffusion is slowed down little."""

INTERVAL = 5
"""Steps between frames."""


@dataclass(frozen=True)
class Run:
    """Structures of one side after equilibration, a list for each replica, with time step in fs."""

    replicas: list[list[ase.Atoms]]
    time_step: float

    @property
    def length(self) -> float:
        """Of each replica, ps."""
        return len(self.replicas[0]) * INTERVAL * self.time_step * 1e-3

    @property
    def first(self) -> ase.Atoms:
        """The first structure."""
        return self.replicas[0][0]


@dataclass(frozen=True)
class Dynamics:
    """Runs that both sides do: from ``start`` at ``temperature`` in K with ``time_step`` in fs.

    Replicas differ in their velocities and noise; the first quarter of the steps is left out.
    """

    start: ase.Atoms
    temperature: float
    time_step: float
    n_steps: int
    seed: int = 20
    n_replicas: int = 1

    @property
    def n_equilibrate(self) -> int:
        """Step of the first structure that is kept."""
        return self.n_steps // 4 // INTERVAL * INTERVAL

    def heat(self, number: int) -> ase.Atoms:
        """Where replica ``number`` starts.

        Velocities are of twice the temperature: half of it goes into the potential energy of what starts at rest.
        """
        atoms = self.start.copy()
        atoms.set_momenta(draw_momenta(atoms, 2.0 * self.temperature, self.seed, number))
        return atoms


def run_side(side: Side, dynamics: Dynamics) -> Run:
    """Langevin dynamics of one side, all replicas together.

    Raises
    ------
    PropertyError
        A run broke.
    """
    first = dynamics.n_equilibrate
    replicas = [
        Replica(dynamics.heat(number), dynamics.temperature, number)
        for number in range(dynamics.n_replicas)
    ]
    images: list[list[ase.Atoms]] = [[] for _ in replicas]

    def keep(found: list[Frame]) -> None:
        for frame in found:
            images[frame.trajectory].append(frame.atoms)

    settings = LangevinSettings(
        n_steps=dynamics.n_steps // INTERVAL * INTERVAL, timestep=dynamics.time_step,
        friction=FRICTION, stride=INTERVAL, first_kept=first, seed=dynamics.seed,
        min_distance=0.0,  # a force above the limit stops what collapses
    )  # fmt: skip
    run_langevin(replicas, side.label, settings, source="bench", on_frames=keep)
    for replica in replicas:
        if replica.stopped:
            raise PropertyError(f"the run of the {side.role} broke: {replica.stopped}")
    return Run(images, dynamics.time_step)


def count_steps(length: float, time_step: float) -> int:
    """Steps of :func:`run_side` that leave ``length`` ps after equilibration, ``time_step`` in fs."""
    return INTERVAL * math.ceil(round(4.0 / 3.0 * length * 1e3 / time_step / INTERVAL, 6))


def compare_distributions(
    teacher: Run | None,
    student: Run,
    pairs: list[tuple[str, str]],
    temperature: float,
    absence: str = "",
) -> RdfItem:
    """g(r) of every pair of elements, with standard errors over blocks of all replicas; ``absence``: why no teacher.

    Raises
    ------
    PropertyError
        The runs are of boxes so different that their distances end elsewhere.
    TooShortError
        A run has no two blocks of :data:`LEAST_BLOCK`; one is enough of each of :data:`MOST_BLOCKS` replicas or more.
    """
    runs = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
    shortest = min(run.length for run in runs.values())
    n_blocks = min(MOST_BLOCKS, int(shortest / LEAST_BLOCK + 1e-6))
    least = 1 if len(student.replicas) >= MOST_BLOCKS else 2
    if n_blocks < least:
        needed = f"{'one block' if least == 1 else 'two blocks'} of {LEAST_BLOCK:g} ps"
        raise TooShortError(
            f"runs of {shortest:.2g} ps after equilibration are too short for {needed}"
        )
    if teacher is not None:
        _require_same_bins(teacher.first, student.first)
    heights = measure_heights(student.first)
    edges = make_bins(student.first)
    sides = {role: _count_pairs(run, pairs, n_blocks) for role, run in runs.items()}
    radii = tuple((0.5 * (edges[1:] + edges[:-1])).tolist())
    curves = []
    for number, pair in enumerate(pairs):
        values: dict[str, Any] = {"teacher": None, "teacher_error": None}
        for role, blocks in sides.items():
            values[role] = tuple(blocks[:, number].mean(axis=0).tolist())
            error = blocks[:, number].std(axis=0, ddof=1) / np.sqrt(len(blocks))
            values[f"{role}_error"] = tuple(error.tolist())
        curves.append(RdfCurve(pair="-".join(pair), radii=radii, **values))
    whose = "of each side" if teacher is not None else "of the student alone"
    return RdfItem(
        title="Pair distributions",
        description=f"{describe_size(student.first)} at {temperature:.0f} K under the same Langevin thermostat "
        f"({FRICTION:g}/fs), {_count_replicas(student)}{shortest:.3g} ps {whose} after equilibration; standard "
        f"errors over {n_blocks * len(student.replicas)} blocks of {shortest / n_blocks:.2g} ps; box of "
        f"{' × '.join(f'{height:.3g}' for height in heights)} Å between opposite faces, distances up to "
        f"{edges[-1]:.3g} Å{'' if edges[-1] >= REACH else ', half the smallest of these'}"
        f"{_describe_absence(absence)}",
        temperature=temperature,
        n_blocks=n_blocks * len(student.replicas),
        curves=tuple(curves),
        peak="first",
        heights=(float(heights[0]), float(heights[1]), float(heights[2])),
    )


def _require_same_bins(teacher: ase.Atoms, student: ase.Atoms) -> None:
    """Raise :class:`PropertyError` where half the boxes of the sides are such that their distances end elsewhere."""
    ends = [make_bins(atoms)[-1] for atoms in (teacher, student)]
    if ends[0] != ends[1]:
        raise PropertyError(
            f"the runs are of different boxes: distances are known up to {ends[0]:.3g} Å of the teacher, "
            f"{ends[1]:.3g} Å of the student"
        )


def _describe_absence(absence: str) -> str:
    return f"; the teacher was not run: {absence}" if absence else ""


def _count_replicas(run: Run) -> str:
    """``8 replicas of``, or nothing for one."""
    return f"{len(run.replicas)} replicas of " if len(run.replicas) > 1 else ""


def _count_pairs(run: Run, pairs: list[tuple[str, str]], n_blocks: int) -> np.ndarray:
    """g(r) of ``n_blocks`` blocks of each replica, (n_replicas * n_blocks, n_pairs, n_bins)."""
    result = []
    for images in run.replicas:
        for block in np.array_split(np.arange(len(images)), n_blocks):
            counts = [count_pairs(images[index], pairs) for index in block]
            result.append(np.mean(counts, axis=0))
    return np.array(result)


def measure_heights(atoms: ase.Atoms) -> np.ndarray:
    """Distances between opposite faces of the box, Å; where it is not periodic, of one that holds all atoms apart."""
    return measure_widths(
        np.asarray(complete_cell(atoms.positions, atoms.cell.array, atoms.pbc, REACH))
    )


def make_bins(atoms: ase.Atoms) -> np.ndarray:
    """Limits of bins up to :data:`REACH` or half the box's smallest height: beyond, atoms meet their images.

    Heights between faces that are not periodic do not count.
    """
    reach = min(REACH, 0.5 * float(min(measure_heights(atoms)[atoms.pbc], default=np.inf)))
    return BIN * np.arange(int(reach / BIN + 1e-6) + 1)


def count_pairs(atoms: ase.Atoms, pairs: list[tuple[str, str]]) -> np.ndarray:
    """g(r) of one periodic structure, (n_pairs, n_bins): pairs found over those of an ideal gas of the same density."""
    limits = make_bins(atoms)
    reach = float(limits[-1])
    cell = np.asarray(complete_cell(atoms.positions, atoms.cell.array, atoms.pbc, reach))
    edges, shifts = build_edges(atoms.positions, cell, atoms.pbc, reach)
    lengths = np.sqrt(measure_edges(atoms.positions, cell, edges, shifts))
    symbols = np.array(atoms.get_chemical_symbols())
    shells = 4.0 / 3.0 * np.pi * np.diff(limits**3)
    rows = []
    for first, second in pairs:
        chosen = (symbols[edges[0]] == first) & (symbols[edges[1]] == second)
        counts, _ = np.histogram(lengths[chosen], bins=limits)
        density = (symbols == second).sum() / atoms.get_volume()
        rows.append(counts / ((symbols == first).sum() * density * shells))
    return np.array(rows)


def compare_diffusion(
    teacher: Run | None,
    student: Run,
    temperature: float,
    absence: str = "",
    where: str = "in the runs of the pair distributions",
) -> DiffusionItem:
    """Mean square displacements over time origins, and diffusion coefficients of blocks of each replica.

    ``absence`` says why there is no teacher, ``where`` which runs these are.

    Raises
    ------
    PropertyError
        The runs are shorter than :data:`LEAST_DIFFUSION`, or no element diffuses: none moves by more than
        :data:`LEAST_MOVED` over the longest time of either run, or displacements do not grow linearly.
    """
    runs = {"student": student} | ({"teacher": teacher} if teacher is not None else {})
    shortest = min(run.length for run in runs.values())
    if shortest < LEAST_DIFFUSION * (1.0 - 1e-9):
        raise TooShortError(
            f"runs of {shortest:.2g} ps after equilibration are too short, {LEAST_DIFFUSION:g} ps are needed"
        )
    symbols = np.array(student.first.get_chemical_symbols())
    followed = {role: [_follow(images) for images in run.replicas] for role, run in runs.items()}
    mobile = ~find_fixed(student.first)
    curves, faults = [], []
    for element in sorted(set(symbols[mobile])):
        values: dict[str, Any] = {"teacher": None, "teacher_blocks": None}
        moved, slopes = 0.0, []
        for role, run in runs.items():
            paths = [path[:, mobile & (symbols == element)] for path in followed[role]]
            step = INTERVAL * run.time_step * 1e-3
            msd = np.mean([measure_msd(path) for path in paths], axis=0)
            moved = max(moved, float(msd[-1]))
            if msd[-1] >= LEAST_MOVED:
                slopes.append((fit_exponent(msd), role))
            values["times"] = tuple((step * np.arange(len(msd))).tolist())
            values[role] = tuple(msd.tolist())
            parts = [b for path in paths for b in np.array_split(path, DIFFUSION_BLOCKS)]
            values[f"{role}_blocks"] = tuple(fit_diffusion(measure_msd(b), step) for b in parts)
        wrong = [
            f"that of the {role} grows as time to the power {slope:.2f}"
            for slope, role in slopes
            if not LINEAR[0] <= slope <= LINEAR[1]
        ]
        if not slopes:
            faults.append(f"{element} {moved:.2f} Å² over {values['times'][-1]:.2g} ps")
        elif wrong:
            faults.append(f"{element} not linear in time: {' and '.join(wrong)}")
        else:
            curves.append(DiffusionCurve(element=element, **values))
    if not curves:
        raise PropertyError(
            f"nothing diffuses, going by mean square displacements: {'; '.join(faults)}"
        )
    both = " on both sides" if teacher is not None else ""
    missing = f"; left out, by mean square displacement: {'; '.join(faults)}" if faults else ""
    return DiffusionItem(
        title="Diffusion",
        description=f"Slope of the mean square displacement over the second half of its times, {where} "
        f"(thermostat {FRICTION:g}/fs, which slows diffusion{both}); standard errors over "
        f"{DIFFUSION_BLOCKS * len(student.replicas)} blocks, no correction for the size of the cell{missing}"
        f"{_describe_absence(absence)}",
        temperature=temperature,
        curves=tuple(curves),
    )


def _follow(images: list[ase.Atoms]) -> np.ndarray:
    """Unwrapped positions less the centre of mass, unless atoms are fixed, (n_images, n_atoms, 3)."""
    masses = images[0].get_masses()[:, None]
    paths = np.array([atoms.positions for atoms in images])
    if find_fixed(images[0]).any():
        return paths
    drift = (paths * masses).sum(axis=1, keepdims=True) / masses.sum()
    result: np.ndarray = paths - drift
    return result


def measure_msd(paths: np.ndarray) -> np.ndarray:
    """Mean square displacement by lag up to half the run, averaged over time origins and atoms, Å^2."""
    lags = range(max(2, len(paths) // 2 + 1))
    return np.array(
        [
            np.square(paths[lag:] - paths[: len(paths) - lag]).sum(axis=2).mean() if lag else 0.0
            for lag in lags
        ]
    )


def fit_diffusion(msd: np.ndarray, step: float) -> float:
    """A sixth of the slope over the second half, Å^2/ps; ``step`` in ps (Einstein 1905)."""
    half = min(len(msd) // 2, len(msd) - 2)
    times = step * np.arange(len(msd))
    return float(np.polyfit(times[half:], msd[half:], 1)[0] / 6.0)


def fit_exponent(msd: np.ndarray) -> float:
    """Slope of log mean square displacement over log time, over the second half: 1 where atoms diffuse."""
    half = max(1, min(len(msd) // 2, len(msd) - 2))
    times = np.arange(len(msd))
    logs = np.log(np.maximum(msd[half:], 1e-12))
    return float(np.polyfit(np.log(times[half:]), logs, 1)[0])
