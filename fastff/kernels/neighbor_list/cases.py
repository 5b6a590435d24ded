"""Builds of the neighbor list for compilation ahead of time, and what ``fastff tune`` measures of it.

Not here: structures of tests, which bring their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fastff.kernels.contract import Build, list_launched
from fastff.kernels.tuning import LaunchConfig, Workload, make_key

REACH = 5.4
"""Å; between the shells of copper, with 54 neighbors."""


def list_builds() -> Iterator[Build]:
    """The kernels with int32 entries, as for anything below 67 million atoms, and with int64 ones."""
    from fastff.kernels.neighbor_list.kernels import LIST_SPACE, list_kernel
    from fastff.kernels.neighbor_list.rows import ROWS_CONFIG, rows_kernel

    pointers = {
        "points": "*fp64",
        "labels": "*i64",
        "keys": "*i64",
        "starts": "*i64",
        "frame": "*fp64",
        "entries": "*i32",
        "counts": "*i32",
    }
    names = ("n_slots", "nx", "ny", "nz", "mx", "my", "mz", "px", "py", "pz", "images", "code_bits")
    signature = pointers | dict.fromkeys(names, "i32")
    wide = {"entries": "*i64"}
    for name, types in (
        ("neighbor_list", signature),
        ("neighbor_list wide", {**signature, **wide}),
    ):

        def make(
            end: str, config: LaunchConfig, name: str = name, types: dict[str, str] = types
        ) -> Build:
            return Build(name + end, list_kernel, types, config.blocks, config)

        yield from list_launched(make, LIST_SPACE, make_key(torch.float64))
    pointers = {
        "points": "*fp64",
        "rows": "*i64",
        "batch": "*i64",
        "pointers": "*i64",
        "code_pointers": "*i64",
        "translations": "*fp64",
        "square": "*fp64",
        "due": "*i32",
        "entries": "*i32",
        "counts": "*i32",
    }
    signature = pointers | dict.fromkeys(("n_slots", "code_bits"), "i32")
    for name, types in (("rows", signature), ("rows wide", {**signature, **wide})):
        yield Build(f"neighbor_list {name}", rows_kernel, types, ROWS_CONFIG.blocks, ROWS_CONFIG)


def list_workloads(widths: Mapping[str, int], device: torch.device) -> Iterator[Workload]:
    """The search in a copper crystal of 108,000 atoms, or as many as have ``n_edges`` pairs; no width matters.

    The numbers of neighbors are those of the lattice; entries are compared with what the written default lists, as the
    order of a row is the same whatever the tile.
    """
    from fastff.kernels import tuning
    from fastff.kernels.moment_potential.cases import LATTICES, build_lattice
    from fastff.kernels.neighbor_list import op
    from fastff.kernels.neighbor_list.kernels import LIST_SPACE
    from fastff.kernels.neighbor_list.plan import assign_bins, make_frame

    repeats = round((widths.get("n_edges", 5_616_000) / 216) ** (1 / 3))
    repeats = max(repeats, math.ceil(REACH / LATTICES["Cu"][0]))
    system = build_lattice("Cu", repeats, REACH, device, rattle=0.0)
    frame = make_frame(system.cell.cpu().numpy(), (True, True, True))
    bins = assign_bins(system.positions, frame, REACH)
    keys, order = bins.keys.sort(stable=True)
    search = op.prepare_search(bins, keys, order, order, frame, REACH)
    matrix = op.provide_matrix(len(order), 64, bins.images, device, None)
    matrix.entries.zero_()

    def launch() -> tuple[Tensor, Tensor]:
        op.launch_list(*search, matrix)
        return matrix.counts, matrix.entries

    def list_by_default() -> tuple[Tensor, Tensor]:
        with tuning.override(LIST_SPACE.kernel, LIST_SPACE.default):
            launch()
        return system.matrix.counts.clone(), matrix.entries.clone()

    yield Workload(LIST_SPACE, make_key(torch.float64), launch, list_by_default)
