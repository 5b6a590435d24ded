"""Training, labelling and dynamics on several devices: rates, scaling, and that the results are the same.

Run from the root of the repository, for example

    python bench/multi_gpu.py --labels labels.h5 --teacher sevennet:7net-0 --structures frames.xyz --devices 1 2 4

Three parts, any of which ``--only`` picks:

- ``train``: a student on the frames of ``--labels``, with the batch per device held constant (``weak``), and with the
  batch of all devices together held constant (``strong``), whose students must be equally accurate. Rates are frames
  per second between the first tenth of the steps and the last step, validations included.
- ``label``: ``fastff label`` on ``--structures``, or on ``--label-frames`` rattled copies of them, one process for each
  device; frames per second once every process is warm (without its start and first two batches), and the largest
  difference from the labels of the smallest number of devices.
- ``md``: one independent ``fastff md`` per device, all started together, with the student of the last training; the
  overlap is the time in which all were stepping, over that of the longest, from their own clocks and the times at which
  they wrote their records (about a second after the last step).

Efficiency is the rate over the number of devices, relative to the median of one device. ``--repeats`` measures every
row several times, trainings with other seeds (``strong``: at a constant batch); what is printed in the end are
medians and ranges. ``--window`` is the least time of dynamics and of trainings of weak scaling (those of strong
scaling are of equal steps): what ends earlier is measured again with as many more steps, so let ``--steps`` and
``--md-steps`` last a few seconds. How long labelling lasts is up to ``--label-frames``. Twenty seconds of training
and thirty of dynamics make a few percent worth reading. The record is written after every measurement; a part that
fails leaves its reason there and the others run. ``--limit`` is a time for everything: whatever takes longer is
ended, and nothing is begun after it; numbers of devices are measured in the order given. With ``--device cpu``
devices are processes on the CPU (gloo), which tests the script and measures nothing. The commit is read from git, or
from ``FASTFF_COMMIT``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose names are not for import

MODEL_NAME = "model.safetensors"


class Rows(list[dict[str, Any]]):
    """Measurements of one part, each printed and written as soon as it is there."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__()
        self._write = write

    def note(self, row: dict[str, Any]) -> None:
        """Append a measurement."""
        self.append(row)
        print(json.dumps(row), flush=True)
        self._write()


def set_limit(seconds: float) -> None:
    """Raise TimeoutError after so many seconds, wherever this process is then."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{seconds:g} seconds were over")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def add_efficiency(rows: list[dict[str, Any]], rate: str) -> None:
    """Rate of each row per device, relative to the row of one device."""
    single = [row[rate] for row in rows if row["devices"] == 1]
    for row in rows:
        share = row[rate] / (row["devices"] * statistics.median(single)) if single else None
        row["efficiency"] = share


def last_long_enough(
    measure: Callable[[int], dict[str, Any]], steps: int, window: float
) -> dict[str, Any]:
    """A measurement of so many steps; again with more of them if its ``window_seconds`` were fewer than wanted."""
    row = measure(steps)
    if row["window_seconds"] < window:
        row = measure(math.ceil(1.2 * steps * window / row["window_seconds"]))
    return row


def measure_training(arguments: argparse.Namespace, rows: Rows) -> None:
    """Weak and strong scaling of training."""
    from fastff.distill.formats import read_labels
    from fastff.distill.split import split_frames

    labelled = read_labels(arguments.labels)
    split = split_frames(
        labelled.frames, held_out=labelled.held_out, blocks=labelled.blocks, seed=0
    )
    training = split.train * arguments.repeat
    most = max(arguments.devices)
    for kind in arguments.scalings:
        own: list[dict[str, Any]] = []
        for devices in arguments.devices:
            batch = arguments.batch_atoms * (devices if kind == "weak" else most)
            for seed in range(arguments.repeats):
                once = partial(train_once, arguments, split, training, kind, devices, batch, seed)
                window = arguments.window if kind == "weak" else 0.0
                own.append(last_long_enough(once, arguments.steps, window))
                add_efficiency(own, "frames_per_second")
                rows.note(own[-1])


def train_once(
    arguments: argparse.Namespace,
    split: Any,
    training: list[Any],
    kind: str,
    devices: int,
    batch: int,
    seed: int,
    steps: int,
) -> dict[str, Any]:
    """Train one student and measure it."""
    from fastff.checkpoint import save_model
    from fastff.distill.data import choose_batch_size
    from fastff.distill.module import measure_frames
    from fastff.distill.train import TrainProgress, TrainSettings, train_student
    from fastff.inference import predict

    settings = TrainSettings(
        architecture=arguments.student,
        cutoff=arguments.cutoff,
        n_steps=steps,
        seed=seed,
        batch_atoms=batch,
        optimizer=arguments.optimizer,
        n_validations=2,
        patience=99,
        device=arguments.device,
        devices=devices,
    )
    seen: list[tuple[int, float]] = []

    def note(progress: TrainProgress) -> None:
        seen.append((progress.step, time.perf_counter()))

    out = arguments.out / f"train-{kind}-{devices}-{seed}-{steps}"
    start = time.perf_counter()
    result = train_student(training, split.validation, settings, out, on_step=note)
    wall = time.perf_counter() - start
    warm = next((entry for entry in seen if entry[0] >= 0.1 * steps), seen[0])
    (first, start), (last, end) = warm, seen[-1]
    size = choose_batch_size(training, batch, devices)
    accuracy = measure_frames(split.test, predict(result.student, [f.atoms for f in split.test]))
    save_model(arguments.out / MODEL_NAME, result.student, {})
    return {
        "scaling": kind,
        "optimizer": arguments.optimizer,
        "devices": devices,
        "batch_frames": size,
        "seed": seed,
        "n_train": len(training),
        "n_steps": result.n_steps,
        "frames_per_second": size * (last - first) / (end - start),
        "window_seconds": end - start,
        "seconds": round(result.seconds, 2),
        "wall_seconds": round(wall, 1),
        "test_accuracy": {
            name: getattr(accuracy, name) for name in ("overall", "force", "energy", "stress")
        },
    }


def measure_labelling(arguments: argparse.Namespace, rows: Rows) -> None:
    """Labels of the same structures from 1, 2, ... processes."""
    structures = rattle_structures(arguments)
    for devices in (n for n in arguments.devices for _ in range(arguments.repeats)):
        out = arguments.out / f"labels-{devices}.h5"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-m", "fastff", "label", str(structures)]
        command += ["--teacher", arguments.teacher, "--out", str(out), "--no-self-check"]
        command += ["--device", arguments.device]
        if arguments.label_atoms is not None:
            command += ["--batch-atoms", str(arguments.label_atoms)]
        command += ["--devices", str(devices)]
        start = time.perf_counter()
        text = run(command)
        seconds = time.perf_counter() - start
        found = re.search(
            r"([\d.e+-]+) ms per atom,\s+([\d.e+-]+) when warm", " ".join(text.split())
        )
        if found is None:
            raise SystemExit(f"no verdict in what fastff label said, or too few batches:\n{text}")
        row = {"devices": devices, "wall_seconds": round(seconds, 1)}
        row |= compare_labels(out, arguments.out / f"labels-{arguments.devices[0]}.h5")
        row["atoms_per_frame"] = row.pop("n_atoms") / row["n_frames"]
        for name, value in (("with_cold_batches", found[1]), ("frames_per_second", found[2])):
            row[name] = 1e3 / (float(value) * row["atoms_per_frame"])
        add_efficiency([*rows, row], "frames_per_second")
        rows.note(row)


def rattle_structures(arguments: argparse.Namespace) -> Path:
    """The structures to label; as many rattled copies of those given as are asked for."""
    if not arguments.label_frames:
        return arguments.structures
    from ase.io import read, write

    given = read(arguments.structures, index=":")
    copies = []
    for k in range(arguments.label_frames):
        atoms = given[k % len(given)].copy()
        atoms.rattle(0.02, seed=k)
        copies.append(atoms)
    path = arguments.out / "rattled.traj"
    write(path, copies)
    return path


def compare_labels(path: Path, reference: Path) -> dict[str, Any]:
    """Frames of a label file, and how far they are from those of another."""
    import numpy as np

    from fastff.distill.content import hash_structure
    from fastff.distill.store import LabelStore

    def read(file: Path) -> dict[bytes, Any]:
        with LabelStore(file) as store:
            frames = store.read()
            found = {hash_structure(frame.atoms): frame.labels for frame in frames}
            assert len(found) == len(frames)
            return found

    mine, others = read(path), read(reference)
    common = mine.keys() & others.keys()
    return {
        "n_frames": len(mine),
        "n_atoms": sum(len(labels.forces) for labels in mine.values()),
        "n_missing": len(others.keys() - common),
        "n_extra": len(mine.keys() - common),
        "energy_difference": max(
            (abs(mine[k].energy - others[k].energy) for k in common), default=0.0
        ),
        "force_difference": max(
            (float(np.abs(mine[k].forces - others[k].forces).max()) for k in common), default=0.0
        ),
    }


def measure_dynamics(arguments: argparse.Namespace, rows: Rows) -> None:
    """Replicas that run at the same time, one on each device."""
    for devices in arguments.devices:
        for _ in range(arguments.repeats):
            once = partial(run_replicas, arguments, devices)
            row = last_long_enough(once, arguments.md_steps, arguments.window)
            add_efficiency([*rows, row], "total")
            rows.note(row)


def run_replicas(arguments: argparse.Namespace, devices: int, steps: int) -> dict[str, Any]:
    """Start one replica on each device and measure them."""
    with tempfile.TemporaryDirectory(dir=arguments.out) as place:
        folders = [Path(place) / str(k) for k in range(devices)]
        running = []
        for k, folder in enumerate(folders):
            command = [sys.executable, "-m", "fastff", "md", str(arguments.out / MODEL_NAME)]
            command += [str(arguments.structures), "--out", str(folder), "--seed", str(k)]
            command += ["--temperature", str(arguments.temperature), "--timestep", "1fs"]
            command += ["--steps", str(steps), "--device", arguments.device]
            command += ["--repeat", *(str(n) for n in arguments.md_repeat)]
            environment = {**os.environ}
            if arguments.device != "cpu":
                environment["CUDA_VISIBLE_DEVICES"] = str(k)
            running.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
        try:
            texts = [process.communicate()[0].decode() for process in running]
        except TimeoutError:
            for process in running:
                process.kill()
                process.wait()
            raise
        for process, text in zip(running, texts, strict=True):
            if process.returncode != 0:
                raise SystemExit(f"fastff md ended with code {process.returncode}:\n{text[-2000:]}")
        records = [json.loads((folder / "run.json").read_text()) for folder in folders]
        ends = [(folder / "run.json").stat().st_mtime for folder in folders]
    rates = [record["steps_of_this_process"] / record["seconds"] for record in records]
    begins = [end - record["seconds"] for end, record in zip(ends, records, strict=True)]
    return {
        "devices": devices,
        "n_steps": steps,
        "steps_per_second": rates,
        "total": sum(rates),
        "window_seconds": min(record["seconds"] for record in records),
        "overlap": max(0.0, min(ends) - max(begins)) / max(record["seconds"] for record in records),
    }


def print_summary(part: str, rows: Sequence[dict[str, Any]]) -> None:
    """Efficiency of each kind of row, with the range of its repeats."""
    groups: dict[tuple[str, int], list[float | None]] = {}
    for row in rows:
        key = row.get("scaling", ""), row["devices"]
        groups.setdefault(key, []).append(row["efficiency"])
    for (kind, devices), found in groups.items():
        shares = [share for share in found if share is not None]
        text = "-"
        if shares:
            text = f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})"
        print(f"{part} {kind}: {devices} devices, {len(found)} times, efficiency {text}")


def run(command: list[str]) -> str:
    """Output of a program that must succeed; where time runs out, all its processes end with it."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[2:5])} failed:\n{text[-4000:]}")
    return text


PARTS = {"train": measure_training, "label": measure_labelling, "md": measure_dynamics}


def describe_devices() -> list[str]:
    """Names of the GPUs."""
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def main() -> None:
    from fastff.report.provenance import collect_provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="numbers of devices")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--limit", type=float, help="seconds in all")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--scalings", nargs="+", default=["weak", "strong"])
    parser.add_argument("--repeats", type=int, default=1, help="of every measurement")
    parser.add_argument("--window", type=float, default=0.0, help="least seconds of a measurement")
    parser.add_argument("--labels", type=Path, help="to train on")
    parser.add_argument("--student", default="m2")
    parser.add_argument("--optimizer", default="soap", choices=["soap", "adamw"])
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-atoms", type=int, default=8192, help="of each device")
    parser.add_argument("--repeat", type=int, default=1, help="training frames this many times")
    parser.add_argument("--teacher", default="sevennet:7net-0")
    parser.add_argument("--structures", type=Path, help="to label; the last one for dynamics")
    parser.add_argument("--label-frames", type=int, default=0, help="rattled copies to label")
    parser.add_argument(
        "--label-atoms", type=int, help="of each call of the teacher, if not what it takes"
    )
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--md-steps", type=int, default=10000)
    parser.add_argument("--md-repeat", type=int, nargs=3, default=(1, 1, 1))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "multi-gpu")
    parser.add_argument("--record", type=Path, help="store the record here")
    arguments = parser.parse_args()
    end = time.monotonic() + (arguments.limit or float("inf"))
    if arguments.limit:
        set_limit(arguments.limit)
    arguments.devices = list(dict.fromkeys(arguments.devices))
    arguments.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"what": "training, labelling and dynamics on several devices"}
    record["gpus"] = describe_devices() if arguments.device != "cpu" else []
    commit = os.environ.get("FASTFF_COMMIT")
    provenance = collect_provenance().model_dump(mode="json")
    record["provenance"] = {**provenance, **({"commit": commit} if commit else {})}
    target = arguments.record or arguments.out / "record.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    record["failed"] = failed

    def write() -> None:
        target.write_text(json.dumps(record, indent=1) + "\n")

    for part in arguments.only:
        record[part] = rows = Rows(write)
        try:
            PARTS[part](arguments, rows)
        except (Exception, SystemExit) as error:  # the other parts are worth having
            failed[part] = f"{type(error).__name__}: {error}"
            print(f"{part} failed: {failed[part]}", flush=True)
            if time.monotonic() >= end:  # what was interrupted may have told of it as another error
                break
        finally:
            write()
    for part in PARTS:
        print_summary(part, record.get(part, []))


if __name__ == "__main__":
    main()
