"""From labels to batches and losses: scales, loaders, what stays on the device. Not here: training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from emt_frames import label_by_emt, make_alloys
from torch_geometric.data import Batch

from fastff.distill.data import (
    build_loader,
    choose_batch_size,
    fit_composition,
    measure_labels,
    prepare_frames,
    stack_voigt,
)
from fastff.distill.losses import BATCH_FIELDS, ResidualLosses
from fastff.distill.resident import ResidentBatches
from fastff.distill.train import (
    TrainSettings,
    prepare_student,
)
from fastff.errors import DataError
from fastff.inference import predict
from fastff.labels import Frame, Labels

SETTINGS = TrainSettings(cutoff=4.0, n_steps=24, batch_atoms=16, n_validations=3, device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return label_by_emt(make_alloys(24))


def test_composition_energies_are_exact_for_separable_energies() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(6):
        symbols = "".join(rng.choice(["H", "O"], size=5))
        atoms = Atoms(symbols, positions=rng.normal(size=(5, 3)) * 3)
        n_h = symbols.count("H")
        energy = -13.6 * n_h - 2041.8 * (5 - n_h)
        frames.append(Frame(atoms, Labels(energy, np.ones((5, 3)), None), "file", 0, 300.0, -1))
    statistics = measure_labels(frames)
    assert statistics.elements == (1, 8)
    np.testing.assert_allclose(statistics.composition_energies, [-13.6, -2041.8], rtol=1e-10)
    assert statistics.force_rms == pytest.approx(1.0)
    assert statistics.stress_rms == 0.0


def test_nothing_to_learn_is_refused() -> None:
    atoms = molecule("H2O")
    still = Frame(atoms, Labels(0.0, np.zeros((3, 3)), None), "file", 0, 300.0, -1)
    with pytest.raises(DataError, match="all training forces are zero"):
        measure_labels([still])
    with pytest.raises(DataError, match="no training frames"):
        measure_labels([])


def test_frames_out_of_reach_of_each_other_are_refused() -> None:
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [30.0, 0, 0]])
    far = Frame(atoms, Labels(0.0, np.ones((2, 3)), None), "file", 0, 300.0, -1)
    with pytest.raises(DataError, match="no two atoms are within"):
        prepare_student([far], SETTINGS)


def test_residuals_add_up_to_the_labels(frames: list[Frame]) -> None:
    """What the student learns plus what it does not is the label: zero loss if the labels are its own prediction."""
    student, _ = prepare_student(frames, SETTINGS)
    student = student.double()
    structures = [f.atoms for f in frames[:3]] + [molecule("CO")]
    structures[3].numbers[:] = (29, 79)
    own = [
        Frame(a, p, "file", k, 300.0, -1)
        for k, (a, p) in enumerate(zip(structures, predict(student, structures), strict=True))
    ]
    own[1] = replace(own[1], labels=replace(own[1].labels, stress=None))
    batch = Batch.from_data_list(prepare_frames(own, student))
    losses = ResidualLosses(student, measure_labels(frames))(*(batch[n] for n in BATCH_FIELDS))
    assert losses.max() < 1e-20


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_each_loss_sees_its_own_label(frames: list[Frame], kind: int) -> None:
    student, _ = prepare_student(frames, SETTINGS)
    student = student.double()
    labels = predict(student, [frames[0].atoms])[0]
    assert labels.stress is not None
    changed = [
        replace(labels, forces=labels.forces + 0.1),
        replace(labels, energy=labels.energy + 0.1),
        replace(labels, stress=labels.stress + 0.01),
    ][kind]
    batch = Batch.from_data_list(prepare_frames([replace(frames[0], labels=changed)], student))
    losses = ResidualLosses(student, measure_labels(frames))(*(batch[n] for n in BATCH_FIELDS))
    others = [k for k in range(3) if k != kind]
    assert losses[kind] > 1e-4
    assert losses[others].max() < 1e-20


def test_loader_order_depends_on_seed_and_epoch_alone(frames: list[Frame]) -> None:
    student, _ = prepare_student(frames, SETTINGS)

    def order(seed: int, epoch: int) -> list[int]:
        loader = build_loader(frames, student, 4, seed=seed)
        loader.sampler.set_epoch(epoch)
        return [int(k) for batch in loader for k in batch.frame_index]

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == list(range(24))
    assert order(1, 0) != order(1, 1) != order(2, 1)


def test_batch_size_counts_atoms(frames: list[Frame]) -> None:
    assert choose_batch_size(frames, 16) == 4
    assert choose_batch_size(frames, 1) == 1
    assert choose_batch_size(frames, 10**6) == 24


def test_voigt_order() -> None:
    matrix = torch.arange(9.0).view(1, 3, 3)
    assert stack_voigt(matrix).tolist() == [[0.0, 4.0, 8.0, 5.0, 2.0, 1.0]]


def test_one_absurd_energy_does_not_move_the_composition_energies() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 20, (50, 2)).astype(float)
    energy = counts @ [-13.6, -2041.8] + rng.normal(scale=0.01, size=50) * counts.sum(axis=1)
    energy[3] += 1e6
    np.testing.assert_allclose(fit_composition(counts, energy), [-13.6, -2041.8], atol=0.05)
    same = np.full((40, 2), [4.0, 4.0])
    energy = same @ [-3.0, -5.0]
    energy[7] = 1e7
    np.testing.assert_allclose(same @ fit_composition(same, energy), -32.0)


@pytest.fixture(scope="module")
def mixed(frames: list[Frame]) -> list[Frame]:
    """Cells of four atoms and of one."""
    small = bulk("Cu", a=3.7)
    return [*frames[:5], *label_by_emt([small] * 3)]


def test_resident_batches_give_the_losses_of_collated_ones(mixed: list[Frame]) -> None:
    """Padding atoms change nothing, in value or in gradient."""
    student, statistics = prepare_student(mixed, SETTINGS)
    student = student.double()
    data = prepare_frames(mixed, student)
    losses = ResidualLosses(student, statistics)
    resident = ResidentBatches(data, 4, "cpu", seed=5, padding_vector=(student.cutoff, 0.0, 0.0))
    assert len(resident) == 2
    for batch in resident:
        assert batch["species"].shape == (16,)
        own = losses(*(batch[name] for name in BATCH_FIELDS))
        chosen = Batch.from_data_list([data[k] for k in batch["frame_index"].tolist()])
        wanted = losses(*(chosen[name] for name in BATCH_FIELDS))
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-14)
        gradients = [
            torch.autograd.grad(value.sum(), list(student.parameters()), allow_unused=True)
            for value in (own, wanted)
        ]
        for a, b in zip(*gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_resident_order_depends_on_seed_epoch_and_rank(mixed: list[Frame]) -> None:
    student, _ = prepare_student(mixed, SETTINGS)
    data = prepare_frames(mixed, student)

    def order(seed: int, epoch: int, rank: int = 0, n_ranks: int = 1) -> list[int]:
        resident = ResidentBatches(
            data, 2, "cpu", seed=seed, padding_vector=(9.0, 0, 0), rank=rank, n_ranks=n_ranks
        )
        resident.sampler.set_epoch(epoch)
        return [int(k) for batch in resident for k in batch["frame_index"]]

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == list(range(8))
    assert order(1, 0) != order(1, 1) != order(2, 1)
    assert sorted(order(1, 0, 0, 2) + order(1, 0, 1, 2)) == list(range(8))
    with pytest.raises(DataError, match="do not fill a batch"):
        ResidentBatches(data, 5, "cpu", seed=0, padding_vector=(9.0, 0, 0), n_ranks=2)
