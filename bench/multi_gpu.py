"""Training, labelling and dynamics on several devices: rates, scaling, and that the results are the same.

Run from the root of the repository, for example

    python bench/multi_gpu.py --labels labels.h5 --teacher sevennet:7net-0 --structures frames.xyz --devices 1 2 4

Four parts, any of which ``--only`` picks:

- ``train``: a student on the frames of ``--labels``, with the batch per device held constant (``weak``), and with the
  batch of all devices together held constant (``strong``), whose students must be equally accurate. Rates are frames
  per second between the first tenth of the steps and the last step, validations included.
- ``label``: ``fastff label`` on ``--structures``, or on ``--label-frames`` rattled copies of them, one process for each
  device; frames per second once every process is warm (without its start and first two batches), and the largest
  difference from the labels of the smallest number of devices.
- ``shards``: the same labels from ``--shards`` processes of ``fastff label --shard`` at once on one device, merged by
  ``fastff merge``; frames per second of all together once they are warm.
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
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose names are not for import

from bench.multi_gpu_commands import (  # noqa: E402
    MODEL_NAME,
    measure_dynamics,
    measure_labelling,
    measure_shards,
)
from bench.multi_gpu_rows import Rows, add_efficiency, last_long_enough, print_summary  # noqa: E402


def set_limit(seconds: float) -> None:
    """Raise TimeoutError after so many seconds, wherever this process is then."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"{seconds:g} seconds were over")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


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


PARTS = {
    "train": measure_training,
    "label": measure_labelling,
    "shards": measure_shards,
    "md": measure_dynamics,
}


def describe_devices() -> list[str]:
    """Names of the GPUs."""
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def main() -> None:
    from fastff.report.provenance import collect_provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2], help="numbers of devices")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2], help="numbers of shards")
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
