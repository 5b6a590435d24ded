"""Choosing structures to be labelled: where the student is unsure, and unlike each other.

Here: descriptors from last-layer features, farthest-point selection weighted by uncertainty. Not here: the
uncertainty itself (:mod:`fastff.models.uncertainty`), where structures come from (:mod:`fastff.distill.explore`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import ase
import numpy as np
import torch

from fastff.errors import UsageError
from fastff.gathering import gather_graph
from fastff.inference import split_chunks
from fastff.models import Student

DESCRIBE_ATOMS = 4096
"""Most atoms described together."""
WEIGHT_RANGE = (0.3, 3.0)
"""Least and largest weight of a structure, in units of the median."""


@torch.no_grad()
def describe_structures(student: Student, structures: Sequence[ase.Atoms]) -> np.ndarray:
    """Descriptors whose distances say how unlike structures are to the student.

    For each species the mean and the root mean square over its atoms of the last-layer features, in the coordinates in
    which the extrapolation grade is a length.

    Returns
    -------
    numpy.ndarray
        Shape (n_structures, n_species * 2 * n_components), float64; zero for species that are absent.

    Raises
    ------
    UsageError
        If the student has no uncertainty.
    """
    fitted = student.uncertainty
    if fitted is None:
        raise UsageError("the student has no uncertainty, so that structures cannot be compared")
    means, components = fitted.atom_means.double(), fitted.atom_components.double()
    rows = []
    for chunk in split_chunks(structures, DESCRIBE_ATOMS):
        graph = gather_graph(chunk, student.cutoff, student.device)
        features = student.compute_features(graph)
        unbounded = features.unbounded.double().cpu()
        species = student.find_species(graph.numbers).cpu()
        batch, parts = graph.batch.cpu(), []
        for k in range(len(student.elements)):
            mine = species == k
            moved = (unbounded[mine] - means[k].cpu()) @ components[k].cpu().T
            both = torch.cat([moved, moved.square()], dim=1)
            sums = both.new_zeros(len(chunk), both.shape[1]).index_add(0, batch[mine], both)
            counts = torch.bincount(batch[mine], minlength=len(chunk)).clamp_min(1)
            average = sums / counts[:, None]
            n = moved.shape[1]
            parts.append(torch.cat([average[:, :n], average[:, n:].sqrt()], dim=1))
        rows.append(torch.cat(parts, dim=1).numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 0))


def weigh_uncertainty(values: Sequence[float]) -> np.ndarray:
    """Weights from uncertainties: their ratio to the median, within :data:`WEIGHT_RANGE`; ones where undefined."""
    given = np.asarray(values, dtype=float)
    known = given[np.isfinite(given) & (given > 0)]
    if len(known) == 0:
        return np.ones(len(given))
    ratio = np.where(np.isfinite(given), given, np.median(known)) / np.median(known)
    result: np.ndarray = np.clip(ratio, *WEIGHT_RANGE)
    return result


def choose_spread(
    candidates: np.ndarray,
    known: np.ndarray,
    weights: np.ndarray,
    count: int,
    forced: Collection[int] = (),
) -> list[int]:
    """Choose candidates far from what is known and from each other.

    Greedy farthest-point selection: the next one has the largest product of weight and distance to its nearest known
    or chosen neighbor.

    Parameters
    ----------
    candidates : (n, d) array
        Descriptors.
    known : (m, d) array
        Descriptors of what is known already; may be empty.
    weights : (n,) array
    count : int
        How many to choose, forced ones included.
    forced : collection of int
        Candidates that are chosen first whatever their distance; all of them, even if they are more than ``count``.

    Returns
    -------
    list of int
        Indices in the order of choice.
    """
    chosen = sorted(set(forced))
    sizes = np.sum(candidates**2, axis=1)

    def measure(row: np.ndarray) -> np.ndarray:
        """Squared distances of all candidates from a descriptor."""
        squared = sizes - 2.0 * (candidates @ row) + row @ row
        found: np.ndarray = np.maximum(squared, 0.0)
        return found

    nearest = np.full(len(candidates), np.inf)
    for row in (*known, *candidates[chosen]):
        nearest = np.minimum(nearest, measure(row))
    taken = np.zeros(len(candidates), bool)
    taken[chosen] = True
    while len(chosen) < min(count, len(candidates)):
        finite = np.where(np.isfinite(nearest), nearest, np.finfo(float).max)
        score = np.where(taken, -1.0, weights * np.sqrt(finite))
        index = int(np.argmax(score))
        chosen.append(index)
        taken[index] = True
        nearest = np.minimum(nearest, measure(candidates[index]))
    return chosen
