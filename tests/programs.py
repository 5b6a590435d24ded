"""Programs of ``bench/`` as modules, for tests. They are no package that tests could import."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

BENCH = Path(__file__).resolve().parents[1] / "bench"


def load_program(name: str) -> ModuleType:
    """A fresh module of ``bench/NAME.py``, which ``sys.modules`` does not learn of."""
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
