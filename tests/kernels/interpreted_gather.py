"""Gradients that are written out by slot and gathered (``scatter="store"``), in Triton's interpreter.

Run by ``test_interpreter.py`` in a process of its own, like ``interpreted_fused.py``; both take from
``fused_systems.py``.
"""

from __future__ import annotations

import pytest
import torch

from fastff.kernels import dispatch
from fastff.kernels.moment_potential.cases import System, add_reverse
from fastff.kernels.moment_potential.layout import NeighborMatrix, list_shifts, pack_edges

if not dispatch.is_interpreted():
    pytest.skip("runs in a process of its own, see test_interpreter.py", allow_module_level=True)

from fastff.kernels import tuning
from fastff.kernels.moment_potential import definitions, workloads
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.workspace import Options, Workspace

from .fused_systems import check, check_candidates, compare, draw, make_system, make_weights
from .poison import poison

STORE = Options(scatter="store")


def make_rows() -> System:
    """Rows of different length, the last one empty; unused slots name any others."""
    system = make_system(n_atoms=5)
    matrix = add_reverse(system.matrix)
    assert matrix.reverse is not None
    lone = torch.zeros_like(matrix.entries[:1])
    lone_matrix = NeighborMatrix(
        torch.cat([matrix.entries, lone]),
        torch.cat([matrix.counts, torch.zeros_like(matrix.counts[:1])]),
        matrix.translations,
        matrix.code_bits,
        torch.cat([matrix.reverse, lone]),
    )
    assert len(set(lone_matrix.counts.tolist())) > 2
    positions = torch.cat([system.positions, system.positions[:1] + 9.0])
    species = torch.arange(6, dtype=torch.int32) % 2
    return System(positions, species, system.cell, lone_matrix, system.translations)


def make_images() -> System:
    """Two atoms in a small oblique cell: several images of one pair, and atoms that are neighbors of themselves."""
    cell = torch.tensor([[2.6, 0, 0], [0.4, 2.9, 0], [0.3, -0.5, 3.3]], dtype=torch.float64)
    positions = torch.tensor([[0.1, 0.2, -0.1], [1.4, 1.3, 1.7]], dtype=torch.float64)
    shifts = list_shifts(2)
    vectors = positions - positions[:, None] + (shifts.double() @ cell)[:, None, None]
    distance = vectors.norm(dim=-1)
    which, receivers, senders = ((distance < 3.9) & (distance > 0)).nonzero().T
    order = receivers.argsort(stable=True)
    edges = torch.stack([receivers, senders])[:, order]
    pairs = [tuple(pair) for pair in edges.T.tolist()]
    assert min(pairs.count((0, 0)), pairs.count((0, 1))) > 3
    matrix = pack_edges(edges, shifts[which[order]], cell, 2)
    reach = (round(len(matrix.translations) ** (1 / 3)) - 1) // 2
    species = torch.arange(2, dtype=torch.int32)
    return System(positions, species, cell, matrix, list_shifts(reach).double() @ cell)


SYSTEMS = {"rows": make_rows, "images": make_images}


def run_adjoint(
    potential: FusedPotential, system: System, hop: int, *, before: dict[str, torch.Tensor]
) -> Workspace:
    """The adjoint of the last hop and its gathers, over poisoned buffers but for what comes before."""
    space = potential.allocate(*system.matrix.entries.shape)
    poison(space)
    potential.launch_place(space, system.positions, system.species)
    space.messages[hop - 1].copy_(before["messages"])
    space.moments[hop].copy_(before["gradients"])
    space.message_gradients[hop - 1][:, : potential.n_channels] = before["extra"]
    potential.launch_adjoint(space, system.matrix, hop)
    potential.launch_gather_forces(space, system.matrix, hop)
    potential.launch_gather_messages(space, system.matrix, hop)
    return space


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize(("hop", "degree"), [(1, 0), (2, 1)])
@pytest.mark.parametrize("width", [16, 32, 64])
def test_message_gradients(name, hop, degree, width):
    """Twice the same bits, and the definition's numbers: what neighbors return, and what the atom reads itself."""
    system = SYSTEMS[name]()
    n_atoms, matrix = system.matrix.n_atoms, system.matrix
    sizes = {"n_channels": width, "n_mixed": width, "message_degree": degree}
    potential = FusedPotential(make_weights(hop + 1, **sizes), "cpu", STORE)
    messages, gradients = draw(n_atoms, (degree + 1) ** 2 * width), draw(n_atoms, 16, width)
    extra = draw(n_atoms, width).flip(1)
    before = {"messages": messages, "gradients": gradients, "extra": extra}
    space = run_adjoint(potential, system, hop, before=before)
    first = space.message_gradients[hop - 1].clone(), space.accumulators[:, :3].clone()
    space = run_adjoint(potential, system, hop, before=before)
    found = space.message_gradients[hop - 1], space.accumulators[:, :3]
    assert all(torch.equal(*both) for both in zip(first, found, strict=True))
    given = space.sites, matrix, potential.packed
    expected = definitions.define_adjoint(*given, hop, messages, gradients)
    assert found[0].dtype == torch.float32
    assert float(expected.message_gradients.norm()) > 0.5 * float(extra.norm())
    own = torch.nn.functional.pad(extra.double(), (0, messages.shape[1] - width))
    check(found[0], expected.message_gradients + own)
    check(found[1], expected.forces)
    check(space.terms[:, :6], expected.terms[:, :6])
    unused = torch.arange(matrix.n_slots) >= matrix.counts[:, None]
    assert torch.equal(space.factor_gradients.isnan(), unused[..., None].expand(-1, -1, width))
    filled = space.factor_gradients
    check(definitions.define_returns(*given, filled).float(), expected.message_gradients)


@pytest.mark.parametrize(("name", "n_hops", "width"), [("rows", 2, 16), ("images", 3, 64)])
def test_evaluation(name, n_hops, width):
    """With directed messages; scalars are in ``interpreted_fused.py``."""
    system = SYSTEMS[name]()
    weights = make_weights(n_hops, n_channels=width, n_mixed=width, message_degree=1)
    compare(system, system.matrix, weights, STORE)


@pytest.mark.parametrize("degree", [0, 1])
def test_workloads_of_tuning(degree, cpu, monkeypatch):
    """Every candidate gives the definition's numbers, under the key that the launch looks up."""
    widths = {"n_channels": 16, "n_mixed": 16, "n_hidden": 64, "message_degree": degree}
    (workload,) = workloads.list_gathers(widths, cpu, repeats=1, reach=3.6)
    check_candidates(workload, "TILE")
    assert not list(workloads.list_gathers({**widths, "n_channels": 24}, cpu))
    asked, plain = [], tuning.lookup
    monkeypatch.setattr(tuning, "lookup", lambda *a: asked.append(a[:2]) or plain(*a))
    workload.run()
    assert asked == [(workload.space, workload.key)]
