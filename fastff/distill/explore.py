"""Dynamics driven by a student, many structures at once, to find out what it meets.

Here: :class:`Walker` and :func:`explore`. Not here: where walkers start and what is labelled
(:mod:`fastff.distill.harvest`), dynamics driven by a teacher (:mod:`fastff.distill.dynamics`), long simulations
(:mod:`fastff.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import ase
import numpy as np
import torch
from torch import Tensor

from fastff.batch_lists import DeviceLists, HostLists
from fastff.batches import BatchEvaluator
from fastff.distill.dynamics import draw_momenta
from fastff.distill.looks import look_at
from fastff.errors import UsageError
from fastff.graph import find_largest, select_structures
from fastff.kernels.replay import Replay, hold_weakly
from fastff.md.state import find_fixed
from fastff.models import Student
from fastff.packed import Systems
from fastff.units import BOLTZMANN_EV_PER_K, FEMTOSECOND

Use = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ExploreSettings:
    """How to integrate, and when a walker has gone too far.

    Attributes
    ----------
    n_steps : int
    timestep : float
        fs.
    check : int
        Steps between looks at uncertainty and distances.
    stride : int
        Snapshots are kept at multiples of this step, itself a multiple of ``check``.
    friction : float
        1/fs.
    max_force : float
        eV/Å, of an atom. Beyond, as beyond the next two, a walker has blown up.
    max_move : float
        Å, of an atom in one step.
    min_contact : float
        Distance of two atoms over the sum of their covalent radii.
    stop_grade : float
        Extrapolation grade beyond which a walker for training ends; as many times its grade at the start, if that is
        above one.
    seed : int
    """

    n_steps: int
    timestep: float
    check: int
    stride: int
    friction: float = 0.02
    max_force: float = 100.0
    max_move: float = 0.5
    min_contact: float = 0.5
    stop_grade: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_steps, self.check, self.stride) < 1 or self.stride % self.check:
            raise UsageError(
                f"exploration of {self.n_steps} steps, checks every {self.check} and snapshots every {self.stride} "
                "makes no sense; need positive numbers, the last a multiple of the second"
            )


@dataclass(frozen=True)
class Walker:
    """One structure to be moved: start, temperature in K, trajectory number, what its frames are for.

    ``hot`` marks temperatures above the range of interest, ``kind`` what it is a walker of. Only walkers for training
    end where the student extrapolates; the others show what a user's simulation would meet. Atoms that FixAtoms holds
    stay where they are; there may be no other constraint.
    """

    atoms: ase.Atoms
    temperature: float
    trajectory: int
    use: Use = "train"
    hot: bool = False
    kind: str = ""


@dataclass(frozen=True)
class Snapshot:
    """A structure on a walker's way.

    Attributes
    ----------
    atoms : ase.Atoms
        Without momenta and constraints.
    walker, step : int
    grade : float
        Largest extrapolation grade of an atom; nan if the student has no uncertainty.
    spread : float
        Standard deviation of the energy, eV/atom; nan likewise.
    urgent : bool
        Just before a blow-up.
    """

    atoms: ase.Atoms
    walker: int
    step: int
    grade: float
    spread: float
    urgent: bool = False


@dataclass(frozen=True)
class Ending:
    """How far a walker came, and why it ended: ``""`` (all steps done), ``"extrapolation"`` or ``"blow-up"``."""

    step: int
    reason: str = ""


@dataclass(frozen=True)
class Exploration:
    """Snapshots in the order of walkers and steps, and the ending of every walker."""

    snapshots: tuple[Snapshot, ...]
    endings: tuple[Ending, ...]

    def join(self, other: Exploration) -> Exploration:
        """Both, the other's walkers numbered after these."""
        n_walkers = len(self.endings)
        moved = tuple(replace(s, walker=s.walker + n_walkers) for s in other.snapshots)
        return Exploration(self.snapshots + moved, self.endings + other.endings)


def explore(
    student: Student,
    walkers: Sequence[Walker],
    settings: ExploreSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> Exploration:
    """Move walkers with a student's forces.

    The integrator is BAOAB (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013)). The last two checked
    structures before a blow-up are always kept, as urgent, and so is the first one that extrapolates with its
    predecessor.

    Parameters
    ----------
    student : Student
        On the device to be used; with its uncertainty, if walkers are to end where it extrapolates.
    walkers : sequence of Walker
    settings : ExploreSettings
    on_step : callable, optional
        Told of the steps done and planned, at every check.

    Notes
    -----
    The same seed gives the same noise on devices of the same kind, not on a CPU and a GPU.
    """
    run = _Run(student, walkers, settings)
    for step in range(1, settings.n_steps + 1):
        run.advance()
        if step % settings.check == 0 or step == settings.n_steps:
            run.look(step)
            if on_step:
                on_step(step, settings.n_steps)
            if not run.is_running():
                break
    return run.finish()


class _Look(NamedTuple):
    """What a look at a walker found: its step, positions (n_atoms, 3) in Å, extrapolation grade, spread in eV/atom."""

    step: int
    positions: np.ndarray
    grade: float
    spread: float


class _Run:
    """Walkers as one batch on the student's device; those that ended stand still. ``lists`` as of BatchEvaluator.

    What a step changes stays in its buffers: on CUDA both parts of a step are replayed from graphs. Fixed atoms have no
    momenta, no noise and no forces here, so that a step leaves their positions alone.
    """

    def __init__(
        self,
        student: Student,
        walkers: Sequence[Walker],
        settings: ExploreSettings,
        lists: type[HostLists | DeviceLists] | None = None,
    ) -> None:
        self.student, self.walkers, self.settings = student, walkers, settings
        self.device = student.device
        self.evaluator = BatchEvaluator(student, lists=lists)
        sizes = [len(walker.atoms) for walker in walkers]
        self.bounds = np.cumsum([0, *sizes])
        momenta = [
            draw_momenta(w.atoms, w.temperature, settings.seed, w.trajectory) for w in walkers
        ]
        self.momenta = self._put(np.concatenate(momenta))
        self.masses = self._put(np.concatenate([w.atoms.get_masses() for w in walkers]))[:, None]
        temperatures = self._put(
            np.repeat([BOLTZMANN_EV_PER_K * w.temperature for w in walkers], sizes)
        )
        fixed = np.concatenate([find_fixed(w.atoms) for w in walkers])
        self.mobile = torch.as_tensor(~fixed, device=self.device)[:, None]
        self.thermal = (self.masses * temperatures[:, None]).sqrt() * self.mobile
        self.systems = Systems(
            positions=self._put(np.concatenate([w.atoms.positions for w in walkers])),
            numbers=torch.as_tensor(
                np.concatenate([w.atoms.numbers for w in walkers]), device=self.device
            ),
            cells=self._put(np.stack([w.atoms.cell.array for w in walkers])),
            pbc=torch.as_tensor(np.stack([w.atoms.pbc for w in walkers]), device=self.device),
            batch=torch.as_tensor(np.repeat(np.arange(len(walkers)), sizes), device=self.device),
        )
        self.running = torch.ones(len(walkers), dtype=torch.bool, device=self.device)
        self.ended = torch.zeros(len(walkers), dtype=torch.int64, device=self.device)
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.random = torch.Generator(self.device).manual_seed(settings.seed)
        first = self.evaluator.evaluate(self.systems)
        self.forces, self.found = first.forces * self.mobile, first
        self.half, self.noise = torch.empty_like(self.momenta), torch.empty_like(self.momenta)
        self.going = self.running.clone()
        self.looked, self.sound = 0, self._copy_state()
        self._begin_step = Replay(hold_weakly(self._begin), self.device)
        self._finish_step = Replay(hold_weakly(self._finish), self.device)
        self.endings: dict[int, Ending] = {}
        self.recent: list[list[_Look]] = [[] for _ in walkers]
        self.kept: list[dict[int, Snapshot]] = [{} for _ in walkers]
        starts = look_at(student, [walker.atoms for walker in walkers], self.evaluator.make_graph())
        self.limits = [settings.stop_grade * max(1.0, grade) for _, grade, _ in starts]

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float64), device=self.device)

    def _find_largest(self, per_atom: Tensor) -> Tensor:
        """Largest length of a vector per atom (n_atoms, 3) in each structure; nan where any is nan."""
        return find_largest(per_atom, self.systems.batch, len(self.walkers))

    def _list_state(self) -> list[Tensor]:
        """What steps change."""
        return [
            self.systems.positions,
            self.momenta,
            self.forces,
            self.running,
            self.ended,
            self.step,
        ]

    def _copy_state(self) -> tuple[list[Tensor], Tensor]:
        return [part.clone() for part in self._list_state()], self.random.get_state()

    def _settle(self, step: int) -> None:
        """Take the steps since the last look once more, if lists had no room for neighbors meanwhile."""
        while self.evaluator.was_void():
            for part, kept in zip(self._list_state(), self.sound[0], strict=True):
                part.copy_(kept)
            self.random.set_state(self.sound[1])
            for _ in range(step - self.looked):
                self.advance()

    def advance(self) -> None:
        """One step of those that are running, without looking and without waiting for the device."""
        self.noise.normal_(generator=self.random)
        self._begin_step()
        found = self.evaluator.evaluate(self.systems, only_moved=True, lazy=True)
        self.found.forces.copy_(found.forces)
        self.found.energy.copy_(found.energy)
        self._finish_step()

    def _begin(self) -> None:
        """A step up to the new positions."""
        settings, positions = self.settings, self.systems.positions
        half = 0.5 * settings.timestep * FEMTOSECOND
        momenta = self.momenta + half * self.forces
        new = positions + half * momenta / self.masses
        decay = math.exp(-settings.friction * settings.timestep)
        momenta = decay * momenta + math.sqrt(1 - decay**2) * self.thermal * self.noise
        new = new + half * momenta / self.masses
        moved = self._find_largest(new - positions)
        self.going.copy_(self.running & (moved <= settings.max_move))  # False for nan
        moving = self.going[self.systems.batch][:, None]
        self.half.copy_(momenta)
        positions.copy_(torch.where(moving, new, positions))

    def _finish(self) -> None:
        """The rest of it, given what was found there."""
        settings, found = self.settings, self.found
        half = 0.5 * settings.timestep * FEMTOSECOND
        self.step.add_(1)
        sound = self._find_largest(found.forces) <= settings.max_force
        still = self.going & sound & found.energy.isfinite()
        moving = self.going[self.systems.batch][:, None] & self.mobile
        self.forces.copy_(torch.where(moving, found.forces, self.forces))
        self.momenta.copy_(torch.where(moving, self.half + half * found.forces, self.momenta))
        self.ended.copy_(torch.where(self.running & ~still, self.step, self.ended))
        self.running.copy_(still)

    def look(self, step: int) -> None:
        """Measure uncertainty and distances of those that are running; end those that have gone too far.

        To be called from time to time: if lists turn out too narrow, all steps since the last look are taken again.
        """
        self._settle(step)
        running, ended = torch.stack([self.running.long(), self.ended]).tolist()
        positions = self.systems.positions.cpu().numpy()
        alive: list[int] = []
        for k in range(len(self.walkers)):
            if k in self.endings:
                continue
            if running[k]:
                alive.append(k)
            else:
                self._end(k, ended[k], "blow-up")
        if not alive:
            return
        graph = select_structures(self.evaluator.make_graph(), alive)
        looks = look_at(self.student, [self.walkers[k].atoms for k in alive], graph)
        for k, (contact, grade, spread) in zip(alive, looks, strict=True):
            if contact < self.settings.min_contact:
                self._end(k, step, "blow-up")
                continue
            own = positions[self.bounds[k] : self.bounds[k + 1]].copy()
            self.recent[k] = [*self.recent[k][-1:], _Look(step, own, grade, spread)]
            if step % self.settings.stride == 0:
                self._keep(k, self.recent[k][-1])
            if self.walkers[k].use == "train" and grade > self.limits[k]:
                self._end(k, step, "extrapolation")
        self.looked, self.sound = step, self._copy_state()

    def _keep(self, k: int, look: _Look, *, urgent: bool = False) -> None:
        atoms = self.walkers[k].atoms.copy()
        atoms.arrays.pop("momenta", None)
        atoms.set_constraint()
        atoms.positions = look.positions
        self.kept[k][look.step] = Snapshot(atoms, k, look.step, look.grade, look.spread, urgent)

    def _end(self, k: int, step: int, reason: str) -> None:
        self.endings[k] = Ending(step, reason)
        self.running[k] = False
        for look in self.recent[k]:
            self._keep(k, look, urgent=reason == "blow-up")

    def is_running(self) -> bool:
        """Whether any walker has not ended."""
        return len(self.endings) < len(self.walkers)

    def finish(self) -> Exploration:
        """What was found."""
        snapshots = [kept[step] for kept in self.kept for step in sorted(kept)]
        endings = [
            self.endings.get(k, Ending(self.settings.n_steps)) for k in range(len(self.walkers))
        ]
        return Exploration(tuple(snapshots), tuple(endings))
