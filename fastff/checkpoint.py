"""Model files: safetensors with a JSON header, written atomically, checked on reading.

Here: saving and loading students. Not here: training checkpoints (Lightning's own), label files, downloads.

The header travels in the safetensors metadata under the key ``fastff`` and holds the format version, the student's
configuration, a SHA-256 over all tensors, and whatever the trainer recorded: teacher with licence and citation,
elements, temperature range, seed structures, accuracy record. No pickle is read anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from fastff.errors import DataError, ModelFileError, UsageError
from fastff.models import Student, StudentConfig, build_student

FORMAT_VERSION = 1
"""Version of the header and tensor layout written by this fastff."""

_KEY = "fastff"


def save_model(path: str | Path, student: Student, header: Mapping[str, Any]) -> None:
    """Write a student and its header to ``path``, replacing the file in one step.

    Parameters
    ----------
    path : path
        A file left by an earlier save stays intact until the new one is complete on disk.
    student : Student
    header : mapping
        JSON-able record; the keys ``format``, ``config`` and ``sha256`` are set here.

    Raises
    ------
    ModelFileError
        If the file cannot be written.
    """
    path = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
    record = {
        **header,
        "format": FORMAT_VERSION,
        "config": student.config.to_dict(),
        "sha256": hash_tensors(tensors),
    }
    payload = serialize(tensors, metadata={_KEY: json.dumps(record, allow_nan=False)})
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
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise ModelFileError(
            f"cannot write {path}: {error.strerror or error}; choose another place or free space"
        ) from error


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_header(path: str | Path) -> dict[str, Any]:
    """Read only the header of a model file.

    Raises
    ------
    ModelFileError
        If the file is missing, truncated, of another kind, or written by a newer fastff.
    """
    path = Path(path)
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
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} has a damaged header ({error}); restore the file") from error
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format {version}, this fastff reads up to {FORMAT_VERSION}; "
            f"upgrade fastff (written by version {header.get('fastff_version', 'unknown')})"
        )
    return header


def _guess_kind(path: Path) -> str:
    head = path.read_bytes()[:16]
    if not head:
        return "the file is empty"
    if head.startswith(b"PK"):
        return "it looks like a PyTorch zip archive, which is never unpickled here"
    if head.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05")):
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
    path : path
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
    path = Path(path)
    header = read_header(path)
    try:
        with safe_open(str(path), framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ModelFileError(f"{path} is damaged: {error}; restore the file") from error
    if hash_tensors(tensors) != header.get("sha256"):
        raise ModelFileError(f"{path} is damaged: its tensors do not match their stored SHA-256")
    try:
        student = build_student(StudentConfig(**header["config"]))
        student.load_state_dict(tensors, strict=True)
    except (KeyError, TypeError, RuntimeError, DataError, UsageError) as error:
        first = str(error).splitlines()[0]
        raise ModelFileError(f"{path} does not fit its own configuration: {first}") from error
    student.header = header
    return student.to(device=device, dtype=dtype).eval().requires_grad_(False)
