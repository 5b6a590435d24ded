"""Build of the neighbor list for compilation ahead of time. Not here: structures (tests bring their own)."""

from __future__ import annotations

from collections.abc import Iterator

from fastff.kernels.contract import Build


def list_builds() -> Iterator[Build]:
    """The kernels with int32 entries, as for anything below 67 million atoms."""
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
    yield Build(
        "neighbor_list", list_kernel, signature, LIST_SPACE.default.blocks, LIST_SPACE.default
    )
    pointers = {
        "points": "*fp64",
        "rows": "*i64",
        "batch": "*i64",
        "pointers": "*i64",
        "code_pointers": "*i64",
        "translations": "*fp64",
        "square": "*fp64",
        "entries": "*i32",
        "counts": "*i32",
    }
    signature = pointers | dict.fromkeys(("n_slots", "code_bits"), "i32")
    yield Build("neighbor_list rows", rows_kernel, signature, ROWS_CONFIG.blocks, ROWS_CONFIG)
