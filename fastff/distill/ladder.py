"""Training students from the smallest up.

Here: training settings chosen for the data, and :class:`Ladder`, which climbs to a larger student where the present one
is too small. Not here: training itself (:mod:`fastff.distill.train`), where data come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from fastff.distill.captured import COMPILED_STEPS
from fastff.distill.module import measure_frames
from fastff.distill.ranks import gather_from_ranks
from fastff.distill.request import DistillRequest
from fastff.distill.score import Score
from fastff.distill.split import PHYSICAL_SOURCES, Split
from fastff.distill.train import (
    TrainProgress,
    TrainResult,
    TrainSettings,
    choose_rate,
    train_student,
)
from fastff.inference import predict
from fastff.labels import Frame
from fastff.models import Student
from fastff.models.uncertainty import UncertaintyParameters, fit_uncertainty
from fastff.neighbors import atoms_to_graph
from fastff.report.metrics import Accuracy

LEAST_FOR_UNCERTAINTY, MOST_FOR_UNCERTAINTY = 4, 300
"""Frames that the uncertainty is fitted on."""
MOST_FOR_FIT = 200
"""Training frames on which it is measured how well a student fits."""
ROUND_STEPS, ROUND_RATE = 0.25, 0.5
"""Steps and learning rate of a training that continues from earlier weights, relative to one from scratch."""
MOST_REPEATS = 3
"""How often new frames are repeated so that they make up half of what is trained on."""


@dataclass(frozen=True)
class Trained:
    """A student with its accuracy and score on validation frames and its accuracy on training frames that look like
    simulations."""

    name: str
    result: TrainResult
    validation: Accuracy
    score: float
    fit: float

    @property
    def student(self) -> Student:
        """The student, on the CPU."""
        return self.result.student


@dataclass
class Ladder:
    """Trains the students of a request.

    Attributes
    ----------
    request : DistillRequest
    folder : Path
        Every training gets a folder in it.
    device : str
    resume : bool
    on_student, on_step, on_trained : callable
        What a front end wants to be told.
    devices, nodes : int
        Processes that train together, see :class:`~fastff.distill.train.TrainSettings`.
    conservative : bool
        Whether the teacher's forces derive from an energy.
    attempts : dict
        Latest validation accuracy of every student tried.
    seconds : float
        Time of all trainings so far, those of students that were not kept included.
    """

    request: DistillRequest
    folder: Path
    device: str
    resume: bool
    on_student: Callable[[str, TrainSettings], None]
    on_step: Callable[[TrainProgress], None]
    on_trained: Callable[[str, TrainResult, Accuracy], None]
    attempts: dict[str, float] = field(default_factory=dict)
    devices: int = 1
    nodes: int = 1
    conservative: bool = True
    seconds: float = 0.0

    def train(
        self,
        name: str,
        split: Split,
        label: str,
        *,
        start: Student | None = None,
        grow: bool = False,
    ) -> Trained:
        """Train one student, from scratch or from the weights of ``start``; ``label`` names its folder.

        ``grow``: data will still come, and no more steps are taken than these data are worth.
        """
        settings = replace(
            choose_settings(self.request, name, split, self.device, grow=grow),
            devices=self.devices,
            nodes=self.nodes,
            conservative=self.conservative,
        )
        if grow and self.devices * self.nodes == 1:  # this process will use the code again
            full = choose_settings(self.request, name, split, self.device).n_steps
            settings = replace(settings, compiled=full >= COMPILED_STEPS or None)
        if start is not None:
            settings = replace(
                settings,
                n_steps=max(1, round(ROUND_STEPS * settings.n_steps)),
                learning_rate=ROUND_RATE * settings.learning_rate,
            )
        self.on_student(name, settings)
        result = train_student(
            split.train,
            split.validation,
            settings,
            self.folder / label,
            start=start,
            resume=self.resume,
            on_step=self.on_step,
        )
        self.seconds += result.seconds
        moved = copy.deepcopy(result.student).to(pick_torch_device(self.device))
        accuracy, score = judge_student(moved, split.validation)
        self.on_trained(name, result, accuracy)
        self.attempts[name] = accuracy.overall
        fit = measure_student(moved, choose_fitted(split.train)).overall
        return Trained(name, result, accuracy, score, fit)

    def climb(
        self, split: Split, *, present: Trained | None = None, suffix: str = "", grow: bool = False
    ) -> Trained:
        """Train larger students until one is large enough; the best on the validation frames (:meth:`rank`).

        Parameters
        ----------
        split : Split
        present : Trained, optional
            What there is already; students up to its size are not trained.
        suffix : str
            Of the folders.
        grow : bool
            Data will still come: a student that meets the target on its training frames is large enough.
        """
        names = list(self.request.ladder)
        if present is not None:
            names = names[names.index(present.name) + 1 :]
        best = present
        for name in names:
            if best is not None and self._is_enough(best, grow):
                break
            trained = self.train(name, split, name + suffix, grow=grow)
            if best is None or self.rank(trained) > self.rank(best):
                best = trained
        assert best is not None
        return best

    def rank(self, trained: Trained) -> tuple[bool, float]:
        """Grows from worse to better students: whether the target is met on the validation frames, then the score."""
        return trained.validation.overall >= self.request.target, trained.score

    def _is_enough(self, trained: Trained, grow: bool) -> bool:
        target = self.request.target
        enough = trained.validation.overall >= target or (grow and trained.fit >= target)
        return bool(gather_from_ranks(enough)[0])  # what the first of several processes finds


def pick_torch_device(device: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def measure_student(student: Student, frames: Sequence[Frame]) -> Accuracy:
    """Accuracy of a student against labelled frames."""
    images = [frame.atoms for frame in frames]
    return measure_frames(list(frames), predict(student, images, charges="ignore"))


def judge_student(student: Student, frames: Sequence[Frame]) -> tuple[Accuracy, float]:
    """Accuracy on labelled frames, and the score by which students are compared (:mod:`fastff.distill.score`)."""
    predicted = predict(student, [frame.atoms for frame in frames], charges="ignore")
    return measure_frames(list(frames), predicted), Score(frames).measure(predicted)


def judge_again(trained: Trained, frames: Sequence[Frame], device: torch.device) -> Trained:
    """The same student with its accuracy and score on other validation frames."""
    accuracy, score = judge_student(copy.deepcopy(trained.student).to(device), frames)
    return replace(trained, validation=accuracy, score=score)


def choose_fitted(frames: Sequence[Frame]) -> list[Frame]:
    """Evenly spaced frames of those that look like simulations, or of all if there are none."""
    physical = [frame for frame in frames if frame.source in PHYSICAL_SOURCES] or list(frames)
    return choose_evenly(physical, MOST_FOR_FIT)


def choose_evenly(frames: Sequence[Frame], most: int) -> list[Frame]:
    """At most ``most`` frames, evenly spaced."""
    places = np.linspace(0, len(frames) - 1, min(len(frames), most))
    return [frames[k] for k in places.round().astype(int)]


def replay_frames(old: Sequence[Frame], new: Sequence[Frame]) -> list[Frame]:
    """Old frames and new ones, these repeated up to :data:`MOST_REPEATS` times to make up half where they are fewer."""
    if not new:
        return list(old)
    return [*old, *(list(new) * int(np.clip(round(len(old) / len(new)), 1, MOST_REPEATS)))]


def choose_settings(
    request: DistillRequest, architecture: str, split: Split, device: str, *, grow: bool = False
) -> TrainSettings:
    """Training settings of one student.

    Where the request leaves the number of steps open, it is thirty passes over the atoms on a CPU and ten times as
    many on a GPU, and at least 2,000 steps. Where data will still come (``grow``), half of that is the most it may be:
    on few frames a student gains nothing from more.
    """
    n_atoms = sum(len(frame.atoms) for frame in split.train)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    batch_atoms = request.batch_atoms or (2048 if on_gpu else 512)
    passes = (300 if on_gpu else 30) * n_atoms // batch_atoms
    n_steps = int(np.clip(passes, 2000, 50000))
    if grow:
        n_steps = max(2000, n_steps // 2)
    if request.n_steps is not None:
        n_steps = min(request.n_steps, n_steps) if grow else request.n_steps
    return TrainSettings(
        architecture=architecture,
        cutoff=request.cutoff,
        n_steps=n_steps,
        batch_atoms=batch_atoms,
        learning_rate=request.learning_rate or choose_rate(architecture, batch_atoms),
        hessian_weight=request.hessian_weight,
        patience=request.patience,
        stop_at=request.stop_at,
        seed=request.seed,
        device=device,
    )


def calibrate_uncertainty(student: Student, split: Split) -> UncertaintyParameters | None:
    """Uncertainty from evenly spaced training and validation frames; None where there are too few."""
    if min(len(split.train), len(split.validation)) < LEAST_FOR_UNCERTAINTY:
        return None
    known, held = (
        choose_evenly(frames, MOST_FOR_UNCERTAINTY) for frames in (split.train, split.validation)
    )
    training, validation = (
        [atoms_to_graph(frame.atoms, student.cutoff) for frame in frames]
        for frames in (known, held)
    )
    return fit_uncertainty(student, training, validation, [f.labels.energy for f in held])
