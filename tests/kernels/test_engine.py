"""Starts the tests of evaluators, dynamics and fallbacks in Triton's interpreter. Not here: the checks."""

from __future__ import annotations

import pytest

from .interpreting import run_interpreted

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "at_least"),
    [(("lists", "engine"), 70), (("md", "fallback", "uncertainty"), 39)],
    ids=("engine", "md"),
)
def test_the_engine_in_the_interpreter(names, at_least):
    """Lists, skin checks, evaluations and steps of dynamics."""
    run_interpreted(names, at_least)
