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


def count_directed(
    n_slots: int, channels: int = 16, mixed: int = 16, hidden: int = 64, degree: int = 1
) -> dict[str, Cost]:
    """The same of what :func:`~fastff.kernels.moment_potential.workloads.list_directed` launches.

    Sums of a later hop, that read and return messages of a degree; and the perceptrons of two hops: sending, last,
    pulling back.
    """
    plain = count_costs(n_slots, channels, mixed, hidden)
    parts = (degree + 1) ** 2
    sent = 4 * parts * channels
    turned = n_slots * channels * (parts - 1)
    moments, perceptron, adjoint = (
        plain[name] for name in ("moments", "node_perceptron", "moments_adjoint")
    )
    gates = 2 * hidden * (degree + 1) * channels
    extra = 2 * 2 * channels * hidden
    layers = perceptron.product // 2
    product = 5 * layers + 3 * gates + extra
    moved = 5 * 8 * mixed * 4 + 5 * sent + 4 * 4 * channels * 4 + 24
    return {
        "moments": Cost(moments.flop + 2 * turned, moments.product, moments.n_bytes + sent),
        "node_perceptron": Cost(product + 5 * 20 * hidden, product, moved),
        "moments_adjoint": Cost(
            adjoint.flop + 5 * turned, adjoint.product, adjoint.n_bytes + 3 * sent
        ),
    }


def count_stored(
    n_slots: int, channels: int = 16, mixed: int = 16, hidden: int = 64, degree: int = 0
) -> dict[str, Cost]:
    """What a later hop launches instead with ``scatter="store"``: its adjoint, and the gathers.

    Every slot holds 4 numbers for the forces and one of each channel for the messages, written once and read once.
    """
    plain = count_costs(n_slots, channels, mixed, hidden)["moments_adjoint"]
    parts = (degree + 1) ** 2
    sent, turned = 4 * parts * channels, n_slots * channels * (parts - 1)
    forces, messages = 16 * n_slots, 4 * channels * n_slots
    indices = 4 * n_slots + 4
    kept = plain.n_bytes - 64 + sent  # no accumulators; messages are read
    return {
        "moments_adjoint": Cost(plain.flop + 4 * turned, plain.product, kept + forces + messages),
        "gather_forces": Cost(6 * n_slots, 0, indices + forces + 16),
        "gather_messages": Cost(
            n_slots * channels + 2 * turned + (20 * n_slots if degree else 0),
            0,
            indices + messages + sent + 4 * channels + (4 * n_slots + 16 if degree else 0),
        ),
    }


def count_evaluation(n_hops: int, n_slots: int, channels: int, degree: int = 0) -> Cost:
    """Cost of a whole evaluation: every kernel once for each hop."""
    plain = count_costs(n_slots, channels, channels)
    total = [n_hops * sum(part) for part in zip(*plain.values(), strict=True)]
    if degree:
        directed = count_directed(n_slots, channels, channels, degree=degree)
        for name in ("moments", "moments_adjoint"):
            more = zip(directed[name], plain[name], strict=True)
            total = [t + (n_hops - 1) * (a - b) for t, (a, b) in zip(total, more, strict=True)]
    return Cost(*total)
