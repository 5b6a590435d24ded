"""Selection of the back end: order of precedence, reasons, refusals, fallback after a failure to compile."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from fastff import kernels
from fastff.errors import DataError, UsageError
from fastff.kernels import dispatch
from fastff.kernels.edge_features import edge_features
from fastff.kernels.segment_sum import segment_gather, segment_sum

VALUES = torch.tensor([[1.0], [2.0], [4.0]])
POINTERS = torch.tensor([0, 1, 3])


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No selection, no memory of earlier calls and failures."""
    monkeypatch.delenv("FASTFF_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "_selected", None)
    monkeypatch.setattr(dispatch, "_last_calls", {})
    monkeypatch.setattr(dispatch, "_failures", {})


def test_import_takes_no_triton_and_no_choice():
    code = (
        "import sys, fastff.kernels, fastff.kernels.segment_sum, fastff.kernels.edge_features\n"
        "fastff.kernels.explain('cpu')\n"
        "assert not any(m in sys.modules for m in ('triton', 'torch._dynamo', 'lightning', 'ase'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_is_auto_and_cpu_takes_torch():
    assert torch.equal(segment_sum(VALUES, POINTERS), torch.tensor([[1.0], [6.0]]))
    rows = {row.op: row for row in kernels.explain("cpu")}
    assert rows["segment_sum"].backend == "torch"
    assert rows["segment_sum"].reason == "the tensors are on cpu, Triton needs a CUDA device"
    assert rows["segment_sum"].last_call == f"torch: {rows['segment_sum'].reason}"
    assert rows["edge_features"].last_call is None


@pytest.mark.parametrize(("device", "words"), [("bogus", "is none"), ("cuda:0", "no CUDA device")])
def test_explain_refuses_devices_that_are_not_there(device, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=words):
        kernels.explain(device)


def test_explain_lists_every_op():
    assert {"edge_features", "segment_sum"} <= {row.op for row in kernels.explain()}


@pytest.mark.parametrize("function", ["use", "environment"])
def test_forced_triton_raises_with_the_reason(function, monkeypatch):
    if function == "use":
        kernels.use("triton")
    else:
        monkeypatch.setenv("FASTFF_BACKEND", "triton")
    source = {"use": "kernels.use", "environment": "FASTFF_BACKEND"}[function]
    expected = f"Triton was selected by {source} but cannot run: the tensors are on cpu"
    with pytest.raises(kernels.BackendError, match=expected):
        segment_sum(VALUES, POINTERS)
    assert expected in kernels.explain("cpu")[0].reason


def test_forced_triton_raises_for_a_dtype(monkeypatch):
    with (
        kernels.use("triton"),
        pytest.raises(kernels.BackendError, match=r"vectors are torch\.float16"),
    ):
        edge_features(torch.ones(1, 3, dtype=torch.float16), 5.0, 2, 1)


def test_old_gpu_is_an_obstacle(monkeypatch):
    monkeypatch.setattr(dispatch, "_find_capability", lambda index: (7, 5))
    device = torch.device("cuda", 0)
    op = dispatch.Op("some_op", 1, True)
    expected = ("torch", "compute capability 7.5 is below 8.0")
    assert dispatch.decide(op, device) == expected
    monkeypatch.setattr(dispatch, "_find_capability", lambda index: (9, 0))
    assert dispatch.decide(op, device)[0] == "triton"
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    assert dispatch.decide(op, device) == ("torch", "the package triton is not installed")


def test_use_goes_before_environment_and_restores(monkeypatch):
    monkeypatch.setenv("FASTFF_BACKEND", "triton")
    with kernels.use("torch"):
        assert dispatch.selected_backend() == ("torch", "kernels.use")
        with kernels.use("auto"):
            assert dispatch.selected_backend() == ("auto", "kernels.use")
        assert dispatch.selected_backend() == ("torch", "kernels.use")
    assert dispatch.selected_backend() == ("triton", "FASTFF_BACKEND")
    kernels.use("torch")
    assert dispatch.selected_backend() == ("torch", "kernels.use")


def test_context_restores_after_an_error():
    with pytest.raises(DataError), kernels.use("torch"):
        segment_sum(VALUES, POINTERS[:0])
    assert dispatch.selected_backend() == ("auto", "default")


def test_unknown_backend_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"kernels.use: unknown back end 'cuda'; use one of auto"):
        kernels.use("cuda")
    monkeypatch.setenv("FASTFF_BACKEND", "fast")
    with pytest.raises(UsageError, match="FASTFF_BACKEND: unknown back end 'fast'"):
        segment_sum(VALUES, POINTERS)


def test_op_cannot_be_registered_twice():
    kernels.list_ops()
    with pytest.raises(ValueError, match="already registered"):
        dispatch.register(dispatch.Op("segment_sum", None, True))


def test_compile_failure_falls_back_once(caplog):
    errors = pytest.importorskip("triton.compiler.errors")
    op = dispatch.Op("broken", 1, True)
    calls = []

    def launch():
        calls.append("triton")
        raise errors.CompilationError(None, None, "no such instruction")

    with caplog.at_level(logging.WARNING, logger="fastff.kernels.dispatch"):
        assert dispatch.attempt(op, launch, lambda: "torch") == "torch"
        assert dispatch.attempt(op, launch, lambda: "torch") == "torch"
    assert calls == ["triton", "triton"]
    assert len(caplog.records) == 1
    assert dispatch.list_failures()["broken"].reason == "no such instruction"
    (line,) = caplog.records[0].getMessage().splitlines()
    assert "fastff doctor" in line


def test_compile_failure_keeps_the_op_on_torch(monkeypatch):
    monkeypatch.setattr(dispatch, "_find_capability", lambda index: (9, 0))
    dispatch._failures["some_op"] = dispatch.Failure("no such instruction", "")
    backend, reason = dispatch.decide(dispatch.Op("some_op", 1, True), torch.device("cuda", 0))
    assert (backend, reason) == ("torch", "Triton failed to compile: no such instruction")


def test_compile_failure_raises_when_forced():
    errors = pytest.importorskip("triton.compiler.errors")

    def launch():
        raise errors.CompilationError(None, None, "no such instruction")

    with kernels.use("triton"), pytest.raises(kernels.BackendError, match="no such instruction"):
        dispatch.attempt(dispatch.Op("broken", 1, True), launch, lambda: "torch")


def test_other_errors_are_not_swallowed():
    def launch():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        dispatch.attempt(dispatch.Op("broken", 1, True), launch, lambda: "torch")


@pytest.mark.parametrize("grad", [False, True])
def test_ops_trace_into_one_graph(grad):
    def evaluate(vectors, pointers):
        basis, harmonics = edge_features(vectors, 5.0, 4, 2)
        summed = segment_sum(basis * harmonics[:, :1], pointers)
        return segment_gather(summed, pointers, vectors.shape[0])

    vectors = torch.randn(3, 3, requires_grad=grad)
    compiled = torch.compile(evaluate, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(vectors, POINTERS), evaluate(vectors, POINTERS))


def test_decision_is_taken_while_tracing(monkeypatch):
    """What the decision does is not part of the compiled code, so it may do what cannot be traced."""
    import torch._dynamo

    def decide(op, device, obstacle, preference):
        torch._dynamo.graph_break()
        return "torch", "for this test"

    monkeypatch.setattr(dispatch, "decide", decide)
    compiled = torch.compile(segment_sum, fullgraph=True, backend="eager")
    assert torch.equal(compiled(VALUES, POINTERS), torch.tensor([[1.0], [6.0]]))
    assert dispatch._last_calls["segment_sum"] == ("torch", "for this test")


def test_transforms_of_torch_follow_the_definition(monkeypatch):
    """Where Triton could run: its kernels have no tangents, and torch.func would take them for zero."""
    monkeypatch.setattr(dispatch, "_find_device_obstacle", lambda device, forced: None)
    _, tangents = torch.func.jvp(lambda v: segment_sum(v, POINTERS), (VALUES,), (VALUES,))
    assert torch.equal(tangents, torch.tensor([[1.0], [6.0]]))
    backend, reason = dispatch._last_calls["segment_sum"]
    assert (backend, reason[:26]) == ("torch", "a transform of torch.func ")
    vectors = torch.randn(3, 3)
    gradient = torch.func.grad(lambda v: edge_features(v, 5.0, 4, 2)[0].sum())(vectors)
    leaf = vectors.clone().requires_grad_()
    with kernels.use("torch"):
        edge_features(leaf, 5.0, 4, 2)[0].sum().backward()
    assert torch.allclose(gradient, leaf.grad)
