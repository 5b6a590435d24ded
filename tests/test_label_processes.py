"""``fastff label`` in processes: what they make, killed and continued, and what is said when one of them fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write
from copper_jobs import (
    SLOW_TEACHER,
    TEACHER,
    TWO,
    count_frames,
    make_frames,
    start,
    write_copper,
)

from fastff.distill.content import hash_structure
from fastff.distill.jobs import read_jobs
from fastff.distill.siblings import WatchingLauncher
from fastff.distill.store import LabelStore
from fastff.labels import Frame

Run = Callable[..., tuple[int, str, str]]
Label = Callable[..., tuple[int, str]]
SMALL = ("--batch-atoms", "6", "--no-self-check")


@pytest.fixture
def copper_file(tmp_path: Path) -> Path:
    return write_copper(tmp_path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    """What one process makes of the same file."""
    folder = tmp_path_factory.mktemp("alone")
    write_copper(folder)
    finish(start([*TEACHER, *SMALL], folder, 0.0))
    return read(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Folder of a run of two processes that were killed, and the number of frames that they have left."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    folder.mkdir()
    write_copper(folder)
    process = start([*TEACHER, *SMALL, *TWO], folder, 0.2)
    await_frames(process, list_parts(folder), 2)
    os.killpg(process.pid, signal.SIGKILL)
    text = process.communicate()[0].decode()
    assert "plan     20 of 21 frames to label, 1 repeated" in text
    assert re.search(r"20 evaluations of 120 atoms in all, about \S+ s with 2 processes", text)
    assert not (folder / "labels.h5").exists()
    found = sum(map(count_frames, list_parts(folder)))
    assert 4 <= found < 20
    return folder, found


@pytest.fixture
def label_here(run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Label:
    """``fastff label`` in this process, in the folder of the test, with the teacher of :func:`start` in no hurry.

    Returns the exit code, and all that is said in one line.
    """
    (tmp_path / "slow_teacher.py").write_text(SLOW_TEACHER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_SECONDS", "0")
    monkeypatch.setenv("TEACHER_FAILS", "none")

    def call(*arguments: str) -> tuple[int, str]:
        code, out, err = run_cli("label", *arguments)
        return code, " ".join((out + err).split())

    return call


def finish(process: subprocess.Popen[bytes]) -> str:
    text = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, text
    return " ".join(text.split())


def read(folder: Path) -> list[Frame]:
    with LabelStore(folder / "labels.h5") as store:
        return store.read()


def await_frames(process: subprocess.Popen[bytes], paths: list[Path], count: int) -> None:
    """Wait until each of some label files holds so many frames while the process runs."""
    deadline = time.time() + 120
    while min(map(count_frames, paths)) < count and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.02)
    assert process.poll() is None, process.stdout.read().decode()  # type: ignore[union-attr]


def list_parts(folder: Path) -> list[Path]:
    return [folder / "labels.h5.parts" / f"{k}-of-2.h5" for k in (1, 2)]


@pytest.mark.slow
def test_kill_9_loses_and_doubles_nothing(
    copper_file: Path, tmp_path: Path, label_here: Label
) -> None:
    seen = 0
    for wanted in (3, 9):
        process = start([*TEACHER, *SMALL], tmp_path, 0.15)
        await_frames(process, [tmp_path / "labels.h5"], wanted)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        frames = read(tmp_path)
        assert seen <= len(frames) < 20
        assert len(frames) >= wanted
        seen = len(frames)
    code, said = label_here(*TEACHER, *SMALL)
    assert code == 0
    assert f"plan {20 - seen} of 21 frames to label, {seen} stored by an earlier run" in said
    hashes = [hash_structure(frame.atoms) for frame in read(tmp_path)]
    assert hashes == [hash_structure(job.atoms) for job in read_jobs([copper_file])[:20]]


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 2, 3])
def test_a_killed_run_of_two_goes_on_with_any_number(
    then: int,
    alone: list[Frame],
    killed: tuple[Path, int],
    tmp_path: Path,
    label_here: Label,
) -> None:
    """Lightning starts the other processes itself; gloo on the CPU. Labels are those of one process, bit for bit."""
    left, found = killed
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    if then == 1:
        code, said = label_here(*TEACHER, *SMALL, *TWO[:-1], "1")
        assert code == 0
    else:
        said = finish(start([*TEACHER, *SMALL, *TWO[:-1], str(then)], tmp_path, 0.0))
    assert said.count("verdict") == 1
    assert f"plan {20 - found} of 21 frames to label, {found} stored by an earlier run" in said
    assert "holds 20 frames" in said
    assert f"{20 - found} frames labelled" in said
    by = r"by \d processes " if then > 1 else ""
    assert re.search(rf"{by}\(.* when warm\), {found} found stored, 1 repeated", said), said
    assert not list_parts(tmp_path)[0].parent.exists()
    for one, other in zip(read(tmp_path), alone, strict=True):
        assert hash_structure(one.atoms) == hash_structure(other.atoms)
        assert one.labels.energy == other.labels.energy
        np.testing.assert_array_equal(one.labels.forces, other.labels.forces)
        assert one.labels.stress is not None
        assert other.labels.stress is not None
        np.testing.assert_array_equal(one.labels.stress, other.labels.stress)


@pytest.mark.slow
@pytest.mark.usefixtures("copper_file")
def test_other_processes_do_not_wait_for_the_self_check(tmp_path: Path) -> None:
    """The second labels while the first still measures the teacher."""
    first, second = list_parts(tmp_path)
    process = start([*TEACHER, "--batch-atoms", "2", *TWO], tmp_path, 0.3)
    await_frames(process, [second], 1)
    n_first = count_frames(first)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert n_first == 0


@pytest.mark.slow
@pytest.mark.usefixtures("copper_file")
def test_a_killed_process_ends_all_with_one_line(tmp_path: Path) -> None:
    process = start([*TEACHER, *SMALL, *TWO, "--quiet"], tmp_path, 0.5)
    await_frames(process, list_parts(tmp_path), 1)
    (second,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(second), signal.SIGKILL)
    text = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 1
    assert text.startswith("error: process 2 of 2 was ended by SIGKILL")
    assert "the same command goes on" in text
    assert text.count("\n") == 1
    finish(start([*TEACHER, *SMALL, *TWO], tmp_path, 0.0))
    assert len(read(tmp_path)) == 20


@pytest.mark.slow
@pytest.mark.usefixtures("copper_file")
@pytest.mark.parametrize("whom", ["first", "second", "all"])
def test_sigterm_to_any_process_ends_all(
    whom: str, alone: list[Frame], tmp_path: Path, label_here: Label
) -> None:
    """Lightning's own handler takes a note of it that nothing reads while labels are made, and waits for the others."""
    process = start([*TEACHER, *SMALL, *TWO, "--quiet"], tmp_path, 0.5)
    await_frames(process, list_parts(tmp_path), 1)
    (second,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if whom == "all":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if whom == "first" else int(second), signal.SIGTERM)
    text = process.communicate(timeout=60)[0].decode()  # until the last one has closed it
    if whom == "second":
        assert process.returncode == 1
        assert text.startswith("error: process 2 of 2 was ended by SIGTERM")
        assert text.count("\n") == 1
    else:
        assert (process.returncode, text) == (-signal.SIGTERM, "")
    assert label_here("--quiet", *TEACHER, *SMALL)[0] == 0
    assert [frame.labels.energy for frame in read(tmp_path)] == [f.labels.energy for f in alone]


@pytest.mark.slow
@pytest.mark.usefixtures("copper_file")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_teacher_that_fails_in_one_process_is_reported_once(rank: str, tmp_path: Path) -> None:
    """The other one has labelled its part by then, or is about to; what it has labelled stays, and no empty file."""
    process = start([*TEACHER, *SMALL, *TWO, "--quiet"], tmp_path, 0.01, fails=rank)
    text = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 4
    assert "this teacher has failed" in text
    assert text.count("\n") == 1
    left = {path.name for path in tmp_path.glob("labels.h5*/*")}
    assert left <= {{"0": "2-of-2.h5", "1": "1-of-2.h5"}[rank]}
    assert not (tmp_path / "labels.h5").exists()
    assert bool(left) == (tmp_path / "labels.h5.parts").exists()
    assert all(count_frames(tmp_path / "labels.h5.parts" / name) for name in left)


def test_elements_that_the_teacher_does_not_know_are_found_before_processes_start(
    tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: object, **__: object) -> None:
        pytest.fail("processes were started")

    monkeypatch.setattr(WatchingLauncher, "launch", launch)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "cu.xyz", [*make_frames(2), bulk("W", cubic=True)])
    arguments = ("cu.xyz", "--teacher", "analytic:emt", "--out", "labels.h5", *TWO)
    code, out, err = run_cli("label", *arguments)
    assert code == 4
    assert "does not know W" in err
    assert (out + err).count("\n") == 1
    assert not list(tmp_path.glob("labels.h5*"))


def test_more_devices_than_there_are_is_a_usage_error(
    run_cli: Run, copper_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    arguments = ("label", "--teacher", "analytic:emt", copper_file, "--out", tmp_path / "labels.h5")
    code, _, err = run_cli(*arguments, "--devices", "2", "--device", "cuda")
    assert code == 2
    assert "this machine has 1 GPUs" in err
    assert "cuda:0 with 2 devices" in run_cli(*arguments, "--devices", "2", "--device", "cuda:0")[2]
    assert "is not a number above 0 or auto" in run_cli(*arguments, "--devices", "two")[2]
