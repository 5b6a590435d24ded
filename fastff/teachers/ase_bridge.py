"""A teacher as an ASE calculator, for teachers whose package brings none that fits.

Here: :class:`TeacherCalculator`. Not here: the opposite direction (:mod:`fastff.teachers.ase_calculator`), or the
student's calculator (:mod:`fastff.calculator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from fastff.teachers.base import Teacher


class TeacherCalculator(Calculator):
    """ASE calculator that asks a teacher for one structure at a time.

    Stress is absent unless the structure is periodic in all three directions; energies of atoms are absent where the
    teacher has none.
    """

    def __init__(self, teacher: Teacher, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = teacher
        self.implemented_properties = ["energy", "free_energy", "forces", "stress", "energies"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Label ``atoms``; see :class:`ase.calculators.calculator.Calculator`."""
        super().calculate(atoms, list(properties or ["energy"]), list(system_changes))
        self.results = {}
        labels = self.teacher.label([self.atoms])[0]
        results: dict[str, Any] = {
            "energy": labels.energy,
            "free_energy": labels.energy,
            "forces": labels.forces,
        }
        if labels.stress is not None:
            results["stress"] = labels.stress
        if labels.energies is not None:
            results["energies"] = labels.energies
        self.results = results
