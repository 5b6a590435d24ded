"""Buffers in which anything read before it is written shows. Not here: any test."""

from __future__ import annotations

import dataclasses

import torch

from fastff.kernels.moment_potential.workspace import Workspace


def poison(space: Workspace) -> None:
    """NaN, or the largest integer, everywhere but in partial sums, whose unused columns stay zero."""
    for part in dataclasses.fields(space):
        value = getattr(space, part.name)
        for tensor in value if isinstance(value, list) else [value]:
            if part.name != "partials":
                floating = tensor.is_floating_point()
                tensor.fill_(float("nan") if floating else torch.iinfo(tensor.dtype).max)
