"""Half steps of molecular dynamics: kicks, drifts, noise, rescaling, and flags that say whether they may be taken."""

from __future__ import annotations

from fastff.kernels.md_step.op import Motion, Schedule, StepKernels

__all__ = ["Motion", "Schedule", "StepKernels"]
