"""Signals to processes that train together: all end soon, in one way, and --resume goes on. Not here: labelling."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from emt_frames import label_by_emt, make_alloys, make_mixed
from signal_probe import INTERVAL, WHOLE

from fastff.distill.checkpoints import find_checkpoint, read_checkpoint
from fastff.distill.launch import JOB_NAME, MARK, write_job
from fastff.distill.signals import TERMINATED, SharedSignals, explain_loss
from fastff.distill.train import TrainProgress, TrainResult, train_student
from fastff.distill.worker import work
from fastff.errors import FastFFError
from fastff.labels import Frame
from fastff.models import Student

TESTS = Path(__file__).parent
BOUND = 90
"""Seconds, nearly all of them for a slow machine; processes that waited for each other would wait half an hour."""


@pytest.fixture(scope="module")
def frames() -> tuple[list[Frame], list[Frame]]:
    return make_mixed(), label_by_emt(make_alloys(5, seed=9))


@pytest.fixture(scope="module")
def alone(
    frames: tuple[list[Frame], list[Frame]], tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    """What one process makes of it without being disturbed."""
    return train_student(*frames, replace(WHOLE, devices=1), tmp_path_factory.mktemp("alone"))


def compare(student: Student, other: Student) -> None:
    for name, value in other.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=0.0, atol=5e-5)


def find_step(folder: Path) -> int:
    """Of the newest checkpoint."""
    path = find_checkpoint(folder / "checkpoints")
    return read_checkpoint(Path(path))["global_step"] if path else 0


def train_two(folder: Path, plan: str) -> list[tuple[int, str]]:
    """Exit codes and words of two processes of ``signal_probe.py`` without a launcher that would end one of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "signal_probe.py"), str(folder), plan],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        ended = []
        for process in processes:
            text = process.communicate(timeout=BOUND)[0]
            ended.append((process.returncode, text))
        return ended
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_one_process_takes_the_other_with_it_and_both_go_on(
    frames: tuple[list[Frame], list[Frame]], alone: TrainResult, tmp_path: Path
) -> None:
    """SIGTERM to one of them between two questions, then SIGKILL to the other, then to the end."""
    ended = train_two(tmp_path, f"1:SIGTERM:{2 * INTERVAL - 1}")
    assert ended == [(TERMINATED, ""), (TERMINATED, "")]
    assert find_step(tmp_path) == 10  # of the last validation before
    (_, text), (code, _) = train_two(tmp_path, "1:SIGKILL:22")
    assert code == -signal.SIGKILL
    assert text.startswith("error: another process of this training has ended (the system")
    assert text.endswith("--resume continues\n")
    assert text.count("\n") == 1
    assert find_step(tmp_path) == 20
    result = train_student(*frames, replace(WHOLE, devices=1), tmp_path, resume=True)
    compare(result.student, alone.student)


def find_processes(folder: Path) -> dict[str, int]:
    """torchrun, and workers by their rank, that have this folder in their command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in command and b"fastff.distill.worker" in command:
            ranks = [entry[5:].decode() for entry in variables if entry.startswith(b"RANK=")]
            found[ranks[0] if ranks else "torchrun"] = int(path.name)
    return found


@pytest.mark.slow
def test_whoever_of_a_command_is_ended_all_end_and_it_goes_on(
    frames: tuple[list[Frame], list[Frame]], alone: TrainResult, tmp_path: Path
) -> None:
    """The process that waits, and torchrun; each run continues the one before."""
    assert threading.current_thread() is threading.main_thread()

    def train(target: str, number: int, after: int, devices: int = 2) -> TrainResult:
        sent: list[float] = []

        def send(progress: TrainProgress) -> None:
            if progress.step < after or sent:
                return
            sent.append(time.monotonic())
            if target == "self":  # or this would be the end of all tests
                assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            os.kill(os.getpid() if target == "self" else find_processes(tmp_path)[target], number)

        try:
            return train_student(
                *frames, replace(WHOLE, devices=devices), tmp_path, resume=True, on_step=send
            )
        finally:
            if sent:
                assert time.monotonic() - sent[0] < BOUND
                deadline = time.monotonic() + BOUND
                while find_processes(tmp_path) and time.monotonic() < deadline:
                    time.sleep(0.1)
                assert find_processes(tmp_path) == {}

    with pytest.raises(SystemExit) as ended:
        train("self", signal.SIGTERM, 6)
    assert ended.value.code == TERMINATED
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    first = find_step(tmp_path)
    # who sees it first says so
    with pytest.raises(FastFFError, match=r"ended with code -9; |another process .* has ended"):
        train("torchrun", signal.SIGKILL, first + 1)
    assert 5 <= first <= find_step(tmp_path) < 40
    result = train("nobody", 0, 10**6, devices=1)
    compare(result.student, alone.student)


def test_processes_that_were_asked_to_end_say_so(
    frames: tuple[list[Frame], list[Frame]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise SystemExit(TERMINATED)

    write_job(tmp_path / JOB_NAME, *frames, {"devices": 2, "resume": True})
    monkeypatch.setattr("fastff.distill.train.train_student", end)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            work(tmp_path)
    text = "the processes of this training were ended by SIGTERM; --resume continues"
    assert json.loads(capfd.readouterr().out.removeprefix(MARK)) == {
        "error": "FastFFError",
        "text": text,
    }


def test_a_signal_in_the_last_step_ends_what_would_come_after(
    frames: tuple[list[Frame], list[Frame]], tmp_path: Path
) -> None:
    """The training is complete by then, and is not done again."""
    settings = replace(WHOLE, devices=1, n_steps=10)

    def send(progress: TrainProgress) -> None:
        if progress.step == progress.n_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        train_student(*frames, settings, tmp_path, on_step=send)
    assert ended.value.code == TERMINATED
    steps: list[TrainProgress] = []
    result = train_student(*frames, settings, tmp_path, resume=True, on_step=steps.append)
    assert (result.n_steps, steps) == (10, [])


@pytest.mark.parametrize(("device", "asked"), [("cuda", [0, 4, 8]), ("cpu", list(range(10)))])
def test_processes_on_gpus_ask_for_a_signal_now_and_then(
    device: str, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: Any = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False
    )
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)  # another Lightning may
    assert callable(trainer._signal_connector._sigterm_notifier_fn)  # call them otherwise
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device(device))
    monkeypatch.setattr(type(trainer), "global_step", 0)
    signals = SharedSignals(4)
    before = signal.getsignal(signal.SIGTERM)
    try:
        signals.on_fit_start(trainer, None)  # type: ignore[arg-type]
        signals.on_train_start(trainer, None)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGTERM, before)
    found: list[int] = []
    monkeypatch.setattr(signals, "ask", lambda: found.append(trainer.global_step))
    for step in range(10):
        monkeypatch.setattr(type(trainer), "global_step", step)
        signals.on_train_batch_start(trainer, None)  # type: ignore[arg-type]
    assert found == asked


def test_only_a_lost_connection_is_called_so() -> None:
    with pytest.raises(FastFFError, match="another process"), explain_loss():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:537] Connection closed by peer")
    with pytest.raises(FastFFError, match="another process"), explain_loss():
        raise torch.distributed.DistNetworkError("timeout")
    with pytest.raises(RuntimeError, match="out of memory"), explain_loss():
        raise RuntimeError("out of memory")
