"""Definition of the moments of an atom's neighbourhood, and of their adjoint.

Here: the sums over neighbors in plain torch on the dense neighbor layout, any device, any floating dtype; every
output is differentiable to any order in weights and channel factors, and in geometry through the edge features.
Not here: dispatch, Triton kernels, or what is built from the moments (:mod:`fastff.kernels.node_block.reference`).

Dense neighbor layout: slot ``(i, s)`` holds the s-th neighbor of atom i; ``n_slots`` is the largest neighbor
count. Empty slots hold a vector at the cut-off, where the radial basis and its derivative are exactly zero, so
they add nothing.

The moments are the atomic basis of the atomic cluster expansion (Drautz 2019, Phys. Rev. B 99, 014104, eq. 19), with a
radial part per channel, and with a factor per neighbor that is a species constant in the first hop and a learned scalar
message in the second.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.couplings import restore_roots
from fastff.kernels.edge_features.reference import (
    evaluate_harmonics,
    evaluate_radial,
    harmonics_gradient,
)

FROZEN_SHARE = 10.0 / 13.0
"""Part of the inner distance of a pair below which the radial basis no longer changes."""


class EdgeGeometry(NamedTuple):
    """What the sums over neighbours need to know of every slot, all of shape (n_atoms, n_slots, ...).

    distance (.., 1) Å; unit (.., 3); basis and basis_slope, in the distance, (.., n_radial); harmonics (.., 16).
    """

    distance: Tensor
    unit: Tensor
    basis: Tensor
    basis_slope: Tensor
    harmonics: Tensor


def compress_distance(distance: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """The distance that the radial basis is told, and its slope: no label says what happens nearer than ``inner``.

    The distance itself from ``inner`` on, a constant below :data:`FROZEN_SHARE` times it, and between the two an
    integral of ``3 t^2 - 2 t^3``, so that first and second derivative are continuous. What is learned then says
    nothing of how near two atoms are, and their core repulsion alone decides.

    Parameters
    ----------
    distance : Tensor, Å
    inner : Tensor, Å
        Positive, of a shape that broadcasts.
    """
    width = (1.0 - FROZEN_SHARE) * inner
    t = (1.0 - (inner - distance) / width).clamp(0.0, 1.0)
    squared = t * t
    within = inner - width * (0.5 - squared * t * (1.0 - 0.5 * t))
    seen = torch.where(distance < inner, within, distance)  # autograd splits ties of a maximum
    return seen, squared * (3.0 - 2.0 * t)


def describe_edges(
    vectors: Tensor, cutoff: float, n_radial: int, inner: Tensor | None = None
) -> EdgeGeometry:
    """Evaluate basis, harmonics and their slopes of every slot.

    Parameters
    ----------
    vectors : (n_atoms, n_slots, 3) tensor, Å
    cutoff : float, Å
    n_radial : int
    inner : (n_atoms, n_slots) tensor, Å, optional
        Where the radial basis stops to follow the distance (:func:`compress_distance`).
    """
    distance = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    unit = vectors / distance
    if inner is None:
        basis, basis_slope = evaluate_radial(distance[..., 0], cutoff, n_radial)
    else:
        seen, share = compress_distance(distance[..., 0], inner)
        basis, basis_slope = evaluate_radial(seen, cutoff, n_radial)
        basis_slope = basis_slope * share[..., None]
    return EdgeGeometry(distance, unit, basis, basis_slope, evaluate_harmonics(unit))


def build_gradient_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gradients of solid harmonics ``r^l Y_lm`` as combinations of those of one degree less, (16, 27).

    On the unit sphere ``d(r^l Y_lm)/dr_a = sum_k table[lm, 9 a + k] Y_k`` with k over the degrees 0 to 2. Tangential
    parts are those of ``Y_lm`` itself; the radial part is ``l Y_lm``. Always the same tensor.
    """
    return _build_gradient_table(dtype, device)


build_gradient_table._dynamo_marked_constant = True  # type: ignore[attr-defined]  # see fastff.kernels.dispatch


@cache
@torch.inference_mode(False)  # kept and used again in training, whoever asks first
def _build_gradient_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(64, 3, dtype=torch.float64, generator=generator)
    unit = unit / unit.norm(dim=1, keepdim=True)
    harmonics, plain = evaluate_harmonics(unit), harmonics_gradient(unit)
    degrees = torch.tensor([0.0] + [1.0] * 3 + [2.0] * 5 + [3.0] * 7, dtype=torch.float64)
    radial = degrees * harmonics - (plain @ unit[:, :, None])[..., 0]
    solid = plain + radial[:, :, None] * unit[:, None, :]
    table = torch.linalg.lstsq(harmonics[:, :9], solid.reshape(64, 48)).solution
    table = restore_roots(table).view(9, 16, 3)
    return table.permute(1, 2, 0).reshape(16, 27).to(device, dtype)


def compute_moments(
    geometry: EdgeGeometry, weights: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum radial functions times harmonics over the neighbours of every atom.

    ``A[i, lm, n] = sum_s (sum_k B_k(d_is) weights[i, k, n]) factors[i, s, n] Y_lm(u_is)``

    Parameters
    ----------
    geometry : EdgeGeometry
    weights : (n_atoms, n_radial, n_channels) tensor
        Radial weights of the receiver's species, or (1, n_radial, n_channels) if all atoms share them.
    factors : (n_atoms, n_slots, n_channels) tensor
        Species factor or scalar message of the neighbor in every slot.

    Returns
    -------
    moments : (n_atoms, 16, n_channels) tensor
    radial : (n_atoms, n_slots, n_channels) tensor
        The radial part without the factors, which the adjoint needs again.
    """
    radial = mix_radial(geometry.basis, weights)
    return geometry.harmonics.transpose(1, 2) @ (radial * factors), radial


def mix_radial(basis: Tensor, weights: Tensor) -> Tensor:
    """``sum_k basis[i, s, k] weights[i, k, n]``; one matrix product when all atoms share the weights."""
    return basis @ (weights[0] if weights.shape[0] == 1 else weights)


def compute_moments_adjoint(
    geometry: EdgeGeometry,
    weights: Tensor,
    factors: Tensor,
    radial: Tensor,
    moments_gradient: Tensor,
    picked: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of the energy in the edge vectors and in the factors, given its gradient in the moments.

    Parameters
    ----------
    geometry, weights, factors, radial
        As given to and returned by :func:`compute_moments`.
    moments_gradient : (n_atoms, 16, n_channels) tensor
        ``dE/dA``.
    picked : (n_atoms, n_slots, n_parts, n_channels) tensor, optional
        What the factors were read from, where they depend on the direction
        (:func:`fastff.kernels.moments.messages.read_messages`).

    Returns
    -------
    vector_gradient : (n_atoms, n_slots, 3) tensor, eV/Å
        ``dE/d(vectors)``.
    factor_gradient : (n_atoms, n_slots, n_channels) tensor
        ``dE/d(factors)``.
    """
    channel_gradient = geometry.harmonics @ moments_gradient
    radial_gradient = channel_gradient * factors
    basis_gradient = mix_radial(radial_gradient, weights.transpose(1, 2))
    along = (basis_gradient * geometry.basis_slope).sum(dim=-1, keepdim=True)
    pull = (radial * factors) @ moments_gradient.transpose(1, 2)
    factors_gradient = channel_gradient * radial
    if picked is not None:
        aside = (picked @ factors_gradient[..., None])[..., 0]
        pull = pull + torch.nn.functional.pad(aside, (0, pull.shape[-1] - aside.shape[-1]))
    lower = pull @ build_gradient_table(pull.dtype, pull.device)
    lower = lower.unflatten(-1, (3, 9)) * geometry.harmonics[..., None, :9]
    across = lower.sum(dim=-1)
    across = across - geometry.unit * (across * geometry.unit).sum(dim=-1, keepdim=True)
    vector_gradient = along * geometry.unit + across / geometry.distance
    return vector_gradient, factors_gradient
