"""The contract of the fused kernels and of what surrounds them on a GPU: float64, poisoned buffers, run-to-run bits.

Here: whole evaluations, neighbor lists, the skin check, the calculator with its captured graph. Not here: generic ops
(``test_gpu.py``), dynamics (``test_gpu_dynamics.py``). By hand without a GPU:
``TRITON_INTERPRET=1 pytest tests/kernels/test_gpu_fused.py``, with small structures.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from untrained import make_student

from fastff import FastFFCalculator, kernels, resident
from fastff.checkpoint import load_model
from fastff.evaluator import Evaluator
from fastff.kernels import contract, dispatch
from fastff.kernels.moment_potential.cases import build_lattice, draw_weights
from fastff.kernels.moment_potential.evaluate import FusedPotential
from fastff.kernels.moment_potential.op import convert_weights
from fastff.kernels.moment_potential.reference import evaluate_reference
from fastff.kernels.moment_potential.workspace import Options
from fastff.kernels.neighbor_list.plan import make_frame
from fastff.kernels.skin_check import check_skin, take_snapshot
from fastff.models import Student

from .lists import NASTY, draw_structure, list_by_op
from .poison import poison

INTERPRETED = dispatch.is_interpreted()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or INTERPRETED), reason="no CUDA device"),
]
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")


@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
@pytest.mark.parametrize(
    ("name", "n_hops", "n_species", "width", "degree", "scatter"),
    [
        ("Cu", 1, 1, 16, 0, "fixed"),
        ("NaCl", 2, 3, 16, 0, "fixed"),
        ("Si", 2, 1, 32, 0, "fixed"),
        ("NaCl", 1, 2, 32, 0, "fixed"),
        ("NaCl", 3, 3, 32, 0, "fixed"),
        ("NaCl", 2, 2, 16, 1, "fixed"),
        ("Si", 2, 1, 32, 1, "fixed"),
        ("NaCl", 3, 2, 32, 1, "fixed"),
        ("NaCl", 2, 2, 16, 0, "store"),
        ("Si", 2, 1, 32, 1, "store"),
        ("NaCl", 3, 2, 32, 1, "store"),
    ],
)
def test_evaluation(name, n_hops, n_species, width, degree, scatter, precision):
    """Forces, energies and virial of float32; two poisoned runs of the same bits.

    Forces are off by less than 1e-5 of their RMS (of 1 eV/Å, if that is less), or by less than twice what the
    definition in float32 is off, up to 3e-5: with two species and directed messages that is 0.9e-5 of their RMS.
    """
    repeats, reach, rattle = (1, 3.4, 0.05) if INTERPRETED else (5, 5.4, 0.1)
    system = build_lattice(
        name, repeats, reach, DEVICE, rattle=rattle, seed=11, reverse=scatter == "store"
    )
    generator = torch.Generator().manual_seed(1)
    species = torch.randint(0, n_species, system.species.shape, generator=generator)
    system.species.copy_(species)
    sample = build_lattice(name, 2, reach, "cpu", rattle=0.1, seed=3)
    sample.species.copy_(torch.arange(len(sample.species)) % n_species)
    sizes = {"n_channels": width, "n_mixed": width, "message_degree": degree}
    weights = draw_weights(n_hops, n_species, sample, **sizes)
    geometry = (system.positions, system.species, system.matrix, system.translations)
    exact, single = (
        evaluate_reference(convert_weights(weights, DEVICE, dtype), *geometry)
        for dtype in (torch.float64, torch.float32)
    )
    potential = FusedPotential(weights, DEVICE, Options(precision, scatter))
    runs = []
    for _ in range(2):
        poison(potential.allocate(*system.matrix.entries.shape))
        found = potential.evaluate(system.positions, system.species, system.matrix)
        runs.append([part.clone() for part in found])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    size = max(1.0, float(exact.forces.square().mean().sqrt()))
    error, unavoidable = (
        float((one.forces - exact.forces).square().mean().sqrt()) for one in (found, single)
    )
    assert error < max(1e-5 * size, min(2.0 * unavoidable, 3e-5 * size))
    torch.testing.assert_close(found.energies, exact.energies, rtol=0, atol=1e-4)
    assert abs(float(found.energy - exact.energy)) / len(species) < 1e-5
    scale = max(float(exact.virial.abs().max()), 1.0)
    assert float((found.virial - exact.virial).abs().max()) < 1e-3 * scale


@pytest.mark.parametrize("name", NASTY)
def test_lists_of_nasty_cells(name):
    positions, cell, flags = NASTY[name]
    reach = 0.5 if name == "skewed" else 4.0
    with kernels.use("torch"):
        expected = list_by_op(positions, cell, flags, reach)
    for _ in range(2):
        with kernels.use("triton"), contract.poison_allocations():
            assert list_by_op(positions, cell, flags, reach, device=DEVICE) == expected
    assert dispatch._last_calls["neighbor_list"][0] == "triton"


@pytest.mark.parametrize("seed", range(16))
def test_lists_of_random_cells(seed):
    flags = (bool(seed & 1), bool(seed & 2), bool(seed & 4))
    positions, cell, pbc, reach = draw_structure(seed, flags)
    options = {"sort_atoms": bool(seed & 8), "reverse": bool(seed & 1)}
    with kernels.use("torch"):
        expected = list_by_op(positions, cell, pbc, reach)
    with kernels.use("triton"), contract.poison_allocations():
        assert list_by_op(positions, cell, pbc, reach, device=DEVICE, **options) == expected


@pytest.mark.parametrize("seed", range(8))
def test_skin_check(seed):
    """The kernel answers as the definition does, for moves and strains around the edge of a skin."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(6.0, 9.0, 3)) + rng.normal(scale=0.5, size=(3, 3))
    positions = rng.uniform(0, 8, (700, 3))
    strain = np.eye(3) + rng.normal(scale=(0.0, 0.01)[seed % 2], size=(3, 3))
    frame = make_frame(cell, (True, True, bool(seed & 2)))
    answers: dict[str, list[bool]] = {"torch": [], "triton": []}
    for backend, device in (("torch", torch.device("cpu")), ("triton", DEVICE)):
        snapshot = take_snapshot(torch.tensor(positions, device=device), frame, 5.0, 1.0)
        noise = np.random.default_rng(seed + 100)
        for width in (0.0, 0.05, 0.1, 0.13, 0.2):
            moved = positions @ strain + noise.normal(scale=width, size=positions.shape)
            stale = torch.zeros((), dtype=torch.int32, device=device)
            with kernels.use(backend):
                check_skin(
                    torch.tensor(moved, device=device),
                    torch.tensor(cell @ strain, device=device),
                    snapshot,
                    stale,
                )
            answers[backend].append(bool(stale))
    assert answers["torch"] == answers["triton"]
    assert True in answers["triton"]
    assert False in answers["triton"] or seed % 2


def list_structures() -> list[tuple[str, Atoms]]:
    crystal = bulk("Cu", cubic=True).repeat(1 if INTERPRETED else 4)
    crystal.set_cell(crystal.cell.array + np.array([[0, 0.3, 0], [0, 0, 0.2], [0.1, 0, 0]]))
    slab = fcc111("Cu", (1, 1, 2) if INTERPRETED else (4, 4, 4), vacuum=6.0)
    water = molecule("H2O")
    water.positions += (7.0, -90.0, 400.0)
    return [("crystal", crystal), ("slab", slab), ("molecule", water)]


@pytest.mark.parametrize("architecture", ["m1", "m2"])
@pytest.mark.parametrize(("name", "atoms"), list_structures())
def test_calculator_replays_what_it_computes(name, atoms, architecture):
    """Calls before and after the graph is recorded, and after a rebuild, against float64 on the CPU; and their bits."""
    student, exact = (
        make_student(architecture, (1, 8, 29), cutoff=3.0 if INTERPRETED else 5.0) for _ in range(2)
    )
    with kernels.use("triton"):
        runs = [call_often(student.to(DEVICE), atoms) for _ in range(2)]
    with kernels.use("torch"):
        expected = call_often(exact.double(), atoms)
    for one, other in zip(*runs, strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in one)
    for found, right in zip(runs[0], expected, strict=True):
        # forces of untrained students grow to any size; rounding follows the sums behind them
        tolerance = 5e-5 * (1.0 + 0.2 * abs(right["forces"]).max())
        for key in found:
            per = len(atoms) if key == "energy" else 1
            np.testing.assert_allclose(found[key], right[key], rtol=0, atol=tolerance * per)


def call_often(student: Student, atoms: Atoms) -> list[dict[str, np.ndarray]]:
    """Results of calls on moved atoms: within the skin four times, then beyond it twice."""
    calculator = FastFFCalculator(student, skin=0.5)
    atoms = atoms.copy()
    names = ["energy", "forces", *(["stress"] if atoms.pbc.all() else [])]
    rng = np.random.default_rng(4)
    results = []
    for width in (0.0, 0.01, 0.01, 0.01, 0.3, 0.01):
        atoms.positions += rng.normal(scale=width, size=atoms.positions.shape)
        calculator.calculate(atoms, names)
        results.append({name: np.array(calculator.results[name]) for name in names})
    return results


@pytest.mark.parametrize("name", ["water-7net-0", "cuau-7net-0-m3"])
def test_uncertainty_of_a_replayed_evaluation_is_that_of_torch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the atoms after rows were sorted anew; the same bits twice, and forces keep theirs."""
    monkeypatch.setattr(resident, "SORT_FROM", 1)
    student = load_model(name, device=str(DEVICE))
    watched, again, plain = (
        Evaluator(student, skin=0.5, with_uncertainty=number < 2) for number in range(3)
    )
    if name.startswith("water"):
        atoms = molecule("H2O", vacuum=2.0, pbc=True)
    else:
        atoms = bulk("Cu", cubic=True, a=3.8)
        atoms.numbers[::2] = 79
    atoms *= (1, 1, 2) if INTERPRETED else (3, 3, 3)
    atoms = atoms[::-1]
    for call in range(2 if INTERPRETED else 8):
        atoms.rattle(0.3 if call == 5 else 0.02, seed=call)
        arguments = atoms.positions, atoms.cell.array, atoms.pbc, atoms.numbers
        with kernels.use("triton"):
            found, twice, bare = (one.evaluate(*arguments) for one in (watched, again, plain))
        with kernels.use("torch"):
            wanted = Evaluator(student, skin=0.0, with_uncertainty=True).evaluate(*arguments)
        assert found.energy == bare.energy
        assert (found.forces == bare.forces).all()
        assert found.uncertainty is not None
        assert twice.uncertainty is not None
        assert wanted.uncertainty is not None
        for field in ("energy", "grades"):
            mine, theirs = getattr(found.uncertainty, field), getattr(wanted.uncertainty, field)
            assert torch.equal(mine, getattr(twice.uncertainty, field))
            torch.testing.assert_close(mine, theirs, rtol=5e-3, atol=1e-5)
    if DEVICE.type == "cuda":
        assert watched._session is not None
        assert watched._session._replay.recorded
        assert watched._session.potential.n_builds > 1
