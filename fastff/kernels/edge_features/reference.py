"""Definition of the edge features: radial basis times envelope, and real spherical harmonics.

Here: the formulas in plain torch, any device, any floating dtype, differentiable to any order. Not here: checks,
dispatch or launchers (``op.py``), Triton kernels (``kernels.py``).

Radial basis and envelope are those of Gasteiger, Groß and Günnemann, "Directional Message Passing for Molecular
Graphs", ICLR 2020 (DimeNet), equations 7 and 8 with p = 6.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_DEGREE = 3
"""Largest degree l of the spherical harmonics defined here."""

_SQRT3 = math.sqrt(3.0)
_SQRT5 = math.sqrt(5.0)
_SQRT7 = math.sqrt(7.0)
_SQRT15 = math.sqrt(15.0)
_SQRT105 = math.sqrt(105.0)
_SQRT21_8 = math.sqrt(21.0 / 8.0)
_SQRT35_8 = math.sqrt(35.0 / 8.0)


def evaluate_envelope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Polynomial envelope and its derivative (DimeNet eq. 8, p = 6).

    ``u(x) = 1 - 28 x^6 + 48 x^7 - 21 x^8`` for x < 1, else 0, written in the factored form
    ``(1 - x)^3 (1 + 3x + 6x^2 + 10x^3 + 15x^4 + 21x^5)`` that loses no digits near the cut-off. Value, first and
    second derivative vanish at x = 1.

    Parameters
    ----------
    x : Tensor
        Distance over cut-off, any shape, non-negative.

    Returns
    -------
    tuple of Tensor
        ``u`` and ``du/dx``, each of the shape of ``x``.
    """
    x = x.clamp(max=1.0)
    rest = 1.0 - x
    series = 1.0 + x * (3.0 + x * (6.0 + x * (10.0 + x * (15.0 + x * 21.0))))
    squared, rest_squared = x * x, rest * rest
    return rest_squared * rest * series, -168.0 * squared * squared * x * rest_squared


def evaluate_radial(distance: Tensor, cutoff: float, n_radial: int) -> tuple[Tensor, Tensor]:
    """Radial basis times envelope, and its derivative with respect to the distance.

    ``B_k(d) = sqrt(2 / r_c) sin(k pi d / r_c) / d * u(d / r_c)``, k = 1..n_radial (DimeNet eqs. 7 and 8).

    Parameters
    ----------
    distance : Tensor
        Positive distances in Å, any shape.
    cutoff : float
        Cut-off radius r_c in Å.
    n_radial : int
        Number of basis functions.

    Returns
    -------
    tuple of Tensor
        ``B`` and ``dB/dd``, each of shape (..., n_radial), in Å^-3/2 and Å^-5/2.
        Both are zero at and beyond the cut-off, and differentiable to any order below it.
    """
    k = torch.arange(1, n_radial + 1, dtype=distance.dtype, device=distance.device)
    wave_numbers = k * (math.pi / cutoff)
    d = distance.unsqueeze(-1)
    envelope, slope = evaluate_envelope(d / cutoff)
    phase = wave_numbers * d
    norm = math.sqrt(2.0 / cutoff)
    wave = norm * torch.sin(phase) / d
    wave_slope = (norm * wave_numbers * torch.cos(phase) - wave) / d
    return wave * envelope, wave_slope * envelope + wave * slope / cutoff


def evaluate_harmonics(unit: Tensor, l_max: int = MAX_DEGREE) -> Tensor:
    """Real spherical harmonics of unit vectors as polynomials of their components.

    'Component' normalisation: the squares of the 2l + 1 functions of degree l add up to 2l + 1. Degrees ascend from 0
    to ``l_max``, orders m ascend from -l to l.

    Parameters
    ----------
    unit : Tensor
        Unit vectors (x, y, z), shape (..., 3).
    l_max : int
        Largest degree, 0 to 3.

    Returns
    -------
    Tensor
        Shape (..., (l_max + 1)^2).
    """
    x, y, z = unit.unbind(-1)
    values = [torch.ones_like(x)]
    if l_max >= 1:
        values += [_SQRT3 * y, _SQRT3 * z, _SQRT3 * x]
    if l_max >= 2:
        values += [
            _SQRT15 * x * y,
            _SQRT15 * y * z,
            0.5 * _SQRT5 * (3.0 * z * z - 1.0),
            _SQRT15 * x * z,
            0.5 * _SQRT15 * (x * x - y * y),
        ]
    if l_max >= 3:
        values += [
            _SQRT35_8 * y * (3.0 * x * x - y * y),
            _SQRT105 * x * y * z,
            _SQRT21_8 * y * (5.0 * z * z - 1.0),
            0.5 * _SQRT7 * z * (5.0 * z * z - 3.0),
            _SQRT21_8 * x * (5.0 * z * z - 1.0),
            0.5 * _SQRT105 * z * (x * x - y * y),
            _SQRT35_8 * x * (x * x - 3.0 * y * y),
        ]
    return torch.stack(values, dim=-1)


def harmonics_gradient(unit: Tensor, l_max: int = MAX_DEGREE) -> Tensor:
    """Gradient of the polynomials of :func:`evaluate_harmonics` in the components of ``unit``.

    The plain polynomial gradient, not projected on the tangent plane of the sphere: multiply by
    ``(I - u u^T) / d`` to get the gradient with respect to the vector itself.

    Parameters
    ----------
    unit : Tensor
        Unit vectors (x, y, z), shape (..., 3).
    l_max : int
        Largest degree, 0 to 3.

    Returns
    -------
    Tensor
        Shape (..., (l_max + 1)^2, 3).
    """
    x, y, z = unit.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows: list[tuple[Tensor, Tensor, Tensor]] = [(zero, zero, zero)]
    if l_max >= 1:
        rows += [(zero, _SQRT3 * one, zero), (zero, zero, _SQRT3 * one), (_SQRT3 * one, zero, zero)]
    if l_max >= 2:
        rows += [
            (_SQRT15 * y, _SQRT15 * x, zero),
            (zero, _SQRT15 * z, _SQRT15 * y),
            (zero, zero, 3.0 * _SQRT5 * z),
            (_SQRT15 * z, zero, _SQRT15 * x),
            (_SQRT15 * x, -_SQRT15 * y, zero),
        ]
    if l_max >= 3:
        xx, yy, zz = x * x, y * y, z * z
        rows += [
            (6.0 * _SQRT35_8 * x * y, 3.0 * _SQRT35_8 * (xx - yy), zero),
            (_SQRT105 * y * z, _SQRT105 * x * z, _SQRT105 * x * y),
            (zero, _SQRT21_8 * (5.0 * zz - 1.0), 10.0 * _SQRT21_8 * y * z),
            (zero, zero, 1.5 * _SQRT7 * (5.0 * zz - 1.0)),
            (_SQRT21_8 * (5.0 * zz - 1.0), zero, 10.0 * _SQRT21_8 * x * z),
            (_SQRT105 * x * z, -_SQRT105 * y * z, 0.5 * _SQRT105 * (xx - yy)),
            (3.0 * _SQRT35_8 * (xx - yy), -6.0 * _SQRT35_8 * x * y, zero),
        ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def edge_features(
    vectors: Tensor, cutoff: float, n_radial: int, l_max: int
) -> tuple[Tensor, Tensor]:
    """Radial basis and spherical harmonics of every edge. See ``op.edge_features`` for the contract."""
    distance = torch.linalg.vector_norm(vectors, dim=-1)
    basis, _ = evaluate_radial(distance, cutoff, n_radial)
    return basis, evaluate_harmonics(vectors / distance.unsqueeze(-1), l_max)
