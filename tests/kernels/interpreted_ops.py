"""The numerics of every kernel and case in Triton's interpreter, on a machine without a GPU.

Run by ``test_interpreter.py`` in a process of its own, because ``TRITON_INTERPRET=1`` must be set before Triton is
imported. By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted_ops.py``.
"""

from __future__ import annotations

import json

import pytest
import torch

from fastff import kernels
from fastff.cli.tune import list_all_widths, list_widths
from fastff.kernels import candidates, contract, derivatives, dispatch, tuning
from fastff.kernels.fused_mlp import cases as mlp_cases
from fastff.kernels.fused_mlp import op as mlp_op
from fastff.kernels.neighbor_list import cases as list_cases
from fastff.models import build_student, configure_student

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_interpreter.py"
)

_RUNS = [
    pytest.param(suite, case, dtype, id=f"{suite.function.__name__}-{case.name}-{dtype}")
    for suite in contract.list_suites()
    for case in suite.cases
    for dtype in suite.dtypes
    if not case.production
]


@pytest.mark.parametrize(("suite", "case", "dtype"), _RUNS)
def test_forward(suite, case, dtype, cpu):
    contract.check_forward(
        suite.function, suite.reference, case, cpu, dtype, tolerance=suite.tolerance
    )
    assert dispatch.explain(cpu)  # the registry lists what ran
    assert dispatch._last_calls[suite.op.name][0] == "triton"


@pytest.mark.parametrize(("suite", "case", "dtype"), _RUNS)
def test_derivatives(suite, case, dtype, cpu):
    contract.check_derivatives(
        suite.op,
        suite.function,
        suite.reference,
        case,
        cpu,
        dtype,
        tolerance=suite.tolerance,
        differentiated=suite.differentiated,
    )


@pytest.mark.parametrize(
    ("suite", "case", "dtype"), [run for run in _RUNS if run.values[0].op.deterministic]
)
def test_bits(suite, case, dtype, cpu):
    contract.check_bits(suite.function, case, cpu, dtype, differentiated=suite.differentiated)


def test_keys_of_students_are_measured(cpu, monkeypatch):
    """What a student of generic ops launches is what ``fastff tune`` measures for it, and looks up."""
    asked = set()
    lookup = tuning.lookup

    def note(space, key, device):
        asked.add((space.kernel, key))
        return lookup(space, key, device)

    config = configure_student("painn", (8, 29), n_channels=8, n_radial=5, hidden=(16, 16))
    widths = list_widths(config) | {"n_edges": 104}
    measured = {(one.space.kernel, one.key) for one in contract.list_workloads(widths, cpu)}
    student = build_student(config).float().requires_grad_(False)
    monkeypatch.setattr(tuning, "lookup", note)
    vectors = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
    senders = torch.arange(12).view(4, 3) % 4
    with kernels.use("triton"):
        student.evaluate_dense(vectors, senders, torch.arange(4) % 2)
    assert {kernel for kernel, _ in asked} >= {
        "edge_features", "edge_features_backward", "fused_mlp", "fused_mlp_backward", "segment_sum", "segment_gather",
    }  # fmt: skip
    assert asked <= measured


def test_shipped_tables_hold_what_is_tuned_and_nothing_else(cpu):
    """No entry that no launch looks up: keys are those of the workloads at the built-in widths."""
    widths = [one | {"n_edges": 104} for one in list_all_widths(None)]
    tuned = {(w.space.kernel, w.key) for one in widths for w in contract.list_workloads(one, cpu)}
    for path in tuning._SHIPPED_TABLES.glob("*.json"):
        shipped = set(tuning.read_table(path))
        assert shipped <= tuned, sorted(shipped - tuned)
        failed = json.loads(path.read_text()).get("failed", {})
        assert {(kernel, key) for kernel, keys in failed.items() for key in keys} <= tuned


@pytest.mark.parametrize("name", ["neighbor_list", "segment_sum", "fused_mlp", "edge_features"])
def test_workloads_of_tuning(name, cpu, monkeypatch):
    """Some candidates give the definition's numbers; in the interpreter that is about block sizes."""
    monkeypatch.setattr(list_cases, "REACH", 3.0)
    widths = {"n_channels": 8, "n_hidden": 16, "n_radial": 5, "l_max": 1, "n_edges": 156}
    workloads = list(contract.list_workloads(widths, cpu, [name]))
    assert workloads
    for workload in workloads:
        expected = workload.reference()
        seen = {str(c.blocks): c for c in candidates.list_candidates(workload)}
        for config in list(seen.values())[:: max(1, len(seen) // 2)]:
            with tuning.override(workload.space.kernel, config):
                assert tuning.find_relative_error(workload.run(), expected) < 1e-5


@pytest.mark.parametrize("shape", [(37, 21, 50, 3), (16, 32, 40)])
@pytest.mark.parametrize("second", [False, True])
def test_parameters_are_summed_over_all_blocks(shape, second, cpu):
    """Each of two programs takes several blocks of rows, and adds to what it has."""
    x, weights, biases = mlp_cases._build(150, *shape)(cpu, torch.float32)
    x = x.T.contiguous().T  # by columns in memory, which results must not be
    grad, direction = torch.randn(150, shape[-1]), torch.randn(150, shape[0])
    inputs = [one.double() for one in (x, grad, *weights, *biases)]
    flat = (inputs[0], *inputs[2:])
    with torch.no_grad():
        exact = derivatives.pull_back(mlp_op.pull_to_input, inputs, (direction.double(),))
        if not second:
            exact = derivatives.pull_back(mlp_op._flat_reference, flat, (inputs[1],))[1:]
    config = tuning.LaunchConfig({"BLOCK_ROWS": 16, "CHUNK": 32, "PROGRAMS": 2}, 4)
    with tuning.override("fused_mlp_parameters", config), contract.poison_allocations():
        found = mlp_op.launch_gradients(x, weights, biases, grad, direction if second else None)
    for one, ref in zip(found if second else found[2:], exact, strict=True):
        assert one.shape == ref.shape
        assert tuning.find_relative_error(one, ref) < 1e-5


def test_perceptron_runs_kernels_for_what_is_asked(cpu, monkeypatch):
    """Forces: no gradient in parameters, though they require theirs; the loss of forces: one launch for all."""
    launched = []
    for name in ("launch_forward", "launch_input_gradient", "launch_gradients"):
        plain = getattr(mlp_op, name)

        def launch(*given, name=name, plain=plain):
            launched.append(name)
            return plain(*given)

        monkeypatch.setattr(mlp_op, name, launch)
    x, weights, biases = mlp_cases._build(5, 4, 4, 2)(cpu, torch.float32)
    leaves = [one.requires_grad_() for one in (x, *weights, *biases)]
    with kernels.use("triton"):
        out = mlp_op.fused_mlp(x, weights, biases)
        (forces,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        assert launched == ["launch_forward", "launch_input_gradient"]
        forces.square().sum().backward(retain_graph=True)
        assert launched[2:] == ["launch_gradients"]
        out.sum().backward()
        assert sorted(launched[3:]) == ["launch_gradients", "launch_input_gradient"]
    assert all(leaf.grad is not None for leaf in leaves)


@pytest.mark.parametrize("order", [1, 2])
def test_perceptron_over_its_own_result(order, cpu):
    """The input depends on the parameters, too, which must not count twice."""
    x, weights, biases = mlp_cases._build(3, 4, 5, 4)(cpu, torch.float32)
    found = []
    for backend in ("triton", "torch"):
        leaves = [one.detach().requires_grad_() for one in (x, *weights, *biases)]
        with kernels.use(backend):
            once = mlp_op.fused_mlp(leaves[0], leaves[1:3], leaves[3:])
            total = mlp_op.fused_mlp(once, leaves[1:3], leaves[3:]).square().sum()
            for _ in range(order - 1):
                grads = torch.autograd.grad(total, leaves, create_graph=True)
                total = torch.stack([grad.square().sum() for grad in grads]).sum()
            found.append(torch.autograd.grad(total, leaves))
    assert tuning.find_relative_error(found[0], found[1]) < 1e-5


def test_third_derivatives_of_the_perceptron(cpu):
    """By torch, from what the kernels were given."""
    x, weights, biases = mlp_cases._build(3, 4, 5, 4, 2)(cpu, torch.float32)
    found = []
    for backend in ("triton", "torch"):
        leaves = [one.detach().requires_grad_() for one in (x, *weights, *biases)]
        with kernels.use(backend):
            total = mlp_op.fused_mlp(leaves[0], leaves[1:4], leaves[4:]).square().sum()
            for _ in range(2):
                (grad,) = torch.autograd.grad(total, leaves[0], create_graph=True)
                total = grad.square().sum()
            found.append(
                torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            )
    assert tuning.find_relative_error(found[0], found[1]) < 1e-4


def test_gradcheck_edge_features(cpu):
    from fastff.kernels.edge_features import edge_features

    vectors = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vectors.requires_grad_()
    with kernels.use("triton"):
        assert torch.autograd.gradcheck(lambda v: edge_features(v, 4.0, 2, 3), (vectors,))
        assert torch.autograd.gradgradcheck(lambda v: edge_features(v, 4.0, 2, 3), (vectors,))


def test_gradcheck_segment_sum(cpu):
    from fastff.kernels.segment_sum import segment_sum

    values = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    pointers = torch.tensor([0, 2, 2, 5])
    with kernels.use("triton"):
        assert torch.autograd.gradcheck(lambda v: segment_sum(v, pointers), (values,))
        assert torch.autograd.gradgradcheck(lambda v: segment_sum(v, pointers), (values,))


def test_opcheck_segment_sum():
    import fastff.kernels.segment_sum.op  # noqa: F401  # registers

    own = torch.ops.fastff
    values = torch.randn(5, 3, requires_grad=True)
    pointers = torch.tensor([0, 2, 2, 5])
    with kernels.use("triton"):
        torch.library.opcheck(own.segment_sum, (values, pointers))
        sums = torch.randn(3, 3, requires_grad=True)
        torch.library.opcheck(own.segment_gather, (sums, pointers, 5))


def test_opcheck_edge_features():
    from fastff.kernels.edge_features import op

    vectors = torch.randn(5, 3, requires_grad=True)
    grads = torch.randn(5, 4, requires_grad=True), torch.randn(5, 16, requires_grad=True)
    with kernels.use("triton"):
        torch.library.opcheck(torch.ops.fastff.edge_features, (vectors, 5.0, 4, 3))
        torch.library.opcheck(torch.ops.fastff.edge_features_backward, (vectors, *grads, 5.0))
        directions = torch.randn(5, 3)
        tensors = (vectors.detach(), *(grad.detach() for grad in grads), directions)
        torch.library.opcheck(op._double_backward, (*tensors, 5.0))


def test_auto_does_not_take_the_interpreter(cpu):
    from fastff.kernels.segment_sum import segment_sum

    with kernels.use("auto"):
        segment_sum(torch.ones(2, 1), torch.tensor([0, 2]))
    assert dispatch._last_calls["segment_sum"][0] == "torch"


def test_poison_reaches_outputs():
    with contract.poison_allocations():
        assert torch.empty(4).isnan().all()


def test_forward_mode_is_refused_not_lost():
    """Kernels have no tangents: torch says so instead of returning none."""
    from fastff.kernels.edge_features import edge_features
    from fastff.kernels.segment_sum import segment_sum

    pointers = torch.tensor([0, 2, 5])
    calls = (lambda v: segment_sum(v, pointers), lambda v: edge_features(v, 5.0, 4, 3)[0])
    for call in calls:
        with kernels.use("triton"), torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(torch.randn(5, 3), torch.randn(5, 3))
            with pytest.raises((RuntimeError, NotImplementedError)):
                call(dual)


def test_transforms_of_torch_are_refused_not_lost():
    """The kernels have no tangents, which ``torch.func.jvp`` would take for zero."""
    from fastff.kernels.edge_features import edge_features
    from fastff.kernels.fused_mlp import fused_mlp
    from fastff.kernels.segment_sum import segment_gather, segment_sum

    values, ones = torch.arange(12.0).view(4, 3).cos(), torch.ones(4, 3)
    weights, biases = [torch.ones(2, 3), torch.ones(2, 2)], [torch.ones(2), torch.ones(2)]
    for call in (
        lambda x: segment_sum(x, torch.tensor([0, 1, 4])),
        lambda x: segment_gather(x, torch.tensor([0, 1, 1, 3, 5]), 5),
        lambda x: edge_features(x, 5.0, 4, 3)[0],
        lambda x: fused_mlp(x, weights, biases),
    ):
        for transform in (
            lambda f: torch.func.jvp(f, (values,), (ones,)),
            lambda f: torch.func.jacfwd(f)(values),
            lambda f: torch.func.jacrev(f)(values),
        ):
            with (
                kernels.use("triton"),
                pytest.raises(kernels.BackendError, match=r"a transform of torch\.func"),
            ):
                transform(call)
