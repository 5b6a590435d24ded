"""Training with several processes: same batches, same result, one writer, one decision. Not here: labelling."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddp_probe import SETTINGS, students_in
from emt_frames import label_by_emt, make_alloys, make_mixed

from fastff.distill import ranks
from fastff.distill.data import build_loader, choose_batch_size, prepare_frames
from fastff.distill.launch import JOB_NAME, read_job, write_job
from fastff.distill.ranks import check_group, place_trainer, share_cores
from fastff.distill.resident import ResidentBatches
from fastff.distill.train import TrainProgress, TrainSettings, prepare_student, train_student
from fastff.errors import DataError, UsageError
from fastff.labels import Frame
from fastff.models import Student

TESTS = Path(__file__).parent
ONE = TrainSettings(**SETTINGS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return make_mixed()


@pytest.fixture(scope="module")
def validation() -> list[Frame]:
    return label_by_emt(make_alloys(5, seed=9))


@pytest.fixture(scope="module")
def alone(
    frames: list[Frame], validation: list[Frame], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What one process makes of the same frames and batches."""
    return train_student(frames, validation, ONE, tmp_path_factory.mktemp("alone"))


def compare(student: Student, curve: list[dict[str, float]], alone: Any) -> None:
    assert [entry["step"] for entry in curve] == [e["step"] for e in alone.learning_curve]
    for own, other in zip(curve, alone.learning_curve, strict=True):
        assert own["accuracy"] == pytest.approx(other["accuracy"], abs=1e-3)
    for name, value in alone.student.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=0.0, atol=5e-5)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which two processes of torchrun have carried out three trainings of ``ddp_probe.py``, one by one."""
    out = tmp_path_factory.mktemp("launched")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(TESTS / "ddp_probe.py"), str(out), "2"]
    done = subprocess.run(
        [*command, "adamw-float32", "soap-float32", "soap-float64"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def read_seen(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two processes of a training saw."""
    first, second = (json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1))
    return first, second


@pytest.mark.slow
def test_two_processes_of_torchrun_equal_one(
    frames: list[Frame], validation: list[Frame], alone: Any, launched: Path
) -> None:
    """Sizes, missing stress and missing Hessian-vector targets differ between the parts of a batch."""
    first, second = read_seen(launched / "adamw-float32")
    # nothing lost, nothing doubled, and the batches of one process
    batches = [a + b for a, b in zip(first["frames"], second["frames"], strict=True)]
    assert all(
        len(a) == len(b) == 2 for a, b in zip(first["frames"], second["frames"], strict=True)
    )
    n_batches = len(frames) // 4
    for start in range(0, len(batches), n_batches):
        epoch = list(chain(*batches[start : start + n_batches]))
        assert len(set(epoch)) == len(epoch) == 4 * n_batches
    student, _ = prepare_student(frames, ONE)
    loader = build_loader(frames, student, 4, seed=ONE.seed)
    for epoch in range(len(batches) // n_batches):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for k, batch in enumerate(loader):
            assert sorted(batch["frame_index"].tolist()) == sorted(batches[epoch * n_batches + k])
    # averages, decisions and results are the same on both, and written once
    assert first["averages"] == second["averages"] != []
    assert first["student"] == second["student"]
    assert first["curve"] == second["curve"]
    assert first["stopped"] == second["stopped"] == alone.stopped
    assert first["step"] == second["step"] < 40
    assert "last.ckpt" in first["written"]
    assert second["written"] == []
    folder = launched / "adamw-float32"
    again = train_student(frames, validation, ONE, folder, resume=True)  # reads what they left
    compare(again.student, first["curve"], alone)


@pytest.mark.slow
def test_two_processes_agree_with_the_usual_optimiser(
    frames: list[Frame], validation: list[Frame], launched: Path, tmp_path: Path
) -> None:
    """With each other bit for bit, with one process in how well they do: its start hangs on rounding."""
    first, second = read_seen(launched / "soap-float32")
    assert first["student"] == second["student"]
    assert first["averages"] == second["averages"]
    assert first["curve"] == second["curve"]
    one = train_student(frames, validation, replace(ONE, optimizer="soap"), tmp_path / "one")
    begin, end = first["curve"][0]["accuracy"], first["curve"][-1]["accuracy"]
    assert end - begin > 0.5
    assert end == pytest.approx(one.learning_curve[-1]["accuracy"], abs=0.2 * (end - begin))


@pytest.mark.slow
def test_the_usual_optimiser_makes_of_two_processes_what_it_makes_of_one(
    frames: list[Frame], validation: list[Frame], launched: Path, tmp_path: Path
) -> None:
    """Without rounding: gradients are averaged before the update, and bases are turned alike, many times over."""
    with students_in("float64"):
        one = train_student(
            frames, validation, replace(ONE, optimizer="soap"), tmp_path / "one"
        ).student
    for rank in (0, 1):
        other = torch.load(launched / "soap-float64" / f"student-{rank}.pt")
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other[name], value, rtol=0.0, atol=1e-8)


def list_processes(folder: Path) -> list[int]:
    """Running processes that have this folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def ended(
    frames: list[Frame], validation: list[Frame], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Copy of the folder of a training with two processes, ended in the middle by an error of who started them.

    It lies beside the folder itself, ``training``: checkpoints know where they are.
    """
    folder = tmp_path_factory.mktemp("ended") / "training"
    steps: list[TrainProgress] = []

    class KilledError(Exception):
        pass

    def kill(progress: TrainProgress) -> None:
        steps.append(progress)
        if progress.accuracy is not None and progress.step >= 10:
            raise KilledError

    with pytest.raises(KilledError):
        train_student(frames, validation, replace(ONE, devices=2), folder, on_step=kill)
    assert steps[0].n_steps == 40
    deadline = time.time() + 30
    while list_processes(folder) and time.time() < deadline:
        time.sleep(0.1)
    assert list_processes(folder) == []
    assert not (folder / "finished.json").exists()
    return shutil.copytree(folder, folder.with_name("copy"))


@pytest.mark.slow
@pytest.mark.parametrize("then", [2, 1])
def test_processes_are_started_ended_and_resumed(
    then: int, frames: list[Frame], validation: list[Frame], alone: Any, ended: Path
) -> None:
    """They die with the training that started them; resumed by two or by one, it ends where one process does."""
    folder = ended.with_name("training")
    shutil.rmtree(folder)
    shutil.copytree(ended, folder)
    again: list[TrainProgress] = []
    settings = replace(ONE, devices=then)
    result = train_student(frames, validation, settings, folder, resume=True, on_step=again.append)
    assert again[0].step > 1  # from the middle
    assert result.stopped == alone.stopped
    assert not (folder / JOB_NAME).exists()
    compare(result.student, result.learning_curve, alone)


@pytest.mark.slow
def test_processes_end_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    code = f"""
import ddp_probe as p; from fastff.distill.train import train_student
from pathlib import Path
settings = p.TrainSettings(**{{**p.SETTINGS, "n_steps": 10**5, "patience": 10**6, "devices": 2}})
frames = p.make_mixed()
train_student(frames, frames[:5], settings, Path({str(tmp_path)!r}), on_step=lambda now: print(now.step, flush=True))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline()
    assert len(list_processes(tmp_path)) >= 3  # torchrun and its two
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.time() + 60
    while list_processes(tmp_path) and time.time() < deadline:
        time.sleep(0.2)
    assert list_processes(tmp_path) == []


@pytest.mark.slow
def test_training_goes_on_from_given_weights_in_several_processes(
    frames: list[Frame], validation: list[Frame], alone: Any, tmp_path: Path
) -> None:
    """At a learning rate of nothing the first validation finds the weights that were given."""
    settings = replace(ONE, n_steps=1, learning_rate=1e-12)
    results = [
        train_student(
            frames, validation, replace(settings, devices=n), tmp_path / str(n), start=alone.student
        )
        for n in (1, 2)
    ]
    for result in results:
        for name, value in alone.student.state_dict().items():
            torch.testing.assert_close(result.student.state_dict()[name], value)
    assert not list(tmp_path.glob("2/*.safetensors"))


@pytest.mark.slow
def test_errors_of_the_processes_are_raised_here(
    frames: list[Frame], validation: list[Frame], tmp_path: Path
) -> None:
    """One line, of the right kind, with the frames of both parts of the batch."""
    bad = frames[0].labels.forces.copy()
    bad[0, 0] = 1e30
    spoiled = [replace(frames[0], labels=replace(frames[0].labels, forces=bad)), *frames[1:]]
    settings = replace(ONE, devices=2, learning_rate=1e30)
    pattern = r"loss is \S+ at step \d+ \(training frames \[\d+, \d+, \d+, \d+\]\)"
    with pytest.raises(DataError, match=pattern) as raised:
        train_student(spoiled, validation, settings, tmp_path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_ranks_divide_every_batch(frames: list[Frame], n_ranks: int) -> None:
    """Of 17 frames in batches of six, two are whole; no frame comes twice to fill up a third."""
    frames = frames[:17]
    student, _ = prepare_student(frames, ONE)
    data = prepare_frames(frames, student)

    def order(epoch: int, kind: str, rank: int, count: int) -> list[list[int]]:
        size = 6 // count
        loader: Any = (
            build_loader(frames, student, size, seed=4, rank=rank, n_ranks=count)
            if kind == "collated"
            else ResidentBatches(
                data, size, "cpu", seed=4, padding_vector=(9.0, 0, 0), rank=rank, n_ranks=count
            )
        )
        loader.sampler.set_epoch(epoch)
        return [batch["frame_index"].tolist() for batch in loader]

    for kind in ("collated", "resident"):
        whole = order(2, kind, 0, 1)
        parts = [order(2, kind, rank, n_ranks) for rank in range(n_ranks)]
        assert [len(part) for part in parts] == [2] * n_ranks
        together = [sorted(chain(*batch)) for batch in zip(*parts, strict=True)]
        assert together == [sorted(batch) for batch in whole]
        assert len(set(chain(*together))) == 12


def test_batches_are_multiples_of_the_ranks(frames: list[Frame]) -> None:
    assert [choose_batch_size(frames, 14, n) for n in (1, 2, 3, 4)] == [4, 4, 3, 4]
    assert choose_batch_size(frames, 10**6, 4) == 20
    assert choose_batch_size(frames, 1, 4) == 4
    with pytest.raises(DataError, match="2 training frames are too few for 3 processes"):
        choose_batch_size(frames[:2], 14, 3)


def test_job_files_keep_everything(
    frames: list[Frame], validation: list[Frame], tmp_path: Path
) -> None:
    frames = list(frames)
    frames[3].atoms.info["charge"] = 1
    write_job(tmp_path / JOB_NAME, frames, validation, {"cutoff": 4.0})
    training, others, settings = read_job(tmp_path / JOB_NAME)
    assert settings == {"cutoff": 4.0}
    assert [len(training), len(others)] == [21, 5]
    for own, other in zip([*training, *others], [*frames, *validation], strict=True):
        assert own.atoms == other.atoms
        assert own.atoms.info == other.atoms.info
        assert own.labels.energy == other.labels.energy
        np.testing.assert_array_equal(own.labels.forces, other.labels.forces)
        assert (own.labels.stress is None) == (other.labels.stress is None)
        assert (own.source, own.trajectory, own.step) == (
            other.source,
            other.trajectory,
            other.step,
        )
        assert (own.hessian_vector is None) == (other.hessian_vector is None)
        if own.hessian_vector is not None and other.hessian_vector is not None:
            np.testing.assert_array_equal(own.hessian_vector.product, other.hessian_vector.product)


def test_launchers_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun and SLURM by their variables; numbers that do not fit are refused before anything is built."""
    assert check_group(1, 1)
    assert not check_group(2, 1)
    with pytest.raises(UsageError, match="2 nodes needs a launcher"):
        check_group(4, 2)
    with pytest.raises(UsageError, match="use at least 1"):
        check_group(0, 1)
    with monkeypatch.context() as patch:
        for name, value in {
            "TORCHELASTIC_RUN_ID": "x",
            "WORLD_SIZE": "8",
            "RANK": "3",
            "LOCAL_RANK": "3",
            "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": "8",
        }.items():
            patch.setenv(name, value)
        assert check_group(4, 2)
        with pytest.raises(UsageError, match=r"started 8 processes, but devices x nodes is 1 x 1"):
            check_group(1, 1)
    with monkeypatch.context() as patch:
        for name, value in {
            "SLURM_NTASKS": "8",
            "SLURM_PROCID": "3",
            "SLURM_LOCALID": "3",
            "SLURM_NODEID": "0",
            "SLURM_JOB_NAME": "train",
            "SLURM_JOB_ID": "7",
        }.items():
            patch.setenv(name, value)
        with pytest.raises(UsageError, match="--ntasks-per-node"):
            check_group(4, 2)
        patch.setenv("SLURM_NTASKS_PER_NODE", "4")
        assert check_group(4, 2)
        patch.setenv("SLURM_JOB_NAME", "interactive")
        assert check_group(1, 1)


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says goes first, of OpenMP, and of SLURM where every process is one of its tasks."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "count_cores", lambda: 64)
    assert [share_cores(n) for n in (1, 4, 5, 100)] == [64, 16, 12, 1]
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    for tasks in ("", "1"):  # one task, which starts the others
        monkeypatch.setenv("SLURM_NTASKS", tasks)
        assert share_cores(4) == 16
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    assert share_cores(4) == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share_cores(4) == 3


def test_devices_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_trainer("cpu") == {"accelerator": "cpu", "devices": 1}
    assert place_trainer("cuda:1") == {"accelerator": "gpu", "devices": [1]}
    with pytest.raises(UsageError, match="name the kind only"):
        place_trainer("cuda:1", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="this machine has 0 GPUs"):
        place_trainer("cuda", 2)
    options = place_trainer("cpu", 2, 3)
    assert (options["accelerator"], options["devices"], options["num_nodes"]) == ("cpu", 2, 3)
