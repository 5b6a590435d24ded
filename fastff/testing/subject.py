"""What a gate is applied to: a student, or any ASE calculator, behind one face.

Here: :class:`Subject` with its two forms, :func:`evaluate`, sums in a fixed order. Not here: invariants, structures.
"""

from __future__ import annotations

import abc
import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from fastff import kernels
from fastff.graph import batch_graphs
from fastff.models import Prediction, Student
from fastff.neighbors import atoms_to_graph

Array = NDArray[np.float64]

BATCH_ATOMS = 2048
"""Most atoms that :meth:`StudentSubject.respond` evaluates together, unless one structure has more."""


class Response(NamedTuple):
    """Answers for a list of structures.

    Attributes
    ----------
    energy : (n_systems,) float64 array, eV
    forces : (n_atoms, 3) float64 array, eV/Å
        Of all structures in a row.
    stress : (n_systems, 3, 3) float64 array, eV/Å^3
        nan where there is none.
    """

    energy: Array
    forces: Array
    stress: Array


class Subject(abc.ABC):
    """A force field as the gate sees it. ``cutoff`` in Å is None where unknown."""

    cutoff: float | None

    @abc.abstractmethod
    def respond(self, structures: Sequence[Atoms]) -> Response:
        """Energies, forces and stresses."""

    @abc.abstractmethod
    def measure_volume(self, atoms: Atoms) -> float:
        """Volume, Å^3, that the stress of a structure refers to; nan if it has no stress."""

    def has_stress(self, atoms: Atoms) -> bool:
        """Whether a structure has a stress at all; one that is not a number is there, and wrong."""
        return not np.isnan(self.measure_volume(atoms))


class StudentSubject(Subject):
    """A student, in whatever dtype and on whatever device it is."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self.cutoff = student.cutoff

    def respond(self, structures: Sequence[Atoms]) -> Response:
        """See :meth:`Subject.respond`."""
        parts = []
        for chunk in _split(structures):
            found = evaluate(self.student, chunk)
            fields = (found.energy, found.forces, found.stress)
            parts.append([field.double().cpu().numpy() for field in fields])
        energy, forces, stress = (np.concatenate(values) for values in zip(*parts, strict=True))
        return Response(energy, forces, stress)

    def measure_volume(self, atoms: Atoms) -> float:
        """See :meth:`Subject.measure_volume`; of the completed cell, so that slabs count too."""
        return abs(float(torch.linalg.det(atoms_to_graph(atoms, self.student.cutoff).cell[0])))


class CalculatorSubject(Subject):
    """Any ASE calculator, asked for one structure at a time.

    Parameters
    ----------
    calculator : ase.calculators.calculator.Calculator
    cutoff : float, optional
        Å; distance beyond which atoms do not see each other, where there is one.
    """

    def __init__(self, calculator: Calculator, cutoff: float | None = None) -> None:
        self.calculator = calculator
        self.cutoff = cutoff

    def respond(self, structures: Sequence[Atoms]) -> Response:
        """See :meth:`Subject.respond`."""
        parts = [self._ask(atoms.copy()) for atoms in structures]
        return Response(
            np.array([energy for energy, _, _ in parts]),
            np.concatenate([forces for _, forces, _ in parts]),
            np.array([stress for _, _, stress in parts]),
        )

    def _ask(self, atoms: Atoms) -> tuple[float, Array, Array]:
        atoms.calc = self.calculator
        energy = float(atoms.get_potential_energy())
        forces = np.array(atoms.get_forces(), dtype=np.float64)
        stress = np.full((3, 3), np.nan)
        if atoms.pbc.all():
            # nan tells a missing stress from a wrong one: the gate lists its tests as not applicable
            with contextlib.suppress(PropertyNotImplementedError, NotImplementedError):
                stress = voigt_6_to_full_3x3_stress(atoms.get_stress())
        return energy, forces, stress

    def measure_volume(self, atoms: Atoms) -> float:
        """See :meth:`Subject.measure_volume`."""
        return float(atoms.cell.volume) if atoms.pbc.all() else float("nan")

    def has_stress(self, atoms: Atoms) -> bool:
        """See :meth:`Subject.has_stress`; of what is periodic in all directions, if the calculator knows how."""
        if not super().has_stress(atoms):
            return False
        asked = atoms.copy()
        asked.calc = self.calculator
        try:
            asked.get_stress()
        except (PropertyNotImplementedError, NotImplementedError):
            return False
        return True


def make_subject(model: Subject | Student | Calculator) -> Subject:
    """A subject as it is, a student or a calculator as one."""
    if isinstance(model, Subject):
        return model
    return StudentSubject(model) if isinstance(model, Student) else CalculatorSubject(model)


@contextlib.contextmanager
def use_fixed_order() -> Iterator[None]:
    """Torch's definitions with sums in the same order every time, for tests that ask for equal bits.

    On a GPU atomic additions come in any order otherwise. Slower; operations of torch that know no other order keep
    theirs.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with kernels.use("torch"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def evaluate(model: Student, structures: Sequence[Atoms]) -> Prediction:
    """Prediction for a batch, without gradients."""
    graphs = [atoms_to_graph(atoms, model.cutoff) for atoms in structures]
    with torch.no_grad():
        return model(batch_graphs(graphs).to(model.device))


def _split(structures: Sequence[Atoms]) -> list[list[Atoms]]:
    chunks: list[list[Atoms]] = []
    size = BATCH_ATOMS + 1
    for atoms in structures:
        if size + len(atoms) > BATCH_ATOMS:
            chunks.append([])
            size = 0
        chunks[-1].append(atoms)
        size += len(atoms)
    return chunks
