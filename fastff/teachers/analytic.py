"""Analytic teachers: exact, instant, for any element; what tests and first trials need.

Here: a Morse pair potential with a smooth cut-off, and the same with a three-body angular term. Not here: anything
that describes a real material (``analytic:emt`` of the registry is ASE's EMT).

References: P. M. Morse, Phys. Rev. 34, 57 (1929); angular term after F. H. Stillinger and T. A. Weber,
Phys. Rev. B 31, 5262 (1985), eq. 2.4, with a polynomial cut-off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import covalent_radii
from torch import Tensor

from fastff.errors import UsageError
from fastff.graph import Graph, batch_graphs, edge_vectors
from fastff.labels import Labels
from fastff.neighbors import atoms_to_graph
from fastff.teachers.ase_bridge import TeacherCalculator
from fastff.teachers.base import (
    Teacher,
    TeacherInfo,
    check_options,
    label_in_batches,
    pick_device,
    pick_variant,
)
from fastff.units import VOIGT

VARIANTS = ("morse", "angular")
OPTIONS = ("depth", "steepness", "strength", "cutoff", "batch_atoms")


class AnalyticTeacher(Teacher):
    """Morse pairs whose distance follows the covalent radii, with or without an angular term, in float64.

    Parameters
    ----------
    variant : {"morse", "angular"}, optional
    device : str
    weights : None
        There are none.
    options : mapping
        ``depth`` (0.4 eV), ``steepness`` (1.6 / Å), ``strength`` of the angular term (1.0 eV), ``cutoff`` (5.0 Å),
        ``batch_atoms``.
    """

    def __init__(
        self,
        variant: str | None = None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if weights is not None:
            raise UsageError(
                f"teacher 'analytic' has no weights, got {weights}; leave --teacher-weights out"
            )
        name = pick_variant("analytic", variant, VARIANTS, "morse")
        chosen = check_options("analytic", options or {}, OPTIONS)
        self._depth = float(chosen.get("depth", 0.4))
        self._steepness = float(chosen.get("steepness", 1.6))
        self._strength = float(chosen.get("strength", 1.0)) if name == "angular" else 0.0
        self._cutoff = float(chosen.get("cutoff", 5.0))
        self.batch_atoms = int(chosen.get("batch_atoms", 4096))
        self._device = pick_device(device)
        self._radii = torch.as_tensor(covalent_radii, dtype=torch.float64, device=self._device)
        self.padding = self._cutoff
        self.info = TeacherInfo(
            name=f"analytic:{name}",
            family="analytic",
            version="1",
            weights=f"depth={self._depth:g} eV, steepness={self._steepness:g} /Å, "
            f"strength={self._strength:g} eV, cutoff={self._cutoff:g} Å",
            weights_sha256=None,
            licence="Apache-2.0",
            citation="P. M. Morse, Phys. Rev. 34, 57 (1929)",
            elements=tuple(range(1, len(covalent_radii))),
            conservative=True,
            cutoff=self._cutoff,
            notes=("A formula for tests, not a description of a material.",),
        )

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        return label_in_batches(structures, self.batch_atoms, self._label_batch)

    def _label_batch(self, structures: list[Atoms]) -> list[Labels]:
        graph = batch_graphs([atoms_to_graph(atoms, self._cutoff) for atoms in structures])
        graph = graph.to(self._device)
        vectors = edge_vectors(graph).requires_grad_(True)
        atomic = self._compute_energies(graph, vectors)
        (slope,) = torch.autograd.grad(atomic.sum(), vectors)
        receivers, senders = graph.edge_index
        forces = torch.zeros_like(graph.positions)
        forces = forces.index_add(0, receivers, slope).index_add(0, senders, -slope)
        virial = torch.zeros_like(graph.cell)
        virial = virial.index_add(
            0, graph.batch[receivers], vectors[:, :, None] * slope[:, None, :]
        )
        stress = virial.detach() / torch.linalg.det(graph.cell).abs()[:, None, None]
        ends = np.cumsum([len(atoms) for atoms in structures])
        labels = []
        for k, (end, atoms) in enumerate(zip(ends, structures, strict=True)):
            part = slice(end - len(atoms), end)
            energies = atomic[part].detach().cpu().numpy()
            labels.append(
                Labels(
                    energy=float(energies.sum()),
                    forces=forces[part].detach().cpu().numpy(),
                    stress=np.array([float(stress[k][pair]) for pair in VOIGT]),
                    energies=energies,
                )
            )
        return labels

    def _compute_energies(self, graph: Graph, vectors: Tensor) -> Tensor:
        """Energy of each atom, eV, shape (n_atoms,).

        The angular sum over pairs of bonds, ``(cos + 1/3)^2``, is expanded into moments of the bond directions, so that
        it costs one pass over the edges; a bond paired with itself is taken off.
        """
        receivers, senders = graph.edge_index
        distance = torch.linalg.norm(vectors, dim=1)
        rest = self._radii[graph.numbers[receivers]] + self._radii[graph.numbers[senders]]
        switch = torch.clamp(1.0 - (distance / self._cutoff) ** 2, min=0.0) ** 3
        decay = torch.exp(-self._steepness * (distance - rest))
        pair = 0.5 * self._depth * decay * (decay - 2.0) * switch
        energies = torch.zeros_like(graph.positions[:, 0]).index_add(0, receivers, pair)
        if self._strength == 0.0:
            return energies
        weight = torch.exp(-((distance / rest) ** 2)) * switch
        unit = vectors / distance[:, None]
        n_atoms = graph.n_atoms
        count = weight.new_zeros(n_atoms).index_add(0, receivers, weight)
        dipole = weight.new_zeros(n_atoms, 3).index_add(0, receivers, weight[:, None] * unit)
        outer = unit[:, :, None] * unit[:, None, :] * weight[:, None, None]
        tensor = weight.new_zeros(n_atoms, 3, 3).index_add(0, receivers, outer)
        own = weight.new_zeros(n_atoms).index_add(0, receivers, weight**2)
        squares = (tensor**2).sum((1, 2)) + (2 / 3) * (dipole**2).sum(1) + count**2 / 9
        return energies + 0.5 * self._strength * (squares - (16 / 9) * own)

    def calculator(self) -> BaseCalculator:
        """This teacher as an ASE calculator."""
        return TeacherCalculator(self)
