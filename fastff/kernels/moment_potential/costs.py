"""Least work of the fused kernels: floating-point operations and bytes per atom.

Here: counting. Not here: ceilings of a device and timings, which say what share of them is reached.
"""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Per atom: all operations, those of matrix products among them, and bytes read once and written once."""

    flop: float
    product: float
    n_bytes: float


def count_costs(
    n_slots: int, channels: int = 16, mixed: int = 16, hidden: int = 64
) -> dict[str, Cost]:
    """Cost of every kernel of one hop with rows of ``n_slots`` neighbors, by kernel (fixed scatter)."""
    inputs, edge = 8 * mixed, 2 * 16 * channels
    radial, mixing = 2 * 8 * channels, 16 * 2 * channels * mixed
    layers = 2 * (inputs * hidden + hidden * hidden)
    block, read = 16 * channels * 4, 4 * n_slots + 20
    product = {
        "moments": n_slots * (radial + edge),
        "invariants": mixing,
        "node_perceptron": 2 * layers,
        "invariants_adjoint": mixing,
        "moments_adjoint": n_slots * 2 * (radial + edge),
    }
    other = {
        "moments": n_slots * (130 + 2 * channels),
        "invariants": mixed * (2 * 15 + 4 * 61),
        "node_perceptron": 40 * hidden,
        "invariants_adjoint": mixed * (2 * 15 + 6 * 61),
        "moments_adjoint": n_slots * (330 + 3 * channels),
    }
    moved = {
        "moments": read + block,
        "invariants": 2 * block + inputs * 4,
        "node_perceptron": 2 * inputs * 4 + 8,
        "invariants_adjoint": 2 * block + inputs * 4,
        "moments_adjoint": read + block + 64 + 32,
    }
    return {name: Cost(product[name] + other[name], product[name], moved[name]) for name in product}
