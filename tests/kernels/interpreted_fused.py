"""Each fused kernel against its own definition, in Triton's interpreter.

Run by ``test_interpreter.py`` in a process of its own, like ``interpreted_ops.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastff.kernels import dispatch

if not dispatch.is_interpreted():
    pytest.skip("runs in a process of its own, see test_interpreter.py", allow_module_level=True)

import triton
import triton.language as tl

from fastff.kernels.moment_potential import definitions
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.moments.messages import direct_messages, direct_messages_adjoint
from fastff.kernels.moments.reference import FROZEN_SHARE
from fastff.kernels.node_block.reference import build_cubic_table
from fastff.kernels.products import multiply

from .fused_systems import check, draw, make_weights, prepare
from .poison import poison

SCALE = 2.0**32
HOPS = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
"""Hop, and degree of the messages that it reads."""


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
