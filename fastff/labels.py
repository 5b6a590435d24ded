"""What a teacher or a student says about structures, and where those structures came from.

Here: the records :class:`Labels`, :class:`HessianVector` and :class:`Frame`. Not here: computing labels
(:mod:`fastff.teachers`, :mod:`fastff.inference`), storing them (:mod:`fastff.distill.store`), or comparing them
(:mod:`fastff.report.metrics`).
"""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np


@dataclass(frozen=True)
class Labels:
    """Energy, forces and stress of one structure, NumPy float64.

    Attributes
    ----------
    energy : float
        Total energy, eV.
    forces : numpy.ndarray
        ``-dE/dr``, shape (n_atoms, 3), eV/Å.
    stress : numpy.ndarray or None
        Voigt xx, yy, zz, yz, xz, xy, shape (6,), eV/Å^3, positive under tension (ASE's sign).
        None unless the structure is periodic in all three directions.
    energies : numpy.ndarray or None
        Energy of each atom, shape (n_atoms,), eV; None where the source has none.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    energies: np.ndarray | None = None


@dataclass(frozen=True)
class HessianVector:
    """A teacher's forces on both sides of a structure: a target of second order for any teacher.

    Attributes
    ----------
    direction : numpy.ndarray
        ``u``, shape (n_atoms, 3), dimensionless, root mean square length 1 per atom.
    step : float
        ``h``, Å: the structures labelled are at ``R + h u`` and ``R - h u``.
    forces_plus, forces_minus : numpy.ndarray
        Forces there, shape (n_atoms, 3), eV/Å.
    """

    direction: np.ndarray
    step: float
    forces_plus: np.ndarray
    forces_minus: np.ndarray

    @property
    def product(self) -> np.ndarray:
        """Hessian times direction by central differences, ``-(F+ - F-) / 2h``, shape (n_atoms, 3), eV/Å^2."""
        result: np.ndarray = (self.forces_minus - self.forces_plus) / (2 * self.step)
        return result


@dataclass(frozen=True)
class Frame:
    """One labelled structure with where it came from.

    Attributes
    ----------
    atoms : ase.Atoms
        The structure, no calculator attached.
    labels : Labels
        What the teacher says of it.
    source : str
        How the structure was made: ``"strain"``, ``"rattle"``, ``"teacher-md"``, ``"file"``, ...
    trajectory : int
        Frames with the same number are correlated; splits never cut through one.
    temperature : float
        Temperature of the dynamics, K; nan if the frame is not from dynamics.
    step : int
        Step of the dynamics, -1 if the frame is not from dynamics.
    hessian_vector : HessianVector or None
        The teacher's forces beside the structure, where they were asked for.
    """

    atoms: ase.Atoms
    labels: Labels
    source: str
    trajectory: int
    temperature: float
    step: int
    hessian_vector: HessianVector | None = None
