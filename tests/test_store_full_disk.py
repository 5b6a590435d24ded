"""Label files on a full disk: one line, and what was stored stays. Not here: files of killed writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from emt_frames import label_by_emt, make_alloys
from full_disk import limit_files

from fastff.distill import layout
from fastff.distill.store import LabelStore
from fastff.errors import DataError

TEACHER = {"name": "emt"}


@pytest.mark.parametrize("n_bytes", [0, 50_000, 300_000])
def test_a_disk_without_room_for_a_new_file_is_said_in_one_line(
    n_bytes: int, tmp_path: Path
) -> None:
    """HDF5 itself crashes at the end of a process whose file could not be closed."""
    path = tmp_path / "labels.h5"
    with limit_files(n_bytes), pytest.raises(DataError, match="free space") as raised:
        LabelStore(path, "a", teacher=TEACHER)
    assert str(raised.value) == (
        f"cannot write {path}: File too large; free space and use the same command again"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["append", "reserve", "note"])
def test_a_disk_that_fills_up_leaves_what_is_stored(call: str, tmp_path: Path) -> None:
    """And the store goes on once there is space."""
    path, frames = tmp_path / "labels.h5", label_by_emt(make_alloys(90))
    with LabelStore(path, "a", teacher=TEACHER) as store:
        store.append(frames[:40])
        calls: dict[str, Callable[[], object]] = {
            "append": lambda: store.append(frames[40:]),
            "reserve": lambda: store.reserve(10_000, 40_000),
            "note": lambda: store.note(self_check={"noise": 1.0}),
        }
        with limit_files(60_000), pytest.raises(DataError, match="free space"):
            calls[call]()
        assert len(store) == 40
        assert [entry.name for entry in tmp_path.iterdir()] == ["labels.h5"]
        assert store.append(frames[40:]).added == 50
    with LabelStore(path) as store:
        assert [frame.labels.energy for frame in store.read()] == [f.labels.energy for f in frames]


def test_closing_needs_no_space(tmp_path: Path) -> None:
    """Where something else has failed for want of it, that is what has to be said."""
    path, frames = tmp_path / "labels.h5", label_by_emt(make_alloys(5))
    store = LabelStore(path, "a", teacher=TEACHER)
    store.append(frames)
    with limit_files(300), pytest.raises(ArithmeticError), store:
        raise ArithmeticError
    assert [entry.name for entry in tmp_path.iterdir()] == ["labels.h5"]
    with LabelStore(path, "a", teacher=TEACHER) as store:
        assert len(store.read()) == 5
        assert store.n_cut == 0


def test_space_is_taken_before_it_is_used(tmp_path: Path) -> None:
    """A hole in the file would be filled by a later write, which then finds the disk full."""
    with LabelStore(tmp_path / "labels.h5", "a", teacher=TEACHER) as store:
        store.reserve(5_000, 400_000)
        size = (tmp_path / "labels.h5").stat()
        assert size.st_blocks * 512 >= size.st_size > 10**7


def test_the_estimate_is_above_what_files_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    allocate = layout._allocate

    def note(descriptor: int, n_bytes: int) -> None:
        asked.append(n_bytes)
        allocate(descriptor, n_bytes)

    monkeypatch.setattr(layout, "_allocate", note)
    with LabelStore(tmp_path / "labels.h5", "a", teacher=TEACHER) as store:
        store.append(label_by_emt(make_alloys(3), 0.01))
        store.reserve(5_000, 400_000)
    estimates, sizes = asked[::2], asked[1::2]
    assert len(sizes) == 4  # new, with targets, reserved, trimmed
    for estimate, size in zip(estimates, sizes, strict=True):
        assert size <= estimate <= size + layout.MOST_METADATA
