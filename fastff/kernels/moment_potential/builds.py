"""What every fused kernel is compiled with ahead of time, for the widths of production.

Here: the types and constants of each launch of ``evaluate.py``, by students m1 (one hop), m2 (two) and m2-l (wider),
also of three hops. Not here: compiling (:mod:`fastff.kernels.aot`), bounds on the result (``tests/kernels``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from fastff.kernels.contract import Build, list_settings
from fastff.kernels.moment_potential.evaluate import spread_atoms
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

_INTEGERS = ("n_atoms", "n_slots", "n_species", "code_bits", "stride", "n_partials")
_REALS = ("cutoff", "core_reach")
_TYPES = {
    "species": "*i32", "sites": "*i32", "translations": "*i32", "neighbors": "*i32", "counts": "*i32",
    "reverse": "*i32", "positions": "*fp64", "composition": "*fp64", "partials": "*fp64",
    "totals": "*fp64", "accumulators": "*i64", "message_gradients": "*i64", "extra_gradients": "*i64",
}  # fmt: skip
_PLAIN = LaunchConfig({}, 4, 1)


def _make(
    name: str,
    kernel: Any,
    given: dict[str, Any],
    config: LaunchConfig = _PLAIN,
    types: dict[str, str] | None = None,
) -> Build:
    """Complete a build: the type of every argument that is no constant, and full float32 products on AMD."""
    constants = dict(given)
    types = {"ATOMS": "i32", **(types or {})}
    at_compile_time = {p.name for p in kernel.params if p.is_constexpr}
    constants |= {k: v for k, v in config.blocks.items() if k in at_compile_time}
    amd = {}
    if "PRECISION" in kernel.arg_names:
        constants["PRECISION"] = "tf32x3"
        amd["PRECISION"] = "ieee"
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        kind = "i32" if argument in _INTEGERS else "fp32" if argument in _REALS else "*fp32"
        signature[argument] = types.get(argument) or _TYPES.get(argument, kind)
    return Build(name, kernel, signature, constants, config, amd)


def _make_all(
    name: str,
    kernel: Any,
    given: dict[str, Any],
    space: LaunchSpace,
    key: str,
    types: dict[str, str] | None = None,
) -> Iterator[Build]:
    """The builds of one launch: by default, and by shipped tables where those give another program."""
    seen: list[tuple[dict[str, Any], int, int]] = []
    for end, config, targets in list_settings(space, key):
        build = _make(name + end, kernel, given, config, types)
        program = dict(build.constexprs), config.num_warps, config.num_stages
        if program not in seen:
            seen.append(program)
            yield replace(build, targets=targets)


def _list_sums(channels: int, suffix: str, *, middle: bool = False) -> Iterator[Build]:
    """Moments and their adjoint of the first hop and of later ones; ``middle``: of a hop between two others, too."""
    from fastff.kernels.moments.kernels import MOMENTS_SPACE, moments_kernel
    from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, adjoint_kernel

    key = make_key(torch.float32, channels=channels)
    for hop in (0, 1):
        constants: dict[str, Any] = {"C": channels, "BY_SENDER": hop > 0}
        name = f"{suffix} hop {hop + 1}"
        yield from _make_all(f"moments {name}", moments_kernel, constants, MOMENTS_SPACE, key)
        constants |= {"HAS_CORE": hop == 0, "WITH_VIRIAL": True, "SCATTER": "fixed"}
        # the last hop writes terms, those before it add to them; only of three hops is the second one before another
        for adding in (False, True) if hop == 0 or middle else (False,):
            yield from _make_all(
                f"moments_adjoint {name}{' adding' * adding}",
                adjoint_kernel,
                {**constants, "ACCUMULATE": adding},
                ADJOINT_SPACE,
                key,
                {"forces": "*i64"},
            )


def _list_nodes(
    channels: int, mixed: int, hidden: int, suffix: str, *, few: bool = False, middle: bool = False
) -> Iterator[Build]:
    """Kernels of the node block: invariants and back, and the perceptron as each hop launches it.

    ``few``: as they are launched over few atoms. ``middle``: a hop between two others, too.
    """
    from fastff.kernels.node_block import kernels

    def make(
        name: str, kernel: Any, given: dict[str, Any], space: LaunchSpace, **widths: int
    ) -> Any:
        key = make_key(torch.float32, channels=channels, **widths)
        if not few:
            return _make_all(name, kernel, given, space, key)
        config = space.find_default(key)
        spread = spread_atoms(config.to_arguments(), n_atoms=1)
        blocks = {block: spread[block] for block in config.blocks}
        chosen = LaunchConfig(blocks, spread["num_warps"], spread["num_stages"])
        return [_make(name, kernel, given, chosen)]

    sizes: dict[str, Any] = {"C": channels, "Q": mixed}
    for space, kernel in (
        (kernels.INVARIANTS_SPACE, kernels.invariants_kernel),
        (kernels.PULLBACK_SPACE, kernels.pullback_kernel),
    ):
        yield from make(f"{space.kernel} {suffix}", kernel, sizes, space, mixed=mixed)
    for name, extra, last, adjoint in (
        ("only", False, True, True),
        ("send", False, False, False),
        ("pull", False, False, True),
        ("pass", True, False, False),
        ("back", True, False, True),
        ("last", True, True, True),
    ):
        if extra and not last and not middle:
            continue
        constants = {
            "C": channels, "INPUTS": 8 * mixed, "H1": hidden, "H2": hidden,
            "HAS_EXTRA": extra, "WITH_ENERGY": last or not adjoint, "FIXED": True,
            "WITH_MESSAGES": not last and not adjoint, "WITH_ADJOINT": adjoint,
            "PULL_MESSAGES": adjoint and not last,
        }  # fmt: skip
        space, kernel = kernels.PERCEPTRON_SPACE, kernels.perceptron_kernel
        widths = {"inputs": 8 * mixed, "hidden": hidden}
        yield from make(f"{space.kernel} {suffix} {name}", kernel, constants, space, **widths)


def list_builds() -> Iterator[Build]:
    """Every fused kernel as students launch it."""
    from fastff.kernels.moment_potential import kernels
    from fastff.kernels.moments_adjoint.kernels import GATHER_SPACE, gather_kernel

    integers = {"forces": "*i64"}
    yield _make("place", kernels.place_kernel, {"CLEAR": True, "BLOCK": 128}, types=integers)
    flags = {"HOPS": 2, "HAS_CORE": True, "WITH_VIRIAL": True, "FIXED": True, "BLOCK": 256}
    yield _make("finish", kernels.finish_kernel, flags)
    for hops in (1, 3):
        name = f"finish {hops} hop{'s' * (hops > 1)}"
        yield _make(name, kernels.finish_kernel, {**flags, "HOPS": hops})
    yield _make("total", kernels.total_kernel, {"BLOCK": 1024})
    yield _make("gather_forces", gather_kernel, {"ACCUMULATE": False}, GATHER_SPACE.default)
    yield from _list_sums(16, "C=16")
    yield from _list_nodes(16, 16, 64, "C=16")
    yield from _list_nodes(16, 16, 64, "C=16 few", few=True)
    yield from _list_sums(32, "C=32", middle=True)
    yield from _list_nodes(32, 32, 64, "C=32", middle=True)
