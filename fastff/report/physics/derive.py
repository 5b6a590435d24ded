"""Quantities derived from the stored curves of both sides, and from nothing else.

Here: :func:`derive_quantities`, used once when a property is measured and again whenever a record is verified, so that
a number in the wrong unit or from the other side is noticed. Not here: measuring the curves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastff.errors import FastFFError
from fastff.report.physics.record import (
    AnyItem,
    DiffusionItem,
    DimerItem,
    ElasticItem,
    EnergyTrace,
    EosItem,
    NveItem,
    PhononItem,
    Quantity,
    RdfCurve,
    RdfItem,
    StabilityItem,
    VacancyItem,
)
from fastff.units import EV_PER_A3_TO_GPA

A2_PER_PS_TO_CM2_PER_S = 1e-4
"""Å^2/ps in cm^2/s."""


LEAST_DEPTH = 2e-3
"""eV below the largest distance; a shallower dip of a pair's curve is no minimum."""

LEAST_BINDING = 0.1
"""Of the teacher's depth; where the student's minimum is shallower, it does not bind the pair."""


PEAK_REACH = 0.3
"""Å to either side of a peak of g(r) within which nothing is higher."""


class PropertyError(FastFFError):
    """A property cannot be derived: the curve of a side has no minimum, a run broke, a relaxation did not end."""


class TooShortError(PropertyError):
    """A run is too short to say anything; with more time it might."""


def derive_quantities(item: AnyItem) -> tuple[Quantity, ...]:
    """All quantities of an item, from its data.

    Raises
    ------
    PropertyError
        The data do not define them.
    """
    if isinstance(item, EosItem):
        return _derive_eos(item)
    if isinstance(item, ElasticItem):
        return _derive_elastic(item)
    if isinstance(item, PhononItem):
        return _derive_phonons(item)
    if isinstance(item, VacancyItem):
        return _derive_vacancy(item)
    if isinstance(item, DimerItem):
        return _derive_dimers(item)
    if isinstance(item, RdfItem):
        return _derive_rdf(item)
    if isinstance(item, DiffusionItem):
        return _derive_diffusion(item)
    if isinstance(item, NveItem):
        return _derive_nve(item)
    return _derive_stability(item)


def compare_quantity(quantity: Quantity) -> float | None:
    """Student over teacher less one, where both are there and the teacher's is not next to nothing."""
    a, b = quantity.teacher, quantity.student
    if a is None or b is None or abs(a) < 1e-3 * max(abs(b), 1e-6) or abs(a) < 1e-6:
        return None
    return (b - a) / abs(a)


def fit_eos(volumes: Sequence[float], energies: Sequence[float]) -> tuple[float, float]:
    """Equilibrium volume (unit of ``volumes``) and bulk modulus in GPa of a Birch-Murnaghan curve.

    The third-order equation (Birch, Phys. Rev. 71, 809 (1947)) is a cubic polynomial in ``x = V^(-2/3)``; it is fitted
    by linear least squares.

    Raises
    ------
    PropertyError
        There is no minimum inside the volumes.
    """
    v = np.asarray(volumes, dtype=float)
    x = v ** (-2.0 / 3.0)
    center, scale = x.mean(), np.ptp(x)
    scaled = (x - center) / scale
    _, c1, c2, c3 = (
        float(c) for c in np.polyfit(scaled, np.asarray(energies, dtype=float), 3)[::-1]
    )
    # the root of c1 + 2 c2 s + 3 c3 s^2 where the curvature 2 c2 + 6 c3 s = 2 sqrt(c2^2 - 3 c1 c3) is positive,
    # written so that c3 may be zero
    discriminant = c2 * c2 - 3.0 * c1 * c3
    denominator = c2 + np.sqrt(max(discriminant, 0.0))
    root = -c1 / denominator if discriminant > 0.0 and denominator > 0.0 else np.inf
    if not scaled.min() <= root <= scaled.max():
        raise PropertyError(
            f"the energy has no minimum between {v.min():.2f} and {v.max():.2f} Å^3/atom"
        )
    second = 2.0 * np.sqrt(discriminant)
    volume = (root * scale + center) ** -1.5
    # dx/dV = -2/3 V^(-5/3); at the minimum d2E/dV2 = E''(x) (dx/dV)^2
    curvature = second / scale**2 * (2.0 / 3.0 * volume ** (-5.0 / 3.0)) ** 2
    return float(volume), float(volume * curvature * EV_PER_A3_TO_GPA)


def average_moduli(stiffness: np.ndarray) -> tuple[float, float]:
    """Bulk and shear modulus by Hill's average (Proc. Phys. Soc. A 65, 349 (1952)), in the unit of ``stiffness``.

    Raises
    ------
    PropertyError
        The matrix is not positive definite: the crystal is elastically unstable.
    """
    c = np.asarray(stiffness, dtype=float)
    if np.linalg.eigvalsh(0.5 * (c + c.T)).min() <= 0.0:
        raise PropertyError("the stiffness matrix is not positive definite")
    s = np.linalg.inv(c)
    voigt_bulk = c[:3, :3].sum() / 9.0
    reuss_bulk = 1.0 / s[:3, :3].sum()
    mixed = c[0, 1] + c[0, 2] + c[1, 2]
    voigt_shear = (np.trace(c[:3, :3]) - mixed + 3.0 * np.trace(c[3:, 3:])) / 15.0
    mixed = s[0, 1] + s[0, 2] + s[1, 2]
    reuss_shear = 15.0 / (4.0 * (np.trace(s[:3, :3]) - mixed) + 3.0 * np.trace(s[3:, 3:]))
    return 0.5 * (voigt_bulk + reuss_bulk), 0.5 * (voigt_shear + reuss_shear)


def _derive_eos(item: EosItem) -> tuple[Quantity, ...]:
    sides = []
    for role in ("teacher", "student"):
        try:
            sides.append(fit_eos(item.volumes, getattr(item, role)))
        except PropertyError as error:
            raise PropertyError(f"{role}: {error}") from error
    (tv, tb), (sv, sb) = sides
    difference = np.array(item.student) - np.array(item.teacher)
    spread = 1e3 * float(np.sqrt(np.mean((difference - difference.mean()) ** 2)))
    return (
        Quantity(name="V0", unit="Å³/atom", teacher=tv, student=sv),
        Quantity(name="B0", unit="GPa", teacher=tb, student=sb),
        Quantity(
            name="RMS difference of the curves", unit="meV/atom", teacher=None, student=spread
        ),
    )


def _derive_elastic(item: ElasticItem) -> tuple[Quantity, ...]:
    names = {"C11": (0, 0), "C12": (0, 1), "C44": (3, 3)}
    if not item.cubic:
        names |= {"C22": (1, 1), "C33": (2, 2), "C13": (0, 2), "C23": (1, 2)}
        names |= {"C55": (4, 4), "C66": (5, 5)}
    matrices = [np.array(item.teacher), np.array(item.student)]
    rows = []
    for name, (i, j) in sorted(names.items()):
        values = [_average_cubic(m, i, j) if item.cubic else float(m[i, j]) for m in matrices]
        rows.append(Quantity(name=name, unit="GPa", teacher=values[0], student=values[1]))
    moduli: list[tuple[float | None, float | None]] = []
    for matrix in matrices:
        try:
            moduli.append(average_moduli(matrix))
        except PropertyError:
            moduli.append((None, None))
    for k, name in enumerate(("bulk modulus (Hill)", "shear modulus (Hill)")):
        rows.append(Quantity(name=name, unit="GPa", teacher=moduli[0][k], student=moduli[1][k]))
    return tuple(rows)


def _average_cubic(matrix: np.ndarray, i: int, j: int) -> float:
    """Average over the entries that are equal in a cubic crystal."""
    if i >= 3:
        return float(np.mean(np.diag(matrix)[3:]))
    if i == j:
        return float(np.mean(np.diag(matrix)[:3]))
    return float(np.mean([matrix[a, b] for a in range(3) for b in range(3) if a != b]))


def _derive_phonons(item: PhononItem) -> tuple[Quantity, ...]:
    teacher, student = np.array(item.teacher), np.array(item.student)
    difference = float(np.sqrt(np.mean((student - teacher) ** 2)))
    return (
        Quantity(name="highest frequency", unit="THz", teacher=float(teacher.max()), student=float(student.max())),
        Quantity(name="lowest frequency", unit="THz", teacher=float(teacher.min()), student=float(student.min())),
        Quantity(name="mean frequency", unit="THz", teacher=float(teacher.mean()), student=float(student.mean())),
        Quantity(name="RMS difference of the bands", unit="THz", teacher=None, student=difference),
    )  # fmt: skip


def _derive_vacancy(item: VacancyItem) -> tuple[Quantity, ...]:
    """One element: E(N-1) - (N-1)/N E(N). A compound: a Schottky set, vacancies of one formula unit, far apart.

    ``sum_i n_i E_vac,i - (n - n/N) E(N)`` with n the atoms of a formula unit: no chemical potential enters.
    """
    n = sum(item.formula.values())
    values = []
    for role in ("teacher", "student"):
        perfect, vacant = getattr(item, f"{role}_perfect"), getattr(item, f"{role}_vacant")
        total = sum(count * vacant[symbol] for symbol, count in item.formula.items())
        values.append(float(total - (n - n / item.n_atoms) * perfect))
    name = "formation energy" if len(item.formula) == 1 else "Schottky energy per formula unit"
    return (Quantity(name=name, unit="eV", teacher=values[0], student=values[1]),)


def find_minimum(
    distances: Sequence[float], energies: Sequence[float]
) -> tuple[float, float] | None:
    """Distance and depth of the lowest point of a curve, or None if it lies at an end or is shallower than 2 meV."""
    lowest = int(np.argmin(energies))
    depth = float(-energies[lowest])
    if not 0 < lowest < len(energies) - 1 or depth < LEAST_DEPTH:
        return None
    return float(distances[lowest]), depth


def find_unbound(item: DimerItem) -> list[str]:
    """Pairs that the teacher binds and the student does not: without a minimum, or with next to none."""
    unbound = []
    for curve in item.curves:
        teacher = find_minimum(curve.distances, curve.teacher)
        student = find_minimum(curve.distances, curve.student)
        if teacher is not None and (student is None or student[1] < LEAST_BINDING * teacher[1]):
            unbound.append(curve.pair)
    return unbound


def _derive_dimers(item: DimerItem) -> tuple[Quantity, ...]:
    """A side without a minimum is named, and has no numbers but its energy at the shortest distance."""
    rows = []
    for curve in item.curves:
        found = {
            role: find_minimum(curve.distances, getattr(curve, role))
            for role in ("teacher", "student")
        }
        missing = [role for role, value in found.items() if value is None]
        remark = f" (no minimum: {' and '.join(missing)})" if missing else ""
        for k, (name, unit) in enumerate((("distance of the minimum", "Å"), ("depth", "eV"))):
            values = {role: None if value is None else value[k] for role, value in found.items()}
            rows.append(Quantity(name=f"{curve.pair}, {name}{remark}", unit=unit, **values))
        if missing and item.contact is not None:
            name = f"{curve.pair}, energy at {curve.distances[0]:.3g} Å"
            teacher, student = float(curve.teacher[0]), float(curve.student[0])
            rows.append(Quantity(name=name, unit="eV", teacher=teacher, student=student))
    return tuple(rows)


def find_first_peak(radii: Sequence[float], values: Sequence[float]) -> float:
    """Where g(r) first has a maximum above one, Å: the vertex of the parabola through it and its two neighbors.

    A maximum is higher than everything within :data:`PEAK_REACH`. Without any above one, the highest counts.
    """
    r, g = np.asarray(radii, dtype=float), np.asarray(values, dtype=float)
    width = r[1] - r[0]
    reach = max(1, round(PEAK_REACH / width))
    peaks = (
        k for k in range(1, len(g) - 1)
        if g[k] >= 1.0 and g[k] == g[max(0, k - reach) : k + reach + 1].max()
    )  # fmt: skip
    peak = next(peaks, int(np.argmax(g)))
    if not 0 < peak < len(g) - 1:
        return float(r[peak])
    left, top, right = g[peak - 1 : peak + 2]
    curvature = left - 2.0 * top + right
    shift = 0.5 * (left - right) / curvature if curvature < 0.0 else 0.0
    return float(r[peak] + shift * width)


def _derive_peak(item: RdfItem, curve: RdfCurve) -> Quantity:
    """Place of the first peak, the width of a bin its error; of the highest in records from before that."""
    if item.peak is None:
        r = np.array(curve.radii)
        return Quantity(
            name=f"{curve.pair}, highest peak at", unit="Å",
            teacher=None if curve.teacher is None else float(r[np.argmax(curve.teacher)]),
            student=float(r[np.argmax(curve.student)]),
        )  # fmt: skip
    width = float(curve.radii[1] - curve.radii[0])
    there = curve.teacher is not None
    return Quantity(
        name=f"{curve.pair}, first peak at", unit="Å",
        teacher=None if curve.teacher is None else find_first_peak(curve.radii, curve.teacher),
        student=find_first_peak(curve.radii, curve.student),
        teacher_error=width if there else None, student_error=width,
    )  # fmt: skip


def _derive_rdf(item: RdfItem) -> tuple[Quantity, ...]:
    """Per pair: place of the first peak, and the area between the curves relative to that under them."""
    rows = []
    for curve in item.curves:
        r = np.array(curve.radii)
        student = np.array(curve.student)
        teacher = None if curve.teacher is None else np.array(curve.teacher)
        rows.append(_derive_peak(item, curve))
        if teacher is None or curve.teacher_error is None:
            continue
        area = max(float((r**2 * teacher).sum()), 1e-12)
        between = float((r**2 * np.abs(student - teacher)).sum()) / area
        error = np.hypot(curve.teacher_error, curve.student_error)
        # mean of |x| for a normal x of that width: what two equal systems would differ by
        noise = float((r**2 * error).sum()) / area * math.sqrt(2.0 / math.pi)
        rows.append(
            Quantity(
                name=f"{curve.pair}, difference of g(r)", unit="%", teacher=None,
                student=100.0 * between, student_error=100.0 * noise,
            )
        )  # fmt: skip
    return tuple(rows)


def _derive_diffusion(item: DiffusionItem) -> tuple[Quantity, ...]:
    rows = []
    for curve in item.curves:
        values: list[tuple[float | None, float | None]] = []
        for blocks in (curve.teacher_blocks, curve.student_blocks):
            if blocks is None:
                values.append((None, None))
                continue
            scaled = np.array(blocks) * A2_PER_PS_TO_CM2_PER_S * 1e5
            error = float(scaled.std(ddof=1) / math.sqrt(len(scaled))) if len(scaled) > 1 else None
            values.append((float(scaled.mean()), error))
        rows.append(
            Quantity(
                name=f"diffusion coefficient of {curve.element}", unit="10⁻⁵ cm²/s",
                teacher=values[0][0], student=values[1][0],
                teacher_error=values[0][1], student_error=values[1][1],
            )
        )  # fmt: skip
    return tuple(rows)


def fit_drift(trace: EnergyTrace) -> tuple[float, float]:
    """Drift in meV/atom/ps by least squares, and RMS fluctuation about the line in meV/atom."""
    t, e = np.array(trace.times), np.array(trace.energies)
    slope, start = np.polyfit(t, e, 1)
    return float(slope), float(np.sqrt(np.mean((e - start - slope * t) ** 2)))


def settle_trace(item: NveItem, trace: EnergyTrace) -> EnergyTrace:
    """A trace of the item without the first part that its quantities leave out.

    Raises
    ------
    PropertyError
        Fewer than three points are left.
    """
    if item.settling is None:
        return trace
    kept = np.array(trace.times) >= item.settling * (1.0 - 1e-9)
    if kept.sum() < 3:
        raise PropertyError(
            f"of a run of {trace.times[-1]:.3g} ps nothing is left without the first {item.settling:g} ps"
        )
    times, energies = (tuple(np.array(v)[kept].tolist()) for v in (trace.times, trace.energies))
    return EnergyTrace(times=times, energies=energies)


def _derive_nve(item: NveItem) -> tuple[Quantity, ...]:
    student = fit_drift(settle_trace(item, item.student))
    teacher: tuple[float | None, float | None] = (None, None)
    if item.teacher is not None:
        teacher = fit_drift(settle_trace(item, item.teacher))
    return (
        Quantity(name="drift of the energy", unit="meV/atom/ps", teacher=teacher[0], student=student[0]),
        Quantity(name="fluctuation of the energy", unit="meV/atom", teacher=teacher[1], student=student[1]),
    )  # fmt: skip


def _derive_stability(item: StabilityItem) -> tuple[Quantity, ...]:
    return tuple(
        Quantity(
            name=f"time survived at {run.temperature:.0f} K of {run.n_steps * item.time_step * 1e-3:g} ps",
            unit="ps", teacher=None, student=run.done * item.time_step * 1e-3,
        )
        for run in item.runs
    )  # fmt: skip
