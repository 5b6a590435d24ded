"""Screened nuclear repulsion that keeps atoms apart where no label reaches.

Here: the universal Ziegler-Biersack-Littmark pair energy, switched off smoothly inside bonding distance,
with its analytic gradient. Not here: anything learned.
"""

from __future__ import annotations

import torch
from ase.data import covalent_radii
from torch import Tensor

from fastff.kernels.edge_features.reference import evaluate_envelope
from fastff.models.precise import PreciseBuffers
from fastff.units import COULOMB_EV_A

_AMPLITUDES = (0.18175, 0.50986, 0.28022, 0.02817)
_DECAYS = (3.19980, 0.94229, 0.40290, 0.20162)
CORE_REACH = 0.8
"""Cut-off of a pair over the sum of its covalent radii: shorter than most bonds, which labels decide.

Some are shorter: N2 and CO (0.77, 0.79), oxides and nitrides of early metals (0.66 to 0.79), metals with multiple bonds
(V2 0.58, Cr2 0.60). What is learned makes up for the little repulsion there.
"""


class ScreenedCore(PreciseBuffers):
    """ZBL repulsion (Ziegler, Biersack, Littmark, The Stopping and Range of Ions in Matter, 1985).

    ``V(d) = e^2/(4 pi eps0) Z_i Z_j / d * phi(d / a) * u(d / r_ij)`` with
    ``a = 0.4685 Å / (Z_i^0.23 + Z_j^0.23)`` and the envelope u of the radial basis; ``r_ij`` is 0.8 times the
    sum of the covalent radii of the pair. No parameters.
    """

    inverse_length: Tensor
    reach: Tensor
    strength: Tensor

    def __init__(self, elements: tuple[int, ...]) -> None:
        super().__init__()
        z = torch.tensor(elements, dtype=torch.float64)
        radii = torch.tensor([covalent_radii[e] for e in elements], dtype=torch.float64)
        pair = z[:, None] ** 0.23 + z[None, :] ** 0.23
        self.register_precise("inverse_length", pair / 0.4685, persistent=False)
        self.register_precise(
            "reach", CORE_REACH * (radii[:, None] + radii[None, :]), persistent=False
        )
        self.register_precise(
            "strength", 0.5 * COULOMB_EV_A * z[:, None] * z[None, :], persistent=False
        )

    def forward(
        self, vectors: Tensor, edge_index: Tensor, species: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Half the pair energy on each receiver, and the gradient in the edge vectors.

        Parameters
        ----------
        vectors : (n_edges, 3) tensor, Å
        edge_index : (2, n_edges) int64 tensor
        species : (n_atoms,) int64 tensor

        Returns
        -------
        energies : (n_atoms,) tensor, eV
        gradient : (n_edges, 3) tensor, eV/Å
        """
        receivers, senders = edge_index
        energies = vectors.new_zeros(species.shape[0])
        gradient = torch.zeros_like(vectors)
        distance = torch.linalg.vector_norm(vectors, dim=1)
        close = (distance < self.reach.max()).nonzero().flatten()
        if close.numel() == 0:
            return energies, gradient
        pair = species[receivers[close]], species[senders[close]]
        near = distance[close]
        value, slope = self._evaluate_pair(
            near,
            self.inverse_length[pair].to(near.dtype),
            self.reach[pair].to(near.dtype),
            self.strength[pair].to(near.dtype),
        )
        energies = energies.index_add(0, receivers[close], value)
        along = vectors[close] * (slope / near).unsqueeze(1)
        return energies, gradient.index_copy(0, close, along)

    @staticmethod
    def _evaluate_pair(
        distance: Tensor, inverse_length: Tensor, reach: Tensor, strength: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = distance * inverse_length
        screen = torch.zeros_like(x)
        screen_slope = torch.zeros_like(x)
        for amplitude, decay in zip(_AMPLITUDES, _DECAYS, strict=True):
            term = amplitude * torch.exp(-decay * x)
            screen = screen + term
            screen_slope = screen_slope - decay * term
        envelope, envelope_slope = evaluate_envelope(distance / reach)
        bare = strength / distance
        slope = bare * (
            (screen_slope * inverse_length - screen / distance) * envelope
            + screen * envelope_slope / reach
        )
        return bare * screen * envelope, slope
