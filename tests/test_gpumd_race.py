"""The race with GPUMD, run small with a program in its place. Not here: GPUMD's input and output themselves."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from programs import load_program

PROGRAM = """
import os
print("version 5.6")
if not os.path.exists("run.in"):
    raise SystemExit(1)
for speed in (1e3, 2e6, 1e6, 2e6):
    print(f"Speed of this run = {speed} atom*step/second.")
"""


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load_program("gpumd_race")


def test_neighbors_of_a_crystal_are_counted(race: ModuleType) -> None:
    atoms, sites = race.make_crystal(256)
    assert len(atoms) == 256
    shifted = torch.from_numpy(sites) + 1000.0  # positions are not wrapped
    side = float(atoms.cell[0, 0])
    # shells of fcc at a sqrt(k / 2): 12, 6, 24, 12, 24, 8, 48 neighbors
    assert race.count_neighbors(shifted, side, [5.0, 6.0, 7.0]) == [42.0, 78.0, 134.0]
    with pytest.raises(ValueError, match="too small"):
        race.count_neighbors(shifted, side, [7.5])


@pytest.mark.slow
def test_both_sides_are_timed_and_stored(
    race: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, nep = tmp_path / "gpumd", tmp_path / "nep.txt"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    nep.write_text("nep4_zbl 2 Cu Au\nzbl 1 2\ncutoff 6 5 200 134\n")
    monkeypatch.setenv("FASTFF_COMMIT", "abc")
    arguments = (
        f"gpumd_race.py --tiny --seconds-per-size 0.5 --gpumd {program} --nep {nep} --gpumd-source def "
        f"--out {tmp_path / 'out' / 'race.json'}"
    )
    monkeypatch.setattr(sys, "argv", arguments.split())
    race.main()
    record = json.loads((tmp_path / "out" / "race.json").read_text())
    assert record["failures"] == []
    assert record["provenance"]["commit"] == "abc"
    assert record["gpumd"]["version"] == "5.6"
    assert (record["gpumd"]["radial_cutoff_A"], record["gpumd"]["angular_cutoff_A"]) == (6.0, 5.0)
    gpumd, *students = record["rates"]
    # the first run warms up; the same steps at 2, 1 and 2 million atom-steps/s
    assert gpumd["atom_steps_per_s"] == pytest.approx(1.5e6)
    assert gpumd["median_atom_steps_per_s"] == pytest.approx(2e6)
    assert gpumd["ms_per_step"] == pytest.approx(256 / 1.5e6 * 1e3)
    assert [row["program"] for row in students] == ["fastff m1, 5 Å", "fastff m2, 5 Å"]
    for row in students:
        assert row["ratio_to_gpumd"] == pytest.approx(row["atom_steps_per_s"] / 1.5e6)
        assert row["steps"] >= 30
        assert np.isfinite(row["rms_displacement_A"])
        assert row["listed"] == pytest.approx(row["neighbors_gpumd_radial"])
