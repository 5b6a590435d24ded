"""Whole evaluations by the fused kernels, in Triton's interpreter; inputs that are empty, near, or no numbers.

Run by ``test_interpreter.py`` in the process of ``interpreted_fused.py``, which holds each kernel by itself.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastff.errors import DataError
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.cases import add_reverse, build_lattice, draw_weights
from fastff.kernels.moment_potential.layout import NeighborMatrix

if not dispatch.is_interpreted():
    pytest.skip("runs in a process of its own, see test_interpreter.py", allow_module_level=True)

from fastff.kernels.moment_potential import moment_potential
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.reference import evaluate_reference
from fastff.kernels.moment_potential.workspace import Options

from .fused_systems import compare, make_system, make_weights

SCATTERS = ("fixed", "store", "float")


@pytest.mark.parametrize(
    ("scatter", "n_hops", "width", "hidden"),
    [
        ("fixed", 2, 16, 64),
        ("store", 3, 16, 64),
        ("fixed", 4, 16, 64),
        ("float", 2, 16, 64),
        ("fixed", 3, 64, 64),
        ("fixed", 2, 64, 128),
    ],
)
def test_evaluation_with_directed_messages(scatter, n_hops, width, hidden):
    system = build_lattice("Cu", 1, 3.61, "cpu", rattle=0.1, seed=2)
    system.species.copy_(torch.arange(4) % 2)
    matrix = add_reverse(system.matrix) if scatter == "store" else system.matrix
    sizes = {"n_channels": width, "n_mixed": width, "hidden": (hidden, hidden), "message_degree": 1}
    weights = draw_weights(n_hops, 2, system, **sizes)
    compare(system, matrix, weights, Options(scatter=scatter))


@pytest.mark.parametrize(("scatter", "n_hops", "degree"), [("fixed", 3, 1), ("store", 1, 0)])
def test_evaluation_of_near_atoms(scatter, n_hops, degree):
    system = build_lattice("Cu", 1, 3.61, "cpu", rattle=0.1, seed=2)
    system.species.copy_(torch.arange(4) % 2)
    matrix = add_reverse(system.matrix) if scatter == "store" else system.matrix
    weights = draw_weights(n_hops, 2, system, message_degree=degree, inner=3.2)
    found = compare(system, matrix, weights, Options(scatter=scatter))
    other = evaluate_reference(
        weights._replace(inner=None), system.positions, system.species, matrix, system.translations
    )
    assert float((found.forces - other.forces).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("scatter", "n_hops", "n_species"),
    [("fixed", 2, 1), ("store", 1, 3), ("float", 1, 2), *((s, 3, 2) for s in SCATTERS)],
)
def test_evaluation(scatter, n_hops, n_species):
    n_atoms = 4
    system = build_lattice("Cu", 1, 3.61, "cpu", rattle=0.1, seed=2)
    system.species.copy_(torch.arange(n_atoms) % n_species)
    matrix = add_reverse(system.matrix) if scatter == "store" else system.matrix
    compare(system, matrix, draw_weights(n_hops, n_species, system), Options(scatter=scatter))


@pytest.mark.parametrize(("n_hops", "n_atoms"), [(2, 1), (2, 3), (1, 5), (3, 1), (3, 3)])
def test_clusters(n_hops, n_atoms):
    """One atom has no neighbors but images of others, which are left out; rows have different lengths."""
    system = make_system(n_atoms=n_atoms)
    compare(system, system.matrix, make_weights(n_hops), Options(with_virial=False))


def test_no_edges():
    system = make_system(n_atoms=3)
    matrix = dataclasses.replace(system.matrix, counts=torch.zeros_like(system.matrix.counts))
    found = compare(system, matrix, make_weights(2), Options())
    assert (found.forces == 0).all()


def test_no_atoms():
    system = make_system(n_atoms=1)
    empty = NeighborMatrix(
        system.matrix.entries[:0], system.matrix.counts[:0], system.matrix.translations, 5
    )
    potential = FusedPotential(make_weights(2), "cpu")
    found = potential.evaluate(system.positions[:0], system.species[:0], empty)
    assert float(found.energy) == 0
    assert found.forces.shape == (0, 3)


def test_op_takes_the_kernels_and_the_definition():
    system, weights = make_system(n_atoms=3), make_weights(1)
    found = {}
    for backend in ("triton", "torch"):
        with dispatch.use(backend):
            arguments = (system.positions, system.species, system.cell, system.matrix)
            found[backend] = moment_potential(weights, *arguments)
        assert dispatch._last_calls["moment_potential"][0] == backend
    torch.testing.assert_close(found["triton"].forces, found["torch"].forces, rtol=0, atol=5e-5)
    torch.testing.assert_close(found["triton"].virial, found["torch"].virial, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["entries", "counts", "translations"])
def test_strided_parts_of_a_matrix_are_refused(name):
    """Kernels read rows one after another; what lies beyond a strided tensor is not theirs."""
    system = make_system(n_atoms=3)
    part = getattr(system.matrix, name)
    strided = torch.stack([part, part], dim=-1)[..., 0]
    matrix = dataclasses.replace(system.matrix, **{name: strided})
    potential = FusedPotential(make_weights(1), "cpu")
    with pytest.raises(DataError, match=f"{name} are not contiguous"):
        potential.evaluate(system.positions, system.species, matrix)


def evaluate_both(weights, positions, species, cell, matrix):
    """What the kernels and the definition say."""
    found = []
    for backend in ("triton", "torch"):
        with dispatch.use(backend):
            one = moment_potential(weights, positions, species, cell, matrix)
        found.append(type(one)(*(part.clone() for part in one)))
    return found


@pytest.mark.parametrize("n_hops", [1, 3])
@pytest.mark.parametrize("kind", ["no atoms", "no slots"])
def test_both_take_nothing(kind, n_hops):
    system = make_system(n_atoms=3)
    matrix, n = system.matrix, 0 if kind == "no atoms" else 3
    entries = matrix.entries[:n] if n == 0 else matrix.entries[:, :0].contiguous()
    empty = dataclasses.replace(matrix, entries=entries, counts=torch.zeros_like(matrix.counts[:n]))
    kernels, definition = evaluate_both(
        make_weights(n_hops), system.positions[:n], system.species[:n], system.cell, empty
    )
    for one, other in zip(kernels, definition, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("change", ["float32", "strided", "int64", "far", "autocast"])
def test_both_take_other_forms(change):
    """Also positions a metre away, between which float64 still tells 2^-20 Å."""
    system, weights = make_system(n_atoms=3), make_weights(2)
    positions, species = (system.positions * 2**20).round() / 2**20, system.species
    given = [system.cell, system.matrix]
    expected = evaluate_reference(weights, positions, species, given[1], system.translations)
    positions, species = {
        "float32": (positions.float(), species),
        "strided": (positions.T.contiguous().T, torch.stack([species, species], 1)[:, 0]),
        "int64": (positions, species.long()),
        "far": (positions + 1e10, species),
        "autocast": (positions, species),
    }[change]
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        for found in evaluate_both(weights, positions, species, *given):
            torch.testing.assert_close(found.forces.double(), expected.forces, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scatter", SCATTERS)
@pytest.mark.parametrize("value", [float("nan"), 1e13])
def test_atoms_without_a_place_are_void(scatter, value):
    """Energy and forces of the atom, total energy and virial are NaN, not those of some other place."""
    system = build_lattice("Cu", 1, 3.61, "cpu", rattle=0.1, seed=2)
    matrix = add_reverse(system.matrix) if scatter == "store" else system.matrix
    positions = system.positions.clone()
    positions[2, 1] = value
    potential = FusedPotential(make_weights(2), "cpu", Options(scatter=scatter))
    for _ in range(2):
        found = potential.evaluate(positions, system.species, matrix)
        assert found.energies.isnan().tolist() == [False, False, True, False]
        assert found.forces[2].isnan().all()
        assert found.energy.isnan()
        assert found.virial.isnan().all()
        assert potential.allocate(*matrix.entries.shape).terms[2, :6].isnan().all()
    found = potential.evaluate(system.positions, system.species, matrix)
    assert all(part.isfinite().all() for part in found), "the next evaluation knows nothing of it"


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("n_hops", [1, 2])
def test_forces_beyond_fixed_point_are_void(distance, n_hops):
    """Atoms that coincide, or nearly: a force that overflows comes out as NaN, not as what is left of it."""
    system = make_system(n_atoms=4)
    positions = system.positions.clone()
    positions[1] = positions[0]
    positions[1, 0] += distance
    with dispatch.use("triton"):
        found = moment_potential(
            make_weights(n_hops), positions, system.species, system.cell, system.matrix
        )
    assert found.energies[:2].isnan().all()
    assert found.forces[:2].isnan().all()
    assert found.energy.isnan()
    assert found.virial.isnan().all()
    positions[1, 0] += 4e-3 - distance
    kernels, definition = evaluate_both(
        make_weights(n_hops), positions, system.species, system.cell, system.matrix
    )
    assert float(definition.forces.abs().max()) > 1e8
    torch.testing.assert_close(kernels.forces, definition.forces, rtol=1e-3, atol=1e4)
