"""Errors planted in every figure of a record, each of which verification must refuse."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from planting import (
    accuracy,
    all_points,
    bins,
    calibration,
    convert,
    coverage,
    curves,
    density,
    drop_stamp,
    elements,
    exchange,
    find_curves,
    intervals,
    item,
    learning,
    leave_offset,
    magnify_noise,
    move_frames,
    multiply,
    noise,
    parity,
    put,
    put_intervals,
    replace_rows,
    rows,
    scale,
    scale_each,
    scale_times,
    stretch_some_steps,
    stretch_steps,
    student_curve,
    swap_comparisons,
    swap_labels,
    swap_memory,
    swap_noise,
    swap_noise_numbers,
)
from producers import edit

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.report import plotdata
from fastff.report.consistency import verify_comparison
from fastff.report.metrics import measure_accuracy
from fastff.report.record import read_record, verify_record, write_record
from fastff.report.speed import CLOCK_INCLUDES
from fastff.units import EV_PER_A3_TO_GPA


def test_the_record_itself_is_accepted(whole_record, tmp_path):
    verify_record(whole_record)
    write_record(whole_record, tmp_path / "bench.json")
    assert read_record(tmp_path / "bench.json") == whole_record
    assert whole_record.calibration is not None
    assert all(part.identity for part in (whole_record.teacher_noise, whole_record.student_noise))


# Planted errors ------------------------------------------------------------------------------------------------------


GPA = EV_PER_A3_TO_GPA
STRESSES = ("stress_mae", "stress_rmse", "stress_rms")
ENERGIES = ("energy_mae", "energy_rmse", "energy_std")
FORCES = ("force_mae", "force_rmse", "force_rms")
REST = {"count": 0, "reference": 0.0, "squared_error": 0.0, "absolute_error": 0.0}

PLANTED = [
    # errors in tables
    ("force MAE in meV", scale(accuracy, "force_mae", by=1e3), "measured", "MAE"),
    ("force MAE in Hartree", scale(accuracy, "force_mae", by=1 / 51.4), "measured", "do not add up"),
    ("forces in meV", scale(accuracy, *FORCES, by=1e3), "measured", "do not add up"),
    ("energy MAE in meV", scale(accuracy, "energy_mae", by=1e3), "measured", "MAE"),
    ("energy MAE in Hartree", scale(accuracy, "energy_mae", by=1 / 27.2), "measured", "plotted energies"),
    ("energies in meV", scale(accuracy, *ENERGIES, by=1e3), "measured", "plotted energies"),
    ("stresses in GPa", scale(accuracy, *STRESSES, by=GPA), "measured", "plotted stresses"),
    ("element RMSE", scale_each(elements, "rmse", 10), "measured", "do not add up"),
    ("element MAE", scale_each(elements, "mae", 10), "measured", "do not add up"),
    ("element accuracy", scale_each(elements, "accuracy", 1.01), "measured", "accuracies of the elements"),
    ("relative MAE", scale(accuracy, "force_relative_mae", by=0.01), "measured", "relative MAE"),
    ("R2", put(accuracy, force_r2=0.9999), "measured", "R²"),
    ("cosine in percent", put(accuracy, force_cosine=99.0), "measured", "no cosine"),
    ("frames in table", scale(accuracy, "n_frames", by=10), "measured", "instead of"),
    ("frames", scale(lambda c: c["comparisons"][0]["frames"], "n_frames", by=10), "measured", "frames instead"),
    ("atoms", scale(lambda c: c["comparisons"][0]["frames"], "n_atoms", by=10), "measured", "atoms instead"),
    ("formulas", put(lambda c: c["comparisons"][0]["frames"], formulas=["Cu"]), "measured", "compositions"),
    ("comparisons swapped", swap_comparisons, "assembled", "not about the frames"),
    ("limiting", put(accuracy, limiting="planted"), "measured", "'limiting'"),
    ("intervals in percent", put_intervals(lambda low, high: [100.0 * low, 100.0 * high]), "measured",
     "interval"),
    ("intervals elsewhere", put_intervals(lambda low, high: [0.97, 0.99]), "measured", "interval"),
    ("intervals reversed", put_intervals(lambda low, high: [high, low]), "measured", "interval"),
    ("interval above one", put_intervals(lambda low, high: [low, 1.01]), "measured", "interval"),
    ("overall interval", put(intervals, overall=[-1e9, 1.0]), "measured", "overall interval"),
    # rows by temperature
    ("row in percent", scale_each(rows, "force", 100.0), "measured", "by temperature"),
    ("row accuracy", scale_each(rows, "energy", 1.01), "measured", "by temperature"),
    ("row frames", lambda c: [r.update(n_frames=999) for r in rows(c)], "measured", "frames instead of"),
    ("row frames moved", move_frames, "measured", "add up"),
    ("rows in °C", lambda c: [r.update(temperature=r["temperature"] - 273.15) for r in rows(c)], "measured",
     "the frames have"),
    ("row RMSE and RMS in meV", lambda c: [scale_each(rows, k, 1e3)(c) for k in ("force_rmse", "force_rms")],
     "measured", "add up"),
    ("row stresses in GPa", lambda c: [scale_each(rows, k, GPA)(c) for k in ("stress_rmse", "stress_rms")],
     "measured", "add up"),
    ("row energies in meV", lambda c: [scale_each(rows, k, 1e3)(c) for k in ("energy_rmse", "energy_std")],
     "measured", "add up"),
    ("row lost", lambda c: rows(c).pop(), "measured", "frames instead of"),
    # ranges
    ("temperatures of frames", put(lambda c: c["comparisons"][0]["frames"], temperatures=[0.1, 9999.0]),
     "measured", "temperatures of|the frames have|middle of the held-out"),
    ("temperatures of frames outside", put(lambda c: c["comparisons"][1]["frames"], temperatures=[0.1, 9999.0]),
     "measured", "temperatures of"),
    ("cut-off in nm", scale(lambda c: c["model"], "cutoff", by=0.1), "measured", "cut-off"),
    ("cut-off in pm", scale(lambda c: c["model"], "cutoff", by=100), "measured", "cut-off"),
    # parity plots
    ("parity energy in meV", replace_rows(parity, "energy", lambda g, r, p: [g, 1e3 * r, 1e3 * p]), "measured",
     "plotted energies"),
    ("parity energy swapped", replace_rows(parity, "energy", lambda g, r, p: [g, p, r]), "measured",
     "plotted energies"),
    ("parity energy thinned", put(parity, energy=[], energy_rest=REST), "measured", "0 energies are plotted"),
    ("parity stress in GPa", replace_rows(parity, "stress", lambda r, p: [GPA * r, GPA * p]), "measured",
     "plotted stresses"),
    ("parity stress swapped", replace_rows(parity, "stress", lambda r, p: [p, r]), "measured", "plotted stresses"),
    ("parity stress sign", replace_rows(parity, "stress", lambda r, p: [r, -p]), "measured", "plotted stresses"),
    ("density transposed", replace_rows(density, "cells", lambda i, j, n: [j, i, n]), "measured", "plotted forces"),
    ("density mirrored", replace_rows(density, "cells", lambda i, j, n: [89 - i, j, n]), "measured", "plotted forces"),
    ("density axis in meV", scale(density, "low", "high", by=1e3), "measured", "plotted forces"),
    ("density axis in Hartree", scale(density, "low", "high", by=1 / 51.4), "measured", "plotted forces"),
    ("density counts", replace_rows(density, "cells", lambda i, j, n: [i, j, 2 * n]), "measured", "force components"),
    ("density sums", scale(density, "columns", by=1.01), "measured", "plotted forces"),
    # error against size of the force
    ("bin medians in meV", scale_each(bins, "error_median", 1e3), "measured", "median"),
    ("bin quantiles in meV", scale_each(bins, "error_q90", 1e3), "measured", "quantile"),
    ("bin quantiles in Hartree", scale_each(bins, "error_q90", 1 / 51.4), "measured", "median"),
    ("bin quantiles both in Hartree",
     lambda c: [scale_each(bins, k, 1 / 51.4)(c) for k in ("error_median", "error_q90")], "assembled",
     "not those that were measured"),
    ("bin RMS in meV", scale_each(bins, "error_rms", 1e3), "measured", "plotted forces"),
    ("bins reversed", lambda c: bins(c).reverse(), "measured", "ascending"),
    # coverage
    ("force edges in meV", scale(coverage, "force_edges", by=1e3), "measured", "histogram of forces"),
    ("distance edges in nm", scale(coverage, "distance_edges", by=0.1), "measured", "histogram of distances"),
    ("distance counts shifted", lambda c: coverage(c)["distance_counts"].reverse(), "measured", "shortest distance"),
    ("shortest distance in Bohr", scale(coverage, "shortest_distance", by=1.89), "measured", "shortest distance"),
    ("elements of frames", lambda c: put(coverage, element_counts={"Cu": accuracy(c)["n_atoms"]})(c), "measured",
     "elements of the frames"),
    ("volume in Bohr", scale(coverage, "volume_per_atom", by=6.7), "assembled", "at rest, the held-out"),
    ("volume off", scale(coverage, "volume_per_atom", by=1.1), "assembled", "not those that were measured"),
    # noise
    ("noise swapped", swap_noise, "measured", "swapped"),
    ("noise numbers swapped", swap_noise_numbers, "assembled", "not those that were measured"),
    ("noise in percent", magnify_noise, "assembled",
     "not those that were measured"),
    ("noise in the verdict", magnify_noise, "written",
     "the verdict says"),
    ("noise energy in meV", lambda c: noise(c).update(rotation_energy=0.3), "assembled",
     "does not follow from its rows"),
    ("noise energy in meV, rows not", scale(noise, "rotation_energy", "batch_energy", by=1e3), "measured",
     "does not follow from its rows"),
    ("jitter in percent", scale(noise, "jitter_force", by=100), "measured", "does not follow from its rows"),
    ("noise rows lost", lambda c: noise(c)["rows"].pop(), "measured", "rows of"),
    ("noise beyond reason", put(noise, jitter_force=50.0), "measured", "no share"),
    ("noise of nobody", put(noise, identity=None), "measured", "swapped"),
    ("stamp dropped", drop_stamp, "assembled", "not those that were measured"),
    # speed and memory
    ("memory in KiB", scale_each(all_points, "peak_memory", 1024 * 1024), "measured", "more than the machine"),
    ("memory in KiB, small", scale_each(all_points, "peak_memory", 1024), "assembled", "machine|not those that were"),
    ("memory swapped", swap_memory, "assembled", "not those that were measured"),
    ("time step in 0.1 fs", stretch_steps, "measured", "time steps"),
    ("time step of some", stretch_some_steps, "measured", "time steps"),
    ("no time step", lambda c: find_curves(c, "ase-md")[0].update(time_step=None), "measured", "time step None"),
    ("times in ms", lambda c: [p.update(seconds=multiply(p["seconds"], 1e3)) for p in student_curve(c)["points"]],
     "measured", "median"),
    *((f"times of the {role} in ms, all of them", scale_times(role, 1e3), "measured", "s of timing")
      for role in ("student", "teacher")),
    ("sizes", scale_each(lambda c: student_curve(c)["points"], "n_atoms", 10), "measured", "does not follow"),
    ("label of the other", swap_labels, "measured", "swapped"),
    ("device", put(student_curve, device="cuda"), "measured", "no GPU|several devices|come with"),
    ("kind of memory", put(student_curve, memory_kind="GPU memory"), "measured", "come with"),
    ("threads", put(student_curve, threads=64), "assembled", "not those that were measured"),
    ("quoted size", lambda c: c.update(headline_size=32), "measured", "quoted size"),
    ("ratio", scale_each(lambda c: c["ratios"], "ratio", 10), "written", "ratios do not follow"),
    # verdict
    ("verdict invented", lambda c: c["verdict"]["lines"].__setitem__(0, "Accuracy: 99.99 %"), "written", "99.99"),
    ("verdict cut", lambda c: c["verdict"]["lines"].pop(), "written", "the verdict does not follow"),
    ("next command", put(lambda c: c["verdict"], next_command="planted"), "written", "the verdict does not follow"),
    ("wording withheld", lambda c: c["verdict"].update(wording=None), "written", "which wording"),
    # training
    ("learning curve", scale_each(learning, "force_mae", 1e3), "measured", "learning curve"),
    ("learning curve swapped", scale_each(learning, "force_accuracy", 0.5), "measured", "above that of forces"),
    ("learning curve invented", scale_each(learning, "accuracy", 0.5), "assembled", "not those that were measured"),
    ("learning curve reversed", lambda c: learning(c).reverse(), "measured", "order"),
    # calibration
    ("calibration in meV", replace_rows(calibration, "energy", lambda n, s, e: [n, 1e3 * s, 1e3 * e]), "measured",
     "energy errors"),
    ("calibration columns swapped", replace_rows(calibration, "energy", lambda n, s, e: [n, abs(e), s]), "measured",
     "calibration"),
    ("calibration with offsets", leave_offset, "measured", "energy errors"),
    ("calibration shares", put(calibration, within=[0.123, 0.456]), "measured", "does not follow"),
    ("grades in meV", scale_each(lambda c: calibration(c)["grades"], "force_rmse", 1e3), "measured", "by grade"),
    ("grades reversed", lambda c: calibration(c)["grades"].reverse(), "measured", "order"),
    ("beyond", lambda c: calibration(c).update(beyond=[1.0 - b for b in calibration(c)["beyond"]]), "measured",
     "beyond the training"),
    ("calibration of another", put(calibration, identity={"sha256": "0" * 64}), "measured", "swapped"),
    ("calibration names", lambda c: calibration(c)["names"].reverse(), "measured", "not about the comparisons"),
    # baselines
    ("baseline energies", scale(lambda c: c["baselines"][0]["comparisons"][0]["accuracy"], *ENERGIES, by=1e3),
     "measured", "different units"),
    ("baseline MAE", scale(lambda c: c["baselines"][0]["comparisons"][0]["accuracy"], "stress_mae", by=0.01),
     "assembled", "not those that were measured"),
    # physics
    *((f"{kind} swapped", exchange(kind, whole=True), "measured", "physical properties")
      for kind in ("eos", "elastic", "vacancy", "dimers", "nve", "phonons", "rdf", "diffusion", "stability")),
    *((f"{kind} numbers swapped", exchange(kind, whole=False), "assembled", "physical properties")
      for kind in ("eos", "elastic", "vacancy", "dimers", "nve", "phonons", "rdf", "diffusion")),
    ("physics unit", scale(item("eos"), "volumes", by=0.1), "measured", "physical properties"),
    ("curve of an unbound pair", lambda c: scale(lambda c: curves("dimers")(c)[1], "student", by=0.5)(c), "measured",
     "energy at 2 Å does not follow"),
    ("volumes in nm³ everywhere", convert(lambda c: [item("eos")(c)], "volumes", by=1e-3), "measured",
     "V0 of 0.0115 Å³/atom is none that matter has"),
    ("volumes in pm³ everywhere", convert(lambda c: [item("eos")(c)], "volumes", by=1e6), "measured", "matter has"),
    ("volumes in Bohr³ everywhere", convert(lambda c: [item("eos")(c)], "volumes", by=6.748), "measured",
     "at rest, the held-out frames have"),
    ("frequencies in 1/cm everywhere", convert(lambda c: [item("phonons")(c)], "teacher", "student", by=33.36),
     "measured", "a frequency of 200.2 THz is none"),
    *((f"g(r) in {unit} everywhere", convert(curves("rdf"), "radii", by=by), "measured", "a nearest peak at .* is none")
      for unit, by in (("nm", 0.1), ("pm", 100.0), ("Bohr", 1.8897), ("Å of Bohr", 0.5292))),
    ("phonons in 1/cm", scale(item("phonons"), "teacher", "student", by=33.36), "measured",
     "frequency does not follow"),
    ("phonon path cut", scale(item("phonons"), "path", by=0.5), "measured", "from 0 to 1"),
    ("phonon path reversed", lambda c: item("phonons")(c)["path"].reverse(), "measured", "from 0 to 1"),
    ("phonon marks reversed", lambda c: item("phonons")(c)["marks"].reverse(), "measured", "from 0 to 1"),
    ("phonon band lost", lambda c: [row.pop(0) for row in item("phonons")(c)["student"]], "measured",
     "number of bands"),
    ("phonon point lost", lambda c: item("phonons")(c)["student"].pop(1), "measured", "number of points"),
    ("g(r) in nm", scale_each(curves("rdf"), "radii", 0.1), "measured", "first peak at does not follow"),
    ("g(r) doubled", scale_each(curves("rdf"), "student", 2.0), "measured", r"difference of g\(r\) does not follow"),
    ("g(r) errors in percent", scale_each(curves("rdf"), "student_error", 100.0), "measured", "does not follow"),
    ("diffusion in nm²", scale_each(curves("diffusion"), "student_blocks", 0.01), "measured", "does not follow"),
    ("diffusion reversed", lambda c: curves("diffusion")(c)[0]["times"].reverse(), "measured", "in their order"),
    *((f"temperature of {kind} in °C", lambda c, k=kind: item(k)(c).update(temperature=400.0 - 273.15), "measured",
       "another unit") for kind in ("nve", "rdf", "diffusion")),
    ("stability in °C",
     lambda c: [r.update(temperature=r["temperature"] - 273.15) for r in item("stability")(c)["runs"]],
     "measured", "1.5 times"),
    ("stability steps", scale_each(lambda c: item("stability")(c)["runs"], "done", 2), "measured", "does not follow"),
    ("stability unbroken", lambda c: item("stability")(c)["runs"][1].update(reason=""), "assembled",
     "not those that were"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("plant", "stage", "words"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED]
)
def test_planted_errors_are_caught(whole_record, plant, stage, words):
    with pytest.raises(DataError, match=words):
        verify_record(edit(whole_record, plant, stage))


def test_times_inside_calls_are_not_timed_twice(whole_record):
    """A torch teacher has times of its model alone, of the same calls: together they exceed what timing took."""

    def add_inner(content):
        calls = find_curves(content)[1]
        inner = {**json.loads(json.dumps(calls)), "mode": "model", "includes": CLOCK_INCLUDES}
        inner["memory_kind"] = ""
        content["speed"].append(inner)
        total = 0.0
        for curve in content["speed"][:-1]:
            for point in curve["points"]:
                steps = re.match(r"blocks of (\d+) steps", point["reason"])
                total += sum(point["seconds"]) * (int(steps[1]) if steps else 1)
        content["durations"]["speed"] = 1.001 * total

    verify_record(edit(whole_record, add_inner, "measured"))


def test_errors_are_caught_beyond_the_rows_that_are_stored(monkeypatch):
    """Of many frames a selection is plotted; the sums over the others make any error in it visible."""
    monkeypatch.setattr(plotdata, "MOST_POINTS", 5)
    random = np.random.default_rng(0)
    structures = [bulk("Cu", cubic=True) for _ in range(9)]
    sides = [
        [Labels(random.normal(), random.normal(size=(4, 3)), random.normal(size=6) * 0.1) for _ in structures]
        for _ in range(2)
    ]  # fmt: skip
    made = plotdata.compute_parity(*sides, structures)
    assert len(made.energy) == len(made.stress) == 5
    found = measure_accuracy(*sides, structures)
    comparison = make_comparison(found, made, plotdata.compute_coverage(sides[0], structures))
    verify_comparison(comparison)
    for changes, words in (
        ({"energy": tuple((g, p, r) for g, r, p in made.energy)}, "plotted energies"),
        ({"stress": tuple((p, r) for r, p in made.stress)}, "plotted stresses"),
    ):
        planted = comparison.model_copy(update={"parity": made.model_copy(update=changes)})
        with pytest.raises(DataError, match=words):
            verify_comparison(planted)


def make_comparison(found, made, spread):
    from fastff.report.schema import Comparison, FramesPart

    frames = FramesPart(
        source="labels", description="", n_frames=9, n_atoms=36, n_trajectories=9,
        formulas=("Cu",), temperatures=None, digest="",
    )  # fmt: skip
    return Comparison(
        name="made", frames=frames, accuracy=found.to_dict(), parity=made, coverage=spread
    )


def test_magnitudes_that_matter_does_not_have_are_refused(whole_record):
    """Both sides in GPa, tables and plots alike: nothing contradicts, but no such matter exists."""
    main = whole_record.main
    found = main.read_accuracy()
    factor = 1e3
    scaled = replace(found, **{k: getattr(found, k) * factor for k in STRESSES})
    rows = tuple((factor * r, factor * p) for r, p in main.parity.stress)
    planted = main.model_copy(
        update={
            "accuracy": scaled.to_dict(),
            "parity": main.parity.model_copy(update={"stress": rows}),
        }
    )
    with pytest.raises(DataError, match="RMS stress times the volume"):
        verify_comparison(planted)
