"""Choosing the potential that runs a student.

Here: :func:`make_potential`. Not here: potentials.
"""

from __future__ import annotations

from fastff.md.protocol import DevicePotential
from fastff.md.torch_potential import StudentPotential
from fastff.models import Student


def make_potential(student: Student, skin: float = 1.0) -> DevicePotential:
    """A student on its own device as :class:`~fastff.md.protocol.DevicePotential`.

    Parameters
    ----------
    student : Student
    skin : float
        Å by which the neighbor list reaches beyond the cut-off.
    """
    return StudentPotential(student, skin)
