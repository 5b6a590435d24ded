"""Forces against energies where cells differ: found faults, and silence on sound labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from fastff.distill.formats import read_labels
from fastff.distill.validate import validate_frames
from fastff.distill.work import compare
from fastff.labels import Frame, Labels
from fastff.teachers import load_teacher

CHECK = "forces against energy"
LABELS = Path(__file__).parents[2] / "shared" / "data" / "labels"


def make_strained(count: int, *, named: bool, seed: int = 0, name: str = "Cu") -> list[Frame]:
    """Strained and rattled cells, as one trajectory in a wrapped, wandering frame, or of one frame each."""
    rng = np.random.default_rng(seed)
    teacher = load_teacher("analytic:emt" if name == "Cu" else "analytic:angular")
    structures = []
    for _ in range(count):
        atoms = bulk(name, cubic=True).repeat((2, 1, 1))
        shear = rng.normal(size=(3, 3)) * 0.005
        strain = np.eye(3) * rng.uniform(-0.03, 0.03) + 0.5 * (shear + shear.T)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.06
        atoms.wrap()
        structures.append(atoms)
    return [
        Frame(atoms, labels, "file", 0 if named else k, float("nan"), k)
        for k, (atoms, labels) in enumerate(zip(structures, teacher.label(structures), strict=True))
    ]


def find(frames: list[Frame], fault: Callable[[Labels], Labels]) -> list[str]:
    changed = [replace(frame, labels=fault(frame.labels)) for frame in frames]
    return [f.hint for f in validate_frames(changed).findings if f.check == CHECK]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("wrong sign", lambda x: replace(x, forces=-x.forces)),
        ("units", lambda x: replace(x, forces=x.forces * 23.06)),  # kcal/mol/Å
        ("units", lambda x: replace(x, forces=x.forces * 10.0)),  # eV/nm
        ("units", lambda x: replace(x, energy=x.energy * 23.06)),
    ],
)
def test_faults_of_forces_are_found_among_strained_cells(
    words: str, fault: Callable[[Labels], Labels], named: bool
) -> None:
    frames = make_strained(60, named=named)
    (hint,) = find(frames, fault)
    assert words in hint


@pytest.mark.parametrize("name", ["Cu", "Si"])
@pytest.mark.parametrize("seed", range(4))
def test_sound_forces_and_faults_of_stress_are_not_laid_to_forces(name: str, seed: int) -> None:
    for named in (True, False):
        frames = make_strained(40, named=named, seed=seed, name=name)
        for factor in (1.0, -1.0, 160.2):
            assert find(frames, lambda x, f=factor: replace(x, stress=f * x.stress)) == []
        assert find(frames, lambda x: replace(x, stress=None)) == []


@pytest.mark.parametrize("part", [slice(None), slice(None, None, 7), slice(None, None, 16)])
@pytest.mark.parametrize("name", ["cuau", "nacl", "si", "water"])
def test_real_labels_give_no_finding(name: str, part: slice) -> None:
    path = LABELS / f"{name}_7net-0.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    frames = read_labels(path).frames[part]
    assert find(frames, lambda x: x) == []
    alone = [replace(frame, trajectory=k) for k, frame in enumerate(frames)]
    assert find(alone, lambda x: x) == []


def test_the_work_is_the_change_of_energy() -> None:
    """Small steps of cell and atoms: the trapezoid rule is exact to third order."""
    a, b = make_strained(2, named=True)
    middle = a.atoms.copy()
    deformation = np.linalg.solve(a.atoms.cell.array, b.atoms.cell.array)
    step = 0.1 * (deformation - np.eye(3))
    middle.set_cell(middle.cell.array @ (np.eye(3) + 0.5 * (step + step.T)), scale_atoms=True)
    middle.positions += 0.01 * np.random.default_rng(1).normal(size=middle.positions.shape)
    middle.wrap()
    labels = load_teacher("analytic:emt").label([middle])[0]
    work, pressed, change = compare(a, replace(b, atoms=middle, labels=labels)) or (0.0, 0.0, 0.0)
    assert min(abs(work), abs(pressed)) > 1e-3
    assert work + pressed == pytest.approx(change, rel=0.01)


def test_cells_that_say_nothing_are_passed_over() -> None:
    frames = make_strained(2, named=True)
    flat = frames[1].atoms.copy()
    flat.cell[2] = 0.0
    assert compare(frames[0], replace(frames[1], atoms=flat)) is None
    slab = frames[1].atoms.copy()
    slab.pbc = (True, True, False)
    assert compare(frames[0], replace(frames[1], atoms=slab)) is None
    water = Frame(molecule("H2O"), Labels(0.0, np.zeros((3, 3)), None, None), "file", 0, 0.0, 0)
    assert compare(frames[0], water) is None
    assert validate_frames([water] * 30).errors == ()
