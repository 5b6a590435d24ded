"""The moment family: ``m1`` (one hop, strictly local), ``m2`` (two hops), ``m2-l`` (wider) and ``m3-l`` (three hops).

Here: parameters, the order of the computation, and its adjoint across hops. Not here: the sums over neighbours
(:mod:`fastff.kernels.moments`), the node block (:mod:`fastff.kernels.node_block`), core repulsion and
composition energies (:mod:`fastff.models.base`).

Hop 1 sums radial functions times a species-pair factor times spherical harmonics into moments, couples them to
invariants up to body order four, and maps these to an energy and, in ``m2``, to scalar messages. Each further hop does
the same with the neighbor's messages as factors; ``StudentConfig.n_hops`` may ask for a third and a fourth, and
``StudentConfig.message_degree`` for messages that depend on the direction they are read from. ``m3-l`` has three hops
and such messages. Cost does not grow with the number of elements.

Moments and invariants are those of the atomic cluster expansion (Drautz 2019, Phys. Rev. B 99, 014104), their channels
mixed before the products as in Batatia et al. 2022 (MACE, NeurIPS, eq. 9-10); directed messages follow Schütt, Unke and
Gastegger 2021 (PaiNN, ICML, eq. 8), contracted with the edge to a scalar (:mod:`fastff.kernels.moments.messages`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastff.errors import DataError
from fastff.kernels.couplings import CUBIC_TRIPLES
from fastff.kernels.moment_potential.hops import Hop, pull_hops, run_hops, run_vacuum
from fastff.kernels.moments.messages import direct_messages, read_messages
from fastff.kernels.moments.reference import EdgeGeometry, compute_moments, describe_edges
from fastff.kernels.node_block.reference import (
    N_INVARIANT_KINDS,
    CubicTable,
    NodeCache,
    NodeWeights,
    activate,
    bound_messages,
    build_cubic_table,
    compute_invariants,
    compute_node,
    mix_channels,
)
from fastff.kernels.rows import pick_rows
from fastff.models.base import MAX_HOPS, Features, Student, StudentConfig


class NodeBlock(nn.Module):
    """Parameters of one node block; see :class:`~fastff.kernels.node_block.reference.NodeWeights`."""

    shift: Tensor
    scale: Tensor
    inverse_limit: Tensor
    message_scale: Tensor
    message_curb: Tensor
    moment_curb: Tensor

    def __init__(self, config: StudentConfig, n_extra: int, n_messages: int) -> None:
        super().__init__()
        n_species = len(config.elements)
        n_inputs = N_INVARIANT_KINDS * config.n_mixed + n_extra
        h1, h2 = config.hidden

        def draw(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape) / math.sqrt(fan_in))

        self.mixing = draw(4, config.n_channels, config.n_mixed, fan_in=config.n_channels)
        self.register_buffer("shift", torch.zeros(n_inputs))
        self._used = mask_invariants(config, n_extra)
        self.register_buffer("scale", self._used.to(torch.get_default_dtype()))
        self.is_unbounded = config.input_limit is None
        inverse = 0.0 if config.input_limit is None else 1.0 / config.input_limit
        self.register_buffer("inverse_limit", torch.tensor(inverse), persistent=False)
        self.weight1 = draw(n_inputs, h1, fan_in=n_inputs)
        self.bias1 = nn.Parameter(torch.randn(n_species, h1) * 0.1)
        self.weight2 = draw(h1, h2, fan_in=h1)
        self.bias2 = nn.Parameter(torch.randn(n_species, h2) * 0.1)
        self.readout = nn.Parameter(torch.randn(1, h2).expand(n_species, h2) / math.sqrt(h2))
        self.message = draw(h2, n_messages, fan_in=h2)
        self.message_bias = nn.Parameter(torch.randn(n_species, n_messages))
        self.config = config
        self.has_gates = config.message_degree > 0 and n_messages > 0
        if self.has_gates:
            self.register_buffer("message_scale", torch.ones(n_messages))
        for name in ("message_curb", "moment_curb"):
            self.register_buffer(name, torch.zeros(n_messages), persistent=self.has_gates)

    @torch.no_grad()
    def calibrate(
        self, moments: Tensor, extra: Tensor | None, species: Tensor, table: CubicTable
    ) -> None:
        """Set shift and scale of the inputs, and the scale of gates, from sample moments (n_atoms, 16, n_channels)."""
        mixed = mix_channels(moments, self.mixing)
        if self.has_gates:
            self._calibrate_gates(mixed)
        inputs, _ = compute_invariants(mixed, table)
        if extra is not None:
            inputs = torch.cat([inputs, extra], dim=1)
        inputs = trim_outliers(inputs, species)
        spread = inputs.std(dim=0, correction=0)
        floor = 0.05 * inputs.square().mean(dim=0).sqrt()
        self.shift.copy_(inputs.mean(dim=0))
        self.scale.copy_(1.0 / torch.maximum(spread, floor).clamp_min(1e-6))
        self.scale.mul_(self._used.to(self.scale))

    def _calibrate_gates(self, mixed: Tensor) -> None:
        """What a neighbor reads of every degree shall be half as large as a gate, at the root mean square.

        A degree that symmetry forbids in the sample counts as a twentieth of l = 0. Moments are kept within as many
        root mean squares as inputs are within standard deviations.
        """
        n_channels = mixed.shape[2]
        floor = 0.05 * mixed[:, 0].square().mean().sqrt().clamp_min(1e-6)
        for degree in range(1, len(self.message_scale) // n_channels):
            part = mixed[:, degree**2 : (degree + 1) ** 2]
            size = torch.maximum(part.square().sum(dim=1).mean().sqrt(), floor)
            columns = slice(degree * n_channels, (degree + 1) * n_channels)
            self.message_scale[columns] = 0.5 / size
            self.moment_curb[columns] = self.inverse_limit / size

    @torch.no_grad()
    def calibrate_messages(self, messages: Tensor) -> Tensor:
        """Keep messages within as many root mean squares of those of a sample as inputs are within deviations.

        Of all scalars, and all gates of a degree, together; where there are no gates, nothing is bounded. Returns the
        messages of the sample within their limits.
        """
        if not self.has_gates:
            return messages
        parts = messages.view(len(messages), self.config.message_degree + 1, -1)
        size = parts.square().mean(dim=(0, 2), keepdim=True).sqrt().clamp_min(1e-6)
        self.message_curb.copy_((self.inverse_limit / size).expand_as(parts)[0].flatten())
        return bound_messages(messages, self.message_curb)[0]

    def evaluate_unbounded(self, cache: NodeCache, species: Tensor) -> Tensor:
        """Last hidden layer (n_atoms, H2), had the inputs not been bounded; see ``bound_inputs``."""
        if self.is_unbounded:
            return cache.hidden
        used = self.scale > 0
        factor_cubed = torch.where(used, cache.slope0 / torch.where(used, self.scale, 1.0), 1.0)
        return self._activate(
            cache.bounded * factor_cubed.clamp_min(1e-36).pow(-1.0 / 3.0), species
        )

    def evaluate_raw(self, inputs: Tensor, species: Tensor) -> Tensor:
        """Last hidden layer (n_atoms, H2) of raw inputs (n_atoms, I); as of :meth:`evaluate_unbounded`."""
        return self._activate((inputs - self.shift) * self.scale, species)

    def _activate(self, inputs: Tensor, species: Tensor) -> Tensor:
        """Last hidden layer of normalised inputs."""
        hidden, _ = activate(inputs @ self.weight1 + pick_rows(self.bias1, species))
        return activate(hidden @ self.weight2 + pick_rows(self.bias2, species))[0]

    @property
    def weights(self) -> NodeWeights:
        """The parameters as the kernels take them."""
        return NodeWeights(
            self.mixing,
            self.shift,
            self.scale,
            self.inverse_limit,
            self.weight1,
            self.bias1,
            self.weight2,
            self.bias2,
            self.readout,
            self.message * self.message_scale if self.has_gates else self.message,
            self.message_bias * self.message_scale if self.has_gates else self.message_bias,
            self.message_curb,
            self.moment_curb,
        )


def trim_outliers(inputs: Tensor, species: Tensor) -> Tensor:
    """Inputs (n_atoms, I) clipped to the central 90 % of those of their species.

    Invariants grow with up to the third power of the moments: without this, a few atoms pushed together set the scale,
    and to the network all others look alike.
    """
    bounds = torch.tensor([0.05, 0.95], dtype=inputs.dtype, device=inputs.device)
    trimmed = torch.empty_like(inputs)
    for kind in species.unique().tolist():
        rows = (species == kind).nonzero().flatten()
        own = inputs[rows]
        trimmed[rows] = own.clamp(*torch.quantile(own, bounds, dim=0))
    return trimmed


def mask_invariants(config: StudentConfig, n_extra: int) -> Tensor:
    """Which inputs of a node block are used, (8 n_mixed + n_extra,) bool, given ``l_max`` and ``body_order``."""
    used = [config.body_order >= 2]
    used += [config.body_order >= 3 and degree <= config.l_max for degree in (1, 2, 3)]
    used += [config.body_order >= 4 and max(triple) <= config.l_max for triple in CUBIC_TRIPLES]
    kinds = torch.tensor(used).repeat_interleave(config.n_mixed)
    return torch.cat([kinds, torch.ones(n_extra, dtype=torch.bool)])


class MomentStudent(Student):
    """Moment model of one to four hops with an analytic adjoint. See the module docstring.

    The adjoint is itself a forward computation in torch: energies and their gradient in the edge vectors come from one
    pass without autograd, and one ordinary backward gives the derivatives of both in the parameters.

    Parameters
    ----------
    config : StudentConfig
    n_hops : int
        1 to :data:`~fastff.models.base.MAX_HOPS`; the receptive field is this many cut-offs.

    Raises
    ------
    DataError
        If a student of one hop should send messages with a direction.
    """

    moment_scale: Tensor

    blocks: Sequence[NodeBlock]

    def __init__(self, config: StudentConfig, n_hops: int) -> None:
        super().__init__(config)
        if not 1 <= n_hops <= MAX_HOPS:
            raise ValueError(f"n_hops {n_hops} must be 1 to {MAX_HOPS}")
        if n_hops == 1 and config.message_degree > 0:
            raise DataError(
                f"message_degree {config.message_degree}: a student of one hop sends no messages; leave it out"
            )
        self.n_hops = n_hops
        n_species, n_channels = len(config.elements), config.n_channels
        shape = (n_hops, n_species, config.n_radial, n_channels)
        damping = torch.arange(1, config.n_radial + 1).float().rsqrt()[:, None]
        self.radial_weights = nn.Parameter(torch.randn(shape) * damping)
        self.pair_factors = nn.Parameter(torch.randn(n_species, n_species, n_channels))
        self.register_buffer("moment_scale", torch.ones(n_hops))
        last = n_hops - 1
        self.blocks = nn.ModuleList(  # type: ignore[assignment]  # it has no type of its elements
            NodeBlock(
                config,
                n_extra=0 if hop == 0 else n_channels,
                n_messages=0 if hop == last else n_channels * (config.message_degree + 1),
            )
            for hop in range(n_hops)
        )

    @property
    def cubic_table(self) -> CubicTable:
        """Monomials of the cubic invariants, on the model's device and in its dtype."""
        return build_cubic_table(self.dtype, self.device)

    def _gather_radial(self, hop: int, species: Tensor) -> Tensor:
        weights = self.radial_weights[hop] * self.moment_scale[hop]
        return weights if weights.shape[0] == 1 else pick_rows(weights, species)

    def _gather_pairs(self, species: Tensor, senders: Tensor) -> Tensor:
        """Factors of receiver and sender species, (n_atoms, n_slots, n_channels)."""
        if not (torch.is_grad_enabled() and self.pair_factors.requires_grad):
            return self.pair_factors[species[:, None], species[senders]]
        known = torch.arange(len(self.elements), device=species.device)
        of_sender = (species[senders][:, :, None] == known).to(self.dtype)
        return of_sender @ pick_rows(self.pair_factors, species)

    def evaluate_dense(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`fastff.models.base.Student.evaluate_dense`."""
        return self._evaluate(vectors, senders, species)[:2]

    def evaluate_features(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, Features]:
        """See :meth:`fastff.models.base.Student.evaluate_features`."""
        energies, gradient, caches, vacuum = self._evaluate(vectors, senders, species)
        return energies, gradient, self._collect_features(caches, vacuum, species)

    def describe_atoms(self, vectors: Tensor, senders: Tensor, species: Tensor) -> Features:
        """See :meth:`fastff.models.base.Student.describe_atoms`."""
        blocks = [block.weights for block in self.blocks]
        _, hops, vacuum = self._run(
            self._describe(vectors, senders, species), senders, species, blocks
        )
        return self._collect_features([hop.cache for hop in hops], vacuum, species)

    def _collect_features(
        self, caches: list[NodeCache], vacuum: list[NodeCache], species: Tensor
    ) -> Features:
        known = torch.arange(len(self.elements), device=species.device)
        values, unbounded = [], []
        for block, cache, alone in zip(self.blocks, caches, vacuum, strict=True):
            values.append(cache.hidden - pick_rows(alone.hidden, species))
            bare = block.evaluate_unbounded(alone, known)
            unbounded.append(block.evaluate_unbounded(cache, species) - pick_rows(bare, species))
        return Features(torch.cat(values, dim=1), torch.cat(unbounded, dim=1))

    @torch.no_grad()
    def describe_vacuum(self) -> list[Tensor]:
        """Unbounded last-layer features of an atom of each species alone, (n_species, H2) of every hop."""
        known = torch.arange(len(self.elements), device=self.device)
        blocks = [block.weights for block in self.blocks]
        vacuum = run_vacuum(blocks, self.config.n_channels, known, self.cubic_table)
        return [
            block.evaluate_unbounded(alone, known)
            for block, (_, alone) in zip(self.blocks, vacuum, strict=True)
        ]

    def _describe(self, vectors: Tensor, senders: Tensor, species: Tensor) -> EdgeGeometry:
        inner = self.inner_distances
        if inner is not None:
            inner = inner.to(vectors.dtype)[species[:, None], species[senders]]
        return describe_edges(vectors, self.cutoff, self.config.n_radial, inner)

    def _run(
        self, geometry: EdgeGeometry, senders: Tensor, species: Tensor, blocks: list[NodeWeights]
    ) -> tuple[Tensor, list[Hop], list[NodeCache]]:
        """Energies (n_atoms,), what every hop kept, and what each node block keeps of an atom of each species alone."""
        known = torch.arange(len(self.elements), device=species.device)
        table = self.cubic_table
        vacuum = run_vacuum(blocks, self.config.n_channels, known, table)
        energies, hops = run_hops(
            geometry,
            senders,
            species,
            [self._gather_radial(hop, species) for hop in range(self.n_hops)],
            self._gather_pairs(species, senders),
            blocks,
            [energy for energy, _ in vacuum],
            table,
        )
        return energies, hops, [cache for _, cache in vacuum]

    def _evaluate(
        self, vectors: Tensor, senders: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor, list[NodeCache], list[NodeCache]]:
        """As :meth:`evaluate_dense`, with what each node block kept, of the atoms and of the vacuum."""
        geometry = self._describe(vectors, senders, species)
        blocks = [block.weights for block in self.blocks]
        energies, hops, vacuum = self._run(geometry, senders, species, blocks)
        gradient = pull_hops(geometry, senders, species, hops, blocks, self.cubic_table)
        return energies, gradient, [hop.cache for hop in hops], vacuum

    @torch.no_grad()
    def calibrate(self, vectors: Tensor, senders: Tensor, species: Tensor) -> None:
        """Set the fixed normalisations from sample data, before training.

        Moments are scaled so that the root mean square of the l = 0 component is one; each invariant is shifted by
        its mean and scaled by its standard deviation, the latter bounded below by a twentieth of its root mean
        square, so that environments far from the sample stay in a sane range. Both are those of the bulk of each
        species (:func:`trim_outliers`).
        """
        geometry = self._describe(vectors, senders, species)
        carried: Tensor | None = None
        extra: Tensor | None = None
        factors = self._gather_pairs(species, senders)
        for hop, block in enumerate(self.blocks):
            if carried is not None:
                factors, _ = read_messages(carried, senders, geometry.harmonics)
            self.moment_scale[hop] = 1.0
            weights = self._gather_radial(hop, species)
            moments, _ = compute_moments(geometry, weights, factors)
            size = moments[:, 0].square().mean().sqrt().clamp_min(1e-6)
            self.moment_scale[hop] = 1.0 / size
            block.calibrate(moments / size, extra, species, self.cubic_table)
            block.message_curb.zero_()
            _, messages, cache = compute_node(
                moments / size, extra, species, block.weights, self.cubic_table
            )
            messages = block.calibrate_messages(messages)
            if messages.shape[1]:
                n_channels = self.config.n_channels
                carried = direct_messages(messages, cache.mixed, n_channels, block.moment_curb)
                extra = messages[:, :n_channels]
