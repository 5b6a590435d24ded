"""Names of shipped students, and what a user may write where a model file is asked for.

Here: listing, finding, telling names from paths. Not here: what is in a file.
"""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

from fastff.errors import ModelFileError

SUFFIX = ".safetensors"


def find_folder() -> Path:
    """Folder of the shipped model files."""
    return Path(str(resources.files("fastff.zoo")))


def list_shipped() -> list[str]:
    """Names of the shipped students, in alphabetical order."""
    return sorted(path.stem for path in find_folder().glob(f"*{SUFFIX}"))


def find_shipped(name: str | Path) -> Path | None:
    """Model file of a shipped student; None if ``name`` is that of none, or of a file that exists."""
    text = os.fspath(name)
    if Path(text).is_file() or text not in list_shipped():
        return None
    return find_folder() / f"{text}{SUFFIX}"


def resolve_model(model: str | Path) -> Path:
    """Path of what a user calls a model: a file, or the name of a shipped student.

    Parameters
    ----------
    model : str or path
        A file that exists wins over a name.

    Returns
    -------
    Path
        Of the shipped file for a name; else ``model`` itself, which need not exist if it looks like a path, that is
        holds a dot or a separator.

    Raises
    ------
    ModelFileError
        If it is no file, does not look like a path and is the name of no shipped student.
    """
    text = os.fspath(model)
    shipped = find_shipped(text)
    if shipped is not None:
        return shipped
    if Path(text).exists() or any(sign in text for sign in (".", "/", os.sep)):
        return Path(text)
    names = list_shipped()
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ModelFileError(
        f"{text!r} is neither a model file nor a shipped model; shipped are {', '.join(names) or 'none'}{hint}"
    )
