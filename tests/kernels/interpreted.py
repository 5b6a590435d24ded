"""The numerics of every kernel and case in Triton's interpreter, on a machine without a GPU.

Run by ``test_interpreter.py`` in a process of its own, because ``TRITON_INTERPRET=1`` must be set before Triton is
imported. By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted.py``.
"""

from __future__ import annotations

import json

import pytest
import torch

from fastff import kernels
from fastff.cli.tune import list_all_widths, list_widths
from fastff.kernels import contract, dispatch, tuning
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
        seen = {str(c.blocks): c for c in tuning.list_candidates(workload)}
        for config in list(seen.values())[:: max(1, len(seen) // 2)]:
            with tuning.override(workload.space.kernel, config):
                assert tuning.find_relative_error(workload.run(), expected) < 1e-5


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
