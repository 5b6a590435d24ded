"""Builds of the half steps for compilation ahead of time. Not here: their tests."""

from __future__ import annotations

from collections.abc import Iterator

from fastff.kernels.contract import Build


def list_builds() -> Iterator[Build]:
    """Every kernel, with the thermostats that change it."""
    from fastff.kernels.md_step import kernels

    doubles, longs, flags = "*fp64", "*i64", "*u8"
    state = {"step": longs, "target": longs, "pending": flags, "failed": flags, "unsound": "*i32"}
    found = {"stale": "*i32", "energy": doubles}
    begin = {
        **dict.fromkeys(
            ("positions", "velocities", "forces", "inverse_masses", "constants"), doubles
        ),
        "seed": longs,
        **state,
        **dict.fromkeys(("old_positions", "old_velocities", "partials"), doubles),
        "n_atoms": "i32",
    }
    finish = {
        **dict.fromkeys(("velocities", "forces", "inverse_masses", "constants"), doubles),
        **state,
        **found,
        "partials": doubles,
        "n_atoms": "i32",
    }
    settle = {
        "constants": doubles,
        **state,
        **found,
        **dict.fromkeys(("partials", "heat", "factor", "scalars"), doubles),
        "start": longs,
        **dict.fromkeys(("n_begin", "n_finish", "length"), "i32"),
    }
    scale = {"velocities": doubles, "factor": doubles, "n_values": "i32"}
    for space, kernel, signature, changes in (
        (kernels.BEGIN_SPACE, kernels.begin_kernel, begin, {"": {"LANGEVIN": False}, " langevin": {"LANGEVIN": True}}),
        (kernels.FINISH_SPACE, kernels.finish_kernel, finish, {"": {"RESCALE": False}, " rescale": {"RESCALE": True}}),
        (
            kernels.SETTLE_SPACE,
            kernels.settle_kernel,
            settle,
            {
                "": {"LANGEVIN": False, "RESCALE": False},
                " langevin": {"LANGEVIN": True, "RESCALE": False},
                " rescale": {"LANGEVIN": False, "RESCALE": True},
            },
        ),
        (kernels.SCALE_SPACE, kernels.scale_kernel, scale, {"": {}}),
    ):  # fmt: skip
        for name, constants in changes.items():
            blocks = {**space.default.blocks, **constants}
            yield Build(f"{space.kernel}{name}", kernel, signature, blocks, space.default)
