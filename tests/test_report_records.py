"""Every record in bench/results can be read, holds together, and makes its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import load_program

from fastff.errors import DataError
from fastff.report.html import read_embedded
from fastff.report.record import read_record
from fastff.report.schema import READABLE

FOLDER = Path(__file__).parents[1] / "bench" / "results"


def list_records():
    """Bench records among the JSON files; kernel benchmarks have no schema_version."""
    return [
        path
        for path in sorted(FOLDER.glob("**/*.json"))
        if json.loads(path.read_text()).get("schema_version") in READABLE
    ]


def test_stored_records_hold_together():
    """What they hold is in a page of each, too: see :func:`test_one_command_makes_every_page`."""
    for path in list_records():
        record = read_record(path)
        assert record.provenance.commit is not None, f"{path.name} was not measured in a checkout"


def test_stored_pages_show_the_stored_records():
    for path in list_records():
        page = path.with_suffix(".html")
        if page.exists():
            fresh = read_embedded(page.read_text()) == read_record(path)
            assert fresh, "run: python bench/tabulate.py --write"


def test_one_command_makes_every_page(monkeypatch, tmp_path):
    tabulate = load_program("tabulate")
    for path in FOLDER.glob("**/*.json"):
        copy = tmp_path / path.relative_to(FOLDER)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    monkeypatch.setattr(tabulate, "RESULTS", tmp_path)
    pages = tabulate.write_pages()
    stored = {path.relative_to(FOLDER).with_suffix(""): path for path in list_records()}
    assert {page.relative_to(tmp_path).with_suffix("") for page in pages} == stored.keys()
    for page in pages:
        path = stored[page.relative_to(tmp_path).with_suffix("")]
        assert read_embedded(page.read_text()) == read_record(path)


def test_results_are_explained():
    assert (FOLDER.parent / "README.md").exists()


def test_page_of_results_shows_the_records_as_they_are(monkeypatch, tmp_path):
    """The stored page is what the records give; a record that is edited or replaced makes it another page."""
    tabulate = load_program("tabulate")
    page = tabulate.render_page()
    assert (FOLDER / "README.md").read_text() == page, "run: python bench/tabulate.py --write"
    for path in tabulate.list_records():
        assert path.relative_to(FOLDER).as_posix() in page
    for path in FOLDER.glob("**/*.json"):
        copy = tmp_path / path.relative_to(FOLDER)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text())
    monkeypatch.setattr(tabulate, "RESULTS", tmp_path)
    assert tabulate.render_page() == page
    fused = tmp_path / "kernels" / "fused-h100.json"
    content = json.loads(fused.read_text())
    for entry in content["evaluations"]:
        entry["atom_steps_per_s"] *= 1000.0
    fused.write_text(json.dumps(content))
    assert tabulate.render_page() != page
    student = next(tmp_path.glob("*.json"))
    content = json.loads(student.read_text())
    content["comparisons"][0]["accuracy"]["force_mae"] *= 1000.0
    student.write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed after it was written"):
        tabulate.render_page()
