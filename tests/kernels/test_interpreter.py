"""Starts the tests of kernels in Triton's interpreter. Not here: the checks themselves."""

from __future__ import annotations

import pytest

from .interpreting import run_interpreted

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("names", "at_least"),
    [(("ops",), 100), (("fused", "evaluation", "workloads"), 110), (("gather",), 15)],
    ids=("ops", "fused", "gather"),
)
def test_all_kernels_in_the_interpreter(names, at_least):
    """Every kernel, case and dtype."""
    run_interpreted(names, at_least)
