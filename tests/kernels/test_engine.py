"""Starts ``interpreted_engine.py`` in a process of its own. Not here: the checks themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_the_engine_in_the_interpreter():
    """Lists, skin checks and evaluations; the report of the process is shown on failure."""
    tests = Path(__file__).with_name("interpreted_engine.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 30
    assert "skipped" not in done.stdout
