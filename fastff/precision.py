"""What an opt-in precision of the fused kernels does to the forces of a structure.

Here: :func:`describe_precision`, the line that users are shown once. Not here: the kernels.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms

from fastff.evaluator import Choice, Evaluator, choose_path
from fastff.kernels.moment_potential.workspace import Options
from fastff.memory import DeviceMemoryError
from fastff.models import Student

DEFAULT = Options().precision


def describe_precision(
    student: Student, precision: str, atoms: Atoms, choice: Choice | None = None
) -> str | None:
    """One line on what a precision changes in the forces on a structure, measured against the default.

    Parameters
    ----------
    student : Student
    precision : {"tf32x3", "tf32", "ieee"}
    atoms : ase.Atoms
    choice : Choice, optional
        Which path evaluations take, if something other than the student decides.

    Returns
    -------
    str or None
        None for the default. Where the fused kernels are not used, that there is no effect, and why.
    """
    if precision == DEFAULT:
        return None
    choice = choice or choose_path(student)
    if choice.path != "fused":
        return describe_idle(precision, choice)
    try:
        forces = [
            Evaluator(student, skin=0.0, precision=kind)
            .evaluate(atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers)
            .forces
            for kind in (precision, DEFAULT)
        ]
    except DeviceMemoryError:
        return f"precision {precision}: {len(atoms)} atoms are too many to measure beside the run what it changes"
    error, size = forces[0] - forces[1], float(np.sqrt(np.mean(forces[1] ** 2)))
    return (
        f"precision {precision}: forces on {len(atoms)} atoms differ from those of the default, {DEFAULT}, by "
        f"{np.sqrt(np.mean(error**2)):.2g} eV/Å (RMS), at most {np.abs(error).max():.2g}; the forces are "
        f"{size:.2g} eV/Å (RMS)"
    )


def describe_idle(precision: str, choice: Choice) -> str:
    """One line that says that a precision has no effect."""
    return f"precision {precision} has no effect, the fused kernels are not used: {choice.reason}"
