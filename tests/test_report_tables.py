"""What the tables of a report say, against the record they are made from: sides, units and columns."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

import pytest
from producers import edit

from fastff.report.calibration import CalibrationData
from fastff.report.html import _list_tiles, _tabulate_noise, render_report
from fastff.report.markdown import (
    DYNAMICS,
    tabulate_accuracy,
    tabulate_dynamics,
    tabulate_speed,
    write_tables,
)
from fastff.report.physics.derive import derive_quantities
from fastff.report.record import read_record, verify_record
from fastff.report.schema import compute_digest
from fastff.report.spread import QUANTITIES
from fastff.report.tables import (
    LAUNCHED_ONE_BY_ONE,
    PATHS,
    describe_calibration,
    describe_paths,
    tabulate_baselines,
    tabulate_calibration,
    tabulate_paths,
    tabulate_physics,
)
from fastff.report.verdict import UNDEFINED, format_percent, list_lines
from fastff.units import EV_PER_A3_TO_GPA, show_number

RESULTS = Path(__file__).parents[1] / "bench" / "results"


def read(table):
    """Rows as dictionaries by heading."""
    headings, rows = table
    return [dict(zip(headings, row, strict=True)) for row in rows]


def find(record, role, mode, size):
    return record.find_curve(role, mode).find(size)


def parse_time(text):
    """Seconds of a time as tables write it."""
    number, unit = text.split(" (")[0].split()
    return float(number.replace(",", "")) * {"s": 1.0, "ms": 1e-3}[unit]


def close(value):
    """Equal to three significant digits."""
    return pytest.approx(value, rel=6e-3)


def test_accuracy(whole_record):
    rows = {(r["frames"], r["quantity"]): r for r in read(tabulate_accuracy(whole_record))}
    for comparison in whole_record.comparisons:
        accuracy = comparison.read_accuracy()
        for quantity, unit, factor in (
            ("force", "meV/Å", 1e3),
            ("energy", "meV/atom", 1e3),
            ("stress", "GPa", EV_PER_A3_TO_GPA),
        ):
            row = rows[comparison.name, quantity]
            value = 100.0 * getattr(accuracy, quantity)
            assert float(row["accuracy"].split()[0]) == pytest.approx(value, abs=0.1)
            words = row["error"].replace(",", "").split()
            assert float(words[1]) == close(factor * getattr(accuracy, f"{quantity}_mae"))
            assert float(words[3]) == close(factor * getattr(accuracy, f"{quantity}_rmse"))
            assert words[4] == unit


def test_speed(whole_record):
    for row in read(tabulate_speed(whole_record)):
        size = int(row["atoms"])
        teacher, student = (find(whole_record, r, "ase-call", size) for r in ("teacher", "student"))
        assert parse_time(row["teacher"]) == close(teacher.median)
        assert parse_time(row["student"]) == close(student.median)
        ratio = teacher.median / student.median
        assert float(row["ratio"].split("×")[0]) == pytest.approx(ratio, rel=0.05)
        for role, point in (("teacher", teacher), ("student", student)):
            shown = row[f"{role} memory"]
            if not shown.startswith("<"):
                assert float(shown.split()[0]) * 2**20 == pytest.approx(
                    point.peak_memory, abs=2**19
                )


def test_where_the_time_goes(whole_record):
    labels = {curve.label: curve.role for curve in whole_record.speed}
    for row in read(tabulate_paths(whole_record)):
        for mode, heading in PATHS.items():
            curve = whole_record.find_curve(labels[row["calculator"]], mode)
            point = curve.find(int(row["atoms"])) if curve is not None else None
            if point is not None and point.median is not None:
                assert parse_time(row[heading]) == close(point.median)


def test_simulated_time(whole_record):
    (time_step,) = {c.time_step for c in whole_record.speed if c.time_step is not None}
    rows = read(tabulate_dynamics(whole_record))
    assert rows
    modes = {words: mode for mode, words in DYNAMICS.items()}
    for row in rows:
        mode, size = modes[row["timed"]], int(row["atoms"])
        curve = next(
            c for c in whole_record.speed if (c.label, c.mode) == (row["calculator"], mode)
        )
        point = curve.find(size)
        # of uneven blocks, as on a busy machine, the median counts
        median = mode == "ase-call" or point.counts == "median"
        seconds = point.median if median else point.mean
        assert parse_time(row["time"]) == close(seconds)
        steps = 86400.0 / parse_time(row["time"])
        nanoseconds = float(row[f"ns/day, {time_step:g} fs"])
        assert nanoseconds == pytest.approx(steps * time_step * 1e-6, rel=0.02)


def test_physics(whole_record):
    rows = {(r["property"], r["quantity"]): r for r in read(tabulate_physics(whole_record))}
    quantities = [(item.title, q) for item in whole_record.physics.items for q in item.quantities]
    assert len(rows) == len(quantities)
    for title, quantity in quantities:
        row = rows[title, quantity.name]
        assert row["unit"] == quantity.unit
        for role in ("teacher", "student"):
            value = getattr(quantity, role)
            if value is not None and not row[role].startswith("<"):
                few = " " in row[role]  # fewer digits beside an error
                shown = float(row[role].split()[0].strip(","))
                assert shown == pytest.approx(value, rel=0.06 if few else 1e-3)


def test_drifts_are_shown_with_their_times_and_without_percentage(whole_record):
    """Both are next to nothing: 0.033 and 0.052 meV/atom/ps are no difference of 58 %."""
    found = next(item for item in whole_record.physics.items if item.kind == "nve")
    short = found.student.model_copy(update={"times": tuple(0.5 * t for t in found.student.times)})
    item = found.model_copy(update={"student": short})
    item = item.model_copy(update={"quantities": derive_quantities(item)})
    part = whole_record.physics.model_copy(update={"items": (item,)})
    rows = read(tabulate_physics(whole_record.model_copy(update={"physics": part})))
    assert [row["quantity"].split()[0] for row in rows] == ["drift", "fluctuation"]
    for row in rows:
        assert row["teacher"].endswith(" (over 2 ps)")
        assert row["student"].endswith(" (over 1 ps)")
        assert row["difference"] == ""
    assert any(row["difference"].endswith("%") for row in read(tabulate_physics(whole_record)))


def test_baselines(whole_record):
    judged = {whole_record.model.name: whole_record.comparisons}
    judged |= {baseline.name: baseline.comparisons for baseline in whole_record.baselines}
    rows = read(tabulate_baselines(whole_record))
    assert {row["model"] for row in rows} == set(judged)
    for row in rows:
        accuracy = next(c.accuracy for c in judged[row["model"]] if c.name == row["frames"])
        assert float(row["force MAE (meV/Å)"]) == close(1e3 * accuracy["force_mae"])
        for name in ("force", "energy", "stress"):
            shown = float(row[name].split()[0])
            assert shown == pytest.approx(100.0 * accuracy[name], abs=0.1)
        if row["ASE call"]:
            role = "student" if row["model"] == whole_record.model.name else row["model"]
            point = find(whole_record, role, "ase-call", whole_record.headline_size)
            assert parse_time(row["ASE call"]) == close(point.median)


def test_tables_of_the_page_alone(whole_record):
    page = render_report(whole_record)

    def read_row(first):
        found = re.search(rf"<tr><td[^>]*>{re.escape(first)}</td>(.*?)</tr>", page)
        return re.findall(r"<td[^>]*>(.*?)</td>", found[1])

    for words, name in (("force, rotated copy", "rotation_force"), ("force, alone", "batch_force")):
        line = re.search(rf"<td[^>]*>({words}[^<]*?)</td>", page)[1]
        shown = [float(cell.split()[0]) for cell in read_row(line)]
        sides = [whole_record.teacher_noise, whole_record.student_noise]
        assert shown == [pytest.approx(100.0 * getattr(s, name), rel=0.06) for s in sides]
    assert '<th scope="col">teacher</th><th scope="col">student</th></tr>' in page
    for symbol, entry in whole_record.main.read_accuracy().per_element.items():
        count, mae, rmse, accuracy = read_row(symbol)
        assert int(count) == entry.n_atoms
        assert float(mae) == close(1e3 * entry.mae)
        assert float(rmse) == close(1e3 * entry.rmse)
        assert float(accuracy.split()[0]) == pytest.approx(100.0 * entry.accuracy, abs=0.1)


def test_tiles_and_energies_of_the_noise_floor_are_in_their_units(whole_record):
    """1.2 and 3.4 meV/atom of the teacher, 5.6 and 7.8 of the student; the force error in meV/Å."""
    energies = {"teacher_noise": (0.0012, 0.0034), "student_noise": (0.0056, 0.0078)}
    noises = {
        side: getattr(whole_record, side).model_copy(
            update={"rotation_energy": rotation, "batch_energy": batch}
        )
        for side, (rotation, batch) in energies.items()
    }
    rows = _tabulate_noise(whole_record.model_copy(update=noises))[1]
    found = {row[0]: row[1:] for row in rows}
    assert found["energy, rotated copy"] == ["1.2 meV/atom", "5.6 meV/atom"]
    assert found["energy, alone or in a batch"] == ["3.4 meV/atom", "7.8 meV/atom"]
    accuracy = whole_record.main.read_accuracy()
    tiles = {what: (number, of) for number, what, of in _list_tiles(whole_record)}
    number, of = tiles["meV/Å force MAE"]
    assert float(number.replace(",", "")) == close(1e3 * accuracy.force_mae)
    assert float(of.split()[1].replace(",", "")) == close(1e3 * accuracy.force_rms)
    assert tiles["accuracy"][0] == format_percent(accuracy.overall)


def test_the_verdict_names_the_worst_temperature(whole_record):
    rows = whole_record.main.read_accuracy().per_temperature
    worst = min((row[q], row["temperature"], q) for row in rows for q in QUANTITIES)
    line = f"Worst temperature: {worst[1]:.0f} K, {worst[2]} {format_percent(worst[0])}."
    assert line in whole_record.verdict.lines


def test_a_slower_student_is_called_slower(whole_record):
    def slow(content):
        curve = next(
            c for c in content["speed"] if c["mode"] == "ase-call" and c["role"] == "student"
        )
        teacher = next(
            c for c in content["speed"] if c["mode"] == "ase-call" and c["role"] == "teacher"
        )
        for mine, other in zip(curve["points"], teacher["points"], strict=True):
            for key in ("median", "mean", "q10", "q90"):
                mine[key] = other[key] / 0.92
            mine["seconds"] = [s / 0.92 for s in other["seconds"]]
            mine["atom_steps_per_second"] = 0.92 * other["atom_steps_per_second"]

    record = edit(whole_record, slow, "measured")
    verify_record(record)
    (line,) = (text for text in record.verdict.lines if text.startswith("Speed"))
    assert line.startswith("Speed: 1.1× slower than the teacher")
    tile = next(tile for tile in _list_tiles(record) if tile[1] in ("faster", "slower"))
    assert tile[:2] == ("1.1×", "slower")
    # a later wording is held to its figures alone
    later = record.model_copy(update={"verdict": record.verdict.model_copy(update={"wording": 99})})
    verify_record(later.model_copy(update={"digest": compute_digest(later)}))


def test_the_verdict_says_what_the_teacher_was_timed_without(whole_record):
    """A ratio to a teacher without its accelerator is not that to its best case."""
    missing = ["accelerator cueq: the package c is not installed", "accelerator flash: the package f is not installed",
               "dtype bfloat16: too old"]  # fmt: skip

    def lose(content):
        for curve in content["speed"]:
            if curve["role"] == "teacher":
                curve["identity"] |= {"unavailable": missing, "tried": []}

    (line,) = (
        text
        for text in edit(whole_record, lose, "measured").verdict.lines
        if text.startswith("Speed")
    )
    assert line.endswith(
        "); the teacher without accelerator cueq, flash, dtype bfloat16, not available here."
    )
    (line,) = (text for text in whole_record.verdict.lines if text.startswith("Speed"))
    assert "without" not in line


def test_offsets_that_were_taken_out_are_said(whole_record):
    """A student may be right about all forces and off by a constant for a composition that it never saw."""
    from fastff.report.markdown import describe_offsets, write_tables

    (name, value), *_ = sorted(
        whole_record.main.read_accuracy().energy_offsets.items(), key=lambda entry: -abs(entry[1])
    )
    words = f"{name} {show_number(1e3 * value, sign='+')} meV/atom"
    assert words in describe_offsets(whole_record)
    assert words in render_report(whole_record)
    assert words in write_tables(whole_record)


def test_errors_of_the_student_alone_are_no_noise(whole_record):
    def part_from(content):
        curve = next(i for i in content["physics"]["items"] if i["kind"] == "rdf")["curves"][0]
        curve.update(teacher=None, teacher_error=None)

    record = edit(whole_record, part_from, "measured")
    item = next(i for i in record.physics.items if i.kind == "rdf")
    item = item.model_copy(update={"quantities": derive_quantities(item)})
    part = record.physics.model_copy(update={"items": (item,)})
    (row,) = read(tabulate_physics(record.model_copy(update={"physics": part})))
    assert (row["teacher"], row["student"].split()[1]) == ("–", "±")
    both = [
        r for r in read(tabulate_physics(whole_record)) if "difference of g(r)" in r["quantity"]
    ]
    assert both
    assert all("(noise " in r["student"] for r in both)


def test_every_series_says_what_it_includes(whole_record):
    lines = dict(line.split(": ", 1) for line in describe_paths(whole_record))
    for curve in whole_record.speed:
        assert curve.includes in lines[PATHS[curve.mode]]
    page = render_report(whole_record)
    assert all(line in page for line in lines.values() if "<" not in line and "'" not in line)


def test_lists_of_old_records_say_that_their_kernels_were_not_replayed(whole_record):
    def describe(device):
        curves = [
            c.model_copy(update={"device": device, "includes": LAUNCHED_ONE_BY_ONE})
            for c in whole_record.speed
            if c.mode == "model-list"
        ]
        return describe_paths(whole_record.model_copy(update={"speed": tuple(curves)}))

    assert "one by one" in describe("cuda")[0]
    assert "one by one" not in describe("cpu")[0]


def test_uncertainty_of_every_set_of_frames(whole_record):
    """As on strained frames of a stored record: 12 % of 8 errors within one deviation, 38 % within two."""
    within = [(0, 1.0, 0.5)] * 22 + [(0, 1.0, 1.5)] * 8
    beyond = [(1, 1.0, 0.5)] + [(1, 1.0, 1.5)] * 2 + [(1, 1.0, 3.0)] * 5
    few = [(2, 1.0, 0.5)] * 1 + [(2, 1.0, 1.5)]
    data = CalibrationData(
        names=("held-out frames", "strained by ±5 %", "two frames"), energy=(*within, *beyond, *few),
        within=(22 / 30, 1.0), grades=(), beyond=(0.0, 0.01, 0.0),
    )  # fmt: skip
    words = describe_calibration(data)
    assert (
        "held-out frames 73 % and 100 %; strained by ±5 % 12 % and 37 %; two frames 50 % and 100 %"
        in words
    )
    assert words.endswith(
        "Not to be trusted on: strained by ±5 %; errors there are larger than it says."
    )
    rows = tabulate_calibration(data)[1]
    assert rows[1] == ["strained by ±5 %", "8", "12 %", "37 %", "1 %"]
    page, text = render_report(whole_record), write_tables(whole_record)
    own = tabulate_calibration(whole_record.calibration)
    assert len(own[1]) == len(whole_record.comparisons)
    for cell in (*own[0], *(cell for row in own[1] for cell in row)):
        assert escape(cell) in page
        assert cell in text
    assert describe_calibration(whole_record.calibration) in text


def test_ratios_at_sizes_without_a_trial_are_marked(whole_record):
    """Settings that were compared at the size of the headline alone, as in records from before there was a second."""
    assert "only; the teacher may be faster" not in write_tables(whole_record)
    size = whole_record.headline_size
    tried = [
        {"settings": {"compile": on}, "n_atoms": size, "seconds": 1.0, "reason": ""}
        for on in (True, False)
    ]
    identity = {"settings": {"compile": True}, "tried": tried, "unavailable": []}
    curves = tuple(
        c.model_copy(update={"identity": {**c.identity, **identity}}) if c.role == "teacher" else c
        for c in whole_record.speed
    )
    record = whole_record.model_copy(update={"speed": curves})
    found = {row["atoms"]: row["ratio"] for row in read(tabulate_speed(record))}
    assert "*" not in found.pop(str(size))
    assert all("×* (" in ratio for ratio in found.values() if ratio != UNDEFINED)
    expected = f"settings chosen at {size:,} atoms only" if found else ""
    assert expected in write_tables(record)


def test_ratios_between_sizes_of_different_settings_are_marked():
    record = read_record(RESULTS / "tio2-7net-0-h200.json")
    found = {row["atoms"]: row["ratio"] for row in read(tabulate_speed(record))}
    assert [size for size, ratio in found.items() if "×*" in ratio] == ["1944"]
    text = write_tables(record)
    assert "at 576 and 8,064 atoms different settings won, and none were compared in" in text


@pytest.mark.parametrize("name", ["tio2-7net-0-h100", "water-7net-0-h100", "cuau-7net-0-h100"])
def test_pages_of_old_records_have_the_present_words(name):
    record = read_record(RESULTS / f"{name}.json")
    page, text = render_report(record), write_tables(record)
    assert "no quantity of both sides" in "".join(record.verdict.lines) or name.startswith("tio2")
    for shown in (text, page[: page.index('<script type="application/json"')]):
        assert "no quantity of both sides" not in shown
        assert (
            "imaginary modes of the teacher (to 1.97i THz between Γ and Y, " in shown
        ) == name.startswith("tio2")
    assert "settings chosen at" in text
    lines = "\n".join(list_lines(record))
    # every figure of the accuracy, the noise and the speed is the stored one
    for stored in record.verdict.lines[:5]:
        plain = re.sub(r"[\d.]+e\+\d+", lambda found: show_number(float(found[0])), stored)
        assert plain.replace("O2Ti", "TiO2") in lines
