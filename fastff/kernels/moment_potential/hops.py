"""Definition of the hops of a moment potential: geometry to energies, and back to the gradient in the edge vectors.

Here: the order of sums over neighbors, node blocks and messages, and its adjoint, in plain torch; differentiable once
more in whatever the sums and blocks are differentiable in. Not here: those (:mod:`fastff.kernels.moments`,
:mod:`fastff.kernels.node_block`), parameters and their calibration, fixed energies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.moments.messages import (
    direct_messages,
    direct_messages_adjoint,
    read_messages,
    read_messages_adjoint,
)
from fastff.kernels.moments.reference import (
    EdgeGeometry,
    compute_moments,
    compute_moments_adjoint,
)
from fastff.kernels.node_block.reference import (
    CubicTable,
    NodeCache,
    NodeWeights,
    compute_node,
    compute_node_adjoint,
)
from fastff.kernels.rows import pick_rows


class Hop(NamedTuple):
    """What a hop keeps for its adjoint: of its slots, of its node block, and what that sends on."""

    weights: Tensor
    factors: Tensor
    radial: Tensor
    picked: Tensor | None
    cache: NodeCache
    messages: Tensor


def run_vacuum(
    blocks: Sequence[NodeWeights], n_channels: int, species: Tensor, table: CubicTable
) -> list[tuple[Tensor, NodeCache]]:
    """What each node block makes of an atom of each species without neighbors: energy (S,), and what it kept."""
    moments = table.coefficients.new_zeros(len(species), 16, n_channels)
    found: list[tuple[Tensor, NodeCache]] = []
    extra: Tensor | None = None
    for block in blocks:
        energy, messages, cache = compute_node(moments, extra, species, block, table)
        extra = messages[:, :n_channels]  # without moments nothing has a direction
        found.append((energy, cache))
    return found


def run_hops(
    geometry: EdgeGeometry,
    senders: Tensor,
    species: Tensor,
    radial_weights: Sequence[Tensor],
    factors: Tensor,
    blocks: Sequence[NodeWeights],
    vacuum: Sequence[Tensor],
    table: CubicTable,
) -> tuple[Tensor, list[Hop]]:
    """Energies of all atoms, and what every hop keeps.

    Parameters
    ----------
    geometry : EdgeGeometry
    senders : (n_atoms, n_slots) int64 tensor
    species : (n_atoms,) int64 tensor
    radial_weights : sequence of (n_atoms or 1, n_radial, n_channels) tensors
        Of every hop, for the receivers.
    factors : (n_atoms, n_slots, n_channels) tensor
        Of the first hop.
    blocks : sequence of NodeWeights
    vacuum : sequence of (n_species,) tensors
        Energies of atoms without neighbors, which are subtracted.
    table : CubicTable

    Returns
    -------
    energies : (n_atoms,) tensor
    hops : list of Hop
    """
    energies = geometry.distance.new_zeros(len(geometry.distance))
    n_channels = factors.shape[-1]
    carried: Tensor | None = None
    extra: Tensor | None = None
    hops: list[Hop] = []
    for weights, block, alone in zip(radial_weights, blocks, vacuum, strict=True):
        picked: Tensor | None = None
        if carried is not None:
            factors, picked = read_messages(carried, senders, geometry.harmonics)
        moments, radial = compute_moments(geometry, weights, factors)
        energy, messages, cache = compute_node(moments, extra, species, block, table)
        energies = energies + (energy - pick_rows(alone, species))
        hops.append(Hop(weights, factors, radial, picked, cache, messages))
        if messages.shape[1]:
            carried = direct_messages(messages, cache.mixed, n_channels, block.moment_curb)
            extra = messages[:, :n_channels]
    return energies, hops


def pull_hops(
    geometry: EdgeGeometry,
    senders: Tensor,
    species: Tensor,
    hops: Sequence[Hop],
    blocks: Sequence[NodeWeights],
    table: CubicTable,
) -> Tensor:
    """Gradient of the total energy in the edge vectors, (n_atoms, n_slots, 3), from what :func:`run_hops` kept."""
    gradient = torch.zeros_like(geometry.unit)
    messages_gradient: Tensor | None = None
    sent_gradient: Tensor | None = None
    for k in reversed(range(len(hops))):
        hop, block = hops[k], blocks[k]
        moments_gradient, extra_gradient = compute_node_adjoint(
            hop.cache, messages_gradient, species, block, table, sent_gradient
        )
        vector_gradient, factors_gradient = compute_moments_adjoint(
            geometry, hop.weights, hop.factors, hop.radial, moments_gradient, hop.picked
        )
        gradient = gradient + vector_gradient
        if k > 0:
            before = hops[k - 1]
            n_parts = 1 if hop.picked is None else hop.picked.shape[2]
            carried_gradient = read_messages_adjoint(
                factors_gradient, senders, geometry.harmonics, n_parts
            )
            messages_gradient, sent_gradient = direct_messages_adjoint(
                carried_gradient, before.messages, before.cache.mixed, blocks[k - 1].moment_curb
            )
            rest = messages_gradient.shape[1] - extra_gradient.shape[1]
            messages_gradient = messages_gradient + torch.nn.functional.pad(
                extra_gradient, (0, rest)
            )
    return gradient
