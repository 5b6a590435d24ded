"""Uncertainty: linear features, calibrated error bars on held-out frames, grades that grow outside, files, policy."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from untrained import KINDS, make_student

from fastff.calculator import FastFFCalculator
from fastff.checkpoint import load_model, read_header, save_model
from fastff.errors import DataError, ModelFileError, UsageError
from fastff.graph import Graph, batch_graphs
from fastff.models import Student, uncertainty
from fastff.models.moment import MomentStudent
from fastff.models.uncertainty import (
    Uncertainty,
    apply_extrapolation_policy,
    assess_structure,
    find_places,
    fit_uncertainty,
    measure_uncertainty,
    predict_with_uncertainty,
)
from fastff.neighbors import atoms_to_graph
from fastff.testing import evaluate, make_structures

ELEMENTS = (8, 29)


@pytest.fixture(scope="module", params=KINDS)
def student(request: pytest.FixtureRequest) -> Student:
    return make_student(request.param, ELEMENTS).double()


def draw_cells(n: int, scale: float, seed: int) -> list[Atoms]:
    """Rattled copper oxide cells of eight atoms, each with another strain."""
    rng = np.random.default_rng(seed)
    cells = []
    for _ in range(n):
        atoms = bulk("CuO", "rocksalt", a=4.3, cubic=True)
        atoms.set_cell(atoms.cell.array * (1 + rng.normal(scale=0.01)), scale_atoms=True)
        atoms.positions += rng.normal(scale=scale, size=atoms.positions.shape)
        cells.append(atoms)
    return cells


def make_graphs(student: Student, cells: list[Atoms]) -> list[Graph]:
    return [atoms_to_graph(atoms, student.cutoff) for atoms in cells]


def test_energies_are_linear_in_the_features(student: Student) -> None:
    graph = batch_graphs(make_graphs(student, list(make_structures(ELEMENTS).values())))
    prediction, features = student.predict_features(graph)
    found = student(graph)
    torch.testing.assert_close(prediction.energy, found.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.forces, found.forces, rtol=0, atol=1e-10)
    species = student.find_species(graph.numbers)
    if isinstance(student, MomentStudent):
        readout = torch.cat([block.readout for block in student.blocks], dim=1)[species]
    else:
        readout = student.readout2.expand_as(features.values)  # type: ignore[union-attr, operator]
    bare = copy.deepcopy(student)
    bare.core = None
    learned = bare(graph).energies - student.composition_energies[species]
    expected = (features.values * readout).sum(dim=1) * student.energy_scale
    torch.testing.assert_close(learned, expected, rtol=0, atol=1e-9)


def test_an_isolated_atom_has_no_features(student: Student) -> None:
    graph = batch_graphs(make_graphs(student, [Atoms([z]) for z in ELEMENTS]))
    _, features = student.predict_features(graph)
    assert features.values.abs().max() < 1e-12


@pytest.fixture(scope="module")
def fitted() -> tuple[Student, Student]:
    """A student with its uncertainty, and one with another last layer that plays the teacher."""
    student = make_student("m1", ELEMENTS).double()
    teacher = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(5)
    readout = teacher.blocks[0].readout  # type: ignore[union-attr, index]
    readout.add_(0.1 * torch.randn(readout.shape, generator=generator, dtype=torch.float64))
    held = draw_cells(40, 0.08, seed=2)
    student.uncertainty = fit_uncertainty(
        student,
        make_graphs(student, draw_cells(60, 0.08, seed=1)),
        make_graphs(student, held),
        evaluate(teacher, held).energy.tolist(),
    )
    return student, teacher


@pytest.mark.parametrize("error", [1e-6, 1e-3])
def test_an_isolated_atom_does_not_spoil_the_fit(
    fitted: tuple[Student, Student], error: float
) -> None:
    """It has no features, so that no error bar could explain its error."""
    student, teacher = fitted
    held = draw_cells(40, 0.08, seed=2)
    energies = evaluate(teacher, held).energy.tolist()
    single = Atoms([student.elements[0]])
    own = float(evaluate(student, [single]).energy[0])
    training = make_graphs(student, draw_cells(60, 0.08, seed=1))
    parameters = fit_uncertainty(
        student, training, make_graphs(student, [*held, single]), [*energies, own + error]
    )
    graph = batch_graphs(make_graphs(student, held))
    known = measure_uncertainty(student, graph).energy
    found = measure_uncertainty(student, graph, parameters).energy
    torch.testing.assert_close(found, known, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("architecture", ["m1", "m2", "painn"])
def test_uncertainty_alone_is_that_of_a_prediction(architecture: str) -> None:
    student = make_student(architecture, ELEMENTS).double()
    graph = batch_graphs(make_graphs(student, draw_cells(5, 0.1, seed=8)))
    with torch.no_grad():
        expected = student.predict_features(graph)[1]
        found = student.compute_features(graph)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.unbounded, expected.unbounded)


def test_blocks_of_atoms_change_nothing(
    fitted: tuple[Student, Student], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a structure without one of the elements, and as the fused kernels' evaluation asks for it."""
    student, _ = fitted
    assert student.uncertainty is not None
    for atoms in (draw_cells(1, 0.2, seed=9)[0] * (1, 1, 3), bulk("Cu", cubic=True)):
        graph = make_graphs(student, [atoms])[0]
        whole = measure_uncertainty(student, graph)
        places = find_places(student.find_species(graph.numbers), len(student.elements))
        rows = student.compute_features(graph).unbounded
        for size in (10**6, 5):
            monkeypatch.setattr(uncertainty, "GRADE_ATOMS", size)
            found = assess_structure(rows, places, student.uncertainty)
            torch.testing.assert_close(found[:1], whole.energy, rtol=1e-12, atol=0.0)
            torch.testing.assert_close(found[1:], whole.grades, rtol=1e-12, atol=0.0)


def test_error_bars_are_as_long_as_errors(fitted: tuple[Student, Student]) -> None:
    student, teacher = fitted
    cells = draw_cells(60, 0.08, seed=3)
    graph = batch_graphs(make_graphs(student, cells))
    prediction, uncertainty = predict_with_uncertainty(student, graph)
    ratio = (prediction.energy - evaluate(teacher, cells).energy) / uncertainty.energy
    assert 0.5 < float(ratio.square().mean().sqrt()) < 2.0
    assert 0.4 < float((ratio.abs() < 1).double().mean()) < 0.95


def test_grades_are_one_at_the_edge_and_grow_outside(fitted: tuple[Student, Student]) -> None:
    student, _ = fitted
    inside, outside = (
        measure_uncertainty(student, batch_graphs(make_graphs(student, draw_cells(40, scale, 4))))
        for scale in (0.08, 0.35)
    )
    assert 0.0 <= float((inside.grades > 1).double().mean()) < 0.03
    assert float((outside.grades > 1).double().mean()) > 0.5
    assert outside.energy.median() > 2 * inside.energy.median()


@pytest.mark.parametrize("share", [0.6, 0.4, 0.2])
def test_atoms_that_fell_into_each_other_are_outside(
    fitted: tuple[Student, Student], share: float
) -> None:
    """Also where the radial basis follows their distance no longer (``inner_limit``)."""
    student, _ = fitted
    assert student.config.inner_limit is not None
    atoms = draw_cells(1, 0.0, seed=4)[0]
    sizes = covalent_radii[atoms.numbers]
    atoms.set_distance(0, 4, share * (sizes[0] + sizes[4]), fix=0)
    grades = measure_uncertainty(student, make_graphs(student, [atoms])[0]).grades
    assert bool((grades[[0, 4]] > 2).all())  # the limit of apply_extrapolation_policy


def test_a_batch_is_its_structures_and_extensive(fitted: tuple[Student, Student]) -> None:
    student, _ = fitted
    cells = draw_cells(3, 0.08, seed=6)
    together = measure_uncertainty(student, batch_graphs(make_graphs(student, cells)))
    alone = [measure_uncertainty(student, graph) for graph in make_graphs(student, cells)]
    torch.testing.assert_close(together.energy, torch.cat([one.energy for one in alone]))
    torch.testing.assert_close(together.grades, torch.cat([one.grades for one in alone]))
    double = measure_uncertainty(student, make_graphs(student, [cells[0].repeat((2, 1, 1))])[0])
    assert float(double.energy) == pytest.approx(2 * float(alone[0].energy), rel=1e-9)


def test_through_a_model_file(fitted: tuple[Student, Student], tmp_path: Path) -> None:
    student, _ = fitted
    path = tmp_path / "m.safetensors"
    save_model(path, student, {})
    again = load_model(path, dtype=torch.float64)
    graph = make_graphs(student, draw_cells(1, 0.1, seed=7))[0]
    one, other = (measure_uncertainty(model, graph) for model in (student, again))
    # Features of equal tensors at other addresses may differ in the last bit: matrix products depend on alignment.
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert student.uncertainty is not None
    assert again.uncertainty is not None
    for name, tensor in student.uncertainty.to_tensors().items():
        assert torch.equal(tensor, again.uncertainty.to_tensors()[name]), name
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.grades, other.grades, rtol=1e-12, atol=0)
    assert read_header(path)["format"] == 3
    single = measure_uncertainty(load_model(path), graph)
    torch.testing.assert_close(single.grades, one.grades, rtol=2e-2, atol=1e-3)
    damaged = copy.deepcopy(student)
    damaged.uncertainty = None
    damaged.register_buffer("uncertainty_of_what", torch.zeros(1))
    save_model(path, damaged, {})
    with pytest.raises(ModelFileError):
        load_model(path)


def test_a_student_without_it_says_so(student: Student) -> None:
    graph = make_graphs(student, draw_cells(1, 0.1, seed=0))[0]
    with pytest.raises(UsageError, match="no uncertainty"):
        measure_uncertainty(student, graph)


def test_too_little_data(student: Student) -> None:
    graphs = make_graphs(student, draw_cells(4, 0.1, seed=0))
    with pytest.raises(DataError, match="at least four"):
        fit_uncertainty(student, graphs, graphs[:3], [0.0] * 3)
    with pytest.raises(DataError, match="one energy per"):
        fit_uncertainty(student, graphs, graphs, [0.0] * 3)


def test_an_element_that_was_never_trained_on_is_outside() -> None:
    student = make_student("m1", (8, 14, 29)).double()
    graphs = make_graphs(student, draw_cells(8, 0.08, seed=1))
    parameters = fit_uncertainty(student, graphs, graphs, [0.0] * 8)
    cell = bulk("CuO", "rocksalt", a=4.3, cubic=True)
    cell.numbers[0] = 14
    grades = measure_uncertainty(student, make_graphs(student, [cell])[0], parameters).grades
    assert torch.isinf(grades[0])
    assert torch.isfinite(grades[1:]).all()


class TestPolicy:
    """ignore, warn, raise."""

    far = Uncertainty(torch.zeros(1), torch.tensor([0.5, 2.5, 9.0]))
    near = Uncertainty(torch.zeros(1), torch.tensor([0.5, 1.9]))
    lost = Uncertainty(torch.zeros(1), torch.tensor([0.5, torch.nan]))

    def test_three_ways(self) -> None:
        assert apply_extrapolation_policy(self.far, "ignore") is None
        line = apply_extrapolation_policy(self.far, "warn")
        assert line is not None
        assert "2 atoms (1, 2)" in line
        assert "grade 9 at atom 2" in line
        with pytest.raises(DataError, match="2 atoms"):
            apply_extrapolation_policy(self.far, "raise")
        with pytest.raises(DataError, match=r"1 atoms \(1\).* grade nan at atom 1"):
            apply_extrapolation_policy(self.lost, "raise")
        for policy in ("ignore", "warn", "raise"):
            assert apply_extrapolation_policy(self.near, policy) is None  # type: ignore[arg-type]

    def test_unknown_policies_are_refused(self) -> None:
        with pytest.raises(UsageError, match="ignore, warn, raise"):
            apply_extrapolation_policy(self.near, "shout")  # type: ignore[arg-type]


def test_calibration_on_real_labels(shared_data: Path, tmp_path: Path) -> None:
    """A short training on cold silicon: error bars fit held-out errors, and the melt is seen as foreign."""
    from fastff.distill.formats import read_labels
    from fastff.distill.train import TrainSettings, train_student

    frames = read_labels(shared_data / "labels" / "si_7net-0.npz").frames
    cold = [frame for frame in frames if frame.temperature < 1200]
    hot = [frame for frame in frames if frame.temperature > 2300][::6]
    trajectories = sorted({frame.trajectory for frame in cold})
    parts = [[f for f in cold if f.trajectory % 4 in rest] for rest in ((0, 1), (2,), (3,))]
    assert len(trajectories) >= 4
    assert all(parts)
    training, validation, test = parts[0][::4], parts[1][::2], parts[2][::2]
    settings = TrainSettings(
        architecture="m1", cutoff=4.0, n_steps=120, batch_atoms=192, n_validations=2, device="cpu"
    )
    student = train_student(training, validation[:4], settings, tmp_path).student
    graphs = {
        name: [atoms_to_graph(frame.atoms, student.cutoff) for frame in part]
        for name, part in (("seen", training), ("held", validation), ("test", test), ("hot", hot))
    }
    energies = [frame.labels.energy for frame in validation]
    student.uncertainty = fit_uncertainty(student, graphs["seen"], graphs["held"], energies)
    prediction, uncertainty = predict_with_uncertainty(student, batch_graphs(graphs["test"]))
    labels = torch.tensor([frame.labels.energy for frame in test], dtype=torch.float64)
    ratio = (prediction.energy - labels) / uncertainty.energy
    assert 0.3 < float(ratio.square().mean().sqrt()) < 3.0
    foreign = measure_uncertainty(student, batch_graphs(graphs["hot"]))
    assert foreign.energy.median() > 3 * uncertainty.energy.median()
    assert float((uncertainty.grades > 1).double().mean()) < 0.1
    assert float((foreign.grades > 1).double().mean()) > 0.3


def test_the_calculator_reports_and_judges(fitted: tuple[Student, Student]) -> None:
    student = fitted[0]
    known = draw_cells(1, 0.08, seed=9)[0]
    strange = known.copy()
    strange.set_cell(strange.cell.array * 0.85, scale_atoms=True)
    quiet = FastFFCalculator(student, device="cpu", dtype="float64")
    careful = FastFFCalculator(student, device="cpu", dtype="float64", on_extrapolation="warn")
    strict = FastFFCalculator(student, device="cpu", dtype="float64", on_extrapolation="raise")
    known.calc = careful
    energy = known.get_potential_energy()
    assert careful.extras["energy_uncertainty"] > 0
    assert careful.extras["extrapolation_grades"].shape == (len(known),)
    assert careful.explain().path == "torch"
    quiet.calculate(known)
    assert quiet.extras == {}
    assert quiet.results["energy"] == pytest.approx(energy, abs=1e-10)
    with pytest.warns(UserWarning, match="outside what the student was trained on"):
        careful.calculate(strange)
    with pytest.raises(DataError, match="extrapolation grade"):
        strict.calculate(strange)
    assert strict.results == {}


def test_the_calculator_refuses_what_it_cannot_measure() -> None:
    bare = make_student("m1", ELEMENTS)
    with pytest.raises(UsageError, match="holds no uncertainty"):
        FastFFCalculator(bare, device="cpu", on_extrapolation="warn")
    with pytest.raises(UsageError, match="'stop' is not one of"):
        FastFFCalculator(bare, device="cpu", on_extrapolation="stop")  # type: ignore[arg-type]
