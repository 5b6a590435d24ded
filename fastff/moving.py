"""A batch that only moves: which lists of neighbors have worn out, and their renewal, without the host.

Here: :class:`MovingBatch`, a few launches before each evaluation, replayed from a CUDA graph where there is one; and
what the host needs to decide the same where cells change too. Not here: the evaluation (:mod:`fastff.batches`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastff.batch_lists import DeviceLists, turn_back
from fastff.graph import find_largest
from fastff.kernels.replay import Replay, hold_weakly

if TYPE_CHECKING:
    from fastff.packed import Systems

RENEW_FROM = 0.6
"""Share of its skin that a structure has used when its list is renewed with that of another one, which needs it."""


class MovingBatch:
    """Atoms of fixed structures in fixed cells, from one evaluation to the next.

    Parameters
    ----------
    lists : DeviceLists
        Of structures that are all renewed without the host, just built.
    given : (n_atoms, 3) float64 tensor, Å
        Positions for which they were built, as the caller counts them.
    positions : (n_atoms, 3) float64 tensor, Å
        The same, in the images that the lists are for; where :meth:`move` leaves the new ones.
    cells : (n_systems, 3, 3) float64 tensor, Å
        None is singular.
    pbc : (n_systems, 3) bool tensor
    batch : (n_atoms,) int64 tensor
    skin : float, Å

    Attributes
    ----------
    given, base : (n_atoms, 3) float64 tensor, Å
        Positions as the caller counts them; those for which lists were last renewed, in the images that these are for.
    flags : (2,) bool tensor
        Whether ever a list had no room for its neighbors, and whether positions were not finite: what was evaluated
        since is void.
    widest : () int32 tensor
        Most neighbors of an atom that were ever found.
    counts : (2,) int64 tensor
        Lists renewed, and moves that renewed any.

    Notes
    -----
    An atom that the caller puts into another image counts as moved: its list is renewed, as it need not be.
    """

    def __init__(
        self,
        lists: DeviceLists,
        given: Tensor,
        positions: Tensor,
        cells: Tensor,
        pbc: Tensor,
        batch: Tensor,
        skin: float,
    ) -> None:
        self._lists, self._batch, self._skin = lists, batch, skin
        self.positions, self.given = positions, given.clone()
        self.base, self._offset = positions.clone(), positions - given
        self._cells = cells[batch]
        inverses = torch.where(pbc[:, None, :], torch.linalg.inv_ex(cells)[0], 0.0)
        self._inverses = inverses[batch]
        self._n_systems = len(cells)
        self.flags = torch.zeros(2, dtype=torch.bool, device=positions.device)
        self.widest = torch.zeros((), dtype=torch.int32, device=positions.device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=positions.device)
        self._again = Replay(hold_weakly(self._move), positions.device)

    def move(self, given: Tensor) -> None:
        """Take new positions (n_atoms, 3) and see to the lists."""
        self.given.copy_(given)
        self._again()
        self._lists.forget_edges()

    def _move(self) -> None:
        now = self.given + self._offset
        largest = find_largest(now - self.base, self._batch, self._n_systems)
        wear = largest * (2.0 / self._skin)
        stale = ~(wear < 1.0)  # nan is stale
        any_stale = stale.any()
        due = any_stale & ~(wear < RENEW_FROM)
        wrapped = turn_back(now, self._inverses, self._cells)
        fresh = due[self._batch][:, None]
        torch.where(fresh, wrapped, now, out=self.positions)
        torch.where(fresh, self.positions, self.base, out=self.base)
        torch.sub(self.positions, self.given, out=self._offset)
        widest = self._lists.renew_due(self.positions, due.to(torch.int32))
        torch.maximum(self.widest, widest, out=self.widest)
        cut = widest > self._lists.n_slots
        self.flags |= torch.stack([cut, ~now.isfinite().all()])
        self.counts += torch.stack([due.sum(), any_stale.long()])


class CellMotion(NamedTuple):
    """What cells and their change since the lists say, per atom unless noted.

    base (n_atoms, 3) Å, positions of the lists strained with their cells; inverses (n_atoms, 3, 3), zero where not
    periodic; cells (n_atoms, 3, 3) Å; loss (n_systems,) Å, by how much pairs at the reach may have come closer through
    the strain.
    """

    base: Tensor
    inverses: Tensor
    cells: Tensor
    loss: Tensor


def describe_cells(systems: Systems, old: Systems, inverses: Tensor, reach: float) -> CellMotion:
    """How cells have changed since lists of a ``reach`` in Å were built for ``old``.

    ``inverses`` (n_systems, 3, 3) of its cells, 1/Å.
    """
    batch = systems.batch
    current = torch.where(systems.pbc[:, :, None], systems.cells, old.cells)
    change = inverses @ (current - old.cells)
    base = old.positions + (old.positions[:, None, :] @ change[batch])[:, 0]
    turning = torch.where(systems.pbc[:, None, :], torch.linalg.inv_ex(current)[0], 0.0)
    loss = change.square().sum(dim=(1, 2)).sqrt() * reach
    return CellMotion(base, turning[batch], current[batch], loss)


def measure_wear(systems: Systems, motion: CellMotion, skin: float) -> tuple[Tensor, Tensor]:
    """Positions without whole cell vectors since the build, and how much of the ``skin`` in Å has been used.

    As :meth:`fastff.neighbors.VerletCache.needs_rebuild`, with the bound ``1 - |F - 1|`` (Frobenius) for the smallest
    singular value of the deformation F. Atoms that were wrapped in between count as not moved.

    Returns
    -------
    positions : (n_atoms, 3) float64 tensor, Å
    wear : (n_systems,) float64 tensor
        Unless it is below one, a pair absent from the list could be in reach.
    """
    moved = systems.positions - motion.base
    jumps = (moved[:, None, :] @ motion.inverses)[:, 0].round()
    jumps = torch.where(jumps.isfinite(), jumps, 0.0)
    whole = (jumps[:, None, :] @ motion.cells)[:, 0]
    largest = find_largest(moved - whole, systems.batch, systems.n_systems)
    return systems.positions - whole, (motion.loss + 2.0 * largest) / skin
