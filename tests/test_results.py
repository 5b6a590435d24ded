"""Stored records can be read and say where they come from; README shows what they hold. Not here: making records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

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


def test_benchmarks_of_kernels_are_shown_with_times_and_machine(
    tabulate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each op and direction, and what was not run is not shown as anything else."""

    def make(variant: str, median: float, **more: Any) -> dict[str, Any]:
        info = {"op": "moments", "direction": "forward", "rows": 1200, "variant": variant, **more}
        measured = {"device_ms": 0.25, "roofline_fraction": 0.5, "relative_error": 4e-7}
        return {"extra_info": info | measured, "stats": {"median": median}}

    packages = {"torch": "2.11.0", "triton": "3.6.0"}
    where = {"gpu": "H100", "commit": "0a1b2c3", "date": "2026-11-28", "packages": packages}
    gradient = {"direction": "forward and gradient"}
    rows = [
        make("triton", 5e-4), make("eager", 2e-3), make("triton", 1e-3, **gradient),
        make("compiled", 1.5e-3), make("eager", 3e-3, rows=7),
    ]  # fmt: skip
    path = tmp_path / "kernels" / "benchmarks-h100.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"machine_info": where, "benchmarks": rows}))
    monkeypatch.setattr(tabulate, "RESULTS", tmp_path)
    text = "\n".join(tabulate.describe_record(path))
    assert "Measured on H100, torch 2.11.0, triton 3.6.0, 0a1b2c3, 2026-11-28." in text
    assert text.splitlines()[-3:] == [
        "| moments | 1,200 | 0.5 ms | 0.25 ms | 50 % | 4.0e-07 | 3 times | 4 times |",
        "| moments with gradient | 1,200 | 1 ms | 0.25 ms | 50 % | 4.0e-07 | – | – |",
        "| moments | 7 | – | – | – | – | – | – |",
    ]


def test_readme_shows_the_stored_records(tabulate: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index(tabulate.BEGIN) + len(tabulate.BEGIN)
    assert text[start : text.index(tabulate.END)].strip() == tabulate.render().strip()


def test_readme_says_of_trainings_what_their_records_say(tabulate: ModuleType) -> None:
    """The sentences before the tables: steps and minutes of the molecules, under two minutes for MgO and Cu3Au."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    training = read_record(tabulate.RESULTS / "organics-ani1x.json").model.training
    minutes = {5: "five", 6: "six", 7: "seven"}[round(training["seconds"] / 60.0)]
    assert f"The molecules took {training['n_steps']:,} steps and {minutes} minutes" in text
    assert "MgO and Cu3Au of the first table were labelled and trained in under two minutes" in text
    for name in ("mgo-sevennet", "cu3au-sevennet"):
        assert read_record(tabulate.RESULTS / f"{name}.json").model.training["seconds"] < 120.0


def test_errors_are_at_most_what_readme_says() -> None:
    record = json.loads((ROOT / "bench/results/kernels/fused-bounded-h100.json").read_text())
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(r"at most (\S+) \(`m1`\), (\S+) \(`m2`\)", text)
    for hops, figure in enumerate(said.groups(), start=1):
        errors = [c["force_error_rms"] for c in record["checks"] if c["hops"] == hops]
        assert max(errors) <= float(figure) < 1.1 * max(errors)


def test_every_student_of_the_table_has_its_record(tabulate: ModuleType) -> None:
    missing = [n for n in tabulate.STUDENTS if not (tabulate.RESULTS / f"{n}.json").is_file()]
    assert not missing


def test_memory_is_that_of_the_largest_evaluation(tabulate: ModuleType) -> None:
    """Of 16 channels, in bytes an atom and altogether."""
    import tabulate_speed

    given = ((1, 16, 10, 999.0), (1, 16, 2_000_000, 1500.4), (2, 16, 10, 3000.0), (2, 32, 99, 7e3))
    rows = [
        {"hops": h, "channels": c, "atoms": n, "bytes_per_atom": b, "listed_neighbors": 12}
        for h, c, n, b in given
    ]
    text = tabulate_speed.describe_memory(rows)
    assert "`m1` 1,500 bytes an atom, 3 GB at 2,000,000 atoms; `m2` 3,000 bytes" in text
    assert "list (48 bytes an atom)" in text


def test_every_evaluation_of_a_table_can_be_told_from_others(tabulate: ModuleType) -> None:
    record = json.loads((ROOT / "bench/results/kernels/hidden-layers-h100.json").read_text())
    _, _, *rows = tabulate.tabulate_evaluations(record)
    sizes = [row.partition("| fixed |")[0] for row in rows]
    assert len(sizes) == 9
    assert len(set(sizes)) == 9
