"""Random numbers that depend on seed, step and atom alone, in plain torch.

Here: the Philox4x32-10 generator of J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, SC'11 (2011), and
:class:`RandomBlock`, which holds the numbers of the next steps. Not here: who uses them.

There is no state to save: a run that is stopped, repeated or cut into other chunks draws the same numbers. A block
serves many steps, so that the many small operations of the generator are paid once per block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_N_CANDIDATES = 16
_BLOCK_ELEMENTS = 2**20
_ATOMS, _SCALARS = 1, 2

N_NORMALS = 4
"""Standard normal numbers per step beside those of atoms."""


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
    key = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # modulo 2^64, as wanted
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ key[0],
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ key[1],
            p0 & _MASK,
        )
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
    return c0, c1, c2, c3


def make_uniform(words: Tensor) -> Tensor:
    """Float64 in (0, 1), both ends excluded."""
    return (words.double() + 0.5) * 2.0**-32


def make_normal(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers from two words (Box and Muller, 1958)."""
    radius = torch.sqrt(-2.0 * torch.log(make_uniform(first)))
    angle = (2.0 * math.pi) * make_uniform(second)
    return radius * torch.cos(angle), radius * torch.sin(angle)


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
    """

    def __init__(self, seed: int, n_atoms: int, n_squares: int, device: torch.device) -> None:
        self.seed, self.n_atoms, self.n_squares = seed, n_atoms, n_squares
        self.length = max(1, min(64, _BLOCK_ELEMENTS // max(n_atoms, 1)))
        self.start = torch.zeros((), dtype=torch.int64, device=device)
        self._offsets = torch.arange(self.length, device=device)
        self._atoms = torch.arange(n_atoms, device=device)
        self._calls = torch.arange(1 + _N_CANDIDATES // 2, device=device)
        self._noise = torch.zeros(self.length, n_atoms, 3, dtype=torch.float64, device=device)
        self._scalars = torch.zeros(self.length, N_NORMALS + 1, dtype=torch.float64, device=device)

    def fill(self) -> None:
        """Draw the numbers of steps ``start`` to ``start + length - 1``; waits for nothing."""
        steps = (self.start + self._offsets)[:, None]
        low, high = steps & _MASK, (steps >> 32) & _MASK
        if self.n_atoms:
            stream = torch.full_like(self._atoms, _ATOMS)
            w = draw_words((self._atoms, low, high, stream), self.seed)
            x, y = make_normal(w[0], w[1])
            z, _ = make_normal(w[2], w[3])
            torch.stack([x, y, z], dim=2, out=self._noise)
        stream = torch.full_like(self._calls, _SCALARS)
        w = draw_words((self._calls, low, high, stream), self.seed)
        even, odd = make_normal(w[0], w[1])
        self._scalars[:, 0] = even[:, 0]
        self._scalars[:, 1] = odd[:, 0]
        third, fourth = make_normal(w[2][:, 0], w[3][:, 0])
        self._scalars[:, 2] = third
        self._scalars[:, 3] = fourth
        self._scalars[:, 4] = self._draw_squares(even, odd, w)

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
        row = self._scalars.index_select(0, self._find(step))[0]
        return row[:N_NORMALS], row[N_NORMALS]

    def _find(self, step: Tensor) -> Tensor:
        return (step - self.start).clamp(0, self.length - 1).view(1)
