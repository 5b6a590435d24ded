"""Every record in bench/results can be read, holds together, and makes its page."""

from __future__ import annotations

import json
from pathlib import Path

from fastff.report.html import read_embedded, render_report
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
    for path in list_records():
        record = read_record(path)
        assert read_embedded(render_report(record)) == record
        assert record.provenance.commit is not None, f"{path.name} was not measured in a checkout"


def test_stored_pages_show_the_stored_records():
    for path in list_records():
        page = path.with_suffix(".html")
        if page.exists():
            assert read_embedded(page.read_text()) == read_record(path), f"run: fastff bench {path}"


def test_results_are_explained():
    assert (FOLDER.parent / "README.md").exists()
