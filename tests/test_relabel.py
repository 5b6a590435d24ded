"""Frames of a label file labelled anew by another teacher: what stays, after a kill too, and in shards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from fastff.distill.content import hash_structure
from fastff.distill.jobs import read_jobs
from fastff.distill.labelling import Labeller, LabelSettings
from fastff.distill.store import LabelStore
from fastff.errors import DataError
from fastff.labels import Frame, Labels
from fastff.teachers import load_teacher

Run = Callable[..., tuple[int, str, str]]
TEACHER = "ase:ase.calculators.emt:EMT"


def make_frame(seed: int) -> Frame:
    """A frame of one of four trajectories, some with momenta, charge, and a place in dynamics."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.08, seed=seed)
    if seed % 2:
        atoms.set_momenta(np.full((4, 3), 0.1 * seed))
    labels = load_teacher("analytic:morse").label([atoms])[0]
    dynamic = seed % 4 != 3
    return Frame(
        atoms,
        labels,
        "teacher-md" if dynamic else "strain",
        10 + seed % 4,
        300.0 + seed if dynamic else math.nan,
        seed if dynamic else -1,
    )


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Twelve frames, three of them held out, and one set aside."""
    path = tmp_path / "old.h5"
    frames = [make_frame(seed) for seed in range(12)]
    with LabelStore(path, "w", teacher=load_teacher("analytic:morse")) as store:
        store.append([frame for frame in frames if frame.trajectory == 12], held_out=True)
        store.append([frame for frame in frames if frame.trajectory != 12])
        store.append([make_frame(99)], reasons=["looked odd"])
    return path


def describe(frame: Frame) -> tuple[object, ...]:
    """All that must stay, with nan as text."""
    atoms = frame.atoms
    momenta = atoms.get_momenta().tolist() if atoms.has("momenta") else None
    facts = frame.source, frame.trajectory, str(frame.temperature), frame.step
    return hash_structure(atoms), *facts, str(momenta)


def compare(old: Path, new: Path) -> None:
    with LabelStore(old) as store:
        before, held_out = store.read(), store.held_out
    with LabelStore(new) as store:
        after, kept = store.read(), store.held_out
        assert store.teacher["name"] == TEACHER
    assert kept == held_out == {12}
    assert sorted(map(describe, after), key=str) == sorted(map(describe, before), key=str)
    expected = load_teacher(TEACHER).label([frame.atoms for frame in after])
    for frame, labels in zip(after, expected, strict=True):
        np.testing.assert_allclose(frame.labels.forces, labels.forces, atol=1e-8)


def test_marks_stay_and_the_teacher_is_checked(run_cli: Run, old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.h5"
    arguments = ("label", old, "--teacher", TEACHER, "--batch-atoms", "9", "--quiet")
    assert run_cli(*arguments, "--out", new)[0] == 0
    compare(old, new)
    with LabelStore(new) as store:
        assert store.record["self_check"]["conservative"] is True
        assert store.n_quarantined == 0
    code, text, _ = run_cli(*arguments, "--out", new)
    assert code == 0
    assert "12 found stored" in text
    code, _, err = run_cli(*arguments, "--out", old)
    assert code == 4
    assert "labels of another teacher" in err
    code, _, err = run_cli(*arguments, "--out", new, "--sample")
    assert code == 2
    assert "is a label file" in err


class MortalTeacher:
    """EMT that is killed, so to say, in its fourth call."""

    def __init__(self) -> None:
        self.teacher = load_teacher(TEACHER)
        self.info, self.n_calls = self.teacher.info, 0

    def check_elements(self, atoms: ase.Atoms) -> None:
        self.teacher.check_elements(atoms)

    def label(self, structures: list[ase.Atoms]) -> list[Labels]:
        self.n_calls += 1
        if self.n_calls == 4:
            raise KeyboardInterrupt
        return self.teacher.label(structures)


def test_it_goes_on_after_an_interruption(run_cli: Run, old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.h5"
    teacher = MortalTeacher()
    settings = LabelSettings(batch_atoms=8, self_check=False)
    with LabelStore(new, "a", teacher=teacher.info) as store, pytest.raises(KeyboardInterrupt):
        Labeller(teacher, store, read_jobs([old]), settings).run()  # type: ignore[arg-type]
    with LabelStore(new) as store:
        assert len(store) == 6
    code, text, _ = run_cli("label", old, "--teacher", TEACHER, "--out", new)
    assert code == 0
    assert "6 found stored" in text
    compare(old, new)


def test_shards_keep_marks(run_cli: Run, old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.h5"
    for shard in ("1/2", "2/2"):
        arguments = ("label", old, "--teacher", TEACHER, "--out", new, "--shard", shard, "--quiet")
        assert run_cli(*arguments)[0] == 0
    assert run_cli("merge", *sorted(tmp_path.glob("new.*-of-2.h5")), "--out", new)[0] == 0
    compare(old, new)


def test_marks_of_other_files_and_files_that_disagree(old: Path, tmp_path: Path) -> None:
    frames = [make_frame(seed).atoms for seed in (1, 2)]
    for name, atoms in zip("ab", frames, strict=True):
        atoms.info["trajectory"] = name
    frames[1].info["held_out"] = True
    write(tmp_path / "marked.xyz", frames)
    jobs = read_jobs([tmp_path / "marked.xyz", old])
    assert [job.held_out for job in jobs[:2]] == [False, True]
    assert sum(job.held_out for job in jobs[2:]) == 3
    other = tmp_path / "other.h5"
    with LabelStore(other, "w") as store:
        store.append([replace(make_frame(50), trajectory=12)])
    with pytest.raises(DataError, match="trajectory 12 is held out"):
        read_jobs([old, other])
