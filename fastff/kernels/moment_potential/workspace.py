"""How to evaluate, and the buffers an evaluation works in.

Here: :class:`Options`, :class:`Workspace` and its allocation. Not here: launches (``evaluate.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastff.errors import UsageError
from fastff.kernels.moment_potential.layout import PackedWeights
from fastff.kernels.node_block.reference import N_INVARIANT_KINDS

Scatter = Literal["fixed", "float", "store"]
PRECISIONS = ("tf32x3", "tf32", "ieee")
FINISH_BLOCK = 256
"""Atoms per program of the last kernel, which leaves one row of partial sums each."""


@dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes
    ----------
    precision : {"tf32x3", "tf32", "ieee"}
        Of matrix products: ``tf32x3`` keeps the digits of float32 on tensor cores, ``tf32`` (fast mode) about three,
        ``ieee`` does without tensor cores, and is what ``tf32x3`` means on AMD.
    scatter : {"fixed", "float", "store"}
        How reactions reach the senders, see :mod:`fastff.kernels.moments_adjoint.scatter`. ``float`` is not
        deterministic; ``store`` needs the matrix's reverse index, 16 bytes per slot, and where messages are sent
        (two hops or more) 4 C bytes per slot more: with 54 slots 0.9 kB an atom, and 7.8 kB (32 channels) or 14.7 (64).
    with_virial : bool
    """

    precision: str = "tf32x3"
    scatter: Scatter = "fixed"
    with_virial: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r}; use one of {', '.join(PRECISIONS)}")
        if self.scatter not in ("fixed", "float", "store"):
            raise UsageError(f"scatter {self.scatter!r}; use fixed, float or store")


@dataclass
class Workspace:
    """Buffers of one size; every kernel writes what it owns completely, so none is ever cleared.

    Per hop: ``moments`` (n_atoms, 16, C), later their gradients; ``mixed`` (n_atoms, 16, Q), the same memory where
    C equals Q; ``invariants`` (n_atoms, 8 Q), later their gradients. Per hop but the last, or a single empty one:
    ``messages`` (n_atoms, (degree + 1)^2 C) that it sends, which the hops after it read again on the way back, and
    their gradients. With ``scatter="store"`` also, by slot and the same for all hops: ``edges`` (n_atoms, n_slots, 4),
    and where messages are sent ``factor_gradients`` (n_atoms, n_slots, C).
    """

    sites: Tensor
    moments: list[Tensor]
    mixed: list[Tensor]
    invariants: list[Tensor]
    messages: list[Tensor]
    message_gradients: list[Tensor]
    node_energies: Tensor
    terms: Tensor
    accumulators: Tensor
    edges: Tensor
    factor_gradients: Tensor
    forces: Tensor
    energies: Tensor
    partials: Tensor
    totals: Tensor


def build_workspace(
    n_atoms: int, n_slots: int, packed: PackedWeights, options: Options, device: torch.device
) -> Workspace:
    """Allocate the buffers of one size."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    scatter, channels = options.scatter, packed.pair_factors.shape[2]
    n_hops = len(packed.blocks)
    senders = range(max(n_hops - 1, 1))
    n_senders = n_atoms if n_hops > 1 else 0
    n_sent = (packed.message_degree + 1) ** 2 * channels
    wide = torch.int64 if scatter == "fixed" else torch.float32
    n_stored = n_atoms if scatter == "store" else 0
    n_blocks = -(-n_atoms // FINISH_BLOCK)
    n_mixed = int(packed.blocks[0].mixing.shape[2])
    moments = [make(n_atoms, 16, channels) for _ in range(n_hops)]
    mixed = moments
    if n_mixed != channels:
        mixed = [make(n_atoms, 16, n_mixed) for _ in range(n_hops)]
    return Workspace(
        sites=make(n_atoms, 4, dtype=torch.int32),
        moments=moments,
        mixed=mixed,
        invariants=[make(n_atoms, N_INVARIANT_KINDS * n_mixed) for _ in range(n_hops)],
        messages=[make(n_senders, n_sent) for _ in senders],
        message_gradients=[make(n_senders, n_sent, dtype=wide) for _ in senders],
        node_energies=make(n_hops, -(-n_atoms // 32) * 32),
        terms=make(n_atoms, 8),
        accumulators=make(n_atoms, 4, dtype=wide),
        edges=make(n_stored, n_slots, 4),
        factor_gradients=make(n_stored if n_hops > 1 else 0, n_slots, channels),
        forces=make(n_atoms, 3),
        energies=make(n_atoms, dtype=torch.float64),
        partials=torch.zeros(max(n_blocks, 1), 8, dtype=torch.float64, device=device),
        totals=make(8, dtype=torch.float64),
    )
