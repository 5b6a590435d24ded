"""What ``fastff bench --kernels`` runs: every op at production size, with its definition and its least work.

Here: :class:`Work` and where its entries come from: ops with a case of production size, the kernels of the fused
evaluation, the whole evaluation, the skin check, the neighbor list. Not here: what runs around an evaluation at its
size (:mod:`fastff.report.kernel_steps`), timing, records.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fastff.kernels import contract, dispatch
from fastff.kernels.tuning import find_relative_error

if TYPE_CHECKING:
    from fastff.kernels.moment_potential.cases import System

Direction = Literal["forward", "forward and gradient"]
Variant = Literal["triton", "compiled", "eager"]
TOLERANCE = 1e-5
"""Largest relative error beside float64."""
TOLERANCE_DEEP = 5e-5
"""The same for whole evaluations of three hops: with random weights torch in float32 is off by 1.2e-5 to 1.5e-5."""
ROWS_ON_CPU = {"edge_features": 500_000, "fused_mlp": 50_000}
"""Rows of the first argument on a CPU, where the size of production would take minutes."""
CELLS = 30
"""Cubic cells of copper along each edge for the fused kernels: 108,000 atoms with 54 neighbors."""
FUSED = ("moments", "invariants", "node_perceptron", "invariants_adjoint", "moments_adjoint")
"""Kernels of one hop of the fused evaluation."""
DIRECTED = ("moments", "node_perceptron", "moments_adjoint")
"""Those that differ where messages are directed."""
STUDENTS = {
    "1 hop": (1, 16, 0), "2 hops": (2, 16, 0), "m2-l": (2, 32, 0),
    "2 hops directed": (2, 16, 1), "m2-l directed": (2, 32, 1), "m3-l": (3, 64, 1),
}  # fmt: skip
"""Hops, channels and degree of the messages of the evaluations by what their rows are called: m1, m2, the width of
shipped models, both with directed messages, and the largest student."""
CELLS_WIDE = 20
"""The same for 64 channels, whose definitions in float64 fill a device of 80 GB with more: 32,000 atoms."""
CELLS_QUADRATIC = 9
"""The same for the definition of the neighbor list, which is quadratic in the number of atoms: 2,916 atoms."""


@dataclass(frozen=True)
class Work:
    """One op and direction, ready to run.

    Attributes
    ----------
    op : str
    direction : str
    rows : int
        Length of the first argument.
    exact : Tensor or tuple of Tensor
        Float64 result of the definition.
    n_bytes, n_operations : float
        Least traffic, and floating-point operations that set the floor.
    triton : callable or None
        The Triton implementation; None if it cannot run here, for the reason in ``obstacle``.
    definition : callable
        In float32. ``definition(compile)`` hands functions through ``compile`` and runs them: ``torch.compile``, or
        the identity.
    restore : callable, optional
        To be called before each run of the Triton implementation, not timed.
    read : callable, optional
        Makes what is compared with ``exact`` of what an implementation returns, not timed.
    tolerance : float
        Largest relative error that is no fault.
    """

    op: str
    direction: Direction
    rows: int
    exact: Any
    n_bytes: float
    n_operations: float
    triton: Callable[[], Any] | None
    definition: Callable[[Callable[..., Any]], Callable[[], Any]]
    obstacle: str = ""
    restore: Callable[[], Any] | None = None
    read: Callable[[Any], Any] | None = None
    tolerance: float = TOLERANCE

    def compare(self, found: Any) -> float:
        """Largest relative error of what an implementation returned."""
        return find_relative_error(found if self.read is None else self.read(found), self.exact)


Maker = Callable[[torch.device], Iterator[Work]]


def list_makers(device: torch.device) -> list[tuple[Maker, tuple[str, ...]]]:
    """Sources of work and the op of every entry each gives; an entry holds gigabytes, so they are made one by one."""
    makers: list[tuple[Maker, tuple[str, ...]]] = [
        (functools.partial(make_generic, suite), 2 * (suite.function.__name__,))
        for suite in list_suites()
    ]
    if device.type == "cuda":
        for channels in sorted({channels for _, channels, _ in STUDENTS.values()}):
            named = tuple(name_fused(kernel, channels) for kernel in FUSED)
            makers.append((functools.partial(make_fused, channels=channels), named))
        for channels in sorted({channels for _, channels, degree in STUDENTS.values() if degree}):
            named = tuple(name_fused(kernel, channels, 1) for kernel in DIRECTED)
            makers.append((functools.partial(make_fused, channels=channels, degree=1), named))
        for student in STUDENTS:
            named = (f"evaluation, {student}",)
            makers.append((functools.partial(make_evaluation, student=student), named))
        makers.append((make_lists, ("skin_check", "skin_check, stale", "neighbor_list")))
    return makers


def name_fused(kernel: str, channels: int, degree: int = 0) -> str:
    """What the row of a fused kernel is called: by its width too, unless that is the usual one, and by messages."""
    name = kernel if channels == 16 else f"{kernel}, C={channels}"
    return f"{name}, directed" if degree else name


def count_cells(channels: int) -> int:
    """Cubic cells along each edge of what kernels of this width are timed on."""
    return CELLS if channels < 64 else min(CELLS, CELLS_WIDE)


def list_suites() -> list[contract.Suite]:
    """One suite for each function that has a case of production size."""
    found: dict[str, contract.Suite] = {}
    for suite in contract.list_suites():
        if any(case.production for case in suite.cases):
            found.setdefault(suite.function.__name__, suite)
    return list(found.values())


def find_production(suite: contract.Suite) -> contract.Case:
    """The case of production size, which benchmarks run."""
    return next(case for case in suite.cases if case.production)


def make_generic(suite: contract.Suite, device: torch.device) -> Iterator[Work]:
    """Forward, and with the gradient in the first argument, of an op at production size."""
    arguments = find_production(suite).build(device, torch.float32)
    most = ROWS_ON_CPU.get(suite.op.name)
    if device.type == "cpu" and most is not None:
        arguments = (arguments[0][:most].clone(), *arguments[1:])
    for gradient in (False, True):
        yield prepare(suite, arguments, gradient=gradient)


def prepare(suite: contract.Suite, arguments: tuple[Any, ...], *, gradient: bool) -> Work:
    """Bind arguments, cotangents and the float64 result."""
    doubled = to_double(arguments)
    first, *rest = arguments
    n_bytes, products = count_bytes(arguments), count_products(suite, arguments)
    if gradient:
        outputs = list_tensors(suite.reference(doubled[0], *doubled[1:]))
        generator = torch.Generator(first.device).manual_seed(0)
        seeds = [
            torch.randn(one.shape, generator=generator, device=first.device, dtype=first.dtype)
            for one in outputs
        ]

        def run(function: Callable[..., Any], leaf: Tensor = first, others: Any = rest) -> Any:
            leaf = leaf.detach().requires_grad_()
            found = list_tensors(function(leaf, *others))
            return torch.autograd.grad(found, leaf, [s.to(leaf.dtype) for s in seeds])[0]

        exact = run(suite.reference, doubled[0], doubled[1:])
        n_bytes += count_bytes(first) + 2 * count_bytes(seeds)
    else:

        def run(function: Callable[..., Any], leaf: Tensor = first, others: Any = rest) -> Any:
            with torch.no_grad():
                return function(leaf, *others)

        exact = run(suite.reference, doubled[0], doubled[1:])
        n_bytes += count_bytes(exact) // 2

    def define(compiler: Callable[..., Any]) -> Callable[[], Any]:
        function = compiler(suite.reference)
        return lambda: run(function)

    backend, reason = dispatch.decide(suite.op, first.device)
    return Work(
        suite.function.__name__, "forward and gradient" if gradient else "forward", len(first), exact,
        n_bytes, products * (2.0 if gradient else 1.0),
        (lambda: run(suite.function)) if backend == "triton" else None, define, reason,
    )  # fmt: skip


def make_fused(device: torch.device, channels: int = 16, degree: int = 0) -> Iterator[Work]:
    """Kernels of one hop of the fused evaluation; with a degree, of what differs where messages are directed."""
    from fastff.kernels.moment_potential.cases import INNER, build_lattice, draw_weights
    from fastff.kernels.moment_potential.costs import count_costs, count_directed
    from fastff.kernels.moment_potential.workloads import REACH, list_directed, list_workloads

    if degree:
        sample = build_lattice("Cu", 2, REACH, "cpu", rattle=0.1, seed=3)
        sizes: dict[str, Any] = {"n_channels": channels, "n_mixed": channels}
        weights = draw_weights(2, 1, sample, message_degree=degree, inner=INNER, **sizes)
        system = build_lattice("Cu", count_cells(channels), REACH, device, rattle=0.1)
        found = list_directed(weights, system)
        costs = count_directed(54, channels, channels, degree=degree)
    else:
        widths = {"n_channels": channels, "n_mixed": channels, "n_hidden": 64}
        found = list_workloads(widths, device, repeats=count_cells(channels), reach=REACH)
        costs = count_costs(54, channels, channels)
    for workload in found:
        bind, name = workload.definition, workload.space.kernel
        assert bind is not None
        define = bind(torch.float32)
        n_atoms, cost = 4 * count_cells(channels) ** 3, costs[name]
        with torch.no_grad():
            exact = workload.reference()
        yield Work(
            name_fused(name, channels, degree), "forward", n_atoms, exact, cost.n_bytes * n_atoms,
            cost.flop * n_atoms, workload.launch, compile_all(define), restore=workload.restore,
        )  # fmt: skip
        del exact, workload
        gc.collect()
        torch.cuda.empty_cache()


def make_evaluation(device: torch.device, student: str) -> Iterator[Work]:
    """Energies, forces and virial of a student of :data:`STUDENTS`, from positions and a neighbor list."""
    from fastff.kernels.moment_potential.cases import INNER, build_lattice, draw_weights
    from fastff.kernels.moment_potential.costs import count_evaluation
    from fastff.kernels.moment_potential.evaluate import FusedPotential
    from fastff.kernels.moment_potential.op import convert_weights
    from fastff.kernels.moment_potential.reference import evaluate_reference
    from fastff.kernels.moment_potential.workloads import REACH

    n_hops, channels, degree = STUDENTS[student]
    system = build_lattice("Cu", count_cells(channels), REACH, device, rattle=0.1)
    geometry = (system.positions, system.species, system.matrix, system.translations)
    sample = build_lattice("Cu", 2, REACH, "cpu", rattle=0.1, seed=3)
    n_atoms = system.matrix.n_atoms
    sizes: dict[str, Any] = {"n_channels": channels, "n_mixed": channels}
    weights = draw_weights(n_hops, 1, sample, message_degree=degree, inner=INNER, **sizes)
    potential = FusedPotential(weights, device)
    single, double = (
        convert_weights(weights, device, dtype) for dtype in (torch.float32, torch.float64)
    )
    with torch.no_grad():
        exact = evaluate_reference(double, *geometry).forces

    def run() -> Tensor:
        return potential.evaluate(system.positions, system.species, system.matrix).forces

    def define() -> Tensor:
        return evaluate_reference(single, *geometry).forces

    cost = count_evaluation(n_hops, 54, channels, degree)
    yield Work(
        f"evaluation, {student}", "forward", n_atoms, exact, cost.n_bytes * n_atoms,
        cost.flop * n_atoms, run, compile_all(define),
        tolerance=TOLERANCE if n_hops < 3 else TOLERANCE_DEEP,
    )  # fmt: skip


def make_lists(device: torch.device) -> Iterator[Work]:
    """The skin check, and the neighbor list at the size its definition allows."""
    from fastff.kernels.moment_potential.cases import build_lattice
    from fastff.kernels.neighbor_list.plan import make_frame
    from fastff.kernels.neighbor_list.reference import find_pairs
    from fastff.kernels.skin_check import Snapshot, reference, take_snapshot
    from fastff.kernels.skin_check.op import launch_check

    cutoff, skin = 5.0, 0.5
    system = build_lattice("Cu", CELLS, 5.4, device, rattle=0.1)
    frame = make_frame(system.cell.cpu().numpy(), (True, True, True))
    periodic = torch.ones(3, dtype=torch.bool, device=device)
    near = system.positions + 0.01
    far = near.clone()
    far[len(far) // 2] += skin
    # a list that still holds, and one that a single atom made stale
    for name, old in (("skin_check", near), ("skin_check, stale", far)):
        snapshot = take_snapshot(old, frame, cutoff, skin)
        stale = torch.zeros((), dtype=torch.int32, device=device)

        def check(snapshot: Snapshot = snapshot, stale: Tensor = stale) -> Tensor:
            launch_check(system.positions, system.cell, snapshot, stale)
            return stale

        def define_check(old: Tensor = snapshot.positions) -> Tensor:
            return reference.is_stale(
                system.positions, system.cell, old, system.cell, periodic, cutoff, skin
            )

        yield Work(
            name, "forward", len(system.positions), define_check().double(),
            2.0 * count_bytes(system.positions), 0.0, check, compile_all(define_check),
            restore=stale.zero_,
        )  # fmt: skip
    small = build_lattice("Cu", CELLS_QUADRATIC, 5.4, device, rattle=0.1)
    yield compare_lists("neighbor_list", small, cutoff + skin, find_pairs)


def compare_lists(
    name: str, system: System, reach: float, find: Callable[..., tuple[Any, ...]]
) -> Work:
    """The search for all neighbors in a periodic system beside pairs that ``find`` returns, which are exact."""
    from fastff.kernels.neighbor_list import NeighborList, build_neighbors
    from fastff.kernels.neighbor_list.plan import make_frame

    frame = make_frame(system.cell.cpu().numpy(), (True, True, True))

    def search() -> NeighborList:
        return build_neighbors(system.positions, system.cell, (True, True, True), reach)

    def define_search() -> tuple[Any, ...]:
        return find(system.positions, frame, reach)

    expected = sort_pairs(define_search())

    def read(found: Any) -> Tensor:
        pairs = sort_pairs(found)
        same = pairs.shape == expected.shape and bool((pairs == expected).all())
        return torch.tensor(float(same))

    n_bytes = count_bytes(system.positions) + 4.0 * len(expected)
    return Work(
        name, "forward", len(system.positions), torch.tensor(1.0), n_bytes, 0.0, search,
        compile_all(define_search), read=read,
    )  # fmt: skip


def sort_pairs(found: Any) -> Tensor:
    """Receiver, sender and shift of every pair, sorted, of a list or of what its definition returns."""
    from fastff.kernels.moment_potential.layout import list_shifts
    from fastff.kernels.neighbor_list import NeighborList

    if isinstance(found, NeighborList):
        matrix, images = found.matrix, found.images
        slots = torch.arange(matrix.n_slots, device=matrix.counts.device)
        held = slots < matrix.counts[:, None]
        entries = matrix.entries[held].long()
        receivers = found.order[held.nonzero()[:, 0]]
        senders = found.order[entries >> matrix.code_bits]
        codes = entries & ((1 << matrix.code_bits) - 1)
    else:
        receivers, senders, codes, _, images = found
    shifts = list_shifts(images).to(codes.device)[codes].long()
    table = torch.cat([receivers[:, None], senders[:, None], shifts], dim=1)
    for column in reversed(range(table.shape[1])):
        table = table[table[:, column].argsort(stable=True)]
    return table


def compile_all(define: Callable[[], Any]) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """What :class:`Work` wants as its definition, of a function without arguments."""

    def choose(compiler: Callable[..., Any]) -> Callable[[], Any]:
        function = compiler(define)

        def run() -> Any:
            with torch.no_grad():
                return function()

        return run

    return choose


def count_products(suite: contract.Suite, arguments: tuple[Any, ...]) -> float:
    """Operations of matrix products: two for each weight and row of a perceptron, none in other ops."""
    if suite.op.name != "fused_mlp":
        return 0.0
    rows, *weights = list_tensors(arguments)
    return 2.0 * rows.shape[0] * sum(one.numel() for one in weights if one.ndim == 2)


def list_tensors(values: Any) -> list[Tensor]:
    """Floating tensors of nested arguments or results."""
    return list(_walk(values))


def _walk(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _walk(value)


def count_bytes(values: Any) -> int:
    """Bytes of the floating tensors of nested arguments or results."""
    return sum(one.numel() * one.element_size() for one in list_tensors(values))


def to_double(values: Any) -> Any:
    """The same nested arguments with floating tensors in float64."""
    if isinstance(values, Tensor):
        return values.double() if values.is_floating_point() else values
    if isinstance(values, tuple | list):
        return type(values)(to_double(value) for value in values)
    return values
