"""Recognise comparisons whose two sides are not what they claim to be.

Here: :func:`check_units` (labels in another unit or with the opposite sign), :func:`check_identity` (a calculator that
does not give the labels it is said to have given: swapped or stale) and :func:`check_magnitudes` (labels of a size that
matter does not have). Not here: the accuracy itself
(:mod:`fastff.report.metrics`), or the consistency of a stored record (:mod:`fastff.report.record`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report.metrics import Accuracy, check_labels, reduce_formula

_FORCE_FACTORS = {
    "Hartree/Bohr": units.Hartree / units.Bohr,
    "Hartree/Å": units.Hartree,
    "Rydberg/Bohr": units.Rydberg / units.Bohr,
    "kcal/mol/Å": units.kcal / units.mol,
    "kJ/mol/nm": units.kJ / units.mol / 10.0,
    "kJ/mol/Å": units.kJ / units.mol,
    "meV/Å": 1e-3,
    "eV/Å with the wrong sign (the gradient)": -1.0,
}
_STRESS_FACTORS = {
    "GPa": units.GPa,
    "kbar": 0.1 * units.GPa,
    "bar": 1e-4 * units.GPa,
    "Hartree/Bohr^3": units.Hartree / units.Bohr**3,
    "eV/Å^3 with the wrong sign (pressure)": -1.0,
    "GPa with the wrong sign (pressure)": -units.GPa,
    "kbar with the wrong sign (VASP's convention)": -0.1 * units.GPa,
}
_ENERGY_FACTORS = {
    "Hartree": units.Hartree,
    "Rydberg": units.Rydberg,
    "kcal/mol": units.kcal / units.mol,
    "kJ/mol": units.kJ / units.mol,
    "meV": 1e-3,
    "eV with the wrong sign": -1.0,
}


def check_units(
    reference: Sequence[Labels], prediction: Sequence[Labels], structures: Sequence[ase.Atoms]
) -> None:
    """Raise :class:`DataError` if one side is the other in a different unit or with the opposite sign.

    The two sides are compared by their least-squares slope. A bad student has a slope near one, or no clear slope at
    all; only a strong correlation (|r| > 0.9) with a slope within 10 % of a known conversion factor, or its inverse, is
    reported. Energies are compared per atom after the offset of each composition.
    """
    check_labels(reference, prediction, structures)
    ref, pred = (
        np.concatenate([labels.forces for labels in side]).ravel()
        for side in (reference, prediction)
    )
    _check_factor("forces", ref, pred, _FORCE_FACTORS)
    pairs = [
        (r.stress, p.stress)
        for r, p in zip(reference, prediction, strict=True)
        if r.stress is not None and p.stress is not None
    ]
    if len(pairs) > 1:
        _check_factor(
            "stress",
            np.ravel([p[0] for p in pairs]),
            np.ravel([p[1] for p in pairs]),
            _STRESS_FACTORS,
        )
    groups: dict[str, list[int]] = defaultdict(list)
    for index, atoms in enumerate(structures):
        groups[reduce_formula(atoms)].append(index)
    counts = np.array([len(atoms) for atoms in structures])
    sides = [
        np.array([labels.energy for labels in side]) / counts for side in (reference, prediction)
    ]
    ref, pred = (np.concatenate([e[m] - e[m].mean() for m in groups.values()]) for e in sides)
    if len(structures) - len(groups) >= 4:
        _check_factor("energy", ref, pred, _ENERGY_FACTORS)


def _check_factor(
    quantity: str, reference: np.ndarray, prediction: np.ndarray, factors: dict[str, float]
) -> None:
    square_ref, square_pred = float(reference @ reference), float(prediction @ prediction)
    if square_ref == 0.0 or square_pred == 0.0:
        return
    product = float(reference @ prediction)
    if abs(product) < 0.9 * np.sqrt(square_ref * square_pred):
        return
    ratio = float(np.copysign(np.sqrt(square_pred / square_ref), product))  # prediction / reference
    candidates = [
        (abs(np.log(abs(value))), side, unit)
        for unit, factor in factors.items()
        for side, value in (("reference", ratio / factor), ("prediction", ratio * factor))
        if value > 0.0
    ]
    distance, side, unit = min(candidates, default=(np.inf, "", ""))
    if distance < 0.1:
        raise DataError(
            f"{quantity}: the prediction is {ratio:.5g} times the reference with the same pattern, as if the {side} "
            f"were in {unit}. Convert the {side} to fastff's units (eV, eV/Å, eV/Å^3, ASE's signs)."
        )


def check_identity(
    calculator: BaseCalculator,
    atoms: ase.Atoms,
    labels: Labels,
    role: str,
    *,
    tolerance: float = 5e-3,
    relabel: Callable[[ase.Atoms], Labels] | None = None,
) -> float:
    """Check that ``calculator`` reproduces ``labels`` on ``atoms``; return the largest relative RMS force difference.

    The calculators that are timed and the labels that are compared come by different paths; this ties them together.

    Parameters
    ----------
    calculator : ase calculator
        The one that is about to be timed.
    atoms : ase.Atoms
        One labelled frame.
    labels : Labels
        What ``role`` said of that frame.
    role : str
        ``"teacher"`` or ``"student"``, for the message.
    tolerance : float
        Largest accepted RMS force difference relative to the RMS force of ``labels`` (or to 0.01 eV/Å if smaller).
    relabel : callable, optional
        Labels by ``role`` of any structure. The calculator is then called again, on a copy that is moved a little: one
        that keeps its first answer is found out.

    Raises
    ------
    DataError
        The forces differ by more than ``tolerance``, the energy by more than 1 meV/atom plus 1e-6 of itself, or the
        stress, where both give one, by more than 0.5 % (or ``tolerance``) of its RMS or of 0.01 eV/Å^3.
    """
    difference = _compare_call(calculator, atoms, labels, role, tolerance)
    if relabel is not None:
        moved = atoms.copy()
        moved.rattle(0.03, seed=11)
        difference = max(
            difference, _compare_call(calculator, moved, relabel(moved), role, tolerance)
        )
    return difference


def _compare_call(
    calculator: BaseCalculator, atoms: ase.Atoms, labels: Labels, role: str, tolerance: float
) -> float:
    image = atoms.copy()
    image.calc = calculator
    forces, energy = image.get_forces(apply_constraint=False), image.get_potential_energy()
    scale = max(float(np.sqrt(np.mean(np.square(labels.forces)))), 0.01)
    difference = float(np.sqrt(np.mean(np.square(forces - labels.forces)))) / scale
    energy_difference = abs(energy - labels.energy) / len(atoms)
    same = difference <= tolerance
    same &= bool(energy_difference <= 1e-3 + 1e-6 * abs(labels.energy) / len(atoms))
    stress_difference = _compare_stress(image, labels)
    same &= stress_difference is None or stress_difference <= max(tolerance, STRESS_TOLERANCE)
    if not same:
        stress = "" if stress_difference is None else f", stress by {stress_difference:.2%}"
        raise DataError(
            f"the {role}'s calculator does not give the {role}'s labels: forces differ by {difference:.2%} of their "
            f"RMS and energy by {energy_difference * 1e3:.3g} meV/atom{stress} on {atoms.get_chemical_formula()}. The "
            f"labels are stale, or teacher and student are swapped; label again with this {role}."
        )
    return difference


def _compare_stress(image: ase.Atoms, labels: Labels) -> float | None:
    """Relative RMS difference of the stress; None where a side has none."""
    if labels.stress is None or not image.pbc.all():
        return None
    try:
        stress = image.get_stress(apply_constraint=False)
    except PropertyNotImplementedError:
        return None
    scale = max(float(np.sqrt(np.mean(np.square(labels.stress)))), LEAST_STRESS)
    return float(np.sqrt(np.mean(np.square(stress - labels.stress)))) / scale


STRESS_TOLERANCE = 5e-3
"""Relative RMS difference of the stress of one calculator and of its labels."""

LEAST_STRESS = 0.01
"""eV/Å^3; smaller stresses are sums that cancel, their differences are taken relative to this."""

MOST_FORCE = 100.0
"""RMS force of usable frames, eV/Å; dynamics of the teacher is stopped there."""

MOST_SPREAD = 20.0
"""Spread of energies within a composition, eV/atom: above it matter is no longer bound."""

MOST_WORK = 25.0
"""RMS stress times the volume of an atom, eV: a few TPa. In GPa or kbar by mistake, ordinary stresses are above it."""


def check_magnitudes(
    where: str, accuracy: Accuracy, volume_per_atom: tuple[float, float] | None
) -> None:
    """Raise :class:`DataError` if the reference is larger than matter allows in fastff's units."""
    spread, stress = accuracy.energy_std, accuracy.stress_rms
    work = None if stress is None or volume_per_atom is None else stress * volume_per_atom[0]
    for what, value, unit, limit in (
        ("RMS force", accuracy.force_rms, "eV/Å", MOST_FORCE),
        ("spread of energies", spread, "eV/atom", MOST_SPREAD),
        ("RMS stress times the volume of an atom", work, "eV", MOST_WORK),
    ):
        if value is not None and value > limit:
            raise DataError(
                f"{where}: the {what} is {value:.4g} {unit}, above {limit:g}: probably in different units."
            )
