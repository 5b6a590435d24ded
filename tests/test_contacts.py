"""Close contacts among the labels: what they may set and what they must not. Not here: how they are sampled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emt_frames import label_by_emt, make_alloys
from torch_geometric.data import Batch

from fastff.distill.data import measure_labels, prepare_frames
from fastff.distill.losses import (
    HUBER_WIDTH,
    STRAINED_FORCE,
    ResidualLosses,
    measure_strain,
    pick_fields,
    relative_huber,
)
from fastff.distill.train import TrainSettings, prepare_student
from fastff.labels import Frame
from fastff.models.moment import trim_outliers

SETTINGS = TrainSettings(cutoff=4.0, architecture="m2", device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return label_by_emt(make_alloys(80, seed=3))


@pytest.fixture(scope="module")
def contacts() -> list[Frame]:
    """The same material with one pair pushed together in each frame."""
    structures = make_alloys(1, seed=4)
    for atoms in structures:
        distances = atoms.get_all_distances(mic=True)
        np.fill_diagonal(distances, np.inf)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        atoms.set_distance(i, j, 0.45 * distances[i, j], fix=0, mic=True)
    return label_by_emt(structures)


def test_contacts_hardly_move_the_normalisation(frames: list[Frame], contacts: list[Frame]) -> None:
    """Of inputs that grow with the third power of the moments, above all."""
    scales = []
    for training in (frames, frames + contacts):
        torch.manual_seed(0)
        student, _ = prepare_student(training, SETTINGS)
        scales.append(student.blocks[0].scale.clone())  # type: ignore[union-attr, operator, index]
    ratio = scales[1] / scales[0]
    assert float(ratio.min()) > 0.5
    assert float(ratio.max()) < 2.0


def test_every_species_keeps_its_own_bulk() -> None:
    """A rare species is no outlier."""
    inputs = torch.cat([torch.linspace(0.0, 1.0, 101), torch.linspace(50.0, 51.0, 3)])[:, None]
    inputs[7] = 1e6
    species = torch.tensor([0] * 101 + [1] * 3)
    trimmed = trim_outliers(inputs, species)
    assert trimmed[:101].max() < 1.0
    assert trimmed[101:].min() > 50.0


def test_strained_atoms_count_by_relative_error() -> None:
    unit = 2.0
    thermal, strained = 0.5 * STRAINED_FORCE * unit, 10.0 * STRAINED_FORCE * unit
    sizes = torch.tensor([thermal, strained, thermal])
    strain, of_frame = measure_strain(sizes, unit, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(strain, torch.tensor([1.0, 10.0, 1.0]))
    torch.testing.assert_close(of_frame, torch.tensor([10.0, 1.0]))


def test_a_contact_enters_every_term_by_its_strain(
    frames: list[Frame], contacts: list[Frame]
) -> None:
    """Of a student that predicts nothing, so that the errors are the labels themselves."""
    student, statistics = prepare_student(frames, SETTINGS)
    losses = ResidualLosses(student, statistics)
    batch = Batch.from_data_list(prepare_frames(contacts[:1], student))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
        terms = losses(*pick_fields(batch))
    forces = batch["target_forces"]
    whole = np.linalg.norm(contacts[0].labels.forces, axis=1) / float(student.energy_scale)
    strain = (torch.tensor(whole).float() / (STRAINED_FORCE * losses.force_unit)).clamp_min(1.0)
    most = float(strain.max())
    assert most > 1.5
    expected = [
        relative_huber(forces / strain[:, None], losses.force_unit).mean(),
        relative_huber(batch["target_energy"] / (len(forces) * most), losses.energy_unit).mean(),
        relative_huber(batch["target_stress"] / most, losses.stress_unit).mean(),
    ]
    torch.testing.assert_close(terms, torch.stack(expected))


def test_the_loss_turns_linear_at_its_width() -> None:
    unit = 3.0
    inside, outside = 0.5 * HUBER_WIDTH * unit, 10.0 * HUBER_WIDTH * unit
    assert float(relative_huber(torch.tensor(inside), unit)) == pytest.approx(
        0.5 * (0.5 * HUBER_WIDTH) ** 2
    )
    expected = HUBER_WIDTH * (10.0 * HUBER_WIDTH - 0.5 * HUBER_WIDTH)
    assert float(relative_huber(torch.tensor(outside), unit)) == pytest.approx(expected)


def test_statistics_are_those_of_the_median_frame(
    frames: list[Frame], contacts: list[Frame]
) -> None:
    alone, together = measure_labels(frames), measure_labels(frames + contacts)
    assert together.force_rms < 2.0 * alone.force_rms
