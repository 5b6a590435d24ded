"""Every op after a kernel failed to compile in auto mode: values and derivatives come complete from torch."""

from __future__ import annotations

import pytest
import torch

from fastff.kernels import contract, dispatch

errors = pytest.importorskip("triton.compiler.errors")

OWN = {"edge_features", "segment_sum", "segment_gather", "fused_mlp"}
SUITES = [suite for suite in contract.list_suites() if suite.function.__name__ in OWN]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.function.__name__)
def test_derivatives_after_a_failure(suite, monkeypatch, cpu):
    import importlib

    def fail(*arguments, **keywords):
        raise errors.CompilationError(None, None, "no such instruction")

    module = importlib.import_module(suite.function.__module__)
    launchers = [name for name in vars(module) if name.startswith("launch_")]
    assert launchers
    for name in launchers:
        monkeypatch.setattr(module, name, fail)
    # The device obstacle is lifted and the failure not yet known, so that each registered form is entered.
    monkeypatch.setattr(dispatch, "_failures", {})
    monkeypatch.setattr(dispatch, "decide", lambda *arguments: ("triton", "for this test"))
    case = next(case for case in suite.cases if case.name == "tiny")
    order = dispatch.Op(suite.op.name, None, True)
    dtype = suite.dtypes[0]
    contract.check_derivatives(
        order,
        suite.function,
        suite.reference,
        case,
        cpu,
        dtype,
        backend="auto",
        tolerance=1e-5,
        differentiated=suite.differentiated,
    )
    assert suite.op.name in dispatch._failures
    assert torch.is_grad_enabled()
