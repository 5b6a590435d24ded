"""Any ASE calculator as a teacher, named by its import path.

Here: ``ase:package.module:ClassOrFactory`` with keyword options. Not here: batching (ASE calculators take one
structure at a time).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    CalculatorError,
    FileIOCalculator,
    PropertyNotImplementedError,
)
from ase.calculators.genericfileio import GenericFileIOCalculator

from fastff.errors import DataError, FastFFError, MissingDependencyError, UsageError
from fastff.labels import Labels
from fastff.teachers.base import Teacher, TeacherInfo, describe_settings
from fastff.teachers.isolation import hush, preserve_global_state
from fastff.teachers.weights import hash_file, read_version, require_file

OWN_OPTIONS = (
    "elements",
    "conservative",
    "padding",
    "licence",
    "citation",
    "periodic_only",
    "weights_keyword",
)
USUAL_PADDING = 10.0
"""Å; margin of non-periodic directions, unless an option says otherwise."""


class ASETeacher(Teacher):
    """Labels from an ASE calculator, one structure after the other.

    Parameters
    ----------
    target : str
        ``package.module:Name``; the name is a calculator class or a function that returns a calculator.
    weights : Path, optional
        Passed to the factory under the keyword of option ``weights_keyword`` (``model`` if left out);
        its hash is recorded.
    options : mapping
        Keyword arguments of the factory, except: ``elements`` (symbols or atomic numbers it knows), ``conservative``
        (False for direct-force models), ``padding`` (half the empty margin of non-periodic directions, Å),
        ``licence``, ``citation``, ``periodic_only``, ``weights_keyword``, which describe the teacher.
    """

    def __init__(
        self,
        target: str | None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = dict(options or {})
        own = {key: chosen.pop(key) for key in OWN_OPTIONS if key in chosen}
        if device != "auto":
            chosen.setdefault("device", device)
        described = ", ".join(  # where it runs does not change who it is
            f"{key}={value!r}" for key, value in sorted(chosen.items()) if key != "device"
        )
        digest = None
        if weights is not None:
            require_file(Path(weights), "weight file", "Check --teacher-weights.")
            chosen[str(own.get("weights_keyword", "model"))] = str(weights)
            digest = hash_file(Path(weights))
        self._factory = _import_target(target)
        self._keywords = chosen
        self._calculator = self.calculator()
        self.own_process = isinstance(self._calculator, FileIOCalculator | GenericFileIOCalculator)
        self.padding = float(own.get("padding", USUAL_PADDING))
        self.periodic_only = bool(own.get("periodic_only", False))
        package = str(target).split(".")[0].split(":")[0]
        self.info = TeacherInfo(
            name=f"ase:{target}",
            family="ase",
            version=f"{package} {read_version(package) or 'unknown'}",
            weights=str(weights) if weights else described,
            weights_sha256=digest,
            licence=str(own.get("licence", "unknown (set the option licence)")),
            citation=str(own.get("citation", "unknown (set the option citation)")),
            elements=_read_elements(own.get("elements", ())),
            conservative=bool(own.get("conservative", True)),
            cutoff=None,
            notes=(
                "Labelled through ASE, one structure at a time.",
                f"Non-periodic directions get a margin of {self.padding:g} Å on each side.",
            ),
            settings=describe_settings(
                options=(described or None) if weights else None,  # else they stand for the weights
                padding=None if self.padding == USUAL_PADDING else self.padding,
                periodic_only=self.periodic_only or None,
            ),
        )

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        return [self._label_one(atoms) for atoms in structures]

    def _label_one(self, atoms: Atoms) -> Labels:
        try:
            return self._evaluate(atoms.copy())
        except FastFFError:
            raise
        except (
            ArithmeticError,
            CalculatorError,
            LookupError,
            NotImplementedError,
            ValueError,
        ) as error:
            raise DataError(
                f"teacher {self.name} cannot label {atoms.get_chemical_formula()} ({type(error).__name__}: {error}); "
                "leave such structures out, or choose another teacher"
            ) from error

    def _evaluate(self, atoms: Atoms) -> Labels:
        atoms.calc = self._calculator
        energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
        stress = energies = None
        if atoms.pbc.all() and "stress" in self._calculator.implemented_properties:
            stress = atoms.get_stress(voigt=True)
        if "energies" in self._calculator.implemented_properties:
            try:
                energies = atoms.get_potential_energies()
            except (PropertyNotImplementedError, KeyError):
                energies = None
        return Labels(energy, forces, stress, energies)

    def calculator(self) -> BaseCalculator:
        """A fresh calculator from the same factory and keywords."""
        try:
            with preserve_global_state(), hush():
                calculator = self._factory(**self._keywords)
        except TypeError as error:
            raise UsageError(
                f"cannot make {self._factory.__name__} with options {sorted(self._keywords)}: {error}"
            ) from error
        if not hasattr(calculator, "get_potential_energy"):
            raise UsageError(
                f"{self._factory.__name__} returned {type(calculator).__name__}, not an ASE calculator"
            )
        return calculator


def _import_target(target: str | None) -> Callable[..., Any]:
    """The object that ``package.module:Name`` names."""
    module_name, separator, attribute = (target or "").partition(":")
    if not separator or not module_name or not attribute:
        raise UsageError(
            f"teacher 'ase:{target or ''}' is not an import path; write ase:package.module:ClassOrFactory, "
            "for example ase:ase.calculators.emt:EMT"
        )
    try:
        with preserve_global_state(), hush():
            module = importlib.import_module(module_name)
    except ImportError as error:
        raise MissingDependencyError(
            f"cannot import '{module_name}' for teacher 'ase:{target}': {error}; install the package that holds it"
        ) from error
    if not callable(found := getattr(module, attribute, None)):
        raise UsageError(
            f"module '{module_name}' has no calculator '{attribute}' (teacher 'ase:{target}')"
        )
    return found


def _read_elements(elements: Any) -> tuple[int, ...]:
    """Atomic numbers from symbols, numbers or one comma-separated string."""
    from ase.data import atomic_numbers

    entries = elements.replace(",", " ").split() if isinstance(elements, str) else list(elements)
    try:
        return tuple(sorted({atomic_numbers[e] if isinstance(e, str) else int(e) for e in entries}))
    except KeyError as error:
        raise UsageError(
            f"option elements holds {error}, which is not an element symbol"
        ) from error
