"""Workloads of tuning and of the kernel table over the fused kernels, in Triton's interpreter.

Run by ``test_interpreter.py`` in the process of ``interpreted_fused.py``.
"""

from __future__ import annotations

import pytest
import torch

from fastff.kernels import dispatch
from fastff.kernels.moment_potential.cases import build_lattice, draw_weights

if not dispatch.is_interpreted():
    pytest.skip("runs in a process of its own, see test_interpreter.py", allow_module_level=True)

from fastff.kernels import tuning
from fastff.kernels.moment_potential import workloads
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.report import kernel_steps, kernel_work

from .fused_systems import check_candidates

FUSED = ("moments", "invariants", "node_perceptron", "invariants_adjoint", "moments_adjoint")


@pytest.mark.parametrize(
    ("degree", "expected"),
    [
        (0, FUSED),
        (1, ("moments", "node_perceptron", "moments_adjoint", "moments", "invariants", *FUSED[3:])),
    ],
)
def test_workloads_of_tuning(degree, expected, cpu):
    """Every candidate gives the definition's numbers; in the interpreter that is about block sizes.

    The key of every workload is one that an evaluation of such a student looks up.
    """
    found, keys = [], set()
    widths = {"n_channels": 16, "n_mixed": 16, "n_hidden": 64, "message_degree": degree}
    for workload in workloads.list_workloads(widths, cpu, repeats=1, reach=3.6):
        found.append(workload.space.kernel)
        keys.add((workload.space.kernel, workload.key))
        check_candidates(workload, "ATOMS")
    assert tuple(found) == expected
    assert keys == list_keys(degree)
    assert not list(workloads.list_workloads({**widths, "n_channels": 24}, cpu))


def list_keys(degree):
    """What an evaluation of two hops looks up, but the gather of another scatter."""
    found = set()
    system = build_lattice("Cu", 1, 3.61, "cpu")
    potential = FusedPotential(draw_weights(2, 1, system, message_degree=degree), "cpu")
    plain = tuning.lookup

    def lookup(space, key, device):
        found.add((space.kernel, key))
        return plain(space, key, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "lookup", lookup)
        potential.evaluate(system.positions, system.species, system.matrix)
    return found


def check_work(work):
    if work.restore is not None:
        work.restore()
    single = work.definition(lambda function: function)
    assert work.triton is not None
    # 4 atoms with random directed messages lose more digits in float32 than a crystal of production size
    limit = 2e-5 if work.op == "evaluation, m2-l directed" else work.tolerance
    for found in (work.triton(), single()):
        assert work.compare(found) < limit, work.op
    assert work.n_bytes > 0


def test_work_of_the_kernel_table(cpu, monkeypatch):
    """What ``fastff bench --kernels`` times on a GPU is right: kernels and definitions agree with float64.

    Fused kernels over 4 atoms of 12 neighbors, to be quick.
    """
    monkeypatch.setattr(kernel_work, "CELLS_QUADRATIC", 2)
    monkeypatch.setattr(workloads, "REACH", 3.6)
    gpu = torch.device("cuda")
    makers = [*kernel_work.list_makers(gpu), *kernel_steps.list_makers(gpu)]
    own = [
        entry for entry in makers if getattr(entry[0], "func", 0) is not kernel_work.make_generic
    ]
    names, listed = [], [name for _, told in own for name in told]
    for make, told in own:
        small = told[0].startswith("evaluation") or told[0].split(",")[0] in kernel_work.FUSED
        monkeypatch.setattr(kernel_work, "CELLS", 1 if small else 2)
        for work in make(cpu):
            names.append(work.op)
            check_work(work)
    fused = ["moments", "invariants", "node_perceptron", "invariants_adjoint", "moments_adjoint"]
    assert names == listed
    assert names == [
        *fused, *(f"{name}, C={width}" for width in (32, 64) for name in fused),
        *(f"{name}{width}, directed" for width in ("", ", C=32", ", C=64") for name in kernel_work.DIRECTED),
        "evaluation, 1 hop", "evaluation, 2 hops", "evaluation, m2-l",
        "evaluation, 2 hops directed", "evaluation, m2-l directed", "evaluation, m3-l",
        "skin_check", "skin_check, stale", "neighbor_list",
        "md_step, NVT", "staging, positions", "staging, contacts", "staging, results",
        "neighbor_list, bins",
    ]  # fmt: skip


def test_wrong_lists_are_told_from_right_ones(cpu, monkeypatch):
    """A check that never asks for a list, one that always does, and a neighbor taken for another one."""
    monkeypatch.setattr(kernel_work, "CELLS", 2)
    monkeypatch.setattr(kernel_work, "CELLS_QUADRATIC", 2)
    fresh, stale, search = kernel_work.make_lists(cpu)
    for found, wrong in ((0, stale), (1, fresh)):
        assert wrong.compare(torch.tensor(found)) > 0.5
    right = search.triton()
    right.matrix.entries[3, 0] = right.matrix.entries[3, 1]
    assert search.compare(right) == 1.0


def test_wrong_steps_are_told_from_right_ones(cpu, monkeypatch):
    """Noise of another step, and an atom that did not move."""
    monkeypatch.setattr(kernel_work, "CELLS", 2)
    (work,) = kernel_steps.make_steps(cpu)
    work.restore()
    assert work.compare(work.triton()) < 1e-12
    assert work.compare(work.triton()) > 0.1
    work.restore()
    positions, velocities, heat = (part.clone() for part in work.triton())
    positions[3] = work.definition(lambda function: function)()[0][4]
    assert work.compare((positions, velocities, heat)) > 0.1
