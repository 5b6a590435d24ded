"""What every op must satisfy, as functions that raise ``AssertionError`` with the figure that was off.

Here: the records that an op's ``cases.py`` fills (cases, suites, builds), their discovery, and the checks that tests
run on them, on any device and in Triton's interpreter. Not here: the cases themselves, tests, timings.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from fastff.kernels import dispatch, tuning
from fastff.kernels.aot import TARGETS
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, Workload, find_relative_error

TOLERANCES: Final = {torch.float64: 1e-12, torch.float32: 2e-6}
"""Largest ``|out - ref| / |ref|`` against the float64 reference, by dtype of the input."""
FLOAT32_FACTOR: Final = 4.0
"""A derivative in float32 may be off by this times what the reference itself is off by in float32, where that is more
than :data:`TOLERANCES`: near nodes of the basis and for short vectors second derivatives cancel, and lose digits in any
implementation. Four, because kernel and reference round in different orders and places."""
FLOAT32_CEILING: Final = 1e-4
"""Largest limit that is derived in this way."""
PAINN: Final = {"n_radial": 16, "n_channels": 32, "l_max": 1, "n_hidden": 32}
"""Widths at which student ``painn`` launches the generic ops, which are compiled ahead of time for them."""
PAINN_TARGETS: Final = ("sm_90", "gfx942")
"""Where: sm_80 differs little from sm_90, and every compilation takes a second or more of each run of the tests."""


@dataclass(frozen=True)
class Case:
    """A named input of an op.

    Attributes
    ----------
    name : str
    build : callable
        ``build(device, dtype)`` returns the positional arguments of the op; the same numbers at every call.
    production : bool
        Large: for GPUs and benchmarks, not for the interpreter.
    """

    name: str
    build: Callable[[torch.device, torch.dtype], tuple[Any, ...]]
    production: bool = False


@contextlib.contextmanager
def poison_allocations() -> Iterator[None]:
    """Fill every uninitialised allocation with NaN (largest integer), so that unwritten outputs show."""
    mode = torch.get_deterministic_debug_mode()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        settings.fill_uninitialized_memory = fill


def check_forward(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    *,
    backend: str = "triton",
    tolerance: float | None = None,
) -> float:
    """Compare an op with its reference in float64, into poisoned memory; return the relative error."""
    arguments = case.build(device, dtype)
    with dispatch.use(backend), poison_allocations():
        output = function(*arguments)
    expected = reference(*_map_floating(arguments, Tensor.double))
    _check_dtype(output, dtype)
    return _check_error(f"{case.name}: forward", output, expected, dtype, tolerance)


def check_bits(
    function: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    *,
    differentiated: tuple[int, ...] | None = None,
) -> None:
    """Run an op twice on the same input and require the same bits, forward and backward."""
    results = []
    for _ in range(2):
        leaves, arguments = _make_leaves(case.build(device, dtype), differentiated)
        with dispatch.use("triton"):
            outputs = _as_tuple(function(*arguments))
            grads = torch.autograd.grad(outputs, leaves, _draw_like(outputs, 1), allow_unused=True)
        results.append([*outputs, *(grad for grad in grads if grad is not None)])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second), f"{case.name}: two runs differ in their bits"


def check_derivatives(
    op: dispatch.Op,
    function: Callable[..., Any],
    reference: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    *,
    backend: str = "triton",
    tolerance: float | None = None,
    differentiated: tuple[int, ...] | None = None,
) -> None:
    """Compare the first and, where declared, second derivatives with the float64 reference.

    The first is also taken as a last one (``create_graph=False``), which may run other kernels. A declared order of 1
    or 2 must raise on one derivative more.
    """
    arguments = case.build(device, dtype)
    declared = op.derivative_order
    for order in range(1, 3 if declared is None else min(declared, 2) + 1):
        exact = _differentiate(
            reference, _map_floating(arguments, Tensor.double), order, differentiated
        )
        with dispatch.use(backend), poison_allocations():
            found = _differentiate(function, arguments, order, differentiated)
        limit = tolerance
        if limit is None:
            error = find_relative_error(found, exact)
            if dtype == torch.float32 and error > TOLERANCES[dtype]:
                plain = _differentiate(reference, arguments, order, differentiated)
                limit = derive_limit(plain, exact)
        _check_error(f"{case.name}: derivative {order}", found, exact, dtype, limit)
    if declared is None:
        return
    with dispatch.use(backend):
        try:
            _differentiate(function, arguments, declared + 1, differentiated)
        except (RuntimeError, NotImplementedError):
            return
    raise AssertionError(f"{op.name} declares order {declared} but gave one more")


def launch_once(suite: Suite, device: torch.device) -> None:
    """Call an op on its first case, with first derivatives where it has them, to see whether its kernels compile."""
    leaves, arguments = _make_leaves(
        suite.cases[0].build(device, torch.float32), suite.differentiated
    )
    outputs = _as_tuple(suite.function(*arguments))
    torch.autograd.grad(outputs, leaves, _draw_like(outputs, 1), allow_unused=True)


def derive_limit(plain: Any, exact: Any) -> float:
    """Limit of a float32 result from the error of the float32 reference against the float64 one.

    :data:`FLOAT32_FACTOR` times that error, at least the entry of :data:`TOLERANCES`, at most :data:`FLOAT32_CEILING`.
    """
    measured = FLOAT32_FACTOR * find_relative_error(plain, exact)
    return min(max(TOLERANCES[torch.float32], measured), FLOAT32_CEILING)


def _differentiate(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    order: int,
    differentiated: tuple[int, ...] | None,
) -> tuple[Tensor, ...]:
    """Derivative of the given order, contracted with fixed random cotangents that are differentiated in turn."""
    leaves, arguments = _make_leaves(arguments, differentiated)
    outputs = _as_tuple(function(*arguments))
    for k in range(1, order + 1):
        seeds = _draw_like(outputs, k)
        for seed in seeds:
            seed.requires_grad_()
        kept = [output for output in outputs if output.requires_grad]
        kept_seeds = [s for s, o in zip(seeds, outputs, strict=True) if o.requires_grad]
        outputs = torch.autograd.grad(
            kept,
            leaves,
            kept_seeds,
            create_graph=k < order,
            allow_unused=True,
            materialize_grads=True,
        )
        leaves = [*leaves, *seeds]
    return outputs


def _make_leaves(
    arguments: tuple[Any, ...], differentiated: tuple[int, ...] | None
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """Detach all tensors; those of the chosen arguments (all by default) become leaves."""
    leaves: list[Tensor] = []

    def detach(value: Tensor) -> Tensor:
        leaves.append(value.detach().requires_grad_())
        return leaves[-1]

    detached = tuple(
        _map_floating(
            value, detach if differentiated is None or k in differentiated else Tensor.detach
        )
        for k, value in enumerate(arguments)
    )
    return leaves, detached


def _map_floating(values: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(values, Tensor):
        return change(values) if values.is_floating_point() else values
    if isinstance(values, tuple | list):
        return type(values)(_map_floating(value, change) for value in values)
    return values


def _draw_like(tensors: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """Fixed standard-normal tensors, the same numbers for every dtype on one device."""
    generator = torch.Generator(tensors[0].device).manual_seed(seed)
    return [
        torch.randn(one.shape, generator=generator, device=one.device).to(one.dtype)
        for one in tensors
    ]


def _as_tuple(output: Any) -> tuple[Tensor, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _check_dtype(output: Any, dtype: torch.dtype) -> None:
    for one in _as_tuple(output):
        assert one.dtype == dtype, f"output is {one.dtype}, the input {dtype}"


def _check_error(
    what: str, output: Any, expected: Any, dtype: torch.dtype, tolerance: float | None
) -> float:
    for one, ref in zip(_as_tuple(output), _as_tuple(expected), strict=True):
        assert one.shape == ref.shape, f"{what}: shape {one.shape}, expected {ref.shape}"
    error = find_relative_error(output, expected)
    limit = TOLERANCES[dtype] if tolerance is None else tolerance
    assert error <= limit, f"{what}: relative error {error:.2e} above {limit:.1e}"
    return error


@dataclass(frozen=True)
class Suite:
    """One public function with its reference and its cases; every ``cases.py`` lists its own as ``SUITES``.

    Attributes
    ----------
    op : Op
    function, reference : callable
        Same signature.
    cases : tuple of Case
    dtypes : tuple of torch.dtype
        What the kernels take.
    tolerance : float, optional
        Instead of :data:`TOLERANCES`.
    differentiated : tuple of int, optional
        Positions of the arguments that are differentiated; all by default.
    """

    op: dispatch.Op
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)
    tolerance: float | None = None
    differentiated: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Build:
    """A kernel with the types and constants it is compiled with ahead of time.

    Every ``cases.py`` yields its own from ``list_builds()``, for the widths of production.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    config: LaunchConfig
    amd_constexprs: Mapping[str, Any] = field(default_factory=dict)
    """Constants that differ on AMD targets (the precision of ``tl.dot``)."""
    targets: tuple[str, ...] = tuple(TARGETS)
    """Where it is launched like this: everywhere, or where a shipped table says so."""


def list_settings(
    space: LaunchSpace, key: str
) -> Iterator[tuple[str, LaunchConfig, tuple[str, ...]]]:
    """Yield end of a name, configuration and targets of the builds of a kernel at one key.

    The written default for every target, then what shipped tables say instead for the architectures they are of: what
    is launched there.
    """
    for arch, config in tuning.list_settings(space, key).items():
        yield (f" {arch} table", config, (arch,)) if arch else ("", config, tuple(TARGETS))


def sign_floats(kernel: Any, constexprs: Mapping[str, Any], count: str) -> dict[str, str]:
    """Signature of a kernel whose arguments point to float32, but for constants and the number of rows, ``count``."""
    pointers = [one for one in kernel.arg_names if one not in constexprs and one != count]
    return {**dict.fromkeys(pointers, "*fp32"), count: "i32"}


def list_launched(
    make: Callable[[str, LaunchConfig], Build], space: LaunchSpace, key: str
) -> Iterator[Build]:
    """The builds of a kernel at one key: by default, and by shipped tables where those give another program.

    ``make`` takes the end of the name and the configuration.
    """
    seen: list[tuple[dict[str, Any], int, int]] = []
    for end, config, targets in list_settings(space, key):
        build = make(end, config)
        program = dict(build.constexprs), config.num_warps, config.num_stages
        if program not in seen:
            seen.append(program)
            yield replace(build, targets=targets)


def restrict_targets(builds: Iterable[Build], wanted: Collection[str]) -> Iterator[Build]:
    """Of the builds of :func:`list_launched`, on each target that is wanted the one that is launched there."""
    default, *others = builds
    special = {target for one in others for target in one.targets}
    for one, mine in ((default, set(TARGETS) - special), *((one, one.targets) for one in others)):
        if targets := tuple(target for target in TARGETS if target in mine and target in wanted):
            yield replace(one, targets=targets)


def list_suites() -> tuple[Suite, ...]:
    """Return the suites of all ops that have a ``cases.py``; imports no Triton."""
    found = _list_case_modules()
    return tuple(suite for module in found for suite in getattr(module, "SUITES", ()))


def list_builds() -> tuple[Build, ...]:
    """Return the builds of all ops that have a ``cases.py``; imports Triton."""
    found = [module for module in _list_case_modules() if hasattr(module, "list_builds")]
    return tuple(build for module in found for build in module.list_builds())


def list_tunable() -> tuple[str, ...]:
    """Return the names of the ops that have workloads to measure."""
    found = _list_case_modules()
    return tuple(_name_op(module) for module in found if hasattr(module, "list_workloads"))


def list_workloads(
    widths: Mapping[str, int], device: torch.device, ops: Collection[str] | None = None
) -> Iterator[Workload]:
    """Yield the workloads that ``fastff tune`` measures, of all ops or of some, at the widths of a model.

    ``widths`` may also hold ``n_edges``, the size of the workloads of single ops; they have production size without it.
    """
    for module in _list_case_modules():
        if hasattr(module, "list_workloads") and (ops is None or _name_op(module) in ops):
            yield from module.list_workloads(widths, device)


def _name_op(module: ModuleType) -> str:
    return module.__name__.split(".")[-2]


def _list_case_modules() -> list[ModuleType]:
    package = importlib.import_module("fastff.kernels")
    names = [
        f"fastff.kernels.{one.name}" for one in pkgutil.iter_modules(package.__path__) if one.ispkg
    ]
    return [
        importlib.import_module(f"{name}.cases")
        for name in names
        if importlib.util.find_spec(f"{name}.cases")
    ]
