"""What sampling is going to do, as a record that can be shown before it starts.

Here: :class:`SamplingPlan`. Not here: making one (:mod:`fastff.distill.planning`), carrying it out
(:mod:`fastff.distill.sampling`).

Equal plans give equal frames, and the plan's fingerprint numbers the trajectories, so that a run can continue where a
label file stops.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fastff.distill.cells import SampleCell
from fastff.distill.content import hash_structure
from fastff.distill.dynamics import LangevinSettings
from fastff.md.state import find_fixed

N_PROBES = 2
"""Rattled copies of each cell, from which its springs are fitted."""
PLAN_NUMBERS, ROUND_NUMBERS, WALKER_NUMBERS = 1 << 20, 1 << 19, 1 << 12
"""Trajectories that a plan may have; the number from which on they are a student's; those that each round may have."""


def find_round(trajectory: int) -> int:
    """The round whose walker made a trajectory; 0 for trajectories of the first sampling."""
    return max(0, trajectory % PLAN_NUMBERS - ROUND_NUMBERS) // WALKER_NUMBERS


def deal_out(count: int, n_cells: int, cell: int) -> range:
    """Return the numbers below ``count`` that fall to one cell when structures are dealt out in turn."""
    return range(cell, count, n_cells)


@dataclass(frozen=True)
class PlannedReplica:
    """One trajectory: its cell, its temperature (K) and its number within the plan."""

    cell: int
    temperature: float
    index: int


@dataclass(frozen=True)
class PlannedDynamics:
    """Replicas that advance together."""

    replicas: tuple[PlannedReplica, ...]
    settings: LangevinSettings
    held_out: bool

    @property
    def n_evaluations(self) -> int:
        """Structures to be labelled."""
        return len(self.replicas) * (self.settings.n_steps + 1)

    @property
    def n_frames(self) -> int:
        """Frames kept if no replica blows up."""
        first, stride = self.settings.first_kept, self.settings.stride
        return len(self.replicas) * len(
            [step for step in range(first, self.settings.n_steps + 1) if step % stride == 0]
        )


@dataclass(frozen=True)
class SamplingPlan:
    """What is going to be labelled; ``str(plan)`` is a table.

    Attributes
    ----------
    teacher : str
        Name of the teacher the plan was checked against.
    cells : tuple of SampleCell
        Cells to sample in.
    temperatures : tuple of float
        Lowest and highest temperature, K.
    overheat : float
        Thermal draws, and one in four replicas, go up to this many times the highest temperature.
    counts : dict
        Number of structures of each static kind: seed, rattle, strain, shear, close-contact, thermal.
    dynamics : tuple of PlannedDynamics
        Groups of replicas; those held out are for testing only.
    max_strain, max_shear : float
        Range of the strained cells.
    max_force : float
        eV/Å; labels with larger forces are set aside.
    seed : int
        Seed of every draw.
    seconds_per_atom : float
        Time of the teacher per atom, nan until measured.
    notes : tuple of str
        What the user should know.
    """

    teacher: str
    cells: tuple[SampleCell, ...]
    temperatures: tuple[float, float]
    overheat: float
    counts: dict[str, int]
    dynamics: tuple[PlannedDynamics, ...]
    max_strain: float = 0.05
    max_shear: float = 0.03
    max_force: float = 100.0
    seed: int = 0
    seconds_per_atom: float = math.nan
    notes: tuple[str, ...] = field(default=())

    @property
    def n_static(self) -> int:
        """Structures that are not from dynamics."""
        return sum(self.counts.values())

    @property
    def n_frames(self) -> int:
        """Frames that will be stored, held-out ones included, if none is set aside."""
        return self.n_static + sum(group.n_frames for group in self.dynamics)

    @property
    def n_held_out(self) -> int:
        """Frames for testing only."""
        return sum(group.n_frames for group in self.dynamics if group.held_out)

    @property
    def n_evaluations(self) -> int:
        """Structures the teacher will label."""
        return self.n_static + sum(group.n_evaluations for group in self.dynamics)

    @property
    def n_atom_evaluations(self) -> int:
        """Sum of the atoms of all structures the teacher will label."""
        sizes = [len(cell.atoms) for cell in self.cells]
        total = sum(
            len(deal_out(count, len(sizes), index)) * size
            for count in self.counts.values()
            for index, size in enumerate(sizes)
        )
        for group in self.dynamics:
            total += sum(sizes[r.cell] for r in group.replicas) * (group.settings.n_steps + 1)
        return total

    @property
    def seconds(self) -> float:
        """Estimated time of the teacher, s; nan until measured."""
        return self.seconds_per_atom * self.n_atom_evaluations

    @cached_property
    def fingerprint(self) -> int:
        """31-bit number that differs between plans that make different frames."""
        content = {
            "cells": [hash_structure(cell.atoms).hex() for cell in self.cells],
            "axes": [cell.axes for cell in self.cells],
            "temperatures": self.temperatures,
            "overheat": self.overheat,
            "counts": self.counts,
            "ranges": [self.max_strain, self.max_shear, self.seed],
            "dynamics": [repr(group) for group in self.dynamics],
        }
        fixed = [np.flatnonzero(find_fixed(cell.atoms)).tolist() for cell in self.cells]
        if any(fixed):
            content["fixed"] = fixed
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def number_trajectory(self, index: int) -> int:
        """Trajectory number, unique across plans, of the plan's trajectory ``index``."""
        return self.fingerprint * PLAN_NUMBERS + index

    def find_cell(self, trajectory: int) -> int | None:
        """Index of the cell that a trajectory of this plan is of; None for other trajectories."""
        index = trajectory - self.number_trajectory(0)
        for count in self.counts.values():
            if 0 <= index < count:
                return index % len(self.cells)
            index -= count
        return self._replica_cells.get(index)

    @cached_property
    def _replica_cells(self) -> dict[int, int]:
        return {one.index: one.cell for group in self.dynamics for one in group.replicas}

    def __str__(self) -> str:
        low, high = self.temperatures
        lines = [f"Sampling plan (teacher {self.teacher}, {low:g}-{high:g} K)"]
        lines += [f"  cell   {cell}" for cell in self.cells]
        lines.append(f"  {'kind':<22}{'frames':>8}{'evaluations':>13}   details")
        for kind, count in self.counts.items():
            if count:
                lines.append(f"  {kind:<22}{count:>8}{count:>13}   {self._describe(kind)}")
        for group in self.dynamics:
            kind = "teacher-md, held out" if group.held_out else "teacher-md"
            lines.append(
                f"  {kind:<22}{group.n_frames:>8}{group.n_evaluations:>13}   {_describe_dynamics(group)}"
            )
        lines.append(
            f"  {'total':<22}{self.n_frames:>8}{self.n_evaluations:>13}   {self._describe_time()}"
        )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _describe(self, kind: str) -> str:
        low, high = self.temperatures
        return {
            "seed": "cells as given",
            "rattle": "random displacements of 0.03-0.1 Å",
            "strain": f"volume strained by ±{100 * self.max_strain:g} % per axis",
            "shear": f"sheared by ±{100 * self.max_shear:g} %",
            "close-contact": "neighbors pushed to 0.65-0.9 of their distance, atoms that are not bonded nearer",
            "thermal": f"springs fitted to the teacher, {low:g}-{high * self.overheat:g} K",
        }[kind]

    def _describe_time(self) -> str:
        if math.isnan(self.seconds):
            return f"{self.n_atom_evaluations} atom evaluations"
        return f"about {self.seconds / 60:.1f} min of the teacher"


def _describe_dynamics(group: PlannedDynamics) -> str:
    settings = group.settings
    ladder = sorted({round(replica.temperature) for replica in group.replicas})
    span = f"{ladder[0]}-{ladder[-1]} K" if len(ladder) > 1 else f"{ladder[0]} K"
    return (
        f"{len(group.replicas)} replicas at {span}, {settings.n_steps} steps of {settings.timestep:g} fs, "
        f"a frame every {settings.stride}"
    )
