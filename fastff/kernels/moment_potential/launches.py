"""Written rules by which launches of the fused evaluation differ from what was tuned: atoms, precision, keys.

Here: functions of sizes and options alone. Not here: launches (``evaluate.py``), what is tuned
(:mod:`fastff.kernels.tuning`).
"""

from __future__ import annotations

from typing import Any

import torch


def limit_atoms(asked: int, n_atoms: int) -> int:
    """Atoms per program of the moments: no more than leave 8,192 programs to fill a GPU with.

    Not a tuned choice: every atom is summed in the same order whatever the number.
    """
    return max(1, min(asked, n_atoms // 8192))


FEW_ATOMS = 2048
"""Up to here node kernels of 16 channels are launched as in :data:`FEW`; with 32 rows a program, as few as half of an
H100's multiprocessors would have work."""
FEW: dict[str, int] = {"ATOMS": 16, "DEPTH": 64, "num_warps": 4}
"""The fewest rows that a matrix product takes, on as many warps as a multiprocessor has schedulers; best at 1,372 atoms
in ``bench/results/kernels/launch-sizes-h100.json``."""


def name_degree(degree: int) -> dict[str, int]:
    """The part of a launch key that tells directed messages from scalars, which have none."""
    return {"degree": degree} if degree else {}


def spread_atoms(arguments: dict[str, Any], n_atoms: int) -> dict[str, Any]:
    """Launch arguments of a node kernel of 16 channels for a number of atoms.

    A written rule, the same in every run; last digits of energies and forces may differ from those of larger systems.
    """
    if n_atoms > FEW_ATOMS:
        return arguments
    return {**arguments, **{name: value for name, value in FEW.items() if name in arguments}}


def choose_precision(asked: str) -> str:
    """Precision of the products that are launched: on AMD plain float32 for the default.

    ``tf32x3`` is about how tensor cores of NVIDIA round, and matrix units of AMD take float32 as it is.
    """
    return "ieee" if asked == "tf32x3" and torch.version.hip is not None else asked
