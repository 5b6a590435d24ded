"""On-policy rounds as a whole, on a teacher that costs nothing: budget, gates, log, being killed and continued."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write

from fastff.checkpoint import load_model
from fastff.distill import rounds as rounds_module
from fastff.distill.content import find_known, hash_structure
from fastff.distill.formats import read_labels
from fastff.distill.groups import HOT, STUDENT, TEACHER, group_test_frames
from fastff.distill.harvest import read_harvest
from fastff.distill.ladder import Ladder, Trained
from fastff.distill.origins import read_origins
from fastff.distill.plan import find_round
from fastff.distill.request import DistillRequest, build_request
from fastff.distill.roundlog import GateRow, measure_calibration, read_rows
from fastff.distill.rounds import Rounds, RoundsListener
from fastff.distill.run import DistillOutcome, Listener, distill
from fastff.distill.split import Split
from fastff.distill.train import TrainSettings, train_student
from fastff.labels import Frame, Labels


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
    assert (second.n_steps, second.learning_rate) == (10, first.learning_rate / 2)


# --- the whole ---


class Death(BaseException):
    """What kills a run in these tests."""


def shorten(change: Callable[[Any, str, Any], None]) -> None:
    """Walk a few steps only; labels in several batches, and rounds that do not help are not the last."""
    change(rounds_module, "PICOSECONDS", {"cpu": (0.03, 0.03)})
    change(rounds_module, "LEAST_STEPS", 20)
    change(rounds_module, "LEAST_GAIN", -1.0)
    change(rounds_module, "count_batch_atoms", lambda teacher: 8)


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
    for number in (1, 2, 3):  # walkers of later rounds start from frames of earlier ones, too
        picks = read_harvest(out / "rounds" / f"round-{number}.npz").picks
        assert {pick.kind for pick in picks} == {"cell 0"}


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
    known = find_known([hash_structure(frame.atoms).hex() for frame in driven], trained)
    assert known == [frame.trajectory not in test for frame in driven]
    numbers = {frame.trajectory for frame in labelled.frames if frame.source != "student-md"}
    assert not numbers & (test | rest)
    assert read_origins(labelled.record) == dict.fromkeys(labelled.held_out, 0)


def test_groups_of_test_frames_are_found_again(whole: tuple[Path, DistillOutcome]) -> None:
    """From the label file alone: the walkers of the last gate, those above the range of temperatures apart."""
    out, outcome = whole
    labelled = read_labels(out / "labels.h5")
    test = [frame for frame in labelled.frames if frame.trajectory in labelled.held_out]
    assert {find_round(frame.trajectory) for frame in test} == {0, 1, 2, 3}
    hot = {frame.trajectory for frame in test if frame.temperature > 600.0}
    groups = group_test_frames(test, 3, hot)
    assert {name: len(frames) for name, frames in groups.items()} == {
        name: found.n_frames for name, found in outcome.sources.items()
    }
    assert len(groups) == 3


def test_a_run_that_passes_its_first_gate_ends_there(
    request_: DistillRequest, tmp_path: Path
) -> None:
    easy = request_.model_copy(update={"target": 0.01, "n_steps": 300})
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


def test_a_gain_is_a_part_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "LEAST_GAIN", 0.04)
    assert rounds_module.is_gain(0.9, 0.9041)
    assert not rounds_module.is_gain(0.9, 0.9039)
    assert rounds_module.is_gain(0.98, 0.9809)
    assert not rounds_module.is_gain(0.98, 0.9807)
    assert rounds_module.is_gain(-np.inf, 0.0)
    assert not rounds_module.is_gain(0.9, -np.inf)
    assert not rounds_module.is_gain(-np.inf, -np.inf)


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


def test_a_resumed_run_goes_on_by_what_an_earlier_process_found(
    request_: DistillRequest,
    whole: tuple[Path, DistillOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Judged anew by a stricter rule, it trained for the end after the first round, and kept that for the last."""
    shutil.copytree(whole[0], tmp_path / "out")
    monkeypatch.setattr(rounds_module, "GROWTH", 1.01)
    monkeypatch.setattr(rounds_module, "LEAST_GAIN", 2.0)
    finals = []
    real = Ladder.train

    def train(self: Ladder, name: str, split: Split, label: str, **options: Any) -> Trained:
        if label.endswith("-final"):
            finals.append(len(split.train))
        return real(self, name, split, label, **options)

    monkeypatch.setattr(Ladder, "train", train)
    outcome = run(request_, tmp_path / "out")
    assert [row.decision for row in outcome.rows] == [row.decision for row in whole[1].rows]
    assert finals == [outcome.rows[-1].n_train]


def test_the_end_is_a_training_from_scratch_on_all_frames(
    request_: DistillRequest,
    whole: tuple[Path, DistillOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only where frames have multiplied and time is left; the better student on the validation frames is kept.

    After rounds that are done already.
    """
    for name in ("out", "few"):
        shutil.copytree(whole[0], tmp_path / name)
    monkeypatch.setattr(rounds_module, "GROWTH", 1.01)
    trainings = []
    real = Ladder.train

    def train(self: Ladder, name: str, split: Split, label: str, **options: Any) -> Trained:
        trained = real(self, name, split, label, **options)
        trainings.append((label, len(split.train), options.get("start"), trained))
        return trained

    monkeypatch.setattr(Ladder, "train", train)
    outcome = run(request_, tmp_path / "out")
    label, n_frames, start, last = trainings[-1]
    assert [one[0] for one in trainings] == ["m1", "m1-round-1", "m1-round-2", "m1-final"]
    assert (label, n_frames, start) == ("m1-final", outcome.rows[-1].n_train, None)
    assert last.result.n_steps == request_.n_steps
    best = max((one[3] for one in trainings[-2:]), key=lambda one: one.score)
    weights = load_model(outcome.model).state_dict()
    for name, value in best.student.state_dict().items():
        torch.testing.assert_close(weights[name], value)
    trainings.clear()
    monkeypatch.setattr(rounds_module, "GROWTH", 100.0)
    run(request_, tmp_path / "few")
    assert [one[0] for one in trainings] == ["m1", "m1-round-1", "m1-round-2"]


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
        if progress.step == 7 and rounds_done:
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


CHILDREN = """
import os, signal, sys
from pathlib import Path
from fastff.distill import rounds as module
from fastff.distill.request import read_config
from tests.test_rounds import run, shorten

shorten(setattr)
out, request = Path(sys.argv[1]), read_config(Path(sys.argv[2]))

def die(here, ready=True):
    if here == where and ready:
        os.kill(os.getpid(), signal.SIGKILL)

def count():
    return len(list((out / "rounds").glob("*.npz")))

for where in sys.argv[3:]:
    if (child := os.fork()) == 0:
        run(
            request,
            out,
            lambda progress: die(f"training {count()}", progress.step == 7),
            on_explore=lambda number, step, n_steps: die(f"exploring {number}", step > n_steps // 2),
            on_label=lambda number, done, total: die(f"labelling {number}", done > total // 2),
        )
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, where
"""
"""A process that has imported all and computed nothing, and its children, one after the other."""


@pytest.mark.slow
def test_killed_without_notice_equals_uninterrupted(
    request_: DistillRequest,
    whole: tuple[Path, DistillOutcome],
    tmp_path: Path,
) -> None:
    root = Path(__file__).resolve().parents[1]
    out, places = tmp_path / "out", ("exploring 1", "labelling 1", "training 1")
    paths = os.pathsep.join([str(root), str(root / "tests")])
    command = [sys.executable, "-c", CHILDREN, str(out), str(whole[0] / "config.yaml"), *places]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": paths}, check=True)
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
