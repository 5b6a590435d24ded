"""Weight files of teachers: where they are, whether they may be unpickled, and what to say when they are missing.

Here: hashes, the rule for files that need pickle, the offline switch, the one-paragraph messages, and licences
from package metadata. Not here: downloading (no teacher of fastff downloads anything), or loading a model.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Collection
from pathlib import Path

from fastff.errors import MissingDependencyError, UsageError


@functools.lru_cache(maxsize=64)
def _hash_file(path: str, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; remembered while path, size and time of change stay the same."""
    status = path.stat()
    return _hash_file(str(path), status.st_size, status.st_mtime_ns)


def is_offline() -> bool:
    """Whether ``FASTFF_OFFLINE`` asks that nothing be fetched over a network."""
    return os.environ.get("FASTFF_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def find_package(name: str) -> Path | None:
    """Folder of an installed package, without importing it; None if it is not installed."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def read_version(distribution: str) -> str | None:
    """Installed version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_licence(distribution: str, default: str) -> str:
    """Licence that an installed distribution declares, else ``default``."""
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        return default
    for field in ("License-Expression", "License"):
        value = metadata[field] if field in metadata else None  # noqa: SIM401
        if value and value.strip() and value.strip().upper() != "UNKNOWN":
            return str(value.strip().splitlines()[0])
    return default


def require_package(module: str, distribution: str, extra: str, remark: str = "") -> Path:
    """Folder of a teacher's package.

    Raises
    ------
    MissingDependencyError
        If the package is not installed; says what to install and where weights come from.
    """
    folder = find_package(module)
    if folder is None:
        raise MissingDependencyError(
            f"the teacher package '{distribution}' is not installed; install it with "
            f"`pip install 'fastff[{extra}]'` (or `pip install {distribution}`)."
            + (f" {remark}" if remark else "")
        )
    return folder


def require_file(path: Path, what: str, advice: str) -> Path:
    """``path`` if it is a file, else :class:`MissingDependencyError` with what it is and what to do."""
    if not path.is_file():
        raise MissingDependencyError(f"{what} not found: {path}. {advice}")
    return path


def check_pickle_trust(path: Path, known: Collection[str], trust: bool) -> str:
    """Decide whether a weight file that needs pickle may be loaded; return its SHA-256.

    Loading a pickle runs code of whoever made the file. A file is loaded when its hash is recorded in fastff, or when
    the user vouches for it with the option ``trust``.

    Parameters
    ----------
    path : Path
    known : collection of str
        SHA-256 hashes of published files.
    trust : bool
        The user's word for this file.

    Raises
    ------
    UsageError
        If the hash is unknown and ``trust`` is False.
    """
    digest = hash_file(path)
    if digest not in known and not trust:
        raise UsageError(
            f"weight file {path} (SHA-256 {digest}) is not one that fastff knows, and loading it runs code stored "
            "inside it (pickle); if you trust where it comes from, pass the option trust=true "
            "(--trust-teacher-file)"
        )
    return digest
