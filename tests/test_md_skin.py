"""The skin chosen before a run. Not here: lists, engines."""

from __future__ import annotations

import pytest
from ase import Atoms
from ase.build import bulk
from md_models import make_copper

from fastff.evaluator import Choice
from fastff.md import skin as skins
from fastff.md.settings import MDSettings

COLD = MDSettings(1, 1.0, temperature=300.0)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the fused kernels run."""
    monkeypatch.setattr(skins, "choose_path", lambda student: Choice("fused", ""))


def make_crystal(repeats: int = 3) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.rattle(0.02, seed=0)
    return atoms


def test_default_without_fused_kernels() -> None:
    assert skins.choose_skin(make_copper("m1"), make_crystal(), COLD) == skins.DEFAULT


def test_rows_of_copper_by_skin(fused: None) -> None:
    """54 neighbors within 5.6 Å are two tiles, 78 within 6 Å three."""
    tiles = skins._count_tiles(make_copper("m1"), make_crystal())
    assert tiles == {0.3: 2.0, 0.4: 2.0, 0.5: 2.0, 0.6: 2.0, 0.8: 3.0, 1.0: 3.0}


def test_choice_weighs_rows_against_rebuilds(fused: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many atoms: the thickest skin that spares a tile, unless lists last a step or two. Few: rebuilds cost most."""
    known = {0.3: 2.0, 0.4: 2.0, 0.5: 2.0, 0.6: 2.0, 0.8: 3.0, 1.0: 3.0}
    monkeypatch.setattr(skins, "_count_tiles", lambda student, atoms: known)
    student, many, few = make_copper("m1"), make_crystal(20), make_crystal(2)
    hot = MDSettings(1, 20.0, temperature=3000.0)
    assert skins.choose_skin(student, many, COLD) == 0.6
    assert skins.choose_skin(make_copper("m2"), many, COLD) == 0.6
    assert skins.choose_skin(student, many, hot) == 1.0
    assert skins.choose_skin(student, few, COLD) == 1.0


def test_same_choice_every_time_and_none_without_motion(fused: None) -> None:
    student, atoms = make_copper("m1"), make_crystal()
    assert len({skins.choose_skin(student, atoms, COLD) for _ in range(2)}) == 1
    still = MDSettings(1, 1.0, temperature=0.0)
    assert skins.choose_skin(student, atoms, still) == skins.DEFAULT
    assert skins.choose_skin(student, Atoms("Cu", pbc=False), COLD) in skins.CANDIDATES
