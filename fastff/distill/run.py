"""Distillation from a user's structures, or labels, to a model file and a verdict.

Here: the order of the steps, what is recorded, and the ladder of student sizes. Not here: any step itself, or how it
is shown on a terminal (:mod:`fastff.cli.train_view`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase

from fastff.checkpoint import load_model, save_model, write_atomically
from fastff.distill.content import hash_structure
from fastff.distill.formats import LabelKeys, LabelledSet, read_labels
from fastff.distill.groups import STUDENT, TEACHER, meets_target
from fastff.distill.header import build_header, describe_software
from fastff.distill.hessian import EVALUATIONS, add_to_split
from fastff.distill.labelling import CHECK, check_once, describe_caveats, is_first_process
from fastff.distill.ladder import Ladder, Trained, calibrate_uncertainty, measure_student
from fastff.distill.origins import note_origins
from fastff.distill.planning import plan_sampling
from fastff.distill.ranks import check_launched
from fastff.distill.request import (
    BUDGET_NAME,
    CONFIG_NAME,
    ROUNDS_NAME,
    DistillRequest,
    check_folder,
    write_config,
)
from fastff.distill.roundlog import GateRow
from fastff.distill.roundplan import (
    DEFAULT_BUDGET,
    RoundsPlan,
    estimate_evaluations,
    parse_budget,
    plan_rounds,
)
from fastff.distill.rounds import SOURCE, Rounds, RoundsListener, RoundsOutcome
from fastff.distill.sampling import (
    SamplingProgress,
    SamplingReport,
    measure_teacher,
    run_sampling,
)
from fastff.distill.split import Split, split_frames
from fastff.distill.store import LabelStore
from fastff.distill.train import TrainProgress, TrainResult, TrainSettings
from fastff.distill.validate import validate_frames
from fastff.errors import DataError, UsageError
from fastff.inference import predict
from fastff.report.hessian import HessianAccuracy, measure_hessian_vectors
from fastff.report.metrics import Accuracy
from fastff.structures import read_structures
from fastff.teachers import load_teacher

if TYPE_CHECKING:
    from fastff.distill.plan import SamplingPlan
    from fastff.teachers import Teacher

MODEL_NAME = "model.safetensors"
LABELS_NAME = "labels.h5"
MOST_CHECKED = 2
"""Cells, the smallest of different compositions, on which the teacher is measured first: 20 evaluations each."""
HESSIAN_NAME = "hessian.h5"
"""Frames of these labels with Hessian-vector targets."""


@dataclass
class Listener:
    """What a front end wants to be told; every hook may be left out."""

    on_plan: Callable[[SamplingPlan, Teacher], None] = lambda plan, teacher: None
    on_check: Callable[[dict[str, Any]], None] = lambda check: None
    on_rounds: Callable[[RoundsPlan], None] = lambda plan: None
    on_sampling: Callable[[SamplingProgress], None] = lambda progress: None
    on_sampled: Callable[[SamplingReport], None] = lambda report: None
    on_split: Callable[[Split, Any], None] = lambda split, report: None
    on_student: Callable[[str, TrainSettings], None] = lambda name, settings: None
    on_trained: Callable[[str, TrainResult, Accuracy], None] = lambda name, result, accuracy: None
    on_step: Callable[[TrainProgress], None] = lambda progress: None
    rounds: RoundsListener = field(default_factory=RoundsListener)


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
    rows : list of GateRow
        One for each gate of the on-policy rounds; empty without rounds.
    sources : dict of str to Accuracy
        On test frames of the first sampling and of the dynamics of the final student, if there were rounds.
    evaluations : int
        Of the teacher in this run and those it continues.
    hessian : HessianAccuracy or None
        Of Hessian-vector products on the test frames that have targets.
    caveats : tuple of str
        What speaks against taking the teacher's labels as they are.
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
    rows: list[GateRow] = field(default_factory=list)
    sources: dict[str, Accuracy] = field(default_factory=dict)
    evaluations: int = 0
    hessian: HessianAccuracy | None = None
    caveats: tuple[str, ...] = ()

    @property
    def weakest(self) -> tuple[str, Accuracy]:
        """What the target is compared with, in words: all test frames, or the worse group of the range of interest."""
        if not self.sources:
            return self.test_kind, self.test
        groups = [
            (f"{name} test frames", self.sources[name])
            for name in (TEACHER, STUDENT)
            if name in self.sources
        ]
        return min(groups, key=lambda group: group[1].overall)

    @property
    def stable(self) -> bool:
        """Whether no walker of the last gate blew up."""
        return not self.rows or not self.rows[-1].dynamics["gate_blown_up"]

    @property
    def passed(self) -> bool:
        """Whether the accuracy on test frames meets the target: on all of them, or in each group if there were rounds.

        With rounds the dynamics of the last gate must have been stable, too.
        """
        if self.rows:
            return self.stable and meets_target(self.sources, self.target)
        return self.test.overall >= self.target


def distill(
    request: DistillRequest,
    out: Path,
    *,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
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
    devices, nodes : int
        Processes of each node, and nodes, that train together; see :func:`~fastff.distill.train.train_student`.
    resume : bool
        Continue an interrupted run of the same request.
    listener : Listener, optional

    Raises
    ------
    fastff.errors.FastFFError
        With one line that says what to do.
    """
    listener = listener or Listener()
    check_launched(devices, nodes, labels_exist=request.labels is not None)
    if is_first_process():
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
    keys = LabelKeys(**request.label_keys)
    existing = read_labels(request.labels, keys) if request.labels else None
    split = split_first(existing, request.seed) if existing else None
    sampling: SamplingPlan | None = None
    rounds = RoundsPlan(None, 0)
    if teacher is not None:  # what cannot be planned or split leaves no folder behind
        rounds = resolve_rounds(request, teacher, seeds, out, resume=resume)
        sampling = plan_sampling(
            seeds,
            teacher.info,
            temperatures=request.temperatures,
            budget=rounds.first,
            cutoff=request.cutoff,
            max_atoms=request.max_atoms,
            seed=request.seed,
        )
    out.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        write_config(out / CONFIG_NAME, request, describe_software())
    if teacher is not None and sampling is not None:
        sampling, labelled = label_structures(sampling, rounds, teacher, out, listener)
    else:
        assert existing is not None
        labelled = existing
        seeds = choose_examples([frame.atoms for frame in labelled.frames])
    split = split or split_first(labelled, request.seed)
    if teacher is not None and request.hessian_vectors:
        split = add_to_split(teacher, split, request.hessian_vectors, out / HESSIAN_NAME)
    seconds = {"labels": time.perf_counter() - start}
    aside = [reason for _, reason in existing.quarantined] if existing else []
    listener.on_split(split, replace(validate_frames(labelled.frames), aside=tuple(aside)))
    ladder = Ladder(
        request, out / "training", device, resume,
        listener.on_student, listener.on_step, listener.on_trained,
        devices=devices, nodes=nodes, conservative=labelled.teacher.get("conservative", True),
    )  # fmt: skip
    trained = ladder.climb(split, grow=rounds.n_rounds > 0)
    seconds["training"] = ladder.seconds
    found: RoundsOutcome | None = None
    if teacher is not None and sampling is not None and rounds.n_rounds:
        started = time.perf_counter()
        with LabelStore(out / LABELS_NAME, "a", teacher=teacher.info) as store:
            runner = Rounds(
                teacher, sampling, rounds, store, ladder, out / ROUNDS_NAME, listener.rounds
            )
            found = runner.run(split, trained, sum(seconds.values()))
        trained, split = found.trained, found.split
        seconds["rounds"] = time.perf_counter() - started
    if teacher is not None and sampling is not None:
        with LabelStore(out / LABELS_NAME, "a", teacher=teacher.info) as store:
            note_origins(store, sampling, found.kinds if found else {})
    return finish(request, labelled, seeds, split, trained, found, out, seconds, ladder, sampling)


def finish(
    request: DistillRequest,
    labelled: LabelledSet,
    seeds: Sequence[ase.Atoms],
    split: Split,
    trained: Trained,
    found: RoundsOutcome | None,
    out: Path,
    seconds: dict[str, float],
    ladder: Ladder,
    sampling: SamplingPlan | None,
) -> DistillOutcome:
    """Calibrate, measure on test frames, and write the model file."""
    student = trained.student
    student.uncertainty = calibrate_uncertainty(student, split)
    test = measure_student(student, split.test)
    rows, sources = (found.rows, found.sources) if found else ([], {})
    validation = measure_student(student, split.validation) if found else trained.validation
    header = build_header(
        request, labelled, seeds, split, trained.result,
        {"validation": validation, "test": test, **sources}, [row.to_dict() for row in rows],
    )  # fmt: skip
    hessian = measure_hessian_vectors(split.test, partial(predict, student, charges="ignore"))
    header["hessian_vectors"] = hessian.to_dict() if hessian else None
    if is_first_process():
        save_model(out / MODEL_NAME, student, header)
        load_model(out / MODEL_NAME)
    sampled = sampling.n_evaluations if sampling else 0
    return DistillOutcome(
        model=out / MODEL_NAME,
        architecture=trained.name,
        validation=validation,
        test=test,
        test_kind=split.test_kind,
        target=request.target,
        teacher=labelled.teacher.get("name"),
        caveats=tuple(describe_caveats(labelled.teacher, labelled.record.get(CHECK))),
        seconds=seconds,
        attempts=ladder.attempts,
        rows=rows,
        sources=sources,
        evaluations=(rows[-1].evaluations if rows else sampled)
        + EVALUATIONS * request.hessian_vectors,
        hessian=hessian,
    )


def resolve_rounds(
    request: DistillRequest,
    teacher: Teacher,
    seeds: Sequence[ase.Atoms],
    out: Path,
    *,
    resume: bool,
) -> RoundsPlan:
    """Divide what Hessian-vector targets leave of the budget.

    Minutes become evaluations once, by measuring the teacher, and that is kept for later runs.
    """
    budget = parse_budget(request.budget)
    evaluations, path = budget.evaluations, out / ROUNDS_NAME / BUDGET_NAME
    if budget.minutes is not None:
        if resume and path.exists():
            evaluations = int(json.loads(path.read_text())["evaluations"])
        else:
            cells = plan_sampling(
                seeds, teacher.info, cutoff=request.cutoff, max_atoms=request.max_atoms
            ).cells
            structures = [cell.atoms for cell in cells]
            evaluations = estimate_evaluations(teacher, structures, budget.minutes)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({"evaluations": evaluations}).encode())
    if request.hessian_vectors:
        known = DEFAULT_BUDGET if evaluations is None else evaluations
        evaluations = known - EVALUATIONS * request.hessian_vectors
        if 2 * evaluations < known:
            raise UsageError(
                f"{request.hessian_vectors} Hessian-vector targets take more than half of about {known} evaluations; "
                "lower --hessian-vectors or raise --budget"
            )
    return plan_rounds(evaluations, request.rounds, budget.minutes)


def split_first(labelled: LabelledSet, seed: int) -> Split:
    """Divide frames by trajectory, without overlap."""
    return remove_overlap(
        split_frames(labelled.frames, held_out=labelled.held_out, blocks=labelled.blocks, seed=seed)
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
    plan: SamplingPlan, rounds: RoundsPlan, teacher: Teacher, out: Path, listener: Listener
) -> tuple[SamplingPlan, LabelledSet]:
    """Announce and carry out the first sampling; labels of an earlier, interrupted run count.

    Frames are returned in the order of the plan, however often the run was interrupted; those of rounds are left out.
    """
    with LabelStore(out / LABELS_NAME, "a", teacher=teacher.info) as store:
        cells = sorted((cell.atoms for cell in plan.cells), key=len)
        check_once(teacher, store, choose_examples(cells)[:MOST_CHECKED])
        plan = measure_teacher(teacher, plan, store)
        listener.on_plan(plan, teacher)
        if check := store.record.get(CHECK):
            listener.on_check(check)
        each = plan.seconds / plan.n_evaluations
        listener.on_rounds(replace(rounds, seconds_each=each))
        report = run_sampling(teacher, plan, store, on_progress=listener.on_sampling)
        listener.on_sampled(report)
    labelled = read_labels(out / LABELS_NAME)
    frames = [frame for frame in labelled.frames if frame.source != SOURCE]
    frames.sort(key=lambda frame: (frame.trajectory, frame.step))
    return plan, replace(labelled, frames=frames)


def choose_examples(structures: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """The first structure of every composition, at most eight."""
    examples: dict[str, ase.Atoms] = {}
    for atoms in structures:
        examples.setdefault(atoms.get_chemical_formula(), atoms)
    return list(examples.values())[:8]
