"""The records of labels and frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase.build import bulk

from fastff.labels import Frame, Labels


def make_labels(n_atoms: int = 1) -> Labels:
    return Labels(energy=-1.0, forces=np.zeros((n_atoms, 3)), stress=np.zeros(6))


def test_labels_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_labels().energy = 0.0  # type: ignore[misc]


def test_energies_of_atoms_are_absent_unless_given() -> None:
    assert make_labels().energies is None


def test_frame_keeps_what_it_was_given() -> None:
    frame = Frame(bulk("Cu"), make_labels(), "teacher-md", trajectory=3, temperature=300.0, step=20)
    assert [field.name for field in dataclasses.fields(frame)] == [
        "atoms",
        "labels",
        "source",
        "trajectory",
        "temperature",
        "step",
        "hessian_vector",
    ]
    assert frame.hessian_vector is None
    assert frame.labels.energy == -1.0
    assert frame.trajectory == 3
