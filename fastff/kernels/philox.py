"""Random numbers that depend on seed and counter alone, in plain torch.

Here: the Philox4x32-10 generator of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, SC'11 (2011), uniform and
normal numbers from its words, and the numbers of the atoms of a simulation. Not here: the same in Triton
(:mod:`fastff.kernels.md_step.kernels`), who uses them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
ATOM_STREAM, SCALAR_STREAM = 1, 2
"""Last word of counters: numbers of atoms, and others of a step."""


def draw_words(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, ...]:
    """Four 32-bit words for every counter.

    Parameters
    ----------
    counter : four int64 tensors that broadcast together
        Words in [0, 2^32).
    seed : int
        In [0, 2^64).

    Returns
    -------
    four int64 tensors in [0, 2^32)
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    key = [seed & MASK, (seed >> 32) & MASK]
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # modulo 2^64, as wanted
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ key[0],
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ key[1],
            p0 & MASK,
        )
        key = [(k + w) & MASK for k, w in zip(key, _WEYL, strict=True)]
    return c0, c1, c2, c3


def make_uniform(words: Tensor) -> Tensor:
    """Float64 in (0, 1), both ends excluded."""
    return (words.double() + 0.5) * 2.0**-32


def make_normal(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers from two words (Box and Muller, 1958)."""
    radius = torch.sqrt(-2.0 * torch.log(make_uniform(first)))
    angle = (2.0 * math.pi) * make_uniform(second)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def draw_normals(atoms: Tensor, steps: Tensor, seed: int) -> Tensor:
    """Three standard normal numbers for every step and atom.

    Parameters
    ----------
    atoms : (n_atoms,) int64 tensor
    steps : (..., 1) int64 tensor
    seed : int
        In [0, 2^64).

    Returns
    -------
    (..., n_atoms, 3) float64 tensor
    """
    stream = torch.full_like(atoms, ATOM_STREAM)
    w = draw_words((atoms, steps & MASK, (steps >> 32) & MASK, stream), seed)
    x, y = make_normal(w[0], w[1])
    z, _ = make_normal(w[2], w[3])
    return torch.stack([x, y, z], dim=-1)
