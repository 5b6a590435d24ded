"""Budgets, gates, logs and ladders of on-policy rounds, without any teacher. Not here: whole rounds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from torch import nn

from fastff.distill.groups import HOT, STUDENT, TEACHER, meets_target
from fastff.distill.ladder import Ladder, Trained, choose_settings, replay_frames
from fastff.distill.request import build_request
from fastff.distill.roundlog import GateRow, read_rows, write_rows
from fastff.distill.roundplan import (
    Budget,
    RoundsPlan,
    estimate_evaluations,
    parse_budget,
    plan_rounds,
)
from fastff.distill.split import Split
from fastff.errors import UsageError
from fastff.labels import Frame, Labels
from fastff.models import LADDER
from fastff.report.metrics import Accuracy, measure_accuracy


def make_accuracy(force: float, energy: float | None = None) -> Accuracy:
    """An accuracy with a given force part."""
    rng = np.random.default_rng(0)
    atoms = [Atoms("Cu4", positions=rng.normal(size=(4, 3)) * 3) for _ in range(3)]
    reference = [Labels(float(k), rng.normal(size=(4, 3)), None) for k in range(3)]
    found = measure_accuracy(reference, reference, atoms)
    return replace(found, force=force, energy=energy)


# --- budgets ---


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, Budget()),
        (20000, Budget(evaluations=20000)),
        ("20000", Budget(evaluations=20000)),
        ("25min", Budget(minutes=25.0)),
        ("0.5 h", Budget(minutes=30.0)),
    ],
)
def test_budgets_are_evaluations_or_time(given: int | str | None, wanted: Budget) -> None:
    assert parse_budget(given) == wanted


@pytest.mark.parametrize("given", ["25 miles", "-3", "0", "1.5", "min", 0])
def test_budgets_that_are_neither(given: int | str) -> None:
    with pytest.raises(UsageError, match="is neither teacher evaluations"):
        parse_budget(given)


@pytest.mark.parametrize(
    ("evaluations", "n_rounds", "expected"),
    [(100, None, 0), (200, None, 1), (None, None, 3), (20000, None, 4), (1000, 2, 2)],
)
def test_a_plan_spends_its_budget_exactly(
    evaluations: int | None, n_rounds: int | None, expected: int
) -> None:
    plan = plan_rounds(evaluations, n_rounds)
    assert plan.n_rounds == expected
    assert plan.total == (1000 if evaluations is None else evaluations)
    assert plan.gate % 2 == 0
    share = (plan.first or 0) / (plan.total or 1)
    assert share == pytest.approx({100: 1.0, 20000: 0.25}.get(evaluations or 0, 0.5), abs=0.02)
    if expected:
        assert plan.train >= 8
        assert str(plan.total) in str(plan)


def test_rounds_that_a_budget_cannot_pay_are_refused() -> None:
    with pytest.raises(UsageError, match="100 evaluations is too small for 4 rounds"):
        plan_rounds(100, 4)
    assert plan_rounds(None, 0) == RoundsPlan(None, 0)
    with pytest.raises(UsageError, match="3 rounds need a teacher"):
        build_request(labels="x.xyz", rounds=3)
    with pytest.raises(UsageError, match="neither teacher evaluations"):
        build_request(labels="x.xyz", budget="soon")


def test_minutes_become_evaluations() -> None:
    class Slow:
        n_calls = 0

        def label(self, structures: list[Atoms]) -> None:
            self.n_calls += 1

    teacher = Slow()
    count = estimate_evaluations(teacher, [bulk("Cu")], 1e-9)  # type: ignore[arg-type]
    assert (count, teacher.n_calls) == (60, 4)


# --- gates ---


def test_the_gate_asks_for_every_group() -> None:
    good, fair, poor = make_accuracy(0.99), make_accuracy(0.96), make_accuracy(0.90)
    assert meets_target({TEACHER: good, STUDENT: good}, 0.98)
    assert meets_target({TEACHER: good, STUDENT: good, HOT: fair}, 0.98)
    assert not meets_target({TEACHER: good, STUDENT: good, HOT: poor}, 0.98)
    assert not meets_target({TEACHER: good, STUDENT: fair}, 0.98)
    assert not meets_target({TEACHER: fair, STUDENT: good}, 0.98)
    assert not meets_target({TEACHER: good}, 0.98)
    assert not meets_target({TEACHER: good, STUDENT: make_accuracy(0.99, energy=0.9)}, 0.98)


def test_rows_survive_their_files(tmp_path: Path) -> None:
    row = GateRow(
        1, "m1", 10, 5, 1.5, {STUDENT: make_accuracy(0.9)}, {"walkers": 3, "last": ""}, {}
    )
    later = replace(row, round=2, accuracy={HOT: make_accuracy(0.8)}, calibration={"z_rms": 1.0})
    write_rows(tmp_path, [row, later])
    assert read_rows(tmp_path) == [row, later]
    table = list(csv.DictReader((tmp_path / "rounds.csv").open()))
    assert [line["round"] for line in table] == ["1", "2"]
    assert float(table[0]["student-driven.force"]) == 0.9
    assert table[0]["student-driven-hot.force"] == ""
    (tmp_path / "rounds.json").write_text("[{")
    assert read_rows(tmp_path) == []


def test_new_frames_make_up_half_of_what_is_replayed() -> None:
    frames: list[Any] = list(range(100))
    assert replay_frames(frames[:40], frames[40:60]) == [*range(60), *range(40, 60)]
    assert len(replay_frames(frames[:90], frames[90:])) == 90 + 3 * 10
    assert len(replay_frames(frames[:40], frames[40:])) == 100
    assert replay_frames(frames[:3], []) == [0, 1, 2]


class FakeLadder(Ladder):
    """Students of known accuracy on validation and training frames."""

    known: dict[str, tuple[float, float]] = {}  # noqa: RUF012
    scores: dict[str, float] = {}  # noqa: RUF012

    def train(
        self, name: str, split: Any, label: str, *, start: Any = None, grow: bool = False
    ) -> Trained:
        self.attempts[name] = self.known[name][0]
        result: Any = None
        validation, fit = self.known[name]
        score = self.scores.get(name, validation)
        return Trained(name, result, make_accuracy(validation), score, fit)


@pytest.mark.parametrize(
    ("known", "grow", "tried", "best"),
    [
        ({"m1": (0.99, 0.99)}, False, ["m1"], "m1"),
        ({"m1": (0.90, 0.99)}, True, ["m1"], "m1"),  # more data will help
        ({"m1": (0.90, 0.91), "m2": (0.94, 0.985)}, True, ["m1", "m2"], "m2"),  # too small
        (
            {"m1": (0.93, 0.99), "m2": (0.92, 0.99), **dict.fromkeys(LADDER[2:], (0.91, 1))},
            False,
            list(LADDER),
            "m1",
        ),
    ],
)
def test_a_larger_student_is_tried_where_the_present_one_is_too_small(
    tmp_path: Path, known: dict[str, tuple[float, float]], grow: bool, tried: list[str], best: str
) -> None:
    request = build_request(labels="x.xyz", target=0.98)
    ladder = FakeLadder(request, tmp_path, "cpu", False, *[lambda *_: None] * 3)
    ladder.known = known
    split: Any = None
    assert ladder.climb(split, grow=grow).name == best
    assert list(ladder.attempts) == tried


def test_the_score_decides_among_students_that_miss_the_target(tmp_path: Path) -> None:
    request = build_request(labels="x.xyz", target=0.98)
    ladder = FakeLadder(request, tmp_path, "cpu", False, *[lambda *_: None] * 3)
    split: Any = None
    ladder.known = {
        "m1": (0.95, 0.96),
        "m2": (0.94, 0.96),
        "m2-l": (0.90, 0.96),
        "m3-l": (0.91, 0.96),
    }
    ladder.scores = {"m1": 0.93, "m2": 0.96, "m2-l": 0.95, "m3-l": 0.94}
    assert ladder.climb(split).name == "m2"
    ladder.known["m2-l"] = (0.985, 0.99)  # met: a better score of another student does not matter
    assert ladder.climb(split).name == "m2-l"


def test_every_student_tried_counts_in_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = SimpleNamespace(student=nn.Linear(1, 1), seconds=10.0)
    monkeypatch.setattr("fastff.distill.ladder.train_student", lambda *_, **__: result)
    monkeypatch.setattr("fastff.distill.ladder.measure_student", lambda *_: make_accuracy(0.5))
    monkeypatch.setattr("fastff.distill.ladder.judge_student", lambda *_: (make_accuracy(0.5), 0.5))
    request = build_request(labels="x.xyz", target=0.98)
    ladder = Ladder(request, tmp_path, "cpu", False, *[lambda *_: None] * 3)
    frame = Frame(bulk("Cu"), Labels(0.0, np.zeros((1, 3)), None), "x", 0, 300.0, 0)
    ladder.climb(Split([frame], [frame], []))
    assert ladder.seconds == 10.0 * len(LADDER)


def test_before_rounds_no_more_steps_than_the_data_are_worth() -> None:
    frame = Frame(bulk("Cu"), Labels(0.0, np.zeros((1, 3)), None), "x", 0, 300.0, 0)
    split = Split([frame] * 100, [frame], [])

    def count(n_steps: int | None, grow: bool) -> int:
        request = build_request(labels="x.xyz", n_steps=n_steps)
        return choose_settings(request, "m1", split, "cpu", grow=grow).n_steps

    assert [count(n, False) for n in (None, 30, 30_000)] == [2000, 30, 30_000]
    assert [count(n, True) for n in (None, 30, 30_000)] == [2000, 30, 2000]
