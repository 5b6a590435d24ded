"""Model files: safetensors with a JSON header, written atomically, checked on reading.

Here: saving and loading students. Not here: training checkpoints (Lightning's own), label files, downloads, names
of shipped students (:mod:`fastff.zoo`).

The header travels in the safetensors metadata under the key ``fastff`` and holds the format version, the student's
configuration, a SHA-256 over all tensors and one over the header itself, and whatever the trainer recorded: teacher
with licence and citation, elements, temperature range, seed structures, accuracy record. No pickle is read anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from fastff.errors import ModelFileError, UsageError
from fastff.models import Student, StudentConfig, build_student
from fastff.models.uncertainty import UncertaintyParameters
from fastff.zoo import find_shipped, resolve_model

FORMAT_VERSION = 3
"""Version of the header and tensor layout written by this fastff; 2 added the tensors of the uncertainty, 3 the
configuration's ``input_limit``, without which a student is unbounded."""

_KEY = "fastff"

_UNCERTAINTY = "uncertainty."
"""Prefix of the tensors of :class:`~fastff.models.uncertainty.UncertaintyParameters`."""


def save_model(path: str | Path, student: Student, header: Mapping[str, Any]) -> None:
    """Write a student and its header to ``path``, replacing the file in one step.

    Parameters
    ----------
    path : path
        A file left by an earlier save stays intact until the new one is complete on disk.
    student : Student
    header : mapping
        JSON-able record; the keys ``format``, ``config``, ``sha256`` and ``header_sha256`` are set here.

    Raises
    ------
    ModelFileError
        If the file cannot be written.
    """
    path = Path(path)
    extra = student.uncertainty.to_tensors() if student.uncertainty is not None else {}
    whole = {**student.state_dict(), **{_UNCERTAINTY + k: v for k, v in extra.items()}}
    tensors = {k: v.detach().cpu().contiguous() for k, v in whole.items()}
    record = {
        **header,
        "format": FORMAT_VERSION,
        "config": student.config.to_dict(),
        "sha256": hash_tensors(tensors),
    }
    record = json.loads(json.dumps(record, allow_nan=False))
    record["header_sha256"] = hash_header(record)
    payload = serialize(tensors, metadata={_KEY: json.dumps(record)})
    write_atomically(path, payload)


def write_atomically(path: Path, payload: bytes) -> None:
    """Write ``payload`` beside ``path``, flush it to disk, and rename it into place.

    Raises
    ------
    ModelFileError
        If the folder is missing, read-only or full; the temporary file is removed.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as handle:
            temporary = handle.name
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise ModelFileError(
            f"cannot write {path}: {error.strerror or error}; choose another place or free space"
        ) from error


def hash_header(header: Mapping[str, Any]) -> str:
    """SHA-256 over a header without its own ``header_sha256``; a changed cut-off is as wrong as a changed weight."""
    record = {key: value for key, value in header.items() if key != "header_sha256"}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_header(path: str | Path) -> dict[str, Any]:
    """Read only the header of a model file, or of a shipped student by its name.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, of another kind, or written by a newer fastff.
    """
    return _read_header(resolve_model(path))


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileError(f"no model file at {path}; check the path")
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{path} is not a readable fastff model ({_guess_kind(path)}): {error}; "
            "use a model.safetensors written by 'fastff train'"
        ) from error
    if _KEY not in metadata:
        raise ModelFileError(
            f"{path} is a safetensors file without a fastff header; it holds some other model"
        )
    try:
        header: dict[str, Any] = json.loads(metadata[_KEY])
        version = int(header["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{path} has a damaged header ({error}); restore the file") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format {version}, this fastff reads up to {FORMAT_VERSION}; "
            f"upgrade fastff (written by version {header.get('fastff_version', 'unknown')})"
        )
    if hash_header(header) != header.get("header_sha256"):
        raise ModelFileError(
            f"{path} is damaged: its header does not match the stored SHA-256; restore the file"
        )
    return header


def _guess_kind(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            head = handle.read(16)
    except OSError as error:
        return f"it cannot be opened: {error.strerror}"
    if not head:
        return "the file is empty"
    if head.startswith(b"PK"):
        return "it looks like a PyTorch zip archive, which is never unpickled here"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "it looks like a pickle, which is never loaded here"
    if head.lstrip().lower().startswith((b"<!do", b"<htm")):
        return "it looks like an HTML page, perhaps a failed download"
    return "damaged, truncated or another format"


def load_model(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Student:
    """Load a student, ready to predict.

    Parameters
    ----------
    path : path or str
        A model file, or the name of a shipped student (``fastff models`` lists them).
    device, dtype
        Where the student will live and the dtype of its parameters.

    Returns
    -------
    Student
        In evaluation mode, without parameter gradients; its ``header`` is the file's.

    Raises
    ------
    ModelFileError
        If the file cannot be used; the message says what failed.
    """
    path = resolve_model(path)
    header, tensors = _read(path)
    extra = {k: tensors.pop(k) for k in list(tensors) if k.startswith(_UNCERTAINTY)}
    try:
        student = build_student(StudentConfig(**header["config"]))
        name = next(name for name, _ in student.named_parameters())
        student.to(dtype=tensors[name].dtype).load_state_dict(tensors, strict=True)
        if extra:
            named = {k.removeprefix(_UNCERTAINTY): v for k, v in extra.items()}
            student.uncertainty = UncertaintyParameters.from_tensors(named).to(device)
    except (KeyError, TypeError, ValueError, RuntimeError, UsageError) as error:
        told = " ".join(str(error).split())  # torch says in the second line which tensor
        raise ModelFileError(
            f"{path} does not fit its own configuration: {textwrap.shorten(told, 300, placeholder=' ...')}"
        ) from error
    student.header = header
    return student.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Header and tensors of a file, both checked against their hashes."""
    header = _read_header(path)
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged: {error}; restore the file") from error
    if hash_tensors(tensors) != header.get("sha256"):
        raise ModelFileError(f"{path} is damaged: its tensors do not match their stored SHA-256")
    return header, tensors


def stamp_header(path: str | Path, changes: Mapping[str, Any]) -> None:
    """Add entries to the header of a model file, or replace them, leaving every tensor bit as it is.

    Parameters
    ----------
    path : path
        Replaced in one step when the new file is complete on disk.
    changes : mapping
        JSON-able; must not touch ``format``, ``config``, ``sha256`` or ``header_sha256``.

    Raises
    ------
    ModelFileError
        If the file cannot be used or written.
    UsageError
        If it is the name of a shipped student: those stay as they are.
    ValueError
        If ``changes`` touches what belongs to the file itself.
    """
    if find_shipped(path) is not None:
        raise UsageError(f"{path} is a shipped model, which is never changed; copy its file first")
    path = Path(path)
    own = {"format", "config", "sha256", "header_sha256"} & set(changes)
    if own:
        raise ValueError(f"{', '.join(sorted(own))} of a header belong to the file; leave them out")
    header, tensors = _read(path)
    record = json.loads(json.dumps({**header, **changes}, allow_nan=False))
    record["header_sha256"] = hash_header(record)
    write_atomically(path, serialize(tensors, metadata={_KEY: json.dumps(record)}))
