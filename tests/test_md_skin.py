"""The skin chosen before a run. Not here: lists, engines."""

from __future__ import annotations

import numpy as np
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


def test_unchanged_without_fused_kernels() -> None:
    assert skins.settle_skin(make_copper("m1"), make_crystal(), COLD) == COLD


def test_rows_of_copper_by_skin(fused: None) -> None:
    """54 neighbors within 5.7 Å are two tiles, 78 beyond it three; rows are counted somewhat farther."""
    tiles = skins.count_tiles(make_copper("m1"), make_crystal())
    assert tiles == {0.3: 2.0, 0.4: 2.0, 0.5: 2.0, 0.6: 3.0, 0.8: 3.0, 1.0: 3.0}


def test_choice_weighs_rows_against_rebuilds(fused: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thickest skin that spares a tile, unless lists last a step or two, or a tile costs less than rebuilds."""
    known = {0.3: 2.0, 0.4: 2.0, 0.5: 2.0, 0.6: 3.0, 0.8: 3.0, 1.0: 3.0}
    monkeypatch.setattr(skins, "count_tiles", lambda student, atoms: known)
    student, many, few = make_copper("m1"), make_crystal(20), make_crystal(2)
    hot = MDSettings(1, 5.0, temperature=3000.0)
    assert skins.settle_skin(student, many, COLD).skin == 0.5
    assert skins.settle_skin(make_copper("m2"), many, COLD).skin == 0.5
    assert skins.settle_skin(student, make_crystal(10), hot).skin == 1.0
    assert skins.settle_skin(student, few, COLD).skin == 1.0


def test_same_choice_every_time_and_none_without_motion(fused: None) -> None:
    student, atoms = make_copper("m1"), make_crystal()
    assert len({skins.settle_skin(student, atoms, COLD).skin for _ in range(2)}) == 1
    still = MDSettings(1, 1.0, temperature=0.0, skin=0.7)
    assert skins.settle_skin(student, atoms, still) == still
    assert skins.settle_skin(student, Atoms("Cu", pbc=False), COLD).skin in skins.CANDIDATES


@pytest.mark.parametrize(
    ("n_atoms", "skin", "kelvin", "steps"),
    [(1372, 1.0, 260, 67.6), (1372, 0.6, 260, 39.6), (108_000, 0.5, 263, 27.4), (1_000_188, 0.6, 263, 30.1)],
)  # fmt: skip
def test_lifetime_of_lists_of_copper(
    n_atoms: int, skin: float, kelvin: float, steps: float
) -> None:
    """Steps between rebuilds that were counted on an H100 (bench/results/engine)."""
    settings = MDSettings(1, 1.0, temperature=kelvin)
    found = skins.estimate_lifetime(skin, np.full(n_atoms, 63.546), settings)
    assert found == pytest.approx(steps, rel=0.12)
