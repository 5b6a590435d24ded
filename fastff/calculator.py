"""``FastFFCalculator``: a student behind ASE's calculator interface.

Here: the life cycle of one calculator, argument compatibility, what ASE must be told. Not here: models, neighbor lists
and the choice of kernels (:mod:`fastff.evaluator`), batches (:mod:`fastff.inference`), dynamics.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from fastff.checkpoint import load_model
from fastff.coverage import list_unseen_pairs
from fastff.electronic import check_electronic, read_electronic, read_number
from fastff.errors import DataError, UsageError
from fastff.evaluator import Choice, Evaluator, Outcome
from fastff.inference import list_structures, predict
from fastff.labels import Labels
from fastff.models import Student
from fastff.models.uncertainty import Policy, apply_extrapolation_policy
from fastff.neighbors import VerletCache, check_skin_length
from fastff.placement import choose_device, place_student, read_compatibility
from fastff.precision import DEFAULT, describe_precision
from fastff.structures import (
    CLOSEST_DISTANCE,
    CloseContacts,
    check_structure,
    is_same_array,
    list_changes,
    measure_sound_cell,
)

_PROPERTIES = ("energy", "free_energy", "forces", "stress", "energies")


class FastFFCalculator(Calculator):
    """Energies (eV), forces (eV/Å) and stress (eV/Å^3) of a distilled student, for ASE.

    Parameters
    ----------
    model : path, str or Student
        A model file written by ``fastff train``, the name of a shipped one (``fastff models``), or a loaded
        student, which is never converted: if it has another dtype or device, the calculator works on a copy.
    device : str, optional
        ``"cpu"`` or ``"cuda"``; by default cuda where there is one.
    dtype : str
        ``"float32"`` or ``"float64"``.
    precision : {"tf32x3", "tf32", "ieee"}, optional
        Of matrix products on a CUDA device: "tf32" is a fast mode, with about three digits in each product; the default
        keeps those of float32. The first evaluation in another than the default mode warns of what it changes, measured
        on that structure. ORBCalculator's values, such as "float32-high", choose the dtype.
    charge, spin : int, optional
        Total charge and spin multiplicity. Students are neutral and spinless: any other charge is refused, never
        ignored. Without these, ``atoms.info["charge"]``, ``atoms.info["spin"]`` and the sum of initial charges count.
    skin : float
        Å added to the cut-off of the stored neighbor list; it is rebuilt only when an atom or the cell has
        moved too far.
    close_contacts : {"raise", "warn", "ignore"}
        What to do about atoms nearer than 0.1 Å; energies stay finite only above that.
    on_extrapolation : {"ignore", "warn", "raise"}
        What to do about atoms in surroundings unlike those of the training data (extrapolation grade above 2). Unless
        it is "ignore", ``extras`` holds ``energy_uncertainty`` (eV, one standard deviation) and
        ``extrapolation_grades`` (n_atoms,).
    directory : str
        As in every ASE calculator; nothing is written.
    **compatibility
        ``use_float64`` (FENNIXCalculator) chooses the dtype; tuning arguments of those
        calculators that have no meaning here are accepted with one warning. Any other name is an error.

    Notes
    -----
    Energy, forces and stress come from one pass; :meth:`predict` evaluates many structures at once. ``extras`` holds
    what ASE has no key for: uncertainty, and ``unseen_pairs``, elements that never came within the cut-off of each
    other in training (with one warning). Calculators may be copied and pickled; copies have buffers of their own,
    rebuilt on the next call. One calculator serves one thread at a time. On the CPU a script may call
    :func:`fastff.memory.keep_freed_memory` once, which saves a third of the time at a few hundred atoms.

    Raises
    ------
    fastff.errors.ModelFileError
        If the model file cannot be used.
    fastff.errors.UsageError
        If an argument is unknown or cannot be honoured.

    Examples
    --------
    >>> atoms.calc = FastFFCalculator("si.safetensors")  # doctest: +SKIP
    >>> atoms.get_potential_energy()  # doctest: +SKIP
    """

    name = "fastff"
    implemented_properties: ClassVar[list[str]] = list(_PROPERTIES)
    ignored_changes: ClassVar[set[str]] = {"initial_magmoms"}

    def __init__(
        self,
        model: str | Path | Student,
        *,
        device: str | None = None,
        dtype: str = "float32",
        precision: str | None = None,
        charge: int | None = None,
        spin: int | None = None,
        skin: float = 1.0,
        close_contacts: CloseContacts = "raise",
        on_extrapolation: Policy = "ignore",
        directory: str = ".",
        **compatibility: Any,
    ) -> None:
        width, self.precision = read_compatibility(compatibility, dtype, precision)
        super().__init__(directory=directory)
        self.implemented_properties = list(_PROPERTIES)  # type: ignore[misc]
        if close_contacts not in get_args(CloseContacts):
            raise UsageError(
                f"close_contacts {close_contacts!r} is not one of {', '.join(get_args(CloseContacts))}"
            )
        if on_extrapolation not in get_args(Policy):
            raise UsageError(
                f"on_extrapolation {on_extrapolation!r} is not one of {', '.join(get_args(Policy))}"
            )
        place = choose_device(device)
        if isinstance(model, Student):
            self.student = place_student(model, place, width)
            self.model_path = None
        else:
            self.student = load_model(model, device=place, dtype=width)
            self.model_path = str(model)
        for name, value in (("charge", charge), ("spin", spin)):
            if value is not None:
                read_number(name, value)
        self.charge, self.spin, self.skin = charge, spin, check_skin_length(skin)
        self.close_contacts: CloseContacts = close_contacts
        self.extras: dict[str, Any] = {}
        self.evaluator = Evaluator(
            self.student,
            skin=self.skin,
            precision=self.precision,
            contact_limit=None if close_contacts == "ignore" else CLOSEST_DISTANCE,
            with_uncertainty=on_extrapolation != "ignore",
        )
        self.on_extrapolation: Policy = on_extrapolation
        self._electronic: tuple[float, float] | None = None
        self._checked: tuple[Any, Any, Any, int, float] | None = None
        self._unseen: tuple[str, ...] = ()
        self._warned: set[str] = set()
        self._told_precision = self.precision == DEFAULT
        self.parameters.update(
            {
                "model": self.model_path or type(self.student).__name__,
                "model_sha256": self.student.header.get("sha256"),
                "dtype": str(width).removeprefix("torch."),
                "skin": self.skin,
                "precision": self.precision,
            }
        )

    def __copy__(self) -> FastFFCalculator:
        """A calculator with the same student, and everything else of its own."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        for name in ("parameters", "implemented_properties", "_warned", "evaluator"):
            setattr(twin, name, copy.copy(getattr(self, name)))
        for name in ("results", "extras"):
            setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """System changes since the last calculation; a new charge or spin counts as one."""
        changes = list_changes(self.atoms, atoms, tol, self.ignored_changes)
        if self._electronic is not None and self._read_electronic(atoms) != self._electronic:
            changes.append("initial_charges")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute energy, forces and, for a cell with a volume, stress, all in one pass.

        Raises
        ------
        fastff.errors.DataError
            If the structure cannot be used; ``results`` is then empty.
        """
        self.results, self.extras = {}, {}
        if atoms is not None:
            self.atoms = atoms.copy()
        atoms = self.atoms
        if atoms is None:
            raise UsageError("no atoms to calculate; pass atoms or set atoms.calc first")
        unknown = set(properties or ()) - set(_PROPERTIES)
        if unknown:
            raise PropertyNotImplementedError(f"{self.name} does not give {sorted(unknown)}")
        electronic = self._read_electronic(atoms)
        check_electronic(electronic)
        rank, volume = self._check_atoms(atoms)
        outcome = self.evaluator.evaluate(
            atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers
        )
        self._check_outcome(outcome)
        if self._unseen:
            self.extras["unseen_pairs"] = list(self._unseen)
            self._warn_of_pairs(self._unseen)
        results: dict[str, Any] = {
            "energy": outcome.energy,
            "free_energy": outcome.energy,
            "forces": outcome.forces,
            "energies": outcome.energies,
        }
        if rank == 3:
            results["stress"] = full_3x3_to_voigt_6_stress(outcome.virial / volume)
        self.results = results
        self._electronic = electronic
        self._tell_precision(atoms)

    def predict(
        self, structures: Atoms | Iterable[Atoms], *, batch_atoms: int = 4096
    ) -> list[Labels]:
        """Evaluate many structures together, which is quicker for small ones than one after another.

        Parameters
        ----------
        structures : ase.Atoms or iterable of ase.Atoms
            Of any sizes. Neither they nor ``results`` and ``extras`` are changed.
        batch_atoms : int
            Most atoms evaluated together, see :func:`fastff.inference.predict`.

        Returns
        -------
        list of Labels
            Energy, forces, stress and energies of every structure, in the order given.

        Raises
        ------
        fastff.errors.UsageError
            If the calculator should measure uncertainty, which batches do not; if a charge or spin cannot be honoured.
        fastff.errors.DataError
            If a structure cannot be used; the message says which one.
        """
        if self.on_extrapolation != "ignore":
            raise UsageError(
                f"predict measures no uncertainty, and on_extrapolation is {self.on_extrapolation!r}; "
                "use on_extrapolation='ignore', or evaluate one structure after another"
            )
        chosen = list_structures(structures)
        for number, atoms in enumerate(chosen):
            check_electronic(self._read_electronic(atoms), f"structure {number}")
        found = predict(
            self.student, chosen, batch_atoms=batch_atoms, precision=self.precision,
            close_contacts=self.close_contacts, charges="ignore",
        )  # fmt: skip
        for atoms in chosen:
            self._warn_of_pairs(list_unseen_pairs(self.student.header, atoms))
        if chosen:
            self._tell_precision(chosen[0])
        return found

    def explain(self) -> Choice:
        """Which path evaluations take, fused kernels or torch, and why."""
        return self.evaluator.explain()

    @property
    def _cache(self) -> VerletCache:
        """Neighbor list of the torch path."""
        return self.evaluator.cache

    def _check_atoms(self, atoms: Atoms) -> tuple[int, float]:
        """Rank and volume of the cell of a structure that can be used; asks again only for what has changed."""
        cell = atoms.cell.array
        known = self._checked
        unchanged = (
            known is not None
            and is_same_array(known[0], atoms.numbers)
            and is_same_array(known[1], atoms.pbc)
            and bool(np.isfinite(atoms.positions.sum()))
        )
        if unchanged:
            assert known is not None
            if is_same_array(known[2], cell):
                return known[3], known[4]
            volume = measure_sound_cell(cell) if known[1].all() else None
            if volume is not None:
                self._checked = (known[0], known[1], cell.copy(), 3, volume)
                return 3, volume
        self._checked = None
        check_structure(atoms, close_contacts="ignore")
        self._unseen = list_unseen_pairs(self.student.header, atoms)
        rank = int(atoms.cell.rank)
        volume = float(atoms.cell.volume) if rank == 3 else 0.0
        self._checked = (atoms.numbers.copy(), atoms.pbc.copy(), cell.copy(), rank, volume)
        return rank, volume

    def _check_outcome(self, outcome: Outcome) -> None:
        """Refuse, or warn of, atoms that coincide; refuse numbers that are none."""
        contact = outcome.contact
        if contact is not None:
            message = (
                f"atoms {contact.first} and {contact.second} are {contact.distance:.3g} Å apart, "
                f"closer than {CLOSEST_DISTANCE} Å"
            )
            if self.close_contacts == "raise":
                raise DataError(f"{message}; check the structure or the time step")
            warnings.warn(message, UserWarning, stacklevel=4)
        if not outcome.is_finite:
            raise DataError(
                f"energy {outcome.energy} eV or a force is not finite; check for overlapping atoms"
            )
        if outcome.uncertainty is not None:
            self.extras = {
                "energy_uncertainty": float(outcome.uncertainty.energy[0]),
                "extrapolation_grades": outcome.uncertainty.grades.numpy(),
            }
            remark = apply_extrapolation_policy(outcome.uncertainty, self.on_extrapolation)
            if remark is not None:
                warnings.warn(remark, UserWarning, stacklevel=4)

    def _warn_of_pairs(self, unseen: Sequence[str]) -> None:
        """Warn of pairs of elements that training has never seen, the first time."""
        new = [pair for pair in unseen if pair not in self._warned]
        if new:
            self._warned.update(new)
            warnings.warn(
                f"{', '.join(new)} never came within {self.student.cutoff:g} Å of each other in the training data; "
                "what the student says about such pairs is a guess",
                UserWarning,
                stacklevel=4,
            )

    def _tell_precision(self, atoms: Atoms) -> None:
        """Say once what another precision than the default does."""
        if self._told_precision:
            return
        self._told_precision = True
        remark = describe_precision(self.student, self.precision, atoms, self.explain())
        if remark is not None:
            warnings.warn(remark, UserWarning, stacklevel=4)

    def _read_electronic(self, atoms: Atoms) -> tuple[float, float]:
        """Total charge and spin multiplicity, those of the constructor first."""
        return read_electronic(atoms, self.charge, self.spin)

    def todict(self, skip_default: bool = True) -> dict[str, Any]:
        """JSON-able provenance, as ASE databases store it."""
        return dict(self.parameters)
