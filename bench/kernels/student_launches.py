"""What ``gpu_student.py`` compiles, checks and times: launches of an evaluation by name, cases, parameters.

Here: lists, and random parameters. Not here: measuring (``student_timing.py``), the order of stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from student_timing import DEVICE

from fastff.kernels.moment_potential.cases import INNER, System, build_lattice, draw_weights
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.layout import PotentialWeights
from fastff.kernels.moment_potential.workspace import Workspace
from fastff.kernels.tuning import LaunchConfig

REACH = 5.4
VARIANTS: list[tuple[str, LaunchConfig]] = [
    *(
        (kernel, LaunchConfig({"TILE": tile, "ATOMS": atoms}, warps, 1))
        for kernel in ("moments_adjoint", "moments")
        for tile, atoms, warps in ((16, 1, 1), (64, 1, 1), (32, 1, 1), (32, 4, 1))
    ),
    *(
        ("node_perceptron", LaunchConfig({"ATOMS": atoms, "DEPTH": depth}, warps, 1))
        for atoms, depth, warps in ((16, 32, 2), (16, 32, 4), (32, 16, 4), (32, 64, 4))
    ),
    *(("invariants", LaunchConfig({"ATOMS": a}, w, 1)) for a, w in ((16, 2), (32, 4))),
    *(("invariants_adjoint", LaunchConfig({"ATOMS": a}, w, 1)) for a, w in ((16, 2), (32, 8))),
]
CHECKS = (
    ("Cu", 1, 1, "fixed"), ("NaCl", 1, 2, "fixed"), ("Cu", 2, 1, "fixed"),
    ("NaCl", 2, 3, "fixed"), ("Si", 2, 1, "fixed"), ("NaCl", 1, 2, "store"), ("Cu", 1, 1, "float"),
    ("Cu", 2, 1, "fixed", 32), ("NaCl", 2, 3, "fixed", 32),
    ("Cu", 2, 1, "fixed", 16, 1), ("NaCl", 2, 3, "fixed", 16, 1), ("Si", 2, 1, "fixed", 16, 1),
    ("Cu", 2, 1, "fixed", 32, 1), ("NaCl", 2, 3, "fixed", 32, 1), ("Si", 2, 1, "fixed", 32, 1),
    ("Cu", 3, 1, "fixed", 64, 1), ("NaCl", 3, 3, "fixed", 64, 1), ("Si", 3, 1, "fixed", 64, 1),
    ("NaCl", 2, 3, "store"), ("Cu", 2, 1, "store", 32, 1), ("NaCl", 2, 3, "store", 32, 1),
    ("Cu", 3, 1, "store", 64, 1), ("NaCl", 3, 3, "store", 64, 1),
)  # fmt: skip
STORED = ((2, 16, 0), (2, 32, 0), (2, 32, 1), (3, 64, 1))
"""Hops, channels and degree of the messages of what is also timed with ``scatter="store"``."""
Call = Callable[[FusedPotential, Workspace, System], None]


def list_calls(hops: int, scatter: str = "fixed") -> dict[str, Call]:
    """Every launch of one evaluation by name, on its own; those that work in place write elsewhere."""
    calls: dict[str, Call] = {
        "place": lambda p, s, x: p.launch_place(s, x.positions, x.species),
        "finish": lambda p, s, x: p.launch_finish(s),
    }
    for hop in range(hops):
        suffix = f" {hop + 1}" if hops > 1 else ""
        calls |= {
            f"moments{suffix}": lambda p, s, x, h=hop: p.launch_moments(s, x.matrix, h),
            f"invariants{suffix}": lambda p, s, x, h=hop: p.launch_invariants(
                s, h, mixed=get_spare(s)
            ),
            f"node_perceptron{suffix}": lambda p, s, x, h=hop: p.launch_perceptron(
                s, h, adjoint=True, gradients=get_spare(s)
            ),
            f"invariants_adjoint{suffix}": lambda p, s, x, h=hop: p.launch_pullback(s, h),
            f"moments_adjoint{suffix}": lambda p, s, x, h=hop: p.launch_adjoint(s, x.matrix, h),
        }
        if scatter == "store":
            calls[f"gather_forces{suffix}"] = lambda p, s, x, h=hop: p.launch_gather_forces(
                s, x.matrix, h
            )
        if scatter == "store" and hop > 0:
            calls[f"gather_messages{suffix}"] = lambda p, s, x, h=hop: p.launch_gather_messages(
                s, x.matrix, h
            )
    if hops > 1:
        calls["node_perceptron 1 forward"] = lambda p, s, x: p.launch_perceptron(
            s, 0, adjoint=False
        )
    return calls


def list_stored_calls(hops: int) -> list[str]:
    """Names of the launches that differ with ``scatter="store"``.

    Sums of gradients, what collects them, and perceptrons that read or write float32 instead of fixed point.
    """
    kinds = {"moments_adjoint", "gather_forces", "gather_messages"}
    kinds |= {"node_perceptron"} if hops > 1 else set()
    names = [name for name in list_calls(hops, "store") if name.split()[0] in kinds]
    return [name for name in names if not name.endswith("forward")]


_spare: dict[tuple[int, ...], torch.Tensor] = {}


def get_spare(space: Workspace) -> torch.Tensor:
    shape = tuple(space.moments[0].shape)
    if shape not in _spare:
        _spare.clear()
        _spare[shape] = torch.zeros(shape, device=DEVICE)
    return _spare[shape]


def list_jobs() -> list[tuple[int, str, str, LaunchConfig | None, int, int]]:
    """What to compile, one kernel each: hops, scatter, name of the launch, launch variant, channels, degree."""
    wide = [(3, "fixed", name, None, 64, 1) for name in list_calls(3)]  # take longest
    directed = [(2, "fixed", name, None, n, 1) for n in (16, 32) for name in list_calls(2)]
    stored = [
        (hops, "store", name, None, width, degree)
        for hops, width, degree in STORED
        for name in list_stored_calls(hops)
    ]
    return [*wide, *((*job, 0) for job in list_scalar_jobs()), *directed, *stored]


def list_scalar_jobs() -> list[tuple[int, str, str, LaunchConfig | None, int]]:
    """Those of scalar messages, without the degree."""
    jobs: list[Any] = [(2, "fixed", name, None, 32) for name in list_calls(2)]
    jobs += [(2, "fixed", name, None, 16) for name in list_calls(2)]
    jobs += [(1, "fixed", name, None, 16) for name in list_calls(1)]
    jobs += [(1, "store", name, None, 16) for name in ("place", *list_stored_calls(1), "finish")]
    jobs += [(1, "float", name, None, 16) for name in ("place", "moments_adjoint", "finish")]
    return jobs + [(1, "fixed", kernel, config, 16) for kernel, config in VARIANTS]


@functools.cache
def make_weights(
    hops: int,
    species: int,
    name: str,
    width: int = 16,
    degree: int = 0,
    hidden: tuple[int, int] = (64, 64),
) -> PotentialWeights:
    sample = build_lattice(name, 2, REACH, "cpu", rattle=0.12, seed=3)
    sample.species.copy_(torch.arange(len(sample.species)) % species)
    return draw_weights(
        hops, species, sample, n_channels=width, n_mixed=width, hidden=hidden, message_degree=degree, inner=INNER,
    )  # fmt: skip
