"""How well repeats tell their median, and whether more of them are needed.

Here: :func:`find_median_interval` and :func:`needs_more`. Not here: what is repeated (:mod:`fastff.report.timing`,
:mod:`fastff.report.inner`), comparing medians (:mod:`fastff.report.regression`).

Single calls scatter far more than their median does: an occasional call of a busy machine takes several times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom, t

LEVEL = 0.95
"""Probability of the interval of a median."""

NARROW = 0.10
"""Width of the interval over the median at which the median is known well enough."""

MOST_TIMES = 4
"""Times the usual number of repeats that are taken at most where the median is not known well enough by then."""

LEAST_SPAN = 0.01
"""Of the budget, over which repeats are spread at least: what disturbs a machine may last longer than a few calls."""

EXTRA = 0.1
"""Of the budget, after which no repeat is taken beyond the usual number."""


def find_median_interval(seconds: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median of the distribution that repeats are drawn from.

    Between two order statistics: the number of repeats below the median is binomial (Conover, Practical Nonparametric
    Statistics, 3rd ed., section 3.2). Fewer than six repeats, whose extremes hold it too rarely, have the range of
    these joined with Student's t interval of the logarithms; a single one tells nothing.
    """
    values = np.sort(np.asarray(seconds, dtype=float))
    count = len(values)
    if count < 2:
        return 0.0, float("inf")
    # at most so many repeats are below, with 2.5 %
    rank = int(binom.ppf(0.5 * (1.0 - LEVEL), count, 0.5))
    if binom.cdf(rank, count, 0.5) > 0.5 * (1.0 - LEVEL):
        rank -= 1
    if rank >= 0:
        return float(values[rank]), float(values[count - 1 - rank])
    logs = np.log(np.maximum(values, 1e-300))
    reach = t.ppf(0.5 * (1.0 + LEVEL), count - 1) * logs.std(ddof=1) / np.sqrt(count)
    low, high = np.exp(logs.mean() - reach), np.exp(logs.mean() + reach)
    return float(min(low, values[0])), float(max(high, values[-1]))


def is_settled(seconds: Sequence[float]) -> bool:
    """Whether the interval of the median is narrow."""
    low, high = find_median_interval(seconds)
    return high - low <= NARROW * float(np.median(seconds))


def needs_more(
    seconds: Sequence[float], elapsed: float, *, least: int, usual: int, budget: float, share: float
) -> bool:
    """Whether to repeat once more after ``elapsed`` seconds of repeats.

    Parameters
    ----------
    seconds : sequence of float
        Repeats so far.
    elapsed : float
    least : int
        Repeats whatever they take.
    usual : int
        Repeats within ``share`` of the budget. Up to :data:`MOST_TIMES` as many are taken of what is cheap: while
        all of them span less than :data:`LEAST_SPAN` of the budget, and until the median is known to
        :data:`NARROW`, for :data:`EXTRA` of the budget at most.
    budget, share : float
        Seconds of a size, and the part of them for repeats.
    """
    count = len(seconds)
    if count < least:
        return True
    if count < usual:
        return elapsed < share * budget
    if count >= MOST_TIMES * usual or elapsed >= EXTRA * budget:
        return False
    return elapsed < LEAST_SPAN * budget or not is_settled(seconds)
