"""Starts ``interpreted_engine.py``, ``_md.py`` and ``_fallback.py`` in processes of their own. Not here: the checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("interpreted_engine.py", 30), ("interpreted_md.py", 15), ("interpreted_fallback.py", 10)],
)
def test_the_engine_in_the_interpreter(name, least):
    """Lists, skin checks, evaluations and steps of dynamics; the report of the process is shown on failure."""
    tests = Path(__file__).with_name(name)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > least
    assert "skipped" not in done.stdout
