"""Buffers that stay in float64 whatever dtype their module is converted to.

Here: one small base class. Not here: anything about force fields.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn


class PreciseBuffers(nn.Module):
    """A module of which chosen float64 buffers are moved between devices but never rounded.

    Composition energies of thousands of eV and physical constants would lose digits in float32, and would
    not get them back on conversion to float64. Other buffers follow the module's dtype.
    """

    def __init__(self) -> None:
        super().__init__()
        self._precise: set[str] = set()

    def register_precise(self, name: str, value: Tensor, *, persistent: bool = True) -> None:
        """Register a buffer that stays in float64."""
        self.register_buffer(name, value.double(), persistent=persistent)
        self._precise.add(name)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = {name: self._buffers[name] for name in self._precise}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            converted = self._buffers[name]
            assert converted is not None
            assert value is not None
            if converted.dtype != torch.float64:
                self._buffers[name] = value.to(device=converted.device)
        return self
