"""The program that compares teachers and measures how rough they are, on analytic ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from programs import load_program

from fastff.distill.store import LabelStore
from fastff.labels import Frame
from fastff.report.provenance import strip_folder
from fastff.teachers import load_teacher


@pytest.fixture(scope="module")
def program():
    return load_program("teachers/roughness")


def test_residuals_are_what_polynomials_leave(program):
    steps = np.linspace(-1, 1, program.N_POINTS)
    curves = np.stack([3 + steps**2, steps**5], axis=1)
    assert program.fit_residual(curves, 5) < 1e-12
    assert program.fit_residual(curves, 3) > 0.01
    noise = 0.1 * np.random.default_rng(0).normal(size=(program.N_POINTS, 400))
    assert program.fit_residual(noise, 5) == pytest.approx(0.1 * math.sqrt(55 / 61), rel=0.02)


def test_a_record_of_two_teachers(program, tmp_path: Path):
    copper = []
    for seed in range(5):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=seed)
        copper.append(atoms)
    emt = load_teacher("analytic:emt")
    labels = emt.label(copper)
    sources = ["strain", *["teacher-md"] * 4]
    frames = [
        Frame(atoms, entry, source, number, math.nan, -1)
        for number, (atoms, entry, source) in enumerate(zip(copper, labels, sources, strict=True))
    ]
    with LabelStore(tmp_path / "cu.h5", "w", teacher=emt) as store:
        store.append(frames)
    out = tmp_path / "deep" / "record.json"
    words = ["--reference", "analytic:emt", "--teachers", "analytic:emt", "analytic:morse"]
    words += ["--labels", f"cu={tmp_path / 'cu.h5'}", "--lines", "2", "--out", str(out)]
    program.main(words)
    record = json.loads(out.read_text())
    assert str(tmp_path) not in out.read_text()
    system = record["systems"]["cu"]
    assert (system["n_frames"], system["n_atoms"], system["n_lines"]) == (4, 16, 2)
    first, same, other = system["teachers"]
    forces = np.concatenate([labels[k].forces for k in range(1, 5)])
    assert first["rms_force"] == pytest.approx(1e3 * np.sqrt((forces**2).mean()), abs=0.06)
    assert first["deviation"] == same["deviation"] == 0.0
    assert other["deviation"] > 10
    assert other["relative_deviation"] == pytest.approx(
        other["deviation"] / first["rms_force"], rel=1e-2
    )
    assert first["residuals"] == same["residuals"]
    assert first["residuals"]["3"] >= first["residuals"]["9"] >= 0
    assert [entry["family"] for entry in record["teachers"]] == ["ase", "ase", "analytic"]


def test_folders_stay_out_of_commands():
    assert strip_folder("/home/me/x.h5") == "x.h5"
    assert strip_folder("fennol:/home/me/a.fnx,/home/me/b.fnx") == "fennol:a.fnx,b.fnx"
    assert strip_folder("water=/home/me/x.h5") == "water=x.h5"
    for word in ("runs/x.h5", "https://example.org/x", "--steps", "sevennet:7net-0"):
        assert strip_folder(word) == word
