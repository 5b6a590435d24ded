"""The timing of batched dynamics: its record, on a case that takes seconds. Not here: figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import load_program

from fastff import batches
from fastff.batch_lists import DeviceLists, HostLists


def test_both_lists_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    words = "--walkers 3 --size 1 --steps 12 --warmup 2 --check 6 --repeats 1 --device cpu"
    load_program("explore_speed").main([*words.split(), "--out", str(out)])
    record = json.loads(out.read_text())
    assert [row["lists"] for row in record["rows"]] == ["host", "device"]
    assert record["n_atoms"] == 24
    assert record["provenance"]["packages"]
    for row in record["rows"]:
        assert row["running_at_the_end"] == 3
        assert row["path"] == "torch"
        assert 0 < row["seconds_in_looks"] < row["seconds"]
        assert row["steps_per_second"] == pytest.approx(12 / row["seconds"])
        assert len(row["evaluation"]) == len(row["look"]) == 5
        assert 0 < row["renewals_per_step"] <= row["lists_per_step"] < 3
    assert capsys.readouterr().out.count("steps/s") == 2
    assert (batches.HostLists, batches.DeviceLists) == (HostLists, DeviceLists)
