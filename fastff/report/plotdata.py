"""Frames and labels condensed to what the plots show.

Here: :class:`ParityData` and :class:`CoverageData` and how they are computed. Not here: drawing them
(:mod:`fastff.report.figures`). A record holds these and not the raw forces, so that it stays small enough to commit and
still rebuilds every figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from pydantic import BaseModel, ConfigDict

from fastff.graph import edge_vectors
from fastff.labels import Labels
from fastff.neighbors import atoms_to_graph
from fastff.report.metrics import reduce_formula

N_BINS = 90
N_FORCE_BINS = 16
MOST_POINTS = 1500
DISTANCE_LIMIT = 6.0
DISTANCE_FRAMES = 24
"""Frames whose pair distances are counted, at most."""


class Density(BaseModel):
    """Counts of (reference, prediction) pairs on a square grid; ``cells`` lists (column, row, count) where not zero.

    ``columns`` has for each column, and ``beyond_columns`` for the ``outside`` pairs that are in no cell, the sums of
    the squared reference and of the squared error, (eV/Å)^2; None in records of old schemas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float
    high: float
    n_bins: int
    cells: tuple[tuple[int, int, int], ...]
    outside: int
    columns: tuple[tuple[float, float], ...] | None = None
    beyond_columns: tuple[float, float] | None = None


class RestData(BaseModel):
    """Of the rows that were not selected: number, sums of squared reference, squared error and absolute error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    reference: float
    squared_error: float
    absolute_error: float


class ForceBin(BaseModel):
    """Atoms of similar reference force; RMS, median and 90 % quantile are over vector norms, eV/Å."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int
    force_rms: float
    error_rms: float
    error_median: float
    error_q90: float


class ParityData(BaseModel):
    """Reference against prediction.

    ``force`` in eV/Å; ``energy`` rows (group, reference, prediction) in eV/atom, both less the mean reference of their
    composition and the prediction less its offset; ``stress`` rows (reference, prediction) in eV/Å^3. Of
    ``n_energies`` and ``n_stresses`` points the rows are an even selection, and ``energy_rest`` and ``stress_rest``
    sum up the others, so that all together give the errors in tables; None in records of old schemas.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    force: Density
    force_bins: tuple[ForceBin, ...]
    energy: tuple[tuple[int, float, float], ...]
    energy_groups: tuple[str, ...]
    stress: tuple[tuple[float, float], ...]
    n_energies: int
    n_stresses: int
    energy_rest: RestData | None = None
    stress_rest: RestData | None = None

    def compute_force_rms(self) -> tuple[float, float]:
        """RMS of the reference and RMS error over all components, eV/Å, from the bins."""
        count = sum(b.count for b in self.force_bins)
        reference = sum(b.count * b.force_rms**2 for b in self.force_bins) / (3 * count)
        error = sum(b.count * b.error_rms**2 for b in self.force_bins) / (3 * count)
        return float(np.sqrt(reference)), float(np.sqrt(error))


class CoverageData(BaseModel):
    """What the frames span: histograms as (edges, counts), and extremes.

    Pair distances are those of at most :data:`DISTANCE_FRAMES` frames.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    force_edges: tuple[float, ...]
    force_counts: tuple[int, ...]
    distance_edges: tuple[float, ...]
    distance_counts: tuple[int, ...]
    shortest_distance: float | None
    volume_per_atom: tuple[float, float] | None
    element_counts: dict[str, int]


def compute_parity(
    reference: Sequence[Labels], prediction: Sequence[Labels], structures: Sequence[ase.Atoms]
) -> ParityData:
    """Condense checked labels (see :func:`fastff.report.metrics.check_labels`) for plotting."""
    ref = np.concatenate([labels.forces for labels in reference]).astype(float)
    pred = np.concatenate([labels.forces for labels in prediction]).astype(float)
    energy, groups = _center_energies(reference, prediction, structures)
    stress = [
        pair
        for r, p in zip(reference, prediction, strict=True)
        if r.stress is not None and p.stress is not None
        for pair in zip(r.stress.tolist(), p.stress.tolist(), strict=True)
    ]
    energy_rows, energy_rest = _thin(energy)
    stress_rows, stress_rest = _thin(stress)
    return ParityData(
        force=_count_density(ref.ravel(), pred.ravel()),
        force_bins=_bin_forces(ref, pred),
        energy=energy_rows,
        energy_groups=tuple(groups),
        stress=stress_rows,
        n_energies=len(energy),
        n_stresses=len(stress),
        energy_rest=energy_rest,
        stress_rest=stress_rest,
    )


def _thin(rows: list[Any]) -> tuple[tuple[Any, ...], RestData]:
    """At most ``MOST_POINTS`` rows ending in (reference, prediction), evenly chosen, and sums over the others."""
    chosen = np.arange(len(rows))
    if len(rows) > MOST_POINTS:
        chosen = np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(int)
    others = np.setdiff1d(np.arange(len(rows)), chosen)
    values = np.array([rows[i][-2:] for i in others], dtype=float).reshape(-1, 2)
    error = values[:, 1] - values[:, 0]
    rest = RestData(
        count=len(values),
        reference=float(np.sum(values[:, 0] ** 2)),
        squared_error=float(np.sum(error**2)),
        absolute_error=float(np.sum(np.abs(error))),
    )
    return tuple(rows[i] for i in chosen), rest


def _count_density(reference: np.ndarray, prediction: np.ndarray) -> Density:
    reach = float(np.quantile(np.abs(reference), 0.9995)) * 1.05
    reach = reach if reach > 0.0 else 1e-6
    edges = np.linspace(-reach, reach, N_BINS + 1)
    inside = (np.abs(reference) < reach) & (np.abs(prediction) < reach)
    column, row = (
        np.searchsorted(edges, side[inside], "right") - 1 for side in (reference, prediction)
    )
    counts = np.bincount(column * N_BINS + row, minlength=N_BINS**2).reshape(N_BINS, N_BINS)
    squares = np.stack([reference**2, (prediction - reference) ** 2])
    sums = [np.bincount(column, weights=s, minlength=N_BINS) for s in squares[:, inside]]
    beyond = squares[:, ~inside].sum(axis=1)
    return Density(
        low=-reach,
        high=reach,
        n_bins=N_BINS,
        cells=tuple((int(i), int(j), int(counts[i, j])) for i, j in np.argwhere(counts > 0)),
        outside=int(np.sum(~inside)),
        columns=tuple((float(a), float(b)) for a, b in zip(*sums, strict=True)),
        beyond_columns=(float(beyond[0]), float(beyond[1])),
    )


def _bin_forces(reference: np.ndarray, prediction: np.ndarray) -> tuple[ForceBin, ...]:
    """Bins of equal population in the norm of the reference force; together they hold every atom."""
    norms = np.linalg.norm(reference, axis=1)
    errors = np.linalg.norm(prediction - reference, axis=1)
    order = np.argsort(norms, kind="stable")
    return tuple(
        ForceBin(
            count=int(members.size),
            force_rms=float(np.sqrt(np.mean(norms[members] ** 2))),
            error_rms=float(np.sqrt(np.mean(errors[members] ** 2))),
            error_median=float(np.median(errors[members])),
            error_q90=float(np.quantile(errors[members], 0.9)),
        )
        for members in np.array_split(order, min(N_FORCE_BINS, order.size))
    )


def _center_energies(
    reference: Sequence[Labels], prediction: Sequence[Labels], structures: Sequence[ase.Atoms]
) -> tuple[list[tuple[int, float, float]], list[str]]:
    members: dict[str, list[int]] = defaultdict(list)
    for index, atoms in enumerate(structures):
        members[reduce_formula(atoms)].append(index)
    counts = np.array([len(atoms) for atoms in structures])
    ref = np.array([labels.energy for labels in reference]) / counts
    pred = np.array([labels.energy for labels in prediction]) / counts
    rows = [
        (number, float(ref[i] - ref[chosen].mean()), float(pred[i] - pred[chosen].mean()))
        for number, chosen in enumerate(members.values())
        for i in chosen
    ]
    return rows, list(members)


def compute_coverage(reference: Sequence[Labels], structures: Sequence[ase.Atoms]) -> CoverageData:
    """Spread of forces, volume and elements over the frames, pair distances up to 6 Å of :data:`DISTANCE_FRAMES`."""
    norms = np.concatenate([np.linalg.norm(labels.forces, axis=1) for labels in reference])
    force_counts, force_edges = np.histogram(norms, bins=40)
    chosen = [
        structures[i]
        for i in np.unique(np.linspace(0, len(structures) - 1, DISTANCE_FRAMES).astype(int))
    ]
    distances = np.concatenate([_find_distances(atoms) for atoms in chosen])
    counts, edges = np.histogram(distances, bins=60, range=(0.0, DISTANCE_LIMIT))
    volumes = [atoms.get_volume() / len(atoms) for atoms in structures if atoms.pbc.all()]
    symbols, totals = np.unique(
        [symbol for atoms in structures for symbol in atoms.get_chemical_symbols()],
        return_counts=True,
    )
    return CoverageData(
        force_edges=tuple(force_edges.tolist()),
        force_counts=tuple(force_counts.tolist()),
        distance_edges=tuple(edges.tolist()),
        distance_counts=tuple(counts.tolist()),
        shortest_distance=float(distances.min()) if distances.size else None,
        volume_per_atom=(min(volumes), max(volumes)) if volumes else None,
        element_counts={str(s): int(n) for s, n in zip(symbols, totals, strict=True)},
    )


def _find_distances(atoms: ase.Atoms) -> np.ndarray:
    """Distances of all pairs up to 6 Å, each pair once, Å."""
    graph = atoms_to_graph(atoms, DISTANCE_LIMIT)
    return np.sort(edge_vectors(graph).norm(dim=1).numpy())[::2]
