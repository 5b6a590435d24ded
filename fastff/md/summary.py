"""What a run amounts to: averages with errors, drift.

Here: :class:`Summary`, read from the log. Not here: printing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastff.md.recorder import LOG_COLUMNS

_N_BLOCKS = 10
_SETTLING = 0.2


@dataclass(frozen=True)
class Average:
    """A mean and its standard error from block averages; NaN where there are too few rows."""

    mean: float
    error: float


@dataclass(frozen=True)
class Summary:
    """Averages over the last four fifths of a run.

    Attributes
    ----------
    temperature : Average
        K.
    pressure : Average
        GPa; NaN unless periodic in all directions.
    volume : Average
        Å^3.
    drift : float
        Slope of the conserved quantity over the whole run, meV/atom/ps.
    n_rows : int
        Rows of the log.
    """

    temperature: Average
    pressure: Average
    volume: Average
    drift: float
    n_rows: int


def read_log(path: Path) -> np.ndarray:
    """Rows of a log, float64, columns :data:`~fastff.md.recorder.LOG_COLUMNS`; NaN where a cell is empty."""
    table = np.genfromtxt(path, delimiter=",", skip_header=1, dtype=np.float64)
    return np.atleast_2d(table).reshape(-1, len(LOG_COLUMNS))


def average_blocks(values: np.ndarray) -> Average:
    """Mean and standard error over ten blocks (H. Flyvbjerg and H. G. Petersen, J. Chem. Phys. 91, 461 (1989))."""
    if not len(values):
        return Average(math.nan, math.nan)
    mean = float(values.mean())
    size = len(values) // _N_BLOCKS
    if size < 2:
        return Average(mean, math.nan)
    blocks = values[-size * _N_BLOCKS :].reshape(_N_BLOCKS, size).mean(axis=1)
    return Average(mean, float(blocks.std(ddof=1) / math.sqrt(_N_BLOCKS)))


def summarize(path: Path, n_atoms: int) -> Summary:
    """Averages and drift from a log."""
    rows = read_log(path)
    columns = {name: rows[:, k] for k, name in enumerate(LOG_COLUMNS)}
    settled = slice(int(_SETTLING * len(rows)), None)
    times, conserved = columns["time_ps"], columns["conserved_eV"]
    drift = math.nan
    if len(rows) > 2 and np.ptp(times) > 0 and np.isfinite(conserved).all():
        drift = float(np.polyfit(times, conserved - conserved[0], 1)[0]) * 1e3 / n_atoms
    return Summary(
        temperature=average_blocks(columns["temperature_K"][settled]),
        pressure=average_blocks(columns["pressure_GPa"][settled]),
        volume=average_blocks(columns["volume_A3"][settled]),
        drift=drift,
        n_rows=len(rows),
    )
