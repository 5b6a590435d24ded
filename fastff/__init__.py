"""fastff: distil a foundation force field into a small, fast student for one material.

Here: the public names, imported on first use, so that ``import fastff`` does no work. Not here: anything else.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "FastFFCalculator": "fastff.calculator",
    "load_model": "fastff.checkpoint",
    "load_teacher": "fastff.teachers",
    "predict": "fastff.inference",
    "read_header": "fastff.checkpoint",
    "save_model": "fastff.checkpoint",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fastff' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
