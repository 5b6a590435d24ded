"""What every student is: configuration, prediction, and the physics around the learned part.

Here: the abstract :class:`Student`, which adds composition energies and core repulsion to the learned per-atom energies
and turns edge gradients into forces and stress, in one place. Not here: any architecture, files, structures.
"""

from __future__ import annotations

import abc
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastff.errors import DataError, UnsupportedElementError
from fastff.graph import Graph, edge_vectors
from fastff.kernels.derivatives import leave_autocast
from fastff.models.dense import lay_out_edges
from fastff.models.precise import PreciseBuffers
from fastff.models.zbl import CORE_REACH, ScreenedCore

if TYPE_CHECKING:
    from fastff.models.uncertainty import UncertaintyParameters


MAX_HOPS = 4
"""Most hops that are tested; kernels are compiled ahead of time for up to three."""


@dataclass(frozen=True)
class StudentConfig:
    """Everything needed to build a student before its parameters are known.

    Attributes
    ----------
    architecture : str
        A key of ``fastff.models.ARCHITECTURES``.
    elements : tuple of int
        Atomic numbers known to the model, ascending.
    cutoff : float
        Å.
    n_radial, n_channels, n_mixed : int
        Radial functions, channels of the moments, channels after mixing.
    hidden : tuple of int
        Widths of the two hidden layers of each node block.
    core_repulsion : bool
        Add the ZBL screened nuclear repulsion.
    l_max : int
        Largest degree, 0 to 3, of the harmonics whose invariants are used. Like ``body_order`` an ablation: a moment
        student computes the others too and multiplies them by zero. Of no meaning to ``painn``.
    body_order : int
        2 for l = 0 alone, 3 with power spectrum, 4 with cubic couplings.
    input_limit : float or None
        What the normalised inputs of a moment student's node blocks are bounded by, in standard deviations of the
        bulk of the sample that it was calibrated on (the central 90 % of each species), or None: unbounded, as were
        students of model files before format 3. See :func:`fastff.kernels.node_block.reference.bound_inputs`. Of no
        meaning to ``painn``.
    inner_limit : float or None
        Part of the sum of two atoms' covalent radii, at most 0.8, below which a moment student learns nothing of how
        near they are: the radial basis follows distances no longer
        (:func:`fastff.kernels.moments.reference.compress_distance`), and the core repulsion, which must be there,
        decides alone. It follows them less and less below this part, and not at all below
        :data:`~fastff.kernels.moments.reference.FROZEN_SHARE` of it. None: it follows all distances. Of short bonds
        only those of V2, Ti2, Cr2, U2, Mo2, W2 and Nb2 (0.58 to 0.63) are below 0.65, and alkali metals at a fifth of
        their volume. Not in the file of a model where None. Of no meaning to ``painn``.
    n_hops : int or None
        1 to :data:`MAX_HOPS`, or None: as many as the architecture has. Not in the file of a model where None.
    message_degree : int
        Largest degree of the messages of a moment student, 0 to 2; 0: scalars. Above 0 as many mixed channels as
        channels are needed; the fused kernels take up to 1. Not in the file of a model where 0. Of no meaning to
        ``painn``.
    """

    architecture: str
    elements: tuple[int, ...]
    cutoff: float = 5.0
    n_radial: int = 8
    n_channels: int = 16
    n_mixed: int = 16
    hidden: tuple[int, int] = (64, 64)
    core_repulsion: bool = True
    l_max: int = 3
    body_order: int = 4
    input_limit: float | None = None
    inner_limit: float | None = None
    n_hops: int | None = None
    message_degree: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", tuple(sorted({int(z) for z in self.elements})))
        object.__setattr__(self, "hidden", tuple(int(h) for h in self.hidden))
        if not self.elements or not all(1 <= z <= 118 for z in self.elements):
            raise DataError(f"elements {self.elements} must be atomic numbers from 1 to 118")
        if not self.cutoff > 0.0:
            raise DataError(f"cutoff {self.cutoff} Å must be positive")
        sizes = (self.n_radial, self.n_channels, self.n_mixed, *self.hidden)
        if len(self.hidden) != 2 or min(sizes) < 1:
            raise DataError(f"sizes {sizes} must be positive, with two hidden layers")
        if self.l_max not in (0, 1, 2, 3) or self.body_order not in (2, 3, 4):
            raise DataError(
                f"l_max {self.l_max} must be 0 to 3 and body_order {self.body_order} 2 to 4"
            )
        if self.input_limit is not None and not 0.0 < self.input_limit < float("inf"):
            raise DataError(
                f"input_limit {self.input_limit} must be positive and finite, or None for unbounded"
            )
        if self.inner_limit is not None and not (
            self.core_repulsion and 0.0 < self.inner_limit <= CORE_REACH
        ):
            raise DataError(
                f"inner_limit {self.inner_limit} must be positive, at most {CORE_REACH}, and needs core_repulsion"
            )
        if self.n_hops is not None and not (
            type(self.n_hops) is int and 1 <= self.n_hops <= MAX_HOPS
        ):
            raise DataError(
                f"n_hops {self.n_hops} must be 1 to {MAX_HOPS}, or None for the architecture's"
            )

        if type(self.message_degree) is not int or not 0 <= self.message_degree <= 2:
            raise DataError(f"message_degree {self.message_degree} must be 0 to 2")
        if self.message_degree > 0 and self.n_mixed != self.n_channels:
            raise DataError(
                f"message_degree {self.message_degree} needs as many mixed channels ({self.n_mixed}) as channels "
                f"({self.n_channels})"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; ``StudentConfig(**d)`` gives the configuration back."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        for name in ("n_hops", "inner_limit"):
            if found[name] is None:
                del found[name]  # unknown to readers of earlier files
        if self.message_degree == 0:
            del found["message_degree"]
        return found


@dataclass(frozen=True)
class Prediction:
    """What a student says of a batch.

    Attributes
    ----------
    energy : (n_systems,) float64 tensor, eV
    forces : (n_atoms, 3) tensor, eV/Å, ``-dE/dr``
    stress : (n_systems, 3, 3) tensor, eV/Å^3, symmetric, positive under tension
    energies : (n_atoms,) float64 tensor, eV, adding up to ``energy``
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    energies: Tensor


class Features(NamedTuple):
    """Last-layer features of atoms, both zero for an atom without neighbors.

    values (n_atoms, n_features): the energy of an atom is linear in them, with coefficients that depend on its species
    alone. unbounded (n_atoms, n_features): what they would be, had the inputs of the last layers not been bounded
    (``input_limit``): they go on growing with the distance from the training data, as uncertainties must.
    """

    values: Tensor
    unbounded: Tensor


class Student(PreciseBuffers, abc.ABC):
    """A conservative, finite-range force field.

    Energies of isolated atoms are exactly the composition energies ``E0``. Forces and stress are exact derivatives of
    the energy. They come from an adjoint written as a forward computation: one ordinary backward trains parameters on
    energy, forces and stress, and no graph through positions is kept.
    """

    species_of: Tensor
    composition_energies: Tensor
    energy_scale: Tensor

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.header: dict[str, Any] = {}
        self.uncertainty: UncertaintyParameters | None = None
        n_species = len(config.elements)
        species_of = torch.full((119,), -1, dtype=torch.int64)
        species_of[list(config.elements)] = torch.arange(n_species)
        self.register_buffer("species_of", species_of, persistent=False)
        self.register_precise("composition_energies", torch.zeros(n_species))
        self.register_precise("energy_scale", torch.ones(()))
        self.core = ScreenedCore(config.elements) if config.core_repulsion else None

    @property
    def inner_distances(self) -> Tensor | None:
        """By pairs of species, (n_species, n_species) float64 tensor in Å: see ``StudentConfig.inner_limit``."""
        if self.core is None or self.config.inner_limit is None:
            return None
        return self.core.reach * (self.config.inner_limit / CORE_REACH)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows, ascending."""
        return self.config.elements

    @property
    def cutoff(self) -> float:
        """Cut-off radius in Å of one hop."""
        return self.config.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @abc.abstractmethod
    def evaluate_dense(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Learned energy of every atom and its total's gradient in the edge vectors.

        Fixed shapes in, fixed shapes out, no synchronisation: this is what training captures and inference fuses.

        Parameters
        ----------
        vectors : (n_atoms, n_slots, 3) tensor, Å
            See :class:`~fastff.models.dense.DenseEdges`.
        senders : (n_atoms, n_slots) int64 tensor
        species : (n_atoms,) int64 tensor
            Index into ``elements``.

        Returns
        -------
        energies : (n_atoms,) tensor
            In units of ``energy_scale``; zero for an atom without neighbors.
        gradient : (n_atoms, n_slots, 3) tensor
            ``d(sum energies)/d(vectors)``; differentiable once in the parameters.
        """

    @abc.abstractmethod
    def evaluate_features(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Features]:
        """As :meth:`evaluate_dense`, with the last-layer features of every atom.

        Returns
        -------
        energies, gradient
            As there.
        features : Features
        """

    def describe_atoms(self, vectors: Tensor, senders: Tensor, species: Tensor) -> Features:
        """Last-layer features alone; arguments as in :meth:`evaluate_dense`."""
        return self.evaluate_features(vectors, senders, species)[2]

    @abc.abstractmethod
    def calibrate(self, vectors: Tensor, senders: Tensor, species: Tensor) -> None:
        """Set fixed normalisations from sample data, before training; arguments as in :meth:`evaluate_dense`."""

    def evaluate_edges(
        self, vectors: Tensor, edge_index: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`evaluate_dense`, for a receiver-sorted edge list: vectors and gradient are (n_edges, 3)."""
        dense = lay_out_edges(vectors, edge_index, species.shape[0], self.cutoff)
        energies, gradient = self.evaluate_dense(dense.vectors, dense.senders, species)
        return energies, gradient.reshape(-1, 3)[dense.slots]

    def find_species(self, numbers: Tensor) -> Tensor:
        """Map atomic numbers to species indices.

        Raises
        ------
        UnsupportedElementError
            If any atom's element is unknown to the model.
        """
        species = self.species_of[numbers.clamp(0, 118)]
        if bool((species < 0).any()):
            raise UnsupportedElementError(describe_unknown(numbers, self.elements))
        return species

    def forward(self, graph: Graph) -> Prediction:
        """Energy, forces and stress of every structure in ``graph``; in the student's dtype, whatever autocast says."""
        species = self.find_species(graph.numbers)
        vectors = edge_vectors(graph).to(self.dtype)
        with leave_autocast(vectors.device):
            energies, gradient = self.evaluate_edges(vectors, graph.edge_index, species)
        learned = energies.double() * self.energy_scale, gradient * self.energy_scale.to(self.dtype)
        fixed = self._evaluate_fixed(graph, vectors, species)
        return assemble_prediction(graph, vectors, learned[0] + fixed[0], learned[1] + fixed[1])

    def predict_features(self, graph: Graph) -> tuple[Prediction, Features]:
        """Prediction and last-layer features of every structure, in one pass."""
        species = self.find_species(graph.numbers)
        vectors = edge_vectors(graph).to(self.dtype)
        dense = lay_out_edges(vectors, graph.edge_index, species.shape[0], self.cutoff)
        energies, rows, features = self.evaluate_features(dense.vectors, dense.senders, species)
        gradient = rows.reshape(-1, 3)[dense.slots]
        learned = energies.double() * self.energy_scale, gradient * self.energy_scale.to(self.dtype)
        fixed = self._evaluate_fixed(graph, vectors, species)
        total = assemble_prediction(graph, vectors, learned[0] + fixed[0], learned[1] + fixed[1])
        return total, features

    def compute_features(self, graph: Graph) -> Features:
        """Last-layer features of every structure, without forces."""
        species = self.find_species(graph.numbers)
        vectors = edge_vectors(graph).to(self.dtype)
        dense = lay_out_edges(vectors, graph.edge_index, species.shape[0], self.cutoff)
        return self.describe_atoms(dense.vectors, dense.senders, species)

    def evaluate_baseline(self, graph: Graph, vectors: Tensor, species: Tensor) -> Prediction:
        """The part that is not learned: composition energies and core repulsion, in the dtype of ``vectors``."""
        return assemble_prediction(graph, vectors, *self._evaluate_fixed(graph, vectors, species))

    def _evaluate_fixed(
        self, graph: Graph, vectors: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        energies = self.composition_energies[species]
        if self.core is None:
            return energies, torch.zeros_like(vectors)
        core_energies, core_gradient = self.core(vectors, graph.edge_index, species)
        return energies + core_energies.double(), core_gradient


def assemble_prediction(
    graph: Graph, vectors: Tensor, energies: Tensor, gradient: Tensor
) -> Prediction:
    """Turn per-atom energies and ``dE/d(edge vectors)`` into energy, forces and stress.

    With ``v = r_j - r_i + S cell``: ``F_i += dE/dv``, ``F_j -= dE/dv``, and
    ``stress = sum v (dE/dv)^T / volume``, symmetrised; the only place where these signs are written.
    """
    receivers, senders = graph.edge_index
    zeros = gradient.new_zeros(graph.n_atoms, 3)
    forces = zeros.index_add(0, receivers, gradient).index_add(0, senders, -gradient)
    if graph.n_systems == 1:
        virial = (vectors.T @ gradient)[None]
    else:
        virial = gradient.new_zeros(graph.n_systems, 3, 3).index_add(
            0, graph.batch[receivers], vectors.unsqueeze(2) * gradient.unsqueeze(1)
        )
    volume = torch.linalg.det(graph.cell.double()).abs().to(virial.dtype)
    stress = 0.5 * (virial + virial.transpose(1, 2)) / volume[:, None, None]
    energy = energies.new_zeros(graph.n_systems).index_add(0, graph.batch, energies)
    return Prediction(energy, forces, stress, energies)


def describe_unknown(numbers: Tensor, elements: tuple[int, ...]) -> str:
    """One line that names the unknown elements, where they are, and what the model knows."""
    from ase.data import chemical_symbols

    known = torch.isin(numbers.cpu(), torch.tensor(elements))
    where = (~known).nonzero().flatten().tolist()
    names = dict(enumerate(chemical_symbols))
    symbols = sorted({names.get(z, f"number {z}") for z in numbers[where].tolist()})
    shown = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
    return (
        f"atoms contain {', '.join(symbols)} (indices {shown}) but the model knows only "
        f"{', '.join(chemical_symbols[z] for z in elements)}; train a student on that element"
    )
