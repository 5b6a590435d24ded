"""On-policy rounds as a whole, on a teacher that costs nothing: budget, gates, log, being killed and continued."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from fastff.checkpoint import load_model
from fastff.distill import rounds as rounds_module
from fastff.distill.content import hash_structure
from fastff.distill.formats import read_labels
from fastff.distill.ladder import Ladder, Trained, replay_frames
from fastff.distill.request import DistillRequest, build_request
from fastff.distill.roundlog import GateRow, measure_calibration, read_rows, write_rows
from fastff.distill.roundplan import (
    Budget,
    RoundsPlan,
    estimate_evaluations,
    parse_budget,
    plan_rounds,
)
from fastff.distill.rounds import HOT, STUDENT, TEACHER, Rounds, RoundsListener, meets_target
from fastff.distill.run import DistillOutcome, Listener, distill
from fastff.distill.split import Split
from fastff.distill.train import TrainSettings, train_student
from fastff.errors import UsageError
from fastff.labels import Frame, Labels
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


def test_training_goes_on_from_the_weights_it_is_given(
    request_: DistillRequest, whole: tuple[Path, DistillOutcome], tmp_path: Path
) -> None:
    start = load_model(whole[1].model)
    frames = read_labels(whole[0] / "labels.h5").frames
    settings = TrainSettings(
        cutoff=3.5, n_steps=1, learning_rate=1e-9, batch_atoms=4 * len(frames), device="cpu"
    )
    found = train_student(frames, frames[:4], settings, tmp_path, start=start).student
    for name, value in start.state_dict().items():
        assert np.allclose(value, found.state_dict()[name], atol=1e-7), name


def test_continued_trainings_are_shorter_and_slower(
    request_: DistillRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def fail(*arguments: Any, **options: Any) -> None:
        seen.append((arguments[2], options["start"]))
        raise Death

    monkeypatch.setattr("fastff.distill.ladder.train_student", fail)
    ladder = Ladder(request_, tmp_path, "cpu", False, *[lambda *_: None] * 3)
    frame: Any = Frame(bulk("Cu"), Labels(0.0, np.zeros((1, 3)), None), "x", 0, 300.0, 0)
    start: Any = "student"
    for given in (None, start):
        with pytest.raises(Death):
            ladder.train("m1", Split([frame], [frame], []), "m1", start=given)
    (first, none), (second, given) = seen
    assert (none, given) == (None, start)
    assert (second.n_steps, second.learning_rate) == (20, first.learning_rate / 2)


class FakeLadder(Ladder):
    """Students of known accuracy on validation and training frames."""

    known: dict[str, tuple[float, float]] = {}  # noqa: RUF012

    def train(self, name: str, split: Any, label: str, *, start: Any = None) -> Trained:
        self.attempts[name] = self.known[name][0]
        result: Any = None
        return Trained(name, result, make_accuracy(self.known[name][0]), self.known[name][1])


@pytest.mark.parametrize(
    ("known", "grow", "tried", "best"),
    [
        ({"m1": (0.99, 0.99)}, False, ["m1"], "m1"),
        ({"m1": (0.90, 0.99)}, True, ["m1"], "m1"),  # more data will help
        ({"m1": (0.90, 0.91), "m2": (0.94, 0.985)}, True, ["m1", "m2"], "m2"),  # too small
        (
            {"m1": (0.93, 0.99), "m2": (0.92, 0.99), "m2-l": (0.91, 1)},
            False,
            ["m1", "m2", "m2-l"],
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


# --- the whole ---


class Death(BaseException):
    """What kills a run in these tests."""


def shorten(change: Callable[[Any, str, Any], None]) -> None:
    """Walk a few steps only; labels in several batches, and rounds that do not help are not the last."""
    change(rounds_module, "PICOSECONDS", {"cpu": (0.03, 0.03)})
    change(rounds_module, "LEAST_STEPS", 20)
    change(rounds_module, "LEAST_GAIN", -1.0)
    change(rounds_module, "BATCH_ATOMS", 8)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch.setattr)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> DistillRequest:
    folder = tmp_path_factory.mktemp("rounds")
    write(folder / "cu.xyz", bulk("Cu", cubic=True))
    return build_request(
        teacher="analytic:emt",
        structures=folder / "cu.xyz",
        max_atoms=4,
        temperatures=(300.0, 600.0),
        budget=120,
        rounds=2,
        n_steps=40,
        student="m1",
        cutoff=3.5,
        target=0.9999,
    )


def run(
    request: DistillRequest, out: Path, die: Callable[..., None] | None = None, **hooks: Any
) -> DistillOutcome:
    """Carry a request out, continuing what is there."""
    listener = Listener(rounds=RoundsListener(**hooks))
    if die is not None:
        listener.on_step = die
    return distill(request, out, device="cpu", resume=out.exists(), listener=listener)


@pytest.fixture(scope="module")
def whole(
    request_: DistillRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, DistillOutcome]:
    """Folder and outcome of a run that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        return out, run(request_, out)


def test_rounds_keep_to_their_budget_and_are_logged(whole: tuple[Path, DistillOutcome]) -> None:
    out, outcome = whole
    assert [row.round for row in outcome.rows] == [1, 2, 3]
    assert [row.decision for row in outcome.rows] == ["another round"] * 2 + ["all rounds done"]
    spent = [row.evaluations for row in outcome.rows]
    assert spent == sorted(set(spent))
    assert 100 <= spent[-1] <= 120
    assert outcome.evaluations == spent[-1]
    n_train = [row.n_train for row in outcome.rows]
    assert n_train[0] < n_train[1] < n_train[2]
    assert set(outcome.rows[0].accuracy) == {TEACHER, STUDENT, HOT}
    assert read_rows(out / "rounds") == outcome.rows
    header = load_model(outcome.model).header
    assert len(header["training"]["rounds"]) == 3
    assert header["accuracy"][STUDENT]["overall"] == outcome.sources[STUDENT].overall
    json.dumps(header, allow_nan=False)
    assert not outcome.passed


def test_a_finished_run_explores_and_labels_nothing_again(
    request_: DistillRequest, whole: tuple[Path, DistillOutcome]
) -> None:
    def fail(*_: int) -> None:
        pytest.fail("done again")

    again = run(request_, whole[0], fail, on_explore=fail, on_label=fail)
    assert_same(again, whole[0], whole)
    assert [row.seconds for row in again.rows] == [row.seconds for row in whole[1].rows]


def test_no_trajectory_is_trained_and_tested_on(whole: tuple[Path, DistillOutcome]) -> None:
    out, outcome = whole
    labelled = read_labels(out / "labels.h5")
    driven = [frame for frame in labelled.frames if frame.source == "student-md"]
    test = {frame.trajectory for frame in driven if frame.trajectory in labelled.held_out}
    rest = {frame.trajectory for frame in driven} - test
    assert test
    assert rest
    trained = set(load_model(outcome.model).header["training"]["frame_hashes"])
    for frame in driven:
        known = hash_structure(frame.atoms).hex() in trained
        assert known == (frame.trajectory not in test)
    numbers = {frame.trajectory for frame in labelled.frames if frame.source != "student-md"}
    assert not numbers & (test | rest)


def test_a_run_that_passes_its_first_gate_ends_there(
    request_: DistillRequest, tmp_path: Path
) -> None:
    easy = request_.model_copy(update={"target": 0.01})
    outcome = run(easy, tmp_path / "out")
    assert [row.decision for row in outcome.rows] == ["target met"]
    assert outcome.passed
    assert outcome.evaluations < 80  # nothing was labelled for training
    assert not list((tmp_path / "out" / "training").glob("*round*"))


def test_no_round_begins_after_its_time(
    request_: DistillRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def estimate(teacher: Any, cells: list[Atoms], minutes: float) -> int:
        assert len(cells[0]) == 4
        measured.append(minutes)
        return 120

    monkeypatch.setattr("fastff.distill.run.estimate_evaluations", estimate)
    timed = request_.model_copy(update={"budget": "0.001min"})
    outcome = run(timed, tmp_path / "out")
    assert [row.decision for row in outcome.rows] == ["time spent"]
    assert not outcome.rows[0].accuracy[STUDENT].overall > 0.9999
    run(timed, tmp_path / "out")
    assert measured == [0.001]  # a resumed run spends what the first one planned


def test_a_round_that_does_not_help_is_the_last(
    request_: DistillRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds_module, "LEAST_GAIN", 2.0)
    outcome = run(request_, tmp_path / "out")
    assert [row.decision for row in outcome.rows] == [
        "another round",
        "the last round did not help",
    ]
    assert outcome.rows[-1].dynamics["last"] == "the last round did not help"


@pytest.mark.slow
def test_resumed_anywhere_equals_uninterrupted(
    request_: DistillRequest,
    whole: tuple[Path, DistillOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while exploring, before and while labelling, in training, after a gate; the end is the same."""
    out, died = tmp_path / "out", []

    def die(where: str) -> None:
        if where not in died:
            died.append(where)
            raise Death(where)

    def exploring(number: int, step: int, n_steps: int) -> None:
        if step > n_steps // 2:
            die(f"exploring {number}")

    def gate(row: GateRow) -> None:
        die(f"gate {row.round}")

    def training(progress: Any) -> None:
        rounds_done = len(list((out / "rounds").glob("*.npz")))
        if progress.step == 13 and rounds_done:
            die(f"training {rounds_done}")

    honest = Rounds.label

    def label(self: Rounds, number: int, harvested: Any, uses: Any) -> list[Frame]:
        die(f"before labelling {number} {uses[0]}")
        return honest(self, number, harvested, uses)

    monkeypatch.setattr(Rounds, "label", label)

    def labelling(number: int, done: int, total: int) -> None:
        if done > total // 2:
            die(f"labelling {number}")

    outcome = None
    while outcome is None:
        try:
            outcome = run(
                request_, out, training, on_explore=exploring, on_label=labelling, on_gate=gate
            )
        except Death:
            continue
    assert len(died) == 3 + 5 + 3 + 2 + 3, died
    assert_same(outcome, out, whole)


def assert_same(outcome: DistillOutcome, out: Path, whole: tuple[Path, DistillOutcome]) -> None:
    """Compare model, log and labels with those of the run that nothing interrupted."""
    first = load_model(whole[1].model).state_dict()
    for name, value in load_model(outcome.model).state_dict().items():
        assert np.allclose(value, first[name], atol=1e-6), name
    for one, other in zip(outcome.rows, whole[1].rows, strict=True):
        assert (one.evaluations, one.n_train, one.decision) == (
            other.evaluations,
            other.n_train,
            other.decision,
        )
        for name, accuracy in one.accuracy.items():
            assert accuracy.overall == pytest.approx(other.accuracy[name].overall, abs=1e-6)
    hashes = [
        sorted(hash_structure(frame.atoms) for frame in read_labels(folder / "labels.h5").frames)
        for folder in (out, whole[0])
    ]
    assert hashes[0] == hashes[1]


CHILD = """
import os, signal, sys
from pathlib import Path
from fastff.distill import rounds as module
from fastff.distill.request import read_config
from tests.test_rounds import run, shorten

shorten(setattr)
out, where = Path(sys.argv[1]), sys.argv[2]

def die(here, ready=True):
    if here == where and ready:
        os.kill(os.getpid(), signal.SIGKILL)

def count():
    return len(list((out / "rounds").glob("*.npz")))

run(
    read_config(Path(sys.argv[3])),
    out,
    lambda progress: die(f"training {count()}", progress.step == 13),
    on_explore=lambda number, step, n_steps: die(f"exploring {number}", step > n_steps // 2),
    on_label=lambda number, done, total: die(f"labelling {number}", done > total // 2),
)
"""


@pytest.mark.slow
def test_killed_without_notice_equals_uninterrupted(
    request_: DistillRequest,
    whole: tuple[Path, DistillOutcome],
    tmp_path: Path,
) -> None:
    root = Path(__file__).resolve().parents[1]
    out = tmp_path / "out"
    for where in ("exploring 1", "labelling 1", "training 1"):
        command = [sys.executable, "-c", CHILD, out, where, whole[0] / "config.yaml"]
        paths = os.pathsep.join([str(root), str(root / "tests")])
        child = subprocess.run(
            [str(word) for word in command], cwd=root, env={**os.environ, "PYTHONPATH": paths}
        )
        assert child.returncode == -signal.SIGKILL
    assert_same(run(request_, out), out, whole)


def test_calibration_compares_foretold_and_found_errors(whole: tuple[Path, DistillOutcome]) -> None:
    out, outcome = whole
    student = load_model(outcome.model)
    frames = [f for f in read_labels(out / "labels.h5").frames if f.source == "student-md"]
    found = measure_calibration(student, frames)
    assert 0.05 < found["z_rms"] < 20
    assert -1 <= found["rank_correlation"] <= 1
    assert 0 <= found["beyond"] < 1
    shifted = [replace(f, labels=replace(f.labels, energy=f.labels.energy + 100.0)) for f in frames]
    assert measure_calibration(student, shifted)["z_rms"] > 50 * found["z_rms"] / 10
    assert measure_calibration(student, frames[:3]) == {}
