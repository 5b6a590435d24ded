"""Definition of what an atom sends to its neighbors: scalars, and tensors that are read along the bond.

Here: messages of degree 0 to L from the output of a node block and its mixed moments, the factor that a neighbor reads
from them, and the adjoints, in plain torch, differentiable to any order. Not here: the sums in which the factors count
(:mod:`fastff.kernels.moments.reference`), the node block (:mod:`fastff.kernels.node_block.reference`).

A scalar tells a neighbor how the sender is surrounded, not from where. A message of degree l is the sender's mixed
moment of that degree, kept within a limit, times a learned gate; the receiver i reads
``sum_lm M[j, lm, n] Y_lm(u_ij)``, which is invariant and depends on the angles i-j-k at the sender. Equivariant
messages as in Schütt, Unke, Gastegger 2021 (PaiNN, ICML, eq. 8) and Batzner et al. 2022 (NequIP, Nat. Commun. 13,
2453), contracted with the edge to a scalar, so that the sums over neighbors stay those of scalar messages.
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_message_degree(n_messages: int, n_channels: int) -> int:
    """Largest degree L of messages of which a node block writes ``(L + 1) n_channels`` numbers per atom."""
    return n_messages // n_channels - 1


def bound_moments(mixed: Tensor, curb: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of one degree kept within a limit, and the factor that does so.

    ``b = v / sqrt(1 + |v|^2 k^2)``, which is v up to third order, has its direction, and is never longer than 1 / k.

    Parameters
    ----------
    mixed : (n_atoms, 2 l + 1, n_channels) tensor
    curb : (n_channels,) tensor
        k, one over the limit.

    Returns
    -------
    bounded : (n_atoms, 2 l + 1, n_channels) tensor
    factor : (n_atoms, 1, n_channels) tensor
    """
    factor = torch.rsqrt(1.0 + (mixed * curb).square().sum(dim=1, keepdim=True))
    return mixed * factor, factor


def direct_messages(
    messages: Tensor, mixed: Tensor, n_channels: int, moment_curb: Tensor
) -> Tensor:
    """What every atom sends, by component.

    Parameters
    ----------
    messages : (n_atoms, (L + 1) n_channels) tensor
        Of the node block: scalars, then the gates of every degree.
    mixed : (n_atoms, 16, n_mixed) tensor
        Mixed moments of the same node block; as many as channels, or else L must be 0.
    n_channels : int
    moment_curb : ((L + 1) n_channels,) tensor
        One over the limit of the moments that a gate multiplies (:func:`bound_moments`); not read for the scalars.

    Returns
    -------
    (n_atoms, (L + 1)^2, n_channels) tensor
    """
    gates = messages.unflatten(1, (messages.shape[1] // n_channels, n_channels))
    curbs = moment_curb.view(-1, n_channels)
    parts = [gates[:, :1]]
    for degree in range(1, gates.shape[1]):
        bounded, _ = bound_moments(mixed[:, degree**2 : (degree + 1) ** 2], curbs[degree])
        parts.append(gates[:, degree : degree + 1] * bounded)
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def direct_messages_adjoint(
    gradient: Tensor, messages: Tensor, mixed: Tensor, moment_curb: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradient in what :func:`direct_messages` is given.

    Parameters
    ----------
    gradient : (n_atoms, (L + 1)^2, n_channels) tensor
    messages, mixed, moment_curb
        As there.

    Returns
    -------
    messages_gradient : (n_atoms, (L + 1) n_channels) tensor
    mixed_gradient : (n_atoms, (L + 1)^2, n_channels) tensor or None
        Of the first components, zero for l = 0; None where L = 0.
    """
    gates = messages.unflatten(1, (messages.shape[1] // gradient.shape[2], gradient.shape[2]))
    curbs = moment_curb.view(-1, gradient.shape[2])
    of_gates, of_mixed = [gradient[:, :1]], [torch.zeros_like(gradient[:, :1])]
    for degree in range(1, gates.shape[1]):
        rows = slice(degree**2, (degree + 1) ** 2)
        bounded, factor = bound_moments(mixed[:, rows], curbs[degree])
        along = (gradient[:, rows] * bounded).sum(dim=1, keepdim=True)
        of_gates.append(along)
        across = gradient[:, rows] - bounded * (along * curbs[degree].square())
        of_mixed.append(across * (factor * gates[:, degree : degree + 1]))
    if len(of_gates) == 1:
        return gradient[:, 0], None
    return torch.cat(of_gates, dim=1).flatten(1), torch.cat(of_mixed, dim=1)


def read_messages(
    carried: Tensor, senders: Tensor, harmonics: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Factors of every slot from what its sender sends.

    Parameters
    ----------
    carried : (n_atoms, (L + 1)^2, n_channels) tensor
        From :func:`direct_messages`.
    senders : (n_atoms, n_slots) int64 tensor
    harmonics : (n_atoms, n_slots, 16) tensor
        Of the unit vector from receiver to sender.

    Returns
    -------
    factors : (n_atoms, n_slots, n_channels) tensor
    picked : (n_atoms, n_slots, (L + 1)^2, n_channels) tensor or None
        The messages of every slot's sender, for the adjoint; None where L = 0.
    """
    n_parts, n_channels = carried.shape[1:]
    picked = carried.flatten(1).index_select(0, senders.flatten())
    if n_parts == 1:
        return picked.view(*senders.shape, n_channels), None
    picked = picked.view(*senders.shape, n_parts, n_channels)
    return (harmonics[..., None, :n_parts] @ picked)[..., 0, :], picked


def read_messages_adjoint(
    factors_gradient: Tensor, senders: Tensor, harmonics: Tensor, n_parts: int
) -> Tensor:
    """Gradient (n_atoms, n_parts, n_channels) in what every atom sends, given that in the factors of all slots.

    That in the directions is part of :func:`fastff.kernels.moments.reference.compute_moments_adjoint`.
    """
    n_atoms, _, n_channels = factors_gradient.shape
    per_slot = factors_gradient[..., None, :]
    if n_parts > 1:
        per_slot = harmonics[..., :n_parts, None] * per_slot
    zeros = factors_gradient.new_zeros(n_atoms, n_parts * n_channels)
    return zeros.index_add(0, senders.flatten(), per_slot.flatten(2).flatten(0, 1)).view(
        n_atoms, n_parts, n_channels
    )
