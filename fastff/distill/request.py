"""What a user asks of a distillation, and the record of it beside the result.

Here: the strict request, its file, and the rule for continuing an earlier run. Not here: carrying it out
(:mod:`fastff.distill.run`), command-line parsing.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fastff.checkpoint import write_atomically
from fastff.distill.roundplan import parse_budget
from fastff.errors import DataError, UsageError
from fastff.models import LADDER
from fastff.teachers.weights import hash_file

CONFIG_NAME = "config.yaml"
ROUNDS_NAME = "rounds"
BUDGET_NAME = "budget.json"
"""What a budget of minutes came to, in the folder of the rounds."""
"""File of the resolved request in the output folder."""


class DistillRequest(BaseModel):
    """Everything that decides the outcome of ``fastff train``; unknown keys are rejected.

    Exactly one of ``structures`` (with ``teacher``) and ``labels`` is given.

    Attributes
    ----------
    teacher : str or None
        Teacher specification, such as ``sevennet:7net-0``.
    teacher_weights : Path or None
        Weight file of the teacher.
    teacher_options : dict
        Options of the teacher, such as ``modal`` of SevenNet; ``trust`` vouches for a weight file that needs pickle.
    structures, labels : Path or None
        Seed structures, or labels that exist already.
    label_keys : dict
        What the file of ``labels`` calls ``energy``, ``forces``, ``stress`` or ``virial``, where not as usual.
    temperatures : (float, float)
        Range of interest, K.
    budget : int, str or None
        Teacher evaluations, or wall time such as ``25min``; the default of the planner if None.
    rounds : int or None
        Most on-policy rounds; chosen by the budget if None, 0 for none. Labels that exist already allow none.
    hessian_vectors : int
        Frames that get a Hessian-vector target, of two evaluations of the budget each; a tenth of them test frames.
    hessian_weight : float
        Weight of these targets in the loss, also where given labels hold them; 0 leaves them out.
    student : str
        ``"auto"`` tries ``m1``, ``m2``, ``m2-l``, ``m3-l`` in turn until ``target`` is met; ``painn`` is the baseline.
    target : float
        Wanted accuracy, min(A_F, A_E, A_S), on the validation frames.
    cutoff : float
        Å.
    n_steps : int or None
        Optimiser steps; chosen by the amount of data if None.
    learning_rate : float or None
        Of the optimiser; by student and batch (:func:`~fastff.distill.train.choose_rate`) if None.
    batch_atoms : int
    patience : int
        Validations without a better score (:mod:`fastff.distill.score`) after which training stops, in the second half
        of the schedule.
    stop_at : float or None
        Validation accuracy at which training stops at once.
    seed : int
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str | None = None
    teacher_weights: Path | None = None
    teacher_options: dict[str, str | bool | int | float] = Field(default_factory=dict)
    structures: Path | None = None
    labels: Path | None = None
    label_keys: dict[Literal["energy", "forces", "stress", "virial"], str] = Field(
        default_factory=dict
    )
    temperatures: tuple[float, float] = (300.0, 900.0)
    budget: int | str | None = None
    rounds: int | None = Field(default=None, ge=0, le=64)
    hessian_vectors: int = Field(default=0, ge=0)
    hessian_weight: float = Field(default=0.1, ge=0.0, le=100.0)
    max_atoms: int = Field(default=120, ge=1)
    student: Literal["auto", "m1", "m2", "m2-l", "m3-l", "painn"] = "auto"
    target: float = Field(default=0.95, gt=0.0, lt=1.0)
    cutoff: float = Field(default=5.0, gt=1.0, le=12.0)
    n_steps: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0, le=1.0)
    batch_atoms: int | None = Field(default=None, ge=1)
    patience: int = Field(default=10, ge=1)
    stop_at: float | None = Field(default=None, gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_source(self) -> DistillRequest:
        if (self.structures is None) == (self.labels is None):
            raise ValueError("give either structures (with a teacher) or labels, not both")
        if self.structures is not None and self.teacher is None:
            raise ValueError("structures need a teacher to label them")
        if self.labels is not None and self.teacher is not None:
            raise ValueError(
                f"labels need no teacher; leave out {self.teacher!r}, or give structures to label"
            )
        if self.teacher is None and (self.teacher_weights or self.teacher_options):
            raise ValueError("weights or options of a teacher need the teacher's name")
        if self.label_keys and self.labels is None:
            raise ValueError(
                "names of labels need a file of labels; give --labels, or leave --label-key out"
            )
        if self.labels is not None and self.rounds:
            raise ValueError(
                f"{self.rounds} rounds need a teacher and structures; leave --rounds out with labels"
            )
        if self.labels is not None and self.hessian_vectors:
            raise ValueError(
                f"{self.hessian_vectors} Hessian-vector targets need a teacher and structures; `fastff label "
                "--hessian-vectors` stores them with labels"
            )
        evaluations = parse_budget(self.budget).evaluations
        if evaluations is not None and 4 * self.hessian_vectors > evaluations:
            raise ValueError(
                f"{self.hessian_vectors} Hessian-vector targets take {2 * self.hessian_vectors} of {evaluations} "
                "evaluations, more than half; lower --hessian-vectors or raise --budget"
            )
        low, high = self.temperatures
        if not 0.0 < low <= high:
            raise ValueError(f"temperatures {low:g}-{high:g} K must be positive and ascending")
        return self

    @property
    def ladder(self) -> tuple[str, ...]:
        """Architectures to try, smallest first."""
        return LADDER if self.student == "auto" else (self.student,)


def build_request(**values: Any) -> DistillRequest:
    """Validate a request.

    Raises
    ------
    UsageError
        One line naming the first bad value.
    """
    try:
        return DistillRequest(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(where, DistillRequest.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown setting {where!r}{hint}") from error
        message = str(first["msg"]).removeprefix("Value error, ")
        given = f" (got {first['input']!r})" if where else ""
        raise UsageError(f"{where + ': ' if where else ''}{message}{given}") from error


def hash_inputs(request: DistillRequest) -> dict[str, str]:
    """SHA-256 of every file that the request names, by setting."""
    hashes = {}
    for name in ("structures", "labels", "teacher_weights"):
        path = getattr(request, name)
        if path is not None:
            try:
                hashes[name] = hash_file(path)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return hashes


def write_config(path: Path, request: DistillRequest, context: dict[str, Any]) -> None:
    """Write the request, resolved, with hashes of its files, versions and back ends, as YAML."""
    record = {"request": request.model_dump(mode="json"), "inputs": hash_inputs(request), **context}
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    write_atomically(path, text.encode())


def read_config(path: Path) -> DistillRequest:
    """Read the request of an earlier run.

    Raises
    ------
    DataError
        If the file is missing or not a request.
    """
    return build_request(**read_values(path))


CONFIG_KEYS = ("request", "inputs", "provenance", "kernels")
"""Top level of a configuration; a recipe needs only the first."""


def read_values(path: Path) -> dict[str, Any]:
    """Read the mapping under ``request`` of a recipe or of an earlier run's configuration, not yet validated.

    Raises
    ------
    DataError
        If the file is missing or holds no such mapping.
    """
    return dict(_load_config(path)["request"])


def _load_config(path: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a fastff configuration ({reason})") from error
    if not isinstance(stored, dict) or not isinstance(stored.get("request"), dict):
        raise DataError(
            f"{path} is not a fastff configuration: it has no section 'request:' with settings indented under it"
        )
    for key in stored:
        if key not in CONFIG_KEYS:
            raise DataError(
                f"{path}: unknown key {key!r} at the top level; settings belong under 'request'"
            )
    return dict(stored)


def check_folder(out: Path, request: DistillRequest, *, resume: bool) -> None:
    """Make sure ``out`` may be written: new or empty, or an earlier run of the same request to be resumed.

    Raises
    ------
    UsageError
        If the folder holds anything else, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    existing = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UsageError(f"{out} cannot be written; choose another --out")
    if resume:
        require_begun(out)
    occupied = out.is_dir() and any(not _is_scrap(path) for path in out.iterdir())
    if occupied and not resume:
        raise UsageError(
            f"output folder {out} exists already; choose another --out, or continue it with --resume"
        )
    if resume:
        _check_same(out, request)


def require_begun(out: Path) -> None:
    """Raise UsageError where no run has begun in a folder."""
    if not (out / CONFIG_NAME).exists():
        raise UsageError(
            f"nothing to resume in {out}: there is no {CONFIG_NAME}, which every run writes before it labels; check "
            "--out, or leave --resume out to begin there"
        )


def _is_scrap(path: Path) -> bool:
    """Whether this is all that a run which was killed before it wrote its configuration may have left."""
    if path.name == ROUNDS_NAME and path.is_dir():
        return all(entry.name == BUDGET_NAME or _is_scrap(entry) for entry in path.iterdir())
    return path.name.startswith(".") and path.suffix == ".tmp"


def _check_same(out: Path, request: DistillRequest) -> None:
    stored = read_config(out / CONFIG_NAME)
    for key in DistillRequest.model_fields:
        if getattr(stored, key) != getattr(request, key):
            raise UsageError(
                f"cannot resume {out}: {key} was {getattr(stored, key)!r} and is now "
                f"{getattr(request, key)!r}; resume with the same options or start a new folder"
            )
    earlier = _load_config(out / CONFIG_NAME).get("inputs") or {}
    for name, digest in hash_inputs(request).items():
        if earlier.get(name, digest) != digest:
            raise UsageError(
                f"cannot resume {out}: the content of {getattr(request, name)} has changed since; restore it or "
                "start a new folder"
            )
