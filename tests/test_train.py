"""Training: a real tiny run, averages, resume, endings. Not here: sampling, batches and losses, the command line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from emt_frames import label_by_emt, make_alloys
from torch import nn

from fastff.distill.callbacks import (
    AveragedWeights,
    LatePatience,
    average_weights,
)
from fastff.distill.checkpoints import find_checkpoint
from fastff.distill.ladder import measure_student
from fastff.distill.module import measure_frames
from fastff.distill.train import (
    TrainProgress,
    TrainSettings,
    prepare_student,
    train_student,
)
from fastff.errors import DataError
from fastff.inference import predict
from fastff.labels import Frame
from fastff.models import ARCHITECTURES

SETTINGS = TrainSettings(cutoff=4.0, n_steps=24, batch_atoms=16, n_validations=3, device="cpu")


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return label_by_emt(make_alloys(24))


def test_moving_average_starts_fast_and_ends_slow() -> None:
    averaged, current = [torch.zeros(1)], [torch.ones(1)]
    average_weights(0.99, averaged, current, torch.tensor(0))
    assert averaged[0].item() == pytest.approx(0.9)
    averaged = [torch.zeros(1)]
    average_weights(0.99, averaged, current, 10**6)
    assert averaged[0].item() == pytest.approx(0.01, rel=1e-4)


def test_averages_are_made_on_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Recorder(nn.Module):
        def __init__(self, model: Any, device: torch.device, **_: Any) -> None:
            super().__init__()
            asked.append(device)
            self.n_averaged = torch.zeros(())

    monkeypatch.setattr("lightning.pytorch.callbacks.weight_averaging.AveragedModel", Recorder)
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 1)))
    AveragedWeights(0.99).setup(trainer, pl.LightningModule(), "fit")
    assert asked == [torch.device("cuda", 1)]


def test_training_lowers_the_error(frames: list[Frame], tmp_path: Path) -> None:
    """A real run: twelve epochs on EMT labels teach forces far better than the untrained student has them."""
    train, validation = frames[:20], frames[20:]
    before, _ = prepare_student(train, SETTINGS)
    structures = [f.atoms for f in validation]
    untrained = measure_frames(validation, predict(before, structures))
    steps = []
    settings = replace(SETTINGS, n_steps=150)
    result = train_student(train, validation, settings, tmp_path, on_step=steps.append)
    trained = measure_frames(validation, predict(result.student, structures))
    assert trained.force is not None
    assert untrained.force is not None
    assert trained.force > 0.6 > untrained.force
    assert steps[-1].step == steps[-1].n_steps == result.n_steps == 150
    assert result.learning_curve[-1]["accuracy"] == pytest.approx(trained.overall, abs=0.05)
    assert not any(p.requires_grad for p in result.student.parameters())


def train_and_kill(
    train: list[Frame], validation: list[Frame], settings: TrainSettings, folder: Path
) -> None:
    """Begin a training and end it at step 17."""

    class KilledError(Exception):
        pass

    def kill(progress: TrainProgress) -> None:
        if progress.step == 17:
            raise KilledError

    with pytest.raises(KilledError):
        train_student(train, validation, settings, folder, on_step=kill)


def test_resumed_run_equals_uninterrupted(frames: list[Frame], tmp_path: Path) -> None:
    """Same weights, bit for bit, whether or not the run was cut in the middle."""
    train, validation = frames[:20], frames[20:]
    whole = train_student(train, validation, SETTINGS, tmp_path / "whole")
    train_and_kill(train, validation, SETTINGS, tmp_path / "cut")
    assert find_checkpoint(tmp_path / "cut" / "checkpoints") is not None
    resumed = train_student(train, validation, SETTINGS, tmp_path / "cut", resume=True)
    assert resumed.learning_curve == whole.learning_curve
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name


def test_a_training_goes_on_with_the_optimiser_that_began_it(
    frames: list[Frame], tmp_path: Path
) -> None:
    train, validation = frames[:20], frames[20:]
    train_and_kill(train, validation, replace(SETTINGS, optimizer="adamw"), tmp_path)
    with pytest.raises(DataError, match=r"begun with the optimiser adamw .* new folder"):
        train_student(train, validation, SETTINGS, tmp_path, resume=True)


@pytest.mark.parametrize("finished", [True, False])
def test_a_training_begun_without_an_inner_limit_goes_on_without(
    frames: list[Frame], tmp_path: Path, finished: bool
) -> None:
    """As checkpoints of earlier versions, which do not name it."""
    train, validation = frames[:20], frames[20:]
    assert train_student(train, validation, SETTINGS, tmp_path).student.config.inner_limit == 0.65
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint.pop("inner_limit") == 0.65
        torch.save(checkpoint, path)
    if not finished:
        (tmp_path / "finished.json").unlink()
    result = train_student(train, validation, SETTINGS, tmp_path, resume=True)
    assert result.student.config.inner_limit is None


@pytest.mark.parametrize("finished", [True, False])
def test_a_training_begun_with_other_sizes_is_refused(
    frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    """As m3-l of an earlier version, which had half the channels."""
    train, validation = frames[:20], frames[20:]
    with monkeypatch.context() as patch:
        patch.setitem(ARCHITECTURES, "m1", {"n_hops": 1, "n_channels": 8, "n_mixed": 8})
        train_student(train, validation, SETTINGS, tmp_path)
    if not finished:
        (tmp_path / "finished.json").unlink()
    with pytest.raises(DataError, match=r"begun with a student of other sizes .* new folder"):
        train_student(train, validation, SETTINGS, tmp_path, resume=True)


def test_damaged_checkpoint_is_skipped(
    frames: list[Frame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_student(frames[:20], frames[20:], SETTINGS, tmp_path)
    folder = tmp_path / "checkpoints"
    newest = find_checkpoint(folder)
    assert newest is not None
    Path(newest).write_bytes(Path(newest).read_bytes()[:2000])
    older = find_checkpoint(folder)
    assert older is not None
    assert older != newest
    assert "skipping damaged checkpoint" in caplog.text


def test_training_without_validation_is_refused(frames: list[Frame], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no validation frames"):
        train_student(frames, [], SETTINGS, tmp_path)


def test_infinite_loss_stops_and_names_the_batch(frames: list[Frame], tmp_path: Path) -> None:
    bad = frames[0].labels.forces.copy()
    bad[0, 0] = 1e30
    spoiled = [replace(frames[0], labels=replace(frames[0].labels, forces=bad)), *frames[1:20]]
    settings = replace(SETTINGS, learning_rate=1e30, n_steps=200)
    with pytest.raises(DataError, match=r"loss is .* \(training frames \["):
        train_student(spoiled, frames[20:], settings, tmp_path)


def test_patience_counts_from_the_middle_of_the_schedule(
    frames: list[Frame], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, n_steps=60, n_validations=12, patience=1, learning_rate=1e-7)
    result = train_student(frames[:20], frames[20:], settings, tmp_path)
    assert 30 <= result.n_steps < 60
    assert "no better score in 1 validations" in result.stopped


def test_finished_training_is_not_continued(frames: list[Frame], tmp_path: Path) -> None:
    settings = replace(SETTINGS, n_steps=60, n_validations=12, patience=1, learning_rate=1e-7)
    first = train_student(frames[:20], frames[20:], settings, tmp_path)
    again = train_student(frames[:20], frames[20:], settings, tmp_path, resume=True)
    assert (again.n_steps, again.seconds, again.stopped) == (
        first.n_steps,
        first.seconds,
        first.stopped,
    )
    assert again.learning_curve == first.learning_curve
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, again.student.state_dict()[name]), name
    (tmp_path / "finished.json").write_text("{")
    with pytest.raises(DataError, match=r"finished\.json cannot be read"):
        train_student(frames[:20], frames[20:], settings, tmp_path, resume=True)


def test_seconds_count_the_runs_that_are_continued(frames: list[Frame], tmp_path: Path) -> None:
    train_student(frames[:20], frames[20:], SETTINGS, tmp_path)
    (tmp_path / "finished.json").unlink()
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["seconds"] = 1000.0
        torch.save(checkpoint, path)
    result = train_student(frames[:20], frames[20:], SETTINGS, tmp_path, resume=True)
    assert 1000.0 < result.seconds < 1100.0


def test_a_training_that_falls_apart_ends() -> None:
    stopper = LatePatience(0)
    course = [(0.3, -2.0), (0.3, -3.0), (0.9, 0.5), (0.9, 0.85), (0.9, 0.5)]
    assert not any(stopper.falls(best, newest) for best, newest in course)
    assert stopper.falls(0.9, math.nan)
    assert stopper.fall is not None


@pytest.mark.parametrize("settled", [30, 61])
def test_what_fell_apart_is_said_and_the_best_weights_are_kept(
    frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: int
) -> None:
    """Not before accuracies have settled."""
    monkeypatch.setattr("fastff.distill.callbacks.SETTLED", settled)
    monkeypatch.setattr("fastff.distill.callbacks.FALL", -1.0)
    monkeypatch.setattr("fastff.distill.callbacks.LEARNED", -1e9)
    settings = replace(SETTINGS, n_steps=60, n_validations=12)
    result = train_student(frames[:20], frames[20:], settings, tmp_path)
    apart = settled < 60
    assert (30 <= result.n_steps < 60) == apart
    assert ("fell apart" in result.stopped) == apart
    assert ("lower the learning rate" in result.stopped) == apart


def test_what_reached_the_threshold_is_kept_whatever_its_score(
    frames: list[Frame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores fall from one validation to the next, so that the first weights have the best one."""
    scores = iter(range(0, -1000, -1))
    monkeypatch.setattr("fastff.distill.module.Score.measure", lambda *_: float(next(scores)))
    settings = replace(SETTINGS, n_steps=60, n_validations=12)
    curve = train_student(frames[:20], frames[20:], settings, tmp_path / "a").learning_curve
    threshold = curve[-1]["accuracy"]
    assert curve[0]["accuracy"] < threshold != float(np.float32(threshold))
    again = replace(settings, stop_at=threshold)
    result = train_student(frames[:20], frames[20:], again, tmp_path / "b")
    assert result.stopped.startswith("reached")
    assert measure_student(result.student, frames[20:]).overall >= threshold - 1e-6
