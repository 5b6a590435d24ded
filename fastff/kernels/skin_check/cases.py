"""Build of the skin check for compilation ahead of time. Not here: its tests."""

from __future__ import annotations

from collections.abc import Iterator

from fastff.kernels.contract import Build


def list_builds() -> Iterator[Build]:
    """The one kernel."""
    from fastff.kernels.skin_check.kernels import CHECK_SPACE, check_kernel

    doubles = dict.fromkeys(("positions", "old_positions", "cell", "frame"), "*fp64")
    signature = doubles | {"stale": "*i32", "n_atoms": "i32"}
    yield Build(
        "skin_check", check_kernel, signature, CHECK_SPACE.default.blocks, CHECK_SPACE.default
    )
