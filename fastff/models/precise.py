"""Buffers that stay in float64 whatever dtype their module is converted to.

Here: one small base class. Not here: anything about force fields.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn


class PreciseBuffers(nn.Module):
    """A module whose own float64 buffers are moved between devices but never rounded.

    Composition energies of thousands of eV and physical constants would lose digits in float32, and would
    not get them back on conversion to float64.
    """

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = {
            name: value
            for name, value in self._buffers.items()
            if value is not None and value.dtype == torch.float64
        }
        super()._apply(fn, recurse)
        for name, value in exact.items():
            converted = self._buffers[name]
            assert converted is not None
            if converted.dtype != torch.float64:
                self._buffers[name] = value.to(device=converted.device)
        return self
