"""Builds of the staging kernels for compilation ahead of time. Not here: their tests."""

from __future__ import annotations

from collections.abc import Iterator

from fastff.kernels.contract import Build


def list_builds() -> Iterator[Build]:
    """All three, with int32 entries; contacts with int64 ones too."""
    from fastff.kernels.staging import kernels

    doubles, ints = "*fp64", "*i32"
    stage = {
        "positions": doubles, "order": "*i64", "wraps": ints, "cell": doubles, "shifts": ints,
        "staged": doubles, "translations": ints, "nearest": ints,
        "n_atoms": "i32", "n_codes": "i32", "n_blocks": "i32",
    }  # fmt: skip
    contacts = {
        "sites": ints, "translations": ints, "entries": ints, "counts": ints, "nearest": ints,
        "n_slots": "i32", "code_bits": "i32", "squared_limit": "fp32",
    }  # fmt: skip
    publish = {
        "forces": "*fp32", "energies": doubles, "totals": doubles, "nearest": ints,
        "stale": ints, "order": "*i64", "results": doubles, "n_atoms": "i32",
    }  # fmt: skip
    for space, kernel, signature in (
        (kernels.STAGE_SPACE, kernels.stage_kernel, stage),
        (kernels.CONTACT_SPACE, kernels.contact_kernel, contacts),
        (kernels.PUBLISH_SPACE, kernels.publish_kernel, publish),
    ):
        yield Build(space.kernel, kernel, signature, space.default.blocks, space.default)
    space, wide = kernels.CONTACT_SPACE, {**contacts, "entries": "*i64"}
    name = f"{space.kernel} wide"
    yield Build(name, kernels.contact_kernel, wide, space.default.blocks, space.default)
