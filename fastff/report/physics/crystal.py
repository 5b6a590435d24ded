"""Properties of crystals: equation of state, elastic constants, phonons, vacancies.

Here: measuring the raw curves of both sides. Not here: the numbers derived from them
(:mod:`fastff.report.physics.derive`), whether there is time for it (:mod:`fastff.report.physics.run`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np
from ase.dft.kpoints import parse_path_string

from fastff.distill.cells import SampleCell, build_supercell, find_commensurate
from fastff.errors import MissingDependencyError
from fastff.report.physics.derive import PropertyError
from fastff.report.physics.material import Material, find_space_group
from fastff.report.physics.record import ElasticItem, EosItem, PhononItem, VacancyItem
from fastff.report.physics.rest import WITHIN
from fastff.report.physics.side import Side, relax_cell, relax_positions
from fastff.units import EV_PER_A3_TO_GPA, VOIGT

SCALES = tuple(np.linspace(0.94, 1.06, 9))
"""Volumes of the equation of state relative to the teacher's relaxed one; about ±2 % in length."""

STRAIN = 0.005
DISPLACEMENT = 0.01
"""Å, of phonons."""

PHONON_WIDTHS = (9.0, 8.1)
"""Å of supercells for force constants; the second one where only that has all points of :func:`list_points`."""

PHONON_ATOMS = 150
"""Of supercells for force constants, at most."""


@dataclass
class Crystal:
    """A crystal with the relaxed unit cell of each side."""

    material: Material
    teacher: Side
    student: Side
    _relaxed: dict[str, ase.Atoms] = field(default_factory=dict)

    @property
    def relaxed(self) -> bool:
        """Whether the cells of both sides are known."""
        return len(self._relaxed) == 2

    def relax(self, side: Side) -> ase.Atoms:
        """The unit cell relaxed by ``side``, without calculator."""
        if side.role not in self._relaxed:
            atoms = side.attach(self.material.unit)
            relax_cell(atoms)
            atoms.calc = None
            self._relaxed[side.role] = atoms
        return self._relaxed[side.role].copy()

    def find_symmetries(self) -> dict[str, tuple[str, str]] | None:
        """Space groups of the relaxed cell of each side, at both tolerances of :data:`WITHIN`; None if unknown."""
        found = {}
        for role, atoms in sorted(self._relaxed.items(), reverse=True):
            tight, loose = (find_space_group(atoms, tolerance) for tolerance in WITHIN)
            if tight is not None and loose is not None:
                found[role] = (tight, loose)
        return found or None


def measure_eos(crystal: Crystal) -> EosItem:
    """Energy of both sides over the same volumes, positions relaxed at each."""
    start = crystal.relax(crystal.teacher)
    n_atoms = len(start)
    energies: dict[str, list[float]] = {"teacher": [], "student": []}
    for scale in SCALES:
        for side in (crystal.teacher, crystal.student):
            image = start.copy()
            image.set_cell(start.cell * scale ** (1.0 / 3.0), scale_atoms=True)
            image = side.attach(image)
            relax_positions(image)
            energies[side.role].append(image.get_potential_energy() / n_atoms)
    teacher, student = (np.array(energies[role]) for role in ("teacher", "student"))
    return EosItem(
        title="Equation of state",
        description=f"Energy at {len(SCALES)} volumes, {SCALES[0]:g} to {SCALES[-1]:g} of the teacher's relaxed one, "
        "positions relaxed at each; Birch-Murnaghan fit of third order",
        volumes=tuple(scale * start.get_volume() / n_atoms for scale in SCALES),
        teacher=tuple(teacher - teacher.min()),
        student=tuple(student - student.min()),
    )


def measure_elastic(crystal: Crystal) -> ElasticItem:
    """Stress under six strains of both signs, positions relaxed, at each side's own relaxed cell."""
    matrices = {}
    for side in (crystal.teacher, crystal.student):
        start = crystal.relax(side)
        columns = []
        for a, b in VOIGT:
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * STRAIN
            strain[b, a] += 0.5 * STRAIN
            stresses = [_measure_stress(side, start, sign * strain) for sign in (1.0, -1.0)]
            # Voigt's shear strain is twice the tensor's component, STRAIN for each of the six
            columns.append((stresses[0] - stresses[1]) / (2.0 * STRAIN))
        matrix = np.array(columns).T
        matrices[side.role] = 0.5 * (matrix + matrix.T) * EV_PER_A3_TO_GPA
    standard = crystal.material.cell.tolerance is not None
    axes = "the standard axes of its space group (spglib)" if standard else "those of the structure"
    return ElasticItem(
        title="Elastic constants",
        description=f"Stress under six strains of ±{100 * STRAIN:g} %, positions relaxed, at each side's own relaxed "
        f"cell; axes are {axes}",
        cubic=is_cubic(matrices["teacher"]),
        teacher=tuple(map(tuple, matrices["teacher"].tolist())),
        student=tuple(map(tuple, matrices["student"].tolist())),
    )


def _measure_stress(side: Side, start: ase.Atoms, strain: np.ndarray) -> np.ndarray:
    image = start.copy()
    image.set_cell(start.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    image = side.attach(image)
    relax_positions(image, fmax=0.002)
    stress: np.ndarray = image.get_stress()
    return stress


def is_cubic(matrix: np.ndarray, tolerance: float = 0.03) -> bool:
    """Whether a stiffness matrix has the form of a cubic crystal along its axes, within a share of C11."""
    off = [matrix[a, b] for a in range(3) for b in range(3) if a != b]
    rest = [*matrix[:3, 3:].ravel(), matrix[3, 4], matrix[3, 5], matrix[4, 5]]
    spread = max(np.ptp(np.diag(matrix)[:3]), np.ptp(np.diag(matrix)[3:]), np.ptp(off))
    return bool(max(spread, np.abs(rest).max()) <= tolerance * abs(matrix[0, 0]))


def make_path(unit: ase.Atoms, n_points: int = 0) -> Any:
    """The standard path of the lattice, ASE's."""
    return unit.cell.bandpath(npoints=n_points, eps=1e-2)


def list_points(path: Any) -> dict[str, np.ndarray]:
    """Wave vectors that a path names, in units of the reciprocal cell."""
    names = dict.fromkeys(name for part in parse_path_string(path.path) for name in part)
    return {_show_point(name): path.special_points[name] for name in names}


def _show_point(name: object) -> str:
    return str(name).replace("G", "Γ")


def build_phonon_cell(unit: ase.Atoms) -> SampleCell:
    """Supercell for force constants: :data:`PHONON_WIDTHS` wide, at most :data:`PHONON_ATOMS` atoms.

    Frequencies are exact where a wave fits into it, and interpolated elsewhere: it is chosen so that those points of
    the path fit whose components are halves or thirds, where there are enough atoms for that.
    """
    points = np.array(list(list_points(make_path(unit)).values()))
    simple = np.abs(6.0 * points - np.rint(6.0 * points)) < 0.01
    wanted = points[simple.all(axis=1)]
    cells = [build_supercell(unit, width, PHONON_ATOMS, points=wanted) for width in PHONON_WIDTHS]
    complete = (
        cell
        for cell, width in zip(cells, PHONON_WIDTHS, strict=True)
        if cell.width >= width - 1e-6 and find_commensurate(np.array(cell.repeats), wanted).all()
    )
    return next(complete, cells[0])


def measure_phonons(crystal: Crystal) -> PhononItem:
    """Bands of both sides along the standard path of the lattice, from supercells of the same kind."""
    start = crystal.relax(crystal.teacher)
    path = make_path(start, 90)
    x, ticks, names = path.get_linear_kpoint_axis()
    length = float(x[-1])
    supercell = build_phonon_cell(start)
    matrix = np.array(supercell.repeats)
    bands = {}
    for side in (crystal.teacher, crystal.student):
        bands[side.role] = _compute_bands(side, crystal.relax(side), matrix, path.kpts)
    points = list_points(path)
    fits = find_commensurate(matrix, np.array(list(points.values())))
    return PhononItem(
        title="Phonons",
        description=f"Finite displacements of {DISPLACEMENT:g} Å in a supercell of {len(supercell.atoms)} atoms "
        "(phonopy), at each side's own relaxed cell; without the splitting of longitudinal modes at Γ by charges",
        path=tuple((x / length).tolist()),
        marks=tuple((float(t / length), _show_point(n)) for t, n in zip(ticks, names, strict=True)),
        interpolated=tuple(name for name, fit in zip(points, fits, strict=True) if not fit),
        teacher=tuple(map(tuple, bands["teacher"].tolist())),
        student=tuple(map(tuple, bands["student"].tolist())),
    )


def import_phonopy() -> Any:
    """The package phonopy.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        import phonopy
    except ImportError as error:
        raise MissingDependencyError(
            "phonopy is not installed; pip install 'fastff[phonons]'"
        ) from error
    return phonopy


def _compute_bands(side: Side, unit: ase.Atoms, matrix: np.ndarray, kpts: np.ndarray) -> np.ndarray:
    """Frequencies in THz, (n_q, n_bands); rows of ``matrix`` are the supercell's vectors."""
    phonopy = import_phonopy()
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=unit.get_chemical_symbols(),
        cell=unit.cell.array,
        scaled_positions=unit.get_scaled_positions(),
    )
    # phonopy's matrix has the supercell's vectors as columns
    phonon = phonopy.Phonopy(
        cell, supercell_matrix=matrix.T, primitive_matrix=np.eye(3), symprec=1e-3, log_level=0
    )
    phonon.generate_displacements(distance=DISPLACEMENT)
    images = [
        ase.Atoms(s.symbols, scaled_positions=s.scaled_positions, cell=s.cell, pbc=True)
        for s in phonon.supercells_with_displacements
    ]
    phonon.forces = np.array([labels.forces for image in images for labels in side.label([image])])
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    phonon.run_qpoints(kpts)
    values = phonon.qpoints.frequencies
    frequencies: np.ndarray = np.sort(np.asarray(values), axis=1)
    return frequencies


def measure_vacancies(crystal: Crystal) -> VacancyItem:
    """Energies of a supercell with and without one atom of each element, positions relaxed at constant cell."""
    formula = crystal.material.formula
    found: dict[str, Any] = {}
    for side in (crystal.teacher, crystal.student):
        perfect = build_vacancy_cell(crystal.relax(side))
        image = side.attach(perfect)
        found[f"{side.role}_perfect"] = float(image.get_potential_energy())
        vacant = {}
        for symbol in formula:
            hole = perfect.copy()
            del hole[hole.get_chemical_symbols().index(symbol)]
            hole = side.attach(hole)
            relax_positions(hole, fmax=0.03, steps=60)
            vacant[symbol] = float(hole.get_potential_energy())
        found[f"{side.role}_vacant"] = vacant
    kinds = (
        "One vacancy"
        if len(formula) == 1
        else "One vacancy of each element, each in a cell of its own"
    )
    return VacancyItem(
        title="Vacancies",
        description=f"{kinds}, in a supercell of {len(perfect)} atoms at each side's own relaxed cell, positions "
        "relaxed to 0.03 eV/Å; neutral",
        formula=formula,
        n_atoms=len(perfect),
        **found,
    )


def build_vacancy_cell(unit: ase.Atoms) -> ase.Atoms:
    """Supercell 7 Å wide of at most 72 atoms."""
    cell = build_supercell(unit, 7.0, 72).atoms
    if len(cell) < 8:
        raise PropertyError(f"a supercell of {len(cell)} atoms is too small for a vacancy")
    return cell
