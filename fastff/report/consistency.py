"""Whether a comparison holds together: tables, plotted data and histograms tell of the same labels.

Here: :func:`verify_comparison` and :func:`verify_accuracy`. What can be is recomputed; of what is only binned, the
bins bound the sums. Not here: which model a number is of (:mod:`fastff.report.attribution`), what follows from
several parts of a record (:mod:`fastff.report.conclusions`), magnitudes (:mod:`fastff.report.plausibility`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fastff.errors import DataError
from fastff.report.metrics import Accuracy
from fastff.report.plausibility import check_magnitudes
from fastff.report.plotdata import DISTANCE_LIMIT, CoverageData, Density, ForceBin, RestData
from fastff.report.schema import Comparison

SLACK = 1e-6
"""Relative difference that rounding may make."""


def is_same(a: float, b: float, *, absolute: float = 1e-12) -> bool:
    """Equal but for rounding."""
    return math.isclose(a, b, rel_tol=SLACK, abs_tol=absolute)


def is_between(low: float, value: float, high: float) -> bool:
    """``low <= value <= high`` but for rounding."""
    slack = SLACK * max(abs(low), abs(high)) + 1e-12
    return low - slack <= value <= high + slack


def verify_comparison(comparison: Comparison) -> None:
    """Accuracy from its own RMSE and RMS, and these from the rows and bins that the plots show.

    Raises
    ------
    DataError
    """
    where = f"comparison '{comparison.name}'"
    try:
        accuracy = comparison.read_accuracy()
    except (TypeError, KeyError) as error:
        raise DataError(f"{where}: incomplete accuracy record ({error}).") from error
    derived = accuracy.to_dict()
    if not is_same(comparison.accuracy["overall"], derived["overall"]):
        raise DataError(f"{where}: 'overall' is not the smallest accuracy.")
    verify_accuracy(where, accuracy)
    if comparison.accuracy["limiting"] != derived["limiting"]:
        raise DataError(f"{where}: 'limiting' does not name the smallest accuracy.")
    parity = comparison.parity
    force_rms, force_rmse = parity.compute_force_rms()
    if not is_same(force_rms, accuracy.force_rms) or not is_same(force_rmse, accuracy.force_rmse):
        raise DataError(
            f"{where}: the plotted forces have RMS {force_rms:.6g} and RMSE {force_rmse:.6g} eV/Å, the table says "
            f"{accuracy.force_rms:.6g} and {accuracy.force_rmse:.6g}: different units or frames, or teacher and "
            "student swapped."
        )
    fail = _make_failure(where)
    _verify_counts(comparison, accuracy, fail)
    _verify_energies(comparison, accuracy, fail)
    _verify_stresses(comparison, accuracy, fail)
    _verify_force_bins(parity.force_bins, fail)
    _verify_density(parity.force, accuracy, comparison.coverage, fail)
    _verify_coverage(comparison.coverage, accuracy, fail)
    check_magnitudes(where, accuracy, comparison.coverage.volume_per_atom)


Fail = Callable[[bool, str], None]


def _make_failure(where: str) -> Fail:
    def fail(wrong: bool, what: str) -> None:
        if wrong:
            raise DataError(
                f"{where}: {what}: different units or frames, or teacher and student swapped."
            )

    return fail


def verify_accuracy(where: str, accuracy: Accuracy) -> None:
    """Accuracies from RMSE and reference; sums over elements; inequalities between errors.

    Raises
    ------
    DataError
    """
    for name, value, rmse, scale in (
        ("force", accuracy.force, accuracy.force_rmse, accuracy.force_rms),
        ("energy", accuracy.energy, accuracy.energy_rmse, accuracy.energy_std),
        ("stress", accuracy.stress, accuracy.stress_rmse, accuracy.stress_rms),
    ):
        if value is not None and (
            rmse is None or scale is None or not is_same(value, 1.0 - rmse / scale)
        ):
            raise DataError(
                f"{where}: {name} accuracy {value} does not follow from RMSE {rmse} and "
                f"reference {scale}."
            )
    fail = _make_failure(where)
    for name, mae, rmse in (
        ("force", accuracy.force_mae, accuracy.force_rmse),
        ("energy", accuracy.energy_mae, accuracy.energy_rmse),
        ("stress", accuracy.stress_mae, accuracy.stress_rmse),
    ):
        wrong = mae is not None and rmse is not None and not is_between(0.0, mae, rmse)
        fail(wrong, f"the {name} MAE {mae} is above its RMSE {rmse}")
    _verify_elements(accuracy, fail)
    if accuracy.force_relative_mae and accuracy.force_mae:
        mean = accuracy.force_mae / accuracy.force_relative_mae
        fail(not is_between(0.0, mean, accuracy.force_rms), "the relative MAE does not fit the MAE")
    if accuracy.force_r2 is not None and accuracy.force is not None:
        # the spread about the mean is at most the mean square
        highest = 1.0 - (accuracy.force_rmse / accuracy.force_rms) ** 2
        fail(accuracy.force_r2 > highest + SLACK, "R² does not fit RMSE and RMS")
    cosine = accuracy.force_cosine
    fail(cosine is not None and not is_between(-1.0, cosine, 1.0), "the cosine is no cosine")


def _verify_elements(accuracy: Accuracy, fail: Fail) -> None:
    """Over the elements, errors and references add up to those of all atoms."""
    entries = list(accuracy.per_element.values())
    total = sum(e.n_atoms for e in entries)
    fail(total != accuracy.n_atoms, f"the elements have {total} of {accuracy.n_atoms} atoms")
    mae = sum(e.n_atoms * e.mae for e in entries) / total
    rmse = math.sqrt(sum(e.n_atoms * e.rmse**2 for e in entries) / total)
    wrong = not is_same(mae, accuracy.force_mae) or not is_same(rmse, accuracy.force_rmse)
    fail(wrong, "errors of the elements do not add up to the force errors")
    # next to one an accuracy says nothing of the reference any more
    if all(e.accuracy is None or 1.0 - e.accuracy > SLACK for e in entries):
        scales = [e.rmse / (1.0 - e.accuracy) if e.accuracy is not None else 0.0 for e in entries]
        rms = math.sqrt(sum(e.n_atoms * s**2 for e, s in zip(entries, scales, strict=True)) / total)
        fail(
            not is_same(rms, accuracy.force_rms), "accuracies of the elements do not fit their RMSE"
        )


def _verify_counts(comparison: Comparison, accuracy: Accuracy, fail: Fail) -> None:
    """Frames, atoms and compositions, wherever they are said."""
    frames, parity, coverage = comparison.frames, comparison.parity, comparison.coverage
    cells = sum(n for _, _, n in parity.force.cells) + parity.force.outside
    for what, count, expected in (
        ("frames", frames.n_frames, accuracy.n_frames),
        ("atoms", frames.n_atoms, accuracy.n_atoms),
        ("plotted energies", parity.n_energies, accuracy.n_frames),
        ("plotted force components", cells, 3 * accuracy.n_atoms),
        ("atoms in bins of force", sum(b.count for b in parity.force_bins), accuracy.n_atoms),
        ("atoms in the histogram", sum(coverage.force_counts), accuracy.n_atoms),
        ("atoms of the elements", sum(coverage.element_counts.values()), accuracy.n_atoms),
    ):
        fail(count != expected, f"{count} {what} instead of {expected}")
    elements = {symbol: e.n_atoms for symbol, e in accuracy.per_element.items()}
    fail(
        elements != coverage.element_counts,
        "the elements of the frames are others than in the table",
    )
    formulas = set(frames.formulas)
    wrong = formulas != set(parity.energy_groups) or formulas != set(accuracy.energy_offsets)
    fail(wrong, "the compositions of the frames are others than in the tables")
    fail(not 1 <= frames.n_trajectories <= frames.n_frames, "more trajectories than frames")


def _sum_rows(
    rows: Sequence[tuple[float, float]], rest: RestData | None
) -> tuple[int, float, float, float]:
    """Number, sums of squared reference, squared error and absolute error, with those not selected."""
    values = np.array(rows, dtype=float).reshape(-1, 2)
    error = values[:, 1] - values[:, 0]
    own = (
        len(values),
        float(np.sum(values[:, 0] ** 2)),
        float(np.sum(error**2)),
        float(np.sum(np.abs(error))),
    )
    if rest is None:
        return own
    return (
        own[0] + rest.count,
        own[1] + rest.reference,
        own[2] + rest.squared_error,
        own[3] + rest.absolute_error,
    )


def _verify_energies(comparison: Comparison, accuracy: Accuracy, fail: Fail) -> None:
    """MAE, RMSE and spread from the plotted energies; a composition with a single frame adds nothing to the sums."""
    parity = comparison.parity
    rows = [(reference, prediction) for _, reference, prediction in parity.energy]
    count, reference, squared, absolute = _sum_rows(rows, parity.energy_rest)
    if parity.energy_rest is None and count < parity.n_energies:
        return  # a selection alone, of an old schema
    fail(count != parity.n_energies, f"{count} energies are plotted of {parity.n_energies}")
    if accuracy.energy_mae is None or not accuracy.n_energies:
        return
    n = accuracy.n_energies
    found = (absolute / n, math.sqrt(squared / n), math.sqrt(reference / n))
    table = (accuracy.energy_mae, accuracy.energy_rmse or 0.0, accuracy.energy_std or 0.0)
    wrong = not all(is_same(a, b, absolute=1e-9) for a, b in zip(found, table, strict=True))
    fail(
        wrong,
        f"the plotted energies have MAE, RMSE and spread {_list(found)} eV/atom, the table says {_list(table)}",
    )


def _verify_stresses(comparison: Comparison, accuracy: Accuracy, fail: Fail) -> None:
    """MAE, RMSE and RMS from the plotted stress components, six for each frame."""
    parity = comparison.parity
    count, reference, squared, absolute = _sum_rows(parity.stress, parity.stress_rest)
    if parity.stress_rest is None and count < parity.n_stresses:
        return  # a selection alone, of an old schema
    fail(count != parity.n_stresses, f"{count} stresses are plotted of {parity.n_stresses}")
    if accuracy.stress_mae is None:
        return
    fail(count != 6 * accuracy.n_stresses, f"{count} stress components of {accuracy.n_stresses}")
    found = (absolute / count, math.sqrt(squared / count), math.sqrt(reference / count))
    table = (accuracy.stress_mae, accuracy.stress_rmse or 0.0, accuracy.stress_rms or 0.0)
    wrong = not all(is_same(a, b) for a, b in zip(found, table, strict=True))
    fail(
        wrong,
        f"the plotted stresses have MAE, RMSE and RMS {_list(found)} eV/Å^3, the table says {_list(table)}",
    )


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _verify_force_bins(bins: Sequence[ForceBin], fail: Fail) -> None:
    """Bins in the order of the force; quantiles no larger than the RMS of the bin allows."""
    sizes = np.array([b.force_rms for b in bins])
    descending = bool((sizes[1:] < (1.0 - SLACK) * sizes[:-1]).any())
    fail(descending, "the bins of force are not in ascending order")
    for b in bins:
        fail(
            not is_between(0.0, b.error_median, b.error_q90),
            "the median is above the 90 % quantile",
        )
        for value, share in ((b.error_median, 0.5), (b.error_q90, 0.9)):
            # at least this many errors are as large as the quantile
            larger = b.count - math.ceil(share * (b.count - 1))
            highest = b.error_rms * math.sqrt(b.count / larger)
            fail(
                not is_between(0.0, value, highest),
                f"quantile {value:.6g} of the force errors does not fit their RMS {b.error_rms:.6g} eV/Å",
            )


def _verify_density(
    density: Density, accuracy: Accuracy, coverage: CoverageData, fail: Fail
) -> None:
    """The cells bound the squares of reference and error; the stored sums of the columns lie within, and add up."""
    n = density.n_bins
    edges = np.linspace(density.low, density.high, n + 1)
    column, row, counts = np.array(density.cells, dtype=int).reshape(-1, 3).T
    inside = bool(((column >= 0) & (column < n) & (row >= 0) & (row < n)).all())
    fail(not inside or density.low >= density.high, "cells outside the plot of forces")
    sizes = np.sort(np.abs(np.stack([edges[:-1], edges[1:]])), axis=0)
    least = np.where((edges[:-1] < 0) & (edges[1:] > 0), 0.0, sizes[0])
    nearest, farthest = edges[row] - edges[column + 1], edges[row + 1] - edges[column]
    error = np.sort(np.abs(np.stack([nearest, farthest])), axis=0)
    error[0][(nearest <= 0) & (farthest >= 0)] = 0.0
    # per column: lowest and highest possible sums of squared reference and of squared error
    bounds = [
        np.bincount(column, weights=counts * values**2, minlength=n)
        for values in (least[column], sizes[1][column], error[0], error[1])
    ]
    totals = [
        3 * accuracy.n_atoms * value**2 for value in (accuracy.force_rms, accuracy.force_rmse)
    ]
    if density.columns is None or density.beyond_columns is None:
        largest = coverage.force_edges[-1] ** 2 if density.outside else 0.0
        fail(
            not is_between(bounds[0].sum(), totals[0], bounds[1].sum() + density.outside * largest)
            or totals[1] < (1.0 - SLACK) * bounds[2].sum()
            or (not density.outside and totals[1] > (1.0 + SLACK) * bounds[3].sum()),
            "the cells of the plotted forces do not fit RMS and RMSE in the table",
        )
        return
    sums = np.array(density.columns, dtype=float).reshape(-1, 2)
    fail(len(sums) != n, "columns are missing from the plot of forces")
    for k, (low, high) in enumerate((bounds[:2], bounds[2:])):
        what = ("reference", "error")[k]
        slack = SLACK * high + 1e-12
        wrong = bool(((sums[:, k] < low - slack) | (sums[:, k] > high + slack)).any())
        fail(wrong, f"the {what} of the plotted forces does not fit the cells")
        total = float(sums[:, k].sum()) + density.beyond_columns[k]
        fail(
            not is_same(total, totals[k]),
            f"the {what} of the plotted forces is not that in the table",
        )


def _verify_coverage(coverage: CoverageData, accuracy: Accuracy, fail: Fail) -> None:
    """Histograms hold what the table says of forces, and distances begin with the shortest."""
    for edges, counts in (
        (coverage.force_edges, coverage.force_counts),
        (coverage.distance_edges, coverage.distance_counts),
    ):
        fail(
            len(edges) != len(counts) + 1 or list(edges) != sorted(edges),
            "edges of a histogram are not its own",
        )
    limits, numbers = np.array(coverage.force_edges), np.array(coverage.force_counts)
    low, high = (float(numbers @ np.maximum(e, 0.0) ** 2) for e in (limits[:-1], limits[1:]))
    square = 3 * accuracy.n_atoms * accuracy.force_rms**2
    fail(not is_between(low, square, high), "the histogram of forces does not fit their RMS")
    expected = np.linspace(0.0, DISTANCE_LIMIT, len(coverage.distance_edges))
    wrong = not np.allclose(coverage.distance_edges, expected)
    fail(wrong, f"the histogram of distances does not end at {DISTANCE_LIMIT:g} Å")
    filled = np.flatnonzero(coverage.distance_counts)
    shortest = coverage.shortest_distance
    fail((shortest is None) != (filled.size == 0), "the shortest distance is not in the histogram")
    if shortest is not None:
        first = int(filled[0])
        wrong = not is_between(
            coverage.distance_edges[first], shortest, coverage.distance_edges[first + 1]
        )
        fail(wrong, f"the shortest distance {shortest:.4g} Å is not in the histogram")
