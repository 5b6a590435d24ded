"""The one definition of accuracy that training, bench, report and README use.

Here: :class:`Accuracy` and :func:`measure_accuracy`, which compare what a student says of structures with what its
teacher says of them. Not here: computing either side's labels (:mod:`fastff.inference`, :mod:`fastff.teachers`),
choosing frames (:mod:`fastff.report.heldout`), recognising wrong units (:mod:`fastff.report.plausibility`), or showing
the result.

Definitions
-----------
Over all frames together, with the reference (the teacher) in the denominator:

* force accuracy ``A_F = 1 - RMSE(F) / RMS(F_ref)`` over all Cartesian components;
* energy accuracy ``A_E = 1 - RMSE(e) / std(e_ref)`` with ``e`` the energy per atom, after one constant offset for
  each composition. Offset and spread are taken within a composition, so that neither a teacher's constant nor the
  trivial difference between compositions counts. A composition is a set of element fractions: a unit cell and its
  supercell share one offset, so a student that is not extensive pays for it;
* stress accuracy ``A_S = 1 - RMSE(s) / RMS(s_ref)`` over the six Voigt components of fully periodic frames.

The overall accuracy is the smallest of those that are defined. A quantity that is not defined is None and ``notes``
says why; it is never replaced by zero or one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import gcd
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

from fastff.errors import DataError
from fastff.labels import Labels


@dataclass(frozen=True)
class ElementAccuracy:
    """Force error on the atoms of one element: ``mae`` and ``rmse`` in eV/Å, ``accuracy`` as A_F or None."""

    mae: float
    rmse: float
    accuracy: float | None
    n_atoms: int


@dataclass(frozen=True)
class Accuracy:
    """How well predictions reproduce a reference. See the module's docstring for the definitions.

    Attributes
    ----------
    force, energy, stress : float or None
        A_F, A_E and A_S; 1 is perfect, negative is worse than predicting the mean; None if undefined.
    force_mae, force_rmse, force_rms : float
        Mean absolute error, root mean square error, and root mean square of the reference, eV/Å.
    force_relative_mae : float or None
        ``MAE(F) / mean |F_ref|`` over components.
    force_cosine : float or None
        Mean over atoms of the cosine between predicted and reference force, atoms with a zero force left out.
    force_r2 : float or None
        Coefficient of determination over all components.
    energy_mae, energy_rmse, energy_std : float or None
        eV/atom, after one offset per composition.
    stress_mae, stress_rmse, stress_rms : float or None
        eV/Å^3.
    energy_offsets : dict
        Reduced formula -> mean of ``e - e_ref``, eV/atom: what was subtracted.
    per_element : dict
        Chemical symbol -> :class:`ElementAccuracy`.
    n_frames, n_atoms, n_energies, n_stresses : int
        Frames and atoms compared, frames that count in A_E, frames that count in A_S.
    intervals : dict
        Quantity or ``"overall"`` -> 95 % interval, see :mod:`fastff.report.spread`; empty where not estimated.
    intervals_by : str
        What the intervals come from: ``"jackknife"``; ``"bootstrap"`` in older records, whose intervals are too narrow.
    per_temperature : tuple of dict
        Temperature in K, frames, accuracies of these and what they come from, where the frames carry temperatures.
    notes : tuple of str
        Why a quantity is None or covers fewer frames than were given.
    """

    force: float | None
    energy: float | None
    stress: float | None
    force_mae: float
    force_rmse: float
    force_rms: float
    force_relative_mae: float | None
    force_cosine: float | None
    force_r2: float | None
    energy_mae: float | None
    energy_rmse: float | None
    energy_std: float | None
    energy_offsets: dict[str, float]
    stress_mae: float | None
    stress_rmse: float | None
    stress_rms: float | None
    per_element: dict[str, ElementAccuracy]
    n_frames: int
    n_atoms: int
    n_energies: int
    n_stresses: int
    notes: tuple[str, ...] = ()
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    intervals_by: str = "bootstrap"
    per_temperature: tuple[dict[str, Any], ...] = ()

    @property
    def overall(self) -> float:
        """The smallest of the accuracies that are defined."""
        return min(a for a in (self.force, self.energy, self.stress) if a is not None)

    @property
    def limiting(self) -> str:
        """Name of the quantity that sets :attr:`overall`: ``"force"``, ``"energy"`` or ``"stress"``."""
        named = {"force": self.force, "energy": self.energy, "stress": self.stress}
        return min((a, name) for name, a in named.items() if a is not None)[1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able dictionary of every field plus ``overall`` and ``limiting``."""
        fields = asdict(self)
        fields["notes"] = list(self.notes)
        fields["per_temperature"] = list(self.per_temperature)
        fields["intervals"] = {name: list(limits) for name, limits in self.intervals.items()}
        return {**fields, "overall": self.overall, "limiting": self.limiting}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Accuracy:
        """Inverse of :meth:`to_dict`."""
        fields = {k: v for k, v in values.items() if k not in ("overall", "limiting")}
        fields["per_element"] = {
            symbol: ElementAccuracy(**entry) for symbol, entry in fields["per_element"].items()
        }
        fields["notes"] = tuple(fields["notes"])
        fields["per_temperature"] = tuple(fields.get("per_temperature", ()))
        fields["intervals"] = {
            name: (low, high) for name, (low, high) in fields.get("intervals", {}).items()
        }
        return cls(**fields)


def measure_accuracy(
    reference: Sequence[Labels], prediction: Sequence[Labels], structures: Sequence[ase.Atoms]
) -> Accuracy:
    """Compare predictions with a reference, frame by frame, as defined in this module's docstring.

    Parameters
    ----------
    reference : sequence of Labels
        What the teacher says. The denominators come from here: swapping the two changes the result.
    prediction : sequence of Labels
        What the student says, same order.
    structures : sequence of ase.Atoms
        The frames themselves; only their atomic numbers are read.

    Returns
    -------
    Accuracy

    Raises
    ------
    DataError
        No frames, lengths or shapes that do not match, a value that is not finite, a stress that the reference has
        and the prediction lacks, or a reference in which force, energy and stress are all undefined.
    """
    check_labels(reference, prediction, structures)
    notes: list[str] = []
    fields: dict[str, Any] = {}
    fields.update(_measure_forces(reference, prediction, structures, notes))
    fields.update(_measure_energies(reference, prediction, structures, notes))
    fields.update(_measure_stresses(reference, prediction, notes))
    if fields["force"] is None and fields["energy"] is None and fields["stress"] is None:
        raise DataError(
            "accuracy is undefined for these frames: "
            + "; ".join(notes)
            + ". Give frames with non-zero forces."
        )
    return Accuracy(
        n_frames=len(structures),
        n_atoms=sum(len(atoms) for atoms in structures),
        notes=tuple(notes),
        **fields,
    )


def check_labels(
    reference: Sequence[Labels], prediction: Sequence[Labels], structures: Sequence[ase.Atoms]
) -> None:
    """Raise :class:`DataError` unless both sides are finite and of the right shape for every structure."""
    if not len(reference) == len(prediction) == len(structures):
        raise DataError(
            f"{len(structures)} structures, {len(reference)} reference labels and {len(prediction)} predictions: "
            "give one of each per frame, in the same order."
        )
    if not structures:
        raise DataError("no frames to compare: give at least one labelled frame.")
    for index, (ref, pred, atoms) in enumerate(zip(reference, prediction, structures, strict=True)):
        for side, labels in (("reference", ref), ("prediction", pred)):
            _check_frame(labels, atoms, f"frame {index} ({atoms.get_chemical_formula()}), {side}")
        if ref.stress is not None and pred.stress is None:
            raise DataError(
                f"frame {index} ({atoms.get_chemical_formula()}): the reference has a stress and the prediction has "
                "none. Predict stress for periodic frames."
            )


def _check_frame(labels: Labels, atoms: ase.Atoms, where: str) -> None:
    forces = np.asarray(labels.forces)
    if forces.shape != (len(atoms), 3):
        raise DataError(f"{where}: forces have shape {forces.shape}, expected ({len(atoms)}, 3).")
    if not np.isfinite(labels.energy):
        raise DataError(f"{where}: energy is {labels.energy}. Remove the frame or label it again.")
    if not np.isfinite(forces).all():
        atom = int(np.argwhere(~np.isfinite(forces).all(axis=1))[0, 0])
        raise DataError(
            f"{where}: the force on atom {atom} is {forces[atom].tolist()}. Remove the frame or label it again."
        )
    if labels.stress is not None:
        stress = np.asarray(labels.stress)
        if stress.shape != (6,):
            raise DataError(
                f"{where}: stress has shape {stress.shape}, expected (6,) in Voigt order."
            )
        if not np.isfinite(stress).all():
            raise DataError(
                f"{where}: stress is {stress.tolist()}. Remove the frame or label it again."
            )


def reduce_formula(atoms: ase.Atoms) -> str:
    """Formula by element fractions, elements in alphabetical order: ``"H2O"`` for 27 water molecules."""
    symbols, counts = np.unique(atoms.get_chemical_symbols(), return_counts=True)
    divisor = gcd(*(int(c) for c in counts))
    return "".join(
        f"{symbol}{count // divisor if count != divisor else ''}"
        for symbol, count in zip(symbols, counts, strict=True)
    )


def _measure_forces(
    reference: Sequence[Labels],
    prediction: Sequence[Labels],
    structures: Sequence[ase.Atoms],
    notes: list[str],
) -> dict[str, Any]:
    ref = np.concatenate([labels.forces for labels in reference]).astype(np.float64)
    pred = np.concatenate([labels.forces for labels in prediction]).astype(np.float64)
    numbers = np.concatenate([atoms.numbers for atoms in structures])
    error = pred - ref
    rms, rmse = _rms(ref), _rms(error)
    if rms == 0.0:
        notes.append("force accuracy is undefined: all reference forces are zero")
    norms = np.linalg.norm(ref, axis=1) * np.linalg.norm(pred, axis=1)
    moving = norms > 0.0
    cosine = (
        float(np.mean(np.sum(ref * pred, axis=1)[moving] / norms[moving])) if moving.any() else None
    )
    spread = float(np.sum((ref - ref.mean(axis=0)) ** 2))
    per_element = {}
    for number in np.unique(numbers):
        chosen = numbers == number
        element_rms = _rms(ref[chosen])
        element_rmse = _rms(error[chosen])
        per_element[chemical_symbols[number]] = ElementAccuracy(
            mae=float(np.abs(error[chosen]).mean()),
            rmse=element_rmse,
            accuracy=1.0 - element_rmse / element_rms if element_rms > 0.0 else None,
            n_atoms=int(chosen.sum()),
        )
    return {
        "force": 1.0 - rmse / rms if rms > 0.0 else None,
        "force_mae": float(np.abs(error).mean()),
        "force_rmse": rmse,
        "force_rms": rms,
        "force_relative_mae": float(np.abs(error).mean() / np.abs(ref).mean())
        if rms > 0.0
        else None,
        "force_cosine": cosine,
        "force_r2": 1.0 - float(np.sum(error**2)) / spread if spread > 0.0 else None,
        "per_element": per_element,
    }


def _measure_energies(
    reference: Sequence[Labels],
    prediction: Sequence[Labels],
    structures: Sequence[ase.Atoms],
    notes: list[str],
) -> dict[str, Any]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, atoms in enumerate(structures):
        groups[reduce_formula(atoms)].append(index)
    counts = np.array([len(atoms) for atoms in structures])
    ref = np.array([labels.energy for labels in reference], dtype=np.float64) / counts
    error = np.array([labels.energy for labels in prediction], dtype=np.float64) / counts - ref
    offsets = {formula: float(error[members].mean()) for formula, members in groups.items()}
    shared = [members for members in groups.values() if len(members) > 1]
    undefined: dict[str, Any] = {
        "energy": None, "energy_mae": None, "energy_rmse": None, "energy_std": None,
        "energy_offsets": offsets, "n_energies": 0,
    }  # fmt: skip
    if not shared:
        notes.append(
            "energy accuracy is undefined: it needs two frames of one composition, and every composition has one"
        )
        return undefined
    if len(shared) < len(groups):
        notes.append(
            f"energy accuracy leaves out {len(groups) - len(shared)} compositions that have a single frame"
        )
    error = np.concatenate([error[members] - error[members].mean() for members in shared])
    spread = np.concatenate([ref[members] - ref[members].mean() for members in shared])
    std, rmse = _rms(spread), _rms(error)
    if std <= 1e-12 * max(1.0, float(np.abs(ref).max())):
        notes.append(
            "energy accuracy is undefined: the reference energies within each composition are all equal"
        )
        return undefined
    return {
        "energy": 1.0 - rmse / std,
        "energy_mae": float(np.abs(error).mean()),
        "energy_rmse": rmse,
        "energy_std": std,
        "energy_offsets": offsets,
        "n_energies": int(error.size),
    }


def _measure_stresses(
    reference: Sequence[Labels], prediction: Sequence[Labels], notes: list[str]
) -> dict[str, Any]:
    pairs = [
        (ref.stress, pred.stress)
        for ref, pred in zip(reference, prediction, strict=True)
        if ref.stress is not None and pred.stress is not None
    ]
    undefined = {
        "stress": None,
        "stress_mae": None,
        "stress_rmse": None,
        "stress_rms": None,
        "n_stresses": 0,
    }
    if not pairs:
        notes.append(
            "stress accuracy is undefined: no frame has a reference stress (not periodic in all directions)"
        )
        return undefined
    if len(pairs) < len(reference):
        notes.append(
            f"stress accuracy covers the {len(pairs)} of {len(reference)} frames that have a stress"
        )
    ref = np.array([p[0] for p in pairs], dtype=np.float64)
    error = np.array([p[1] for p in pairs], dtype=np.float64) - ref
    rms, rmse = _rms(ref), _rms(error)
    if rms == 0.0:
        notes.append("stress accuracy is undefined: all reference stresses are zero")
        return undefined
    return {
        "stress": 1.0 - rmse / rms,
        "stress_mae": float(np.abs(error).mean()),
        "stress_rmse": rmse,
        "stress_rms": rms,
        "n_stresses": len(pairs),
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
