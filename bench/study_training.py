"""One job of ``study.py``: a student trained on part of the trajectories, measured on others, and stored.

Here: what is held out, training, measuring, timing of a step. Not here: which job runs when and for how many steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.study_variants import Variant

PROBE_FRAMES = 512


HELD_OUT = {3: 2, 6: 1}
"""Of every eight trajectories, the fourth is for testing, the seventh for validation."""


def split_trajectories(frames: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and test frames; see the module docstring."""
    places = {t: k for k, t in enumerate(sorted({frame.trajectory for frame in frames}))}
    if len(places) < 8:
        raise SystemExit(
            f"{len(places)} trajectories; at least eight are needed to hold whole ones out"
        )
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for frame in frames:
        place = places[frame.trajectory] % 8
        parts[HELD_OUT.get(place, 0)].append(frame)
    return parts


def thin_trajectories(frames: list[Any], share: float) -> list[Any]:
    """Frames of a share of their trajectories, spread evenly over the order of these."""
    trajectories = sorted({frame.trajectory for frame in frames})
    kept = {t for k, t in enumerate(trajectories) if int((k + 1) * share) > int(k * share)}
    return [frame for frame in frames if frame.trajectory in kept]


class Clock:
    """Notes when steps ended."""

    def __init__(self, n_steps: int) -> None:
        self.every = max(1, n_steps // 100)
        self.marks: list[tuple[int, float]] = []

    def __call__(self, progress: Any) -> None:
        if progress.step % self.every == 0:
            self.marks.append((progress.step, time.perf_counter()))

    def measure(self, n_frames: int) -> dict[str, float | None]:
        """Median time of a step, which leaves validations out, after the first tenth, and frames per second from it."""
        marks = self.marks[len(self.marks) // 10 :]
        times = [
            (t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in itertools.pairwise(marks) if s1 > s0
        ]
        if not times:
            return {"ms_per_step": None, "frames_per_second": None}
        seconds = statistics.median(times)
        return {"ms_per_step": 1e3 * seconds, "frames_per_second": n_frames / seconds}


def configure(variant: Variant, arguments: argparse.Namespace) -> Any:
    """Training settings of a variant, whose sizes get a name of their own in this process."""
    import torch

    torch.set_num_threads(1)
    from fastff.distill import module, train
    from fastff.distill.losses import LossWeights
    from fastff.distill.soap import Soap
    from fastff.distill.train import TrainSettings
    from fastff.models import ARCHITECTURES

    # A named architecture of this process alone: what configure_student and build_student look up.
    ARCHITECTURES[variant.name] = {**ARCHITECTURES[variant.architecture], **variant.sizes}
    module.Soap = partial(Soap, **variant.soap)  # type: ignore[misc,assignment]
    train.LossWeights = partial(LossWeights, **variant.weights)  # type: ignore[misc,assignment]
    if arguments.eager:
        module.CapturedLosses = lambda losses, *_, **__: lambda *fields: losses(*fields)  # type: ignore[assignment,misc]
    return TrainSettings(
        architecture=variant.name,
        cutoff=variant.cutoff,
        n_steps=arguments.steps,
        batch_atoms=round(variant.batch * arguments.batch_atoms),
        learning_rate=variant.rate * arguments.learning_rate,
        optimizer=variant.optimizer,  # type: ignore[arg-type]  # one of two names
        n_validations=10,
        patience=99,
        seed=arguments.seed,
        device=arguments.device,
    )


def run_job(name: str, path: Path, variant: Variant, arguments: argparse.Namespace) -> None:
    """Train, measure, and store the model and the record."""
    import torch

    settings = configure(variant, arguments)
    from fastff import kernels
    from fastff.checkpoint import save_model, write_atomically
    from fastff.distill.data import choose_batch_size
    from fastff.distill.formats import read_labels
    from fastff.distill.ladder import calibrate_uncertainty, measure_student, pick_torch_device
    from fastff.distill.split import Split
    from fastff.distill.train import train_student
    from fastff.report.provenance import collect_provenance

    labelled = read_labels(path)
    training, *held_out = split_trajectories(labelled.frames)
    split = Split(thin_trajectories(training, variant.share), *held_out)
    start, clock = time.perf_counter(), Clock(settings.n_steps)
    work = arguments.out / "work" / name
    result = train_student(
        split.train, split.validation, settings, work, resume=work.exists(), on_step=clock
    )
    seconds = time.perf_counter() - start
    student = result.student
    student.config = replace(
        student.config, architecture=variant.architecture, n_hops=variant.sizes.get("n_hops")
    )
    student.to(pick_torch_device(arguments.device))
    with kernels.use("torch"):
        accuracy = {
            part: measure_student(student, frames)
            for part, frames in (("validation", split.validation), ("test", split.test))
        }
        student.uncertainty = calibrate_uncertainty(student, split)
    header = describe_model(path, variant, settings, labelled, split, result, accuracy)
    provenance = {**collect_provenance().model_dump(mode="json"), **read_commit()}
    (arguments.out / "models").mkdir(exist_ok=True)
    save_model(arguments.out / "models" / f"{name}.safetensors", student, header)
    record = {
        "job": name,
        "system": path.stem,
        "teacher": labelled.teacher,
        "variant": asdict(variant),
        "settings": settings.to_dict(),
        "config": student.config.to_dict(),
        "n_frames": {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "test_trajectories": sorted({frame.trajectory for frame in split.test}),
        "test_temperatures": sorted({frame.temperature for frame in split.test}),
        "n_parameters": sum(p.numel() for p in student.parameters()),
        "n_steps": result.n_steps,
        "seconds": round(result.seconds, 1),
        "seconds_this_process": round(seconds, 1),
        "captured": torch.cuda.is_available() and not arguments.eager,
        **clock.measure(choose_batch_size(split.train, settings.batch_atoms)),
        "accuracy": {part: found.to_dict() for part, found in accuracy.items()},
        "learning_curve": result.learning_curve,
        "provenance": provenance,
    }
    target = arguments.out / "jobs" / f"{name}.json"
    write_atomically(target, (json.dumps(clean(record), indent=1) + "\n").encode())


def describe_model(
    path: Path,
    variant: Variant,
    settings: Any,
    labelled: Any,
    split: Any,
    result: Any,
    accuracy: dict[str, Any],
) -> dict[str, Any]:
    """Header of the model file, as ``fastff train --labels`` would write it."""
    from fastff.distill.header import build_header
    from fastff.distill.request import DistillRequest
    from fastff.distill.run import choose_examples

    request = DistillRequest(
        labels=Path(path.name),
        student=variant.architecture,  # type: ignore[arg-type]
        cutoff=settings.cutoff,
        n_steps=settings.n_steps,
        learning_rate=settings.learning_rate,
        batch_atoms=settings.batch_atoms,
        patience=settings.patience,
        seed=settings.seed,
    )
    seeds = choose_examples([frame.atoms for frame in labelled.frames])
    header = build_header(request, labelled, seeds, split, result, accuracy)
    return {**header, "provenance": {**header["provenance"], **read_commit()}}


def run_probe(path: Path, variant: Variant, arguments: argparse.Namespace) -> None:
    """Time training steps of one variant on a part of the frames, and store what was found."""
    import tempfile

    import torch

    settings = replace(
        configure(variant, arguments), n_steps=arguments.probe_steps, n_validations=1
    )
    from fastff.checkpoint import write_atomically
    from fastff.distill.data import choose_batch_size
    from fastff.distill.formats import read_labels
    from fastff.distill.train import train_student

    training, validation, _ = split_trajectories(read_labels(path).frames)
    chosen = training[:: max(1, len(training) // PROBE_FRAMES)][:PROBE_FRAMES]
    clock = Clock(settings.n_steps)
    with tempfile.TemporaryDirectory() as folder:
        train_student(chosen, validation[:8], settings, Path(folder) / "probe", on_step=clock)
    on_gpu = arguments.device != "cpu" and torch.cuda.is_available()
    record = {
        "variant": variant.name,
        "system": path.stem,
        "batch_atoms": settings.batch_atoms,
        **clock.measure(choose_batch_size(chosen, settings.batch_atoms)),
        "captured": on_gpu and not arguments.eager,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
    }
    target = arguments.out / "probes" / f"{variant.name}.json"
    write_atomically(target, (json.dumps(record) + "\n").encode())


def read_commit() -> dict[str, str]:
    """The commit given in the environment, where there is no git."""
    commit = os.environ.get("FASTFF_COMMIT")
    return {"commit": commit} if commit else {}


def clean(value: Any) -> Any:
    """The same record with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): clean(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [clean(entry) for entry in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value
