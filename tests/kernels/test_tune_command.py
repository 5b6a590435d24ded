"""``fastff tune``: what it measures for, what it prints, and its refusal without a GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastff.cli import tune
from fastff.errors import MissingDependencyError, UsageError
from fastff.kernels import contract, tuning
from fastff.kernels.measuring import Outcome
from fastff.kernels.tuning import LaunchConfig, LaunchSpace, Measurement, Workload
from fastff.models import configure_student


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_refused_without_a_gpu():
    with pytest.raises(MissingDependencyError, match="tuning needs a CUDA device"):
        tune.tune(device="cpu")


def test_every_architecture_without_a_model():
    configs = tune.list_configs(None)
    assert {config.architecture for config in configs} >= {"m1", "m2", "m2-l"}


def test_widths_come_from_the_configuration():
    config = configure_student("m1", (6,), n_channels=24, n_radial=6, hidden=(32, 48))
    widths = tune.list_widths(config)
    assert widths == {"n_radial": 6, "l_max": 3, "n_channels": 24, "n_mixed": 16, "n_hidden": 48}


def test_widths_of_a_message_passing_student():
    """Its edges have directions alone; its perceptrons and sums are as wide as channels and vectors."""
    from fastff.kernels.fused_mlp.cases import list_shapes

    widths = tune.list_widths(configure_student("painn", (6,), n_channels=8, hidden=(24, 40)))
    assert widths == {"n_radial": 16, "l_max": 1, "n_channels": 8, "n_hidden": 24}
    assert list_shapes(widths) == [(8, 24, 24), (16, 24, 24)]
    assert list_shapes({"n_hidden": 24}) == [(128, 24, 24, 1)]


def test_students_are_measured_before_single_ops():
    """The smallest student first, and no generic op at the widths of one that launches fused kernels alone."""
    m1, large, largest, directed, painn, none = tune.list_all_widths(None)
    assert [one["n_channels"] for one in (m1, large, largest)] == [16, 32, 64]
    assert largest == large | {"n_channels": 64, "n_mixed": 64, "message_degree": 1}
    assert directed == m1 | {"message_degree": 1}
    assert "n_mixed" not in painn
    assert none == {}
    for name in ("edge_features", "fused_mlp", "segment_sum"):
        assert not list(contract.list_workloads(m1 | {"n_edges": 52}, torch.device("cpu"), [name]))


def test_fused_kernels_are_measured_at_a_size_of_production(monkeypatch):
    """Every number of atoms a program that a candidate asks for is launched, on small GPUs too."""
    pytest.importorskip("triton")
    from fastff.kernels.moment_potential import workloads
    from fastff.kernels.moment_potential.launches import limit_atoms
    from fastff.kernels.moments.kernels import MOMENTS_SPACE

    most = max(one.blocks["ATOMS"] for one in MOMENTS_SPACE.candidates)
    for gigabytes, atoms in ((80, 108_000), (32, 108_000), (8, 37_044)):
        memory = SimpleNamespace(total_memory=gigabytes << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, m=memory: m)
        assert 4 * workloads.choose_repeats({}, torch.device("cuda")) ** 3 == atoms
        assert limit_atoms(most, atoms) == most
    assert workloads.choose_repeats({"n_edges": 5200}, torch.device("cuda")) == 3
    assert workloads.choose_repeats({"n_edges": 1}, torch.device("cuda")) == 2


def test_fused_kernels_are_not_measured_for_other_models():
    pytest.importorskip("triton")
    from fastff.kernels.moment_potential.workloads import list_workloads

    widths = tune.list_widths(configure_student("painn", (6,)))
    assert "n_mixed" not in widths
    assert not list(list_workloads(widths, torch.device("cpu")))


def test_widths_come_from_a_model_file(tmp_path):
    from fastff.checkpoint import save_model
    from fastff.models import build_student

    config = configure_student("m1", (29,), n_channels=8)
    save_model(tmp_path / "cu.fff", build_student(config), {})
    assert tune.list_configs(tmp_path / "cu.fff") == [config]


def test_directed_messages_of_a_model_file_are_tuned_for(tmp_path):
    from fastff.checkpoint import save_model
    from fastff.models import build_student

    config = configure_student("m2", (29,), message_degree=1)
    save_model(tmp_path / "cu.fff", build_student(config), {})
    (widths,) = tune.list_all_widths(tmp_path / "cu.fff")
    assert widths["message_degree"] == 1


def test_equal_widths_are_measured_once():
    one, other = {"n_channels": 16}, {"n_channels": 32}
    assert tune.list_distinct([one, dict(one), other, one]) == [one, other]


def test_unknown_ops_are_refused():
    assert set(contract.list_tunable()) >= {"segment_sum", "fused_mlp", "edge_features"}
    tune.check_ops(["segment_sum"], contract.list_tunable())
    with pytest.raises(UsageError, match="--ops moonshine: no such op to measure; choose from"):
        tune.check_ops(["moonshine"], contract.list_tunable())


def test_failures_and_the_end_of_the_budget_are_told():
    assert tune.list_remarks(Outcome((), (), 0), 10.0) == []
    lines = tune.list_remarks(Outcome((), ("some_kernel failed: CUDA error",), 2), 10.0)
    assert lines[0] == "some_kernel failed: CUDA error"
    assert "budget of 10 s is spent: 2 pairs" in lines[1]


def test_table_compares_with_the_default():
    default, other = LaunchConfig({"BLOCK": 16}, 1), LaunchConfig({"BLOCK": 32}, 2)
    measured = [
        Measurement("some_kernel", "k", default, 2.0, 0.0),
        Measurement("some_kernel", "k", other, 1.0, 0.0),
        Measurement("some_kernel", "k", other, None, None, "does not fit this GPU"),
    ]
    table = tune.build_table(measured)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["some_kernel", "k", "BLOCK=32, warps=2, stages=1", "1.0000", "2.0000", "1"]


@pytest.mark.parametrize("architecture", ["m1", "m2", "m2-l"])
def test_students_take_what_is_tuned_for_their_widths(architecture):
    """Keys of the workloads are those that launches look up, for every fused kernel."""
    pytest.importorskip("triton")
    from fastff.kernels.moment_potential.builds import list_builds
    from fastff.kernels.node_block.invariants import INVARIANTS_SPACE
    from fastff.kernels.node_block.perceptron import PERCEPTRON_SPACE

    widths = tune.list_widths(configure_student(architecture, (29,)))
    channels = 32 if architecture == "m2-l" else 16
    assert (widths["n_channels"], widths["n_mixed"]) == (channels, channels)
    named = {name for space in (INVARIANTS_SPACE, PERCEPTRON_SPACE) for name, _ in space.exceptions}
    assert tuning.make_key(torch.float32, channels=channels, mixed=channels) in named
    assert any(f"C={channels}" in build.name for build in list_builds())


def test_settings_of_64_channels_are_candidates():
    """And written defaults; only the perceptron of directed messages spills with them (``test_aot.py``)."""
    pytest.importorskip("triton")
    from fastff.kernels.moment_potential.builds import list_builds
    from fastff.kernels.moments import kernels as moments
    from fastff.kernels.moments_adjoint import gather
    from fastff.kernels.moments_adjoint import kernels as adjoint
    from fastff.kernels.node_block import invariants, perceptron

    spaces = {
        moments.moments_kernel: moments.MOMENTS_SPACE, adjoint.adjoint_kernel: adjoint.ADJOINT_SPACE,
        invariants.invariants_kernel: invariants.INVARIANTS_SPACE,
        invariants.pullback_kernel: invariants.PULLBACK_SPACE,
        perceptron.perceptron_kernel: perceptron.PERCEPTRON_SPACE, gather.gather_messages_kernel: gather.MESSAGES_SPACE,
    }  # fmt: skip
    widest = [build for build in list_builds() if build.constexprs.get("C") == 64]
    assert {build.kernel for build in widest} == set(spaces)
    for build in widest:
        assert build.config in spaces[build.kernel].candidates, build.name


def test_settings_of_128_channels_are_candidates():
    """And written: with those of other widths kernels spill up to 22 kB and take minutes to compile."""
    pytest.importorskip("triton")
    from fastff.kernels.moments.kernels import MOMENTS_SPACE
    from fastff.kernels.moments_adjoint.gather import MESSAGES_SPACE
    from fastff.kernels.moments_adjoint.kernels import ADJOINT_SPACE
    from fastff.kernels.node_block import invariants, perceptron

    sizes = [{"inputs": 1024, "hidden": hidden} for hidden in (64, 128)]
    for space, widths in (
        (MOMENTS_SPACE, [{}, {"degree": 1}]),
        (ADJOINT_SPACE, [{"degree": 1}]),
        (MESSAGES_SPACE, [{"degree": 1}]),
        (invariants.INVARIANTS_SPACE, [{"mixed": 128}]),
        (invariants.PULLBACK_SPACE, [{"mixed": 128}]),
        (
            perceptron.PERCEPTRON_SPACE,
            [one | more for one in sizes for more in ({}, {"degree": 1})],
        ),
    ):
        for one in widths:
            key = tuning.make_key(torch.float32, channels=128, **one)
            assert dict(space.exceptions)[key] in space.candidates, (space.kernel, key)


def test_candidates_are_shared_among_processes(monkeypatch):
    """Each is launched once; one that does not fit the GPU leaves the others alone."""
    pytest.importorskip("triton")
    from triton.runtime.errors import OutOfResources

    from fastff.kernels import precompile

    configs = tuple(LaunchConfig({"BLOCK": 16 * k}, 1) for k in range(1, 6))
    space = LaunchSpace("some_kernel", configs[0], configs)
    launched = []

    def launch():
        config = tuning.lookup(space, "key", torch.device("cpu"))
        launched.append(config)
        if config == configs[2]:
            raise OutOfResources(2, 1, "shared memory")

    def list_workloads(widths, device, ops):
        assert ops == ("some_op",)
        yield Workload(space, "key", launch, lambda: None)

    monkeypatch.setattr(contract, "list_workloads", list_workloads)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    shares = [precompile.Share(({}, {}), ("some_op",), "cpu", k, 2) for k in range(2)]
    done = [precompile.compile_share(share) for share in shares]
    assert sorted(launched, key=str) == sorted(configs, key=str)
    assert sorted(done) == [(2, None), (2, None)]
    launched.clear()
    assert precompile.compile_share(replace(shares[0], deadline=0.0)) == (0, None)
    assert not launched


def test_compilation_goes_on_behind_a_lost_device(monkeypatch):
    """A share returns at once with the number of the candidate, and begins behind it the next time."""
    pytest.importorskip("triton")
    from fastff.kernels import precompile

    configs = tuple(LaunchConfig({"BLOCK": 16 * k}, 1) for k in range(1, 6))
    space = LaunchSpace("some_kernel", configs[0], configs)
    launched, lost = [], []

    def launch():
        launched.append(tuning.lookup(space, "key", torch.device("cpu")))
        if launched[-1] == configs[2]:
            lost.append(True)

    def synchronize():
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def list_workloads(widths, device, ops):
        yield Workload(space, "key", launch, lambda: None)

    monkeypatch.setattr(contract, "list_workloads", list_workloads)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    share = precompile.Share(({},), None, "cpu", 0, 1)
    assert precompile.compile_share(share) == (2, 3)
    lost.clear()
    assert precompile.compile_share(replace(share, start=4)) == (2, None)
    assert launched == list(configs)
