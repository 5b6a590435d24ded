"""Training one student on labelled frames, resumable.

Here: settings and checkpoints around :class:`~fastff.distill.module.DistillationModule`. Not here: callbacks, where
labels come from (:mod:`fastff.distill.sampling`), model files (:mod:`fastff.checkpoint`), the command line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import CSVLogger

from fastff.checkpoint import save_model, write_atomically
from fastff.distill.callbacks import (
    AveragedWeights,
    LatePatience,
    StepReporter,
    TrainProgress,
)
from fastff.distill.checkpoints import (
    LAST_NAME,
    REACHED_NAME,
    SafeCheckpointIO,
    find_checkpoint,
    read_best,
    remove_strays,
)
from fastff.distill.data import (
    LabelStatistics,
    build_loader,
    choose_batch_size,
    collate_sample,
    measure_labels,
)
from fastff.distill.launch import JOB_NAME, START_NAME, run_workers, write_job
from fastff.distill.losses import LossWeights
from fastff.distill.module import CHECK_INTERVAL, DistillationModule
from fastff.distill.quiet import quiet_lightning
from fastff.distill.ranks import check_group, place_trainer
from fastff.distill.signals import (
    TERMINATED,
    SharedSignals,
    choose_environment,
    explain_loss,
    pass_signals_on,
)
from fastff.errors import DataError
from fastff.graph import edge_vectors
from fastff.labels import Frame
from fastff.models import ARCHITECTURES, LADDER, Student, build_student, configure_student
from fastff.models.dense import lay_out_edges

CHECKPOINTS = "checkpoints"
FINISHED_NAME = "finished.json"
"""Record of a training that came to its end."""


@dataclass(frozen=True)
class TrainSettings:
    """How a student is trained.

    Attributes
    ----------
    architecture : str
    cutoff : float
        Å.
    n_steps : int
        Optimiser steps of the whole schedule.
    batch_atoms : int
        Atoms per batch, about.
    learning_rate : float
    optimizer : str
        ``"soap"``, or ``"adamw"`` to compare.
    hessian_weight : float
        Weight of Hessian-vector products in the loss, where labels have them; 0 leaves them out.
    conservative : bool
        Whether the teacher's forces derive from an energy; if not, only the curvature along each direction is learned.
    ema_decay : float
        Decay of the averaged weights, which are the ones validated and kept.
    n_validations : int
        Validations over the run, about.
    patience : int
        Stop after this many validations without a better score (:mod:`fastff.distill.score`), counted from the middle
        of the schedule on: before, a high learning rate hides what comes. The default lets nearly every schedule end.
    stop_at : float or None
        Stop as soon as the validation accuracy reaches this.
    seed : int
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    compiled : bool or None
        Whether losses are compiled on a GPU; if None, where that pays
        (:class:`~fastff.distill.captured.CapturedLosses`).
    devices, nodes : int
        Processes of each node, one for each device, that share every batch, and nodes.
    """

    architecture: str = "m1"
    cutoff: float = 5.0
    n_steps: int = 5000
    batch_atoms: int = 512
    learning_rate: float = 5e-3
    optimizer: Literal["soap", "adamw"] = "soap"
    hessian_weight: float = 0.1
    conservative: bool = True
    ema_decay: float = 0.995
    n_validations: int = 20
    patience: int = 10
    stop_at: float | None = None
    seed: int = 0
    device: str = "auto"
    compiled: bool | None = None
    devices: int = 1
    nodes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def choose_rate(architecture: str, batch_atoms: int) -> float:
    """Learning rate with SOAP: 0.005, less for students of three hops in batches of few atoms.

    With 64 channels and 1,024 atoms they lost ground at 0.002 and did not at 0.001; with 2,048 and 4,096 they did not
    at 0.005 (docs/distillation.md). Here it is 0.00125 per 1,024 atoms, at least 0.001 and at most 0.005. Fewer than
    1,024 atoms, as on a CPU, are not measured.
    """
    sizes = ARCHITECTURES.get(architecture, {})
    if architecture in LADDER and sizes["n_hops"] > 2:
        return min(max(1.25e-3 * batch_atoms / 1024, 1e-3), 5e-3)
    return 5e-3


@dataclass(frozen=True)
class TrainResult:
    """A trained student and how it got there.

    ``learning_curve`` is a list of ``{step, score, accuracy, force_accuracy, force_mae}``; ``seconds`` includes those
    of interrupted runs that this one continues, up to their last checkpoints.
    """

    student: Student
    statistics: LabelStatistics
    learning_curve: list[dict[str, float]]
    n_steps: int
    seconds: float
    stopped: str


def prepare_student(
    frames: Sequence[Frame], settings: TrainSettings
) -> tuple[Student, LabelStatistics]:
    """Build a student for the elements in ``frames``, with scales and composition energies set from them."""
    statistics = measure_labels(frames)
    torch.manual_seed(settings.seed)
    student = build_student(
        configure_student(settings.architecture, statistics.elements, cutoff=settings.cutoff)
    )
    student.composition_energies.copy_(torch.tensor(statistics.composition_energies))
    student.energy_scale.fill_(statistics.force_rms)
    sample = collate_sample(frames, settings.cutoff, n_atoms=2000)
    if sample.n_edges == 0:
        raise DataError(
            f"no two atoms are within {settings.cutoff} Å in the sampled training frames; "
            "raise --cutoff or check the units of the positions"
        )
    vectors = edge_vectors(sample).to(student.dtype)
    dense = lay_out_edges(vectors, sample.edge_index, sample.n_atoms, settings.cutoff)
    student.calibrate(dense.vectors, dense.senders, student.find_species(sample.numbers))
    return student, statistics


def train_student(
    training: Sequence[Frame],
    validation: Sequence[Frame],
    settings: TrainSettings,
    out: Path,
    *,
    start: Student | None = None,
    resume: bool = False,
    on_step: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train a student from labels to the weights with the best score on the validation frames.

    Parameters
    ----------
    training, validation : sequences of Frame
        From different trajectories.
    settings : TrainSettings
    out : Path
        Folder for checkpoints and logs.
    start : Student, optional
        Of the same architecture and elements: begin with its weights, scales and composition energies.
    resume : bool
        Continue from the newest readable checkpoint in ``out``, if there is one.
    on_step : callable, optional
        Told of the progress after every optimiser step.

    Returns
    -------
    TrainResult

    Raises
    ------
    DataError
        If a set is empty or holds nothing to learn, or the loss stops being finite.
    UsageError
        If devices and nodes do not fit what a launcher started.

    Notes
    -----
    With several devices, processes are started for the length of the training, unless torchrun or SLURM has started
    as many that all call this. They see the batches that one process would see, each its part.
    """
    if not validation:
        raise DataError("no validation frames; give more trajectories or frames")
    if settings.hessian_weight == 0.0:
        training = [replace(frame, hessian_vector=None) for frame in training]
    student, statistics = prepare_student(training, settings)
    if start is not None:
        student.load_state_dict(start.state_dict())
    joined = check_group(settings.devices, settings.nodes)
    n_ranks = settings.devices * settings.nodes
    batch_size = choose_batch_size(training, settings.batch_atoms, n_ranks)
    n_epochs = math.ceil(settings.n_steps / (len(training) // batch_size))
    module = DistillationModule(
        student,
        statistics,
        list(validation),
        n_steps=n_epochs * (len(training) // batch_size),
        learning_rate=settings.learning_rate,
        optimizer=settings.optimizer,
        weights=LossWeights(hessian=settings.hessian_weight),
        conservative=settings.conservative,
        compiled=settings.compiled,
    )
    if not (resume and (out / FINISHED_NAME).is_file()):
        if joined:
            _fit(module, training, batch_size, n_epochs, settings, out, resume, on_step)
        else:
            _fit_elsewhere(training, validation, settings, out, start, resume, on_step)
    record = _read_finished(out / FINISHED_NAME)
    best = read_best(out / CHECKPOINTS, record["best"])
    module.adopt(best)
    module.load_state_dict(best["state_dict"])
    return TrainResult(
        student=student.cpu().eval().requires_grad_(False),
        statistics=statistics,
        learning_curve=record["learning_curve"],
        n_steps=record["n_steps"],
        seconds=record["seconds"],
        stopped=record["stopped"],
    )


def _fit_elsewhere(
    training: Sequence[Frame],
    validation: Sequence[Frame],
    settings: TrainSettings,
    out: Path,
    start: Student | None,
    resume: bool,
    on_step: Callable[[TrainProgress], None] | None,
) -> None:
    """Train in processes of their own."""
    place_trainer(settings.device, settings.devices, settings.nodes)  # fails here if it must
    job, weights = out / JOB_NAME, out / START_NAME
    write_job(job, training, validation, {**settings.to_dict(), "resume": resume})
    weights.unlink(missing_ok=True)
    if start is not None:
        save_model(weights, start, {})

    def pass_on(message: dict[str, Any]) -> None:
        if on_step is not None:
            on_step(TrainProgress(**message))

    run_workers(out, settings.devices, pass_on)


def _fit(
    module: DistillationModule,
    training: Sequence[Frame],
    batch_size: int,
    n_epochs: int,
    settings: TrainSettings,
    out: Path,
    resume: bool,
    on_step: Callable[[TrainProgress], None] | None,
) -> None:
    """Train to the end of the schedule or an early stop, and leave a record of how it ended."""
    keeper = ModelCheckpoint(
        dirpath=out / CHECKPOINTS,
        filename="{step:07d}",
        monitor="score",
        mode="max",
        save_top_k=2,
        save_last=True,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    stopper = LatePatience(
        begin=module.n_steps // 2,
        stop_at=settings.stop_at,
        path=out / CHECKPOINTS / REACHED_NAME,
        patience=settings.patience,
    )
    signals = SharedSignals(CHECK_INTERVAL)
    callbacks: list[Callback] = [AveragedWeights(settings.ema_decay), keeper, stopper, signals]
    if on_step is not None:
        callbacks.append(StepReporter(on_step))
    with quiet_lightning(), explain_loss(), pass_signals_on():
        trainer = pl.Trainer(
            **place_trainer(settings.device, settings.devices, settings.nodes),
            use_distributed_sampler=False,
            max_epochs=n_epochs,
            check_val_every_n_epoch=max(1, n_epochs // settings.n_validations),
            callbacks=callbacks,
            default_root_dir=out,
            plugins=[SafeCheckpointIO(), *choose_environment()],
            logger=CSVLogger(out, name="", version="logs"),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=min(20, module.n_steps // n_epochs),
        )
        if trainer.is_global_zero:
            remove_strays(out / CHECKPOINTS)
        trainer.fit(
            module,
            build_loader(
                training,
                module.student,
                batch_size // trainer.world_size,
                seed=settings.seed,
                device=trainer.strategy.root_device,
                rank=trainer.global_rank,
                n_ranks=trainer.world_size,
            ),
            build_loader(module.validation_frames[:1], module.student, 1),
            ckpt_path=find_checkpoint(out / CHECKPOINTS) if resume else None,
            weights_only=True,
        )
    record = {
        "best": REACHED_NAME if stopper.reached else Path(keeper.best_model_path).name or LAST_NAME,
        "n_steps": trainer.global_step,
        "seconds": module.seconds,
        "stopped": _describe_stop(trainer, stopper, settings),
        "learning_curve": module.learning_curve,
    }
    if trainer.is_global_zero:
        write_atomically(out / FINISHED_NAME, json.dumps(record).encode())
        for name in (
            JOB_NAME,
            START_NAME,
        ):  # of this run or of one with another number of processes
            (out / name).unlink(missing_ok=True)
    with explain_loss():
        ended = signals.ask()  # all wait here until the record is written
    if ended:
        raise SystemExit(TERMINATED)


def _read_finished(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); remove it and use --resume again"
        ) from error


def _describe_stop(trainer: pl.Trainer, stopper: LatePatience, settings: TrainSettings) -> str:
    reason = stopper.stopping_reason
    if stopper.fall is not None:
        best, newest = stopper.fall
        return (
            f"fell apart, from {best:.1%} to {newest:.1%} by step {trainer.global_step}; lower the learning rate, "
            f"{settings.learning_rate:g}"
        )
    if stopper.reached:
        return f"reached {settings.stop_at:.1%} at step {trainer.global_step}"
    if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return f"no better score in {settings.patience} validations"
    return "schedule complete"
