"""The physics gate of every student on a GPU, its kernels beside torch among the tests.

Here: untrained students, for trained ones there is ``fastff check MODEL --device cuda``. Not here: that the gate sees
defects (``tests/test_check.py``), the contracts of single kernels (``test_gpu.py``, ``test_gpu_fused.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from untrained import make_student

from fastff.checkpoint import save_model
from fastff.testing import check_student

pytestmark = pytest.mark.gpu
COLD = 2.0
"""K; at more an untrained student, which repels at short range only, falls into its own cores."""


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("m1", {}),
        ("m2", {}),
        ("m2-l", {}),
        ("m2-l", {"n_hops": 3, "message_degree": 1}),
        ("painn", {}),
    ],
)
def test_every_student_passes(
    architecture: str, sizes: dict[str, Any], cuda: torch.device, tmp_path: Path
) -> None:
    student = make_student(architecture, (8, 29), energy_scale=0.02, **sizes)
    path = tmp_path / "model.safetensors"
    save_model(path, student, {})
    report = check_student(student.to(cuda), path=path, temperature=COLD)
    assert report.passed, f"\n{report}"
    assert not report.not_applicable
