"""Random numbers of the next steps, in plain torch.

Here: :class:`RandomBlock`, gamma-distributed numbers. Not here: the generator (:mod:`fastff.kernels.philox`), who uses
the numbers.

There is no state to save: a run that is stopped, repeated or cut into other chunks draws the same numbers. A block
serves many steps, so that the many small operations of the generator are paid once per block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastff.kernels.philox import (
    MASK,
    SCALAR_STREAM,
    draw_normals,
    draw_words,
    make_normal,
    make_uniform,
)

_N_CANDIDATES = 16
_BLOCK_ELEMENTS = 2**20

N_NORMALS = 4
"""Standard normal numbers per step beside those of atoms."""


def choose_gamma(normal: Tensor, uniform: Tensor, shape: float) -> Tensor:
    """Gamma-distributed numbers by the method of Marsaglia and Tsang, ACM Trans. Math. Softw. 26, 363 (2000).

    Parameters
    ----------
    normal, uniform : (..., n_candidates) float64 tensors
        The first accepted candidate counts; sixteen are all rejected less than once in 1e20.
    shape : float
        At least 1.

    Returns
    -------
    (...) float64 tensor
        With scale 1.
    """
    d = shape - 1.0 / 3.0
    v = (1.0 + normal / math.sqrt(9.0 * d)) ** 3
    positive = v.clamp(min=1e-300)
    accepted = (v > 0.0) & (
        torch.log(uniform) < 0.5 * normal**2 + d - d * v + d * torch.log(positive)
    )
    first = accepted.to(torch.int8).argmax(dim=-1, keepdim=True)
    return d * positive.gather(-1, first)[..., 0]


class RandomBlock:
    """Random numbers of a few steps on the device.

    Parameters
    ----------
    seed : int
    n_atoms : int
        Atoms that get noise of their own, zero for none.
    n_squares : int
        How many squared normal numbers the extra sum of every step holds.
    device : torch.device

    Attributes
    ----------
    length : int
        Steps in a block.
    start : () int64 tensor
        The first of them.
    scalars : (length, 5) float64 tensor
        Four standard normal numbers of every step, and the sum of squares.
    """

    def __init__(self, seed: int, n_atoms: int, n_squares: int, device: torch.device) -> None:
        self.seed, self.n_atoms, self.n_squares = seed, n_atoms, n_squares
        self.length = max(1, min(64, _BLOCK_ELEMENTS // max(n_atoms, 1)))
        self.start = torch.zeros((), dtype=torch.int64, device=device)
        self._offsets = torch.arange(self.length, device=device)
        self._atoms = torch.arange(n_atoms, device=device)
        self._calls = torch.arange(1 + _N_CANDIDATES // 2, device=device)
        self._noise = torch.zeros(self.length, n_atoms, 3, dtype=torch.float64, device=device)
        self.scalars = torch.zeros(self.length, N_NORMALS + 1, dtype=torch.float64, device=device)

    def fill(self) -> None:
        """Draw the numbers of steps ``start`` to ``start + length - 1``; waits for nothing."""
        steps = (self.start + self._offsets)[:, None]
        low, high = steps & MASK, (steps >> 32) & MASK
        if self.n_atoms:
            self._noise.copy_(draw_normals(self._atoms, steps, self.seed))
        stream = torch.full_like(self._calls, SCALAR_STREAM)
        w = draw_words((self._calls, low, high, stream), self.seed)
        even, odd = make_normal(w[0], w[1])
        self.scalars[:, 0] = even[:, 0]
        self.scalars[:, 1] = odd[:, 0]
        third, fourth = make_normal(w[2][:, 0], w[3][:, 0])
        self.scalars[:, 2] = third
        self.scalars[:, 3] = fourth
        self.scalars[:, 4] = self._draw_squares(even, odd, w)

    def _draw_squares(self, even: Tensor, odd: Tensor, words: tuple[Tensor, ...]) -> Tensor:
        if self.n_squares < 1:
            return torch.zeros_like(even[:, 0])
        shape = 0.5 * self.n_squares
        normal = torch.cat([even[:, 1:], odd[:, 1:]], dim=1)
        uniform = make_uniform(torch.cat([words[2][:, 1:], words[3][:, 1:]], dim=1))
        if shape >= 1.0:
            return 2.0 * choose_gamma(normal, uniform, shape)
        # one squared normal number
        return normal[:, 0].square()

    def pick_noise(self, step: Tensor) -> Tensor:
        """Standard normal numbers of the atoms at a step, float64, shape (n_atoms, 3)."""
        return self._noise.index_select(0, self._find(step))[0]

    def pick_scalars(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Four standard normal numbers of a step, shape (4,), and the sum of ``n_squares`` squares of others."""
        row = self.scalars.index_select(0, self._find(step))[0]
        return row[:N_NORMALS], row[N_NORMALS]

    def _find(self, step: Tensor) -> Tensor:
        return (step - self.start).clamp(0, self.length - 1).view(1)
