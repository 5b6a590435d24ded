"""The physics gate: every invariant of a student or of any ASE calculator, with its limit.

Here: which tests are made, on what, and how large a violation may be. Not here: the measurements (the other modules of
this package), accuracy against labels (:mod:`fastff.report.metrics`).

The tests are those of the model tests of NequIP, of ASE's force checks, of ML-PEG's rotations and of OpenEquivariance's
Jacobians. Limits were set on trained students of four materials; see :class:`Limits`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from fastff.errors import DataError, UsageError
from fastff.models import Student
from fastff.testing.backends import explain_backends, measure_backends
from fastff.testing.collector import Collector, OnCheck
from fastff.testing.derivatives import (
    measure_forces,
    measure_jacobian,
    measure_momentum,
    measure_stress,
)
from fastff.testing.dynamics import (
    fit_slope,
    measure_drift,
    measure_order,
    prepare_dynamics,
    run_dynamics,
)
from fastff.testing.files import measure_other_process, measure_saving
from fastff.testing.ranges import (
    find_softest_pair,
    measure_batching,
    measure_crosstalk,
    measure_cutoff,
    measure_isolated,
    measure_precision,
    measure_reuse,
    measure_separation,
    measure_skin,
)
from fastff.testing.report import CheckReport
from fastff.testing.structures import make_structures
from fastff.testing.subject import CalculatorSubject, StudentSubject, Subject
from fastff.testing.symmetries import (
    largest,
    measure_inversion,
    measure_permutation,
    measure_primitive,
    measure_rotation,
    measure_supercell,
    measure_translation,
)

Precision = Literal["float64", "float32"]


@dataclass(frozen=True)
class Limits:
    """Largest violations allowed in one precision, and the step of finite differences, Å.

    Forces in eV/Å, stress in eV/Å^3, ``symmetry`` in eV/atom, eV/Å and eV/Å^3, ``exact`` in eV and eV/Å.
    """

    step: float
    forces: float
    stress: float
    symmetry: float
    exact: float
    cutoff: float
    momentum: float


LIMITS: dict[Precision, Limits] = {
    "float64": Limits(1e-4, 1e-6, 1e-6, 1e-9, 1e-9, 1e-6, 1e-9),
    "float32": Limits(2e-2, 1e-2, 1e-3, 5e-4, 1e-4, 1e-3, 1e-4),
}
JACOBIAN_LIMIT = 1e-3
ROTATION32_LIMIT = 1e-4
PRECISION_LIMIT = 1e-4
BACKEND_LIMITS = (1e-6, 1e-5)
"""These but the first are of single precision: eV, eV/Å, and eV/atom and eV/Å of the kernels, while
:func:`measure_size` is at most one, and in its units above."""

REFUSAL = "the calculator refuses the molecules of this test"
DRIFT_LIMIT = 0.1
ORDER_LIMIT = 0.5

SHORT_PS, FULL_PS = 0.5, 20.0
"""Length of the dynamics, ps."""


def check_student(
    model: Student,
    structures: Mapping[str, Atoms] | None = None,
    *,
    moving: Mapping[str, Atoms] | None = None,
    path: Path | None = None,
    temperature: float = 300.0,
    full: bool = False,
    seed: int = 0,
    only: Collection[str] | None = None,
    on_check: OnCheck | None = None,
) -> CheckReport:
    """Measure every invariant of a student, most of them on a float64 copy.

    Parameters
    ----------
    model : Student
        Not modified.
    structures : mapping of str to ase.Atoms, optional
        Structures that the model knows, checked beside those of :func:`~fastff.testing.make_structures`.
    moving : mapping of str to ase.Atoms, optional
        The first is that of the dynamics; without it the first of ``structures``, without these the bulk made here.
    path : Path, optional
        The student's model file, for loading it in another process.
    temperature : float
        K, of the dynamics.
    full : bool
        Dynamics of 20 ps instead of 0.5 ps.
    seed : int
    only : collection of str, optional
        Names of the tests to make; a report of a part is no proof of the whole.
    on_check : callable, optional
        Told of every check as it is made.

    Returns
    -------
    CheckReport
        Also when checks fail; ``report.passed`` and ``print(report)`` tell.

    Raises
    ------
    fastff.errors.UnsupportedElementError
        If a structure holds an element that the model does not know.
    """
    exact, single = copy.deepcopy(model).double(), copy.deepcopy(model).float()
    named = {**make_structures(model.elements, seed, model.cutoff), **(structures or {})}
    found = Collector(on_check, only)
    subject, rounded = StudentSubject(exact), StudentSubject(single)
    for name, atoms in named.items():
        _check_structure(found, subject, name, atoms, LIMITS["float64"], seed)
        _check_rounding(found, subject, rounded, name, atoms, seed)
        found.add("skin", partial(measure_skin, model, atoms), 0.0, "eV", name)
    every, limits = list(named.values()), LIMITS["float64"]
    found.add(
        "primitive cell",
        lambda: largest(*(measure_primitive(subject, z) for z in model.elements)),
        limits.exact,
        "eV",
    )
    _check_ranges(found, subject, every[0], every[3], model.elements, limits)
    found.add("isolated atoms", partial(measure_isolated, exact), limits.exact, "eV")
    found.add("batch", partial(measure_batching, exact, every), limits.exact, "eV")
    found.add("crosstalk", partial(measure_crosstalk, exact, every), 0.0, "eV")
    found.add("saved and loaded", partial(measure_saving, model, every), 0.0, "differences")
    if path is None:
        found.skip("other process", "needs the model file (path=)")
    else:
        other = partial(measure_other_process, path, every)
        found.add("other process", other, 0.0, "differences")
    _check_backends(found, subject, rounded, named)
    at_rest = moving or structures or {"bulk": named["bulk"]}
    name, atoms = next(iter(at_rest.items()))
    _check_dynamics(found, subject, name, atoms, temperature, full, seed)
    return found.report()


def check_calculator(
    calculator: Calculator,
    structures: Mapping[str, Atoms] | Sequence[Atoms] | Atoms,
    *,
    precision: Precision = "float64",
    cutoff: float | None = None,
    temperature: float = 300.0,
    full: bool = False,
    seed: int = 0,
    only: Collection[str] | None = None,
    on_check: OnCheck | None = None,
) -> CheckReport:
    """Measure the invariants of any ASE calculator that can be seen from outside.

    Parameters
    ----------
    calculator : ase.calculators.calculator.Calculator
        With energies and forces; a stress is checked where it has one.
    structures : mapping of str to ase.Atoms, sequence, or ase.Atoms
        What to check on; small structures, since every test asks for many energies.
    precision : {"float64", "float32"}
        In which the calculator computes: chooses steps and limits.
    cutoff : float, optional
        Å, beyond which atoms do not see each other. Without it the tests of range do not apply.
    temperature, full, seed, only, on_check
        As in :func:`check_student`.

    Returns
    -------
    CheckReport
        Tests that need the inside of a model are listed as not applicable, and so are those of range where the
        calculator refuses their molecules. An error on one of ``structures`` is a check that fails.

    Raises
    ------
    DataError
        If no structure is given.
    UsageError
        If there is no such precision or test, or the cut-off is no length.
    """
    if cutoff is not None and not (math.isfinite(cutoff) and cutoff > 0.0):
        raise UsageError(f"cutoff {cutoff} Å must be a positive number, or left out")
    if precision not in get_args(Precision):
        raise UsageError(f"precision {precision!r} is not one of {', '.join(get_args(Precision))}")
    if isinstance(structures, Atoms):
        structures = [structures]
    if not isinstance(structures, Mapping):
        structures = {
            atoms.get_chemical_formula() + f" {k}": atoms for k, atoms in enumerate(structures)
        }
    if not structures:
        raise DataError("no structures to check the calculator on; give at least one")
    limits, found = LIMITS[precision], Collector(on_check, only, keep_errors=True)
    subject = CalculatorSubject(calculator, cutoff)
    for name, atoms in structures.items():
        _check_structure(found, subject, name, atoms, limits, seed)
        jacobian = partial(measure_jacobian, subject, atoms, seed)
        found.add("jacobian", jacobian, JACOBIAN_LIMIT, "", name)
    every = list(structures.values())
    elements = sorted({int(z) for atoms in every for z in atoms.numbers})
    _check_ranges(found, subject, every[0], every[-1], elements, limits)
    found.add("reuse", partial(measure_reuse, subject, every), limits.exact, "eV")
    for test in ("float32", "skin", "isolated atoms", "batch", "crosstalk", "saved and loaded"):
        found.skip(test, "needs the inside of a student")
    name, atoms = next(iter(structures.items()))
    _check_dynamics(found, subject, name, atoms, temperature, full, seed)
    return found.report()


def measure_size(subject: Subject, atoms: Atoms) -> float:
    """Largest force, eV/Å, or virial per atom, eV, of a structure: the scale of its rounding errors."""
    found = subject.respond([atoms])
    virial = float(np.abs(found.stress).max()) * subject.measure_volume(atoms) / len(atoms)
    return max(float(np.abs(found.forces).max()), virial)


def _check_structure(
    found: Collector, subject: Subject, name: str, atoms: Atoms, limits: Limits, seed: int
) -> None:
    """The tests that any force field takes, on one structure."""
    forces = partial(_take_better_step, partial(measure_forces, subject, atoms, seed=seed), limits)
    found.add("forces", forces, limits.forces, "eV/Å", name)
    with found.watch("stress", name=name):
        if found.wants("stress") and not subject.has_stress(atoms):
            found.skip("stress", "no stress for this structure", name)
        else:
            stress = partial(_take_better_step, partial(measure_stress, subject, atoms), limits)
            found.add("stress", stress, limits.stress, "eV/Å^3", name)
    symmetries: dict[str, Callable[[], float]] = {
        "rotation": partial(measure_rotation, subject, atoms, seed=seed),
        "inversion": partial(measure_inversion, subject, atoms),
        "translation": partial(measure_translation, subject, atoms, seed),
        "permutation": partial(measure_permutation, subject, atoms, seed),
        "supercell": partial(measure_supercell, subject, atoms),
    }
    for test, measure in symmetries.items():
        found.add(test, measure, limits.symmetry, "eV", name)
    momentum = partial(measure_momentum, subject, atoms)
    found.add("momentum", momentum, limits.momentum, "eV/Å", name)


def _take_better_step(measure: Callable[..., float], limits: Limits) -> float:
    """Smaller violation of two steps: stiffness spoils long ones, rounding short ones, a wrong derivative both."""
    return min(
        (measure(step=step) for step in (limits.step, 0.2 * limits.step)),
        key=lambda value: (np.isnan(value), value),
    )


def _check_rounding(
    found: Collector,
    exact: StudentSubject,
    single: StudentSubject,
    name: str,
    atoms: Atoms,
    seed: int,
) -> None:
    """What single precision may cost, relative to the size of the forces where those are large."""
    jacobian = partial(measure_jacobian, single, atoms, seed)
    found.add("jacobian, float32", jacobian, JACOBIAN_LIMIT, "", name)
    size = max(1.0, measure_size(exact, atoms))
    found.add(
        "rotation, float32",
        lambda: measure_rotation(single, atoms, seed=seed) / size,
        ROTATION32_LIMIT,
        "eV",
        name,
    )
    found.add(
        "float32",
        lambda: measure_precision(exact.student, atoms) / size,
        PRECISION_LIMIT,
        "eV/Å",
        name,
    )


def _check_ranges(
    found: Collector,
    subject: Subject,
    first: Atoms,
    second: Atoms,
    elements: Sequence[int],
    limits: Limits,
) -> None:
    """Separation, cut-off and repulsion."""
    if subject.cutoff is None:
        for test in ("separation", "cut-off"):
            found.skip(test, "needs the calculator's cut-off (cutoff=, --cutoff)")
    else:
        apart = partial(measure_separation, subject, first, second)
        jump = partial(measure_cutoff, subject, elements)
        for test, measure, limit in (
            ("separation", apart, limits.exact),
            ("cut-off", jump, limits.cutoff),
        ):
            if found.wants(test):
                with found.watch(test, refusal=REFUSAL):
                    found.add(test, partial(float, measure()), limit, "eV")
    if found.wants("repulsion"):
        with found.watch("repulsion", refusal=REFUSAL):
            fall, pair = find_softest_pair(subject, elements)
            found.add("repulsion", lambda: fall, 0.0, "eV", reason=pair if fall != 0.0 else "")


def _check_backends(
    found: Collector,
    exact: StudentSubject,
    single: StudentSubject,
    structures: Mapping[str, Atoms],
) -> None:
    """Errors of the kernels, relative to the size of the forces where those are large."""
    tests = ("kernels, energy", "kernels, forces")
    if not any(found.wants(test) for test in tests):
        return
    obstacle = explain_backends(single.student)
    if obstacle:
        for test in tests:
            found.skip(test, obstacle)
        return
    for name, atoms in structures.items():
        size = max(1.0, measure_size(exact, atoms))
        values = measure_backends(single.student, exact.student, atoms)
        for test, value, limit, unit in zip(
            tests, values, BACKEND_LIMITS, ("eV/atom", "eV/Å"), strict=True
        ):
            found.add(test, partial(float, value / size), limit, unit, name)


def _check_dynamics(
    found: Collector,
    subject: Subject,
    name: str,
    atoms: Atoms,
    temperature: float,
    full: bool,
    seed: int,
) -> None:
    """Drift of the total energy, and how its error falls with the time step."""
    if not (found.wants("NVE drift") or found.wants("NVE order")):
        return
    if len(atoms) == 1 and not atoms.pbc.any():
        for test in ("NVE drift", "NVE order"):
            found.skip(test, "one atom alone does not move", name)
        return
    step = min(0.3 * float(np.sqrt(atoms.get_masses().min())), 2.0)
    with found.watch("NVE drift", "NVE order", name=name):
        start = prepare_dynamics(subject, atoms, temperature, seed=seed)
        if found.wants("NVE drift"):
            picoseconds = FULL_PS if full else SHORT_PS
            run = run_dynamics(subject, start, step, round(1000.0 * picoseconds / step))
            slope = 1e6 * fit_slope(run) / len(start) if np.isfinite(run.total).all() else math.nan
            story = f"{slope:.2g} meV/atom/ps over {picoseconds:g} ps"
            drift = partial(measure_drift, run)
            found.add("NVE drift", drift, DRIFT_LIMIT, "of std(kinetic)", name, story)
        order = partial(measure_order, subject, start, step / 2.0, 40)
        found.add("NVE order", order, ORDER_LIMIT, "off second order", name)
