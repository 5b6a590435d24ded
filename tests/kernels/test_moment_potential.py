"""The definition of the fused evaluation equals the student; packing keeps every edge. Not here: kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from fastff import kernels
from fastff.errors import DataError
from fastff.graph import edge_vectors
from fastff.kernels import tuning
from fastff.kernels.moment_potential import (
    MomentPotential,
    costs,
    evaluate,
    launches,
    moment_potential,
)
from fastff.kernels.moment_potential.cases import build_lattice, draw_weights
from fastff.kernels.moment_potential.layout import (
    GRID_BITS,
    list_shifts,
    pack_edges,
    pack_weights,
    quantize_coordinates,
    unpack_neighbors,
)
from fastff.kernels.moment_potential.reference import evaluate_reference
from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE
from fastff.kernels.tuning import LaunchConfig
from fastff.models import build_student, configure_student
from fastff.models.fused import collect_weights
from fastff.neighbors import atoms_to_graph

GUIDE = Path(__file__).parents[2] / "docs" / "md.md"
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def make_atoms(n_atoms: int, elements: tuple[int, ...], seed: int = 0) -> Atoms:
    rng = np.random.default_rng(seed)
    cell = np.diag([4.1, 5.2, 6.3]) + rng.normal(scale=0.4, size=(3, 3))
    return Atoms(
        numbers=rng.choice(elements, n_atoms),
        positions=rng.uniform(size=(n_atoms, 3)) @ cell,
        cell=cell,
        pbc=True,
    )


def evaluate_both(
    architecture: str,
    elements: tuple[int, ...],
    atoms: Atoms,
    n_hops: int | None = None,
    message_degree: int = 0,
):
    torch.manual_seed(1)
    config = configure_student(architecture, elements, n_hops=n_hops, message_degree=message_degree)
    student = build_student(config).double()
    student.energy_scale.fill_(0.3)
    student.composition_energies.copy_(torch.arange(1.0, len(elements) + 1) * 100.0)
    graph = atoms_to_graph(atoms, student.cutoff)
    species = student.find_species(graph.numbers)
    matrix = pack_edges(graph.edge_index, graph.shifts, graph.cell[0], graph.n_atoms)
    senders, _, filled = unpack_neighbors(matrix)
    vectors = torch.tensor([student.cutoff, 0.0, 0.0]).double().repeat(*senders.shape, 1)
    vectors[filled] = edge_vectors(graph)
    student.calibrate(vectors, senders, species)
    reach = (round(len(matrix.translations) ** (1 / 3)) - 1) // 2
    translations = list_shifts(reach).double() @ graph.cell[0]
    weights = collect_weights(student)
    found = evaluate_reference(weights, graph.positions, species, matrix, translations)
    return student(graph), found, abs(np.linalg.det(atoms.cell.array))


def assert_same(architecture, elements, n_atoms, n_hops=None, message_degree=0):
    atoms = make_atoms(n_atoms, elements)
    expected, found, volume = evaluate_both(architecture, elements, atoms, n_hops, message_degree)
    scale = float(expected.forces.detach().abs().max()) + 1.0
    torch.testing.assert_close(found.energies, expected.energies, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found.energy, expected.energy[0], rtol=1e-12, atol=1e-9)
    # atoms that nearly touch: the last digit of a position changes such forces by more than sums in another order do
    atoms.positions[0] *= 1.0 + 2.0**-50
    shaken, *_ = evaluate_both(architecture, elements, atoms, n_hops, message_degree)
    rounding = float((shaken.forces - expected.forces).detach().abs().max())
    pulled = float((shaken.stress - expected.stress).detach().abs().max()) * volume
    assert max(rounding, pulled) < 1e-6 * scale
    atol = max(1e-11 * scale, rounding)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=atol)
    virial = torch.stack([expected.stress[0, a, b] for a, b in VOIGT]) * volume
    atol = max(1e-10 * scale, pulled)
    torch.testing.assert_close(found.virial, virial, rtol=1e-10, atol=atol)


@pytest.mark.parametrize(("architecture", "n_hops"), [("m1", None), ("m2", None), ("m2", 3)])
@pytest.mark.parametrize(
    ("elements", "n_atoms"), [((29,), 5), ((11, 17, 29), 7), ((29,), 1), ((3, 55), 2)]
)
def test_definition_equals_student(architecture, n_hops, elements, n_atoms):
    assert_same(architecture, elements, n_atoms, n_hops)


@pytest.mark.parametrize(("n_hops", "message_degree"), [(2, 1), (3, 2), (4, 0), (4, 1)])
@pytest.mark.parametrize(("elements", "n_atoms"), [((29,), 5), ((11, 17, 29), 7)])
def test_definition_of_deeper_students_equals_them(n_hops, message_degree, elements, n_atoms):
    """Not with one or two atoms: of what symmetry cancels only rounding is left, which hops enlarge."""
    assert_same("m2", elements, n_atoms, n_hops, message_degree)


def test_packing_keeps_edges_and_their_reverses():
    graph = atoms_to_graph(make_atoms(3, (29,)), 7.0)
    matrix = pack_edges(graph.edge_index, graph.shifts, graph.cell[0], 3)
    senders, codes, filled = unpack_neighbors(matrix)
    reach = (round(len(matrix.translations) ** (1 / 3)) - 1) // 2
    assert reach >= 2
    assert torch.equal(senders[filled], graph.edge_index[1])
    assert torch.equal(list_shifts(reach)[codes[filled]], graph.shifts)
    back = matrix.reverse[filled].long()
    assert torch.equal(back.sort().values, filled.flatten().nonzero().flatten())
    assert torch.equal(senders.flatten()[back], graph.edge_index[0])
    assert torch.equal(list_shifts(reach)[codes.flatten()[back]], -graph.shifts)


def test_grid_differences_do_not_depend_on_where_atoms_are():
    near = torch.tensor([0.1, 2.3, -4.9], dtype=torch.float64)
    for origin in (0.0, 31.9, 1.0e3, -1.0e5):
        ends = quantize_coordinates(near + origin), quantize_coordinates(near * 0 + origin)
        difference = (ends[0] - ends[1]).double() * 2.0**-GRID_BITS
        assert float((difference - near).abs().max()) < 3e-8


def test_core_beyond_cutoff_is_refused():
    student = build_student(configure_student("m1", (55,), cutoff=3.0))
    with pytest.raises(DataError, match="core repulsion reaches beyond the cutoff"):
        pack_weights(collect_weights(student), torch.device("cpu"))


def test_odd_width_is_refused():
    student = build_student(configure_student("m1", (29,), n_channels=24))
    with pytest.raises(DataError, match="a width of 24"):
        pack_weights(collect_weights(student), torch.device("cpu"))


def make_call(**changes):
    atoms = make_atoms(3, (29,))
    student = build_student(configure_student("m1", (29,), **changes)).double()
    graph = atoms_to_graph(atoms, student.cutoff)
    matrix = pack_edges(graph.edge_index, graph.shifts, graph.cell[0], 3)
    species = student.find_species(graph.numbers)
    return collect_weights(student), graph.positions, species, graph.cell[0], matrix


def test_op_is_explained_and_takes_torch_on_a_cpu():
    weights, positions, species, cell, matrix = make_call()
    with kernels.use("auto"):
        found = moment_potential(weights, positions, species, cell, matrix)
        row = next(row for row in kernels.explain("cpu") if row.op == "moment_potential")
    assert row.backend == "torch"
    assert row.last_call == "torch: the tensors are on cpu, Triton needs a CUDA device"
    reach = (round(len(matrix.translations) ** (1 / 3)) - 1) // 2
    translations = list_shifts(reach).double() @ cell
    exact = evaluate_reference(weights, positions, species, matrix, translations)
    assert found.forces.dtype == torch.float32
    size = float(exact.forces.abs().max()) + 1.0
    torch.testing.assert_close(found.forces.double(), exact.forces, rtol=0, atol=1e-5 * size)


def test_op_forced_on_a_cpu_raises():
    with kernels.use("triton"), pytest.raises(kernels.BackendError, match="Triton was selected"):
        moment_potential(*make_call())


def test_op_has_no_further_derivative():
    weights, positions, *others = make_call()
    with pytest.raises(DataError, match="require a gradient and the result has none"):
        moment_potential(weights, positions.requires_grad_(), *others)


def test_op_refuses_other_shapes():
    weights, positions, *others = make_call()
    with pytest.raises(DataError, match=r"positions \(2, 3\)"):
        moment_potential(weights, positions[:2], *others)


def test_op_refuses_other_dtypes():
    weights, positions, species, *others = make_call()
    with pytest.raises(DataError, match=r"positions are torch\.float64, species torch\.float32"):
        moment_potential(weights, positions, species.float(), *others)


def test_op_knows_widths_the_kernels_do_not_take():
    assert MomentPotential(make_call(n_channels=24)[0], "cpu").obstacle.startswith("a width of 24")
    narrow = MomentPotential(make_call(hidden=(64, 16))[0], "cpu").obstacle
    assert narrow == "a hidden layer of 16, the kernels take powers of two from 32"
    assert MomentPotential(make_call(hidden=(32, 32))[0], "cpu").obstacle is None


def test_least_work_of_directed_messages():
    """Three more components are read, added up and returned in every slot, and written once an atom."""
    plain, directed = costs.count_costs(10, 16, 16), costs.count_directed(10, 16, 16)
    slots = 10 * 3 * 16
    more = {name: directed[name].flop - plain[name].flop for name in directed}
    assert (more["moments"], more["moments_adjoint"]) == (2 * slots, 5 * slots)
    assert directed["moments"].n_bytes - plain["moments"].n_bytes == 4 * 4 * 16
    whole, scalar = (costs.count_evaluation(2, 10, 16, degree) for degree in (1, 0))
    assert scalar.flop == 2 * sum(one.flop for one in plain.values())
    assert whole.flop - scalar.flop == 7 * slots
    assert costs.count_evaluation(1, 10, 16, 1) == costs.count_evaluation(1, 10, 16)


@pytest.mark.parametrize("degree", [0, 1])
def test_least_work_of_stored_gradients(degree):
    """A slot is written and read once: 16 bytes for the forces, 4 for each channel of the messages."""
    few, many = (costs.count_stored(n, 32, 32, degree=degree) for n in (10, 11))
    slot = {name: many[name].n_bytes - few[name].n_bytes for name in many}
    index = 4 if degree == 0 else 8
    assert slot == {
        "moments_adjoint": 20 + 128,
        "gather_forces": 20,
        "gather_messages": 128 + index,
    }
    sizes = {"n_channels": 32, "n_mixed": 32, "message_degree": degree}
    system = build_lattice("Cu", 2, 5.4, "cpu", reverse=True)
    for n_hops, width in ((1, 4), (2, 36)):
        weights = draw_weights(n_hops, 1, system, **sizes)
        spaces = [
            evaluate.FusedPotential(weights, "cpu", evaluate.Options(scatter=scatter)).allocate(
                5, 7
            )
            for scatter in ("store", "float")
        ]
        buffers = [{id(t): t for t in list_tensors(space)}.values() for space in spaces]
        stored, plain = (sum(t.numel() * t.element_size() for t in one) for one in buffers)
        assert stored - plain == 5 * 7 * 4 * width


def list_tensors(space):
    """All buffers of a workspace; some are listed twice."""
    for value in vars(space).values():
        yield from value if isinstance(value, list) else [value]


@pytest.mark.parametrize("hidden", [(128, 128), (128, 64), (64, 128)])
def test_the_wider_hidden_layer_names_the_setting(hidden, monkeypatch):
    """As ``fastff tune`` measures it: hidden layers of 128 spill kilobytes with the setting of 64."""
    system = build_lattice("Cu", 1, 3.61, "cpu")
    sizes = {"n_channels": 64, "n_mixed": 64, "message_degree": 1}
    weights = draw_weights(2, 1, system, hidden=hidden, **sizes)
    potential = evaluate.FusedPotential(weights, "cpu")
    space = potential.allocate(*system.matrix.entries.shape)
    found = []

    def stop(space, key, device):
        found.append((space, key))
        raise LookupError

    monkeypatch.setattr(tuning, "lookup", stop)
    with pytest.raises(LookupError):
        potential.launch_perceptron(space, 0, adjoint=False)
    key = "float32,channels=64,degree=1,hidden=128,inputs=512"
    assert found == [(PERCEPTRON_SPACE, key)]
    expected = LaunchConfig({"ATOMS": 16, "DEPTH": 64}, 4, 1)
    assert PERCEPTRON_SPACE.find_default(key) == expected


def test_few_atoms_are_spread_and_measured_settings_are_not_touched():
    """Up to 2,048 atoms node kernels take 16 at a time on four warps, unless a setting is being measured."""
    used = {"ATOMS": 32, "DEPTH": 32, "num_warps": 8, "num_stages": 1}
    few = {"ATOMS": 16, "DEPTH": 64, "num_warps": 4, "num_stages": 1}
    assert f"to {launches.FEW_ATOMS:,} atoms" in GUIDE.read_text("utf-8")
    assert launches.spread_atoms(used, 2048) == few
    assert launches.spread_atoms(used, 2049) == used
    assert launches.spread_atoms({"ATOMS": 16, "num_warps": 1}, 9) == {"ATOMS": 16, "num_warps": 4}
    system = build_lattice("Cu", 2, 5.4, "cpu")
    potential = evaluate.FusedPotential(draw_weights(1, 1, system), "cpu")
    widths = {"inputs": 128, "hidden": 64}
    written = potential._configure(PERCEPTRON_SPACE, channels=16, **widths)
    assert written["ATOMS"] == 32
    assert potential._configure_node(PERCEPTRON_SPACE, 5000, **widths) == written
    assert potential._configure_node(PERCEPTRON_SPACE, 5, **widths) == {**written, **few}
    few_wide = evaluate.FusedPotential(draw_weights(1, 1, system, n_channels=32, n_mixed=32), "cpu")
    assert few_wide._configure_node(PERCEPTRON_SPACE, 5, inputs=256, hidden=64)["DEPTH"] == 32
    config = LaunchConfig({"ATOMS": 32, "DEPTH": 32}, 2, 1)
    with tuning.override("node_perceptron", config):
        found = potential._configure_node(PERCEPTRON_SPACE, 5, **widths)
    assert (found["ATOMS"], found["num_warps"]) == (32, 2)
