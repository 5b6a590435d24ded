"""Small labelled frames that cost nothing, and a teacher that makes them. Not here: any test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from fastff.distill.jobs import LabelJob
from fastff.distill.labelling import label_jobs
from fastff.labels import Frame, Labels
from fastff.teachers import load_teacher


def make_alloys(count: int, seed: int = 3) -> list[Atoms]:
    """Rattled and strained copper-gold cells of four atoms."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.numbers[0] = 79
        atoms.set_cell(atoms.cell.array * (1.05 + rng.normal(scale=0.02)), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.1, size=(4, 3))
        made.append(atoms)
    return made


def label_by_emt(structures: list[Atoms], hessian_step: float | None = None) -> list[Frame]:
    """Frames labelled by EMT, each a trajectory of its own."""
    jobs = [LabelJob(atoms, "file", k, -1, float("nan")) for k, atoms in enumerate(structures)]
    return label_jobs(load_teacher("analytic:emt"), jobs, hessian_step)


def make_mixed(count: int = 21, hessian_step: float | None = 0.01) -> list[Frame]:
    """Frames of four atoms and of one, some without stress or Hessian-vector targets."""
    frames = label_by_emt(make_alloys(count - 4), hessian_step)
    frames += label_by_emt([bulk("Cu", a=a) for a in (3.5, 3.6, 3.7, 3.8)], hessian_step)
    for k in (1, 5, 6):
        frames[k] = replace(frames[k], labels=replace(frames[k].labels, stress=None))
    for k in (2, 5, 9, 10):
        frames[k] = replace(frames[k], hessian_vector=None)
    return frames


class EmtTeacher:
    """ASE's effective medium theory; counts what it labels and can be told to die or to fail."""

    def __init__(self, die_after: float = np.inf) -> None:
        self.n_labelled, self.calls, self.die_after = 0, [], die_after
        self.fault: Callable[[int, Labels], Labels] | None = None

    def label(self, structures: Sequence[Atoms]) -> list[Labels]:
        self.calls.append(len(structures))
        results = []
        for atoms in structures:
            if self.n_labelled >= self.die_after:
                raise KeyboardInterrupt
            atoms = atoms.copy()
            atoms.calc = EMT()
            stress = atoms.get_stress() if atoms.pbc.all() else None
            labels = Labels(atoms.get_potential_energy(), atoms.get_forces(), stress)
            results.append(self.fault(self.n_labelled, labels) if self.fault else labels)
            self.n_labelled += 1
        return results


def assert_same_frames(left: list[Frame], right: list[Frame]) -> None:
    assert len(left) == len(right)
    by_place = {(f.trajectory, f.step): f for f in right}
    assert len(by_place) == len(right)
    for a in left:
        b = by_place[a.trajectory, a.step]
        assert np.array_equal(a.atoms.positions, b.atoms.positions)
        assert np.array_equal(a.labels.forces, b.labels.forces)
        assert a.source == b.source
