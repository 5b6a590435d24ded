"""Contracts that ship with the package: the physics gate of students and of any ASE calculator.

Here: public names. Not here: accuracy against labels, contracts of kernels (:mod:`fastff.kernels.contract`).
"""

from __future__ import annotations

from fastff.testing.derivatives import (
    measure_forces,
    measure_jacobian,
    measure_momentum,
    measure_stress,
)
from fastff.testing.dynamics import (
    measure_drift,
    measure_order,
    prepare_dynamics,
    run_dynamics,
)
from fastff.testing.files import measure_other_process, measure_saving
from fastff.testing.gate import LIMITS, Limits, check_calculator, check_student
from fastff.testing.ranges import (
    measure_batching,
    measure_crosstalk,
    measure_cutoff,
    measure_isolated,
    measure_precision,
    measure_repulsion,
    measure_reuse,
    measure_separation,
    measure_skin,
)
from fastff.testing.report import Check, CheckReport
from fastff.testing.structures import make_lattices, make_structures
from fastff.testing.subject import CalculatorSubject, StudentSubject, Subject, evaluate
from fastff.testing.symmetries import (
    measure_inversion,
    measure_permutation,
    measure_primitive,
    measure_rotation,
    measure_supercell,
    measure_translation,
)

__all__ = [
    "LIMITS",
    "CalculatorSubject",
    "Check",
    "CheckReport",
    "Limits",
    "StudentSubject",
    "Subject",
    "check_calculator",
    "check_student",
    "evaluate",
    "make_lattices",
    "make_structures",
    "measure_batching",
    "measure_crosstalk",
    "measure_cutoff",
    "measure_drift",
    "measure_forces",
    "measure_inversion",
    "measure_isolated",
    "measure_jacobian",
    "measure_momentum",
    "measure_order",
    "measure_other_process",
    "measure_permutation",
    "measure_precision",
    "measure_primitive",
    "measure_repulsion",
    "measure_reuse",
    "measure_rotation",
    "measure_saving",
    "measure_separation",
    "measure_skin",
    "measure_stress",
    "measure_supercell",
    "measure_translation",
    "prepare_dynamics",
    "run_dynamics",
]
