"""FeNNol models in their own process: ANI-1x files where they and FeNNol are at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from fastff.distill.content import identify_teacher
from fastff.errors import (
    DataError,
    FastFFError,
    MissingDependencyError,
    UnsupportedElementError,
    UsageError,
)
from fastff.teachers import fennol as module
from fastff.teachers import load_teacher
from fastff.teachers.fennol import PYTHON_VARIABLE, FeNNolTeacher, _read_elements
from fastff.teachers.weights import find_package

MODELS = Path(__file__).parents[2] / "shared" / "data" / "fennol_ani"


@lru_cache
def make_teacher(names: str = "ani1x_model0.fnx", precision: str = "float64") -> FeNNolTeacher:
    if find_package("fennol") is None and not os.environ.get(PYTHON_VARIABLE):
        pytest.skip(f"fennol is not installed and {PYTHON_VARIABLE} is not set")
    if not (MODELS / "ani1x_model0.fnx").is_file():
        pytest.skip(f"no ANI-1x files in {MODELS}")
    teacher = load_teacher(
        f"fennol:{MODELS / names}", device="cpu", options={"precision": precision}
    )
    assert isinstance(teacher, FeNNolTeacher)
    return teacher


def make_water_box(n_side: int = 2, spacing: float = 3.1) -> Atoms:
    water = molecule("H2O")
    water.set_cell([spacing] * 3)
    water.pbc = True
    box = water * (n_side, n_side, n_side)
    box.positions += np.random.default_rng(0).normal(scale=0.05, size=(len(box), 3))
    return box


def make_structures() -> list[Atoms]:
    ethanol = molecule("CH3CH2OH")
    ethanol.positions += np.random.default_rng(1).normal(scale=0.05, size=(len(ethanol), 3))
    return [ethanol, make_water_box(), molecule("NH3"), make_water_box(1, 4.0)]


def test_batched_equals_single_and_sizes_may_change() -> None:
    teacher = make_teacher()
    structures = make_structures()
    together = teacher.label(structures)
    for atoms, batched in reversed(list(zip(structures, together, strict=True))):
        single = teacher.label([atoms])[0]
        assert batched.energy == pytest.approx(single.energy, abs=1e-7)
        np.testing.assert_allclose(batched.forces, single.forces, atol=1e-8)
        assert (batched.stress is None) == (not atoms.pbc.all())
        assert batched.energies is not None
        assert batched.energies.sum() == pytest.approx(batched.energy, abs=1e-6)


def test_ethanol_has_its_total_energy() -> None:
    energy = make_teacher().label([molecule("CH3CH2OH")])[0].energy
    assert energy == pytest.approx(-4216, abs=3)


def test_forces_and_stress_are_slopes() -> None:
    teacher = make_teacher()
    atoms = make_water_box()
    labels = teacher.label([atoms])[0]
    step = 1e-4
    direction = np.random.default_rng(2).normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)
    pairs = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    moved = []
    for sign in (1, -1):
        copy = atoms.copy()
        copy.positions += sign * step * direction
        moved.append(copy)
    for row, column in pairs:
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[row, column] += 0.5 * sign * step
            strain[column, row] += 0.5 * sign * step
            copy = atoms.copy()
            copy.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            moved.append(copy)
    energies = np.array([entry.energy for entry in teacher.label(moved)]).reshape(-1, 2)
    slopes = (energies[:, 0] - energies[:, 1]) / (2 * step)
    assert -slopes[0] == pytest.approx((labels.forces * direction).sum(), abs=2e-5)
    np.testing.assert_allclose(slopes[1:] / atoms.get_volume(), labels.stress, atol=1e-6)


def test_slabs_wires_and_tiny_cells() -> None:
    teacher = make_teacher()
    atoms = make_water_box()
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    slab.cell[2] = 0.0
    padded = slab.copy()
    padded.set_cell([*atoms.cell.array[:2], [0, 0, 40.0]])
    padded.positions[:, 2] += 55.0
    padded.pbc = True
    free, whole = teacher.label([slab, padded])
    assert free.energy == pytest.approx(whole.energy, abs=1e-6)
    np.testing.assert_allclose(free.forces, whole.forces, atol=1e-7)
    assert free.stress is None
    tiny = molecule("H2O")
    tiny.set_cell([3.1] * 3)
    tiny.pbc = True
    small, large = teacher.label([tiny, tiny * (2, 2, 2)])
    assert small.energy == pytest.approx(large.energy / 8, abs=1e-6)
    np.testing.assert_allclose(small.stress, large.stress, atol=1e-8)


EWALD = """
import sys
import jax
from collections import OrderedDict
from fennol import FENNIX
FENNIX(
    cutoff=5.0,
    rng_key=jax.random.PRNGKey(0),
    energy_terms=["coulomb", "repulsion"],
    preprocessing=OrderedDict(lr={"module_name": "GRAPH", "graph_key": "far", "cutoff": 6.0, "k_space": True}),
    modules=OrderedDict(
        charges={"module_name": "CHEMICAL_CONSTANT", "value": {"H": 0.4, "O": -0.8}},
        coulomb={"module_name": "COULOMB", "charges_key": "charges", "graph_key": "far"},
        repulsion={"module_name": "REPULSION_ZBL"},
    ),
).save(sys.argv[1])
"""


def test_long_range_sums_are_refused_where_some_directions_are_periodic(tmp_path: Path) -> None:
    make_teacher()
    path = tmp_path / "ewald.fnx"
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    subprocess.run([python, "-c", EWALD, str(path)], check=True, capture_output=True)
    teacher = load_teacher(f"fennol:{path}", device="cpu")
    box = make_water_box()
    small, large = teacher.label([box, box * (2, 1, 1)])
    assert small.energy == pytest.approx(large.energy / 2, abs=1e-4)
    np.testing.assert_allclose(small.stress, large.stress, atol=1e-5)
    assert teacher.label([molecule("H2O")])[0].stress is None
    box.pbc = (True, True, False)
    with pytest.raises(DataError, match="depend on the empty space"):
        teacher.label([box])


def test_lone_atoms() -> None:
    labels = make_teacher().label([Atoms("O"), Atoms("H"), Atoms("O")])
    assert labels[0].energy == pytest.approx(labels[2].energy, abs=1e-8)
    assert labels[0].energy < labels[1].energy
    assert all(np.abs(entry.forces).max() == 0.0 for entry in labels)
    # as many atoms as systems: FeNNol's padding would take the cell for an array over atoms
    crystal = Atoms("O", cell=[1.9] * 3, pbc=True)
    single, large = (
        make_teacher().label([crystal])[0],
        make_teacher().label([crystal * (2, 2, 2)])[0],
    )
    assert single.energy == pytest.approx(large.energy / 8, abs=1e-6)
    np.testing.assert_allclose(single.stress, large.stress, atol=1e-7)


def test_ensemble_is_the_mean_and_has_a_spread() -> None:
    atoms = make_structures()[0]
    ensemble, member = make_teacher("ani1x_model[01].fnx"), make_teacher().label([atoms])[0]
    ((labels, spread),) = ensemble.label_with_spread([atoms])
    # of two members, each lies one standard deviation from the mean
    assert abs(member.energy - labels.energy) == pytest.approx(spread.energy, abs=1e-7)
    np.testing.assert_allclose(np.abs(member.forces - labels.forces), spread.forces, atol=1e-8)
    assert spread.forces.max() > 1e-3
    assert ensemble.info.weights_sha256 != make_teacher().info.weights_sha256


def test_pairs_are_those_of_another_list() -> None:
    from vesin import NeighborList

    rng = np.random.default_rng(5)
    cells = np.array(
        [[[3.0, 0, 0], [1.2, 4, 0], [-0.7, 0.5, 9]], [[7, 0, 0], [0, 7, 0], [3, 3, 7]]]
    )
    counts = np.array([5, 9])
    positions = rng.uniform(-9, 9, size=(counts.sum(), 3))  # outside of their cells, too
    inputs = {
        "species": np.ones(16, np.int32),
        "coordinates": np.concatenate([positions, np.zeros((2, 3))]),
        "natoms": np.array([*counts, 0]),
        "cells": np.concatenate([cells, 1000 * np.eye(3)[None]]),
    }
    for periodic in (True, False):
        if not periodic:
            del inputs["cells"]
        first, second, shifts, squares = module.fennol_worker.find_pairs(inputs, 5.2)
        assert (shifts is None) == (not periodic)
        found = set()
        for k in range(len(first)):
            shift = (0, 0, 0) if shifts is None else tuple(map(int, shifts[k]))
            found.add((int(first[k]), int(second[k]), shift))
            moved = positions[second[k]] - positions[first[k]]
            if periodic:
                moved = moved + np.array(shift) @ cells[int(first[k] >= 5)]
            assert squares[k] == pytest.approx((moved**2).sum(), abs=1e-9)
        expected = set()
        for cell, start, count in zip(cells, (0, 5), counts, strict=True):
            found_pairs = NeighborList(cutoff=5.2, full_list=True).compute(
                positions[start : start + count], cell, periodic, "ijS"
            )
            for i, j, shift in zip(*found_pairs, strict=True):
                if i <= j:
                    expected.add((int(i) + start, int(j) + start, tuple(map(int, shift))))
        assert len(first) == len(found)
        assert found == expected


def test_where_files_lie_does_not_make_another_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor how they are listed; what they hold does."""
    make_teacher()
    for name in ("ani1x_model0.fnx", "ani1x_model1.fnx"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    listed = f"{tmp_path}/ani1x_model1.fnx,{tmp_path}/ani1x_model0.fnx"
    specs = (f"fennol:{MODELS}/ani1x_model[01].fnx", "fennol:*.fnx", f"fennol:{listed}")
    here, *others = (load_teacher(spec, device="cpu").info.to_dict() for spec in specs)
    assert here["name"] == "fennol:ani1x_model[01].fnx"
    for other in (*others, load_teacher(here["name"], device="cpu").info.to_dict()):
        assert identify_teacher(other) == identify_teacher(here)
    (tmp_path / "ani1x_model1.fnx").write_bytes((MODELS / "ani1x_model2.fnx").read_bytes())
    another = load_teacher("fennol:*.fnx", device="cpu").info.to_dict()
    assert another["name"] == here["name"]
    assert identify_teacher(another) != identify_teacher(here)


def test_other_sizes_need_no_other_programs() -> None:
    make_teacher()
    teacher = load_teacher(f"fennol:{MODELS / 'ani1x_model[01].fnx'}", device="cpu")
    assert isinstance(teacher, FeNNolTeacher)
    methanol, ethanol = molecule("CH3OH"), molecule("CH3CH2OH")
    teacher.label([ethanol] * 10)
    assert teacher.n_compiled == 1
    for structures in ([methanol] * 11, [ethanol] * 8 + [methanol] * 2, [ethanol] * 9):
        teacher.label(structures)
    assert teacher.n_compiled == 1
    teacher.label([methanol])
    assert teacher.n_compiled == 2


def test_sizes_come_from_coarse_grids() -> None:
    worker = module.fennol_worker
    sizes = {worker.round_up(number) for number in range(1, 10_000)}
    assert len(sizes) < 45
    assert all(worker.round_up(number) >= number for number in range(1, 10_000))
    shapes = set()
    for n_atoms in range(1, 1025):
        arrays = {
            "species": np.ones(n_atoms),
            "positions": np.zeros((n_atoms, 3)),
            "natoms": np.ones(n_atoms, int),
            "charges": np.zeros(n_atoms),
        }
        padded = worker.pad_systems(arrays, np.float64)
        shapes.add((len(padded["species"]), len(padded["natoms"])))
        assert len(padded["species"]) % 2 == 0
        assert len(padded["natoms"]) % 2 == 1
        assert len(padded["natoms"]) > n_atoms
        assert n_atoms <= len(padded["species"]) <= max(16, (2 if n_atoms < 128 else 1.5) * n_atoms)
    assert len(shapes) < 24


def test_single_precision_agrees() -> None:
    atoms = make_structures()[0]
    exact, rough = make_teacher(), make_teacher(precision="float32")
    first, second = exact.label([atoms])[0], rough.label([atoms])[0]
    assert 0 < np.abs(first.forces - second.forces).max() < 1e-3
    assert abs(first.energy - second.energy) < 5e-3


def test_elements_charges_and_info() -> None:
    teacher = make_teacher()
    assert teacher.info.elements == (1, 6, 7, 8)
    assert teacher.info.licence == "MIT"
    assert "Smith" in teacher.info.citation
    assert json.dumps(teacher.info.to_dict())
    assert "cpu" not in teacher.info.version  # labels of CPU and GPU mix
    assert "on the CPU" in teacher.info.notes[0]
    assert teacher.info.settings == ""
    single = make_teacher(precision="float32")
    assert single.info.settings == "precision=float32"
    with pytest.raises(UnsupportedElementError, match="S"):
        teacher.label([molecule("SH2")])
    charged = molecule("H2O")
    charged.info["charge"] = 1
    with pytest.raises(DataError, match="neutral systems only"):
        teacher.label([charged])


def test_calculator_runs_in_ase() -> None:
    atoms = molecule("H2O")
    expected = make_teacher().label([atoms])[0]
    atoms.calc = make_teacher().calculator()
    assert atoms.get_potential_energy() == pytest.approx(expected.energy)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)


def test_jax_stays_out_of_this_process_and_the_worker_ends() -> None:
    make_teacher()
    assert "jax" not in sys.modules
    other = load_teacher(f"fennol:{MODELS / 'ani1x_model0.fnx'}", device="cpu")
    assert isinstance(other, FeNNolTeacher)
    process = other._worker._process
    assert process.poll() is None
    del other
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is not None


def test_a_worker_that_dies_is_reported() -> None:
    make_teacher()
    teacher = load_teacher(f"fennol:{MODELS / 'ani1x_model0.fnx'}", device="cpu")
    assert isinstance(teacher, FeNNolTeacher)
    teacher._worker._process.kill()
    with pytest.raises(FastFFError, match="process ended"):
        teacher.label([molecule("H2O")])


def test_elements_are_read_from_lists_and_from_text() -> None:
    """FeNNol takes both; elements that are not found are not refused."""
    for order in (["H", "C"], "H, C"):
        modules = {
            "energy": {"species_order": order},
            "more": {"neurons": {"H": [1], "N": [], "C": []}},
        }
        assert _read_elements(modules, None) == (1, 6)
    assert _read_elements({"energy": {"species_order": "periodic"}}, None) == ()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make_teacher()
    whole, cut = MODELS / "ani1x_model0.fnx", tmp_path / "ani1x_cut.fnx"
    cut.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(FastFFError, match=r"could not load the model: .*ani1x_cut\.fnx"):
        load_teacher(f"fennol:{whole},{cut}")


def test_a_python_without_numpy_is_named(tmp_path: Path) -> None:
    model, python = tmp_path / "some.fnx", tmp_path / "python"
    model.write_bytes(b"")
    python.write_text(
        "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'numpy'\" >&2; exit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(MissingDependencyError, match=f"{python}.*numpy.*{PYTHON_VARIABLE}"):
        load_teacher(f"fennol:{model}", options={"python": str(python)})


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    make_teacher()
    wrong = tmp_path / "model.fnx"
    wrong.write_bytes(b"<html>not found</html>")
    with pytest.raises(FastFFError, match="could not load"):
        load_teacher(f"fennol:{wrong}", device="cpu")


def test_missing_things_are_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    start = time.monotonic()
    with pytest.raises(MissingDependencyError, match="FeNNol-PMC"):
        load_teacher("fennol")
    with pytest.raises(MissingDependencyError, match=r"not found: .*absent\.fnx"):
        load_teacher("fennol", weights=tmp_path / "absent.fnx")
    with pytest.raises(MissingDependencyError, match="no FeNNol model matches"):
        load_teacher(f"fennol:{tmp_path}/*.fnx")
    model = tmp_path / "model.fnx"
    model.write_bytes(b"x")
    monkeypatch.setattr(module, "find_package", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fastff\[fennol\]'"):
        load_teacher(f"fennol:{model}")
    with pytest.raises(MissingDependencyError, match="cannot start"):
        load_teacher(f"fennol:{model}", options={"python": str(tmp_path / "nothing")})
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(b"x")
    with pytest.raises(UsageError, match="refused"):
        load_teacher(f"fennol:{pickled}")
    with pytest.raises(UsageError, match="both"):
        load_teacher("fennol:a.fnx", weights=model)
    assert time.monotonic() - start < 5.0


def test_the_worker_imports_neither_torch_nor_fastff() -> None:
    code = (
        f"import sys; sys.argv=['x']; import runpy; runpy.run_path({module.fennol_worker.__file__!r});"
        "print([m for m in ('torch', 'fastff', 'ase') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_process_that_sees_some_gpus_hands_on_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert module._find_physical_device(1) == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert module._find_physical_device(1) == "6"
