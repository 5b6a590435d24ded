"""Tables of a report by hand, and what is said where they have gaps. Not here: cells of a whole record."""

from __future__ import annotations

import pytest

from fastff.report.kernels import KernelRecord, KernelRow
from fastff.report.markdown import DYNAMICS, tabulate_dynamics, tabulate_temperatures
from fastff.report.speed import summarize
from fastff.report.tables import describe_kernels, describe_paths, tabulate_kernels
from fastff.report.verdict import format_ratio, write_verdict
from fastff.units import EV_PER_A3_TO_GPA


def read(table):
    """Rows as dictionaries by heading."""
    headings, rows = table
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_simulated_time_is_compared_with_the_faster_of_the_teachers_calls_and_steps(whole_record):
    call = whole_record.find_curve("teacher", "ase-call")
    n_atoms = call.points[0].n_atoms

    def make(role, mode, seconds):
        points = (summarize(n_atoms, "Cu", [seconds] * 3, None),)
        return call.model_copy(update={
            "role": role, "label": role, "mode": mode, "points": points,
            "time_step": None if mode == "ase-call" else 2.0,
        })  # fmt: skip

    for steps, best in ((0.2, 0.2), (0.8, 0.5)):
        curves = (
            make("teacher", "ase-call", 0.5), make("teacher", "ase-md", steps),
            make("student", "ase-call", 0.02), make("student", "md-loop", 0.01),
        )  # fmt: skip
        rows = read(tabulate_dynamics(whole_record.model_copy(update={"speed": curves})))
        shown = {(r["calculator"], r["timed"]): r["against teacher"] for r in rows}
        assert shown["student", DYNAMICS["md-loop"]] == f"{best / 0.01:.0f}×"
        assert shown["student", DYNAMICS["ase-call"]] == f"{best / 0.02:.0f}×"
        assert shown["teacher", DYNAMICS["ase-md"]] == format_ratio(best / steps)


def test_sizes_of_forces_and_stress_by_temperature_are_in_their_units(whole_record):
    rows = read(tabulate_temperatures(whole_record))
    entries = whole_record.main.read_accuracy().per_temperature
    assert len(rows) == len(entries) > 1
    for row, entry in zip(rows, entries, strict=True):
        assert float(row["RMS force (meV/Å)"].replace(",", "")) == pytest.approx(
            1e3 * entry["force_rms"], rel=6e-3
        )
        assert float(row["RMS stress (GPa)"]) == pytest.approx(
            EV_PER_A3_TO_GPA * entry["stress_rms"], rel=6e-3
        )


def test_kernels_by_hand(whole_record):
    """A floor of 2 ms: Triton takes 2.5, compiled torch 8, eager 20 ms."""
    common = {"op": "moments", "direction": "forward", "rows": 108_000, "status": "measured"}
    rows = [
        KernelRow(**common, variant=variant, seconds=(t,) * 3, median=t, floor=2e-3)
        for variant, t in (("triton", 2.5e-3), ("compiled", 8e-3), ("eager", 20e-3))
    ]
    record = KernelRecord(
        device="cpu", bandwidth=3.35e12, product_rate=51.2e12, rows=tuple(rows),
        provenance=whole_record.provenance,
    )  # fmt: skip
    (row,) = read(tabulate_kernels(record))
    assert row == {
        "op": "moments", "direction": "forward", "rows": "108 k", "Triton (share)": "2.5 ms (80 %)",
        "torch.compile (share)": "8 ms (25 %)", "eager (share)": "20 ms (10 %)",
    }  # fmt: skip
    assert "copies at 3,350 GB/s, float32 products at 51.2 TFLOP/s" in describe_kernels(record)


def test_sizes_without_steps_of_ase_are_no_riddle(whole_record):
    def describe(n_points):
        curves = [
            c.model_copy(update={"points": c.points[:n_points]}) if c.mode == "ase-md" else c
            for c in whole_record.speed
        ]
        lines = describe_paths(whole_record.model_copy(update={"speed": tuple(curves)}))
        return next((line for line in lines if line.startswith("ASE step: ")), "")

    sizes = [p.n_atoms for p in whole_record.find_curve("teacher", "ase-call").points]
    assert len(sizes) > 1
    assert describe(1).endswith(f"timed only at {sizes[0]} atoms.")
    assert "timed only" not in describe(None)


def test_calculators_whose_model_is_not_timed_alone_are_named(whole_record):
    words = "not told apart from the rest of a call: "
    calls = {c.role: c for c in whole_record.speed if c.mode == "ase-call"}
    rest = [c for c in whole_record.speed if c.mode != "model"]
    for timed in (set(calls), {"teacher"}):
        alone = [c.model_copy(update={"mode": "model"}) for r, c in calls.items() if r in timed]
        line = describe_paths(whole_record.model_copy(update={"speed": (*alone, *rest)}))[0]
        others = [c.label for r, c in calls.items() if r not in timed]
        assert line.startswith("model alone: ")
        assert line.endswith(f"{words}{', '.join(others)}.") if others else words not in line


def test_what_is_beyond_the_training_data_is_to_be_trained_on(whole_record):
    data = whole_record.calibration
    for share, command in ((0.5, "fastff train --teacher "), (0.0, "fastff predict ")):
        verdict = write_verdict(
            whole_record.model, whole_record.comparisons, whole_record.teacher_noise,
            whole_record.headline, whole_record.provenance, None, "m.safetensors",
            calibration=data.model_copy(update={"beyond": (share, *data.beyond[1:])}),
        )  # fmt: skip
        assert verdict.next_command.startswith(command)
        assert "--student" not in verdict.next_command
