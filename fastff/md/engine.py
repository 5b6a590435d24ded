"""Running steps in chunks without waiting for the device.

Here: :class:`Engine`. Not here: equations (:mod:`fastff.md.integrators`), files, guards that look at results.

One iteration is: first half of a step, test of the neighbor list, forces, second half. Every change is predicated on
flags that live on the device. When the list may miss a pair, the first half is done and the second is not; further
iterations change nothing, until the host, which reads the flags once per chunk, has rebuilt the list. The next
iteration then completes the step. No step is lost and none uses a list that misses a pair; where chunks end does not
matter. On CUDA lists are also renewed at multiples of a number of steps, about as often as they are expected to end: an
evaluation with a list that has just ended is lost. There an iteration, an observation, and reading the flags, are
graphs, and at constant volume both halves are kernels of :mod:`fastff.kernels.md_step`; elsewhere they are torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastff.errors import SimulationUnstableError
from fastff.kernels import dispatch
from fastff.kernels.md_step.op import OP, StepKernels
from fastff.kernels.replay import Fork, Replay, hold_weakly
from fastff.md.integrators import Integrator
from fastff.md.observe import COLUMNS, measure_row
from fastff.md.pacing import Pacer
from fastff.md.protocol import DevicePotential
from fastff.md.settings import MDSettings
from fastff.md.skin import estimate_lifetime
from fastff.md.state import State

_N_ROWS = 128
_LONGEST_CHUNK = 256
_PRUDENCE = 0.85
"""Share of the expected lifetime of a list after which it is renewed."""


@dataclass(frozen=True)
class Progress:
    """Where a chunk has led.

    Attributes
    ----------
    step : int
        Complete steps done.
    complete : bool
        False within a step that waits for a new list.
    failed : bool
        The next step would move an atom too far, or an energy is not finite.
    rows : (n_rows, n_columns) float64 array
        Recorded since the last chunk, see :data:`~fastff.md.observe.COLUMNS`.
    closest : float
        Å; distance of the closest pair that was seen nearer than the settings' ``min_distance`` when one of these rows
        was recorded, infinite if there was none.
    """

    step: int
    complete: bool
    failed: bool
    rows: np.ndarray
    closest: float = math.inf


class Engine:
    """A state, a potential and an integrator, advanced together.

    Parameters
    ----------
    potential : DevicePotential
    state : State
        On the potential's device; changed in place.
    settings : MDSettings
    list_reference : (positions, cell), optional
        Where the neighbor list was built, if not here: a restarted run then continues with the list it had.
    """

    def __init__(
        self,
        potential: DevicePotential,
        state: State,
        settings: MDSettings,
        list_reference: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.potential, self.state, self.settings = potential, state, settings
        self.integrator = Integrator(settings, state)
        self.list_positions, self.list_cell = state.positions.clone(), state.cell.clone()
        self._attach(list_reference)
        self.n_rebuilds = 0
        self._pressure = None
        barostat = self.integrator.barostat
        if barostat is not None:
            self._pressure = barostat.pressure
            state.slope.copy_(barostat.measure_slope(state, state.velocities, potential.virial))
        device = state.positions.device
        self._board = torch.zeros(_N_ROWS + 2, len(COLUMNS), dtype=torch.float64, device=device)
        self._n_rows = torch.zeros((), dtype=torch.int64, device=device)
        self._spare_row = torch.full_like(self._n_rows, _N_ROWS)
        self._last_row = torch.full((), -1, dtype=torch.int64, device=device)
        self._closest = torch.full((), torch.inf, dtype=torch.float64, device=device)
        self._host = torch.zeros(
            self._board.shape, dtype=torch.float64, pin_memory=device.type == "cuda"
        )
        self._pacer = Pacer()
        self._period = self._plan_renewals()
        self._fork = Fork(device)
        self._rebuilt_at, self._renewed_at, self._at_rest = -1, -1, True
        self._filled = -1
        self._step = int(state.step)
        if list_reference is not None:
            self._last_row.fill_(self._step)
        self.sound_step = self._step
        self.sound = (state.positions.clone(), state.velocities.clone(), state.cell.clone())
        self._prepare()

    def _attach(self, reference: tuple[Tensor, Tensor] | None) -> None:
        state, potential = self.state, self.potential
        current = state.positions.clone(), state.cell.clone()
        if reference is not None:
            state.positions.copy_(reference[0])
            state.cell.copy_(reference[1])
        potential.attach(state.positions, state.numbers, state.cell, state.pbc)
        self._remember_list()
        state.positions.copy_(current[0])
        state.cell.copy_(current[1])
        potential.check()
        if bool(potential.stale):
            potential.rebuild()
            self._remember_list()
        potential.compute()

    def _remember_list(self) -> None:
        self.list_positions.copy_(self.state.positions)
        self.list_cell.copy_(self.state.cell)

    @property
    def step(self) -> int:
        """Complete steps done, as the host knows."""
        return self._step

    def advance(self, target: int) -> Progress:
        """Run one chunk of steps towards ``target`` and read the flags."""
        self._renew_if_due()
        n_steps = min(target - self._step, self._fill_random(), self._pacer.suggest())
        n_steps = min(n_steps, _LONGEST_CHUNK)
        if self._period:
            n_steps = min(n_steps, self._period - self._step % self._period)
        interval = self.settings.interval
        if n_steps >= interval:  # rows of a chunk must fit
            n_steps = min(n_steps, (_N_ROWS - 2) * interval)
        self.state.target.fill_(target)
        for step in range(self._step + 1, self._step + n_steps + 1):
            self._leave_graphs()
            self._iterate()
            if step % interval == 0:
                self._leave_graphs()
                self._observe()
            if not self.potential.capturable and bool(self.potential.stale | self.state.failed):
                break
        return self._read()

    def remember_sound(self) -> None:
        """Keep a copy of the present state as the last one known to be sound, on the device."""
        now = (self.state.positions, self.state.velocities, self.state.cell)
        for copy, value in zip(self.sound, now, strict=True):
            copy.copy_(value)
        self.sound_step = self._step

    def observe(self) -> Progress:
        """Record a row for the present state, which must be complete, unless that has been done."""
        self.state.target.fill_(self._step)
        self._leave_graphs()
        self._observe()
        return self._read()

    def _fill_random(self) -> int:
        """Make sure that random numbers of the next step are there; for how many steps they last."""
        random = self.integrator.random
        if random is None:
            return _LONGEST_CHUNK
        if not (0 <= self._filled <= self._step < self._filled + random.length):
            random.start.fill_(self._step)
            self._fill()
            self._filled = self._step
        return self._filled + random.length - self._step

    def _read(self) -> Progress:
        """Copy flags and rows to the host, which waits for the device; rebuild the list if it is stale."""
        self._report()
        if self._board.is_cuda:
            torch.cuda.current_stream(self._board.device).synchronize()
        board = self._host.numpy()
        step, pending, failed, stale, n_rows = (int(x) for x in board[_N_ROWS + 1, :5])
        rows, closest = board[:n_rows].copy(), math.sqrt(board[_N_ROWS + 1, 5])
        if failed and not pending and self._kernels is not None:
            self._kernels.restore()
        moved = step - self._step
        self._step = step
        self._at_rest = not (pending or failed)
        if stale and not failed:
            self._rebuild(moved)
        else:
            self._pacer.advance(moved, rebuilt=False)
        return Progress(step, not pending, bool(failed), rows, closest)

    def _report_eagerly(self) -> None:
        """Flags beside the rows, all to the host, and none of either left."""
        state = self.state
        flags = [
            state.step,
            state.pending,
            state.failed,
            self.potential.stale,
            self._n_rows,
            self._closest,
        ]
        self._board[_N_ROWS + 1, : len(flags)] = torch.stack([f.double() for f in flags])
        self._host.copy_(self._board, non_blocking=True)
        self._n_rows.zero_()
        self._closest.fill_(torch.inf)

    def _rebuild(self, moved: int, *, early: bool = False) -> None:
        if not early and self._step == self._rebuilt_at:
            raise SimulationUnstableError(
                f"the neighbor list is stale as soon as it is built, at step {self._step}; use a larger skin"
            )
        self._rebuilt_at = -1 if early else self._step
        relocated = self.potential.rebuild()
        self._remember_list()
        self.n_rebuilds += 1
        self._pacer.advance(moved if early else moved + 1, rebuilt=True, early=early)
        if relocated:
            for replay in self._replays[:3]:
                replay.forget()

    def _renew_if_due(self) -> None:
        """Renew before the step, not after: forces of a restart point belong to the list it names."""
        step = self._step
        due = self._period > 0 and step > 0 and step % self._period == 0 and self._at_rest
        if due and step != self._renewed_at:
            self._renewed_at = step
            self._rebuild(0, early=True)

    def _plan_renewals(self) -> int:
        """Steps between renewals of the list that do not wait for its end; 0 for none."""
        if not self.potential.capturable:
            return 0  # the host sees every step, and no evaluation is lost
        moves = self.state.inverse_masses > 0.0  # fixed atoms do not
        masses = self.state.masses[moves].cpu().numpy()
        if not len(masses):
            return 0
        skin = float(getattr(self.potential, "skin", self.settings.skin))
        lifetime = estimate_lifetime(skin, masses, self.settings)
        return int(_PRUDENCE * lifetime) if math.isfinite(lifetime) else 0

    def _iterate_eagerly(self) -> None:
        state, potential = self.state, self.potential
        going = (state.step < state.target) & ~state.failed
        self._begin_step(going & ~state.pending)
        potential.check()
        potential.compute()
        self._finish_step(going & ~state.failed & state.pending & (potential.stale == 0))

    def _begin(self, ready: Tensor) -> None:
        state = self.state
        half = self.integrator.begin(state, self.potential.forces)
        longest = half.velocities.abs().amax() * self.integrator.timestep
        sound = longest <= self.settings.max_displacement  # False for NaN
        state.failed.logical_or_(ready & ~sound)
        go = ready & sound
        _commit(go, state.positions, half.positions)
        _commit(go, state.velocities, half.velocities)
        if half.cell is not None and half.strain is not None:
            _commit(go, state.cell, half.cell)
            _commit(go, state.strain, half.strain)
        if half.heat is not None:
            _commit(go, state.heat, state.heat + half.heat)
        if half.work is not None:
            _commit(go, state.work, state.work + half.work)
        state.pending.logical_or_(go)

    def _finish(self, ready: Tensor) -> None:
        state, potential = self.state, self.potential
        sound = torch.isfinite(potential.energy)
        state.failed.logical_or_(ready & ~sound)
        go = ready & sound
        half = self.integrator.finish(state, potential.forces, potential.virial)
        _commit(go, state.velocities, half.velocities)
        if half.slope is not None:
            _commit(go, state.slope, half.slope)
        if half.heat is not None:
            _commit(go, state.heat, state.heat + half.heat)
        if half.work is not None:
            _commit(go, state.work, state.work + half.work)
        state.step.add_(go)
        state.pending.logical_and_(~go)

    def _observe_eagerly(self) -> None:
        state = self.state
        row = measure_row(state, self.potential, self._pressure)
        go = ~state.pending & (state.step != self._last_row) & (state.target >= 0)
        go &= self._n_rows < _N_ROWS
        slot = torch.where(go, self._n_rows, self._spare_row).view(1)
        self._board.index_copy_(0, slot, row[None])
        self._n_rows += go
        _commit(go, self._last_row, state.step)
        measure = getattr(self.potential, "measure_closest", None)
        if measure is not None and self.settings.min_distance > 0.0:
            squared = measure(self.settings.min_distance)
            _commit(go, self._closest, torch.minimum(self._closest, squared))

    def _iterate_kernels(self) -> None:
        kernels, potential = self._kernels, self.potential
        assert kernels is not None
        kernels.begin(potential.forces)
        with self._fork:  # the check has the rest of the evaluation's time
            potential.check()
        potential.compute()
        self._fork.join()
        kernels.finish(potential.forces, potential.energy, potential.stale)

    def _choose_kernels(self) -> StepKernels | None:
        """Kernels for both halves where they can run; they are compiled here, while nothing may move."""
        if self.integrator.barostat is not None:
            return None  # cells that move are left to torch
        return dispatch.run(OP, self.state.positions.device, self._try_kernels, lambda: None)

    def _try_kernels(self) -> StepKernels:
        potential, target = self.potential, self.state.target.clone()
        kernels = StepKernels(*self.integrator.plan_kernels(self.state))
        self.state.target.fill_(-1)
        kernels.begin(potential.forces)
        kernels.finish(potential.forces, potential.energy, potential.stale)
        self.state.target.copy_(target)
        if self.integrator.langevin:
            self.integrator.random = None  # the kernels draw noise themselves
        return kernels

    def _prepare(self) -> None:
        """Let iteration, observation and random numbers become graphs where that is possible."""
        self._begin_step, self._finish_step = self._begin, self._finish
        self._kernels = self._choose_kernels()
        if self.settings.compile_steps and self._kernels is None:
            torch.compiler.reset()  # code of earlier engines would count against the limit of variants
            self._begin_step = torch.compile(self._begin, fullgraph=True, dynamic=False)
            self._finish_step = torch.compile(self._finish, fullgraph=True, dynamic=False)
        functions = self._list_functions()
        self._replays: list[Replay] = []
        if self.potential.capturable:
            device = self.state.positions.device
            weak = [hold_weakly(function) for function in functions[:3]]
            self._replays = [Replay(function, device) for function in (*weak, functions[3])]
            functions = list(self._replays)
        self._iterate, self._observe, self._report, self._fill = functions

    def _list_functions(self) -> list[Callable[[], None]]:
        """Iteration, observation, reading the flags, random numbers."""
        random = self.integrator.random
        iterate = self._iterate_eagerly if self._kernels is None else self._iterate_kernels
        fill = random.fill if random is not None else lambda: None
        return [iterate, self._observe_eagerly, self._report_eagerly, fill]

    def _leave_graphs(self) -> None:
        """Replay no more once the potential waits for the device: a kernel of it did not compile."""
        if self._replays and not self.potential.capturable:
            self._replays, self._period = [], 0
            self._iterate, self._observe, self._report, self._fill = self._list_functions()


def _commit(go: Tensor, old: Tensor, new: Tensor) -> None:
    """Replace ``old`` by ``new`` in place where ``go``; a NaN that is not taken does no harm."""
    if torch.compiler.is_compiling():
        # as vectors: torch 2.13 drops a copy into a float64 scalar that it compiles for a CPU
        old.view(-1).copy_(torch.where(go, new, old).view(-1))
    else:
        torch.where(go, new, old, out=old)
