"""What ``bench/recipes.py`` measures of a finished student: accuracy, endurance, pair distributions.

Here: measurements, each a list of flat rows. Not here: distillation, clocks and records (``bench/recipes.py``).
"""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastff.checkpoint import write_atomically
from fastff.distill.cells import SampleCell, classify_cell
from fastff.distill.explore import ExploreSettings, Walker, explore
from fastff.distill.ladder import choose_evenly
from fastff.report.judging import Run, ignore_progress, judge_dynamics
from fastff.report.metrics import Accuracy
from fastff.report.physics.derive import PropertyError, derive_quantities
from fastff.report.physics.endurance import run_own
from fastff.report.physics.motion import (
    INTERVAL,
    Dynamics,
    compare_distributions,
    count_steps,
    run_side,
)
from fastff.report.physics.side import Side
from fastff.report.plan import BenchPlan, choose_seeds

if TYPE_CHECKING:
    import ase

    from fastff.models import Student
    from fastff.teachers import Teacher

Row = dict[str, Any]
N_REPLICAS = 8
CHECK = 100.0
"""fs between looks at distances; forces and displacements are looked at in every step."""
FIRST_CHECKS, SEGMENT_SECONDS = 50, 15.0
"""Checks of the first segment, which shows the speed, and seconds of the others."""
MOST_PICOSECONDS = 50.0
"""Of each replica whose pair distributions are compared."""
PAIR_ATOMS = 2048
"""About as many atoms are evaluated together for these: a GPU takes hardly longer than for a quarter of them."""
SEED = 20_009
DIFFERENCE = ", difference of g(r)"


def describe_accuracy(group: str, accuracy: Accuracy) -> Row:
    """Accuracies of one group of frames as fractions; force error in eV/Å."""
    return {
        "group": group,
        "force": accuracy.force,
        "energy": accuracy.energy,
        "stress": accuracy.stress,
        "overall": accuracy.overall,
        "force_mae": accuracy.force_mae,
        "n_frames": accuracy.n_frames,
    }


def judge_afresh(
    path: Path, student: Student, teacher: Teacher, seeds: Sequence[ase.Atoms], seconds: float
) -> tuple[list[Row], list[str]]:
    """Accuracy on dynamics that the teacher makes for this student, as ``fastff bench`` does, and remarks.

    Within the range of temperatures, at 1.5 times its highest, strained by ±5 %, and in a cell twice as large.
    ``seconds`` within which all these runs are made longer than the shortest sensible ones.
    """
    plan = BenchPlan(dynamics_budget=seconds)
    run = Run(path, student, plan, ignore_progress, teacher)
    sets, _ = judge_dynamics(run, choose_seeds(student.header, seeds), None)
    rows = [
        describe_accuracy(comparison.name, comparison.read_accuracy()) for comparison, _ in sets
    ]
    return rows, run.notes


@dataclass
class Endurance:
    """Replicas on their way, kept in a file so that they go on after an interruption.

    Attributes
    ----------
    positions : numpy.ndarray
        Å, of all replicas, shape (n_atoms, 3).
    failed : numpy.ndarray
        Step at which each replica failed, -1 for those that have not; shape (n_replicas,).
    done : int
        Steps of the replicas that have not failed, or of the last one that did.
    seconds : float
        Spent so far.
    """

    positions: np.ndarray
    failed: np.ndarray
    done: int = 0
    seconds: float = 0.0

    @classmethod
    def read(cls, path: Path, starts: Sequence[ase.Atoms]) -> Endurance:
        """From a file if it is there, else at the starts."""
        if not path.exists():
            positions = np.concatenate([atoms.positions for atoms in starts])
            return cls(positions, np.full(len(starts), -1))
        with np.load(path, allow_pickle=False) as kept:
            return cls(kept["positions"], kept["failed"], int(kept["done"]), float(kept["seconds"]))

    def write(self, path: Path) -> None:
        """In one piece."""
        stream = io.BytesIO()
        np.savez(
            stream,
            positions=self.positions,
            failed=self.failed,
            done=self.done,
            seconds=self.seconds,
        )
        write_atomically(path, stream.getvalue())


def measure_endurance(
    student: Student,
    cells: Sequence[SampleCell],
    temperature: float,
    timestep: float,
    picoseconds: float,
    seconds: float,
    path: Path,
) -> Row:
    """Langevin dynamics of eight replicas in one batch until ``picoseconds`` or ``seconds`` of computing are over.

    A replica fails as a walker of a round blows up: a force above 100 eV/Å, a move of more than 0.5 Å in a step, two
    atoms nearer than half the sum of their covalent radii, looked for every 100 fs. It runs in segments of some
    seconds; velocities are drawn anew at the start of each, which the thermostat (0.02/fs) does in 50 fs anyway.

    Parameters
    ----------
    student : Student
        On the device to be used.
    cells : sequence of SampleCell
        Replicas start from these in turn, from some of them where there are more.
    temperature : float
        K.
    timestep : float
        fs.
    picoseconds : float
        Wanted length of each replica.
    seconds : float
        Of computing, those before an interruption included.
    path : Path
        Where the replicas are kept after every segment.
    """
    moving = copy.deepcopy(student)
    moving.uncertainty = None  # nothing is decided by it, and every look would measure it
    chosen = choose_evenly(cells, N_REPLICAS)
    starts = [chosen[k % len(chosen)].atoms for k in range(N_REPLICAS)]
    check = max(1, round(min(CHECK, 1000.0 * picoseconds) / timestep))
    n_steps = check * max(1, round(1000.0 * picoseconds / timestep / check))
    state = Endurance.read(path, starts)
    length = FIRST_CHECKS * check
    while state.done < n_steps and state.seconds < seconds and (state.failed < 0).any():
        began = time.perf_counter()
        length = max(check, min(length, n_steps - state.done) // check * check)
        settings = ExploreSettings(length, timestep, check, length, seed=SEED + state.done)
        run_segment(moving, state, starts, temperature, settings)
        spent = time.perf_counter() - began
        state.seconds += spent
        state.write(path)
        length = check * max(FIRST_CHECKS, int(SEGMENT_SECONDS * length / spent / check))
    return describe_endurance(state, starts, temperature, timestep, n_steps)


def run_segment(
    student: Student,
    state: Endurance,
    starts: Sequence[ase.Atoms],
    temperature: float,
    settings: ExploreSettings,
) -> None:
    """Move the replicas that have not failed by ``settings.n_steps``, in place; ``temperature`` in K."""
    bounds = np.cumsum([0, *(len(atoms) for atoms in starts)])
    alive = np.flatnonzero(state.failed < 0).tolist()
    walkers = []
    for k in alive:
        atoms = starts[k].copy()
        atoms.positions = state.positions[bounds[k] : bounds[k + 1]]
        walkers.append(Walker(atoms, temperature, k, "test"))
    found = explore(student, walkers, settings)
    for snapshot in found.snapshots:
        if snapshot.step == settings.n_steps:
            k = alive[snapshot.walker]
            state.positions[bounds[k] : bounds[k + 1]] = snapshot.atoms.positions
    for k, ending in zip(alive, found.endings, strict=True):
        if ending.reason:
            state.failed[k] = state.done + ending.step
    state.done = (
        int(state.failed.max()) if (state.failed >= 0).all() else state.done + settings.n_steps
    )


def describe_endurance(
    state: Endurance, starts: Sequence[ase.Atoms], temperature: float, timestep: float, n_steps: int
) -> Row:
    """How far the replicas came, and which failed when."""
    failed = state.failed[state.failed >= 0]
    return {
        "temperature": temperature,
        "n_replicas": len(starts),
        "n_atoms": sum(len(atoms) for atoms in starts),
        "timestep": timestep,
        "wanted_ps": n_steps * timestep * 1e-3,
        "ps": state.done * timestep * 1e-3,
        "n_failed": len(failed),
        "first_failure_ps": float(failed.min()) * timestep * 1e-3 if len(failed) else None,
        "failures_ps": [
            None if step < 0 else step * timestep * 1e-3 for step in state.failed.tolist()
        ],
        "seconds": round(state.seconds, 1),
    }


def compare_pairs(
    student: Student,
    teacher: Teacher,
    cells: Sequence[SampleCell],
    temperature: float,
    timestep: float,
    seconds: float,
) -> list[Row]:
    """Pair distributions of both sides, replicas of about 2,048 atoms: the first crystal, the first disordered cell.

    The difference is that of ``fastff bench``: the integral of r² |g_student - g_teacher| over that of r² g_teacher, up
    to 6 Å; beside it what two equal systems would differ by, from errors over blocks. Both sides run as long as the
    teacher can in its share of ``seconds``, at most 50 ps after equilibration.
    """
    kinds: dict[str, SampleCell] = {}
    for cell in cells:
        if any(cell.axes):
            kinds.setdefault(classify_cell(cell), cell)
    rows = []
    for kind, cell in kinds.items():
        side = Side("teacher", teacher.label, {})
        n_replicas = max(N_REPLICAS, round(PAIR_ATOMS / len(cell.atoms)))
        each = side.estimate(cell.atoms, copies=n_replicas)
        affordable = INTERVAL * int(seconds / len(kinds) / each / INTERVAL)
        n_steps = min(affordable, count_steps(MOST_PICOSECONDS, timestep))
        dynamics = Dynamics(cell.atoms, temperature, timestep, n_steps, SEED, n_replicas)
        where = {
            "kind": kind,
            "formula": cell.atoms.get_chemical_formula(),
            "temperature": temperature,
        }
        try:
            runs = run_side(side, dynamics), run_own(student, dynamics)
            item = compare_distributions(*runs, list_pairs(cell.atoms), temperature)
        except PropertyError as error:
            rows.append({**where, "fault": str(error)})
            continue
        for quantity in derive_quantities(item):
            if quantity.name.endswith(DIFFERENCE) and quantity.student is not None:
                noise = quantity.student_error
                rows.append(
                    {
                        **where,
                        "pair": quantity.name.removesuffix(DIFFERENCE),
                        "difference": quantity.student / 100.0,
                        "noise": None if noise is None else noise / 100.0,
                        "ps": runs[0].length,
                        "n_replicas": n_replicas,
                    }
                )
    return rows


def list_pairs(atoms: ase.Atoms) -> list[tuple[str, str]]:
    """Pairs of elements that a structure holds: none of an element with itself where there is one atom of it."""
    symbols = atoms.get_chemical_symbols()
    return [
        (first, second)
        for first, second in combinations_with_replacement(sorted(set(symbols)), 2)
        if first != second or symbols.count(first) > 1
    ]
