"""What moves: positions, velocities, cell and counters of one system on the device.

Here: :class:`State`, degrees of freedom, start velocities, constraints. Not here: how it moves.

Lengths are Å, energies eV, masses atomic mass units; velocities are in ASE's unit Å sqrt(eV/u).
"""

from __future__ import annotations

from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase.constraints import FixAtoms
from torch import Tensor

from fastff.errors import DataError, UsageError
from fastff.md.settings import MDSettings
from fastff.units import BOLTZMANN_EV_PER_K

_VELOCITIES_KEY = 3


@dataclass
class State:
    """One system in motion. All tensors keep their addresses; engines change them in place.

    Attributes
    ----------
    positions, velocities : (n_atoms, 3) float64 tensors
        Positions are not wrapped.
    cell : (3, 3) float64 tensor
        Rows are cell vectors.
    numbers : (n_atoms,) int64 tensor
    pbc : (3,) bool tensor
    masses : (n_atoms, 1) float64 tensor
    inverse_masses : (n_atoms, 1) float64 tensor
        Zero for fixed atoms.
    step : () int64 tensor
        Complete steps done.
    target : () int64 tensor
        Step at which everything stands still; negative while nothing may move.
    pending : () bool tensor
        The first half of step ``step`` is done, the second is not.
    failed : () bool tensor
        The next step would be unsound; nothing moves any more.
    heat, work : () float64 tensors, eV
        What thermostat and barostat have put into the system.
    strain, slope : (3,) float64 tensors
        Of the barostat: logarithmic strain of each cell vector in this step, and the derivative of the enthalpy in it.
    n_free : int
        Degrees of freedom that carry kinetic energy.
    """

    positions: Tensor
    velocities: Tensor
    cell: Tensor
    numbers: Tensor
    pbc: Tensor
    masses: Tensor
    inverse_masses: Tensor
    step: Tensor
    target: Tensor
    pending: Tensor
    failed: Tensor
    heat: Tensor
    work: Tensor
    strain: Tensor
    slope: Tensor
    n_free: int

    @property
    def n_atoms(self) -> int:
        """Number of atoms, fixed ones included."""
        return int(self.positions.shape[0])


def build_state(
    atoms: ase.Atoms, settings: MDSettings, device: torch.device | str = "cpu"
) -> State:
    """Put a structure on the device, with start velocities, at step 0.

    Raises
    ------
    UsageError
        If the structure has constraints other than FixAtoms, or the ensemble cannot treat it.
    DataError
        If velocities should come from the structure and it has none.
    """
    fixed = find_fixed(atoms)
    if settings.ensemble == "npt":
        _check_npt(atoms, fixed)
    masses = np.asarray(atoms.get_masses(), dtype=np.float64)
    if not (masses > 0.0).all():
        where = int(np.flatnonzero(~(masses > 0.0))[0])
        raise DataError(
            f"mass of atom {where} is {masses[where]} u; set positive masses in the structure"
        )
    if settings.velocities == "file":
        velocities = _read_velocities(atoms)
    else:
        velocities = draw_velocities(masses, settings.temperature, settings.seed)
    velocities[fixed] = 0.0
    if removes_drift(fixed):
        velocities -= (masses[:, None] * velocities).sum(axis=0) / masses.sum()
    inverse = np.where(fixed, 0.0, 1.0 / masses)

    def put(array: np.ndarray, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(np.array(array), dtype=dtype, device=device)

    zero = np.zeros(())
    return State(
        positions=put(atoms.positions),
        velocities=put(velocities),
        cell=put(atoms.cell.array),
        numbers=put(atoms.numbers, torch.int64),
        pbc=put(atoms.pbc, torch.bool),
        masses=put(masses[:, None]),
        inverse_masses=put(inverse[:, None]),
        step=put(zero, torch.int64),
        target=put(zero - 1, torch.int64),
        pending=put(zero, torch.bool),
        failed=put(zero, torch.bool),
        heat=put(zero),
        work=put(zero),
        strain=put(np.zeros(3)),
        slope=put(np.zeros(3)),
        n_free=count_free(fixed, settings),
    )


def find_fixed(atoms: ase.Atoms) -> np.ndarray:
    """Mask of the atoms that FixAtoms holds, shape (n_atoms,).

    Raises
    ------
    UsageError
        If there is a constraint of another kind, or every atom is fixed.
    """
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise UsageError(
                f"constraint {type(constraint).__name__} is not supported by fastff's dynamics; "
                "only FixAtoms is, so remove it from the structure"
            )
        fixed[constraint.index] = True
    if fixed.all():
        raise UsageError(f"all {len(atoms)} atoms are fixed; nothing can move")
    return fixed


def _check_npt(atoms: ase.Atoms, fixed: np.ndarray) -> None:
    if not atoms.pbc.all():
        flags = "".join("FT"[int(flag)] for flag in atoms.pbc)
        raise UsageError(
            f"constant pressure needs a structure periodic in all directions, this one is {flags}; use nvt"
        )
    if fixed.any():
        raise UsageError(
            f"{int(fixed.sum())} atoms are fixed, which a changing cell would move; use nvt or free them"
        )


def removes_drift(fixed: np.ndarray) -> bool:
    """Whether the centre of mass is brought to rest at the start: nothing is fixed and more than one atom moves."""
    return not fixed.any() and len(fixed) > 1


def count_free(fixed: np.ndarray, settings: MDSettings) -> int:
    """Degrees of freedom that carry kinetic energy.

    Three per mobile atom, less three where the motion of the centre of mass stays zero: without fixed atoms, and not
    under a Langevin thermostat, which moves the centre of mass as it moves atoms.
    """
    count = 3 * int((~fixed).sum())
    langevin = settings.ensemble != "nve" and settings.thermostat == "langevin"
    return count - 3 if removes_drift(fixed) and not langevin else count


def draw_velocities(masses: np.ndarray, temperature: float, seed: int) -> np.ndarray:
    """Draw from the Maxwell-Boltzmann distribution, shape (n_atoms, 3), ASE units."""
    rng = np.random.default_rng([seed, _VELOCITIES_KEY])
    width = np.sqrt(BOLTZMANN_EV_PER_K * temperature / masses)
    drawn: np.ndarray = width[:, None] * rng.normal(size=(len(masses), 3))
    return drawn


def _read_velocities(atoms: ase.Atoms) -> np.ndarray:
    if not atoms.has("momenta"):
        raise DataError(
            "the structure has no velocities; draw them, or give a file that holds momenta"
        )
    velocities = np.array(atoms.get_velocities(), dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(velocities).all(axis=1))
    if len(bad):
        raise DataError(
            f"velocity of atom {bad[0]} is not finite: {velocities[bad[0]].tolist()}; repair the file"
        )
    return velocities


def make_atoms(
    template: ase.Atoms, positions: np.ndarray, velocities: np.ndarray, cell: np.ndarray
) -> ase.Atoms:
    """A structure like ``template`` (numbers, masses, pbc, constraints) with the given motion."""
    atoms = template.copy()
    constraints = atoms.constraints
    atoms.set_constraint()
    atoms.set_cell(cell)
    atoms.positions[:] = positions
    atoms.set_velocities(velocities)
    atoms.set_constraint(constraints)
    return atoms
