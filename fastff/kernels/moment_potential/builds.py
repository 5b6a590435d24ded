"""What every fused kernel is compiled with ahead of time, for the widths of production.

Here: the types and constants of each launch of ``evaluate.py``, by students m1 (one hop), m2 (two) and m2-l (wider),
also of three hops, of 64 channels and of hidden layers of 128. Not here: compiling (:mod:`fastff.kernels.aot`), bounds
on the result (``tests/kernels``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch

from fastff.kernels.aot import TARGETS
from fastff.kernels.contract import Build, list_launched, restrict_targets
from fastff.kernels.moment_potential.launches import name_degree, spread_atoms
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, make_key

_INTEGERS = ("n_atoms", "n_slots", "n_species", "code_bits", "stride", "n_partials")
_REALS = ("cutoff", "core_reach", "inner_reach")
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
    if "DEGREE" in kernel.arg_names:
        constants.setdefault("DEGREE", 0)
    if "HAS_INNER" in kernel.arg_names:
        constants.setdefault("HAS_INNER", False)  # as models of earlier versions
    types = {"ATOMS": "i32", **(types or {})}
    at_compile_time = {p.name for p in kernel.params if p.is_constexpr}
    constants |= {k: v for k, v in config.blocks.items() if k in at_compile_time}
    amd = {}
    if "PRECISION" in kernel.arg_names and "PRECISION" not in constants:
        constants["PRECISION"] = "tf32x3"
        amd["PRECISION"] = "ieee"  # as launches.choose_precision
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
    yield from list_launched(
        lambda end, config: _make(name + end, kernel, given, config, types), space, key
    )


def _list_sums(
    channels: int, suffix: str, *, middle: bool = False, degree: int = 0
) -> Iterator[Build]:
    """Moments and their adjoint of the first hop and of later ones; ``middle``: of a hop between two others, too.

    ``degree``: of the messages; the first hop reads none, and is left out where they are directed.
    """
    from fastff.kernels.moments.kernels import MOMENTS_SPACE, moments_kernel
    from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, adjoint_kernel

    key = make_key(torch.float32, channels=channels, **name_degree(degree))
    for hop in (0, 1) if degree == 0 else (1,):
        constants: dict[str, Any] = {
            "C": channels, "BY_SENDER": hop > 0, "DEGREE": degree, "HAS_INNER": True,
        }  # fmt: skip
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
    channels: int,
    mixed: int,
    hidden: int,
    suffix: str,
    *,
    few: bool = False,
    middle: bool = False,
    degree: int = 0,
) -> Iterator[Build]:
    """Kernels of the node block: invariants and back, and the perceptron as each hop launches it.

    ``few``: as they are launched over few atoms. ``middle``: a hop between two others, too. ``degree``: of the
    messages; where they are directed, what does not depend on them is left out.
    """
    from fastff.kernels.node_block import invariants, perceptron

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
        (invariants.INVARIANTS_SPACE, invariants.invariants_kernel),
        (invariants.PULLBACK_SPACE, invariants.pullback_kernel),
    ):
        if degree and "DEGREE" not in kernel.arg_names:
            continue
        given = {**sizes, "DEGREE": degree} if "DEGREE" in kernel.arg_names else sizes
        yield from make(f"{space.kernel} {suffix}", kernel, given, space, mixed=mixed)
    for name, extra, last, adjoint in (
        ("only", False, True, True),
        ("send", False, False, False),
        ("pull", False, False, True),
        ("pass", True, False, False),
        ("back", True, False, True),
        ("last", True, True, True),
    ):
        if (extra and not last and not middle) or (degree and name == "only"):
            continue
        constants = {
            "C": channels, "INPUTS": 8 * mixed, "H1": hidden, "H2": hidden,
            "HAS_EXTRA": extra, "WITH_ENERGY": last or not adjoint, "FIXED": True,
            "WITH_MESSAGES": not last and not adjoint, "WITH_ADJOINT": adjoint,
            "PULL_MESSAGES": adjoint and not last, "DEGREE": degree,
        }  # fmt: skip
        space, kernel = perceptron.PERCEPTRON_SPACE, perceptron.perceptron_kernel
        widths = {"inputs": 8 * mixed, "hidden": hidden, **name_degree(degree)}
        yield from make(f"{space.kernel} {suffix} {name}", kernel, constants, space, **widths)


def list_builds() -> Iterator[Build]:
    """Every fused kernel as students launch it."""
    from fastff.kernels.moment_potential import kernels
    from fastff.kernels.moments_adjoint.gather import GATHER_SPACE, gather_kernel

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
    for channels in (16, 32):
        name, middle = f"C={channels} directed", channels == 32
        yield from _list_sums(channels, name, middle=middle, degree=1)
        yield from _list_nodes(channels, channels, 64, name, middle=middle, degree=1)
    yield from _list_nodes(16, 16, 64, "C=16 few directed", few=True, degree=1)
    yield from _list_widest()
    yield from _list_deep()
    for precision in ("tf32", "ieee"):
        for channels in (16, 32):
            yield from _list_products(channels, precision, ("sm_90",))
    yield from _list_scatters()
    yield from _list_gathers()
    yield from _list_stored()


def _list_widest() -> Iterator[Build]:
    """Three hops of 64 channels with directed messages: nothing but what such a student launches."""
    for one in _list_sums(64, "C=64"):
        if not one.constexprs["BY_SENDER"] and one.constexprs.get("ACCUMULATE", True):
            yield one
    for one in _list_nodes(64, 64, 64, "C=64"):
        if one.kernel.__name__ != "perceptron_kernel":
            yield one
    yield from _list_sums(64, "C=64 directed", middle=True, degree=1)
    yield from _list_nodes(64, 64, 64, "C=64 directed", middle=True, degree=1)


def _list_deep() -> Iterator[Build]:
    """Perceptrons of 64 channels with hidden layers of 128: of a middle hop both ways, and the last; on one target."""
    nodes = _list_nodes(64, 64, 128, "C=64 hidden=128 directed", middle=True, degree=1)
    for one in nodes:
        if one.name.endswith((" pass", " back", " last")):
            yield replace(one, targets=("sm_90",))


def _list_products(channels: int, precision: str, targets: Collection[str]) -> Iterator[Build]:
    """Kernels with matrix products at another precision than the default, in the form with most work."""
    from fastff.kernels.moments.kernels import MOMENTS_SPACE, moments_kernel
    from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, adjoint_kernel
    from fastff.kernels.node_block import invariants, perceptron

    end = f"C={channels} {precision}"
    width = {"C": channels, "PRECISION": precision}
    sums = {**width, "BY_SENDER": True}
    adjoint = {"HAS_CORE": False, "WITH_VIRIAL": True, "SCATTER": "fixed", "ACCUMULATE": False}
    node = {**width, "Q": channels}
    last = {
        "INPUTS": 8 * channels, "H1": 64, "H2": 64, "HAS_EXTRA": True, "WITH_ENERGY": True, "FIXED": True,
        "WITH_MESSAGES": False, "WITH_ADJOINT": True, "PULL_MESSAGES": False,
    }  # fmt: skip
    key = make_key(torch.float32, channels=channels)
    node_key = make_key(torch.float32, channels=channels, mixed=channels)
    perceptron_key = make_key(torch.float32, channels=channels, inputs=8 * channels, hidden=64)
    integers = {"forces": "*i64"}
    for builds in (
        _make_all(f"moments {end}", moments_kernel, sums, MOMENTS_SPACE, key),
        _make_all(
            f"moments_adjoint {end}", adjoint_kernel, {**sums, **adjoint}, ADJOINT_SPACE, key, integers
        ),
        _make_all(
            f"invariants {end}", invariants.invariants_kernel, node, invariants.INVARIANTS_SPACE, node_key
        ),
        _make_all(
            f"invariants_adjoint {end}", invariants.pullback_kernel, node, invariants.PULLBACK_SPACE, node_key
        ),
        _make_all(
            f"node_perceptron {end}", perceptron.perceptron_kernel, {**width, **last}, perceptron.PERCEPTRON_SPACE,
            perceptron_key,
        ),
    ):  # fmt: skip
        yield from restrict_targets(builds, targets)


def _list_scatters() -> Iterator[Build]:
    """Other options of 16 channels: no virial, forces summed in float32 or by way of edges, and int64 entries."""
    from fastff.kernels.moment_potential import kernels
    from fastff.kernels.moments.kernels import MOMENTS_SPACE, moments_kernel
    from fastff.kernels.moments_adjoint.gather import GATHER_SPACE, gather_kernel
    from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, adjoint_kernel
    from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE, perceptron_kernel

    wide, single = {"neighbors": "*i64", "reverse": "*i64"}, {"forces": "*fp32"}
    floats = {**single, "accumulators": "*fp32", "message_gradients": "*fp32"}
    floats["extra_gradients"] = "*fp32"
    key = make_key(torch.float32, channels=16)
    common: dict[str, Any] = {"C": 16, "WITH_VIRIAL": True, "SCATTER": "fixed"}
    for name, hop, changes, types in (
        ("no virial", 1, {"WITH_VIRIAL": False}, {"forces": "*i64"}),
        ("wide", 2, {}, {"forces": "*i64", **wide}),
        ("float", 1, {"SCATTER": "float"}, floats),
        ("float", 2, {"SCATTER": "float"}, floats),
        ("store", 1, {"SCATTER": "store"}, single),
        ("store", 2, {"SCATTER": "store"}, {**single, "message_gradients": "*fp32"}),
    ):
        given = {"BY_SENDER": hop > 1, "HAS_CORE": hop == 1, "ACCUMULATE": False}
        builds = _make_all(
            f"moments_adjoint C=16 hop {hop} {name}", adjoint_kernel, {**common, **given, **changes},
            ADJOINT_SPACE, key, types,
        )  # fmt: skip
        yield from restrict_targets(builds, ("sm_90", "gfx942") if hop == 1 else ("sm_90",))
    builds = _make_all(
        "moments C=16 wide", moments_kernel, {"C": 16, "BY_SENDER": True}, MOMENTS_SPACE, key, wide
    )
    yield from restrict_targets(builds, ("sm_90", "gfx942"))
    flags: dict[str, Any] = {"HOPS": 2, "HAS_CORE": True, "BLOCK": 256}
    finish = kernels.finish_kernel
    yield _make("finish no virial", finish, {**flags, "WITH_VIRIAL": False, "FIXED": True})
    yield _make(
        "finish float", finish, {**flags, "WITH_VIRIAL": True, "FIXED": False}, types=floats
    )
    yield _make("place float", kernels.place_kernel, {"CLEAR": True, "BLOCK": 128}, types=floats)
    yield _make("place store", kernels.place_kernel, {"CLEAR": False, "BLOCK": 128}, types=floats)
    yield _make(
        "gather_forces wide", gather_kernel, {"ACCUMULATE": True}, GATHER_SPACE.default, types=wide
    )
    pull = {
        "C": 16, "INPUTS": 128, "H1": 64, "H2": 64, "HAS_EXTRA": False, "WITH_ENERGY": False,
        "FIXED": False, "WITH_MESSAGES": False, "WITH_ADJOINT": True, "PULL_MESSAGES": True,
    }  # fmt: skip
    perceptron_key = make_key(torch.float32, channels=16, inputs=128, hidden=64)
    builds = _make_all(
        "node_perceptron C=16 pull float", perceptron_kernel, pull, PERCEPTRON_SPACE, perceptron_key, floats
    )  # fmt: skip
    yield from restrict_targets(builds, ("sm_90",))


def _list_gathers() -> Iterator[Build]:
    """The gather of message gradients; that of 64 channels, of scalars and over int64 entries on one target."""
    from fastff.kernels.moments_adjoint.gather import MESSAGES_SPACE, gather_messages_kernel

    wide = {"neighbors": "*i64", "reverse": "*i64"}
    for name, channels, degree, types, targets in (
        ("C=16", 16, 0, {}, ("sm_90",)),
        ("C=16 directed", 16, 1, {}, tuple(TARGETS)),
        ("C=16 directed wide", 16, 1, wide, ("sm_90",)),
        ("C=32 directed", 32, 1, {}, tuple(TARGETS)),
        ("C=64 directed", 64, 1, {}, ("sm_90",)),
    ):
        key = make_key(torch.float32, channels=channels, **name_degree(degree))
        builds = _make_all(
            f"gather_messages {name}", gather_messages_kernel, {"C": channels, "DEGREE": degree},
            MESSAGES_SPACE, key, {"message_gradients": "*fp32", **types},
        )  # fmt: skip
        yield from restrict_targets(builds, targets)


def _list_stored() -> Iterator[Build]:
    """Adjoint and perceptron of a middle hop with ``scatter="store"`` and directed messages, on one target."""
    from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE, adjoint_kernel
    from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE, perceptron_kernel

    floats = dict.fromkeys(("forces", "message_gradients", "extra_gradients"), "*fp32")
    flags = {
        "BY_SENDER": True, "HAS_INNER": True, "HAS_CORE": False, "WITH_VIRIAL": True, "SCATTER": "store",
        "ACCUMULATE": True,
    }  # fmt: skip
    layers = {
        "H1": 64, "H2": 64, "HAS_EXTRA": True, "WITH_ENERGY": False, "FIXED": False, "WITH_MESSAGES": False,
        "WITH_ADJOINT": True, "PULL_MESSAGES": True,
    }  # fmt: skip
    for channels in (16, 32, 64):
        name, sizes = f"C={channels} directed", {"C": channels, "DEGREE": 1}
        widths = {"channels": channels, **name_degree(1)}
        builds = _make_all(
            f"moments_adjoint {name} store", adjoint_kernel, {**sizes, **flags}, ADJOINT_SPACE,
            make_key(torch.float32, **widths), floats,
        )  # fmt: skip
        yield from restrict_targets(builds, ("sm_90",))
        if channels == 32:
            given = {**sizes, **layers, "INPUTS": 8 * channels}
            key = make_key(torch.float32, **widths, inputs=8 * channels, hidden=64)
            builds = _make_all(
                f"node_perceptron {name} back store", perceptron_kernel, given, PERCEPTRON_SPACE, key, floats
            )  # fmt: skip
            yield from restrict_targets(builds, ("sm_90",))
