"""Stamps: each measured part of a record is bound to the model it is about as soon as it is measured.

Here: :class:`Stamped`, the base of such parts, :func:`stamp_part` and :func:`check_stamp`. Not here: the digest of a
whole record (:mod:`fastff.report.schema`), or recomputing figures from their data (:mod:`fastff.report.consistency`).

A stamp is a checksum over the numbers of a part and the identity of the models they belong to. The digest is made when
the record is complete; whatever converts, exchanges or mixes up numbers before that leaves stamps that do not fit.
"""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from fastff.errors import DataError


class Stamped(BaseModel):
    """Base of the measured parts: immutable, unknown keys refused; ``stamp`` is None in records of old schemas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stamp: str | None = None


_Part = TypeVar("_Part", bound=Stamped)


def compute_stamp(part: Stamped) -> str:
    """SHA-256 over everything else in the part; fields that are None do not count."""
    content = part.model_dump(mode="json", exclude={"stamp"}, exclude_none=True)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def stamp_part(part: _Part) -> _Part:
    """The part with its stamp. To be called where it was measured, with its identity filled in."""
    return part.model_copy(update={"stamp": compute_stamp(part)})


def check_stamp(where: str, part: Stamped, *, required: bool) -> None:
    """Raise :class:`DataError` unless the stamp fits; without one only if it is ``required``."""
    if part.stamp is None and not required:
        return
    if part.stamp != compute_stamp(part):
        raise DataError(
            f"{where}: the numbers are not those that were measured with this model: teacher and student swapped, "
            "another unit, or edited after they were measured."
        )
