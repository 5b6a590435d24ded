"""Runs files of tests with Triton's interpreter, in a process of their own. Not here: any test.

``TRITON_INTERPRET=1`` must be set before Triton is imported. Files of one process share what it has imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def run_interpreted(names: tuple[str, ...], at_least: int) -> None:
    """Run ``interpreted_NAME.py`` of every name; the report of the process is shown on failure.

    Fails where fewer tests pass than ``at_least``, or one is skipped.
    """
    here = Path(__file__)
    tests = [str(here.with_name(f"interpreted_{name}.py")) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) >= at_least
    assert "skipped" not in done.stdout
