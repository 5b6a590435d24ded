"""Training one student on labelled frames, resumable.

Here: settings, callbacks and checkpoints around :class:`~fastff.distill.module.DistillationModule`. Not here: where
labels come from (:mod:`fastff.distill.sampling`), model files (:mod:`fastff.checkpoint`), the command line.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from fastff.distill.data import (
    LabelStatistics,
    build_loader,
    choose_batch_size,
    collate_sample,
    measure_labels,
)
from fastff.distill.module import DistillationModule
from fastff.errors import DataError
from fastff.graph import edge_vectors
from fastff.labels import Frame
from fastff.models import Student, build_student, configure_student
from fastff.models.dense import lay_out_edges

logger = logging.getLogger(__name__)


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
    ema_decay : float
        Decay of the averaged weights, which are the ones validated and kept.
    n_validations : int
        Validations over the run, about.
    patience : int
        Stop after this many validations without a better accuracy.
    stop_at : float or None
        Stop as soon as the validation accuracy reaches this.
    seed : int
    device : str
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    """

    architecture: str = "m1"
    cutoff: float = 5.0
    n_steps: int = 5000
    batch_atoms: int = 512
    learning_rate: float = 5e-3
    ema_decay: float = 0.995
    n_validations: int = 20
    patience: int = 10
    stop_at: float | None = None
    seed: int = 0
    device: str = "auto"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


@dataclass(frozen=True)
class TrainResult:
    """A trained student and how it got there.

    ``learning_curve`` is a list of ``{step, accuracy, force_accuracy, force_mae}``; ``seconds`` counts this
    process only.
    """

    student: Student
    statistics: LabelStatistics
    learning_curve: list[dict[str, float]]
    n_steps: int
    seconds: float
    stopped: str


@dataclass(frozen=True)
class TrainProgress:
    """State of a running training: steps done and planned, and the newest validation accuracy if there is one."""

    step: int
    n_steps: int
    accuracy: float | None


class StepReporter(Callback):
    """Passes the progress of a training on to whoever shows it."""

    def __init__(self, on_step: Callable[[TrainProgress], None]) -> None:
        self._on_step = on_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Report after every step."""
        assert isinstance(pl_module, DistillationModule)
        curve = pl_module.learning_curve
        accuracy = curve[-1]["accuracy"] if curve else None
        self._on_step(TrainProgress(trainer.global_step, pl_module.n_steps, accuracy))


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
    resume: bool = False,
    on_step: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train a student from labels to its best validated weights.

    Parameters
    ----------
    training, validation : sequences of Frame
        From different trajectories.
    settings : TrainSettings
    out : Path
        Folder for checkpoints and logs.
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
        If a set is empty or holds nothing to learn.
    FloatingPointError
        If the loss stops being finite.
    """
    if not validation:
        raise DataError("no validation frames; give more trajectories or frames")
    start = time.perf_counter()
    student, statistics = prepare_student(training, settings)
    batch_size = choose_batch_size(training, settings.batch_atoms)
    steps_per_epoch = len(training) // batch_size
    n_epochs = math.ceil(settings.n_steps / steps_per_epoch)
    module = DistillationModule(
        student,
        statistics,
        list(validation),
        n_steps=n_epochs * steps_per_epoch,
        learning_rate=settings.learning_rate,
    )
    checkpoints = out / "checkpoints"
    keeper = ModelCheckpoint(
        dirpath=checkpoints,
        filename="{step:07d}",
        monitor="accuracy",
        mode="max",
        save_top_k=2,
        save_last=True,
        save_on_train_epoch_end=False,
    )
    stopper = EarlyStopping(
        monitor="accuracy",
        mode="max",
        patience=settings.patience,
        min_delta=1e-4,
        stopping_threshold=settings.stop_at,
        check_on_train_epoch_end=False,
    )
    averager = WeightAveraging(
        use_buffers=False, multi_avg_fn=partial(average_weights, settings.ema_decay)
    )
    callbacks: list[Callback] = [averager, keeper, stopper]
    if on_step is not None:
        callbacks.append(StepReporter(on_step))
    accelerator, devices = place_trainer(settings.device)
    with quiet_lightning(), pass_signals_on():
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            max_epochs=n_epochs,
            check_val_every_n_epoch=max(1, n_epochs // settings.n_validations),
            callbacks=callbacks,
            logger=CSVLogger(out, name="", version="logs"),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=min(20, steps_per_epoch),
        )
        trainer.fit(
            module,
            build_loader(training, student, batch_size, seed=settings.seed),
            build_loader(validation[:1], student, 1),
            ckpt_path=find_checkpoint(checkpoints) if resume else None,
            weights_only=True,
        )
    _restore_best(module, keeper)
    return TrainResult(
        student=student.cpu().eval().requires_grad_(False),
        statistics=statistics,
        learning_curve=module.learning_curve,
        n_steps=trainer.global_step,
        seconds=time.perf_counter() - start,
        stopped=_describe_stop(trainer, stopper, settings),
    )


@torch.no_grad()
def average_weights(
    decay: float, averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int
) -> None:
    """Exponential moving average in place, with a decay that grows from 0.1 so that early weights fade."""
    n = int(n_averaged)
    torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))


def _restore_best(module: DistillationModule, keeper: ModelCheckpoint) -> None:
    """Load the averaged weights of the best validation, which may be earlier than the last."""
    if keeper.best_model_path:
        best = torch.load(keeper.best_model_path, map_location=module.device, weights_only=True)
        module.load_state_dict(best["state_dict"])


def _describe_stop(trainer: pl.Trainer, stopper: EarlyStopping, settings: TrainSettings) -> str:
    reason = stopper.stopping_reason
    if reason is EarlyStoppingReason.STOPPING_THRESHOLD:
        return f"reached {settings.stop_at:.1%} at step {trainer.global_step}"
    if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED:
        return f"no better accuracy in {settings.patience} validations"
    return "schedule complete"


def find_checkpoint(folder: Path) -> str | None:
    """Newest readable training checkpoint in a folder; damaged ones are skipped with a logged warning."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            logger.warning("skipping damaged checkpoint %s (%s)", path, error)
            continue
        return str(path)
    return None


def place_trainer(device: str) -> tuple[str, int | list[int]]:
    """Lightning's accelerator and devices for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; auto is a GPU or the CPU."""
    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device
    if not chosen.startswith("cuda"):
        return "cpu", 1
    return "gpu", [torch.device(chosen).index or 0]


@contextmanager
def pass_signals_on() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM leave a training as such: Lightning makes silent exits of them, the latter with code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def quiet_lightning() -> Any:
    """Silence Lightning's start-up notes and the warnings that do not apply here."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [entry.level for entry in loggers]
    for entry in loggers:
        entry.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            warnings.filterwarnings("ignore", message=".*stream.*AccumulateGrad.*")
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
            warnings.filterwarnings("ignore", message=".*epoch parameter in `scheduler.step.*")
            yield
    finally:
        for entry, level in zip(loggers, levels, strict=True):
            entry.setLevel(level)
