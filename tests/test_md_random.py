"""Random numbers of dynamics: the published generator, distributions, independence of blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from fastff.md.random import RandomBlock, draw_words

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "seed", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(
    counter: tuple[int, int, int, int], seed: int, expected: tuple[int, ...]
) -> None:
    """The known-answer vectors that come with Random123."""
    words = draw_words(tuple(torch.tensor([c]) for c in counter), seed)  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected


def test_noise_is_normal_and_a_function_of_the_step() -> None:
    block = RandomBlock(7, 50, 0, CPU)
    block.fill()
    noise = torch.stack([block.pick_noise(torch.tensor(k)) for k in range(60)])
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    flat = noise.reshape(-1, 3).numpy()
    assert np.abs(np.corrcoef(flat.T) - np.eye(3)).max() < 0.06
    assert abs(np.corrcoef(noise[:-1].flatten(), noise[1:].flatten())[0, 1]) < 0.04
    later = RandomBlock(7, 50, 0, CPU)
    later.start.fill_(31)
    later.fill()
    assert torch.equal(later.pick_noise(torch.tensor(40)), noise[40])
    assert not torch.equal(RandomBlock(8, 50, 0, CPU)._noise, block._noise)


@pytest.mark.parametrize("n_squares", [1, 2, 5, 92])
def test_sums_of_squares(n_squares: int) -> None:
    block = RandomBlock(3, 0, n_squares, CPU)
    drawn, firsts = [], []
    for start in range(0, 64 * 40, 64):
        block.start.fill_(start)
        block.fill()
        drawn.append(block.scalars[:, 4].clone())
        firsts.append(block.scalars[:, 0].clone())
    values = torch.cat(drawn).numpy()
    assert stats.kstest(values, stats.chi2(n_squares).cdf).pvalue > 0.01
    assert abs(np.corrcoef(values, torch.cat(firsts).numpy())[0, 1]) < 0.06
