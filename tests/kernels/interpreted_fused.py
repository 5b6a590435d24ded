"""Each fused kernel against its own definition, and whole evaluations, in Triton's interpreter.

Run by ``test_interpreter.py`` in a process of its own, like ``interpreted.py``. Buffers start as NaN (largest integer),
so that anything read before it is written shows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from fastff.errors import DataError
from fastff.kernels import dispatch
from fastff.kernels.moment_potential.cases import System, add_reverse, build_lattice, draw_weights
from fastff.kernels.moment_potential.layout import NeighborMatrix, PotentialWeights

if not dispatch.is_interpreted():
    pytest.skip("runs in a process of its own, see test_interpreter.py", allow_module_level=True)

import triton
import triton.language as tl

from fastff.kernels import tuning
from fastff.kernels.moment_potential import definitions, moment_potential, workloads
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.reference import evaluate_reference
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.moments.messages import direct_messages, direct_messages_adjoint
from fastff.kernels.moments.reference import FROZEN_SHARE
from fastff.kernels.node_block.reference import build_cubic_table
from fastff.kernels.products import multiply
from fastff.report import kernel_steps, kernel_work

from .poison import poison

REACH = 4.4
SCALE = 2.0**32
TOLERANCE = 3e-6
SCATTERS = ("fixed", "store", "float")
HOPS = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
"""Hop, and degree of the messages that it reads."""


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


@pytest.mark.parametrize("n_atoms", [1, 5])
def test_place(n_atoms):
    system, _, space = prepare(1, n_atoms)
    found = space.sites[:, :3].double() * 2.0**-26
    assert float((found - system.positions).abs().max()) < 1e-8
    assert torch.equal(space.sites[:, 3], system.species)
    assert (space.accumulators == 0).all()


@pytest.mark.parametrize(("hop", "degree"), HOPS)
@pytest.mark.parametrize(("n_atoms", "width"), [(1, 16), (5, 16), (2, 32)])
def test_moments(hop, degree, n_atoms, width):
    sizes = {"n_channels": width, "n_mixed": width, "message_degree": degree}
    system, potential, space = prepare(hop + 1, n_atoms, **sizes)
    messages = draw(n_atoms, (degree + 1) ** 2 * width)
    if hop:
        space.messages[hop - 1].copy_(messages)
    potential.launch_moments(space, system.matrix, hop)
    expected = definitions.define_moments(
        space.sites, system.matrix, potential.packed, hop, messages
    )
    check(space.moments[hop], expected)


@pytest.mark.parametrize(("hop", "degree"), HOPS)
@pytest.mark.parametrize(("n_atoms", "width"), [(1, 16), (5, 16), (2, 32), (2, 64)])
def test_moments_adjoint(hop, degree, n_atoms, width):
    sizes = {"n_channels": width, "n_mixed": width, "message_degree": degree}
    system, potential, space = prepare(hop + 1, n_atoms, **sizes)
    messages = draw(n_atoms, (degree + 1) ** 2 * width)
    if hop:
        space.messages[hop - 1].copy_(messages)
        space.message_gradients[hop - 1].zero_()
    gradients = draw(n_atoms, 16, width)
    space.moments[hop].copy_(gradients)
    potential.launch_adjoint(space, system.matrix, hop)
    expected = definitions.define_adjoint(
        space.sites, system.matrix, potential.packed, hop, messages, gradients
    )
    if hop == 0 and potential.n_hops == 1:
        check(space.terms[:, :7], expected.terms)
    else:
        check(space.terms[:, :6], expected.terms[:, :6])
        check(space.message_gradients[hop - 1] / SCALE, expected.message_gradients)
    check(space.accumulators[:, :3] / SCALE, expected.forces)


@pytest.mark.parametrize(("hop", "degree"), HOPS)
@pytest.mark.parametrize("width", [16, 32, 64])
def test_sums_of_near_atoms(hop, degree, width):
    """Pairs below their inner distances, some so near that the basis is constant, beside others."""
    sizes = {"n_channels": width, "n_mixed": width, "message_degree": degree, "inner": 3.8}
    system, potential, space = prepare(hop + 1, 5, **sizes)
    distance = definitions.measure_edges(space.sites, system.matrix, 5.0)[0].norm(dim=-1)
    inner = potential.packed.core[:, 3]
    assert distance.min() < FROZEN_SHARE * inner.min() < inner.max() < distance.max()
    assert ((distance > FROZEN_SHARE * inner.max()) & (distance < inner.min())).any()
    messages, gradients = draw(5, (degree + 1) ** 2 * width), draw(5, 16, width)
    if hop:
        space.messages[hop - 1].copy_(messages)
        space.message_gradients[hop - 1].zero_()
    given = space.sites, system.matrix, potential.packed, hop, messages
    potential.launch_moments(space, system.matrix, hop)
    check(space.moments[hop], definitions.define_moments(*given))
    space.moments[hop].copy_(gradients)
    potential.launch_adjoint(space, system.matrix, hop)
    expected = definitions.define_adjoint(*given, gradients)
    check(space.terms[:, :6], expected.terms[:, :6])
    check(space.accumulators[:, :3] / SCALE, expected.forces)
    if hop:
        check(space.message_gradients[hop - 1] / SCALE, expected.message_gradients)


@pytest.mark.parametrize(("n_atoms", "channels", "mixed"), [(1, 16, 16), (37, 16, 16), (7, 16, 32)])
def test_invariants_and_pullback(n_atoms, channels, mixed):
    sizes = {"n_channels": channels, "n_mixed": mixed}
    potential = FusedPotential(make_weights(1, **sizes), "cpu")
    space = potential.allocate(n_atoms, 1)
    poison(space)
    moments, gradients = draw(n_atoms, 16, channels), draw(n_atoms, 8 * mixed)
    space.moments[0].copy_(moments)
    potential.launch_invariants(space, 0)
    mixing = potential.packed.blocks[0].mixing
    expected_mixed, expected = definitions.define_invariants(moments, mixing)
    check(space.mixed[0], expected_mixed)
    check(space.invariants[0], expected)
    kept = space.mixed[0].clone()
    space.invariants[0].copy_(gradients)
    potential.launch_pullback(space, 0)
    check(space.moments[0], definitions.define_pullback(kept, gradients, mixing))


@pytest.mark.parametrize("n_atoms", [1, 37])
@pytest.mark.parametrize("scatter", ["fixed", "float"])
def test_perceptron(n_atoms, scatter):
    potential = FusedPotential(make_weights(2), "cpu", Options(scatter=scatter))
    space = potential.allocate(n_atoms, 1)
    scale = SCALE if scatter == "fixed" else 1.0
    poison(space)
    species = torch.arange(n_atoms) % 2
    space.sites[:, 3] = species
    first, last = potential.packed.blocks
    inputs = draw(n_atoms, 128)
    for part in space.invariants:
        part.copy_(inputs)
    potential.launch_perceptron(space, 0, adjoint=False)
    energies, messages, _ = definitions.define_perceptron(inputs, None, None, species, first)
    check(space.node_energies[0, :n_atoms], energies)
    check(space.messages[0], messages)
    own = space.messages[0].clone()
    potential.launch_perceptron(space, 1, adjoint=True)
    energies, _, pull = definitions.define_perceptron(inputs, own, None, species, last)
    check(space.node_energies[1, :n_atoms], energies)
    check(space.invariants[1], pull[:, :128])
    check(space.message_gradients[0] / scale, pull[:, 128:])
    back = space.message_gradients[0] / scale
    potential.launch_perceptron(space, 0, adjoint=True)
    pull = definitions.define_perceptron(inputs, None, back, species, first)[2]
    check(space.invariants[0], pull)


@pytest.mark.parametrize(("n_atoms", "scatter"), [(1, "fixed"), (37, "fixed"), (37, "float")])
def test_perceptron_between_two_hops(n_atoms, scatter):
    """It takes a message and sends one, and on the way back takes a gradient and sends one."""
    potential = FusedPotential(make_weights(3), "cpu", Options(scatter=scatter))
    space = potential.allocate(n_atoms, 1)
    scale = SCALE if scatter == "fixed" else 1.0
    poison(space)
    species = torch.arange(n_atoms) % 2
    space.sites[:, 3] = species
    inputs, own, back = draw(n_atoms, 128), draw(n_atoms, 16), draw(n_atoms, 16).flip(1)
    space.invariants[1].copy_(inputs)
    space.messages[0].copy_(own)
    middle = potential.packed.blocks[1]
    potential.launch_perceptron(space, 1, adjoint=False)
    energies, messages, _ = definitions.define_perceptron(inputs, own, None, species, middle)
    check(space.node_energies[1, :n_atoms], energies)
    check(space.messages[1], messages)
    space.message_gradients[1].copy_(back * scale)
    potential.launch_perceptron(space, 1, adjoint=True)
    pull = definitions.define_perceptron(inputs, own, back, species, middle)[2]
    check(space.invariants[1], pull[:, :128])
    check(space.message_gradients[0] / scale, pull[:, 128:])
    assert torch.equal(space.messages[0], own)


@pytest.mark.parametrize(
    ("hop", "scatter", "hidden"),
    [
        *((hop, scatter, (64, 64)) for hop in (0, 1) for scatter in ("fixed", "float")),
        (1, "fixed", (64, 128)),
    ],
)
def test_directed_messages(hop, scatter, hidden):
    """What the first of two hops and the middle of three send, and the way back; in their buffers and no others."""
    n_atoms, width = 37, 16
    weights = make_weights(hop + 2, message_degree=1, hidden=hidden)
    potential = FusedPotential(weights, "cpu", Options(scatter=scatter))
    space = potential.allocate(n_atoms, 1)
    scale = SCALE if scatter == "fixed" else 1.0
    poison(space)
    species = torch.arange(n_atoms) % 2
    space.sites[:, 3] = species
    block = potential.packed.blocks[hop]
    inputs, mixed = draw(n_atoms, 8 * width), draw(n_atoms, 16, width)
    own, back = draw(n_atoms, 4 * width), draw(n_atoms, 4, width).flip(1)
    scalars, curb = own[:, :width] if hop else None, block.moment_curb.double()
    if hop:
        space.messages[0].copy_(own)
    space.invariants[hop].copy_(inputs)
    space.mixed[hop].copy_(mixed)
    potential.launch_perceptron(space, hop, adjoint=False)
    energies, written, _ = definitions.define_perceptron(inputs, scalars, None, species, block)
    check(space.node_energies[hop, :n_atoms], energies)
    check(space.messages[hop], direct_messages(written, mixed.double(), width, curb).flatten(1))
    space.message_gradients[hop].copy_(back.flatten(1) * scale)
    potential.launch_perceptron(space, hop, adjoint=True)
    gates, sent = direct_messages_adjoint(back.double(), written, mixed.double(), curb)
    pull = definitions.define_perceptron(inputs, scalars, gates, species, block)[2]
    check(space.invariants[hop], pull[:, : 8 * width])
    if hop:
        assert torch.equal(space.messages[0], own)
        check(space.message_gradients[0][:, :width] / scale, pull[:, 8 * width :])
        assert (space.message_gradients[0][:, width:] == 0).all()
    space.invariants[hop].copy_(inputs)
    potential.launch_pullback(space, hop)
    table = build_cubic_table(torch.float64, torch.device("cpu"))
    expected = definitions.define_pullback(mixed, inputs, block.mixing, table, sent)
    check(space.moments[hop], expected)


@pytest.mark.parametrize(
    ("scatter", "n_hops", "width", "hidden"),
    [
        ("fixed", 2, 16, 64),
        ("store", 3, 16, 64),
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


def cut(values: np.ndarray) -> np.ndarray:
    """What a tensor core reads of float32: the sign, the exponent and ten bits."""
    return (np.ascontiguousarray(values).view(np.int32) & np.int32(-8192)).view(np.float32)


def sum_towards_zero(left: np.ndarray, right: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Products of tf32 as tensor cores add them: eight at a time exactly, each sum cut to float32 towards zero."""
    left, right = cut(left).astype(np.float64), cut(right).astype(np.float64)
    for first in range(0, left.shape[1], 8):
        exact = left[:, first : first + 8] @ right[first : first + 8] + total
        total = exact.astype(np.float32)
        over = np.abs(total.astype(np.float64)) > np.abs(exact)
        total = np.where(over, np.nextafter(total, np.float32(0)), total)
    return total


@pytest.fixture
def tensor_cores(monkeypatch):
    """Let the interpreter multiply tf32 as a GPU does; it takes full float32 otherwise."""
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, input_precision, *others):
        if "TF32" not in str(input_precision):
            return plain(self, a, b, d, input_precision, *others)
        data = sum_towards_zero(a.data, b.data, d.data)
        return interpreter.TensorHandle(data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


FUSED = ("moments", "invariants", "node_perceptron", "invariants_adjoint", "moments_adjoint")


@pytest.mark.parametrize(
    ("degree", "expected"),
    [
        (0, FUSED),
        (1, ("moments", "node_perceptron", "moments_adjoint", "moments", "invariants", *FUSED[3:])),
    ],
)
def test_workloads_of_tuning(degree, expected, cpu):
    """Every candidate gives the definition's numbers; in the interpreter that is about block sizes.

    The key of every workload is one that an evaluation of such a student looks up.
    """
    found, keys = [], set()
    widths = {"n_channels": 16, "n_mixed": 16, "n_hidden": 64, "message_degree": degree}
    for workload in workloads.list_workloads(widths, cpu, repeats=1, reach=3.6):
        found.append(workload.space.kernel)
        keys.add((workload.space.kernel, workload.key))
        check_candidates(workload, "ATOMS")
    assert tuple(found) == expected
    assert keys == list_keys(degree)
    assert not list(workloads.list_workloads({**widths, "n_channels": 24}, cpu))


def check_candidates(workload, block):
    """Twice every candidate of another size of ``block``, and the definition in float32, against float64."""
    exact = workload.reference()
    for config in {c.blocks[block]: c for c in tuning.list_candidates(workload)}.values():
        with tuning.override(workload.space.kernel, config):
            for _ in range(2):
                assert tuning.find_relative_error(workload.run(), exact) < workload.tolerance
    assert workload.definition is not None
    single = workload.definition(torch.float32)()
    assert tuning.find_relative_error(single, exact) < workload.tolerance


def list_keys(degree):
    """What an evaluation of two hops looks up, but the gather of another scatter."""
    found = set()
    system = build_lattice("Cu", 1, 3.61, "cpu")
    potential = FusedPotential(draw_weights(2, 1, system, message_degree=degree), "cpu")
    plain = tuning.lookup

    def lookup(space, key, device):
        found.add((space.kernel, key))
        return plain(space, key, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "lookup", lookup)
        potential.evaluate(system.positions, system.species, system.matrix)
    return found


def check_work(work):
    if work.restore is not None:
        work.restore()
    single = work.definition(lambda function: function)
    assert work.triton is not None
    # 4 atoms with random directed messages lose more digits in float32 than a crystal of production size
    limit = 2e-5 if work.op == "evaluation, m2-l directed" else 1e-5
    for found in (work.triton(), single()):
        assert work.compare(found) < limit, work.op
    assert work.n_bytes > 0


def test_work_of_the_kernel_table(cpu, monkeypatch):
    """What ``fastff bench --kernels`` times on a GPU is right: kernels and definitions agree with float64.

    Fused kernels over 4 atoms of 12 neighbors, to be quick.
    """
    monkeypatch.setattr(kernel_work, "CELLS_QUADRATIC", 2)
    monkeypatch.setattr(workloads, "REACH", 3.6)
    gpu = torch.device("cuda")
    makers = [*kernel_work.list_makers(gpu), *kernel_steps.list_makers(gpu)]
    own = [
        entry for entry in makers if getattr(entry[0], "func", 0) is not kernel_work.make_generic
    ]
    names, listed = [], [name for _, told in own for name in told]
    for make, told in own:
        small = told[0].startswith("evaluation") or told[0].split(",")[0] in kernel_work.FUSED
        monkeypatch.setattr(kernel_work, "CELLS", 1 if small else 2)
        for work in make(cpu):
            names.append(work.op)
            check_work(work)
    fused = ["moments", "invariants", "node_perceptron", "invariants_adjoint", "moments_adjoint"]
    assert names == listed
    assert names == [
        *fused, *(f"{name}, C={width}" for width in (32, 64) for name in fused),
        *(f"{name}{width}, directed" for width in ("", ", C=32", ", C=64") for name in kernel_work.DIRECTED),
        "evaluation, 1 hop", "evaluation, 2 hops", "evaluation, m2-l",
        "evaluation, 2 hops directed", "evaluation, m2-l directed", "evaluation, m3-l",
        "skin_check", "skin_check, stale", "neighbor_list",
        "md_step, NVT", "staging, positions", "staging, contacts", "staging, results",
        "neighbor_list, bins",
    ]  # fmt: skip


def test_wrong_lists_are_told_from_right_ones(cpu, monkeypatch):
    """A check that never asks for a list, one that always does, and a neighbor taken for another one."""
    monkeypatch.setattr(kernel_work, "CELLS", 2)
    monkeypatch.setattr(kernel_work, "CELLS_QUADRATIC", 2)
    fresh, stale, search = kernel_work.make_lists(cpu)
    for found, wrong in ((0, stale), (1, fresh)):
        assert wrong.compare(torch.tensor(found)) > 0.5
    right = search.triton()
    right.matrix.entries[3, 0] = right.matrix.entries[3, 1]
    assert search.compare(right) == 1.0


def test_wrong_steps_are_told_from_right_ones(cpu, monkeypatch):
    """Noise of another step, and an atom that did not move."""
    monkeypatch.setattr(kernel_work, "CELLS", 2)
    (work,) = kernel_steps.make_steps(cpu)
    work.restore()
    assert work.compare(work.triton()) < 1e-12
    assert work.compare(work.triton()) > 0.1
    work.restore()
    positions, velocities, heat = (part.clone() for part in work.triton())
    positions[3] = work.definition(lambda function: function)()[0][4]
    assert work.compare((positions, velocities, heat)) > 0.1


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


@triton.jit
def sum_kernel(left, right, out, N_TILES: tl.constexpr, PRECISION: tl.constexpr):
    """Sum of products of tiles (16, 32) and (32, 16)."""
    rows, inner = tl.arange(0, 16), tl.arange(0, 32)
    total = tl.zeros((16, 16), dtype=tl.float32)
    for k in range(N_TILES):
        a = tl.load(left + k * 512 + rows[:, None] * 32 + inner[None, :])
        b = tl.load(right + k * 512 + inner[:, None] * 16 + rows[None, :])
        total = multiply(a, b, total, PRECISION)
    tl.store(out + rows[:, None] * 16 + rows[None, :], total)


def test_products_keep_the_digits_of_float32(tensor_cores):
    """Sums of one sign, in which cutting shows as a bias; cut high parts or a running sum on tensor cores fail here."""
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(8, 16, 32, generator=generator) + 0.1
    right = torch.rand(8, 32, 16, generator=generator) + 0.1
    exact = (left.double() @ right.double()).sum(dim=0)
    errors = {}
    for precision in ("tf32x3", "tf32", "ieee"):
        out = torch.empty(16, 16)
        sum_kernel[(1,)](left, right, out, N_TILES=8, PRECISION=precision)
        errors[precision] = float(((out.double() - exact) / exact).mean().abs())
    assert errors["tf32x3"] < 2e-7
    assert errors["tf32"] > 1e-4


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
