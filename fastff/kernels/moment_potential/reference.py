"""Definition of the fused evaluation: energy, forces and virial of a moment potential in plain torch.

Here: the order of the computation over a neighbor matrix, and the core repulsion, any device, any floating dtype. Not
here: the sums over neighbours (:mod:`fastff.kernels.moments.reference`), the node block
(:mod:`fastff.kernels.node_block.reference`), kernels and launches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastff.kernels.edge_features.reference import evaluate_envelope
from fastff.kernels.moment_potential.hops import pull_hops, run_hops
from fastff.kernels.moment_potential.layout import (
    NeighborMatrix,
    PotentialWeights,
    compute_vacuum,
    unpack_neighbors,
)
from fastff.kernels.moments.reference import describe_edges
from fastff.kernels.node_block.reference import build_cubic_table

CORE_TERMS = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
"""Amplitude and decay of the universal screening function (Ziegler, Biersack, Littmark 1985)."""


class Evaluation(NamedTuple):
    """Result: energy () float64 eV, forces (n_atoms, 3) eV/Å, virial (6,) eV, energies (n_atoms,) float64 eV.

    The virial is ``sum v (dE/dv)^T`` symmetrised, in the order xx, yy, zz, yz, xz, xy; stress is virial over volume.
    """

    energy: Tensor
    forces: Tensor
    virial: Tensor
    energies: Tensor


def evaluate_core(
    distance: Tensor, inverse_length: Tensor, reach: Tensor, strength: Tensor
) -> tuple[Tensor, Tensor]:
    """Half the screened core repulsion of pairs and its slope in the distance; zero beyond ``reach``."""
    t = distance * inverse_length
    screen, decay = torch.zeros_like(t), torch.zeros_like(t)
    for amplitude, rate in CORE_TERMS:
        term = amplitude * torch.exp(-rate * t)
        screen = screen + term
        decay = decay - rate * term
    envelope, envelope_slope = evaluate_envelope(distance / reach)
    bare = strength / distance
    slope = (decay * inverse_length - screen / distance) * envelope
    return bare * screen * envelope, bare * (slope + screen * envelope_slope / reach)


def evaluate_reference(
    weights: PotentialWeights,
    positions: Tensor,
    species: Tensor,
    matrix: NeighborMatrix,
    translations: Tensor,
) -> Evaluation:
    """Evaluate in the dtype of ``weights``.

    Parameters
    ----------
    weights : PotentialWeights
    positions : (n_atoms, 3) tensor, Å
    species : (n_atoms,) integer tensor
    matrix : NeighborMatrix
        Of which the grid translations are not used.
    translations : (n_codes, 3) tensor, Å
        Exact ``S @ cell`` of every code.
    """
    senders, codes, filled = unpack_neighbors(matrix)
    species = species.long()
    vectors = positions[senders] - positions[:, None] + translations[codes]
    padding = vectors.new_tensor([weights.cutoff, 0.0, 0.0])
    vectors = torch.where(filled[..., None], vectors, padding).to(weights.radial.dtype)
    energies, gradient = _evaluate_learned(weights, vectors, senders, species)
    energies = energies.double() * weights.energy_scale
    gradient = gradient * weights.energy_scale.to(gradient.dtype)
    if weights.core is not None:
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        pair = species[:, None], species[senders]
        value, slope = evaluate_core(distance, *(part.to(distance)[pair] for part in weights.core))
        energies = energies + torch.where(filled, value, 0.0).double().sum(dim=1)
        slope = torch.where(filled, slope, 0.0)
        gradient = gradient + vectors * (slope / distance)[..., None]
    energies = energies + weights.composition[species]
    forces = gradient.sum(dim=1).index_add(0, senders.flatten(), -gradient.flatten(0, 1))
    outer = torch.einsum("isa,isb->ab", vectors.double(), gradient.double())
    outer = 0.5 * (outer + outer.T)
    virial = torch.stack([outer[a, b] for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))])
    return Evaluation(energies.sum(), forces, virial, energies)


def _evaluate_learned(
    weights: PotentialWeights, vectors: Tensor, senders: Tensor, species: Tensor
) -> tuple[Tensor, Tensor]:
    """Energies before ``energy_scale`` and their gradient in the vectors; see :mod:`.hops`."""
    table = build_cubic_table(vectors.dtype, vectors.device)
    inner = weights.inner
    if inner is not None:
        inner = inner.to(vectors.dtype)[species[:, None], species[senders]]
    geometry = describe_edges(vectors, weights.cutoff, weights.radial.shape[2], inner)
    energies, hops = run_hops(
        geometry,
        senders,
        species,
        [radial[species] for radial in weights.radial],
        weights.pair_factors[species[:, None], species[senders]],
        weights.blocks,
        compute_vacuum(weights),
        table,
    )
    return energies, pull_hops(geometry, senders, species, hops, weights.blocks, table)
