"""Where atoms are put before pairs are looked for: a completed frame, fractional coordinates, bins.

Here: the arithmetic on three cell vectors, on the host, and the assignment of atoms to bins, on their device. Not here:
pairs (``reference.py``, ``kernels.py``).

A frame completes the periodic cell vectors with unit vectors orthogonal to them, so that a fractional coordinate is a
number of cell vectors along periodic axes and a length in Å along the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastff.errors import DataError

Array = NDArray[np.float64]

MARGIN = 1e-6
"""By how much, relatively, bins are wider than the reach, for rounding."""
MAX_IMAGES = 256
"""Most images of the cell in reach along one direction; more are a mistake in the cell."""
MAX_SHIFTS = 100_000
"""Most images of the cell in reach altogether, likewise."""
MAX_CODES = 4_000_000
"""Shifts up to the largest along every axis, which are all numbered on a device."""


MAX_TURNS = 2.0**30
"""Cells that an atom may be away, or Å along an axis without images: wraps are counted in 32 bits."""


@dataclass(frozen=True)
class Frame:
    """A completed basis. rows (3, 3) Å; inverse of rows; heights (3,) Å between opposite faces."""

    rows: Array
    inverse: Array
    heights: Array
    periodic: tuple[bool, bool, bool]


@dataclass(frozen=True)
class Bins:
    """Atoms assigned to bins.

    Attributes
    ----------
    shape : tuple of int
        Bins along each axis.
    spans : tuple of int
        How many bins to either side hold every atom in reach; along axes that are not periodic, of those there are.
    images : int
        Largest component of a shift that the search can give.
    keys : (n_atoms,) int64 tensor
        Bin of every atom, the last axis running fastest.
    wraps : (n_atoms, 3) int32 tensor
        Cell vectors to take away from every atom to bring it into the cell; zero along non-periodic axes.
    wrapped : (n_atoms, 3) float64 tensor, Å
        Positions without them.
    extent : float
        Volume that holds the atoms, at least as thick as the reach, over that of the frame's rows.
    periodic : tuple of bool
    """

    shape: tuple[int, int, int]
    spans: tuple[int, int, int]
    images: int
    keys: Tensor
    wraps: Tensor
    wrapped: Tensor
    extent: float
    periodic: tuple[bool, bool, bool]


def make_frame(cell: Array, periodic: tuple[bool, bool, bool]) -> Frame:
    """Complete a cell, whose non-periodic rows are ignored, whatever they hold.

    Raises
    ------
    DataError
        If periodic rows are zero, not finite or linearly dependent.
    """
    rows = np.array(cell, dtype=np.float64)
    basis: list[Array] = [rows[k] for k in range(3) if periodic[k]]
    for k in range(3):
        if not periodic[k]:
            rows[k] = _find_orthogonal(basis, k)
            basis.append(rows[k])
    lengths = np.linalg.norm(rows, axis=1)
    if np.isfinite(rows).all() and lengths.min() > 1e-8:
        volume = abs(np.linalg.det(rows / lengths[:, None]))
        if volume > 1e-10:
            inverse: Array = np.asarray(np.linalg.inv(rows), dtype=np.float64)
            heights: Array = np.asarray(1.0 / np.linalg.norm(inverse, axis=0), dtype=np.float64)
            return Frame(rows, inverse, heights, periodic)
    raise DataError(
        f"cell {np.asarray(cell).tolist()} with pbc {list(periodic)} has no volume along its "
        "periodic vectors; correct the cell or turn pbc off"
    )


def _find_orthogonal(basis: list[Array], axis: int) -> Array:
    candidates = np.roll(np.eye(3), -axis, axis=0)
    if basis:
        q, _ = np.linalg.qr(np.array(basis).T)
        candidates = candidates - candidates @ q @ q.T
    norms = np.linalg.norm(candidates, axis=1)
    best = 0 if norms[0] > 0.3 else int(np.argmax(norms))
    return np.asarray(candidates[best] / max(norms[best], 1e-300))


def count_images(frame: Frame, reach: float) -> int:
    """Largest component of a shift between wrapped atoms within ``reach``.

    Raises
    ------
    DataError
        If the cell is so thin that there are more than :data:`MAX_IMAGES`, or than :data:`MAX_SHIFTS` altogether, or if
        their numbers go beyond :data:`MAX_CODES`.
    """
    heights = [float(h) for h, p in zip(frame.heights, frame.periodic, strict=True) if p]
    counts = [math.ceil(reach / h) for h in heights]
    images = max(counts, default=0)
    total = math.prod(2 * count + 1 for count in counts)
    if images > MAX_IMAGES or total > MAX_SHIFTS or (2 * images + 1) ** 3 > MAX_CODES:
        raise DataError(
            f"the cell {frame.rows.tolist()} is {min(heights):.3g} Å thin, with {total} images in the reach of "
            f"{reach:.3g} Å; correct the cell"
        )
    return images


def wrap_positions(positions: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Bring atoms into the cell along periodic axes.

    Returns
    -------
    wrapped : (n_atoms, 3) float64 tensor, Å
    wraps : (n_atoms, 3) int32 tensor
    fractional : (n_atoms, 3) float64 tensor
        Of the wrapped atoms, in units of the frame's rows.
    """
    device = positions.device
    exact = positions.double()
    inverse = torch.from_numpy(frame.inverse).to(device)
    fractional = transform(exact, inverse)
    flags = torch.tensor(frame.periodic, dtype=torch.float64, device=device)
    turns = fractional.floor() * flags
    wrapped = exact - transform(turns, torch.from_numpy(frame.rows).to(device))
    return wrapped, turns.to(torch.int32), fractional - turns


def have_places(positions: Tensor, frame: Frame) -> Tensor:
    """Whether positions are finite and no more than :data:`MAX_TURNS` cells away, () bool tensor."""
    turns = transform(positions.double(), torch.from_numpy(frame.inverse).to(positions.device))
    return (turns.abs() <= MAX_TURNS).all()


def transform(values: Tensor, matrix: Tensor) -> Tensor:
    """``values @ matrix`` in a fixed order of summation, the same on every device."""
    return values[:, 0:1] * matrix[0] + values[:, 1:2] * matrix[1] + values[:, 2:3] * matrix[2]


def assign_bins(positions: Tensor, frame: Frame, reach: float) -> Bins:
    """Put atoms into bins wider than ``reach`` (as far as the cell is), at most about two per atom.

    Waits for the device if an axis is not periodic.
    """
    images = count_images(frame, reach)
    wrapped, wraps, fractional = wrap_positions(positions, frame)
    limit = max(4096, 2 * positions.shape[0])
    low, lengths = _measure(fractional, frame)
    shape = _choose_shape(lengths, frame, reach)
    if math.prod(shape) > limit and not all(frame.periodic):
        fractional = _close_gaps(fractional, frame, reach)
        low, lengths = _measure(fractional, frame)
        shape = _choose_shape(lengths, frame, reach)
    excess = math.prod(shape) / limit
    while excess > 1.0:
        largest = shape.index(max(shape))
        shape[largest] = max(1, int(shape[largest] / min(excess, 2.0)))
        excess = math.prod(shape) / limit
    density = [n / length for n, length in zip(shape, lengths, strict=True)]
    spans = [
        math.ceil(reach * d / h) if p else min(math.ceil(reach * d / h), n - 1)
        for d, h, n, p in zip(density, frame.heights, shape, frame.periodic, strict=True)
    ]
    images = max(
        [
            images,
            *((n - 1 + s) // n for n, s, p in zip(shape, spans, frame.periodic, strict=True) if p),
        ]
    )
    device = positions.device
    offset = torch.tensor([low, density], dtype=torch.float64, device=device)
    count = torch.tensor(shape, dtype=torch.int64, device=device)
    place = ((fractional - offset[0]) * offset[1]).nan_to_num(0.0, 0.0, 0.0)
    place = torch.minimum(place.to(torch.int64).clamp_min(0), count - 1)
    keys = (place[:, 0] * shape[1] + place[:, 1]) * shape[2] + place[:, 2]
    return Bins(
        (shape[0], shape[1], shape[2]),
        (spans[0], spans[1], spans[2]),
        images,
        keys,
        wraps,
        wrapped,
        math.prod(
            length if p else max(length, reach)
            for length, p in zip(lengths, frame.periodic, strict=True)
        ),
        frame.periodic,
    )


def _measure(fractional: Tensor, frame: Frame) -> tuple[list[float], list[float]]:
    """Lower end and length of the fractional coordinates along each axis: 0 and 1 where it is periodic."""
    low, length = [0.0] * 3, [1.0] * 3
    if all(frame.periodic) or not len(fractional):
        return low, length
    ends = torch.stack(fractional.aminmax(dim=0)).tolist()
    for k in range(3):
        if not frame.periodic[k] and math.isfinite(ends[1][k] - ends[0][k]):
            low[k] = ends[0][k]
            length[k] = max((ends[1][k] - ends[0][k]) * (1.0 + MARGIN), 1e-3)
    return low, length


def _choose_shape(lengths: list[float], frame: Frame, reach: float) -> list[int]:
    width = max(reach, 1e-3) * (1.0 + MARGIN)
    return [
        max(1, min(int(length * height / width), 2**20))
        for length, height in zip(lengths, frame.heights, strict=True)
    ]


def _close_gaps(fractional: Tensor, frame: Frame, reach: float) -> Tensor:
    """Coordinates along non-periodic axes with empty space cut to twice the reach, which no pair spans."""
    closed = fractional.clone()
    for k in range(3):
        if frame.periodic[k]:
            continue
        ordered, order = fractional[:, k].sort()
        steps = ordered.diff(prepend=ordered[:1]).clamp_max(2.0 * reach / frame.heights[k])
        closed[:, k] = torch.empty_like(ordered).index_copy_(0, order, steps.cumsum(0))
    return closed
