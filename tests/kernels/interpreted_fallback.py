"""Dynamics, walkers and the evaluator where one kernel does not compile, all others run in Triton's interpreter.

Run by ``test_engine.py`` in a process of its own. By hand: ``TRITON_INTERPRET=1 pytest
tests/kernels/interpreted_fallback.py``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging

import numpy as np
import pytest
import torch
from ase.build import bulk
from triton.compiler.errors import CompilationError
from triton.runtime.jit import KernelInterface
from untrained import make_student

from fastff import kernels
from fastff.batch_lists import DeviceLists
from fastff.checkpoint import save_model
from fastff.distill.explore import ExploreSettings, Walker, _Run
from fastff.evaluator import Evaluator, choose_path
from fastff.kernels import dispatch
from fastff.md.engine import Engine
from fastff.md.potentials import make_potential
from fastff.md.run import simulate
from fastff.md.settings import MDSettings
from fastff.md.state import build_state
from fastff.resident import ResidentPotential

pytestmark = pytest.mark.skipif(
    not dispatch.is_interpreted(), reason="runs in a process of its own, see test_engine.py"
)
SETTINGS = MDSettings(n_steps=6, timestep=3.0, temperature=600.0, interval=2, skin=0.3, seed=3)
KERNELS = {
    "adjoint_kernel": ("moments_adjoint.kernels", "moment_potential"),
    "stage_kernel": ("staging.kernels", "moment_potential"),
    "contact_kernel": ("staging.kernels", "moment_potential"),
    "check_kernel": ("skin_check.kernels", "moment_potential"),
    "list_kernel": ("neighbor_list.kernels", "neighbor_list"),
    "rows_kernel": ("neighbor_list.rows", "neighbor_list"),
    "finish_kernel": ("md_step.kernels", "md_step"),
}
"""Where each kernel is, and which op torch takes over."""


class Broken(KernelInterface):
    """A kernel that compiles no more after some launches."""

    def __init__(self, fn, n_good: int) -> None:
        self.fn, self._n_good = fn.fn, n_good
        self._kernel, self.n_launches = fn, 0

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.run(
            *arguments, grid=grid, warmup=False, **options
        )

    def run(self, *arguments, grid, warmup, **options):
        self.n_launches += 1
        if self.n_launches > self._n_good:
            raise CompilationError(None, None, "no such instruction")
        return self._kernel[grid](*arguments, **options)


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    """Auto mode takes the kernels, of which none has failed yet."""
    monkeypatch.delenv("FASTFF_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_selected", None)
    monkeypatch.setattr(dispatch, "_find_device_obstacle", lambda device, forced: None)
    monkeypatch.setattr(dispatch, "_describe_device", lambda device: "for this test")
    monkeypatch.setattr(dispatch, "_failures", {})
    monkeypatch.setattr(dispatch, "_last_calls", {})


@pytest.fixture
def break_kernel(monkeypatch):
    def break_it(name: str, n_good: int = 0) -> Broken:
        module = importlib.import_module(f"fastff.kernels.{KERNELS[name][0]}")
        broken = Broken(getattr(module, name), n_good)
        monkeypatch.setattr(module, name, broken)
        return broken

    return break_it


@pytest.fixture(scope="module")
def student():
    return make_student("m1", (29,), cutoff=3.0, energy_scale=2.0)


def make_atoms():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=2)
    return atoms


def check_told(caplog, name: str) -> None:
    """One warning of one line: op, kernel, reason, where there is more; the same in ``explain()``."""
    op = KERNELS[name][1]
    (record,) = caplog.records
    (line,) = record.getMessage().splitlines()
    assert line.startswith(f"{op}: ")
    for word in (name, "no such instruction", "torch goes on", "fastff doctor"):
        assert word in line
    assert record.exc_info is None
    row = {row.op: row for row in kernels.explain()}[op]
    expected = f"Triton failed to compile: {name}: no such instruction"
    assert (row.backend, row.reason, row.last_call) == ("torch", expected, f"torch: {expected}")


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "rows_kernel"])
def test_dynamics_goes_on_in_torch(name, break_kernel, caplog, student, tmp_path):
    with kernels.use("torch"):
        expected = simulate(
            make_potential(student, 0.3), make_atoms(), SETTINGS, tmp_path / "torch"
        )
    broken = break_kernel(name)
    with caplog.at_level(logging.WARNING, logger="fastff"):
        found = simulate(make_potential(student, 0.3), make_atoms(), SETTINGS, tmp_path / "broken")
    assert broken.n_launches == 1, "it is tried once"
    assert found.step == 6
    np.testing.assert_allclose(found.atoms.positions, expected.atoms.positions, rtol=0, atol=1e-7)
    np.testing.assert_allclose(
        found.summary.temperature.mean, expected.summary.temperature.mean, rtol=1e-5
    )
    check_told(caplog, name)


@pytest.mark.parametrize("name", ["adjoint_kernel", "contact_kernel", "check_kernel"])
def test_a_failure_within_a_run(name, break_kernel, caplog, student, monkeypatch):
    """As for arguments of another kind: results keep their tensors, and graphs, whose time is over, are left."""
    monkeypatch.setattr(ResidentPotential, "capturable", True)
    settings, ends = dataclasses.replace(SETTINGS, skin=0.05, n_steps=9), {}
    for backend in ("torch", "auto"):
        with kernels.use(backend), caplog.at_level(logging.WARNING, logger="fastff"):
            potential = make_potential(student, 0.05)
            engine = Engine(potential, build_state(make_atoms(), settings, "cpu"), settings)
            if backend == "auto":
                assert engine._replays
                assert engine._period > 0
                kept = potential.energy, potential.forces, potential.virial, potential.stale
                break_kernel(name, 1)
            while engine.step < 9:
                assert not engine.advance(9).failed
        ends[backend] = engine.state.positions.clone(), potential.forces.double().clone()
    assert torch.allclose(ends["auto"][0], ends["torch"][0], rtol=0, atol=1e-7)
    assert torch.allclose(ends["auto"][1], ends["torch"][1], rtol=0, atol=1e-5)
    now = potential.energy, potential.forces, potential.virial, potential.stale
    assert all(a is b for a, b in zip(kept, now, strict=True))
    assert not potential.capturable
    assert engine._replays == []
    assert engine._period == 0
    assert engine.n_rebuilds > 1
    check_told(caplog, name)


def test_forced_triton_says_so_instead(break_kernel, student):
    break_kernel("adjoint_kernel")
    potential = make_potential(student, 0.3)
    expected = "moment_potential: the Triton kernel failed to compile"
    with kernels.use("triton"), pytest.raises(kernels.BackendError, match=expected):
        Engine(potential, build_state(make_atoms(), SETTINGS, "cpu"), SETTINGS)


@pytest.mark.parametrize(("name", "n_good"), [("adjoint_kernel", 2), ("rows_kernel", 0)])
def test_walkers_go_on_in_torch(name, n_good, break_kernel, caplog, student):
    settings = ExploreSettings(n_steps=2, timestep=2.0, check=1, stride=1)
    cluster = make_atoms()
    cluster.pbc = False
    walkers = [Walker(cluster, 400.0, k) for k in range(2)]
    found = {}
    for backend in ("torch", "auto"):
        if backend == "auto":
            break_kernel(name, n_good)
        with kernels.use(backend), caplog.at_level(logging.WARNING, logger="fastff"):
            run = _Run(student, walkers, settings, lists=DeviceLists)
            for step in (1, 2):
                run.advance()
                run.look(step)
        found[backend] = run.finish().snapshots
    assert len(found["auto"]) == 4
    for one, other in zip(found["auto"], found["torch"], strict=True):
        np.testing.assert_allclose(one.atoms.positions, other.atoms.positions, rtol=0, atol=1e-7)
    check_told(caplog, name)


@pytest.mark.parametrize("name", ["check_kernel", "adjoint_kernel"])
def test_evaluations_go_on_in_torch(name, break_kernel, caplog, student):
    """All of them: torch's skin check waits for the device, and no CUDA graph could hold it."""
    break_kernel(name)
    evaluator, atoms = Evaluator(student, skin=0.3), make_atoms()
    with caplog.at_level(logging.WARNING, logger="fastff"):
        for _ in range(3):
            found = evaluator.evaluate(atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers)
    check_told(caplog, name)
    assert choose_path(student).path == "torch"
    with kernels.use("torch"):
        expected = Evaluator(student).evaluate(
            atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers
        )
    np.testing.assert_allclose(found.forces, expected.forces, rtol=0, atol=1e-6)


def test_the_command_says_it(break_kernel, caplog, student, tmp_path, run_cli):
    break_kernel("adjoint_kernel")
    save_model(tmp_path / "cu.safetensors", student, {"teacher": {"name": "none"}})
    make_atoms().write(tmp_path / "cu.extxyz")
    code, text, err = run_cli(
        "md", tmp_path / "cu.safetensors", tmp_path / "cu.extxyz", "--steps", "2", "--device", "cpu", "--out",
        tmp_path / "run", "--skin", "0.3",
    )  # fmt: skip
    assert code == 0
    reason = "adjoint_kernel: no such instruction"
    assert err == "", "logging prints the warning, which pytest takes"
    check_told(caplog, "adjoint_kernel")
    assert f"moment_potential ran in torch, its kernel failed to compile ({reason})" in text
    (record,) = (tmp_path / "run").glob("*.json")
    evaluation = json.loads(record.read_text())["evaluation"]
    assert evaluation == {
        "path": "torch",
        "reason": f"Triton failed to compile: {reason}",
        "kernels_that_failed_to_compile": {"moment_potential": reason},
    }


def test_the_doctor_names_the_kernel_and_shows_the_message(break_kernel, student, run_cli):
    code, out, _ = run_cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert (code, checks["compilation"]["status"]) == (0, "ok")
    assert "md_step" in checks["compilation"]["detail"]
    break_kernel("finish_kernel")
    code, out, _ = run_cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert (code, checks["compilation"]["status"]) == (0, "warn")
    first, *message = checks["compilation"]["detail"].splitlines()
    assert first.startswith("md_step runs in torch, slower")
    assert "finish_kernel: no such instruction" in first
    assert message == ["<source unavailable>", "no such instruction"]
