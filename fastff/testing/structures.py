"""Small structures for the physics gate, made of a model's own elements.

Here: disordered named structures, lattices, pairs. Not here: structures of users (:mod:`fastff.structures`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols, covalent_radii

NEAR = 0.75
"""Largest distance of neighbours in units of the cut-off."""


def make_structures(
    elements: Sequence[int], seed: int = 0, cutoff: float | None = None
) -> dict[str, Atoms]:
    """Small disordered structures that hold every element: molecule, bulk, slab, and a skewed one-atom cell.

    With the ``cutoff`` of a model, in Å, neighbours see each other, however large the elements are.
    """
    rng = np.random.default_rng(seed)
    spacing = measure_spacing(elements, cutoff)
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


def make_lattices(number: int, cutoff: float | None = None) -> tuple[Atoms, Atoms]:
    """One fcc crystal of an element in its primitive and in its cubic cell, one and four atoms."""
    symbol, edge = chemical_symbols[number], float(np.sqrt(2.0) * measure_spacing([number], cutoff))
    return bulk(symbol, "fcc", a=edge), bulk(symbol, "fcc", a=edge, cubic=True)


def measure_spacing(elements: Sequence[int], cutoff: float | None = None) -> float:
    """Distance, Å, of neighbours in the structures made here: 1.25 times the diameter of the largest element.

    But at most :data:`NEAR` of the cut-off: caesium has 6.1 Å, and tests of structures without forces prove nothing.

    With the mean diameter two oxygen atoms beside hydrogen would be nearer than a bond, where trained students see
    forces of 75 eV/Å and what their rounding errors are says nothing of a material.
    """
    spacing = 2.5 * float(np.max(covalent_radii[list(elements)]))
    return spacing if cutoff is None else min(spacing, NEAR * cutoff)


def list_pairs(elements: Sequence[int]) -> list[tuple[int, int]]:
    """Every pair of elements, once."""
    return list(itertools.combinations_with_replacement(elements, 2))
