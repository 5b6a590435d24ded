"""Training checkpoints: damaged files, full disks, killed writers. Not here: what a resumed run computes."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest
import torch
from emt_frames import label_by_emt, make_alloys
from full_disk import limit_files

from fastff.distill.checkpoints import (
    NEEDED,
    SafeCheckpointIO,
    find_checkpoint,
    read_best,
    read_checkpoint,
)
from fastff.distill.train import TrainProgress, TrainSettings, train_student
from fastff.errors import DataError, ModelFileError
from fastff.labels import Frame

SETTINGS = TrainSettings(cutoff=4.0, n_steps=24, batch_atoms=16, n_validations=3, device="cpu")


class KilledError(Exception):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return label_by_emt(make_alloys(24))


@pytest.fixture
def cut(frames: list[Frame], tmp_path: Path) -> Path:
    """Folder of a run that was killed at step 21 of 24, after validations at 10 and 20."""

    def kill(progress: TrainProgress) -> None:
        if progress.step == 21:
            raise KilledError

    with pytest.raises(KilledError):
        train_student(frames[:20], frames[20:], SETTINGS, tmp_path / "cut", on_step=kill)
    return tmp_path / "cut"


def find_step(path: Path) -> int:
    return int(read_checkpoint(path)["global_step"])


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign"])
def test_resume_passes_over_a_damaged_last_checkpoint(
    frames: list[Frame], cut: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """The one before is taken, one line says so, and the result is that of an uninterrupted run."""
    folder = cut / "checkpoints"
    for path in folder.glob("step=*20.ckpt"):
        path.unlink()
    last = folder / "last.ckpt"
    before = find_step(last)
    payload = last.read_bytes()
    middle = len(payload) // 2
    last.write_bytes(
        {
            "empty": b"",
            "truncated": payload[: len(payload) - 100],
            "flipped": payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :],
            "foreign": b"<html>404</html>",
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        found = find_checkpoint(folder)
    assert found is not None
    assert find_step(Path(found)) < before
    assert len(caplog.messages) == 1
    assert "skipping damaged checkpoint last.ckpt (" in caplog.messages[0]
    assert f"continuing from {Path(found).name}" in caplog.messages[0]
    whole = train_student(frames[:20], frames[20:], SETTINGS, cut.parent / "whole")
    resumed = train_student(frames[:20], frames[20:], SETTINGS, cut, resume=True)
    assert resumed.learning_curve == whole.learning_curve
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    assert not list(folder.glob("*-v1.ckpt"))


def test_the_checkpoint_before_the_last_is_kept(cut: Path) -> None:
    folder = cut / "checkpoints"
    assert find_step(folder / "previous.ckpt") < find_step(folder / "last.ckpt")


def test_without_a_sound_checkpoint_training_starts_anew(
    frames: list[Frame], cut: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (cut / "checkpoints").glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:500])
    result = train_student(frames[:20], frames[20:], SETTINGS, cut, resume=True)
    assert result.n_steps >= 24
    assert [m for m in caplog.messages if "none is sound, starting anew" in m]


def test_a_full_disk_leaves_earlier_checkpoints_intact(frames: list[Frame], tmp_path: Path) -> None:
    """One line says what happened; training goes on from the last checkpoint once there is space."""
    out, folder = tmp_path / "full", tmp_path / "full" / "checkpoints"
    n_bytes = []

    def fill(progress: TrainProgress) -> None:
        if progress.step == 14:
            n_bytes.append((folder / "last.ckpt").stat().st_size)
            resource.setrlimit(
                resource.RLIMIT_FSIZE,
                (n_bytes[0] // 2, resource.getrlimit(resource.RLIMIT_FSIZE)[1]),
            )

    with (
        limit_files(resource.RLIM_INFINITY),
        pytest.raises(ModelFileError, match=r"was not written .*earlier ones are intact") as raised,
    ):
        train_student(frames[:20], frames[20:], SETTINGS, out, on_step=fill)
    assert len(str(raised.value).splitlines()) == 1
    assert (folder / "last.ckpt").stat().st_size == n_bytes[0]
    assert not list(folder.glob(".*"))
    assert {find_step(path) for path in folder.glob("*.ckpt")} == {5, 10}
    whole = train_student(frames[:20], frames[20:], SETTINGS, tmp_path / "whole")
    resumed = train_student(frames[:20], frames[20:], SETTINGS, out, resume=True)
    assert resumed.learning_curve == whole.learning_curve


def test_a_full_disk_leaves_the_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = dict.fromkeys(NEEDED, torch.zeros(1000))
    SafeCheckpointIO().save_checkpoint({**content, "global_step": 1}, path)
    with limit_files(resource.RLIM_INFINITY):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
        with pytest.raises(ModelFileError, match="earlier ones are intact"):
            SafeCheckpointIO().save_checkpoint(
                {**content, "global_step": 2, "more": torch.zeros(9000)}, path
            )
    assert find_step(path) == 1


def test_leftovers_of_killed_writers_are_removed(frames: list[Frame], cut: Path) -> None:
    stray = cut / "checkpoints" / ".last.ckpt.abcdef.tmp"
    stray.write_bytes(b"half")
    train_student(frames[:20], frames[20:], SETTINGS, cut, resume=True)
    assert not stray.exists()


def test_a_damaged_best_checkpoint_is_replaced_by_the_best_that_is_left(
    frames: list[Frame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train_student(frames[:20], frames[20:], SETTINGS, tmp_path)
    folder = tmp_path / "checkpoints"
    best = max(first.learning_curve, key=lambda entry: entry["accuracy"])
    name = f"step={int(best['step']):07d}.ckpt"
    (folder / name).write_bytes(b"")
    again = train_student(frames[:20], frames[20:], SETTINGS, tmp_path, resume=True)
    assert again.learning_curve == first.learning_curve
    (line,) = (m for m in caplog.messages if "is damaged" in m)
    assert name in line
    assert "taking" in line
    for path in folder.glob("*.ckpt"):
        path.unlink()
    with pytest.raises(DataError, match="no other is left"):
        read_best(folder, name)


def test_checkpoints_hold_no_code(frames: list[Frame], tmp_path: Path) -> None:
    """A pickle that would run something is refused, not run."""
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(marker).touch.__func__, (marker,))  # type: ignore[attr-defined]

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(DataError):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not marker.exists()


def test_another_kind_of_file_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "a.ckpt")
    with pytest.raises(DataError, match="no state_dict in it"):
        read_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(DataError, match="No such file"):
        read_checkpoint(tmp_path / "none.ckpt")
