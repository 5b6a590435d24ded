"""Physics invariants of a student, measured.

Here: one function per invariant, each giving the largest violation found; :func:`check_student`, which runs them all
on a float64 copy; structures to run them on. Not here: accuracy, dynamics, model files.

The invariants are those of the model tests of NequIP and of ASE's force checks: derivatives by finite differences,
symmetries, extensivity, smoothness.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import make_supercell
from ase.data import covalent_radii

from fastff.graph import batch_graphs
from fastff.models import Prediction, Student
from fastff.neighbors import atoms_to_graph
from fastff.units import VOIGT

_STENCIL = (2.0, 1.0, -1.0, -2.0)
"""Steps of a fourth-order central difference."""


@dataclass(frozen=True)
class Check:
    """One invariant: the largest violation found and the largest allowed, in ``unit``."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the violation is within the limit; nan is not."""
        return self.value <= self.limit


@dataclass(frozen=True)
class CheckReport:
    """Outcome of :func:`check_student`; as text, one line per check."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able record for a model's header; ``passed`` with every check."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        rows = [
            f"{'ok  ' if c.passed else 'FAIL'} {c.name:<34} {c.value:9.2e} (limit {c.limit:.0e} {c.unit})"
            for c in self.checks
        ]
        return "\n".join(rows)


def make_structures(elements: Sequence[int], seed: int = 0) -> dict[str, Atoms]:
    """Small disordered structures that hold every element: molecule, bulk, slab, and a skewed one-atom cell."""
    rng = np.random.default_rng(seed)
    spacing = 2.2 * float(np.mean(covalent_radii[list(elements)]))
    edge = spacing * np.sqrt(2.0)
    n_layers = -(-len(elements) // 4)
    square = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    sites = edge * np.concatenate([square + np.array([0, 0, k]) for k in range(n_layers)])
    numbers = np.resize(elements, len(sites))
    cell = edge * np.array([[1.02, 0.1, 0.0], [0.0, 0.99, -0.07], [0.05, 0.0, 1.03 * n_layers]])
    positions = sites + rng.normal(scale=0.04 * spacing, size=sites.shape)
    flat = cell.copy()
    flat[2] = 0.0
    skewed = spacing * np.array([[1.0, 0.0, 0.1], [0.45, 1.1, 0.0], [0.3, -0.4, 1.2]])
    return {
        "molecule": Atoms(numbers, positions),
        "bulk": Atoms(numbers, positions, cell=cell, pbc=True),
        "slab": Atoms(numbers, positions + 7.0, cell=flat, pbc=(True, True, False)),
        "one-atom": Atoms([elements[0]], [[0.3, 0.2, 0.1]], cell=skewed, pbc=True),
    }


def evaluate(model: Student, structures: Sequence[Atoms]) -> Prediction:
    """Prediction for a batch, without gradients."""
    graphs = [atoms_to_graph(atoms, model.cutoff) for atoms in structures]
    with torch.no_grad():
        return model(batch_graphs(graphs).to(model.device))


def measure_forces(model: Student, atoms: Atoms, step: float = 5e-4) -> float:
    """Largest difference, eV/Å, of the forces from fourth-order differences of the energy."""
    moved = []
    for index, factor in itertools.product(np.ndindex(len(atoms), 3), _STENCIL):
        other = atoms.copy()
        other.positions[index] += factor * step
        moved.append(other)
    slope = _differentiate(evaluate(model, moved).energy, step)
    return _largest(slope.view(-1, 3) + evaluate(model, [atoms]).forces)


def measure_stress(model: Student, atoms: Atoms, step: float = 5e-4) -> float:
    """Largest difference, eV/Å^3, of the six stress components from differences in the strain.

    Non-periodic directions are strained too; the volume is that of the completed cell.
    """
    strained = []
    for (a, b), factor in itertools.product(VOIGT, _STENCIL):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5 * factor * step
        strain[b, a] += 0.5 * factor * step
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=False)
        other.positions = atoms.positions @ (np.eye(3) + strain)
        strained.append(other)
    slope = _differentiate(evaluate(model, strained).energy, step)
    volume = torch.linalg.det(atoms_to_graph(atoms, model.cutoff).cell[0]).abs().to(slope.device)
    stress = evaluate(model, [atoms]).stress[0]
    components = torch.stack([stress[a, b] for a, b in VOIGT])
    return _largest(slope / volume - components)


def measure_rotation(model: Student, atoms: Atoms, n_rotations: int = 8, seed: int = 0) -> float:
    """Largest change, eV/atom or eV/Å, of energy and rotated-back forces under rotations with inversion."""
    drawn = np.random.default_rng(seed).normal(size=(n_rotations, 3, 3))
    proper = [q * np.linalg.det(q) for q in np.linalg.qr(drawn).Q]
    matrices = np.array([*proper, *[-q for q in proper], -np.eye(3)])
    turned = []
    for matrix in matrices:
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ matrix.T, scale_atoms=False)
        other.positions = atoms.positions @ matrix.T
        turned.append(other)
    one, many = evaluate(model, [atoms]), evaluate(model, turned)
    back = torch.as_tensor(matrices).to(many.forces)
    forces = many.forces.view(len(turned), len(atoms), 3) @ back
    return max(
        _largest(many.energy - one.energy) / len(atoms),
        _largest(forces - one.forces),
        _largest(back.transpose(1, 2) @ many.stress @ back - one.stress)
        if atoms.pbc.all()
        else 0.0,
    )


def measure_translation(model: Student, atoms: Atoms, seed: int = 0) -> float:
    """Largest change, eV/atom or eV/Å, when all atoms move by 40 Å or each by lattice vectors of its own."""
    rng = np.random.default_rng(seed)
    far, images = atoms.copy(), atoms.copy()
    far.positions += 40.0 * np.array([0.6, -0.64, 0.48])
    shifts = rng.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
    images.positions += shifts @ atoms.cell.array
    return _compare(model, atoms, [far, images], np.arange(len(atoms)))


def measure_permutation(model: Student, atoms: Atoms, seed: int = 0) -> float:
    """Largest change, eV/atom or eV/Å, when the atoms are listed in another order."""
    order = np.random.default_rng(seed).permutation(len(atoms))
    return _compare(model, atoms, [atoms[order]], order)


def measure_supercell(model: Student, atoms: Atoms) -> float:
    """Difference, eV/atom or eV/Å, between a cell and its repetition, twice along each periodic direction."""
    repeats = np.where(atoms.pbc, 2, 1)
    large = make_supercell(atoms, np.diag(repeats), order="atom-major")
    one, many = evaluate(model, [atoms]), evaluate(model, [large])
    n_images = int(repeats.prod())
    forces = many.forces - one.forces.repeat_interleave(n_images, dim=0)
    return max(_largest(many.energy / n_images - one.energy) / len(atoms), _largest(forces))


def measure_separation(model: Student, first: Atoms, second: Atoms) -> float:
    """Violation, eV or eV/Å, of ``E(A + B) = E(A) + E(B)`` for fragments one cut-off apart."""
    second = second.copy()
    gap = first.positions[:, 0].max() - second.positions[:, 0].min() + model.cutoff + 1e-6
    second.positions[:, 0] += gap
    parts = [Atoms(part.numbers, part.positions) for part in (first, second)]
    one, both = evaluate(model, parts), evaluate(model, [parts[0] + parts[1]])
    return max(_largest(both.energy - one.energy.sum()), _largest(both.forces - one.forces))


def measure_isolated(model: Student) -> float:
    """Largest deviation, eV or eV/Å, of isolated atoms from the composition energies and from zero force."""
    prediction = evaluate(model, [Atoms([z], [[0.1, 0.2, 0.3]]) for z in model.elements])
    return max(
        _largest(prediction.energy - model.composition_energies), _largest(prediction.forces)
    )


def measure_cutoff(model: Student, width: float = 1e-5) -> float:
    """Largest jump, eV or eV/Å, of energy and forces as a pair of a triangle crosses the cut-off."""
    jumps = [0.0]
    for z in model.elements:
        side = 2.0 * covalent_radii[z]
        frames = [
            Atoms([z] * 3, [[0, 0, 0], [0.1, side, 0], [model.cutoff + shift, 0, 0]])
            for shift in (-width, 0.0, width)
        ]
        found = evaluate(model, frames)
        forces = found.forces.view(3, 3, 3)
        jumps += [_largest(found.energy - found.energy[1]), _largest(forces[0] - forces[2])]
    return max(jumps)


def measure_batching(model: Student, structures: Sequence[Atoms]) -> float:
    """Largest change, eV/atom, eV/Å or eV/Å^3, when structures are evaluated together."""
    together = evaluate(model, structures)
    alone = [evaluate(model, [atoms]) for atoms in structures]
    sizes = torch.tensor([len(atoms) for atoms in structures]).to(together.energy)
    return max(
        _largest((together.energy - torch.cat([p.energy for p in alone])) / sizes),
        _largest(together.forces - torch.cat([p.forces for p in alone])),
        _largest(together.stress - torch.cat([p.stress for p in alone])),
    )


def measure_momentum(model: Student, atoms: Atoms) -> float:
    """Largest component of the total force, eV/Å, and, without periodicity, of the total torque, eV."""
    forces = evaluate(model, [atoms]).forces.double().cpu().numpy()
    torque = np.cross(atoms.positions, forces).sum(axis=0) if not atoms.pbc.any() else np.zeros(3)
    return float(max(np.abs(forces.sum(axis=0)).max(), np.abs(torque).max()))


def measure_precision(model: Student, atoms: Atoms) -> float:
    """Root mean square difference, eV/Å, of the forces of float32 and float64 copies of a model."""
    single, double = copy.deepcopy(model).float(), copy.deepcopy(model).double()
    change = evaluate(single, [atoms]).forces.double() - evaluate(double, [atoms]).forces
    return float(change.square().mean().sqrt())


def measure_repulsion(model: Student, n_points: int = 60) -> float:
    """Largest fall of a dimer's energy, eV, on approach from half the sum of covalent radii to 0.3 Å."""
    falls = [0.0]
    for pair in itertools.combinations_with_replacement(model.elements, 2):
        start = max(0.5 * float(covalent_radii[list(pair)].sum()), 0.35)
        distances = np.linspace(start, 0.3, n_points)
        frames = [Atoms(pair, [[0, 0, 0], [0, 0, d]]) for d in distances]
        falls.append(float(-evaluate(model, frames).energy.diff().min()))
    return max(falls)


def check_student(
    model: Student, structures: Mapping[str, Atoms] | None = None, *, seed: int = 0
) -> CheckReport:
    """Measure every invariant on a float64 copy of ``model``.

    Parameters
    ----------
    model : Student
        Not modified.
    structures : mapping of str to ase.Atoms, optional
        Structures that the model knows, of a few atoms each; by default :func:`make_structures`.

    Returns
    -------
    CheckReport
        Also when checks fail; ``report.passed`` and ``print(report)`` tell.
    """
    exact = copy.deepcopy(model).double()
    structures = structures or make_structures(model.elements, seed)
    checks = []
    for name, atoms in structures.items():
        checks += [
            Check(f"forces, {name}", measure_forces(exact, atoms), 1e-6, "eV/Å"),
            Check(f"stress, {name}", measure_stress(exact, atoms), 1e-6, "eV/Å^3"),
            Check(f"rotation, {name}", measure_rotation(exact, atoms, seed=seed), 1e-9, "eV"),
            Check(f"translation, {name}", measure_translation(exact, atoms), 1e-9, "eV"),
            Check(f"permutation, {name}", measure_permutation(exact, atoms), 1e-9, "eV"),
            Check(f"supercell, {name}", measure_supercell(exact, atoms), 1e-9, "eV"),
            Check(f"momentum, {name}", measure_momentum(exact, atoms), 1e-9, "eV/Å"),
            Check(f"float32, {name}", measure_precision(model, atoms), 1e-4, "eV/Å"),
        ]
    every = list(structures.values())
    checks += [
        Check("separation", measure_separation(exact, every[0], every[-1]), 1e-9, "eV"),
        Check("isolated atoms", measure_isolated(exact), 1e-9, "eV"),
        Check("cut-off", measure_cutoff(exact), 1e-6, "eV"),
        Check("batch", measure_batching(exact, every), 1e-9, "eV"),
        Check("repulsion", measure_repulsion(exact), 0.0, "eV"),
    ]
    return CheckReport(tuple(checks))


def _compare(model: Student, atoms: Atoms, others: list[Atoms], order: np.ndarray) -> float:
    one, many = evaluate(model, [atoms]), evaluate(model, others)
    forces = many.forces.view(len(others), len(atoms), 3) - one.forces[torch.as_tensor(order)]
    return max(_largest(many.energy - one.energy) / len(atoms), _largest(forces))


def _differentiate(energy: torch.Tensor, step: float) -> torch.Tensor:
    far, near, back, farther_back = energy.view(-1, 4).T
    return (8.0 * (near - back) - (far - farther_back)) / (12.0 * step)


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
