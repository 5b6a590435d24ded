"""Hessian-vector targets in training and in metrics. Not here: labelling them, label files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from emt_frames import label_by_emt, make_alloys
from torch_geometric.data import Batch

from fastff.distill.captured import CapturedLosses
from fastff.distill.data import measure_labels, prepare_frames
from fastff.distill.hessian import add_hessian_vectors, add_to_split, choose_frames
from fastff.distill.jobs import LabelJob
from fastff.distill.labelling import displace, draw_direction, label_jobs
from fastff.distill.losses import (
    BATCH_FIELDS,
    ResidualLosses,
    count_labels,
    pick_fields,
    relative_huber,
)
from fastff.distill.request import build_request
from fastff.distill.resident import ResidentBatches
from fastff.distill.split import Split
from fastff.distill.store import LabelStore
from fastff.distill.train import TrainSettings, prepare_student, train_student
from fastff.errors import DataError, UsageError
from fastff.inference import predict
from fastff.labels import Frame, HessianVector, Labels
from fastff.models import Student
from fastff.report.hessian import compare_products, measure_hessian_vectors
from fastff.teachers import load_teacher

SETTINGS = TrainSettings(cutoff=4.0, n_steps=24, batch_atoms=16, n_validations=3, device="cpu")
STEP = 0.01


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    """Labelled by EMT, with Hessian-vector targets."""
    return label_by_emt(make_alloys(24), STEP)


def label_by_student(student: Student, structures: list[Atoms], step: float) -> list[Frame]:
    """Frames whose teacher is the student itself."""
    teacher = type("Own", (), {"label": staticmethod(partial(predict, student))})
    jobs = [LabelJob(atoms, "file", k, -1, 300.0) for k, atoms in enumerate(structures)]
    return label_jobs(teacher, jobs, step)


def make_student(frames: list[Frame], architecture: str = "m2") -> Student:
    """Float64, and so smooth that short differences are as good as derivatives."""
    student, _ = prepare_student(frames, replace(SETTINGS, architecture=architecture))
    return student.double()


@pytest.mark.parametrize("architecture", ["m1", "m2", "painn"])
def test_own_products_give_no_loss(frames: list[Frame], architecture: str) -> None:
    """The exact product is the limit of differences of the student's own forces, core repulsion and all."""
    student = make_student(frames, architecture)
    close = molecule("CO")
    close.numbers[:] = (29, 79)  # 1.15 Å apart: the core repels
    for structures in (make_alloys(2, 7), [close]):
        own = label_by_student(student, structures, 1e-6)
        batch = Batch.from_data_list(prepare_frames(own, student))
        losses = ResidualLosses(student, measure_labels(own))(*pick_fields(batch))
        assert losses.shape == (4,)
        assert losses[:3].max() < 1e-11
        assert losses[3] < 1e-8


def test_a_wrong_product_is_seen_by_its_own_term(frames: list[Frame]) -> None:
    student = make_student(frames)
    own = label_by_student(student, make_alloys(2, 7), 1e-5)
    target = own[0].hessian_vector
    assert target is not None
    wrong = replace(target, forces_plus=target.forces_plus + 1e-4)
    spoilt = [replace(own[0], hessian_vector=wrong), own[1]]
    batch = Batch.from_data_list(prepare_frames(spoilt, student))
    statistics = measure_labels(own)
    losses = ResidualLosses(student, statistics)(*pick_fields(batch))
    assert losses[:3].max() < 1e-20
    unit = statistics.product_rms
    # 1e-4 eV/Å over 2e-5 Å is 5 eV/Å^2, in half of the labels
    expected = 0.5 * relative_huber(torch.tensor(5.0), unit)
    torch.testing.assert_close(losses[3].item(), expected.item(), rtol=1e-4, atol=0.0)


def test_gradient_of_the_hessian_term_in_the_parameters(frames: list[Frame]) -> None:
    """Third-order derivatives against differences of the loss."""
    student = make_student(frames, "m2")
    fields = pick_fields(Batch.from_data_list(prepare_frames(frames[:3], student)))
    losses = ResidualLosses(student, measure_labels(frames))
    for parameter in (student.radial_weights, student.blocks[0].weight1, student.blocks[1].mixing):
        (gradient,) = torch.autograd.grad(losses(*fields)[3], parameter)
        move = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * move
            values.append(losses(*fields)[3].item())
            with torch.no_grad():
                parameter -= sign * 1e-5 * move
        slope = (values[0] - values[1]) / 2e-5
        assert (gradient * move).sum().item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("architecture", ["m2", "painn"])
def test_frames_without_targets_are_masked(
    frames: list[Frame], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside frames that have them they change nothing; a set without any has three losses."""
    student = make_student(frames, architecture)
    statistics = measure_labels(frames)
    bare = [replace(frame, hessian_vector=None) for frame in frames[:2]]
    losses = ResidualLosses(student, statistics)

    def evaluate(chosen: list[Frame]) -> tuple[torch.Tensor, torch.Tensor]:
        fields = pick_fields(Batch.from_data_list(prepare_frames(chosen, student)))
        return losses(*fields), count_labels(fields)

    mixed, counts = evaluate([*bare, *frames[2:4]])
    alone, alone_counts = evaluate(frames[2:4])
    torch.testing.assert_close(mixed[3], alone[3])
    monkeypatch.setattr(losses, "_find_targeted", lambda *_: None)  # as on a GPU
    torch.testing.assert_close(evaluate([*bare, *frames[2:4]])[0], mixed, rtol=1e-12, atol=0.0)
    monkeypatch.undo()
    none = pick_fields(Batch.from_data_list(prepare_frames([*bare, frames[2]], student)[:2]))
    assert losses(*none)[3] == 0.0
    losses(*none).sum().backward()
    assert counts.tolist() == [16.0, 4.0, 24.0, 24.0]
    assert alone_counts.tolist() == [8.0, 2.0, 12.0, 24.0]
    plain, plain_counts = evaluate(bare)
    assert plain.shape == plain_counts.shape == (3,)
    assert measure_labels(bare).product_rms == 0.0


def test_antisymmetric_part_of_a_direct_teacher_does_not_count(frames: list[Frame]) -> None:
    """A force field with a curl adds ``A u`` with ``u A u = 0``."""
    student = make_student(frames)
    (own,) = label_by_student(student, make_alloys(1, 7), 1e-4)
    target = own.hessian_vector
    assert target is not None
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(12, 12))
    curl = ((matrix - matrix.T) @ target.direction.ravel()).reshape(4, 3)
    direct = replace(
        target,
        forces_plus=target.forces_plus - target.step * curl,
        forces_minus=target.forces_minus + target.step * curl,
    )
    fields = pick_fields(
        Batch.from_data_list(prepare_frames([replace(own, hessian_vector=direct)], student))
    )
    statistics = measure_labels([own])
    assert ResidualLosses(student, statistics)(*fields)[3] > 1e-3
    assert ResidualLosses(student, statistics, conservative=False)(*fields)[3] < 1e-8
    stiffer = replace(target, forces_plus=target.forces_plus - target.step * target.direction)
    fields = pick_fields(
        Batch.from_data_list(prepare_frames([replace(own, hessian_vector=stiffer)], student))
    )
    assert ResidualLosses(student, statistics, conservative=False)(*fields)[3] > 1e-5


def test_resident_batches_give_the_hessian_loss_of_collated_ones(frames: list[Frame]) -> None:
    """Padding atoms and frames without targets change nothing."""
    small = label_by_emt([bulk("Cu", a=a) for a in (3.6, 3.7)], STEP)
    mixed = [*frames[:4], *small, frames[5]]
    mixed[6] = replace(mixed[6], hessian_vector=None)
    student = make_student(frames)
    data = prepare_frames(mixed, student)
    losses = ResidualLosses(student, measure_labels(mixed))
    resident = ResidentBatches(data, 3, "cpu", seed=5, padding_vector=(student.cutoff, 0.0, 0.0))
    for batch in resident:
        fields = pick_fields(batch)
        own = losses(*fields)
        chosen = pick_fields(Batch.from_data_list([data[k] for k in batch["frame_index"].tolist()]))
        torch.testing.assert_close(own, losses(*chosen), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(count_labels(fields), count_labels(chosen))


def test_training_on_products_lowers_their_error(frames: list[Frame], tmp_path: Path) -> None:
    """The same few frames and steps, with and without the term; held-out products tell."""
    train, validation = frames[:12], frames[16:]
    settings = replace(SETTINGS, n_steps=150, architecture="m1")
    accuracy = {}
    for weight in (0.0, 0.3):
        result = train_student(
            train, validation, replace(settings, hessian_weight=weight), tmp_path / str(weight)
        )
        accuracy[weight] = measure_hessian_vectors(validation, partial(predict, result.student))
    with_term, without = accuracy[0.3], accuracy[0.0]
    assert with_term is not None
    assert without is not None
    assert with_term.n_frames == 8
    assert with_term.rmse < 0.85 * without.rmse


def test_metric_of_products_by_hand() -> None:
    target = HessianVector(np.ones((1, 3)), 0.5, np.full((1, 3), -1.0), np.full((1, 3), 1.0))
    found = compare_products([target], [np.array([[2.0, 2.0, 5.0]])])
    assert found.rms == pytest.approx(2.0)
    assert found.rmse == pytest.approx(3.0 / np.sqrt(3))
    assert found.accuracy == pytest.approx(1 - found.rmse / 2.0)
    assert found.mae == pytest.approx(1.0)
    assert found.curvature_mae == pytest.approx(1.0)
    assert found.cosine == pytest.approx(18 / (np.sqrt(12) * np.sqrt(33)))
    with pytest.raises(DataError, match="teacher are zero"):
        compare_products([replace(target, forces_plus=target.forces_minus)], [np.ones((1, 3))])


def test_metric_is_perfect_for_the_teacher_itself(frames: list[Frame]) -> None:
    found = measure_hessian_vectors(frames[:3], load_teacher("analytic:emt").label)
    assert found is not None
    assert found.accuracy > 1 - 1e-9
    bare = [replace(frames[0], hessian_vector=None)]
    assert measure_hessian_vectors(bare, load_teacher("analytic:emt").label) is None


def test_fields_are_named_in_the_order_of_the_loss() -> None:
    import inspect

    names = list(inspect.signature(ResidualLosses.forward).parameters)[1:]
    assert tuple(names[: len(BATCH_FIELDS)]) == BATCH_FIELDS
    assert names[len(BATCH_FIELDS) :] == ["direction", "target_product"]


def test_direction_has_no_translation_and_unit_length() -> None:
    atoms = make_alloys(1)[0]
    direction = draw_direction(atoms)
    np.testing.assert_allclose(direction.sum(axis=0), 0.0, atol=1e-12)
    assert np.mean(np.sum(direction**2, axis=1)) == pytest.approx(1.0)
    np.testing.assert_allclose(
        displace(atoms, direction).positions - atoms.positions, direction, atol=1e-12
    )


def test_targets_are_added_to_labelled_frames_once(tmp_path: Path) -> None:
    """Two evaluations each, none for those stored by an earlier run; the rest stays as it was."""
    teacher = load_teacher("analytic:emt")
    bare = label_by_emt(make_alloys(9))
    bare[0] = replace(bare[0], source="close-contact")
    bare[8] = replace(bare[8], source="rattle")
    calls: list[int] = []
    label = teacher.label

    def count(structures: Sequence[Atoms]) -> list[Labels]:
        calls.append(len(structures))
        return label(structures)

    teacher.label = count  # type: ignore[method-assign]
    assert choose_frames(bare, 3) == [1, 4, 7]
    assert choose_frames(bare, 99) == list(range(1, 9))
    assert choose_frames(bare, 0) == []
    path = tmp_path / "hessian.h5"
    found = add_hessian_vectors(teacher, bare, 3, path, batch_atoms=16)
    assert calls == [4, 2]
    assert [k for k, frame in enumerate(found) if frame.hessian_vector] == [1, 4, 7]
    whole = label_by_emt(make_alloys(9), STEP)
    for own, other in zip(found, whole, strict=True):
        assert own.atoms == other.atoms
        if own.hessian_vector is not None and other.hessian_vector is not None:
            np.testing.assert_allclose(own.hessian_vector.product, other.hessian_vector.product)
    progress: list[tuple[int, int]] = []
    more = add_hessian_vectors(
        teacher, bare, 4, path, on_batch=lambda done, total: progress.append((done, total))
    )
    n_new = len(set(choose_frames(bare, 4)) - {1, 4, 7})
    assert calls[2:] == [2 * n_new]
    assert progress[0] == (4 - n_new, 4)
    assert progress[-1] == (4, 4)
    assert sum(frame.hessian_vector is not None for frame in more) == 4
    assert choose_frames(more, 99) == sorted(set(range(1, 9)) - set(choose_frames(bare, 4)))


def test_a_tenth_of_the_targets_is_for_testing(tmp_path: Path) -> None:
    frames = label_by_emt(make_alloys(30))
    split = Split(frames[:20], frames[20:24], frames[24:])
    found = add_to_split(load_teacher("analytic:emt"), split, 11, tmp_path / "hessian.h5")
    counts = [
        sum(frame.hessian_vector is not None for frame in part)
        for part in (found.train, found.validation, found.test)
    ]
    assert counts == [10, 0, 1]
    with LabelStore(tmp_path / "hessian.h5") as store:
        assert store.n_hessian_vectors == 11


def test_requests_with_targets_are_checked() -> None:
    with pytest.raises(UsageError, match="40 Hessian-vector targets take 80 of 100 evaluations"):
        build_request(structures="a.xyz", teacher="x", budget=100, hessian_vectors=40)
    with pytest.raises(UsageError, match="5 Hessian-vector targets need a teacher"):
        build_request(labels="a.xyz", hessian_vectors=5)
    request = build_request(structures="a.xyz", teacher="x", budget="25min", hessian_vectors=40)
    assert request.hessian_weight == 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["m1", "m2"])
def test_replayed_losses_equal_eager_ones(frames: list[Frame], architecture: str) -> None:
    """A CUDA graph holds the second differentiation too, for every batch of one shape."""
    mixed = [*frames[:12], replace(frames[12], hessian_vector=None), *frames[13:16]]
    student, statistics = prepare_student(mixed, replace(SETTINGS, architecture=architecture))
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.numel() > 0)
    data = prepare_frames(mixed, student)
    student = student.cuda()
    padding = (student.cutoff, 0.0, 0.0)
    resident = ResidentBatches(data, 4, "cuda", seed=5, padding_vector=padding)
    losses = ResidualLosses(student, statistics)
    captured = CapturedLosses(losses)
    known = [p for p in student.parameters() if p.requires_grad]
    for batch in resident:
        fields = pick_fields(batch)
        found = []
        for evaluate in (captured, losses):
            terms = evaluate(*fields)
            gradients = torch.autograd.grad(terms.sum(), known)
            found.append([terms.detach().clone(), *(g.clone() for g in gradients)])
        for own, other in zip(*found, strict=True):
            torch.testing.assert_close(own, other, rtol=2e-3, atol=1e-4)
