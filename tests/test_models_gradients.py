"""The analytic adjoint against autograd, parameter gradients through forces, calibration, the dense layout."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor
from untrained import KINDS, make_dense_structures, make_student

import fastff.models
from fastff.checkpoint import load_model, save_model
from fastff.errors import DataError, UsageError
from fastff.graph import Graph, batch_graphs, edge_vectors
from fastff.inference import predict
from fastff.kernels.couplings import CUBIC_TRIPLES
from fastff.kernels.moment_potential.layout import find_obstacle
from fastff.kernels.node_block.reference import bound_inputs
from fastff.kernels.rows import pick_rows
from fastff.models import ARCHITECTURES, Student, StudentConfig, build_student, configure_student
from fastff.models.dense import lay_out_edges
from fastff.models.fused import collect_weights
from fastff.models.moment import MomentStudent
from fastff.neighbors import atoms_to_graph
from fastff.testing import make_structures, measure_forces

ELEMENTS = (8, 29)


def make_batch(student: Student) -> tuple[Graph, Tensor]:
    structures = make_dense_structures(ELEMENTS).values()
    graph = batch_graphs([atoms_to_graph(atoms, student.cutoff) for atoms in structures])
    return graph, edge_vectors(graph)


@pytest.fixture(params=KINDS)
def student(request: pytest.FixtureRequest) -> Student:
    return make_student(request.param, ELEMENTS, n_channels=6, n_mixed=5, hidden=(9, 7)).double()


def test_adjoint_is_the_gradient_of_the_energies(student: Student) -> None:
    graph, vectors = make_batch(student)
    vectors.requires_grad_()
    species = student.find_species(graph.numbers)
    energies, gradient = student.evaluate_edges(vectors, graph.edge_index, species)
    (expected,) = torch.autograd.grad(energies.sum(), vectors)
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_a_few_steps_lower_the_loss_of_forces(student: Student) -> None:
    """One ordinary backward of a loss of forces trains every architecture."""
    student = student.float().requires_grad_()
    graph, vectors = make_batch(student)
    species = student.find_species(graph.numbers)
    dense = lay_out_edges(vectors.float(), graph.edge_index, graph.n_atoms, student.cutoff)
    target = 0.3 * torch.randn(dense.vectors.shape) * (dense.vectors.norm(dim=-1, keepdim=True) < 3)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        _, gradient = student.evaluate_dense(dense.vectors, dense.senders, species)
        loss = torch.nn.functional.huber_loss(gradient.sum(dim=1), target.sum(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_core_gradient_is_that_of_its_energies(student: Student) -> None:
    graph, vectors = make_batch(student)
    vectors = (vectors * 0.4).requires_grad_()
    assert student.core is not None
    energies, gradient = student.core(
        vectors, graph.edge_index, student.find_species(graph.numbers)
    )
    (expected,) = torch.autograd.grad(energies.sum(), vectors)
    assert expected.abs().max() > 1.0
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_whole_forces_and_virial_are_those_of_autograd(student: Student) -> None:
    graph, _ = make_batch(student)
    positions = graph.positions.clone().requires_grad_()
    strain = torch.zeros(graph.n_systems, 3, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.eye(3) + 0.5 * (strain + strain.transpose(1, 2))
    moved = torch.einsum("ia,iab->ib", positions, scale[graph.batch])
    bent = Graph(
        moved,
        graph.numbers,
        graph.cell @ scale,
        graph.pbc,
        graph.batch,
        graph.edge_index,
        graph.shifts,
    )
    energy = student(bent).energy.sum()
    force, virial = torch.autograd.grad(energy, [positions, strain])
    found = student(graph)
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    torch.testing.assert_close(found.forces, -force, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.stress * volume, virial, rtol=1e-9, atol=1e-11)


def test_parameter_gradients_through_forces_are_those_of_double_backward(student: Student) -> None:
    """One backward of the adjoint equals the backward of autograd's own gradient, for every parameter."""
    student.requires_grad_()
    graph, vectors = make_batch(student)
    vectors.requires_grad_()
    species = student.find_species(graph.numbers)
    energies, gradient = student.evaluate_edges(vectors, graph.edge_index, species)
    weights = torch.randn_like(gradient)
    names, parameters = zip(*student.named_parameters(), strict=True)
    found = torch.autograd.grad(
        (gradient * weights).sum(), parameters, retain_graph=True, allow_unused=True
    )
    (slope,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    expected = torch.autograd.grad((slope * weights).sum(), parameters, allow_unused=True)
    for name, one, other in zip(names, found, expected, strict=True):
        if one is None or other is None:
            assert not any(g is not None and g.any() for g in (one, other)), name
            continue
        torch.testing.assert_close(
            one, other, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )
    unused = {n for n, g in zip(names, expected, strict=True) if g is None or not g.any()}
    if isinstance(student, MomentStudent):
        last = f"blocks.{len(student.blocks) - 1}"
        assert unused == {f"{last}.message", f"{last}.message_bias"}
    else:
        assert not unused


def test_parameter_gradients_of_a_tiny_student_by_differences() -> None:
    tiny = make_student("m2", (29,), n_channels=2, n_mixed=2, n_radial=2, hidden=(3, 2)).double()
    tiny.requires_grad_()
    graph, _ = make_batch(tiny)
    mask = graph.batch == 3
    one = atoms_to_graph(make_structures((29,))["molecule"], tiny.cutoff)
    assert mask.any()
    names, values = zip(*[(n, p) for n, p in tiny.named_parameters() if p.numel()], strict=True)
    target = torch.linspace(-1, 1, 3 * one.n_atoms, dtype=torch.float64).view(-1, 3)

    def loss(*parameters: Tensor) -> Tensor:
        found = torch.func.functional_call(tiny, dict(zip(names, parameters, strict=True)), (one,))
        return (found.forces - target).square().sum() + (found.energy + 4000.0).sum() * 0.1

    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_training_after_prediction_in_one_process() -> None:
    """Tables made while predicting, in inference mode, are the ones that training differentiates through."""
    from fastff.kernels.node_block import reference

    reference._build_cubic_table.cache_clear()
    student = make_student("m2", ELEMENTS)
    reference._build_cubic_table.cache_clear()
    structures = list(make_structures(ELEMENTS).values())
    predict(student, structures)
    student.requires_grad_()
    student(atoms_to_graph(structures[0], student.cutoff)).forces.square().sum().backward()
    assert student.blocks[0].mixing.grad.abs().max() > 0.0  # type: ignore[index, union-attr]


def test_calibration_normalises_moments_and_inputs() -> None:
    student = make_student("m2", ELEMENTS)
    before = copy.deepcopy(student)
    graph, vectors = make_batch(student)
    dense = lay_out_edges(vectors.float(), graph.edge_index, graph.n_atoms, student.cutoff)
    species = student.find_species(graph.numbers)
    student.calibrate(dense.vectors, dense.senders, species)
    for (name, one), (_, other) in zip(
        student.state_dict().items(), before.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(
            one, other, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n} {m}"
        )
    energies, _ = student.evaluate_dense(dense.vectors, dense.senders, species)
    assert 1e-2 < float(energies.std()) < 1e2


def test_width_of_the_layout_does_not_matter(student: Student) -> None:
    graph, vectors = make_batch(student)
    species = student.find_species(graph.numbers)
    narrow = lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff)
    n_slots = narrow.vectors.shape[1]
    wide = lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff, n_slots + 7)
    assert wide.vectors.shape[1] == n_slots + 7
    one, slope = student.evaluate_dense(narrow.vectors, narrow.senders, species)
    other, wide_slope = student.evaluate_dense(wide.vectors, wide.senders, species)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    filled = torch.zeros(graph.n_atoms * (n_slots + 7), dtype=torch.bool)
    filled[wide.slots] = True
    assert not wide_slope.reshape(-1, 3)[~filled].any(), "padding has no gradient"
    torch.testing.assert_close(
        wide_slope.reshape(-1, 3)[wide.slots],
        slope.reshape(-1, 3)[narrow.slots],
        rtol=0,
        atol=1e-12,
    )
    with pytest.raises(ValueError, match=f"{n_slots} neighbors but the layout only 1 slots"):
        lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff, 1)


def test_construction_under_another_default_dtype() -> None:
    """Other packages set torch's default to float64 for the whole process."""
    torch.set_default_dtype(torch.float64)
    try:
        student = make_student("m2", ELEMENTS)
        found = predict(student, list(make_structures(ELEMENTS).values()))
    finally:
        torch.set_default_dtype(torch.float32)
    assert student.dtype == torch.float32
    assert {
        b.dtype for n, b in student.named_buffers() if "scale" in n and n != "energy_scale"
    } == {torch.float32}
    again = predict(student, list(make_structures(ELEMENTS).values()))
    assert [one.energy for one in found] == [other.energy for other in again]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"elements": ()}, "elements"),
        ({"elements": (0, 1)}, "elements"),
        ({"elements": (119,)}, "elements"),
        ({"cutoff": 0.0}, "cutoff"),
        ({"cutoff": float("nan")}, "cutoff"),
        ({"hidden": (4,)}, "two hidden layers"),
        ({"n_channels": 0}, "positive"),
        ({"l_max": 4}, "l_max"),
        ({"n_hops": 0}, "n_hops"),
        ({"n_hops": 5}, "n_hops 5 must be 1 to 4"),
        ({"body_order": 1}, "body_order"),
        ({"message_degree": 3}, "message_degree 3 must be 0 to 2"),
        ({"message_degree": 1, "n_mixed": 8}, r"mixed channels \(8\) as channels \(16\)"),
    ],
)
def test_configurations_that_mean_nothing(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        StudentConfig(**{"architecture": "m1", "elements": (29,), **change})


def test_a_student_of_one_hop_sends_no_messages() -> None:
    with pytest.raises(DataError, match="one hop sends no messages"):
        build_student(StudentConfig("m1", (29,), message_degree=1))


def test_example_of_building_a_student() -> None:
    outcome = doctest.testmod(fastff.models)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_unknown_architectures_are_named() -> None:
    with pytest.raises(UsageError, match="'m9'; choose one of m1, m2, m2-l"):
        build_student(StudentConfig("m9", (29,)))
    with pytest.raises(UsageError, match="'m9'"):
        configure_student("m9", (29,))


@pytest.mark.parametrize(
    ("sizes", "n_used"),
    [({}, 8), ({"body_order": 3}, 4), ({"body_order": 2}, 1), ({"l_max": 0}, 2)],
)
def test_ablations_use_fewer_invariants(sizes: dict, n_used: int) -> None:
    if "l_max" in sizes:
        n_used = 1 + sum(max(triple) == 0 for triple in CUBIC_TRIPLES)
    student = make_student("m2", ELEMENTS, n_channels=6, n_mixed=5, hidden=(9, 7), **sizes).double()
    for block, n_extra in zip(student.blocks, (0, 6), strict=True):  # type: ignore[arg-type]
        assert int((block.scale != 0).sum()) == 5 * n_used + n_extra
    atoms = make_structures(ELEMENTS)["bulk"]
    assert measure_forces(student, atoms) < 1e-6
    assert StudentConfig(**student.config.to_dict()) == student.config


def test_configuration_goes_through_json() -> None:
    import json

    for sizes in ({}, {"n_hops": 3}, {"message_degree": 1}):
        config = configure_student("m2-l", (29, 8, 8), cutoff=4.5, **sizes)
        assert config.elements == (8, 29)
        for name in ("n_hops", "message_degree"):
            assert (name in config.to_dict()) == (name in sizes)
        assert StudentConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("architecture", ["m1", "m2", "painn"])
def test_hops_of_a_configuration_are_those_of_the_student(architecture: str) -> None:
    """Each hop reaches one cut-off further along a chain of atoms, and None leaves it to the architecture."""
    for n_hops in (1, 2, 3, 4):
        student = make_student(architecture, (29,), n_hops=n_hops, cutoff=4.0).double()
        forces = []
        for place in (0.0, 0.3):
            chain = Atoms("Cu8", [[3.0 * k, 0.1 * k * k, 0.0] for k in range(8)])
            chain.positions[-1, 1] += place
            graph = atoms_to_graph(chain, student.cutoff)
            species = student.find_species(graph.numbers)
            forces.append(student.evaluate_edges(edge_vectors(graph), graph.edge_index, species)[0])
        felt = (forces[1] != forces[0]).nonzero().flatten().tolist()
        assert felt == list(range(7 - n_hops, 8))
    plain = make_student(architecture, (29,))
    assert plain.config.n_hops is None
    assert len(plain.state_dict()) == len(
        make_student(architecture, (29,), n_hops=ARCHITECTURES[architecture]["n_hops"]).state_dict()
    )
    if architecture != "painn":
        with pytest.raises(ValueError, match="n_hops 5 must be 1 to 4"):
            MomentStudent(plain.config, n_hops=5)


def test_directed_messages_survive_a_file_and_the_kernels_say_up_to_which_degree(
    tmp_path: Path,
) -> None:
    student = make_student("m2-directed", ELEMENTS)
    save_model(tmp_path / "m.safetensors", student, {})
    assert load_model(tmp_path / "m.safetensors").config.message_degree == 2
    plain = make_student("m2-hop3", ELEMENTS, n_channels=6, n_mixed=6)
    assert "blocks.0.message_scale" in student.state_dict()
    assert not any("message_scale" in name for name in plain.state_dict())
    structures = list(make_structures(ELEMENTS).values())
    read = predict(load_model(tmp_path / "m.safetensors"), structures)
    for one, other in zip(predict(student, structures), read, strict=True):
        assert one.energy == other.energy
    wide = build_student(StudentConfig("m2", ELEMENTS, n_channels=16, n_mixed=16, message_degree=2))
    assert find_obstacle(collect_weights(wide)) == "messages of degree 2, the kernels take up to 1"


def test_picked_rows_are_indexed_rows_with_the_same_gradient() -> None:
    table = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(3, (50,))
    weights = torch.randn(50, 2, 4, dtype=torch.float64)
    picked = pick_rows(table, index)
    assert torch.equal(picked, table[index])
    assert torch.equal(pick_rows(table.detach(), index), table[index])
    (own,) = torch.autograd.grad((picked * weights).sum(), table)
    (wanted,) = torch.autograd.grad((table[index] * weights).sum(), table)
    torch.testing.assert_close(own, wanted)


def test_bounded_inputs_and_their_slope():
    inputs = torch.tensor([[-1e8, -3.0, 0.0, 0.3, 40.0, 1e12]], dtype=torch.float64)
    shift, scale = torch.full((6,), 0.1).double(), torch.linspace(0.5, 2.0, 6).double()
    plain = (inputs - shift) * scale
    bounded, slope = bound_inputs(inputs, shift, scale, torch.tensor(0.25).double())
    assert float(bounded.abs().max()) <= 4.0
    torch.testing.assert_close(bounded, plain / (1.0 + (plain / 4.0) ** 2).sqrt())
    varied = inputs.clone().requires_grad_()
    (exact,) = torch.autograd.grad(
        bound_inputs(varied, shift, scale, torch.tensor(0.25).double())[0].sum(), varied
    )
    torch.testing.assert_close(slope, exact, rtol=1e-7, atol=1e-15)
    for found, expected in zip(
        bound_inputs(inputs, shift, scale, torch.zeros(()).double()),
        (plain, scale.expand_as(plain)),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("architecture", ["m1", "m2", "m2-l"])
def test_learned_forces_stay_bounded_where_atoms_come_close(architecture):
    """Without a limit the forces of a pair grow with a high power of what the moments are: 1,000 eV/Å and more."""
    sizes = []
    for limit in (4.0, None):
        student = make_student(architecture, (29,), core_repulsion=False, input_limit=limit)
        crystal = bulk("Cu", cubic=True) * (2, 2, 2)
        crystal.positions[1] = crystal.positions[0] + [0.3, 0.2, 0.1]
        crystal.positions[2] = crystal.positions[0] + [-0.3, 0.2, 0.2]
        forces = student.double()(atoms_to_graph(crystal, student.cutoff)).forces
        sizes.append(float(forces.detach().abs().max()))
    assert sizes[0] < 0.5 * sizes[1], sizes
