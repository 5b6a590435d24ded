"""Choosing the potential that runs a student.

Here: :func:`make_potential`. Not here: potentials.
"""

from __future__ import annotations

import warnings

from fastff.evaluator import choose_path
from fastff.kernels.moment_potential.workspace import Options
from fastff.md.fallback import FallbackPotential
from fastff.md.protocol import DevicePotential
from fastff.md.torch_potential import StudentPotential
from fastff.models import Student
from fastff.models.moment import MomentStudent
from fastff.precision import DEFAULT, describe_idle
from fastff.resident import ResidentPotential


def make_potential(
    student: Student, skin: float = 1.0, precision: str = DEFAULT
) -> DevicePotential:
    """A student on its own device as :class:`~fastff.md.protocol.DevicePotential`.

    Parameters
    ----------
    student : Student
    skin : float
        Å by which the neighbor list reaches beyond the cut-off.
    precision : {"tf32x3", "tf32", "ieee"}
        Of matrix products of the fused kernels; "tf32" is a fast mode, and
        :func:`fastff.precision.describe_precision` tells what it does to the forces of a structure. Without the kernels
        it has no effect, and there is a warning.

    Returns
    -------
    DevicePotential
        The fused kernels where :func:`fastff.evaluator.choose_path` chooses them, else plain torch; torch also from
        where one of the kernels does not compile.
    """
    options, choice = Options(precision=precision), choose_path(student, skin=skin)
    if isinstance(student, MomentStudent) and choice.path == "fused":
        return FallbackPotential(ResidentPotential(student, skin=skin, options=options))
    if precision != DEFAULT:
        warnings.warn(describe_idle(precision, choice), UserWarning, stacklevel=2)
    return StudentPotential(student, skin)
