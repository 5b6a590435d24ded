"""Every op at production size: Triton against the eager definition, torch.compile of it, and the roofline.

Here: what ``fastff bench --kernels`` lists but whole evaluations, with pytest-benchmark: generic ops forward and with
the gradient in their first argument, kernels of the fused evaluation, neighbor lists, steps of dynamics; float32, in
one run on one GPU. Not here: models (``test_models.py``).
"""

from __future__ import annotations

import pytest
from works import SOURCES, VARIANTS, name_run

RUNS = [
    pytest.param(make, place, id=name_run(op, names, place))
    for make, names in SOURCES
    for place, op in enumerate(names)
    if not op.startswith("evaluation")
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("make", "place"), RUNS)
def test_op(make, place, variant, works, time_work):
    time_work(works.take(make, place), variant)
