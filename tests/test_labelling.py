"""Labels are kept when a batch fails; what processes report together. Not here: the command (``test_label.py``)."""

from __future__ import annotations

import math
from pathlib import Path

import ase
import pytest
from ase.build import bulk

from fastff.distill.content import hash_structure
from fastff.distill.jobs import LabelJob
from fastff.distill.label_report import LabelReport
from fastff.distill.labelling import Labeller, LabelSettings
from fastff.distill.store import LabelStore
from fastff.labels import Labels
from fastff.teachers import load_teacher


def make_frames(n: int) -> list[ase.Atoms]:
    """Rattled copper cells of four atoms."""
    frames = []
    for seed in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    return frames


class FailingTeacher:
    """Effective-medium theory that fails in one call of many."""

    def __init__(self, fails_at: int) -> None:
        self.teacher, self.info = load_teacher("analytic:emt"), load_teacher("analytic:emt").info
        self.fails_at, self.n_calls = fails_at, 0

    def check_elements(self, atoms: ase.Atoms) -> None:
        self.teacher.check_elements(atoms)

    def label(self, structures: list[ase.Atoms]) -> list[Labels]:
        self.n_calls += 1
        if self.n_calls == self.fails_at:
            raise RuntimeError("out of order")
        return self.teacher.label(structures)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 5])
def test_a_failing_batch_takes_no_other_with_it(tmp_path: Path, fails_at: int) -> None:
    """Neither those labelled before in the same second nor those of earlier runs."""
    frames, path = make_frames(20), tmp_path / "labels.h5"
    jobs = [LabelJob(atoms, "file", k, 0, math.nan) for k, atoms in enumerate(frames)]
    settings = LabelSettings(batch_atoms=8, self_check=False)
    with LabelStore(path, "a", load_teacher("analytic:emt")) as store:
        Labeller(load_teacher("analytic:emt"), store, jobs[:6], settings).run()
    teacher = FailingTeacher(fails_at)
    with LabelStore(path, "a", load_teacher("analytic:emt")) as store:
        labeller = Labeller(teacher, store, jobs, settings)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="out of order"):  # noqa: PT012  # in one or the other
            labeller.measure()
            labeller.run()
    with LabelStore(path) as store:
        found = [hash_structure(frame.atoms) for frame in store.read()]
    expected = 6 + 2 * (fails_at - 1)  # two frames a batch
    assert found == [hash_structure(atoms) for atoms in frames[:expected]]


def test_reports_of_processes_are_joined() -> None:
    """Work adds up, time is that of the slowest, and what they label in a second adds up."""
    one = LabelReport(10, 2, 0, ["a"], n_atoms=400, seconds=4.0, warm_rate=200.0)
    joined = LabelReport.join([one, LabelReport(8, 0, 1, ["b"], 320, 5.0, 50.0)])
    assert joined == LabelReport(18, 2, 1, ["a", "b"], 720, 5.0, 250.0, n_processes=2)
    assert str(joined).startswith(
        "18 frames labelled in 5.0 s by 2 processes (6.94 ms per atom, 4 when warm)"
    )
    cold = LabelReport(2, n_atoms=80, seconds=1.0)
    assert "warm" not in str(LabelReport.join([one, cold]))
    assert "warm" in str(LabelReport.join([one, LabelReport()]))  # one had nothing to do


@pytest.mark.parametrize(
    ("own", "given", "expected"), [(1, None, 256), (2048, None, 512), (2048, 8, 2)]
)
def test_batches_are_those_that_the_teacher_takes(
    tmp_path: Path, own: int, given: int | None, expected: int
) -> None:
    teacher = load_teacher("analytic:emt")
    teacher.batch_atoms = own
    jobs = [LabelJob(a, "file", k, 0, math.nan) for k, a in enumerate(make_frames(600))]
    with LabelStore(tmp_path / "labels.h5", "a", teacher) as store:
        labeller = Labeller(teacher, store, jobs, LabelSettings(given, self_check=False))
    assert max(map(len, labeller.batches)) == expected
