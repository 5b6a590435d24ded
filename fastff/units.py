"""Units, sign conventions, and how shares, numbers and formulas are shown, written once.

Inside fastff: positions in Å, energies in eV, forces in eV/Å (``-dE/dr``), stress in eV/Å^3
(positive under tension, ASE's sign), time in fs at public surfaces, temperature in K. Conversion factors are ASE's;
this module only names the few that are used in more than one place.
"""

from __future__ import annotations

from ase import units
from ase.formula import Formula

EV_PER_A3_TO_GPA: float = 1.0 / units.GPa
"""Multiply a stress in eV/Å^3 by this to get GPa."""

BOLTZMANN_EV_PER_K: float = units.kB
"""Boltzmann constant in eV/K."""

FEMTOSECOND: float = units.fs
"""One femtosecond in ASE's internal time unit."""

COULOMB_EV_A: float = units.Hartree * units.Bohr
"""e^2 / (4 pi eps_0) in eV Å."""

VOIGT: tuple[tuple[int, int], ...] = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
"""Matrix index of each Voigt component in ASE's order: xx, yy, zz, yz, xz, xy."""


def show_percent(value: float, digits: int = 1, *, up: bool = False) -> str:
    """``0.9634`` as ``96.3 %``; rounded down, so that 94.96 % never reads as 95 %, or ``up``, as upper ends are."""
    scale = 10**digits
    steps = -int(-value * 100 * scale // 1) if up else int(value * 100 * scale // 1)
    return f"{steps / scale:.{digits}f} %"


def show_number(value: float, digits: int = 3, sign: str = "") -> str:
    """``1034.2`` as ``1,030``: so many significant digits, never as a power of ten where that is large.

    ``sign`` is ``"+"`` where positive numbers have theirs.
    """
    text = f"{value:{sign}.{digits}g}"
    return f"{float(text):{sign},.0f}" if "e+" in text else text


def show_formula(formula: str, *, reduce: bool = False) -> str:
    """``O2Ti`` as ``TiO2``, metals first; ``reduce`` makes ``H2O`` of ``H54O27``. What is no formula stays as it is."""
    try:
        found = Formula(formula, strict=True)
    except ValueError:
        return formula
    return str((found.reduce()[0] if reduce else found).format("metal"))
