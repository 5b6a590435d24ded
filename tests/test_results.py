"""Stored records can be read and say where they come from; README shows what they hold. Not here: making records."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from programs import load_program

from fastff.report.record import read_record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tabulate() -> ModuleType:
    """The script that makes README's tables."""
    return load_program("tabulate")


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("*.json")), ids=str)
def test_student_records_are_sound(path: Path) -> None:
    """Reading recomputes what can be recomputed and refuses a record that contradicts itself."""
    record = read_record(path)
    assert record.provenance.date
    assert record.provenance.commit


def test_kernel_record_names_machine_versions_and_commit() -> None:
    record = json.loads((ROOT / "bench/results/kernels/fused-h100.json").read_text())
    where = record["provenance"]
    assert all(where[key] for key in ("gpu", "driver", "torch", "triton", "commit", "date"))
    assert record["failures"] == []


def test_readme_shows_the_stored_records(tabulate: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index(tabulate.BEGIN) + len(tabulate.BEGIN)
    assert text[start : text.index(tabulate.END)].strip() == tabulate.render().strip()


def test_every_student_of_the_table_has_its_record(tabulate: ModuleType) -> None:
    missing = [n for n in tabulate.STUDENTS if not (tabulate.RESULTS / f"{n}.json").is_file()]
    assert not missing
