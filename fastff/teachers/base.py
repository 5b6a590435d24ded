"""What every teacher is: a source of labels behind one small interface.

Here: :class:`Teacher`, :class:`TeacherInfo`, :class:`Setting`, completing structures before a teacher sees them, and
batching by atom count. Not here: any particular teacher, finding one by name (:mod:`fastff.teachers.registry`).
"""

from __future__ import annotations

import abc
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from fastff.errors import DataError, FastFFError, UnsupportedElementError, UsageError
from fastff.labels import Labels
from fastff.neighbors import complete_cell
from fastff.teachers.isolation import hush, preserve_global_state


@dataclass(frozen=True)
class TeacherInfo:
    """Where labels come from; travels inside label files and student files.

    Attributes
    ----------
    name : str
        Specification that loads this teacher, for example ``"sevennet:7net-0"``; of FeNNol without the folder.
    family : str
        ``"sevennet"``, ``"chgnet"``, ``"orb"``, ``"fennol"``, ``"ase"`` or ``"analytic"``.
    version : str
        Version of the package that computes the labels.
    weights : str
        Name of the weights, or the path they were read from.
    weights_sha256 : str or None
        Hash of the weight file, None where there is no file.
    licence, citation : str
        Of the weights.
    elements : tuple of int
        Atomic numbers the teacher knows; empty where it does not say.
    conservative : bool
        Whether forces are the derivative of the energy.
    cutoff : float or None
        Range of one message or pair, Å; None where it is not known.
    notes : tuple of str
        What a user must know of this teacher, in whole sentences.
    max_neighbors : int or None
        Neighbors kept per atom where that number is reached in ordinary matter, so that energies and forces jump.
    settings : str
        Options that change what it says of a structure, as :func:`describe_settings` writes them; empty where all have
        their usual values. Labels made with different settings do not mix.
    """

    name: str
    family: str
    version: str
    weights: str
    weights_sha256: str | None
    licence: str
    citation: str
    elements: tuple[int, ...]
    conservative: bool
    cutoff: float | None
    notes: tuple[str, ...] = ()
    max_neighbors: int | None = None
    settings: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able dictionary."""
        record = asdict(self)
        record["elements"] = list(self.elements)
        record["notes"] = list(self.notes)
        return record


@dataclass(frozen=True)
class Setting:
    """One way to run a teacher's calculator that changes its speed and not what it says.

    Attributes
    ----------
    values : dict
        What tells it from the others, for example ``{"dtype": "float32", "compile": True}``; JSON-able, empty where the
        teacher's package leaves no choice.
    make : callable
        A fresh calculator that is set up so. It may fail where the machine lacks something.
    """

    values: dict[str, Any]
    make: Callable[[], BaseCalculator]


class Teacher(abc.ABC):
    """A model or calculator that labels structures.

    Subclasses set :attr:`info` and implement :meth:`_label_completed` and :meth:`calculator`. Completed cells,
    element checks, global state and the None of a stress that has no meaning are dealt with here, once.
    """

    info: TeacherInfo
    padding: float = 6.0
    """Half of the empty space (Å) that non-periodic directions get, at least the teacher's cut-off."""
    periodic_only: bool = False
    """Whether the teacher treats every structure as periodic; it is then told so, with the padding above."""
    own_process: bool = False
    """Whether its calculator works in another process, whose memory is not that of this one."""
    batch_atoms: int = 1
    """Atoms that it evaluates at once, about."""

    @property
    def name(self) -> str:
        """Specification that loads this teacher; files of FeNNol without their folder."""
        return self.info.name

    def label(self, structures: Sequence[Atoms]) -> list[Labels]:
        """Energy, forces and stress of each structure, in order.

        Parameters
        ----------
        structures : sequence of ase.Atoms
            Left unchanged. Non-periodic cell vectors may be missing. Constraints are ignored: forces are raw.

        Returns
        -------
        list of Labels
            Stress is None unless the structure is periodic in all three directions. Values are what the teacher says,
            nan included: who stores labels decides what to do with those.

        Raises
        ------
        UnsupportedElementError, DataError
            If a structure is empty, holds non-finite numbers, or has elements the teacher does not know.
        """
        if isinstance(structures, Atoms):
            raise UsageError(
                "label() takes a sequence of structures, got one Atoms; write label([atoms])"
            )
        for atoms in structures:
            check_structure(atoms)
            self.check_elements(atoms)
        completed = [
            complete_structure(atoms, self.padding, all_periodic=self.periodic_only)
            for atoms in structures
        ]
        if not completed:
            return []
        with preserve_global_state(), hush():
            raw = self._label_completed(completed)
        return [_tidy(labels, atoms) for labels, atoms in zip(raw, structures, strict=True)]

    @abc.abstractmethod
    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        """Label structures whose cells are completed and whose atoms lie inside them."""

    @abc.abstractmethod
    def calculator(self) -> BaseCalculator:
        """A fresh ASE calculator of the teacher's own, for baselines and timing."""

    def list_settings(self) -> tuple[list[Setting], list[str]]:
        """Ways to run :meth:`calculator`, that of the labels first; and others that this machine lacks, with why."""
        return [Setting({}, self.calculator)], []

    def check_elements(self, atoms: Atoms) -> None:
        """Raise :class:`UnsupportedElementError` if ``atoms`` holds elements that the teacher does not know."""
        known = self.info.elements
        bad = np.flatnonzero(~np.isin(atoms.numbers, known)) if known else np.array([], dtype=int)
        if len(bad):
            symbols = sorted({chemical_symbols[z] for z in atoms.numbers[bad]})
            shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            raise UnsupportedElementError(
                f"teacher {self.name} does not know {', '.join(symbols)} (atom indices {shown}); "
                f"it knows {format_elements(known)}"
            )


def format_elements(elements: Sequence[int]) -> str:
    """Symbols of ``elements``; of a long list, the few that are missing below its largest."""
    if len(elements) <= 20:
        return ", ".join(chemical_symbols[z] for z in elements)
    top = max(elements)
    missing = [chemical_symbols[z] for z in range(1, top + 1) if z not in set(elements)]
    text = f"{len(elements)} elements, H to {chemical_symbols[top]}"
    return text + (f" without {', '.join(missing)}" if missing else "")


def check_structure(atoms: Atoms) -> None:
    """Raise :class:`DataError` if ``atoms`` is empty or holds non-finite numbers."""
    if len(atoms) == 0:
        raise DataError("no atoms: the structure is empty")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise DataError(
            f"position of atom {bad[0]} is not finite: {atoms.positions[bad[0]].tolist()}"
        )
    if not np.isfinite(atoms.cell.array).all():
        raise DataError(f"cell is not finite: {atoms.cell.array.tolist()}")


def complete_structure(atoms: Atoms, padding: float, *, all_periodic: bool = False) -> Atoms:
    """A copy with a full, right-handed cell and all atoms inside it, which any teacher reads the same way.

    Parameters
    ----------
    atoms : ase.Atoms
    padding : float, Å
        Non-periodic vectors become extent + 2 * padding long, orthogonal to the others; atoms are centred along them.
        The vectors of a left-handed cell are turned round, which leaves the crystal and the axes as they are.
    all_periodic : bool
        Set periodic boundaries everywhere; harmless if ``padding`` is at least the teacher's cut-off.

    Returns
    -------
    ase.Atoms
        Same order of atoms, ``info`` and initial charges kept; no calculator, no constraints.
    """
    pbc = np.asarray(atoms.pbc, dtype=bool)
    positions = np.array(atoms.positions, dtype=np.float64)
    cell = complete_cell(positions, atoms.cell.array, pbc, padding)
    if np.linalg.det(cell) < 0.0:  # CHGNet turns the sign of stress with that of the volume
        cell = -cell
    fractional = np.linalg.solve(cell.T, positions.T).T
    free = ~pbc
    fractional[:, pbc] %= 1.0
    middle = 0.5 * (fractional[:, free].min(axis=0) + fractional[:, free].max(axis=0))
    fractional[:, free] += 0.5 - middle
    completed = Atoms(
        numbers=atoms.numbers,
        positions=fractional @ cell,
        cell=cell,
        pbc=True if all_periodic else pbc,
        info=dict(atoms.info),
    )
    if atoms.has("initial_charges"):
        completed.set_initial_charges(atoms.get_initial_charges())
    return completed


def split_by_atoms(structures: Sequence[Atoms], max_atoms: int) -> list[list[int]]:
    """Indices of consecutive structures grouped so that no group exceeds ``max_atoms``, or holds one structure."""
    groups: list[list[int]] = []
    total = 0
    for index, atoms in enumerate(structures):
        if groups and total + len(atoms) <= max_atoms:
            groups[-1].append(index)
            total += len(atoms)
        else:
            groups.append([index])
            total = len(atoms)
    return groups


def label_in_batches(
    structures: Sequence[Atoms], max_atoms: int, label_batch: Callable[[list[Atoms]], list[Labels]]
) -> list[Labels]:
    """Label in batches by atom count; where memory runs out, halve the batch, at most three times."""
    for attempt in range(4):
        try:
            result: list[Labels] = []
            for group in split_by_atoms(structures, max(max_atoms >> attempt, 1)):
                result += label_batch([structures[k] for k in group])
            return result
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            if attempt == 3 or max(map(len, structures)) > (max_atoms >> attempt):
                largest = max(map(len, structures))
                raise FastFFError(
                    f"out of memory while labelling (largest structure {largest} atoms, batches of "
                    f"{max_atoms >> attempt} atoms): {str(error).splitlines()[0]}; "
                    "label smaller structures, or on the CPU"
                ) from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    raise AssertionError("unreachable")


def pick_device(device: str) -> torch.device:
    """``"auto"`` is the GPU where there is one; anything else is taken by its name."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device '{device}'; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{device}' was asked for, but torch sees no GPU; use cpu or auto")
    return chosen


def check_options(
    family: str, options: Mapping[str, Any], allowed: Iterable[str]
) -> dict[str, Any]:
    """A plain copy of ``options`` if every key is allowed, else :class:`UsageError` naming the nearest valid key."""
    names = sorted(allowed)
    for key in options:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names) or 'none'}"
            raise UsageError(f"teacher '{family}' has no option '{key}'; {hint}")
    return dict(options)


def describe_settings(**values: Any) -> str:
    """``key=value, ...`` of the values that are not None, sorted: :attr:`TeacherInfo.settings`."""
    return ", ".join(f"{key}={value}" for key, value in sorted(values.items()) if value is not None)


def pick_variant(family: str, variant: str | None, known: Sequence[str], default: str) -> str:
    """``variant`` or the default, checked against the known names."""
    chosen = default if variant is None else variant
    for name in known:
        if chosen.lower() == name.lower():
            return name
    near = difflib.get_close_matches(chosen.lower(), [name.lower() for name in known], n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UsageError(
        f"teacher '{family}' has no variant '{chosen}'; {hint}known: {', '.join(known)}"
    )


def _tidy(labels: Labels, atoms: Atoms) -> Labels:
    """Arrays as float64 of the promised shapes, stress only where it has a meaning."""
    n_atoms = len(atoms)
    stress = None
    if labels.stress is not None and atoms.pbc.all():
        stress = np.asarray(labels.stress, dtype=np.float64).reshape(6)
    energies = None
    if labels.energies is not None:
        energies = np.asarray(labels.energies, dtype=np.float64).reshape(n_atoms)
    forces = np.asarray(labels.forces, dtype=np.float64).reshape(n_atoms, 3)
    return Labels(float(labels.energy), forces, stress, energies)
