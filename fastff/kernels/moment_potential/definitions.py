"""Definition of every launch of the fused evaluation, over what the launch itself reads.

Here: plain torch for the kernels over neighbours and of the node block, given their input buffers, so that each can be
tested and tuned apart from what ran before it; in float64 unless another dtype is asked for. Not here: the definition
of the whole (``reference.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.moment_potential.layout import (
    GRID_BITS,
    NeighborMatrix,
    PackedBlock,
    PackedWeights,
    unpack_neighbors,
)
from fastff.kernels.moment_potential.reference import evaluate_core
from fastff.kernels.moments.messages import read_messages, read_messages_adjoint
from fastff.kernels.moments.reference import (
    EdgeGeometry,
    compute_moments,
    compute_moments_adjoint,
    describe_edges,
)
from fastff.kernels.node_block.reference import (
    N_INVARIANT_KINDS,
    CubicTable,
    activate,
    bound_inputs,
    bound_messages,
    build_cubic_table,
    compute_invariants,
    compute_invariants_adjoint,
    mix_channels,
)


class SumsAdjoint(NamedTuple):
    """Forces (n_atoms, 3) eV/Å, terms (n_atoms, 7): virial and core energy, message gradients like the messages."""

    forces: Tensor
    terms: Tensor
    message_gradients: Tensor


def measure_edges(
    sites: Tensor, matrix: NeighborMatrix, cutoff: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Vectors (n_atoms, n_slots, 3) in Å between grid positions, empty slots at the cut-off; mask of filled slots."""
    senders, codes, filled = unpack_neighbors(matrix)
    units = sites[:, :3].long()
    difference = units[senders] + matrix.translations[:, :3].long()[codes] - units[:, None]
    wrapped = (difference + 2**31) % 2**32 - 2**31
    padding = torch.tensor([cutoff, 0.0, 0.0], dtype=dtype, device=sites.device)
    return torch.where(filled[..., None], wrapped.to(dtype) * 2.0**-GRID_BITS, padding), filled


def _prepare_sums(
    sites: Tensor,
    matrix: NeighborMatrix,
    packed: PackedWeights,
    hop: int,
    messages: Tensor,
    dtype: torch.dtype,
) -> tuple[EdgeGeometry, Tensor, Tensor, Tensor | None]:
    """Geometry, radial weights of every receiver, factors of every slot, and what they were read from."""
    vectors, _ = measure_edges(sites, matrix, packed.cutoff, dtype)
    weights = packed.radial[hop].to(dtype) / (2.0 / packed.cutoff) ** 0.5  # the basis has its norm
    species = sites[:, 3].long()
    senders = unpack_neighbors(matrix)[0]
    inner = None
    if packed.core is not None and packed.inner_reach > 0.0:
        pair = species[:, None] * packed.pair_factors.shape[0] + species[senders]
        inner = packed.core.to(dtype)[pair, 3]
    geometry = describe_edges(vectors, packed.cutoff, weights.shape[1], inner)
    if hop == 0:
        pairs = packed.pair_factors.to(dtype)[species[:, None], species[senders]]
        return geometry, weights[species], pairs, None
    carried = messages.to(dtype).view(messages.shape[0], -1, packed.n_channels)
    factors, picked = read_messages(carried, senders, geometry.harmonics)
    return geometry, weights[species], factors, picked


def define_moments(
    sites: Tensor,
    matrix: NeighborMatrix,
    packed: PackedWeights,
    hop: int,
    messages: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Moments (n_atoms, 16, C) of a hop, given messages (n_atoms, (degree + 1)^2 C)."""
    geometry, weights, factors, _ = _prepare_sums(sites, matrix, packed, hop, messages, dtype)
    return compute_moments(geometry, weights, factors)[0]


def define_adjoint(
    sites: Tensor,
    matrix: NeighborMatrix,
    packed: PackedWeights,
    hop: int,
    messages: Tensor,
    gradients: Tensor,
    dtype: torch.dtype = torch.float64,
) -> SumsAdjoint:
    """What one hop adds to forces, terms and message gradients, given dE/dA (n_atoms, 16, C); core in hop 1."""
    geometry, weights, factors, picked = _prepare_sums(sites, matrix, packed, hop, messages, dtype)
    _, radial = compute_moments(geometry, weights, factors)
    edge, factor = compute_moments_adjoint(
        geometry, weights, factors, radial, gradients.to(dtype), picked
    )
    vectors, filled = measure_edges(sites, matrix, packed.cutoff, dtype)
    senders = unpack_neighbors(matrix)[0]
    core_energy = edge.new_zeros(edge.shape[0])
    if hop == 0 and packed.core is not None:
        species = sites[:, 3].long()
        pair = species[:, None] * packed.pair_factors.shape[0] + species[senders]
        distance = geometry.distance[..., 0]
        value, slope = evaluate_core(distance, *packed.core.to(dtype)[pair, :3].unbind(-1))
        core_energy = torch.where(filled, value, 0.0).sum(dim=1)
        edge = edge + geometry.unit * torch.where(filled, slope, 0.0)[..., None]
    edge = torch.where(filled[..., None], edge, 0.0)
    factor = torch.where(filled[..., None], factor, 0.0)
    flat = senders.flatten()
    forces = edge.sum(dim=1).index_add(0, flat, -edge.flatten(0, 1))
    outer = torch.einsum("isa,isb->iab", vectors, edge)
    outer = 0.5 * (outer + outer.mT)
    parts = [outer[:, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    n_parts = 1 if picked is None else picked.shape[2]
    back = read_messages_adjoint(factor, senders, geometry.harmonics, n_parts).flatten(1)
    return SumsAdjoint(forces, torch.stack([*parts, core_energy], dim=1), back)


def define_returns(
    sites: Tensor,
    matrix: NeighborMatrix,
    packed: PackedWeights,
    factor_gradients: Tensor,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Message gradients (n_atoms, (degree + 1)^2 C) from those in the factors of every slot (n_atoms, n_slots, C)."""
    vectors, filled = measure_edges(sites, matrix, packed.cutoff, dtype)
    harmonics = describe_edges(vectors, packed.cutoff, packed.radial[0].shape[1]).harmonics
    factor = torch.where(filled[..., None], factor_gradients.to(dtype), 0.0)
    n_parts = (packed.message_degree + 1) ** 2
    return read_messages_adjoint(factor, unpack_neighbors(matrix)[0], harmonics, n_parts).flatten(1)


def define_invariants(
    moments: Tensor, mixing: Tensor, table: CubicTable | None = None
) -> tuple[Tensor, Tensor]:
    """Mixed moments (n_atoms, 16, Q) and invariants (n_atoms, 8 Q), in the dtype of the table."""
    table = table or build_cubic_table(torch.float64, moments.device)
    dtype = table.coefficients.dtype
    mixed = mix_channels(moments.to(dtype), mixing.to(dtype))
    return mixed, compute_invariants(mixed, table)[0]


def define_pullback(
    mixed: Tensor,
    gradients: Tensor,
    mixing: Tensor,
    table: CubicTable | None = None,
    sent: Tensor | None = None,
) -> Tensor:
    """dE/dA (n_atoms, 16, C) from mixed moments and dE/d(invariants), in the dtype of the table.

    ``sent`` (n_atoms, n_parts, C): gradient in the first mixed moments that messages were made of.
    """
    table = table or build_cubic_table(torch.float64, mixed.device)
    dtype = table.coefficients.dtype
    mixed = mixed.to(dtype)
    _, products = compute_invariants(mixed, table)
    back = compute_invariants_adjoint(gradients.to(dtype), mixed, products, table)
    if sent is not None:
        back[:, : sent.shape[1]] += sent.to(dtype)
    return mix_channels(back, mixing.to(dtype).transpose(1, 2))


def define_perceptron(
    invariants: Tensor,
    messages: Tensor | None,
    message_gradients: Tensor | None,
    species: Tensor,
    block: PackedBlock,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies (n_atoms,), scalars and gates (n_atoms, M) to send, and gradient in all inputs (n_atoms, 8 Q + extra).

    ``messages`` (n_atoms, C) are the atom's own scalars, ``message_gradients`` (n_atoms, M) those in what it sends.
    """
    exact = PackedBlock(*(part.to(dtype) for part in block))
    inputs = invariants.to(dtype)
    if messages is not None:
        inputs = torch.cat([inputs, messages.to(dtype)], dim=1)
    inputs, slope0 = bound_inputs(inputs, exact.shift, torch.ones_like(exact.shift), exact.curb)
    assert inputs.shape[1] >= N_INVARIANT_KINDS
    species = species.long()
    hidden1, slope1 = activate(inputs @ exact.weight1 + exact.bias1[species])
    hidden2, slope2 = activate(hidden1 @ exact.weight2 + exact.bias2[species])
    energies = (hidden2 * exact.readout[species]).sum(dim=1) - exact.vacuum[species]
    out = hidden2 @ exact.message + exact.message_bias[species]
    slope = torch.ones_like(out)
    if out.shape[1] > block.mixing.shape[1]:
        out, slope = bound_messages(out, exact.message_curb)
    pull = exact.readout[species]
    if message_gradients is not None:
        pull = pull + (message_gradients.to(dtype) * slope) @ exact.message.T
    pull = ((pull * slope2) @ exact.weight2.T * slope1) @ exact.weight1.T * slope0
    return energies, out, pull
