"""Coupling coefficients of three real spherical harmonics.

Here: the integrals over the sphere that couple three moments into a rotation invariant. Not here: the harmonics
themselves (:mod:`fastff.kernels.edge_features.reference`), or where the invariants are used.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fastff.kernels.edge_features.reference import evaluate_harmonics

CUBIC_TRIPLES: tuple[tuple[int, int, int], ...] = ((1, 1, 2), (2, 2, 2), (1, 2, 3), (2, 3, 3))
"""Degrees coupled by the cubic invariants: all with 1 <= l1 <= l2 <= l3 <= 3 and even sum."""


@cache
def compute_gaunt(l1: int, l2: int, l3: int) -> Tensor:
    """Mean of ``Y_{l1 m1} Y_{l2 m2} Y_{l3 m3}`` over the sphere, in component normalisation.

    Exact: products of degree at most 9 are integrated by 16 Gauss-Legendre nodes in ``cos(theta)`` times 32 equal
    angles. For an even degree sum this is proportional to the Wigner 3j symbol, so contracting it with three moments
    gives a rotation and inversion invariant (Drautz 2019, Phys. Rev. B 99, 014104).

    Returns
    -------
    (2 l1 + 1, 2 l2 + 1, 2 l3 + 1) float64 tensor, dimensionless
        Entries below 1e-12 are exact zeros.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    angles = 2.0 * np.pi * np.arange(32) / 32
    sine = np.sqrt(1.0 - nodes**2)
    points = np.stack(
        [
            np.outer(sine, np.cos(angles)),
            np.outer(sine, np.sin(angles)),
            np.outer(nodes, np.ones(32)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    mass = torch.from_numpy(np.repeat(weights, 32) / 64.0)
    values = evaluate_harmonics(torch.from_numpy(points))
    parts = [values[:, degree**2 : (degree + 1) ** 2] for degree in (l1, l2, l3)]
    return restore_roots(torch.einsum("g,ga,gb,gc->abc", mass, *parts))


def restore_roots(table: Tensor) -> Tensor:
    """Coefficients that are square roots of small fractions, to the last bit.

    Linear algebra rounds the last bits as threads, processors and the alignment of memory have it, so that a table
    computed twice need not be the same twice. The square of every coefficient here is a fraction with a small
    denominator; its root is the same in every process and on every machine.

    Parameters
    ----------
    table : float64 tensor
        Coefficients, right within 1e-10.

    Returns
    -------
    tensor of the same shape

    Raises
    ------
    ValueError
        An entry is not within 1e-10 of such a root: the table was computed wrongly.
    """
    squares = [Fraction(x * x).limit_denominator(1000) for x in table.flatten().tolist()]
    roots = torch.tensor([math.sqrt(x) for x in squares], dtype=table.dtype).view(table.shape)
    exact = torch.where(table < 0.0, -roots, roots)
    if (worst := float((exact - table).abs().max())) > 1e-10:
        raise ValueError(f"a coupling coefficient is {worst:.1e} away from the root of a fraction")
    return exact


@cache
def list_cubic_terms(l1: int, l2: int, l3: int) -> tuple[tuple[int, int, int, float], ...]:
    """Distinct monomials of one cubic invariant: ``(lm_a, lm_b, lm_c, coefficient)``, a <= b <= c.

    Permutations of one monomial are merged, so the invariant is ``sum coefficient X_a X_b X_c`` over this list; kernels
    unroll it.
    """
    table = compute_gaunt(l1, l2, l3)
    merged: dict[tuple[int, int, int], float] = {}
    for m1, m2, m3 in table.nonzero().tolist():
        key = tuple(sorted((l1 * l1 + m1, l2 * l2 + m2, l3 * l3 + m3)))
        merged[key] = merged.get(key, 0.0) + float(table[m1, m2, m3])
    return tuple((a, b, c, w) for (a, b, c), w in sorted(merged.items()) if abs(w) > 1e-12)
