"""Choosing the potential that runs a student.

Here: :func:`make_potential`. Not here: potentials.
"""

from __future__ import annotations

from fastff.evaluator import choose_path
from fastff.md.protocol import DevicePotential
from fastff.md.torch_potential import StudentPotential
from fastff.models import Student
from fastff.models.moment import MomentStudent
from fastff.resident import ResidentPotential


def make_potential(student: Student, skin: float = 1.0) -> DevicePotential:
    """A student on its own device as :class:`~fastff.md.protocol.DevicePotential`.

    Parameters
    ----------
    student : Student
    skin : float
        Å by which the neighbor list reaches beyond the cut-off.

    Returns
    -------
    DevicePotential
        The fused kernels where :func:`fastff.evaluator.choose_path` chooses them, else plain torch.
    """
    if isinstance(student, MomentStudent) and choose_path(student).path == "fused":
        return ResidentPotential(student, skin=skin)
    return StudentPotential(student, skin)
