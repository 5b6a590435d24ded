"""One side of the comparison: something that labels structures, with its cost.

Here: :class:`Side`, its ASE calculator, relaxations. Not here: properties.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import ase
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from fastff.errors import FastFFError
from fastff.labels import Labels
from fastff.report.physics.derive import PropertyError

Labeller = Callable[[Sequence[ase.Atoms]], list[Labels]]
Role = Literal["teacher", "student"]


DEAR = 0.05
"""Share of the seconds left from which on one call is enough to judge what a call costs."""


class OutOfTimeError(PropertyError):
    """A property took longer than its share of the budget."""


class Side:
    """Teacher or student, counted, timed and stopped in time.

    Parameters
    ----------
    role : {"teacher", "student"}
    label : callable
        Labels a list of structures.
    identity : dict
        Which model it is.
    """

    def __init__(self, role: Role, label: Labeller, identity: dict[str, Any]) -> None:
        self.role, self.identity, self._label = role, identity, label
        self.n_calls = 0
        self.deadline = math.inf
        self._costs: dict[tuple[int, bool], float] = {}
        self._seen: set[tuple[int, bool]] = set()

    def label(self, structures: Sequence[ase.Atoms]) -> list[Labels]:
        """Label, and remember what it cost; the first call at a size warms up and does not count.

        Raises
        ------
        OutOfTimeError
            After :attr:`deadline`, a reading of ``time.perf_counter``.
        """
        start = time.perf_counter()
        if start > self.deadline:
            raise OutOfTimeError(
                f"the {self.role} was stopped when the share of the budget was used up"
            )
        labels = self._label(structures)
        seconds = time.perf_counter() - start
        n_atoms = sum(len(atoms) for atoms in structures)
        self.n_calls += len(structures)
        key = n_atoms, len(structures) > 1
        if key in self._seen:
            self._costs[key] = min(seconds, self._costs.get(key, np.inf))
        self._seen.add(key)
        return labels

    def estimate(self, atoms: ase.Atoms, copies: int = 1) -> float:
        """Seconds of one call on ``copies`` of ``atoms``: measured where done at this size, else in proportion.

        Measures (three calls, the first of which does not count) where nothing is known within a factor of 1.4 in size.
        A first call that takes a good part of the seconds up to the deadline is taken for the cost itself.
        """
        n_atoms = copies * len(atoms)
        left = self.deadline - time.perf_counter()
        known = {n: seconds for (n, batch), seconds in self._costs.items() if batch == (copies > 1)}
        if not any(0.7 <= n / n_atoms <= 1.43 for n in known):
            for number in range(3):
                image = (
                    atoms.copy()
                )  # moved a little: calculators remember what they were asked last
                image.rattle(1e-3, seed=number)
                start = time.perf_counter()
                self.label([image] * copies)
                seconds = time.perf_counter() - start
                if seconds > DEAR * left:
                    self._costs[n_atoms, copies > 1] = seconds
                    break
            known[n_atoms] = self._costs[n_atoms, copies > 1]
        nearest = min(known, key=lambda n: abs(np.log(n / n_atoms)))
        return known[nearest] * max(1.0, n_atoms / nearest)

    def attach(self, atoms: ase.Atoms) -> ase.Atoms:
        """A copy with this side as calculator."""
        image = atoms.copy()
        image.calc = LabelCalculator(self)
        return image


class LabelCalculator(Calculator):
    """Labels of a side behind ASE's interface, for ASE's optimisers."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def __init__(self, side: Side) -> None:
        super().__init__()
        self.side = side

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """One label."""
        super().calculate(atoms, properties, system_changes)
        labels = self.side.label([self.atoms])[0]
        self.results = {"energy": labels.energy, "forces": labels.forces}
        if labels.stress is not None:
            self.results["stress"] = labels.stress


def relax_positions(atoms: ase.Atoms, *, fmax: float = 0.01, steps: int = 200) -> None:
    """Relax positions in place at constant cell, to forces of ``fmax`` eV/Å.

    Raises
    ------
    PropertyError
        It does not end within ``steps``.
    """
    from ase.optimize import BFGS

    optimizer = BFGS(atoms, logfile=None)
    if not optimizer.run(fmax=fmax, steps=steps):
        raise PropertyError(
            f"{_name(atoms)}: positions are not relaxed to {fmax:g} eV/Å after {steps} steps"
        )


def relax_cell(atoms: ase.Atoms, *, fmax: float = 0.005, steps: int = 250) -> None:
    """Relax cell and positions in place.

    Raises
    ------
    PropertyError
        It does not end within ``steps``, the volume changes by more than 20 %, or the side gives no stress.
    """
    from ase.filters import UnitCellFilter
    from ase.optimize import BFGS

    volume = atoms.get_volume()
    try:
        optimizer = BFGS(UnitCellFilter(atoms), logfile=None)
        done = optimizer.run(fmax=fmax, steps=steps)
    except PropertyNotImplementedError as error:
        raise PropertyError(f"{_name(atoms)}: it gives no stress") from error
    change = atoms.get_volume() / volume - 1.0
    if abs(change) > 0.2:
        raise PropertyError(
            f"{_name(atoms)}: the crystal changes its volume by {100 * change:.0f} %"
        )
    if not done:
        raise PropertyError(
            f"{_name(atoms)}: the cell is not relaxed to {fmax:g} eV/Å after {steps} steps"
        )


def relax_bare(side: Side, atoms: ase.Atoms) -> ase.Atoms | None:
    """A copy without calculator, cell and positions relaxed by ``side``; None where that fails."""
    image = side.attach(atoms)
    try:
        relax_cell(image)
    except FastFFError:
        return None
    return ase.Atoms(image.numbers, image.positions, cell=image.cell, pbc=image.pbc)


def _name(atoms: ase.Atoms) -> str:
    return str(getattr(getattr(atoms.calc, "side", None), "role", "structure"))
