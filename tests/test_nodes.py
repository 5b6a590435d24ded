"""Two nodes on one machine, as torchrun and SLURM start them: labels and trainings are those of one process.

Not here: several processes of one node (``test_distributed.py``, ``test_label_processes.py``).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from copper_jobs import ROOT, write_copper
from emt_frames import label_by_emt, make_alloys

from fastff.checkpoint import load_model
from fastff.cli import main
from fastff.distill.content import hash_structure
from fastff.distill.store import LabelStore
from fastff.inference import predict
from fastff.labels import Frame
from fastff.report.metrics import measure_accuracy

BOUND = 240
FASTFF = [sys.executable, "-m", "fastff"]
NODES = ["--device", "cpu", "--devices", "1", "--nodes", "2"]


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(number: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What a user types on each node, before the command, and the variables that are set there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=7"]
    return [*command, "--no-python"], {}


def srun(number: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What ``srun --nodes=2 --ntasks-per-node=1`` sets for the task of each node."""
    tasks = {"NTASKS": "2", "NTASKS_PER_NODE": "1", "JOB_NUM_NODES": "2", "NNODES": "2"}
    own = {"PROCID": str(number), "NODEID": str(number), "LOCALID": "0"}
    job = {"JOB_ID": "7", "JOB_NAME": "fastff", "NODELIST": "localhost"}
    variables = {f"SLURM_{name}": value for name, value in (tasks | own | job).items()}
    return [], variables | {"MASTER_PORT": str(port)}


def run_two(launcher: str, folder: Path, words: list[str]) -> list[str]:
    """What the commands of both nodes said."""
    start, port, processes = {"torchrun": torchrun, "srun": srun}[launcher], find_port(), []
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))
        and name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    for number in (0, 1):
        before, variables = start(number, port)
        processes.append(
            subprocess.Popen(
                [*before, *FASTFF, *words],
                cwd=folder,
                env={**environment, **variables, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=BOUND)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_nodes_label_what_one_process_labels(launcher: str, tmp_path: Path) -> None:
    """Twenty frames and one of them again; a checkpoint of somebody else's job lies in the folder."""
    path = write_copper(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"Lightning goes on from such files under SLURM")
    words = ["label", path.name, "--teacher", "analytic:emt", "--out", "labels.h5"]
    said = run_two(launcher, tmp_path, [*words, "--batch-atoms", "6", *NODES, "--no-self-check"])
    assert ["verdict" in text for text in said].count(True) == 1  # torchrun numbers as it likes
    assert "20 frames labelled" in "".join(said)
    with LabelStore(tmp_path / "labels.h5") as store:
        frames = store.read()
        assert store.n_quarantined == 0
    structures = read(path, index=":")[:20]
    for frame, other in zip(frames, label_by_emt(structures), strict=True):
        assert hash_structure(frame.atoms) == hash_structure(other.atoms)
        assert frame.labels.energy == other.labels.energy
        np.testing.assert_array_equal(frame.labels.forces, other.labels.forces)
    assert not (tmp_path / "labels.h5.parts").exists()


TRAIN = ["train", "--labels", "labels.h5", "--student", "m1", "--cutoff", "4", "--steps", "300"]


def write_labels(folder: Path) -> list[Frame]:
    frames = label_by_emt(make_alloys(60))
    with LabelStore(folder / "labels.h5", "w", teacher={"name": "emt"}) as store:
        store.append(frames)
    return frames


def measure(folder: Path, frames: list[Frame]) -> float:
    """Force accuracy on all frames."""
    student = load_model(folder / "run" / "model.safetensors")
    images = [frame.atoms for frame in frames]
    force = measure_accuracy([f.labels for f in frames], predict(student, images), images).force
    assert force is not None
    return force


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Of what one process trains."""
    folder = tmp_path_factory.mktemp("one")
    frames = write_labels(folder)
    words = [*TRAIN, "--out", "run", "--device", "cpu", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ending:
            main(words)
    assert not ending.value.code
    return measure(folder, frames)


@pytest.mark.slow
def test_two_nodes_train_as_well_as_one_process(accuracy: float, tmp_path: Path) -> None:
    """The whole command, of which one reports; somebody else's checkpoint lies in the folder.

    Trainings of one process and of several differ by rounding, which these few steps make the most of.
    """
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"Lightning goes on from such files under SLURM")
    frames = write_labels(tmp_path)
    said = run_two("srun", tmp_path, [*TRAIN, "--out", "run", *NODES])
    assert ["verdict" in text for text in said].count(True) == 1
    assert "train 25 frames of 12 blocks" in "".join(said)
    assert "300 steps in" in "".join(said)
    found = measure(tmp_path, frames)
    assert found == pytest.approx(accuracy, abs=0.05)
