"""Carrying out a sampling plan: structures are made, labelled by the teacher and stored.

Here: :func:`run_sampling` and :func:`measure_teacher`. Not here: deciding what to label
(:mod:`fastff.distill.planning`), integrating (:mod:`fastff.distill.dynamics`).

Everything is resumable from the label file alone. Structures are the same for the same plan, and those that the file
holds are not labelled again; trajectories continue from their last stored frames, which carry momenta.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ase
import numpy as np

from fastff.distill.cells import PRESSED, draw_strain, hold_apart, press_pairs, strain_cell
from fastff.distill.constraints import hold_atoms
from fastff.distill.dynamics import Replica, draw_momenta, run_langevin
from fastff.distill.harmonic import HarmonicModel, fit_harmonic
from fastff.distill.jobs import count_batch_atoms
from fastff.distill.plan import N_PROBES, PlannedDynamics, PlannedReplica, SamplingPlan
from fastff.distill.planning import plan_sampling
from fastff.distill.store import LabelStore
from fastff.errors import DataError
from fastff.labels import Frame, Labels
from fastff.md.state import find_fixed

__all__ = [
    "SamplingProgress",
    "SamplingReport",
    "measure_teacher",
    "plan_sampling",
    "run_sampling",
]

PROBE_AMPLITUDE = 0.04
"""Å; standard deviation of the displacements from which springs are fitted."""
REPLICA_STRAIN = 0.02
"""Each replica and thermal draw is strained by up to this much, and sheared by half of it."""

_KINDS = ("seed", "rattle", "strain", "shear", "close-contact", "thermal", "dynamics")


class LabelsStructures(Protocol):
    """What sampling needs of a teacher."""

    def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
        """Label structures, in order."""


@dataclass(frozen=True)
class SamplingProgress:
    """State of a running sampling.

    Attributes
    ----------
    kind : str
        What is being labelled.
    done, total : int
        Teacher evaluations done, those found in the label file included, and planned.
    n_frames : int
        Frames in the label file.
    """

    kind: str
    done: int
    total: int
    n_frames: int


@dataclass(frozen=True)
class SamplingReport:
    """What became of a plan; ``str(report)`` is a few lines.

    Attributes
    ----------
    n_labelled : int
        Structures the teacher labelled in this run.
    n_found : int
        Planned evaluations that an earlier run had done.
    n_frames, n_quarantined : int
        Frames in the label file, and frames set aside there.
    stopped : tuple of str
        Replicas that blew up, and why.
    misfits : tuple of float
        For each cell, the relative error of the forces of its springs.
    seconds : float
        Wall time.
    """

    n_labelled: int
    n_found: int
    n_frames: int
    n_quarantined: int
    stopped: tuple[str, ...]
    misfits: tuple[float, ...]
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.n_labelled} structures labelled in {self.seconds:.0f} s"
            + (f", {self.n_found} found in the label file" if self.n_found else ""),
            f"{self.n_frames} frames stored"
            + (f", {self.n_quarantined} set aside" if self.n_quarantined else ""),
        ]
        return "\n".join([*lines, *(f"stopped: {reason}" for reason in self.stopped)])


def measure_teacher(
    teacher: LabelsStructures, plan: SamplingPlan, store: LabelStore
) -> SamplingPlan:
    """Return the plan with the teacher's time per atom, measured on structures the plan needs anyway.

    Labels and stores the first cell and its rattled copies. The last of them is timed: compiled teachers need two calls
    to warm up. If they are stored already, the last one is labelled for warming up, and once more.
    """
    sampler = _Sampler(teacher, plan, store, None)
    sampler.label_static("seed", [(0, 0)])
    sampler.label_static("rattle", [(0, copy) for copy in range(N_PROBES - 1)])
    probe = sampler.build("rattle", 0, N_PROBES - 1)
    for _ in range(N_PROBES - sampler.n_labelled):
        teacher.label([probe])
    start = time.perf_counter()
    labels = teacher.label([probe])
    seconds = time.perf_counter() - start
    sampler.store_static("rattle", [(0, N_PROBES - 1)], [probe], labels)
    return replace(plan, seconds_per_atom=seconds / len(probe))


def run_sampling(
    teacher: LabelsStructures,
    plan: SamplingPlan,
    store: LabelStore,
    *,
    on_progress: Callable[[SamplingProgress], None] | None = None,
) -> SamplingReport:
    """Label what is planned and store it, continuing where the label file stops.

    Parameters
    ----------
    teacher : Teacher
        Anything with ``label(structures) -> list[Labels]``.
    plan : SamplingPlan
        From :func:`plan_sampling`.
    store : LabelStore
        Open for appending.
    on_progress : callable, optional
        Called after each batch of labels.

    Returns
    -------
    SamplingReport
        Counts, and replicas that blew up. Labels that are not finite or exceed the plan's force limit are in the label
        file's quarantine.

    Raises
    ------
    DataError
        The teacher cannot label a cell as given.
    """
    start = time.perf_counter()
    sampler = _Sampler(teacher, plan, store, on_progress)
    n_cells = len(plan.cells)
    probes = [(cell, copy) for cell in range(n_cells) for copy in range(N_PROBES)]
    sampler.label_static("seed", [(cell, 0) for cell in range(n_cells)])
    sampler.label_static("rattle", probes)
    for cell in range(n_cells):
        sampler.fit_springs(cell)
    for kind, count in plan.counts.items():
        if kind != "seed":
            jobs = [(number % n_cells, number // n_cells) for number in range(count)]
            if kind == "rattle":
                jobs = [job for job in jobs if job[1] >= N_PROBES]
            sampler.label_static(kind, jobs)
    for group in plan.dynamics:
        sampler.run_dynamics(group)
    return SamplingReport(
        n_labelled=sampler.n_labelled,
        n_found=sampler.n_found,
        n_frames=len(store),
        n_quarantined=store.n_quarantined,
        stopped=tuple(sampler.stopped),
        misfits=tuple(sampler.springs[cell].misfit for cell in range(n_cells)),
        seconds=time.perf_counter() - start,
    )


Job = tuple[int, int]
"""Cell, and number of the structure of one kind in that cell."""


class _Sampler:
    """Makes, labels and stores structures of one plan."""

    def __init__(
        self,
        teacher: LabelsStructures,
        plan: SamplingPlan,
        store: LabelStore,
        on_progress: Callable[[SamplingProgress], None] | None,
    ) -> None:
        self.teacher, self.plan, self.store = teacher, plan, store
        self.on_progress = on_progress
        self.springs: dict[int, HarmonicModel] = {}
        self.stopped: list[str] = []
        self.n_labelled = self.n_found = 0

    # --- structures that are not from dynamics ---

    def build(self, kind: str, cell: int, number: int) -> ase.Atoms:
        """Make structure ``number`` of a kind in a cell, without constraints.

        Fixed atoms stay where they are in the cell, strained or not, but for those that close contacts push together.
        """
        plan, rng = self.plan, self._make_rng(kind, cell, number)
        fixed = find_fixed(plan.cells[cell].atoms)
        base = replace(plan.cells[cell], atoms=plan.cells[cell].atoms.copy())
        base.atoms.set_constraint()
        count = max(1, -(-plan.counts.get(kind, 1) // len(plan.cells)))
        position = (number + 0.5) / count  # evenly over the range of the kind
        low, high = plan.temperatures
        if kind == "seed":
            return base.atoms
        if kind == "rattle":
            amplitude = PROBE_AMPLITUDE if number < N_PROBES else 0.03 + 0.07 * position
            moves = rng.normal(scale=amplitude, size=(len(base.atoms), 3))
            moves[fixed] = 0.0
            return _displace(base.atoms, moves)
        if kind == "strain":
            strain = plan.max_strain * (2 * position - 1) * np.eye(3)
            temperature = float(rng.uniform(0, low + 0.5 * (high - low)))
        elif kind == "shear":
            strain = draw_strain(rng, 0.0, plan.max_shear)
            temperature = float(rng.uniform(0, low + 0.5 * (high - low)))
        elif kind == "close-contact":
            strain, temperature = np.zeros((3, 3)), low
        else:
            strain = draw_strain(rng, REPLICA_STRAIN, 0.5 * REPLICA_STRAIN)
            temperature = low + position * (plan.overheat * high - low)
        moves = self.springs[cell].draw(temperature, rng)
        atoms = _displace_apart(strain_cell(base, strain), moves)
        if kind == "close-contact":
            pressed = press_pairs(atoms, PRESSED + 0.25 * position, rng, number)
            return pressed or atoms
        return atoms

    def label_static(self, kind: str, jobs: Sequence[Job]) -> None:
        """Make, label and store structures of one kind, in batches; those stored already are passed over."""
        batch: list[Job] = []
        structures: list[ase.Atoms] = []
        for index, (cell, number) in enumerate(jobs):
            atoms = self.build(kind, cell, number)
            if self.store.has(atoms):
                self._count(kind, found=1)
            else:
                batch.append((cell, number))
                structures.append(atoms)
            full = sum(map(len, structures)) + len(atoms) > count_batch_atoms(self.teacher)
            if structures and (full or index == len(jobs) - 1):
                self.store_static(kind, batch, structures, self.teacher.label(structures))
                self._count(kind, labelled=len(batch))
                batch, structures = [], []

    def store_static(
        self,
        kind: str,
        jobs: Sequence[Job],
        structures: Sequence[ase.Atoms],
        labels: Sequence[Labels],
    ) -> None:
        """Store labelled structures of one kind, each a trajectory of its own."""
        frames = []
        for (cell, number), atoms, label in zip(jobs, structures, labels, strict=True):
            index = self._index(kind, cell, number)
            frames.append(
                Frame(atoms, label, kind, self.plan.number_trajectory(index), float("nan"), -1)
            )
        self.store.append(frames, force_limit=self.plan.max_force)

    def fit_springs(self, cell: int) -> None:
        """Fit the springs of a cell to the stored labels of the cell and its probes."""
        atoms = self.build("seed", cell, 0)
        reference = self.store.find(atoms)
        if reference is None:
            reasons = [
                reason
                for frame, reason in self.store.read_quarantine()
                if len(frame.atoms) == len(atoms)
            ]
            raise DataError(
                f"the teacher cannot label {self.plan.cells[cell]} as given: {reasons[-1]}. "
                "Check the structure, or relax it first"
            )
        probes = [self.store.find(self.build("rattle", cell, copy)) for copy in range(N_PROBES)]
        usable = [(frame.atoms, frame.labels) for frame in probes if frame is not None]
        if not usable:
            raise DataError(
                f"the teacher's labels of rattled copies of {self.plan.cells[cell]} are unusable"
            )
        self.springs[cell] = fit_harmonic(self.plan.cells[cell].atoms, reference.labels, usable)

    # --- dynamics ---

    def run_dynamics(self, group: PlannedDynamics) -> None:
        """Run, or continue, the replicas of a group."""
        replicas = [self._start_replica(planned) for planned in group.replicas]
        found = self._resume(replicas)
        if found:
            self._count("teacher-md", found=found)

        def store_frames(frames: list[Frame]) -> None:
            self.store.append(frames, held_out=group.held_out)

        run_langevin(
            replicas,
            self.teacher.label,
            group.settings,
            source="teacher-md",
            on_frames=store_frames,
            on_step=lambda count: self._count("teacher-md", labelled=count),
        )
        for replica, planned in zip(replicas, group.replicas, strict=True):
            if replica.stopped:
                cell = self.plan.cells[planned.cell]
                self.stopped.append(
                    f"replica {planned.index} (seed {cell.seed_index}, {planned.temperature:.0f} K): {replica.stopped}"
                )

    def _start_replica(self, planned: PlannedReplica) -> Replica:
        plan, rng = self.plan, self._make_rng("dynamics", planned.cell, planned.index)
        strain = draw_strain(rng, REPLICA_STRAIN, 0.5 * REPLICA_STRAIN)
        moves = self.springs[planned.cell].draw(planned.temperature, rng)
        atoms = _displace_apart(strain_cell(plan.cells[planned.cell], strain), moves)
        trajectory = plan.number_trajectory(plan.n_static + planned.index)
        momenta = draw_momenta(atoms, planned.temperature, plan.seed, trajectory)
        atoms.set_momenta(momenta)
        return Replica(atoms, planned.temperature, trajectory)

    def _resume(self, replicas: Sequence[Replica]) -> int:
        """Set replicas to their last stored frames; return the evaluations this saves.

        All running replicas are stored at the same steps. One that is behind the others had blown up.
        """
        trajectories = self.store.read_column("trajectory")
        steps = self.store.read_column("step")
        saved = 0
        for replica in replicas:
            own = np.flatnonzero(trajectories == replica.trajectory)
            if len(own):
                frame = self.store.read([int(own[np.argmax(steps[own])])])[0]
                replica.atoms = hold_atoms(frame.atoms, replica.atoms)
                replica.labels, replica.step = frame.labels, frame.step
                saved += frame.step + 1
        last = max((replica.step for replica in replicas if replica.labels), default=0)
        for replica in replicas:
            if last and replica.step < last:
                replica.stopped = f"blew up after step {replica.step} in an earlier run"
        return saved

    # --- bookkeeping ---

    def _make_rng(self, kind: str, cell: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.plan.seed, _KINDS.index(kind), cell, number])

    def _index(self, kind: str, cell: int, number: int) -> int:
        """Number of a static structure within the plan."""
        before = 0
        for other, count in self.plan.counts.items():
            if other == kind:
                break
            before += count
        return before + number * len(self.plan.cells) + cell

    def _count(self, kind: str, labelled: int = 0, found: int = 0) -> None:
        self.n_labelled += labelled
        self.n_found += found
        if self.on_progress:
            done = self.n_labelled + self.n_found
            self.on_progress(SamplingProgress(kind, done, self.plan.n_evaluations, len(self.store)))


def _displace(atoms: ase.Atoms, moves: Any) -> ase.Atoms:
    moved = atoms.copy()
    moved.positions += moves
    return moved


def _displace_apart(atoms: ase.Atoms, moves: Any) -> ase.Atoms:
    return _displace(atoms, hold_apart(atoms, moves))
