"""Systems, parameters and comparisons of the fused kernels' tests in Triton's interpreter. Not here: tests.

Buffers start as NaN (largest integer), so that anything read before it is written shows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fastff.kernels import candidates, tuning
from fastff.kernels.moment_potential.cases import System, build_lattice, draw_weights
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import NeighborMatrix, PotentialWeights
from fastff.kernels.moment_potential.reference import evaluate_reference
from fastff.kernels.moment_potential.workspace import Options

from .poison import poison

REACH = 4.4
TOLERANCE = 3e-6


def make_system(name: str = "NaCl", n_species: int = 2, n_atoms: int = 0) -> System:
    """A rattled crystal of one or eight cells, or its first atoms alone with the pairs among them."""
    repeats = 2 if n_atoms > 8 or n_atoms == 0 else 1
    system = build_lattice(name, repeats, REACH, "cpu", rattle=0.1, seed=2)
    system.species.copy_(torch.arange(len(system.species)) % n_species)
    return keep_atoms(system, n_atoms) if n_atoms else system


def keep_atoms(system: System, n_atoms: int) -> System:
    """The first atoms with the pairs among them: rows of different length."""
    matrix = system.matrix
    entries = torch.zeros_like(matrix.entries[:n_atoms])
    counts = torch.zeros_like(matrix.counts[:n_atoms])
    for atom in range(n_atoms):
        row = matrix.entries[atom, : matrix.counts[atom]]
        row = row[(row >> matrix.code_bits) < n_atoms]
        entries[atom, : len(row)] = row
        counts[atom] = len(row)
    kept = dataclasses.replace(matrix, entries=entries.contiguous(), counts=counts)
    return System(
        system.positions[:n_atoms].contiguous(), system.species[:n_atoms].contiguous(),
        system.cell, kept, system.translations,
    )  # fmt: skip


def make_weights(n_hops: int, n_species: int = 2, **sizes: Any) -> PotentialWeights:
    return draw_weights(n_hops, n_species, make_system(n_species=n_species, n_atoms=8), **sizes)


def check(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    error = float((found.double() - expected).norm()) / max(float(expected.norm()), 1e-3)
    assert error < tolerance, f"relative error {error:.1e}"


def prepare(n_hops: int, n_atoms: int, n_species: int = 2, **sizes: Any):
    system = make_system(n_species=n_species, n_atoms=n_atoms)
    potential = FusedPotential(make_weights(n_hops, n_species, **sizes), "cpu")
    space = potential.allocate(*system.matrix.entries.shape)
    poison(space)
    potential.launch_place(space, system.positions, system.species)
    return system, potential, space


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def compare(system: System, matrix: NeighborMatrix, weights: PotentialWeights, options: Options):
    """Two runs of the same bits, equal to the definition."""
    expected = evaluate_reference(
        weights, system.positions, system.species, matrix, system.translations
    )
    potential = FusedPotential(weights, "cpu", options)
    runs = []
    for _ in range(2):
        poison(potential.allocate(*matrix.entries.shape))
        found = potential.evaluate(system.positions, system.species, matrix)
        runs.append([part.clone() for part in found])
    if options.scatter != "float":
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True) if not b.isnan().any())
    size = max(float(expected.forces.abs().max()), 1.0)
    single = evaluate_reference(
        convert(weights, torch.float32),
        system.positions,
        system.species,
        matrix,
        system.translations,
    )
    floor = float((single.forces - expected.forces).abs().max())
    assert float((found.forces - expected.forces).abs().max()) < 6.0 * floor + 1e-5 * size
    torch.testing.assert_close(found.energies, expected.energies, rtol=0, atol=2e-4)
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-3)
    if options.with_virial:
        torch.testing.assert_close(found.virial, expected.virial, rtol=0, atol=1e-3 * size)
    return found


def convert(weights: PotentialWeights, dtype: torch.dtype) -> PotentialWeights:
    """Parameters in another dtype."""
    blocks = tuple(type(b)(*(part.to(dtype) for part in b)) for b in weights.blocks)
    radial, factors = weights.radial.to(dtype), weights.pair_factors.to(dtype)
    return weights._replace(radial=radial, pair_factors=factors, blocks=blocks)


def check_candidates(workload, block):
    """Twice every candidate of another size of ``block``, and the definition in float32, against float64."""
    exact = workload.reference()
    for config in {c.blocks[block]: c for c in candidates.list_candidates(workload)}.values():
        with tuning.override(workload.space.kernel, config):
            for _ in range(2):
                assert tuning.find_relative_error(workload.run(), exact) < workload.tolerance
    assert workload.definition is not None
    single = workload.definition(torch.float32)()
    assert tuning.find_relative_error(single, exact) < workload.tolerance
