"""Performance-critical ops, one folder each: the definition in torch, the Triton kernels, the public function.

Here: the selection of the back end. Not here: the ops, which are imported from their folders, for example
``from fastff.kernels.segment_sum import segment_sum``. Importing this package imports no Triton.
"""

from __future__ import annotations

from fastff.kernels.dispatch import BackendError, Op, Row, explain, list_ops, use

__all__ = ["BackendError", "Op", "Row", "explain", "list_ops", "use"]
