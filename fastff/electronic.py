"""Total charge and spin of structures: students know neither.

Here: reading both, and refusing what a student would ignore. Not here: teachers that take them
(:mod:`fastff.teachers.orb`, :mod:`fastff.teachers.fennol`).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from ase import Atoms

from fastff.errors import UsageError

Charges = Literal["raise", "ignore"]


def read_electronic(
    atoms: Atoms, charge: float | None = None, spin: float | None = None
) -> tuple[float, float]:
    """Total charge in e and spin multiplicity: as given, else ``info``, else initial charges, else neutral singlet.

    Raises
    ------
    UsageError
        One of them is not a finite number.
    """
    charge = charge if charge is not None else atoms.info.get("charge")
    if charge is None:
        charge = atoms.get_initial_charges().sum()
    spin = spin if spin is not None else atoms.info.get("spin")
    return read_number("charge", charge), read_number("spin", 1 if spin is None else spin)


def check_electronic(electronic: tuple[float, float], name: str = "") -> None:
    """Refuse a charge, or a spin other than that of a singlet.

    Parameters
    ----------
    electronic : (float, float)
        From :func:`read_electronic`.
    name : str
        What the message calls the structure.

    Raises
    ------
    UsageError
    """
    charge, spin = electronic
    where = f"{name}: " if name else ""
    if abs(charge) > 1e-6:
        raise UsageError(
            f"{where}total charge {charge:g} requested but this student was distilled for neutral systems; "
            "set the charge to 0 or train on charged structures"
        )
    if spin not in (0.0, 1.0):
        raise UsageError(
            f"{where}spin multiplicity {spin:g} requested but this student knows no spin; leave it at 1"
        )


def read_number(name: str, value: Any) -> float:
    """``value`` as a finite number.

    Raises
    ------
    UsageError
        It is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"{name} {value!r} is not a number; correct the argument or atoms.info[{name!r}]"
        )
    return number
