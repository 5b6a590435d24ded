"""Starts ``interpreted.py`` and others in processes of their own. Not here: the checks themselves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("file", "at_least"),
    [("interpreted.py", 100), ("interpreted_fused.py", 25), ("interpreted_gather.py", 15)],
)
def test_all_kernels_in_the_interpreter(file, at_least):
    """Every kernel, case and dtype; the report of the process is shown on failure."""
    tests = Path(__file__).with_name(file)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= at_least
    assert "skipped" not in done.stdout
