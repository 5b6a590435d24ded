"""A moment student on a device: neighbor list, skin check and fused kernels over tensors that stay where they are.

Here: :class:`ResidentPotential`, which molecular dynamics drives directly and :mod:`fastff.evaluator` drives for
everything else. Not here: kernels, transfers from and to the host, students that the kernels cannot take.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastff.errors import DataError, UsageError
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import find_reach_obstacle
from fastff.kernels.moment_potential.workspace import Options, Workspace
from fastff.kernels.neighbor_list import NeighborList, build_neighbors
from fastff.kernels.neighbor_list.repeat import RepeatedSearch, can_repeat
from fastff.kernels.replay import Replay, hold_weakly
from fastff.kernels.skin_check import Snapshot, take_snapshot
from fastff.kernels.skin_check.op import check_skin_within
from fastff.kernels.staging.op import (
    HEADER,
    Results,
    Stage,
    find_contacts,
    publish_results,
    stage_positions,
)
from fastff.models.fused import FusedFeatures, collect_weights
from fastff.models.moment import MomentStudent
from fastff.models.uncertainty import assess_structure, choose_parameters, find_places
from fastff.neighbors import check_skin_length

SORT_FROM = 10_000
"""Atoms from which rows are sorted in space; below, everything fits into the caches anyhow."""


class ResidentPotential:
    """Energy, forces and virial of a moment student through the fused kernels, in float32.

    Parameters
    ----------
    student : MomentStudent
        Its parameters must not change; the kernels use a copy made at construction.
    skin : float, Å
    options : Options, optional
    contact_limit : float, optional
        Distance in Å below which :meth:`compute` looks for the closest pair, see ``results.squared``.
    with_uncertainty : bool
        Measure the uncertainty that came with the model file, too.

    Raises
    ------
    UsageError
        If the skin is negative, lists would reach beyond the position grid (32 Å), or the student holds no uncertainty.

    Attributes
    ----------
    device : torch.device
    energy : () float64 tensor, eV
    forces : (n_atoms, 3) float64 tensor, eV/Å
    virial : (3, 3) float64 tensor, eV, stress times volume, positive under tension
    energies : (n_atoms,) float64 tensor, eV
    uncertainty : (1 + n_atoms,) float64 tensor or None
        Of :func:`~fastff.models.uncertainty.assess_structure`, if it is measured.
    stale : () int32 tensor
        Set to 1 by :meth:`check`, and to 0 by :meth:`rebuild` alone.
    n_builds : int

    Notes
    -----
    :meth:`check` and :meth:`compute` never wait for the device and can be captured in a CUDA graph. While a fully
    periodic cell stays as it is, lists are built by a graph of their own. Results depend on
    positions and cell now and when the list was built, and on nothing else; they are the same bits at every run.
    """

    def __init__(
        self,
        student: MomentStudent,
        *,
        skin: float = 1.0,
        options: Options = Options(),
        contact_limit: float | None = None,
        with_uncertainty: bool = False,
    ) -> None:
        self.student, self.skin, self.contact_limit = (
            student,
            check_skin_length(skin),
            contact_limit,
        )
        self.device = student.device
        self.cutoff = student.cutoff
        if obstacle := find_reach_obstacle(self.cutoff + self.skin):
            raise UsageError(f"skin {skin} Å: {obstacle}; use a thinner one")
        self._fused = FusedPotential(collect_weights(student), self.device, options)
        self._fitted = choose_parameters(student) if with_uncertainty else None
        self._features = FusedFeatures(student) if with_uncertainty else None
        self.uncertainty: Tensor | None = None
        self.stale = torch.zeros((), dtype=torch.int32, device=self.device)
        self.n_builds = 0
        self._point_to(Results(torch.zeros(HEADER, dtype=torch.float64, device=self.device)))

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold ``check`` and ``compute``: on a CUDA device."""
        return self.device.type == "cuda"

    def attach(self, positions: Tensor, numbers: Tensor, cell: Tensor, pbc: Tensor) -> None:
        """Bind to tensors that are changed in place from now on, and build a list. Waits for the device.

        Parameters
        ----------
        positions : (n_atoms, 3) float64 tensor, Å
            Wrapped or not; wrapping it later costs a rebuild.
        numbers : (n_atoms,) int64 tensor
        cell : (3, 3) float64 tensor, Å
            Rows of non-periodic axes are ignored.
        pbc : (3,) bool tensor

        Raises
        ------
        UnsupportedElementError
            If an element is unknown to the student.
        DataError
            If a tensor has another shape, dtype or layout, or no list can be built.
        """
        for name, value, shape in (("positions", positions, (-1, 3)), ("cell", cell, (3, 3))):
            fits = value.ndim == 2 and value.shape[1] == 3 and shape[0] in (-1, value.shape[0])
            if value.dtype != torch.float64 or not value.is_contiguous() or not fits:
                raise DataError(
                    f"{name} are {value.dtype} of shape {tuple(value.shape)}; pass contiguous float64 "
                    f"{'(n_atoms, 3)' if name == 'positions' else shape}"
                )
        if len(positions) == 0:
            raise DataError("no atoms: the structure is empty")
        self._kinds = self.student.find_species(numbers.to(self.device)).to(torch.int32)
        self.positions, self.cell = positions, cell
        self._flags = (bool(pbc[0]), bool(pbc[1]), bool(pbc[2]))
        self._neighbors: NeighborList | None = None
        self._snapshot: Snapshot | None = None
        self._search: RepeatedSearch | None = None
        self._cell_stays = True
        size = HEADER + 4 * len(positions)
        self._point_to(Results(torch.zeros(size, dtype=torch.float64, device=self.device)))
        if self._features is not None:
            self._places = find_places(self._kinds, len(self.student.elements))
            self.uncertainty = self.energies.new_zeros(1 + len(positions))
        self.rebuild()

    def _point_to(self, results: Results) -> None:
        self.results = results
        self.energy, self.forces = results.energy, results.forces
        self.virial, self.energies = results.virial, results.energies

    def rebuild(self) -> bool:
        """Build the list from the current positions and cell and clear ``stale``. Waits for the device.

        Returns
        -------
        bool
            Whether buffers have moved, so that recorded graphs are void.

        Raises
        ------
        DataError
            If positions or cell are not finite, or the cell has no volume.
        """
        if self._search is not None:
            self._again()
            good, same_cell = self._search.read()
            if good:
                self.n_builds += 1
                return False
            self._cell_stays = self._cell_stays and same_cell
        old = self._neighbors
        stored = self._fused.options.scatter == "store"
        found = build_neighbors(
            self.positions,
            self.cell,
            self._flags,
            self.cutoff + self.skin,
            sort_atoms=len(self.positions) >= SORT_FROM,
            reverse=stored,
            out=None if old is None else replace(old.matrix, reverse=None),
        )
        moved = old is None or stored or found.matrix.entries is not old.matrix.entries
        if old is None or moved:
            self._neighbors = found
            self._species = self._kinds[found.order]
            self._stage = Stage(len(self.positions), found.images, self.device)
        else:
            self._neighbors = replace(old, frame=found.frame)
            old.order.copy_(found.order)
            old.wraps.copy_(found.wraps)
            self._species.copy_(self._kinds[found.order])
        self._snapshot = take_snapshot(
            self.positions, found.frame, self.cutoff, self.skin, self._snapshot
        )
        self.stale.zero_()
        self.n_builds += 1
        self._search = None
        if self._cell_stays and not stored and can_repeat(found, self.device):
            self._prepare_search()
        return moved

    def _prepare_search(self) -> None:
        """Let further lists in the same cell come from a graph."""
        assert self._neighbors is not None
        self._search = RepeatedSearch(
            self.positions,
            self.cell,
            self._neighbors,
            self.cutoff + self.skin,
            sort_atoms=len(self.positions) >= SORT_FROM,
        )
        self._again = Replay(hold_weakly(self._search_again), self.device)

    def _search_again(self) -> None:
        assert self._search is not None
        assert self._neighbors is not None
        assert self._snapshot is not None
        self._search()
        torch.index_select(self._kinds, 0, self._neighbors.order, out=self._species)
        self._snapshot.positions.copy_(self.positions)
        self.stale.zero_()

    def check(self) -> None:
        """Set ``stale`` if the list may miss a pair within the cut-off."""
        assert self._snapshot is not None
        check_skin_within(self.positions, self.cell, self._snapshot, self.stale)

    def compute(self) -> None:
        """Update energy, forces, virial and energies from the current positions and cell."""
        neighbors = self._neighbors
        assert neighbors is not None
        stage, matrix = self._stage, neighbors.matrix
        stage_positions(self.positions, self.cell, neighbors, stage)
        look = None if self._features is None else self._assess
        found = self._fused.evaluate(stage.staged, self._species, matrix, look)
        space = self._fused.allocate(matrix.n_atoms, matrix.n_slots)
        if self.contact_limit is not None:
            find_contacts(space.sites, matrix, self.contact_limit, stage)
        publish_results(
            found.forces,
            found.energies,
            space.totals,
            self.stale,
            neighbors.order,
            stage,
            self.results,
        )

    def _assess(self, space: Workspace, species: Tensor) -> None:
        assert self._features is not None
        assert self._fitted is not None
        assert self._neighbors is not None
        assert self.uncertainty is not None
        placed = self._features(space, species)
        rows = torch.empty_like(placed).index_copy_(0, self._neighbors.order, placed)
        self.uncertainty.copy_(assess_structure(rows, self._places, self._fitted))

    def measure_closest(self, limit: float) -> Tensor:
        """Least squared distance of a pair nearer than ``limit`` Å at the last evaluation, Å^2, shape ().

        Infinite if there is none. Waits for nothing; the limit must be within the cut-off.
        """
        neighbors = self._neighbors
        assert neighbors is not None
        matrix = neighbors.matrix
        sites = self._fused.allocate(matrix.n_atoms, matrix.n_slots).sites
        find_contacts(sites, matrix, limit, self._stage)
        return self._stage.nearest.view(torch.float32)[0].double()
