"""Distillation from a user's structures, or labels, to a model file and a verdict.

Here: the order of the steps, what is recorded, and the ladder of student sizes. Not here: any step itself, or how it
is shown on a terminal (:mod:`fastff.cli.train`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase
import ase.io
import numpy as np
import torch

import fastff
from fastff.checkpoint import load_model, save_model
from fastff.distill.content import hash_structure
from fastff.distill.formats import read_labels
from fastff.distill.module import measure_frames
from fastff.distill.planning import plan_sampling
from fastff.distill.request import CONFIG_NAME, DistillRequest, check_folder, write_config
from fastff.distill.sampling import (
    SamplingProgress,
    SamplingReport,
    measure_teacher,
    run_sampling,
)
from fastff.distill.split import Split, split_frames
from fastff.distill.store import LabelStore
from fastff.distill.train import TrainProgress, TrainResult, TrainSettings, train_student
from fastff.distill.validate import validate_frames
from fastff.errors import DataError
from fastff.models.uncertainty import UncertaintyParameters, fit_uncertainty
from fastff.neighbors import atoms_to_graph
from fastff.predict import predict
from fastff.report.metrics import Accuracy
from fastff.report.provenance import collect_provenance
from fastff.structures import read_structures
from fastff.teachers import load_teacher

if TYPE_CHECKING:
    from fastff.distill.formats import LabelledSet
    from fastff.distill.plan import SamplingPlan
    from fastff.models import Student
    from fastff.teachers import Teacher

MODEL_NAME = "model.safetensors"
LABELS_NAME = "labels.h5"
LEAST_FOR_UNCERTAINTY, MOST_FOR_UNCERTAINTY = 4, 300
"""Frames that the uncertainty is fitted on."""


@dataclass
class Listener:
    """What a front end wants to be told; every hook may be left out."""

    on_plan: Callable[[SamplingPlan, Teacher], None] = lambda plan, teacher: None
    on_sampling: Callable[[SamplingProgress], None] = lambda progress: None
    on_sampled: Callable[[SamplingReport], None] = lambda report: None
    on_split: Callable[[Split, Any], None] = lambda split, report: None
    on_student: Callable[[str, TrainSettings], None] = lambda name, settings: None
    on_trained: Callable[[str, TrainResult, Accuracy], None] = lambda name, result, accuracy: None
    on_step: Callable[[TrainProgress], None] = lambda progress: None


@dataclass(frozen=True)
class DistillOutcome:
    """What came out of a distillation.

    Attributes
    ----------
    model : Path
        The model file.
    architecture : str
    validation, test : Accuracy
        On frames of other trajectories than the training frames; ``test`` was never looked at while training.
    test_kind : str
        What the test frames are, in words.
    target : float
        Accuracy that was asked for.
    teacher : str or None
        Name of the teacher, if the labels say.
    seconds : dict
        Wall time of each part.
    attempts : dict
        Validation accuracy of every student tried.
    """

    model: Path
    architecture: str
    validation: Accuracy
    test: Accuracy
    test_kind: str
    target: float
    teacher: str | None
    seconds: dict[str, float]
    attempts: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the test accuracy meets the target."""
        return self.test.overall >= self.target


def distill(
    request: DistillRequest,
    out: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    listener: Listener | None = None,
) -> DistillOutcome:
    """Carry out a request.

    Parameters
    ----------
    request : DistillRequest
    out : Path
        New folder for labels, checkpoints, configuration and the model.
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``, for teacher and student.
    resume : bool
        Continue an interrupted run of the same request.
    listener : Listener, optional

    Raises
    ------
    fastff.errors.FastFFError
        With one line that says what to do.
    """
    listener = listener or Listener()
    check_folder(out, request, resume=resume)
    seeds = read_structures(request.structures) if request.structures else []
    teacher = None
    if request.structures:
        assert request.teacher is not None
        teacher = load_teacher(
            request.teacher,
            device=device,
            weights=request.teacher_weights,
            options=request.teacher_options,
        )
    start = time.perf_counter()
    existing = read_labels(request.labels) if request.labels else None
    out.mkdir(parents=True, exist_ok=True)
    write_config(out / CONFIG_NAME, request, describe_software())
    if teacher is not None:
        labelled = label_structures(request, teacher, seeds, out, listener)
    else:
        assert existing is not None
        labelled = existing
        seeds = choose_examples([frame.atoms for frame in labelled.frames])
    seconds = {"labels": time.perf_counter() - start}
    split = remove_overlap(
        split_frames(
            labelled.frames, held_out=labelled.held_out, blocks=labelled.blocks, seed=request.seed
        )
    )
    listener.on_split(split, validate_frames(split.train))
    name, result, validation, attempts = climb_ladder(request, split, out, device, resume, listener)
    seconds["training"] = result.seconds
    student = result.student
    student.uncertainty = calibrate_uncertainty(student, split)
    test = measure_frames(split.test, predict(student, [f.atoms for f in split.test]))
    header = build_header(
        request, labelled, seeds, split, result, {"validation": validation, "test": test}
    )
    save_model(out / MODEL_NAME, student, header)
    load_model(out / MODEL_NAME)
    return DistillOutcome(
        model=out / MODEL_NAME,
        architecture=name,
        validation=validation,
        test=test,
        test_kind=split.test_kind,
        target=request.target,
        teacher=labelled.teacher.get("name"),
        seconds=seconds,
        attempts=attempts,
    )


def remove_overlap(split: Split) -> Split:
    """Take frames out of validation and test whose structure an earlier part already holds.

    Raises
    ------
    DataError
        If nothing is left to validate or test on.
    """
    seen = {hash_structure(frame.atoms) for frame in split.train}
    parts: dict[str, Any] = {}
    for name, frames in (("validation", split.validation), ("test", split.test)):
        parts[name] = [frame for frame in frames if hash_structure(frame.atoms) not in seen]
        seen |= {hash_structure(frame.atoms) for frame in frames}
        if frames and not parts[name]:
            raise DataError(
                f"all {len(frames)} {name} frames repeat structures of other parts of the split; "
                "remove duplicates from the labels"
            )
    return replace(split, **parts)


def label_structures(
    request: DistillRequest,
    teacher: Teacher,
    seeds: Sequence[ase.Atoms],
    out: Path,
    listener: Listener,
) -> LabelledSet:
    """Plan, announce and carry out the sampling; labels of an earlier, interrupted run count."""
    plan = plan_sampling(
        seeds,
        teacher.info,
        temperatures=request.temperatures,
        budget=request.budget,
        cutoff=request.cutoff,
        max_atoms=request.max_atoms,
        seed=request.seed,
    )
    with LabelStore(out / LABELS_NAME, "a", teacher=teacher.info) as store:
        listener.on_plan(measure_teacher(teacher, plan, store), teacher)
        report = run_sampling(teacher, plan, store, on_progress=listener.on_sampling)
        listener.on_sampled(report)
    return read_labels(out / LABELS_NAME)


def climb_ladder(
    request: DistillRequest,
    split: Split,
    out: Path,
    device: str,
    resume: bool,
    listener: Listener,
) -> tuple[str, TrainResult, Accuracy, dict[str, float]]:
    """Train students from the smallest up until one meets the target on the validation frames."""
    attempts: dict[str, float] = {}
    best: tuple[str, TrainResult, Accuracy] | None = None
    structures = [frame.atoms for frame in split.validation]
    for name in request.ladder:
        settings = choose_settings(request, name, split, device)
        listener.on_student(name, settings)
        result = train_student(
            split.train,
            split.validation,
            settings,
            out / "training" / name,
            resume=resume,
            on_step=listener.on_step,
        )
        accuracy = measure_frames(split.validation, predict(result.student, structures))
        listener.on_trained(name, result, accuracy)
        attempts[name] = accuracy.overall
        if best is None or accuracy.overall > best[2].overall:
            best = name, result, accuracy
        if accuracy.overall >= request.target:
            break
    assert best is not None
    return *best, attempts


def choose_settings(
    request: DistillRequest, architecture: str, split: Split, device: str
) -> TrainSettings:
    """Training settings of one student.

    Where the request leaves the number of steps open, it is thirty passes over the atoms on a CPU and ten times as
    many on a GPU, and at least 2,000 steps.
    """
    n_atoms = sum(len(frame.atoms) for frame in split.train)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    batch_atoms = request.batch_atoms or (2048 if on_gpu else 512)
    passes = (300 if on_gpu else 30) * n_atoms // batch_atoms
    return TrainSettings(
        architecture=architecture,
        cutoff=request.cutoff,
        n_steps=request.n_steps or int(np.clip(passes, 2000, 50000)),
        batch_atoms=batch_atoms,
        learning_rate=request.learning_rate,
        patience=request.patience,
        stop_at=request.stop_at,
        seed=request.seed,
        device=device,
    )


def calibrate_uncertainty(student: Student, split: Split) -> UncertaintyParameters | None:
    """Uncertainty from evenly spaced training frames and the validation frames; None where there are too few."""
    if min(len(split.train), len(split.validation)) < LEAST_FOR_UNCERTAINTY:
        return None
    chosen = np.linspace(0, len(split.train) - 1, min(len(split.train), MOST_FOR_UNCERTAINTY))
    known = [split.train[k] for k in chosen.round().astype(int)]
    training, validation = (
        [atoms_to_graph(frame.atoms, student.cutoff) for frame in frames]
        for frames in (known, split.validation)
    )
    energies = [frame.labels.energy for frame in split.validation]
    return fit_uncertainty(student, training, validation, energies)


def choose_examples(structures: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """The first structure of every composition, at most eight."""
    examples: dict[str, ase.Atoms] = {}
    for atoms in structures:
        examples.setdefault(atoms.get_chemical_formula(), atoms)
    return list(examples.values())[:8]


def build_header(
    request: DistillRequest,
    labelled: LabelledSet,
    seeds: Sequence[ase.Atoms],
    split: Split,
    result: TrainResult,
    accuracy: dict[str, Accuracy],
) -> dict[str, Any]:
    """What the model file records of its making."""
    text = io.StringIO()
    ase.io.write(text, [strip_results(atoms) for atoms in seeds], format="extxyz")
    temperatures = [f.temperature for f in split.train if np.isfinite(f.temperature)]
    limits = request.temperatures if request.structures else None
    if limits is None and temperatures:
        limits = (min(temperatures), max(temperatures))
    software = describe_software()
    machine = software["provenance"]
    header = {
        "fastff_version": fastff.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "teacher": labelled.teacher,
        "elements": list(result.student.elements),
        "cutoff": result.student.cutoff,
        "temperature": list(limits) if limits else None,
        "structures": text.getvalue(),
        "accuracy": {name: value.to_dict() for name, value in accuracy.items()},
        "training": {
            "request": request.model_dump(mode="json"),
            "n_train": len(split.train),
            "n_validation": len(split.validation),
            "n_test": len(split.test),
            "test_kind": split.test_kind,
            "n_steps": result.n_steps,
            "seconds": round(result.seconds, 1),
            "machine": machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores",
            "stopped": result.stopped,
            "learning_curve": result.learning_curve,
            "frame_hashes": [
                hash_structure(f.atoms).hex() for f in (*split.train, *split.validation)
            ],
        },
        **software,
    }
    return {key: replace_undefined(value) for key, value in header.items()}


def replace_undefined(value: Any) -> Any:
    """The same nested record with None for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: replace_undefined(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_undefined(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def strip_results(atoms: ase.Atoms) -> ase.Atoms:
    """Only what defines a structure: species, positions, cell, periodicity."""
    return ase.Atoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc
    )


def describe_software() -> dict[str, Any]:
    """Machine, versions and kernel back ends of this process."""
    from fastff import kernels

    return {
        "provenance": collect_provenance().model_dump(mode="json"),
        "kernels": [
            {"op": row.op, "backend": row.backend, "reason": row.reason}
            for row in kernels.explain()
        ],
    }
