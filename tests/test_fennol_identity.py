"""FeNNol models are known by name and content of their files; label files that named them by path go on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from ase.build import bulk

from fastff.distill import content, store
from fastff.distill.content import identify_teacher
from fastff.distill.jobs import LabelJob
from fastff.distill.labelling import Labeller, LabelSettings
from fastff.distill.merging import merge_labels, quarantine_frames
from fastff.distill.parts import find_stored
from fastff.distill.store import LabelStore
from fastff.errors import DataError
from fastff.report.taught import find_fennol
from fastff.teachers import Teacher, load_teacher
from fastff.teachers.fennol_models import name_members


def make_teacher(name: str, digest: str = "ab", settings: str = "") -> Teacher:
    """A teacher with the record of a FeNNol model."""
    teacher = load_teacher("analytic:morse", device="cpu")
    teacher.info = replace(
        teacher.info,
        name=f"fennol:{name}",
        weights="a0.fnx, a1.fnx",
        weights_sha256=digest,
        settings=settings,
    )
    return teacher


def make_jobs(count: int) -> list[LabelJob]:
    jobs = []
    for seed in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        jobs.append(LabelJob(atoms, "file", seed, 0, math.nan))
    return jobs


def label(path: Path, teacher: Teacher, count: int) -> tuple[int, int]:
    """Frames found and labelled by a run that wants ``count``."""
    with LabelStore(path, "a", teacher) as labels:
        settings = LabelSettings(self_check=False)
        report = Labeller(teacher, labels, make_jobs(count), settings).run()
    return report.n_found, report.n_labelled


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as it was written before, with its teacher named by a path."""
    path = tmp_path / "old.h5"
    with monkeypatch.context() as patch:
        patch.setattr(content, "leave_out_folders", dict)
        patch.setattr(store, "leave_out_folders", dict)
        assert label(path, make_teacher("/old/a*.fnx"), 4) == (0, 4)
    assert read_name(path) == "fennol:/old/a*.fnx"
    return path


def read_name(path: Path) -> Any:
    with h5py.File(path) as file:
        return json.loads(file.attrs["teacher"])["name"]


def test_old_files_go_on_where_the_models_are_the_same(old: Path) -> None:
    for name in ("/old/a*.fnx", "a[01].fnx", "/new/a0.fnx,/new/a1.fnx"):
        assert label(old, make_teacher(name), 4) == (4, 0)
    assert label(old, make_teacher("a[01].fnx"), 6) == (4, 2)
    assert label(old, make_teacher("/old/a*.fnx"), 6) == (6, 0)
    for other in (make_teacher("/old/a*.fnx", "cd"), make_teacher("/old/a*.fnx", "ab", "charge=1")):
        with pytest.raises(DataError, match="another teacher"):
            label(old, other, 6)
    with LabelStore(old) as labels:
        assert len({frame.atoms.positions.tobytes() for frame in labels.read()}) == 6
        assert all(labels.has(frame.atoms) for frame in labels.read())


def test_old_and_new_files_are_joined_and_judged(old: Path, tmp_path: Path) -> None:
    new, teacher = tmp_path / "new.h5", make_teacher("a[01].fnx")
    label(new, make_teacher("/elsewhere/a?.fnx"), 6)
    assert read_name(new) == "fennol:a[01].fnx"
    assert find_stored([old], teacher) < find_stored([new], teacher)
    report = merge_labels([old, new], tmp_path / "both.h5")
    assert (report.n_frames, report.n_duplicates) == (6, 4)
    assert read_name(tmp_path / "both.h5") == "fennol:a[01].fnx"
    outcome = quarantine_frames(old, {1: "doubtful"})
    assert (outcome.n_frames, outcome.n_quarantined) == (3, 1)
    assert label(old, teacher, 4) == (4, 0)


def test_old_students_and_new_teachers_are_the_same() -> None:
    new, old = make_teacher("a[01].fnx"), make_teacher("/old/a*.fnx")
    assert identify_teacher(new.info.to_dict()) == identify_teacher(old.info.to_dict())


def test_names_find_the_files_in_their_folder() -> None:
    assert name_members(["m.fnx"]) == "m.fnx"
    assert name_members([f"m{k}.fnx" for k in range(8)]) == "m[01234567].fnx"
    assert name_members(["m1.fnx", "m10.fnx"]) == "m1.fnx,m10.fnx"
    assert name_members(["a.fnx", "b-2.fnx"]) == "a.fnx,b-2.fnx"
    assert name_members(["m!.fnx", "m0.fnx"]) == "m!.fnx,m0.fnx"
    assert name_members(["m.fnx", "m.fnx"]) == "m.fnx,m.fnx"


@pytest.mark.parametrize(
    ("request_", "spec"),
    [
        ({"teacher": "fennol:/there/a*.fnx"}, "fennol:/there/a*.fnx"),
        ({"teacher": "fennol", "teacher_weights": "/there/a.fnx"}, "fennol:/there/a.fnx"),
        ({"teacher": None}, None),
        ({"teacher": "orb", "teacher_weights": "/there/orb.ckpt"}, None),
    ],
)
def test_the_folder_is_that_of_the_training(request_: dict[str, Any], spec: str | None) -> None:
    assert find_fennol({"training": {"request": request_}}) == spec
