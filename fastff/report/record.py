"""Bench records as files: writing, reading, and recomputing every derived figure of one.

Here: :func:`read_record`, :func:`write_record`, :func:`seal_record` and :func:`verify_record`, which refuses a record
that contradicts itself or its model file; :func:`write_rejected`, which keeps such a one. Not here: what is checked
(:mod:`fastff.report.consistency`, :mod:`fastff.report.limits`,
:mod:`fastff.report.conclusions`, :mod:`fastff.report.attribution`), the schema (:mod:`fastff.report.schema`), rendering
(:mod:`fastff.report.html`, :mod:`fastff.report.markdown`).
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from fastff.errors import DataError
from fastff.report.attribution import verify_attribution, verify_stamps
from fastff.report.conclusions import verify_conclusions
from fastff.report.consistency import verify_comparison
from fastff.report.limits import verify_limits
from fastff.report.schema import ADDED, READABLE, BenchRecord, compute_digest

REJECTED = "bench.rejected.json"
"""Name of the file for what was measured but does not hold together."""


class RejectedRecordError(DataError):
    """What was measured does not hold together; ``record`` is all of it, without a digest."""

    def __init__(self, message: str, record: BenchRecord) -> None:
        super().__init__(message)
        self.record = record


def seal_record(record: BenchRecord) -> BenchRecord:
    """Return the record with its digest filled in, after verifying everything else.

    Raises
    ------
    RejectedRecordError
        It does not hold together.
    """
    try:
        sealed = record.model_copy(update={"digest": compute_digest(record)})
        verify_record(sealed)
    except ValueError as error:  # a DataError, or a number that JSON does not have
        raise RejectedRecordError(str(error), record) from error
    return sealed


def write_rejected(error: RejectedRecordError, folder: Path) -> Path:
    """Write what was measured to ``bench.rejected.json``, which no other command takes for a record."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REJECTED
    content = error.record.model_dump(mode="json") | {"rejected": str(error)}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def write_record(record: BenchRecord, path: Path) -> None:
    """Write the record as indented JSON."""
    path.write_text(json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")


def read_record(path: str | Path, *, model_sha256: str | None = None) -> BenchRecord:
    """Read and verify a record.

    Parameters
    ----------
    path : path
        A ``bench.json``.
    model_sha256 : str, optional
        SHA-256 of the tensors of the model that the record is to be shown for.

    Raises
    ------
    DataError
        Not such a file, another schema, edited after it was written, contradictory, or about another model.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a bench record: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in READABLE:
        raise DataError(
            f"{path} has schema {version!r}, this fastff reads {' and '.join(map(repr, READABLE))}: run 'fastff bench' "
            "again."
        )
    try:
        record = BenchRecord.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise DataError(f"{path} is not a valid bench record: {place}: {first['msg']}") from error
    try:
        verify_record(record, model_sha256=model_sha256)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return record


def verify_record(record: BenchRecord, *, model_sha256: str | None = None) -> None:
    """Recompute every derived figure of a record from the data beside it.

    Raises
    ------
    DataError
        A figure does not follow from its data (wrong unit, edited), timings are attached to the wrong side (teacher and
        student swapped), or the record is about another model than the one given (stale).
    """
    if model_sha256 is not None and record.model.sha256 != model_sha256:
        raise DataError(
            f"the record is stale: it is about tensors {record.model.sha256[:12]}, the model file now holds "
            f"{model_sha256[:12]}. Run 'fastff bench' again."
        )
    if record.schema_version == READABLE[0] and any(getattr(record, name) for name in ADDED):
        raise DataError(f"a record of schema {READABLE[0]!r} cannot hold {', '.join(ADDED)}.")
    if record.digest != compute_digest(record):
        raise DataError(
            "the record was changed after it was written: its digest does not match its content."
        )
    for comparison in record.comparisons:
        verify_comparison(comparison)
    verify_attribution(record)
    verify_limits(record)
    verify_conclusions(record)
    verify_stamps(record)
