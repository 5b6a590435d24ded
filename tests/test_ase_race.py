"""The race through ASE: it goes on without a teacher, and its factors are of the fastest calls. Not here: timings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from programs import load_program


@pytest.fixture(scope="module")
def race() -> ModuleType:
    return load_program("ase_race")


def test_a_missing_teacher_costs_its_own_rows(
    race: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "orb_models", None)
    path = tmp_path / "race.json"
    race.main(["--only", "orb", "--tiny", "--out", str(path)])
    record = json.loads(path.read_text())
    students = [row for row in record["copper"] if "includes" in row]
    assert [row["calculator"] for row in students] == ["fastff m1", "fastff m2"]
    assert all(row["median_ms"] > 0.0 and row["list_anew_ms"] > 0.0 for row in students)
    assert [row["what"] for row in record["failures"]] == [
        "copper: orb-v3-conservative-inf",
        "copper: orb-v3-direct-20",
    ]
    assert all("orb_models" in row["error"] for row in record["failures"])
    assert record["factors"] == []


def test_factors_are_of_the_fastest_call(race: ModuleType) -> None:
    teacher = {"calculator": "fennol ANI-1x", "includes": "", "model_ms": 1.0}
    student = {"calculator": "fastff m2", "includes": "", "atoms": 81}
    rows = [
        {**student, "median_ms": 0.5, "list_anew_ms": 0.8},
        {**teacher, "median_ms": 6.0},
        {**teacher, "median_ms": 4.0},
        {"calculator": "fennol ANI-1x", "error": "it broke"},
    ]
    (factor,) = race.find_factors({"water": rows})
    assert factor["times_faster"] == pytest.approx(8.0)
    assert factor["times_faster_with_list_anew"] == pytest.approx(5.0)
    assert factor["times_faster_than_model_alone"] == pytest.approx(2.0)
