"""``painn``: the polarizable atom interaction network as a student, the baseline beside the moment family.

Here: parameters and the order of the computation. Not here: the ops it is made of (edge features, segment sums, small
perceptrons: :mod:`fastff.kernels`), core repulsion and composition energies (:mod:`fastff.models.base`).

Schütt, Unke and Gastegger, "Equivariant message passing for the prediction of tensorial properties and molecular
spectra", ICML 2021, equations 7 to 10 and figure 2. What differs, beside sums of messages that are scaled to unit size
on sample data, keeps energies finite where there are no labels; without it the products of three layers reach 1e49 eV
for a dimer at 0.3 Å:

- filters are linear in a radial basis that carries its envelope, without a bias, so that they vanish smoothly at the
  cut-off, and level off beyond three times the largest value in the sample;
- what multiplies a vector feature, or an inner product of two, goes through tanh, and the inner product is divided by
  the norm of one of them, so that features grow no faster than their sums of messages;
- the norm of vector features is ``sqrt(|x|^2 + 0.01)``, whose second derivative is bounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastff.kernels.edge_features.op import edge_features
from fastff.kernels.fused_mlp.op import fused_mlp
from fastff.kernels.segment_sum.op import segment_sum
from fastff.models.base import Features, Student, StudentConfig

_FILTER_LIMIT = 3.0
"""Bound of the filters over their largest magnitude on sample data."""

_NORM_FLOOR = 1e-2
"""Added to squared norms of vector features, which are of order one."""


class Perceptron(nn.Module):
    """Two linear layers with SiLU between them."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(n_hidden, n_in) / math.sqrt(n_in))
        self.bias1 = nn.Parameter(torch.randn(n_hidden) * 0.1)
        self.weight2 = nn.Parameter(torch.randn(n_out, n_hidden) * (0.3 / math.sqrt(n_hidden)))
        self.bias2 = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n_rows, n_in) to (n_rows, n_out)."""
        return fused_mlp(x, (self.weight1, self.weight2), (self.bias1, self.bias2))


class Interaction(nn.Module):
    """One message block and one update block, on scalars (n_atoms, F) and vectors (n_atoms, 3, F)."""

    message_scale: Tensor
    filter_limit: Tensor

    def __init__(self, n_features: int, n_radial: int, n_hidden: int) -> None:
        super().__init__()
        damping = torch.arange(1, n_radial + 1).float().reciprocal()[:, None]
        self.filter = nn.Parameter(torch.randn(n_radial, 3 * n_features) * damping)
        self.message = Perceptron(n_features, n_hidden, 3 * n_features)
        mixing = torch.randn(n_features, 2 * n_features) / math.sqrt(n_features)
        self.mixing = nn.Parameter(mixing)
        self.update = Perceptron(2 * n_features, n_hidden, 3 * n_features)
        self.register_buffer("message_scale", torch.ones(2))
        self.register_buffer("filter_limit", torch.ones(()))

    def filter_edges(self, basis: Tensor) -> Tensor:
        """Filters (n_edges, 3 F), ``x / sqrt(1 + (x / limit)^2)`` of the linear ones."""
        linear = basis @ self.filter
        return linear * torch.rsqrt(1.0 + (linear / self.filter_limit).square())

    def pass_messages(
        self,
        scalars: Tensor,
        vectors: Tensor,
        edges: tuple[Tensor, Tensor],
        senders: Tensor,
        pointers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Sums of messages before scaling, (n_atoms, F) and (n_atoms, 3, F); equations 7 and 8."""
        basis, directions = edges
        weights = self.message(scalars)[senders] * self.filter_edges(basis)
        plain, carried, pointed = weights.chunk(3, dim=1)
        arrows = (
            vectors[senders] * torch.tanh(carried)[:, None]
            + directions[:, :, None] * pointed[:, None]
        )
        return segment_sum(plain, pointers), segment_sum(arrows, pointers)

    def refine(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange between scalars and vectors of each atom; equations 9 and 10."""
        turned, other = (vectors @ self.mixing).chunk(2, dim=2)
        length = torch.sqrt(other.square().sum(dim=1) + _NORM_FLOOR)
        plain, crossed, scale = self.update(torch.cat([scalars, length], dim=1)).chunk(3, dim=1)
        scalars = scalars + plain + torch.tanh(crossed) * (turned * other).sum(dim=1) / length
        return scalars, vectors + torch.tanh(scale)[:, None] * turned


class PainnStudent(Student):
    """Equivariant message passing; forces by autograd. See the module docstring.

    Training differentiates the forces again (double backward), through ops that all support it.
    """

    layers: nn.ModuleList
    feature_scale: Tensor

    def __init__(self, config: StudentConfig, n_hops: int) -> None:
        super().__init__(config)
        width, (n_hidden, n_last) = config.n_channels, config.hidden
        self.embedding = nn.Parameter(torch.randn(len(config.elements), width))
        self.layers = nn.ModuleList(
            Interaction(width, config.n_radial, n_hidden) for _ in range(n_hops)
        )
        self.readout1 = nn.Parameter(torch.randn(width, n_last) / math.sqrt(width))
        self.readout_bias = nn.Parameter(torch.randn(n_last) * 0.1)
        self.readout2 = nn.Parameter(torch.randn(n_last) / math.sqrt(n_last))
        self.register_buffer("feature_scale", torch.ones(()))

    def evaluate_dense(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`fastff.models.base.Student.evaluate_dense`."""
        return self.evaluate_features(vectors, senders, species)[:2]

    def evaluate_features(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Features]:
        """See :meth:`fastff.models.base.Student.evaluate_features`."""
        pointers = _count_rows(senders)
        flat = vectors.reshape(-1, 3), senders.reshape(-1), pointers, species
        energies, gradient, features = self._differentiate(*flat)
        return energies, gradient.view_as(vectors), Features(features, features)

    def describe_atoms(self, vectors: Tensor, senders: Tensor, species: Tensor) -> Features:
        """See :meth:`fastff.models.base.Student.describe_atoms`."""
        flat = vectors.reshape(-1, 3), senders.reshape(-1), _count_rows(senders), species
        features = self._run(*flat)[1]
        return Features(features, features)

    def evaluate_edges(
        self, vectors: Tensor, edge_index: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`fastff.models.base.Student.evaluate_edges`; no padding is needed here."""
        counts = torch.bincount(edge_index[0], minlength=species.shape[0])
        pointers = functional.pad(counts.cumsum(0), (1, 0))
        return self._differentiate(vectors, edge_index[1], pointers, species)[:2]

    def _differentiate(
        self, vectors: Tensor, senders: Tensor, pointers: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, their gradient in the edge vectors (n_edges, 3), and features."""
        wanted = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        wanted = wanted and (vectors.requires_grad or self.embedding.requires_grad)
        if vectors.shape[0] == 0:
            energies, features = self._run(vectors, senders, pointers, species)
            return energies, torch.zeros_like(vectors), features
        with torch.inference_mode(False), torch.enable_grad():
            if not wanted:  # results of inference mode cannot be saved for a backward pass
                senders, pointers, species = (x.clone() for x in (senders, pointers, species))
            leaf = vectors if vectors.requires_grad and wanted else vectors.clone().requires_grad_()
            energies, features = self._run(leaf, senders, pointers, species)
            (gradient,) = torch.autograd.grad(energies.sum(), leaf, create_graph=wanted)
        if wanted:
            return energies, gradient, features
        return energies.detach(), gradient, features.detach()

    def _run(
        self, vectors: Tensor, senders: Tensor, pointers: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        basis, directions = self._describe(vectors)
        scalars = self.embedding[species]
        arrows = scalars.new_zeros(scalars.shape[0], 3, scalars.shape[1])
        bare = self.embedding[torch.arange(len(self.elements), device=species.device)]
        still = bare.new_zeros(len(self.elements), 3, bare.shape[1])
        for layer in self.layers:
            assert isinstance(layer, Interaction)
            plain, pointed = layer.pass_messages(
                scalars, arrows, (basis, directions), senders, pointers
            )
            scalars = scalars + plain * layer.message_scale[0]
            arrows = arrows + pointed * layer.message_scale[1]
            scalars, arrows = layer.refine(scalars, arrows)
            bare, still = layer.refine(bare, still)
        features = (self._read(scalars) - self._read(bare)[species]) * self.feature_scale
        return features @ self.readout2, features

    def _describe(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Radial basis (n_edges, n_radial), and directions (n_edges, 3) in the order y, z, x of l = 1."""
        basis, harmonics = edge_features(vectors, self.cutoff, self.config.n_radial, 1)
        return basis, harmonics[:, 1:]

    def _read(self, scalars: Tensor) -> Tensor:
        return functional.silu(scalars @ self.readout1 + self.readout_bias)

    @torch.no_grad()
    def calibrate(self, vectors: Tensor, senders: Tensor, species: Tensor) -> None:
        """Set the scales of the message sums, and of the features, so that their root mean squares are one."""
        self.feature_scale.fill_(1.0)
        pointers = _count_rows(senders)
        flat, senders = vectors.reshape(-1, 3), senders.reshape(-1)
        edges = self._describe(flat)
        scalars = self.embedding[species]
        arrows = scalars.new_zeros(scalars.shape[0], 3, scalars.shape[1])
        for layer in self.layers:
            assert isinstance(layer, Interaction)
            layer.filter_limit.copy_(_FILTER_LIMIT * (edges[0] @ layer.filter).abs().max())
            plain, pointed = layer.pass_messages(scalars, arrows, edges, senders, pointers)
            sizes = torch.stack([x.square().mean().sqrt() for x in (plain, pointed)])
            layer.message_scale.copy_(1.0 / sizes.clamp_min(1e-6))
            scalars = scalars + plain * layer.message_scale[0]
            arrows = arrows + pointed * layer.message_scale[1]
            scalars, arrows = layer.refine(scalars, arrows)
        _, features = self._run(flat, senders, pointers, species)
        self.feature_scale.copy_(1.0 / features.square().mean().sqrt().clamp_min(1e-6))


def _count_rows(senders: Tensor) -> Tensor:
    """Pointers of a dense layout: every atom has as many rows as there are slots."""
    n_atoms, n_slots = senders.shape
    return torch.arange(n_atoms + 1, device=senders.device) * n_slots
