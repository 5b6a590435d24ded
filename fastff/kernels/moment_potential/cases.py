"""Structures and parameters for tests and benchmarks of the fused evaluation, made of tensors alone.

Here: rattled lattices with their neighbor matrix computed from the lattice (any size, on the device), random parameters
with the student's statistics, and the lists that the contract of kernels looks for. Not here: checks or timings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastff.kernels.moment_potential.layout import (
    NeighborMatrix,
    PotentialWeights,
    list_shifts,
    make_translations,
)
from fastff.kernels.moments.messages import direct_messages, read_messages
from fastff.kernels.moments.reference import compute_moments, describe_edges
from fastff.kernels.node_block.reference import (
    N_INVARIANT_KINDS,
    NodeWeights,
    build_cubic_table,
    compute_invariants,
    compute_node,
    mix_channels,
)

if TYPE_CHECKING:
    from fastff.kernels.contract import Build
    from fastff.kernels.tuning import Workload

LATTICES: dict[str, tuple[float, tuple[tuple[float, float, float, int], ...]]] = {
    "Cu": (3.61, ((0, 0, 0, 0), (0, 0.5, 0.5, 0), (0.5, 0, 0.5, 0), (0.5, 0.5, 0, 0))),
    "NaCl": (
        5.64,
        (
            (0, 0, 0, 0), (0, 0.5, 0.5, 0), (0.5, 0, 0.5, 0), (0.5, 0.5, 0, 0),
            (0.5, 0.5, 0.5, 1), (0.5, 0, 0, 1), (0, 0.5, 0, 1), (0, 0, 0.5, 1),
        ),
    ),
    "Si": (
        5.43,
        (
            (0, 0, 0, 0), (0, 0.5, 0.5, 0), (0.5, 0, 0.5, 0), (0.5, 0.5, 0, 0),
            (0.25, 0.25, 0.25, 0), (0.25, 0.75, 0.75, 0), (0.75, 0.25, 0.75, 0), (0.75, 0.75, 0.25, 0),
        ),
    ),
}  # fmt: skip
"""Cubic lattice constant in Å and basis (fractional coordinates, species) by name."""


@dataclass(frozen=True)
class System:
    """A structure with its neighbor matrix. translations: exact ``S @ cell`` (n_codes, 3) float64, Å."""

    positions: Tensor
    species: Tensor
    cell: Tensor
    matrix: NeighborMatrix
    translations: Tensor


def build_lattice(
    name: str,
    repeats: int,
    reach: float,
    device: torch.device | str,
    *,
    rattle: float = 0.05,
    seed: int = 0,
    reverse: bool = False,
) -> System:
    """Cubic crystal of ``repeats``^3 cells, rattled, each atom's row holding all sites within ``reach`` of its own.

    The rows list lattice sites, as a list with a skin does: pairs beyond a model's cut-off are in them.

    Parameters
    ----------
    name : str
        Key of :data:`LATTICES`.
    repeats : int
    reach : float, Å
        At most ``repeats`` times the lattice constant.
    device : torch.device
    rattle : float, Å
        Standard deviation per coordinate.
    seed : int
    reverse : bool
        Build the reverse index (first matching slot of the sender's row).
    """
    constant, basis = LATTICES[name]
    assert reach <= repeats * constant, f"reach {reach} needs more than {repeats} cells"
    n_basis = len(basis)
    sites = torch.tensor([row[:3] for row in basis], dtype=torch.float64)
    span = math.ceil(reach / constant) + 1
    steps = list_shifts(span)
    rows: list[list[tuple[int, int, int, int]]] = []
    for home in range(n_basis):
        vectors = (steps[:, None].double() + sites[None] - sites[home]) * constant
        distance = vectors.norm(dim=-1)
        near = ((distance < reach) & (distance > 1e-6)).nonzero()
        rows.append([(*steps[s].tolist(), b) for s, b in near.tolist()])
    n_slots = max(map(len, rows))
    table = torch.zeros(n_basis, n_slots, 4, dtype=torch.int64)
    for home, row in enumerate(rows):
        table[home, : len(row)] = torch.tensor(row)
    n_atoms = repeats**3 * n_basis
    code_bits = 5
    wide = (n_atoms << code_bits) > 2**31
    dtype = torch.int64 if wide else torch.int32
    table = table.to(device)
    entries = torch.empty(n_atoms, n_slots, dtype=dtype, device=device)
    positions = torch.empty(n_atoms, 3, dtype=torch.float64, device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    plane = repeats**2 * n_basis
    for ix in range(repeats):
        iy, iz = torch.meshgrid(
            torch.arange(repeats, device=device),
            torch.arange(repeats, device=device),
            indexing="ij",
        )
        where = torch.stack([torch.full_like(iy, ix), iy, iz], dim=-1).reshape(-1, 1, 1, 3)
        there = where + table[None, :, :, :3]
        wrap = torch.div(there, repeats, rounding_mode="floor")
        there = there - wrap * repeats
        cell_index = (there[..., 0] * repeats + there[..., 1]) * repeats + there[..., 2]
        sender = cell_index * n_basis + table[None, :, :, 3]
        code = ((wrap[..., 0] + 1) * 3 + wrap[..., 1] + 1) * 3 + wrap[..., 2] + 1
        entries[ix * plane : (ix + 1) * plane] = (
            ((sender << code_bits) | code).to(dtype).view(-1, n_slots)
        )
        spot = (where[:, 0].double() + sites.to(device)) * constant
        noise = torch.randn(spot.shape, generator=generator, device=device, dtype=torch.float64)
        positions[ix * plane : (ix + 1) * plane] = (spot + rattle * noise).view(-1, 3)
    kinds = torch.tensor([row[3] for row in basis], device=device).repeat(repeats**3)
    counts = torch.tensor([len(row) for row in rows], device=device, dtype=torch.int32)
    cell = torch.eye(3, dtype=torch.float64, device=device) * (repeats * constant)
    matrix = NeighborMatrix(
        entries, counts.repeat(repeats**3), make_translations(cell, 1), code_bits
    )
    if reverse:
        matrix = add_reverse(matrix)
    translations = list_shifts(1).to(device).double() @ cell
    return System(positions, kinds.to(torch.int32), cell, matrix, translations)


INNER = 1.7
"""Å, inner distance of copper in today's students: below all its pairs, so that kernels look and find none."""


def add_reverse(matrix: NeighborMatrix) -> NeighborMatrix:
    """The same matrix with its reverse index, for matrices of 27 translation codes."""
    n_atoms, n_slots = matrix.entries.shape
    device = matrix.entries.device
    flat = matrix.entries.long()
    sender, code = flat >> matrix.code_bits, flat & ((1 << matrix.code_bits) - 1)
    filled = torch.arange(n_slots, device=device)[None] < matrix.counts[:, None]
    own = torch.arange(n_atoms, device=device)[:, None]
    key = torch.where(filled, (own * n_atoms + sender) * 32 + code, 2**62).flatten()
    wanted = ((sender * n_atoms + own) * 32 + (26 - code)).flatten()
    ordered, order = key.sort()
    place = torch.searchsorted(ordered, wanted).clamp_max(key.numel() - 1)
    dtype = torch.int64 if key.numel() > 2**31 else torch.int32
    reverse = order[place].to(dtype).view(n_atoms, n_slots)
    return NeighborMatrix(
        matrix.entries, matrix.counts, matrix.translations, matrix.code_bits, reverse
    )


def draw_weights(
    n_hops: int,
    n_species: int,
    sample: System,
    *,
    n_channels: int = 16,
    n_mixed: int = 16,
    hidden: tuple[int, int] = (64, 64),
    cutoff: float = 5.0,
    seed: int = 0,
    core: bool = True,
    force: float = 1.0,
    limit: float | None = 4.0,
    message_degree: int = 0,
    inner: float | None = None,
) -> PotentialWeights:
    """Random float64 parameters on the CPU, normalised on a sample as the student calibrates itself.

    The energy scale is chosen so that the learned forces on the sample have a root mean square of ``force`` eV/Å.
    ``inner``: distance in Å of the pairs of the first species, a little more for others.
    """
    from fastff.kernels.moment_potential.reference import evaluate_reference, unpack_neighbors

    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, fan_in: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(fan_in)

    n_radial = 8
    damping = torch.arange(1, n_radial + 1).double().rsqrt()[:, None]
    radial = draw(n_hops, n_species, n_radial, n_channels) * damping
    pair_factors = draw(n_species, n_species, n_channels)
    senders, codes, filled = unpack_neighbors(sample.matrix)
    vectors = sample.positions[senders] - sample.positions[:, None] + sample.translations[codes]
    padding = torch.tensor([cutoff, 0.0, 0.0], dtype=torch.float64)
    geometry = describe_edges(torch.where(filled[..., None], vectors, padding), cutoff, n_radial)
    species = sample.species.long()
    table = build_cubic_table(torch.float64, torch.device("cpu"))
    factors = pair_factors[species[:, None], species[senders]]
    blocks: list[NodeWeights] = []
    carried: Tensor | None = None
    extra: Tensor | None = None
    for hop in range(n_hops):
        n_inputs = N_INVARIANT_KINDS * n_mixed + (n_channels if hop else 0)
        n_messages = n_channels * (message_degree + 1) if hop < n_hops - 1 else 0
        if carried is not None:
            factors, _ = read_messages(carried, senders, geometry.harmonics)
        moments, _ = compute_moments(geometry, radial[hop][species], factors)
        size = moments[:, 0].square().mean().sqrt()
        radial[hop] /= size
        moments = moments / size
        mixing = draw(4, n_channels, n_mixed, fan_in=n_channels)
        inputs, _ = compute_invariants(mix_channels(moments, mixing), table)
        if extra is not None:
            inputs = torch.cat([inputs, extra], dim=1)
        floor = 0.05 * inputs.square().mean(dim=0).sqrt()
        spread = torch.maximum(inputs.std(dim=0, correction=0), floor)
        h1, h2 = hidden
        curb = torch.full(
            (n_messages,), 0.3, dtype=torch.float64
        )  # messages and moments are about one
        block = NodeWeights(
            mixing,
            inputs.mean(dim=0),
            1.0 / spread,
            torch.tensor(1.0 / limit if limit else 0.0, dtype=torch.float64),
            draw(n_inputs, h1, fan_in=n_inputs),
            draw(n_species, h1, fan_in=100.0),
            draw(h1, h2, fan_in=h1),
            draw(n_species, h2, fan_in=100.0),
            draw(n_species, h2, fan_in=h2),
            draw(h2, n_messages, fan_in=h2),
            draw(n_species, n_messages),
            curb,
            curb * (torch.arange(n_messages) >= n_channels),
        )
        blocks.append(block)
        _, messages, cache = compute_node(moments, extra, species, block, table)
        if n_messages:
            carried = direct_messages(messages, cache.mixed, n_channels, block.moment_curb)
            extra = messages[:, :n_channels]
    tables = None
    if core:
        numbers = torch.linspace(20.0, 30.0, n_species, dtype=torch.float64)
        powers = numbers**0.23
        ones = torch.ones(n_species, n_species, dtype=torch.float64)
        tables = (
            (powers[:, None] + powers) / 0.4685,
            2.1 * ones,
            0.5 * 14.399645 * numbers[:, None] * numbers,
        )
    weights = PotentialWeights(
        cutoff, radial, pair_factors, tuple(blocks), torch.ones((), dtype=torch.float64),
        draw(n_species) * 1000.0, None,
    )  # fmt: skip
    found = evaluate_reference(
        weights, sample.positions, sample.species, sample.matrix, sample.translations
    )
    scale = force / found.forces.square().mean().sqrt()
    if inner is not None:
        order = torch.arange(n_species).double()
        weights = weights._replace(inner=inner * (1.0 + 0.02 * (order[:, None] + order)))
    return weights._replace(energy_scale=scale, core=tables)


def list_builds() -> Iterator[Build]:
    """Every fused kernel, as students launch it; see ``builds.py``."""
    from fastff.kernels.moment_potential import builds

    yield from builds.list_builds()


def list_workloads(widths: Mapping[str, int], device: torch.device) -> Iterator[Workload]:
    """Every fused kernel at the widths of a model; see ``workloads.py``."""
    from fastff.kernels.moment_potential import workloads

    yield from workloads.list_workloads(widths, device)
    yield from workloads.list_gathers(widths, device)
