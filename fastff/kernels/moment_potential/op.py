"""Registration of the fused evaluation, so that the choice of its back end is visible.

Here: the record. Not here: the evaluation, which is a class with buffers (``evaluate.py``); what a student falls back
to (:mod:`fastff.evaluator`).
"""

from __future__ import annotations

from fastff.kernels import dispatch

OP = dispatch.register(dispatch.Op("moment_potential", derivative_order=0, deterministic=True))
