"""Whether physical properties have the size of those of matter: both sides in a wrong unit agree with each other.

Here: :func:`find_magnitude_faults`. Not here: whether numbers follow from their curves
(:func:`fastff.report.physics.run.verify_physics`), labels (:mod:`fastff.report.plausibility`).

What is checked is the teacher's, and the student's only where there is no teacher's: a student may be wrong.
"""

from __future__ import annotations

import math

import numpy as np
from ase.data import atomic_numbers, covalent_radii

from fastff.report.physics.derive import find_first_peak, fit_eos
from fastff.report.physics.record import AnyItem, EosItem, PhononItem, RdfItem

VOLUMES = (3.0, 150.0)
"""Å^3/atom at equilibrium: diamond has 6, cesium 118."""

NEAREST = (0.5, 6.0)
"""Å of the nearest peak of any pair: hydrogen has 0.74, cesium 5.3."""

CONTACTS = (0.6, 1.6)
"""The nearest peak over the sum of covalent radii, but of noble gases: N2 has 0.8, salts and metals 1.0 to 1.2."""

NOBLE = frozenset(("He", "Ne", "Ar", "Kr", "Xe", "Rn"))
MOST_FREQUENCY = 150.0
"""THz; H2 vibrates at 132."""


def find_magnitude_faults(item: AnyItem) -> list[str]:
    """What matter does not have in the units of records; the curves of the item must be sound."""
    faults: list[str] = []
    if isinstance(item, EosItem):
        volume = fit_eos(item.volumes, item.teacher)[0]
        if not VOLUMES[0] <= volume <= VOLUMES[1]:
            faults.append(f"V0 of {volume:.4g} Å³/atom")
    elif isinstance(item, PhononItem):
        highest = float(np.abs(np.array(item.teacher)).max())
        if highest >= MOST_FREQUENCY:
            faults.append(f"a frequency of {highest:.4g} THz")
    elif isinstance(item, RdfItem):
        faults += _judge_peaks(item)
    return [
        f"{item.title}: {fault} is none that matter has: probably another unit" for fault in faults
    ]


def _judge_peaks(item: RdfItem) -> list[str]:
    """The nearest of the first peaks, and, where all pairs of elements are there, the one nearest to a bond."""
    peaks, shares = [], []
    for curve in item.curves:
        values = curve.student if curve.teacher is None else curve.teacher
        peaks.append(find_first_peak(curve.radii, values))
        reach = sum(float(covalent_radii[atomic_numbers[s]]) for s in curve.pair.split("-"))
        shares.append(peaks[-1] / reach)
    elements = {symbol for curve in item.curves for symbol in curve.pair.split("-")}
    nearest, share = min(peaks), min(shares)
    if not NEAREST[0] <= nearest <= NEAREST[1]:
        return [f"a nearest peak at {nearest:.4g} Å"]
    complete = len(item.curves) == math.comb(len(elements) + 1, 2)
    if complete and not elements & NOBLE and not CONTACTS[0] <= share <= CONTACTS[1]:
        return [f"a nearest peak at {share:.3g} times the sum of covalent radii"]
    return []
