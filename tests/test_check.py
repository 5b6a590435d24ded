"""The physics gate sees a planted defect in every row, and passes what is sound."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from untrained import make_student

from fastff import kernels
from fastff.checkpoint import save_model
from fastff.graph import Graph, edge_vectors
from fastff.models import Prediction, Student
from fastff.models.uncertainty import UncertaintyParameters
from fastff.neighbors import VerletCache, atoms_to_graph
from fastff.testing import (
    check_student,
    evaluate,
    make_structures,
    measure_crosstalk,
    measure_other_process,
    measure_saving,
    measure_skin,
    measure_supercell,
)
from fastff.testing.backends import measure_backends
from fastff.testing.gate import BACKEND_LIMITS, measure_size
from fastff.testing.subject import StudentSubject

ELEMENTS = (8, 29)
COLD = 2.0
"""K; at more an untrained student, which repels at short range only, falls into its own cores."""


def total(found: Prediction, graph: Graph, energies: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(found.energy).index_add(0, graph.batch, energies)


def _negate_forces(found: Prediction, graph: Graph, model: Student) -> Prediction:
    return Prediction(found.energy, -found.forces, found.stress, found.energies)


def _negate_stress(found: Prediction, graph: Graph, model: Student) -> Prediction:
    return Prediction(found.energy, found.forces, -found.stress, found.energies)


def _drop_shear(found: Prediction, graph: Graph, model: Student) -> Prediction:
    stress = found.stress * torch.eye(3, dtype=torch.float64)
    return Prediction(found.energy, found.forces, stress, found.energies)


def _pull_to_origin(found: Prediction, graph: Graph, model: Student) -> Prediction:
    extra = 1e-6 * graph.positions.square().sum(dim=1)
    energies = found.energies + extra.to(found.energies)
    energy = torch.zeros_like(found.energy).index_add(0, graph.batch, energies)
    forces = found.forces - 2e-6 * graph.positions.to(found.forces)
    return Prediction(energy, forces, found.stress, energies)


def _prefer_x(found: Prediction, graph: Graph, model: Student) -> Prediction:
    receivers = graph.edge_index[0]
    vectors = edge_vectors(graph).to(found.forces)
    pair = 1e-5 * (vectors[:, 0] ** 2) * (model.cutoff - vectors.norm(dim=1)) ** 4
    energies = found.energies.index_add(0, receivers, pair.to(found.energies))
    energy = torch.zeros_like(found.energy).index_add(0, graph.batch, energies)
    return Prediction(energy, found.forces, found.stress, energies)


def _count_atoms(found: Prediction, graph: Graph, model: Student) -> Prediction:
    sizes = torch.bincount(graph.batch)
    energy = found.energy + 1e-6 * sizes.to(found.energy) ** 2
    return Prediction(energy, found.forces, found.stress, found.energies)


def _depend_on_order(found: Prediction, graph: Graph, model: Student) -> Prediction:
    place = torch.arange(graph.n_atoms).to(found.forces)
    return Prediction(
        found.energy, found.forces * (1 + 1e-6 * place[:, None]), found.stress, found.energies
    )


def push_one(found: Prediction, graph: Graph, model: Student) -> Prediction:
    forces = found.forces.clone()
    forces[0] += 1e-6
    return Prediction(found.energy, forces, found.stress, found.energies)


def _shift_vacuum(found: Prediction, graph: Graph, model: Student) -> Prediction:
    energies = found.energies + 1e-6
    energy = found.energy + 1e-6 * torch.bincount(graph.batch).to(found.energy)
    return Prediction(energy, found.forces, found.stress, energies)


def _step_at_cutoff(found: Prediction, graph: Graph, model: Student) -> Prediction:
    counts = torch.bincount(graph.edge_index[0], minlength=graph.n_atoms)
    energies = found.energies + 1e-5 * counts
    energy = torch.zeros_like(found.energy).index_add(0, graph.batch, energies)
    return Prediction(energy, found.forces, found.stress, energies)


def _lose_digits(found: Prediction, graph: Graph, model: Student) -> Prediction:
    if model.dtype == torch.float64:
        return found
    forces = (found.forces * 256.0).round() / 256.0
    return Prediction(found.energy, forces, found.stress, found.energies)


def _mix_batch(found: Prediction, graph: Graph, model: Student) -> Prediction:
    forces = found.forces * (1 + 1e-6 * (graph.n_systems - 1))
    return Prediction(found.energy, forces, found.stress, found.energies)


def _attract(found: Prediction, graph: Graph, model: Student) -> Prediction:
    return Prediction(-found.energy, -found.forces, -found.stress, -found.energies)


def _see_hands(found: Prediction, graph: Graph, model: Student) -> Prediction:
    """A pseudoscalar of the first three edges of every atom: sound under rotation, wrong under inversion."""
    vectors = edge_vectors(graph).to(found.forces)
    counts = torch.bincount(graph.edge_index[0], minlength=graph.n_atoms)
    first = counts.cumsum(0) - counts
    some = counts >= 3
    triple = torch.stack([vectors[first[some] + k] for k in range(3)], dim=1)
    energies = found.energies.clone()
    energies[some] += 1e-5 * torch.linalg.det(triple.double())
    return Prediction(total(found, graph, energies), found.forces, found.stress, energies)


def _twirl(found: Prediction, graph: Graph, model: Student) -> Prediction:
    """Forces of a curl between neighbors, which are no gradient but keep the total force."""
    receivers = graph.edge_index[0]
    vectors = edge_vectors(graph).to(found.forces)
    near = (1.0 - vectors.norm(dim=1, keepdim=True) / model.cutoff).clamp_min(0.0) ** 3
    axis = torch.tensor([0.0, 0.0, 1.0]).to(found.forces)
    push = 0.3 * near * torch.linalg.cross(axis.expand_as(vectors), vectors)
    forces = found.forces.index_add(0, receivers, push)
    return Prediction(found.energy, forces, found.stress, found.energies)


def _leak(found: Prediction, graph: Graph, model: Student) -> Prediction:
    """One structure of a batch feels the first atom of all."""
    place = graph.positions[0, 0].to(found.energy)
    energy = found.energy + 1e-7 * place * (torch.arange(graph.n_systems).to(found.energy) > 0)
    return Prediction(energy, found.forces, found.stress, found.energies)


def _prefer_primitive(found: Prediction, graph: Graph, model: Student) -> Prediction:
    volume = torch.linalg.det(graph.cell).abs().to(found.energy)
    sizes = torch.bincount(graph.batch).to(found.energy)
    return Prediction(
        found.energy + 1e-6 * sizes * volume, found.forces, found.stress, found.energies
    )


def _squeeze(found: Prediction, graph: Graph, model: Student) -> Prediction:
    stress = found.stress[0] if len(found.stress) == 1 else found.stress
    return Prediction(found.energy, found.forces, stress, found.energies)


def _lose_stress(found: Prediction, graph: Graph, model: Student) -> Prediction:
    nothing = torch.full_like(found.stress, torch.nan)
    return Prediction(found.energy, found.forces, nothing, found.energies)


def _divide_by_nothing(found: Prediction, graph: Graph, model: Student) -> Prediction:
    """Forces that are no numbers where an atom has no neighbors, beside a sound energy."""
    alone = torch.bincount(graph.edge_index[0], minlength=graph.n_atoms) == 0
    forces = torch.where(alone[:, None], torch.nan, found.forces)
    return Prediction(found.energy, forces, found.stress, found.energies)


def _stumble_over_the_cutoff(found: Prediction, graph: Graph, model: Student) -> Prediction:
    """Forces that are no numbers where an atom is exactly at the cut-off."""
    apart = torch.cdist(graph.positions, graph.positions) == model.cutoff
    forces = torch.where(apart.any(dim=1)[:, None], torch.nan, found.forces)
    return Prediction(found.energy, forces, found.stress, found.energies)


def _jitter(found: Prediction, graph: Graph, model: Student) -> Prediction:
    """Noise in the energy, the same for the same positions, as a truncated neighbor list makes it."""
    wild = torch.sin(1e7 * graph.positions.sum(dim=1)).to(found.energies)
    energies = found.energies + 2e-3 * wild
    return Prediction(total(found, graph, energies), found.forces, found.stress, energies)


def _turn_in_single_precision(found: Prediction, graph: Graph, model: Student) -> Prediction:
    return found if model.dtype == torch.float64 else _prefer_x_strongly(found, graph, model)


def _prefer_x_strongly(found: Prediction, graph: Graph, model: Student) -> Prediction:
    forces = found.forces * torch.tensor([1.01, 1.0, 1.0]).to(found.forces)
    return Prediction(found.energy, forces, found.stress, found.energies)


def _heat(found: Prediction, graph: Graph, model: Student) -> Prediction:
    return _scale_twirl(found, graph, model, 30.0)


def _scale_twirl(found: Prediction, graph: Graph, model: Student, scale: float) -> Prediction:
    twirled = _twirl(found, graph, model)
    forces = found.forces + scale * (twirled.forces - found.forces)
    return Prediction(found.energy, forces, found.stress, found.energies)


DEFECTS: list[tuple[Callable[..., Prediction], str]] = [
    (_negate_forces, "forces, molecule"),
    (_negate_stress, "stress, bulk"),
    (_drop_shear, "stress, slab"),
    (_pull_to_origin, "translation, molecule"),
    (_prefer_x, "rotation, bulk"),
    (_see_hands, "inversion, bulk"),
    (_count_atoms, "supercell, bulk"),
    (_count_atoms, "separation"),
    (_prefer_primitive, "primitive cell"),
    (_depend_on_order, "permutation, bulk"),
    (push_one, "momentum, bulk"),
    (_shift_vacuum, "isolated atoms"),
    (_step_at_cutoff, "cut-off"),
    (_twirl, "jacobian, float32, bulk"),
    (_turn_in_single_precision, "rotation, float32, bulk"),
    (_lose_digits, "float32, bulk"),
    (_mix_batch, "batch"),
    (_squeeze, "batch"),
    (_leak, "crosstalk"),
    (_attract, "repulsion"),
    (_lose_stress, "stress, bulk"),
    (_lose_stress, "rotation, bulk"),
    (_lose_stress, "primitive cell"),
    (_lose_stress, "batch"),
    (_divide_by_nothing, "isolated atoms"),
    (_stumble_over_the_cutoff, "cut-off"),
    (_heat, "NVE drift, bulk"),
    (_jitter, "NVE order, bulk"),
]


def name_test(check: str) -> str:
    head, _, structure = check.rpartition(", ")
    return head if structure in ("molecule", "bulk", "slab") else check


@pytest.fixture
def student() -> Student:
    return make_student("m1", ELEMENTS, energy_scale=0.02)


@pytest.mark.parametrize(("defect", "caught_by"), DEFECTS)
def test_a_defect_is_seen(
    defect: Callable[..., Prediction],
    caught_by: str,
    student: Student,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    test = name_test(caught_by)
    sound = check_student(student, only={test}, temperature=COLD)
    assert caught_by in {check.name for check in sound.checks if check.passed}, f"\n{sound}"
    forward = Student.forward
    monkeypatch.setattr(Student, "forward", lambda self, g: defect(forward(self, g), g, self))
    report = check_student(student, only={test}, temperature=COLD)
    assert caught_by in report.failures, f"\n{report}"
    assert not report.passed
    assert report.to_dict()["passed"] is False


def test_a_stale_neighbor_list_is_seen(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerletCache, "needs_rebuild", lambda self, *state: self._reference is None)
    monkeypatch.setattr(VerletCache, "_filter", lambda self, *state: (self._edges, self._shifts))
    rebuild = VerletCache.rebuild

    def build_without_skin(self: VerletCache, *state: Any) -> None:
        self.skin = 0.0
        rebuild(self, *state)

    monkeypatch.setattr(VerletCache, "rebuild", build_without_skin)
    report = check_student(student, only={"skin"})
    assert "skin, bulk" in report.failures, f"\n{report}"


def test_a_lost_parameter_is_seen(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    state_dict = Student.state_dict

    def round_tensors(self: Student, *arguments: Any, **more: Any) -> dict[str, torch.Tensor]:
        whole = state_dict(self, *arguments, **more)
        return {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in whole.items()}

    assert check_student(student, only={"saved and loaded"}).passed
    with monkeypatch.context() as patch:
        patch.setattr(
            "fastff.testing.files.save_model",
            lambda path, model, header: _save_rounded(path, model, header, round_tensors),
        )
        report = check_student(student, only={"saved and loaded"})
    assert report.failures == ("saved and loaded",)


def test_a_lost_uncertainty_is_seen(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    student.uncertainty = UncertaintyParameters(*(torch.rand(2, 3) for _ in range(6)))
    assert check_student(student, only={"saved and loaded"}).passed

    def save_without(path: Path, model: Student, header: dict) -> None:
        other = copy.deepcopy(model)
        other.uncertainty = None
        save_model(path, other, header)

    monkeypatch.setattr("fastff.testing.files.save_model", save_without)
    assert check_student(student, only={"saved and loaded"}).failures == ("saved and loaded",)


def _save_rounded(path: Path, model: Student, header: dict, round_tensors: Any) -> None:
    other = copy.deepcopy(model)
    other.load_state_dict(round_tensors(model))
    save_model(path, other, header)


def test_another_process_that_sees_another_file_is_seen(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, student, {})
    cell = [bulk("Cu", cubic=True)]
    assert measure_other_process(path, cell) == 0.0
    other = copy.deepcopy(student)
    other.energy_scale.mul_(1.0 + 1e-12)
    monkeypatch.setattr("fastff.testing.files.load_model", lambda *a, **k: other.double())
    assert measure_other_process(path, cell) == 1.0
    monkeypatch.setattr("fastff.testing.files._PROGRAM", "raise SystemExit(1)")
    assert np.isnan(measure_other_process(path, cell))


def test_missing_images_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minimum-image list, the classic mistake, breaks small cells."""
    from dataclasses import replace

    def keep_nearest(atoms: Atoms, cutoff: float) -> Graph:
        graph = atoms_to_graph(atoms, cutoff)
        inside = (graph.shifts.abs().amax(dim=1) <= 1) & (
            graph.edge_index[0] != graph.edge_index[1]
        )
        return replace(graph, edge_index=graph.edge_index[:, inside], shifts=graph.shifts[inside])

    model = make_student("m1", (29,)).double()
    atoms = bulk("Cu", cubic=True)
    assert measure_supercell(model, atoms) < 1e-9
    monkeypatch.setattr("fastff.testing.subject.atoms_to_graph", keep_nearest)
    assert measure_supercell(model, atoms) > 1e-6


@pytest.mark.parametrize("elements", [(1, 8), (8, 29), (6, 8, 78)])
def test_made_structures_push_no_atoms_together(elements: tuple[int, ...]) -> None:
    for name, atoms in make_structures(elements).items():
        first, second, distances = neighbor_list("ijd", atoms, 5.0)
        radii = covalent_radii[atoms.numbers]
        assert (distances > radii[first] + radii[second]).all(), name
        assert len(distances) > 0, name


@pytest.mark.parametrize("elements", [(55, 53), (37, 53), (19, 17)])
def test_a_defect_is_seen_where_elements_are_large(
    elements: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Atoms of caesium are 6.1 Å apart at 1.25 diameters, beyond the cut-off: all forces would be zero."""
    model = make_student("m1", elements, energy_scale=0.02)
    forward = Student.forward
    for defect, test in ((_negate_forces, "forces"), (_drop_shear, "stress")):
        with monkeypatch.context() as patch:
            patch.setattr(
                Student,
                "forward",
                lambda self, g, defect=defect: defect(forward(self, g), g, self),
            )
            report = check_student(model, only={test})
        assert f"{test}, bulk" in report.failures, f"\n{report}"
        assert test == "stress" or "forces, molecule" in report.failures, f"\n{report}"


@pytest.mark.parametrize("test", ["skin", "crosstalk", "saving"])
def test_equal_bits_are_asked_of_sums_in_a_fixed_order(
    student: Student, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU torch adds in any order otherwise; what was chosen before holds again after."""
    seen, forward = [], Student.forward

    def look() -> tuple[bool, str]:
        return torch.are_deterministic_algorithms_enabled(), kernels.explain()[0].reason

    def call(self: Student, graph: Graph) -> Prediction:
        seen.append(look())
        return forward(self, graph)

    monkeypatch.setattr(Student, "forward", call)
    before, structures = look(), list(make_structures(ELEMENTS).values())
    measures: dict[str, Callable[[], float]] = {
        "skin": lambda: measure_skin(student, structures[1]),
        "crosstalk": lambda: measure_crosstalk(student, structures),
        "saving": lambda: measure_saving(student, structures),
    }
    assert measures[test]() == 0.0
    assert set(seen) == {(True, "selected by kernels.use")}
    assert look() == before
    assert not before[0]


def test_kernels_are_held_to_float64_and_to_the_size_of_forces(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the kernels whose forces are off by a part of themselves, as rounding is."""
    monkeypatch.setattr("fastff.testing.gate.explain_backends", lambda model: "")

    def answer(model: Student, atoms: Atoms) -> tuple[torch.Tensor, torch.Tensor]:
        exact = evaluate(copy.deepcopy(student).double(), [atoms])
        return exact.energy[0] + off * len(atoms), exact.forces * (1.0 + part)

    monkeypatch.setattr("fastff.testing.backends.evaluate_kernels", answer)
    dense = bulk("Cu", cubic=True, a=2.9)
    dense.rattle(0.1, seed=1)
    size = measure_size(StudentSubject(copy.deepcopy(student).double()), dense)
    assert size > 10.0
    part, off = 0.0, 0.0
    assert max(measure_backends(student, copy.deepcopy(student).double(), dense)) < 1e-12
    failures = {}
    for part, off in ((1e-6, 0.0), (1e-3, 0.0), (0.0, 0.5e-6 * size), (0.0, 2e-6 * size)):
        report = check_student(
            student, {"dense": dense}, only={"kernels, energy", "kernels, forces"}
        )
        failures[part, off] = {name for name in report.failures if "dense" in name}
    assert list(failures.values()) == [
        set(), {"kernels, forces, dense"}, set(), {"kernels, energy, dense"},
    ]  # fmt: skip


def read_page() -> dict[str, float]:
    """Tests and limits of the page on the gate."""
    text = (Path(__file__).parent.parent / "docs" / "check.md").read_text(encoding="utf-8")
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): float(row[2]) for row in cells[1:]}


def test_a_sound_student_passes_unchanged(student: Student) -> None:
    before = copy.deepcopy(student.state_dict())
    report = check_student(student, temperature=COLD)
    assert report.passed, f"\n{report}"
    assert "FAIL" not in str(report)
    assert set(report.not_applicable) == {"other process", "kernels, energy", "kernels, forces"}
    page = read_page()
    assert {check.test for check in report.checks} == set(page)
    assert all(check.limit == page[check.test] for check in report.checks if check.passed)
    assert (page["kernels, energy"], page["kernels, forces"]) == BACKEND_LIMITS
    assert student.dtype == torch.float32
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
