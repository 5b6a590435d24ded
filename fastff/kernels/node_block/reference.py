"""Definition of the node block: moments of an atom to invariants, energy and messages, and its adjoint.

Here: rotation invariants up to body order four and the species-conditioned multilayer perceptron on them, with the
analytic vector-Jacobian product written as a forward computation, so that training needs one ordinary backward pass.
Not here: sums over neighbours (:mod:`fastff.kernels.moments.reference`), dispatch, Triton kernels.

The invariants are the power spectrum and a bispectrum-like set (Drautz 2019, Phys. Rev. B 99, 014104; channel mixing
before the products as in Batatia et al. 2022, MACE, NeurIPS, eq. 9-10).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.couplings import CUBIC_TRIPLES, list_cubic_terms
from fastff.kernels.rows import pick_rows

N_COMPONENTS = 16
"""Components lm of the moments, l <= 3."""

N_INVARIANT_KINDS = 4 + len(CUBIC_TRIPLES)
"""Invariants per mixed channel: l = 0, three power-spectrum degrees, and the cubic couplings."""


class NodeWeights(NamedTuple):
    """Parameters of one node block. S species, C channels, Q mixed channels, I = 8 Q + extra inputs, H hidden units.

    mixing (4, C, Q): per degree l; shift, scale (I,): affine normalisation of the inputs; inverse_limit (): what
    normalised inputs are bounded by, inverted, or zero (see :func:`bound_inputs`);
    weight1 (I, H1), bias1 (S, H1), weight2 (H1, H2), bias2 (S, H2); readout (S, H2): energy per species;
    message (H2, M) and message_bias (S, M): scalars, then gates of directed messages; M = 0 where nothing is sent;
    message_curb (M,): one over the limit of each, read where gates are among them (:func:`bound_messages`);
    moment_curb (M,): one over the limit of the moments that a gate multiplies, zero for scalars.
    """

    mixing: Tensor
    shift: Tensor
    scale: Tensor
    inverse_limit: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    readout: Tensor
    message: Tensor
    message_bias: Tensor
    message_curb: Tensor
    moment_curb: Tensor


class NodeCache(NamedTuple):
    """Intermediates of the forward computation: what the adjoint reads, and the last hidden layer (n_atoms, H2).

    bounded, slope0 (n_atoms, I): inputs within their limit, and their derivative in the raw ones; message_slope
    (n_atoms, M): that of messages, or None where they have no limit.
    """

    mixed: Tensor
    products: tuple[Tensor, Tensor, Tensor]
    bounded: Tensor
    slope0: Tensor
    slope1: Tensor
    slope2: Tensor
    hidden: Tensor
    message_slope: Tensor | None


class CubicTable(NamedTuple):
    """Monomials of all cubic invariants: indices (n_terms,) thrice, and coefficients (n_couplings, n_terms).

    scatter (3, 16, n_terms): one where a monomial's factor at each of its three places is the component.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    coefficients: Tensor
    scatter: Tensor


def build_cubic_table(dtype: torch.dtype, device: torch.device) -> CubicTable:
    """Monomials of the triples in :data:`~fastff.kernels.couplings.CUBIC_TRIPLES`, always the same tensors."""
    return _build_cubic_table(dtype, device)


build_cubic_table._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see fastff.kernels.dispatch


@cache
@torch.inference_mode(False)  # kept and used again in training, whoever asks first
def _build_cubic_table(dtype: torch.dtype, device: torch.device) -> CubicTable:
    rows: list[tuple[int, int, int]] = []
    values: list[tuple[int, int, float]] = []
    for kind, triple in enumerate(CUBIC_TRIPLES):
        for a, b, c, weight in list_cubic_terms(*triple):
            values.append((kind, len(rows), weight))
            rows.append((a, b, c))
    index = torch.tensor(rows, dtype=torch.int64)
    coefficients = torch.zeros(len(CUBIC_TRIPLES), len(rows), dtype=torch.float64)
    for kind, column, weight in values:
        coefficients[kind, column] = weight
    scatter = torch.zeros(3, N_COMPONENTS, len(rows), dtype=torch.float64)
    for place in range(3):
        scatter[place, index[:, place], torch.arange(len(rows))] = 1.0
    a_index, b_index, c_index = index.T.contiguous()
    exact = CubicTable(a_index, b_index, c_index, coefficients.to(dtype), scatter.to(dtype))
    return CubicTable(*(part.to(device) for part in exact))


def mix_channels(moments: Tensor, mixing: Tensor) -> Tensor:
    """``X[i, lm, q] = sum_n A[i, lm, n] mixing[l, n, q]``, shape (n_atoms, 16, n_mixed)."""
    parts = moments.split((1, 3, 5, 7), dim=1)
    return torch.cat([part @ mixing[degree] for degree, part in enumerate(parts)], dim=1)


def compute_invariants(
    mixed: Tensor, table: CubicTable
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Rotation and inversion invariants of the mixed moments.

    Parameters
    ----------
    mixed : (n_atoms, 16, n_mixed) tensor
    table : CubicTable

    Returns
    -------
    invariants : (n_atoms, 8 n_mixed) tensor
        Kinds in order: l = 0; squares of l = 1, 2, 3 over 2l + 1; the cubic couplings; each with n_mixed columns.
    products : three (n_atoms, n_terms, n_mixed) tensors
        ``X_b X_c``, ``X_a X_c``, ``X_a X_b`` of every monomial, for the adjoint.
    """
    parts = mixed.split((1, 3, 5, 7), dim=1)
    squares = [(part * part).mean(dim=1) for part in parts[1:]]
    xa, xb, xc = (mixed.index_select(1, index) for index in (table.a, table.b, table.c))
    products = (xb * xc, xa * xc, xa * xb)
    cubic = table.coefficients @ (products[2] * xc)
    return torch.cat([parts[0][:, 0], *squares, cubic.flatten(1)], dim=1), products


def compute_invariants_adjoint(
    gradient: Tensor, mixed: Tensor, products: tuple[Tensor, Tensor, Tensor], table: CubicTable
) -> Tensor:
    """Gradient in the mixed moments, (n_atoms, 16, n_mixed), given the gradient in the invariants."""
    n_atoms, _, n_mixed = mixed.shape
    by_kind = gradient.view(n_atoms, N_INVARIANT_KINDS, n_mixed)
    linear = by_kind[:, :1]
    parts = mixed.split((1, 3, 5, 7), dim=1)
    squares = [
        part * (by_kind[:, degree : degree + 1] * (2.0 / (2 * degree + 1)))
        for degree, part in enumerate(parts)
        if degree > 0
    ]
    per_term = table.coefficients.T @ by_kind[:, 4:]
    total = torch.cat([linear, *squares], dim=1)
    for scatter, product in zip(table.scatter, products, strict=True):
        total = total + scatter @ (per_term * product)
    return total


def bound_inputs(
    inputs: Tensor, shift: Tensor, scale: Tensor, inverse_limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Normalised inputs kept within a limit L, and their derivative in the raw inputs.

    ``y = x / sqrt(1 + (x / L)^2)`` with ``x = (input - shift) scale``, which is x up to third order and tends to
    +-L. Invariants grow with up to the third power of the moments; the slope falls with the third power of x, so
    that energies, messages and their gradients stay bounded where atoms come close. An inverse limit of zero bounds
    nothing, without rounding.

    Parameters
    ----------
    inputs : (n_atoms, I) tensor
    shift, scale : (I,) tensors
    inverse_limit : () or (I,) tensor
        1 / L.

    Returns
    -------
    bounded, slope : (n_atoms, I) tensors
        Both differentiable without limit of order.
    """
    centred = inputs - shift
    factor = torch.rsqrt(1.0 + (centred * (scale * inverse_limit)).square())
    return centred * scale * factor, scale * (factor * factor * factor)


def bound_messages(messages: Tensor, curb: Tensor) -> tuple[Tensor, Tensor]:
    """Messages (n_atoms, M) kept within limits (M,), given one over them, and their derivative in those without.

    As :func:`bound_inputs`. Moments of the next hop are then no larger than sums over neighbors of bounded messages;
    without, a strange atom's grow with a power of the number of hops, and its environment is lost to the inputs' bound.
    """
    factor = torch.rsqrt(1.0 + (messages * curb).square())
    return messages * factor, factor * factor * factor


def activate(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1.0 - gate)


def compute_node(
    moments: Tensor, extra: Tensor | None, species: Tensor, weights: NodeWeights, table: CubicTable
) -> tuple[Tensor, Tensor, NodeCache]:
    """Energy and messages of every atom from its moments.

    Parameters
    ----------
    moments : (n_atoms, 16, n_channels) tensor
    extra : (n_atoms, n_extra) tensor or None
        Scalars appended to the invariants (the atom's own message, in a second hop).
    species : (n_atoms,) int64 tensor
        Index of each atom's species.
    weights : NodeWeights
    table : CubicTable

    Returns
    -------
    energies : (n_atoms,) tensor
        In the model's scaled unit.
    messages : (n_atoms, n_messages) tensor
    cache : NodeCache
    """
    mixed = mix_channels(moments, weights.mixing)
    invariants, products = compute_invariants(mixed, table)
    inputs = invariants if extra is None else torch.cat([invariants, extra], dim=1)
    inputs, slope0 = bound_inputs(inputs, weights.shift, weights.scale, weights.inverse_limit)
    hidden1, slope1 = activate(inputs @ weights.weight1 + pick_rows(weights.bias1, species))
    hidden2, slope2 = activate(hidden1 @ weights.weight2 + pick_rows(weights.bias2, species))
    energies = (hidden2 * pick_rows(weights.readout, species)).sum(dim=1)
    messages = hidden2 @ weights.message + pick_rows(weights.message_bias, species)
    slope: Tensor | None = None
    if messages.shape[1] > moments.shape[2]:
        messages, slope = bound_messages(messages, weights.message_curb)
    cache = NodeCache(mixed, products, inputs, slope0, slope1, slope2, hidden2, slope)
    return energies, messages, cache


def compute_node_adjoint(
    cache: NodeCache,
    message_gradient: Tensor | None,
    species: Tensor,
    weights: NodeWeights,
    table: CubicTable,
    sent_gradient: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the total energy in the moments and in the extra inputs.

    Parameters
    ----------
    cache : NodeCache
        From :func:`compute_node`.
    message_gradient : (n_atoms, n_messages) tensor or None
        ``dE/d(messages)``; None where nothing depends on them.
    sent_gradient : (n_atoms, n_parts, n_mixed) tensor, optional
        Gradient in the first components of the mixed moments that messages were made of.

    Returns
    -------
    moments_gradient : (n_atoms, 16, n_channels) tensor
    extra_gradient : (n_atoms, n_extra) tensor
    """
    hidden2_gradient = pick_rows(weights.readout, species)
    if message_gradient is not None:
        if cache.message_slope is not None:
            message_gradient = message_gradient * cache.message_slope
        hidden2_gradient = hidden2_gradient + message_gradient @ weights.message.T
    hidden1_gradient = (hidden2_gradient * cache.slope2) @ weights.weight2.T
    input_gradient = ((hidden1_gradient * cache.slope1) @ weights.weight1.T) * cache.slope0
    n_invariants = N_INVARIANT_KINDS * cache.mixed.shape[2]
    mixed_gradient = compute_invariants_adjoint(
        input_gradient[:, :n_invariants], cache.mixed, cache.products, table
    )
    if sent_gradient is not None:
        rest = mixed_gradient.shape[1] - sent_gradient.shape[1]
        mixed_gradient = mixed_gradient + torch.nn.functional.pad(sent_gradient, (0, 0, 0, rest))
    return mix_channels(mixed_gradient, weights.mixing.transpose(1, 2)), input_gradient[
        :, n_invariants:
    ]
