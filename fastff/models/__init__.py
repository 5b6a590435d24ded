"""Student architectures by name.

Here: the names, their sizes, building one. Not here: what they compute (:mod:`fastff.models.moment`,
:mod:`fastff.models.painn`), what all of them are (:mod:`fastff.models.base`), files (:mod:`fastff.checkpoint`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastff.errors import UsageError
from fastff.models.base import Prediction, Student, StudentConfig
from fastff.models.moment import MomentStudent
from fastff.models.painn import PainnStudent

__all__ = [
    "ARCHITECTURES",
    "LADDER",
    "Prediction",
    "Student",
    "StudentConfig",
    "build_student",
    "configure_student",
]

BOUNDS = {"input_limit": 4.0, "inner_limit": 0.65}
"""Of the normalised inputs of new moment students, and of near distances; see :class:`StudentConfig`."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "m1": {"n_hops": 1, **BOUNDS},
    "m2": {"n_hops": 2, **BOUNDS},
    "m2-l": {"n_hops": 2, "n_channels": 32, "n_mixed": 32, **BOUNDS},
    "m3-l": {"n_hops": 3, "n_channels": 64, "n_mixed": 64, "message_degree": 1, **BOUNDS},
    "painn": {"n_hops": 3, "n_channels": 32, "n_radial": 16, "hidden": (32, 32)},
}
"""Number of hops and the sizes that differ from :class:`StudentConfig`'s defaults, by architecture."""


LADDER = ("m1", "m2", "m2-l", "m3-l")
"""Students of the moment family, the smallest and fastest first."""


def configure_student(architecture: str, elements: tuple[int, ...], **sizes: Any) -> StudentConfig:
    """Configuration of a named architecture with its own sizes, unless ``sizes`` says otherwise.

    Parameters
    ----------
    architecture : str
        A key of :data:`ARCHITECTURES`.
    elements : tuple of int
        Atomic numbers.
    **sizes
        Fields of :class:`StudentConfig`, such as ``cutoff`` in Å.

    Returns
    -------
    StudentConfig

    Raises
    ------
    UsageError
        If there is no such architecture.
    DataError
        If a size means nothing.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"unknown student architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}"
        )
    own = {k: v for k, v in ARCHITECTURES[architecture].items() if k != "n_hops"}
    if not sizes.get("core_repulsion", True):
        own.pop("inner_limit", None)  # nothing would keep atoms apart
    return StudentConfig(architecture=architecture, elements=elements, **{**own, **sizes})


def build_student(config: StudentConfig) -> Student:
    """Build an untrained student in torch's default dtype; parameters come from torch's current random state.

    Its composition energies are zero and its inputs are not normalised: training does both, the latter with
    :meth:`Student.calibrate`.

    Parameters
    ----------
    config : StudentConfig
        As :func:`configure_student` makes it; a bare :class:`StudentConfig` has 16 channels and no bounds whatever its
        architecture is.

    Returns
    -------
    Student
        On the CPU; ``student.double()`` and ``student.to("cuda")`` convert it.

    Raises
    ------
    UsageError
        If there is no such architecture.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from fastff.models import build_student, configure_student
    >>> from fastff.neighbors import atoms_to_graph
    >>> student = build_student(configure_student("m2", (1, 8), cutoff=5.0))
    >>> found = student(atoms_to_graph(molecule("H2O"), student.cutoff))
    >>> found.energy.shape, found.forces.shape, found.stress.shape  # eV, eV/Å, eV/Å^3
    (torch.Size([1]), torch.Size([3, 3]), torch.Size([1, 3, 3]))
    """
    if config.architecture not in ARCHITECTURES:
        raise UsageError(
            f"unknown student architecture {config.architecture!r}; "
            f"choose one of {', '.join(ARCHITECTURES)}"
        )
    family = PainnStudent if config.architecture.startswith("painn") else MomentStudent
    n_hops = config.n_hops or ARCHITECTURES[config.architecture]["n_hops"]
    return family(replace(config), n_hops=n_hops)
