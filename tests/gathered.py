"""Structures as one batch of tensors. Not here: any test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from fastff.packed import Systems


def gather(structures: Sequence[Atoms]) -> Systems:
    """Positions, numbers, cells, periodicity and owners of all atoms, in float64 on the CPU."""
    counts = torch.tensor([len(atoms) for atoms in structures])
    return Systems(
        torch.tensor(np.concatenate([atoms.positions for atoms in structures])),
        torch.tensor(np.concatenate([atoms.numbers for atoms in structures])),
        torch.tensor(np.stack([atoms.cell.array for atoms in structures])),
        torch.tensor(np.stack([atoms.pbc for atoms in structures])),
        torch.arange(len(structures)).repeat_interleave(counts),
    )
