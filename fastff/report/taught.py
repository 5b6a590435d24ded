"""The teacher that a model file names, loaded as it was when it made the labels.

Here: :func:`load_recorded`, :func:`read_settings`. Not here: loading by name (:mod:`fastff.teachers.registry`), which
entries of a record make a teacher (:mod:`fastff.distill.content`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastff.distill.content import describe_difference
from fastff.errors import UsageError
from fastff.teachers import load_teacher
from fastff.teachers.registry import PICKLED
from fastff.teachers.weights import hash_file

if TYPE_CHECKING:
    from fastff.teachers import Teacher

SETTINGS: dict[str, tuple[str, ...]] = {
    "sevennet": ("modal",),
    "orb": ("precision", "charge", "spin"),
    "fennol": ("precision", "charge"),
}
"""Options that are taken from a model file, of each family. Arguments of functions that it names (``ase:``) are not:
whoever made the file could have any function called with them."""
NAMED_WEIGHTS = ("sevennet", "chgnet", "orb")
"""Families whose published weights are recorded by the variant's name, others by their path."""


def load_recorded(
    header: Mapping[str, Any],
    *,
    device: str,
    spec: str | None = None,
    weights: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Teacher, str]:
    """Load the teacher that a model file names, or another that the user asks for.

    Parameters
    ----------
    header : mapping
        Of the model file.
    device : str
    spec : str, optional
        Another teacher; the settings of the recorded one do not apply to it.
    weights : Path, optional
        Weight file in place of the recorded one.
    options : mapping, optional
        Options beside, or in place of, those that the labels were made with.

    Returns
    -------
    (Teacher, str)
        The teacher, and how it differs from the recorded one in name, settings or weights; empty where it does not,
        or where the file does not say.

    Raises
    ------
    UsageError
        The model file names no teacher, or what its name loads is not the teacher that made the labels and the user
        has chosen nothing.
    """
    recorded = header.get("teacher") or {}
    own = recorded.get("spec") or recorded.get("name")
    name = str(spec or own or "")
    if not name:
        raise UsageError("the model file does not name its teacher; add --teacher NAME")
    chosen = dict(options or {})
    asked = spec is not None or weights is not None or bool(chosen)
    if name == own:
        chosen = {**read_settings(header), **chosen}
        if name.lower().startswith("fennol:"):
            name = find_fennol(header) or name if weights is None else "fennol"
        else:
            weights = weights or find_weights(recorded)
    teacher = load_teacher(name, device=device, weights=weights, options=chosen)
    difference = describe_difference(
        recorded, teacher.info.to_dict(), ("name", "settings", "weights_sha256", "weights")
    )
    if difference and not asked:
        raise UsageError(
            f"teacher {name} is not as it was when the student's labels were made: {difference}; give "
            f"--teacher-option or --teacher-weights, or --teacher {name} to compare with it all the same"
        )
    return teacher, difference


def read_settings(header: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a model file says its teacher was run with, as :func:`load_teacher` takes them.

    Records of earlier versions do not hold them; where such a student was trained from structures, its request does.
    """
    record = header.get("teacher") or {}
    known = SETTINGS.get(str(record.get("name", "")).partition(":")[0].lower(), ())
    if "settings" not in record:
        request = (header.get("training") or {}).get("request") or {}
        given = request.get("teacher_options") or {}
        return {key: given[key] for key in known if key in given}
    options: dict[str, Any] = {}
    for part in str(record["settings"]).split(", "):
        key, _, value = part.partition("=")
        if key in known:
            options[key] = int(value) if value.lstrip("+-").isdigit() else value
    return options


def find_weights(record: Mapping[str, Any]) -> Path | None:
    """The weight file that a record names by its path, or None where its weights are the published ones.

    Raises
    ------
    UsageError
        The file is not there or has changed, or it needs pickle: then the user has to name it.
    """
    family, _, variant = str(record.get("name", "")).partition(":")
    text = record.get("weights")
    if family.lower() not in NAMED_WEIGHTS or not text or text == variant:
        return None
    path, digest = Path(str(text)), record.get("weights_sha256")
    pickled = family.lower() in PICKLED
    if not pickled and path.is_file() and hash_file(path) == digest:
        return path
    trust = " and --trust-teacher-file REASON" if pickled else ""
    raise UsageError(
        f"the student was distilled from weights of its own, {path} (SHA-256 {digest or 'unknown'}); add "
        f"--teacher-weights FILE{trust}"
    )


def find_fennol(header: Mapping[str, Any]) -> str | None:
    """Specification of FeNNol models with the folder that the student's training found them in, if it did."""
    request = (header.get("training") or {}).get("request") or {}
    family, _, files = str(request.get("teacher") or "").partition(":")
    files = files or str(request.get("teacher_weights") or "")
    return f"fennol:{files}" if family.lower() == "fennol" and files else None
