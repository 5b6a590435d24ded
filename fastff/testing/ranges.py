"""Range and independence: what atoms may see of each other, and structures of each other.

Here: separation, isolated atoms, the cut-off, the Verlet skin, batches, core repulsion, precision. Not here: limits
(:mod:`fastff.testing.gate`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols, covalent_radii

from fastff.models import Student
from fastff.neighbors import VerletCache, atoms_to_graph
from fastff.testing.structures import list_pairs
from fastff.testing.subject import Response, Subject, evaluate, make_subject, use_fixed_order
from fastff.testing.symmetries import largest

CLOSEST = 0.3
"""Å; distance down to which a pair must repel."""


def measure_separation(model: Subject | Student | Calculator, first: Atoms, second: Atoms) -> float:
    """Violation, eV or eV/Å, of ``E(A + B) = E(A) + E(B)`` for fragments one cut-off apart; nan without a cut-off."""
    subject = make_subject(model)
    if subject.cutoff is None:
        return float("nan")
    second = second.copy()
    gap = first.positions[:, 0].max() - second.positions[:, 0].min() + subject.cutoff + 1e-6
    second.positions[:, 0] += gap
    parts = [Atoms(part.numbers, part.positions) for part in (first, second)]
    one, both = subject.respond(parts), subject.respond([parts[0] + parts[1]])
    return largest(both.energy - one.energy.sum(), both.forces - one.forces)


def measure_isolated(model: Student) -> float:
    """Largest deviation, eV or eV/Å, of isolated atoms from the composition energies and from zero force."""
    found = make_subject(model).respond([Atoms([z], [[0.1, 0.2, 0.3]]) for z in model.elements])
    expected = model.composition_energies.double().cpu().numpy()
    return largest(found.energy - expected, found.forces)


def measure_cutoff(
    model: Subject | Student | Calculator, elements: Sequence[int], width: float = 1e-5
) -> float:
    """Largest jump, eV or eV/Å, of energy and forces as a pair of a triangle crosses the cut-off; nan without one."""
    subject = make_subject(model)
    if subject.cutoff is None:
        return float("nan")
    jumps = [0.0]
    for z in elements:
        side = 2.0 * covalent_radii[z]
        frames = [
            Atoms([z] * 3, [[0, 0, 0], [0.1, side, 0], [subject.cutoff + shift, 0, 0]])
            for shift in (-width, 0.0, width)
        ]
        found = subject.respond(frames)
        forces = found.forces.reshape(3, 3, 3)
        jumps += [largest(found.energy - found.energy[1]), largest(forces - forces[1])]
    return largest(*jumps)


@use_fixed_order()
def measure_skin(model: Student, atoms: Atoms, n_moves: int = 6, seed: int = 0) -> float:
    """Largest change, eV or eV/Å, when the neighbor list is kept with a skin while atoms and cell move."""
    rng = np.random.default_rng(seed)
    cache = VerletCache(model.cutoff, skin=1.0)
    moved, changes = atoms.copy(), [0.0]
    for _ in range(n_moves):
        moved.positions += rng.normal(scale=0.08, size=moved.positions.shape)
        moved.set_cell(moved.cell.array * (1.0 + rng.normal(scale=0.003)), scale_atoms=True)
        graph = atoms_to_graph(moved, model.cutoff, cache=cache).to(model.device)
        with torch.no_grad():
            kept = model(graph)
        fresh = evaluate(model, [moved])
        for one, other in ((kept.energy, fresh.energy), (kept.forces, fresh.forces)):
            changes.append(float((one - other).abs().max()))
    return largest(*changes)


def measure_batching(model: Student, structures: Sequence[Atoms]) -> float:
    """Largest change, eV/atom, eV/Å or eV/Å^3, when structures are evaluated together; nan if shapes differ."""
    together = evaluate(model, structures)
    alone = [evaluate(model, [atoms]) for atoms in structures]
    shapes = {(*p.energy.shape, *p.stress.shape) for p in alone}
    if shapes != {(1, 1, 3, 3)}:
        return float("nan")
    sizes = torch.tensor([len(atoms) for atoms in structures]).to(together.energy)
    changes = (
        (together.energy - torch.cat([p.energy for p in alone])) / sizes,
        together.forces - torch.cat([p.forces for p in alone]),
        together.stress - torch.cat([p.stress for p in alone]),
    )
    return largest(*(float(change.abs().max()) for change in changes))


@use_fixed_order()
def measure_crosstalk(model: Student, structures: Sequence[Atoms], seed: int = 0) -> float:
    """Largest change, eV or eV/Å, of all other structures of a batch when the atoms of one move."""
    moved = [atoms.copy() for atoms in structures]
    moved[0].positions += np.random.default_rng(seed).normal(
        scale=0.05, size=moved[0].positions.shape
    )
    before, after = evaluate(model, structures), evaluate(model, moved)
    n = len(structures[0])
    energy, forces = before.energy - after.energy, before.forces - after.forces
    return largest(float(energy[1:].abs().max()), float(forces[n:].abs().max()))


def measure_reuse(model: Subject | Calculator, structures: Sequence[Atoms]) -> float:
    """Largest change, eV or eV/Å, of a structure's results after the calculator was used on others."""
    subject = make_subject(model)
    first: list[Response] = [subject.respond([atoms]) for atoms in structures]
    other = structures[0].copy()
    other.positions[0] += 0.05
    subject.respond([other])
    again = [subject.respond([atoms]) for atoms in structures]
    changes = [0.0]
    for one, two in zip(first, again, strict=True):
        changes.append(largest(one.energy - two.energy, one.forces - two.forces))
    return largest(*changes)


def measure_precision(model: Student, atoms: Atoms) -> float:
    """Root mean square difference, eV/Å, of the forces of float32 and float64 copies of a model."""
    single, double = copy.deepcopy(model).float(), copy.deepcopy(model).double()
    change = evaluate(single, [atoms]).forces.double() - evaluate(double, [atoms]).forces
    return float(change.square().mean().sqrt())


def measure_repulsion(
    model: Subject | Student | Calculator, pair: tuple[int, int], n_points: int = 60
) -> float:
    """Largest fall of a dimer's energy, eV, on approach from half the sum of covalent radii to 0.3 Å.

    Of a student with ``inner_limit`` 0.65 that is where its core repulsion decides alone, but for H and He, whose half
    is nearly 0.3 Å.
    """
    start = max(0.5 * float(covalent_radii[list(pair)].sum()), CLOSEST + 0.05)
    distances = np.linspace(start, CLOSEST, n_points)
    frames = [Atoms(pair, [[0, 0, 0], [0, 0, d]]) for d in distances]
    falls = -np.diff(make_subject(model).respond(frames).energy)
    return max(0.0, float(falls.max())) if np.isfinite(falls).all() else float("nan")


def find_softest_pair(
    model: Subject | Student | Calculator, elements: Sequence[int]
) -> tuple[float, str]:
    """Largest fall of :func:`measure_repulsion` over all pairs of elements, eV, and that pair's name."""
    falls = [(measure_repulsion(model, pair), pair) for pair in list_pairs(elements)]
    worst, pair = max(falls, key=lambda fall: (np.isnan(fall[0]), fall[0]))
    return worst, "-".join(chemical_symbols[z] for z in pair)
