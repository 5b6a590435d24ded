"""A bench run against an earlier record: slowdowns beyond noise, what is not compared, and records of no use.

Not here: how well medians are known, and how often to repeat (``test_report_repeats.py``).
"""

from __future__ import annotations

import numpy as np
import pytest
from producers import seal
from typer.testing import CliRunner

from fastff.cli import app
from fastff.cli.bench_records import print_changes
from fastff.errors import AccuracyError, DataError
from fastff.report.record import write_record
from fastff.report.regression import SlowdownError, check_machines, compare_speed, read_comparable
from fastff.report.regression import require_no_slowdown as require
from fastff.report.speed import SpeedPoint, summarize


def slow_down(record, factor):
    """The same record with every time of the student multiplied."""
    curves = []
    for curve in record.speed:
        if curve.role == "student":
            points = tuple(
                summarize(p.n_atoms, p.formula, [factor * s for s in p.seconds], p.peak_memory)
                if p.status == "measured" else p
                for p in curve.points
            )  # fmt: skip
            curve = curve.model_copy(update={"points": points})
        curves.append(curve)
    return seal(record.model_copy(update={"speed": tuple(curves)}), "measured")


def quiet(record):
    """Times with a spread of one percent, so that noise is known."""
    curves = []
    for curve in record.speed:
        points = tuple(
            summarize(p.n_atoms, p.formula, list(p.median * np.linspace(0.99, 1.01, 7)), None)
            if p.status == "measured" else p
            for p in curve.points
        )  # fmt: skip
        curves.append(curve.model_copy(update={"points": points}))
    return seal(record.model_copy(update={"speed": tuple(curves)}), "measured")


def test_slowdown_beyond_noise_is_caught(beside_record, tmp_path):
    before = quiet(beside_record)
    require(compare_speed(before, before))
    require(compare_speed(before, slow_down(before, 1.05)))
    require(compare_speed(before, slow_down(before, 0.5)))
    with pytest.raises(SlowdownError, match=r"1\.30 times"):
        require(compare_speed(before, slow_down(before, 1.3)))
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_record(before, first)
    write_record(slow_down(before, 1.3), second)
    done = CliRunner().invoke(app, ["bench", str(second), "--against", str(first)])
    assert done.exception.exit_code == 6
    assert CliRunner().invoke(app, ["bench", str(first), "--against", str(second)]).exit_code == 0


def test_what_is_lost_is_a_slowdown_and_what_is_left_out_is_named(beside_record, capsys):
    """Out of memory or broken where there was a time is worse than slow; what is not timed at all must be seen."""
    before = quiet(beside_record)

    def lose(status):
        curves = tuple(
            c.model_copy(update={"points": tuple(
                SpeedPoint(
                    n_atoms=p.n_atoms, formula=p.formula, status=status, reason="planted",
                    volume_per_atom=p.volume_per_atom,
                )
                for p in c.points
            )}) if (c.role, c.mode) == ("student", "md-loop") else c
            for c in before.speed
        )  # fmt: skip
        return before.model_copy(update={"speed": curves})

    for status in ("out-of-memory", "failed"):
        with pytest.raises(SlowdownError, match=f"1 of .* md-loop.*now none: {status}, planted"):
            require(compare_speed(before, lose(status)))
    changes = compare_speed(before, lose("too-slow"))
    require(changes)
    assert len(changes) == len(compare_speed(before, before))
    print_changes(changes)
    assert "too-slow, planted" in " ".join(capsys.readouterr().out.split())


def test_noise_is_no_slowdown(beside_record):
    """Medians 20 % apart, but the repeats of both spread over a factor of two."""
    before = quiet(beside_record)
    times = np.linspace(0.6, 1.4, 9)

    def spread(factor):
        curves = tuple(
            c.model_copy(update={"points": tuple(
                summarize(p.n_atoms, p.formula, list(factor * times), None) for p in c.points
            )})
            for c in before.speed
        )  # fmt: skip
        return before.model_copy(update={"speed": curves})

    require(compare_speed(spread(1.0), spread(1.2)))


def test_unlike_machines_and_students_are_not_compared(beside_record):
    other = beside_record.model_copy(
        update={"provenance": beside_record.provenance.model_copy(update={"cpu": "another"})}
    )
    with pytest.raises(DataError, match="unlike machines"):
        compare_speed(other, beside_record)
    with pytest.raises(DataError, match="on cpu, this run is on cuda"):
        check_machines(beside_record, beside_record.provenance, "cuda:0")
    larger = beside_record.model_copy(
        update={"model": beside_record.model.model_copy(update={"n_parameters": 1})}
    )
    with pytest.raises(DataError, match="different students"):
        compare_speed(larger, beside_record)
    for change, word in (
        ({"elements": ("Cu", "Au")}, "elements Cu Au"),
        ({"cutoff": 6.0}, "cut-off 6 Å"),
        ({"dtype": "float64"}, "float64"),
    ):
        other = beside_record.model_copy(
            update={"model": beside_record.model.model_copy(update=change)}
        )
        with pytest.raises(DataError, match=word):
            compare_speed(other, beside_record)


def test_other_materials_and_time_steps_are_not_compared(beside_record):
    """Sixteen of each of two elements have as many atoms as 32 of one, and other neighbors."""

    def change(formula, time_step):
        curves = tuple(
            c.model_copy(update={
                "points": tuple(p.model_copy(update={"formula": formula}) for p in c.points),
                "time_step": None if c.time_step is None else time_step,
            })
            for c in beside_record.speed
        )  # fmt: skip
        return beside_record.model_copy(update={"speed": curves})

    every = compare_speed(beside_record, beside_record)
    curve = beside_record.find_curve("student", "ase-md")
    volume, kelvin = curve.points[0].volume_per_atom, curve.start_temperature
    with pytest.raises(DataError, match=r"atoms of CuAu.*--structures"):
        compare_speed(change("CuAu", 2.0), beside_record)
    calls = compare_speed(change("Cu", 0.5), beside_record)
    assert {c.what.split(",")[0] for c in calls} == {"model", "model-list", "ase-call"}
    assert {c.what for c in every} - {c.what for c in calls} == {
        f"{mode}, 32 atoms of Cu, {volume:.3g} Å³/atom, 2 fs, {kelvin:g} K"
        for mode in ("md-loop", "ase-md")
    }


def test_other_densities_and_temperatures_are_not_compared(beside_record):
    """A denser crystal has more neighbors, a hotter one more rebuilt lists."""

    def change(volume, kelvin):
        curves = tuple(
            c.model_copy(update={
                "points": tuple(p.model_copy(update={"volume_per_atom": volume}) for p in c.points),
                "start_temperature": None if c.time_step is None else kelvin,
            })
            for c in beside_record.speed
        )  # fmt: skip
        return beside_record.model_copy(update={"speed": curves})

    first = change(11.5, 300.0)
    assert len(compare_speed(first, change(11.501, 300.0))) == len(compare_speed(first, first))
    with pytest.raises(DataError, match=r"11\.5 Å³/atom.*12 Å³/atom"):
        compare_speed(first, change(12.0, 300.0))
    calls = compare_speed(first, change(11.5, 900.0))
    assert {c.what.split(",")[0] for c in calls} == {"model", "model-list", "ase-call"}
    # a record from before they were stored
    assert len(compare_speed(change(None, None), first)) == len(compare_speed(first, first))


def test_accuracy_that_fails_comes_before_a_comparison_that_cannot_be_made(beside_record):
    from fastff.cli.bench import judge

    verdict = beside_record.verdict.model_copy(update={"required": 1.0, "passed": False})
    failed = beside_record.model_copy(update={"verdict": verdict})
    larger = beside_record.model_copy(
        update={"model": beside_record.model.model_copy(update={"n_parameters": 1})}
    )
    with pytest.raises(AccuracyError):
        judge(failed, larger)
    with pytest.raises(DataError, match="different students"):
        judge(beside_record, larger)


def test_a_record_of_no_use_is_refused_with_those_that_are(beside_record, beside_models, tmp_path):
    good, silent = tmp_path / "good.json", tmp_path / "silent.json"
    write_record(beside_record, good)
    untimed = beside_record.model_copy(update={"speed": (), "ratios": (), "baselines": ()})
    untimed = untimed.model_copy(update={"headline_size": None})
    write_record(seal(untimed, "assembled"), silent)
    other = tmp_path / "engine" / "md.json"
    other.parent.mkdir()
    other.write_text('{"what": "steps"}')
    for path, reason in (
        (silent, "without timings"),
        (other, "has schema None"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        for arguments in (
            [str(good), "--against", str(path)],
            [str(beside_models[0]), "--compare-teacher", "--teacher", "analytic:morse", "--against", str(path)],
        ):  # fmt: skip
            out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
            own = [] if arguments[0].endswith(".json") else out
            done = CliRunner().invoke(app, ["bench", *arguments, *own])
            assert isinstance(done.exception, DataError)
            said = str(done.exception)
            assert reason in said
            assert said.endswith(f"usable: {good}")
            assert "\n" not in said
    with pytest.raises(DataError, match="no record beside it is usable"):
        read_comparable(
            other.parent / "none.json", lambda r: check_machines(r, r.provenance, "cuda")
        )
