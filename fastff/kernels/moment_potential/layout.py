"""What a fused evaluation is given: parameters of the potential, and structures on the position grid.

Here: :class:`PotentialWeights` as the definition reads them and :class:`PackedWeights` as the kernels do,
:class:`NeighborMatrix`, and the conversions. Not here: computing anything from them (``reference.py``,
``evaluate.py``), finding neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastff.errors import DataError
from fastff.kernels.moment_potential.hops import run_vacuum
from fastff.kernels.moments.messages import find_message_degree
from fastff.kernels.node_block.reference import (
    N_INVARIANT_KINDS,
    NodeWeights,
    build_cubic_table,
)

GRID_BITS = 26
"""Positions count 2^-26 Å (1.5e-8 Å) in 32 wrapping bits; see ``fastff.kernels.moments.edges``."""
MAX_REACH = 2.0 ** (31 - GRID_BITS)
MAX_DEGREE = 1
"""Of messages, in the kernels."""
PADDED_RADIAL = 8
"""Radial functions in the kernels; models with fewer are padded with zero weights."""


class PotentialWeights(NamedTuple):
    """Parameters of a moment potential. S species, K radial functions, C channels, one to four hops.

    cutoff Å; radial (n_hops, S, K, C), moment scale included; pair_factors (S, S, C); blocks, one per hop;
    energy_scale eV; composition (S,) float64 eV; core: inverse length (Å^-1), reach (Å) and strength (eV Å) of the core
    repulsion, each (S, S), or None; inner (S, S) Å: below it the radial basis follows distances no longer
    (:func:`fastff.kernels.moments.reference.compress_distance`), or None; it needs a core.
    """

    cutoff: float
    radial: Tensor
    pair_factors: Tensor
    blocks: tuple[NodeWeights, ...]
    energy_scale: Tensor
    composition: Tensor
    core: tuple[Tensor, Tensor, Tensor] | None
    inner: Tensor | None = None


def compute_vacuum(weights: PotentialWeights) -> list[Tensor]:
    """Energy (S,) that each node block gives an atom of each species without neighbours, before ``energy_scale``."""
    radial = weights.radial
    species = torch.arange(radial.shape[1], device=radial.device)
    table = build_cubic_table(radial.dtype, radial.device)
    found = run_vacuum(weights.blocks, radial.shape[3], species, table)
    return [energies for energies, _ in found]


class PackedBlock(NamedTuple):
    """One node block in float32: input scale inside ``weight1``, energy scale inside ``readout`` and ``vacuum``.

    curb (I,): input scale over the limit of the inputs, zero where there is none; the other two as in ``NodeWeights``.
    """

    mixing: Tensor
    shift: Tensor
    curb: Tensor
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor
    readout: Tensor
    vacuum: Tensor
    message: Tensor
    message_bias: Tensor
    message_curb: Tensor
    moment_curb: Tensor


class PackedWeights(NamedTuple):
    """Parameters as the kernels read them: float32, contiguous, on the device.

    radial: per hop (S, 8, C), the norm ``sqrt(2 / r_c)`` of the basis included; core (S * S, 4) or None, its last
    column the inner distances; core_reach and inner_reach: the largest of each, zero where there are none.
    """

    cutoff: float
    radial: tuple[Tensor, ...]
    pair_factors: Tensor
    blocks: tuple[PackedBlock, ...]
    composition: Tensor
    core: Tensor | None
    core_reach: float
    inner_reach: float

    @property
    def message_degree(self) -> int:
        """Largest degree of the messages between hops; 0 where nothing is sent."""
        return max(0, find_message_degree(self.blocks[0].message.shape[1], self.n_channels))

    @property
    def n_channels(self) -> int:
        """Channels of the moments."""
        return int(self.pair_factors.shape[2])


def find_obstacle(weights: PotentialWeights) -> str | None:
    """Why the kernels cannot take these sizes, or None.

    Hidden layers are multiplied in halves, and Triton before 3.9 contracts no fewer than 16.
    """
    n_radial, n_channels = weights.radial.shape[2:]
    widths = [n_channels, weights.blocks[0].mixing.shape[2]]
    hidden = [size for block in weights.blocks for size in block.weight2.shape]
    if n_radial > PADDED_RADIAL:
        return f"{n_radial} radial functions, the kernels take up to {PADDED_RADIAL}"
    for width in widths:
        if width < 16 or width & (width - 1):
            return f"a width of {width}, the kernels take powers of two from 16"
    for width in hidden:
        if width < 32 or width & (width - 1):
            return f"a hidden layer of {width}, the kernels take powers of two from 32"
    degree = max(find_message_degree(b.message.shape[1], n_channels) for b in weights.blocks)
    if degree > MAX_DEGREE:
        return f"messages of degree {degree}, the kernels take up to {MAX_DEGREE}"
    if weights.cutoff >= MAX_REACH / 2:
        return f"cutoff {weights.cutoff} Å, the position grid holds up to {MAX_REACH / 2} Å"
    if weights.core is not None and float(weights.core[1].max()) > weights.cutoff:
        return f"core repulsion reaches beyond the cutoff {weights.cutoff} Å"
    if weights.inner is not None and weights.core is None:
        return "inner distances without a core repulsion"
    if weights.inner is not None and float(weights.inner.max()) > weights.cutoff:
        return f"inner distances beyond the cutoff {weights.cutoff} Å"
    return None


def find_reach_obstacle(reach: float) -> str | None:
    """Why the kernels cannot read lists that reach so far, or None.

    Pairs move by up to a skin before a list ends, and one that is farther apart than the period of the position grid
    less the cut-off would be taken for a near one.
    """
    if reach > MAX_REACH:
        return f"lists reach {reach:g} Å, the position grid holds up to {MAX_REACH:g} Å"
    return None


def pack_weights(weights: PotentialWeights, device: torch.device) -> PackedWeights:
    """Convert parameters, in float64 throughout, to what the kernels read.

    Raises
    ------
    DataError
        The kernels cannot take these sizes.
    """
    obstacle = find_obstacle(weights)
    if obstacle is not None:
        raise DataError(f"cannot pack the potential for the kernels: {obstacle}")
    exact = PotentialWeights(
        weights.cutoff,
        weights.radial.detach().double(),
        weights.pair_factors.detach().double(),
        tuple(NodeWeights(*(part.detach().double() for part in b)) for b in weights.blocks),
        weights.energy_scale.detach().double(),
        weights.composition.detach().double(),
        weights.core,
        weights.inner,
    )

    def place(value: Tensor) -> Tensor:
        return value.to(device, torch.float32).contiguous()

    n_species, n_radial = exact.radial.shape[1:3]
    radial = exact.radial * (2.0 / exact.cutoff) ** 0.5
    radial = torch.nn.functional.pad(radial, (0, 0, 0, PADDED_RADIAL - n_radial))
    core, core_reach, inner_reach = None, 0.0, 0.0
    if exact.core is not None:
        inner = torch.zeros_like(exact.core[1]) if exact.inner is None else exact.inner
        parts = [part.double().reshape(n_species**2) for part in (*exact.core, inner)]
        core = place(torch.stack(parts, dim=1))
        core_reach, inner_reach = float(exact.core[1].max()), float(inner.max())
    blocks = tuple(
        PackedBlock(
            place(block.mixing),
            place(block.shift),
            place(block.scale * block.inverse_limit),
            place(block.scale[:, None] * block.weight1),
            place(block.bias1),
            place(block.weight2),
            place(block.bias2),
            place(block.readout * exact.energy_scale),
            place(vacuum * exact.energy_scale),
            place(block.message),
            place(block.message_bias),
            place(block.message_curb),
            place(block.moment_curb),
        )
        for block, vacuum in zip(exact.blocks, compute_vacuum(exact), strict=True)
    )
    assert all(b.shift.shape[0] >= N_INVARIANT_KINDS * b.mixing.shape[2] for b in blocks)
    return PackedWeights(
        exact.cutoff,
        tuple(place(hop) for hop in radial),
        place(exact.pair_factors),
        blocks,
        exact.composition.to(device).contiguous(),
        core,
        core_reach,
        inner_reach,
    )


@dataclass(frozen=True)
class NeighborMatrix:
    """Neighbours of every atom, one row each.

    Attributes
    ----------
    entries : (n_atoms, n_slots) int32 or int64 tensor
        ``sender << code_bits | code``; slots beyond ``counts`` hold anything.
    counts : (n_atoms,) int32 tensor
    translations : (n_codes, 4) int32 tensor
        ``S @ cell`` of every code on the position grid, and zero.
    code_bits : int
    reverse : (n_atoms, n_slots) int32 or int64 tensor or None
        Flat slot of the same pair seen from the sender; only for ``scatter="store"``.
    """

    entries: Tensor
    counts: Tensor
    translations: Tensor
    code_bits: int
    reverse: Tensor | None = None

    @property
    def n_atoms(self) -> int:
        """Number of rows."""
        return int(self.entries.shape[0])

    @property
    def n_slots(self) -> int:
        """Slots per row."""
        return int(self.entries.shape[1])


def quantize_coordinates(values: Tensor) -> Tensor:
    """Coordinates in Å to grid units in wrapping int32; float64 inside."""
    units = torch.round(values.double() * 2.0**GRID_BITS).to(torch.int64)
    return ((units + 2**31) % 2**32 - 2**31).to(torch.int32)


def list_shifts(reach: int) -> Tensor:
    """All integer shifts with components up to ``reach``, (n_codes, 3) int64; code c stands for row c."""
    span = torch.arange(-reach, reach + 1)
    return torch.cartesian_prod(span, span, span)


def make_translations(cell: Tensor, reach: int) -> Tensor:
    """Grid translations (n_codes, 4) of the shifts of :func:`list_shifts` in a cell (3, 3) in Å."""
    exact = list_shifts(reach).to(cell.device).double() @ cell.double()
    return torch.nn.functional.pad(quantize_coordinates(exact), (0, 1)).contiguous()


def pack_edges(
    edge_index: Tensor, shifts: Tensor, cell: Tensor, n_atoms: int, *, n_slots: int | None = None
) -> NeighborMatrix:
    """Receiver-sorted edges (2, n_edges) with integer shifts (n_edges, 3) to a neighbor matrix with its reverse index.

    Waits for the device; for lists that were built elsewhere, not for every step.
    """
    receivers, senders = edge_index
    device = edge_index.device
    counts = torch.bincount(receivers, minlength=n_atoms)
    width = max(int(counts.max()) if n_atoms else 0, 1) if n_slots is None else n_slots
    first = counts.cumsum(0) - counts
    slots = receivers * width + torch.arange(len(receivers), device=device) - first[receivers]
    reach = int(shifts.abs().max()) if shifts.numel() else 0
    base = 2 * reach + 1
    code_bits = (base**3 - 1).bit_length()
    wide = (n_atoms << code_bits) > 2**31 or n_atoms * width > 2**31
    dtype = torch.int64 if wide else torch.int32
    powers = torch.tensor([base * base, base, 1], device=device)
    code = ((shifts + reach) * powers).sum(dim=1)
    entries = torch.zeros(n_atoms * width, dtype=dtype, device=device)
    entries[slots] = ((senders << code_bits) | code).to(dtype)
    back = ((reach - shifts) * powers).sum(dim=1)
    key = (receivers * n_atoms + senders) * base**3 + code
    order = key.argsort()
    place = torch.searchsorted(key[order], (senders * n_atoms + receivers) * base**3 + back)
    reverse = torch.zeros(n_atoms * width, dtype=dtype, device=device)
    if len(slots):
        reverse[slots] = slots[order[place]].to(dtype)
    return NeighborMatrix(
        entries.view(n_atoms, width),
        counts.to(torch.int32),
        make_translations(cell, reach),
        code_bits,
        reverse.view(n_atoms, width),
    )


def unpack_neighbors(matrix: NeighborMatrix) -> tuple[Tensor, Tensor, Tensor]:
    """Senders (n_atoms, n_slots), codes and mask of filled slots; an empty slot names its own row."""
    n_atoms, n_slots = matrix.entries.shape
    device = matrix.entries.device
    filled = torch.arange(n_slots, device=device)[None, :] < matrix.counts[:, None]
    entries = matrix.entries.long()
    own = torch.arange(n_atoms, device=device)[:, None].expand(n_atoms, n_slots)
    senders = torch.where(filled, entries >> matrix.code_bits, own)
    codes = torch.where(filled, entries & ((1 << matrix.code_bits) - 1), 0)
    return senders, codes, filled
