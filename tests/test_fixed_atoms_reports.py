"""FixAtoms in reports: timed dynamics, GPUMD's input, conservation of energy, and what is said of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read
from producers import PLAN, edit

from fastff.checkpoint import save_model
from fastff.errors import DataError
from fastff.md import engine as engine_module
from fastff.md.state import find_fixed
from fastff.models import build_student, configure_student
from fastff.report.bench import run_bench
from fastff.report.gpumd import time_gpumd, write_input
from fastff.report.html import render_report
from fastff.report.markdown import write_tables
from fastff.report.physics.endurance import measure_nve
from fastff.report.physics.material import describe_material
from fastff.report.physics.side import Side
from fastff.report.record import verify_record
from fastff.report.regression import compare_speed
from fastff.report.stepping import time_dynamics
from fastff.report.supercells import build_supercells
from fastff.report.timing import Timed
from fastff.teachers import load_teacher
from tests.test_gpumd import GOOD, make_program
from tests.test_sampling import EmtTeacher

from untrained import make_student  # isort: skip


def make_slab() -> ase.Atoms:
    """Four layers of copper, the lower two fixed, in a fully periodic cell with a vacuum."""
    slab = fcc111("Cu", (2, 2, 4), vacuum=6.0, periodic=True)
    slab.info.clear()
    slab.set_constraint(FixAtoms(range(8)))
    return slab


def test_timed_structures_hold_every_copy() -> None:
    slab = make_slab()
    for cell in build_supercells(slab, [16, 64]):
        copies = len(cell) // 16
        fixed = find_fixed(cell)
        assert fixed.tolist() == copies * (8 * [True] + 8 * [False])
        ideal = slab.repeat((1, 1, 1)) if copies == 1 else slab.repeat((2, 2, 1))
        moves = np.linalg.norm(cell.positions - ideal.positions, axis=1)
        assert moves[fixed].max() == 0.0
        assert moves[~fixed].min() > 0.0
    free = slab.copy()
    free.set_constraint()
    assert not find_fixed(build_supercells(free, [16])[0]).any()


def test_steps_of_ase_hold_them() -> None:
    images: list[np.ndarray] = []

    class Watched(EMT):
        def calculate(self, atoms: Any = None, *arguments: Any, **keywords: Any) -> None:
            images.append(atoms.positions.copy())
            super().calculate(atoms, *arguments, **keywords)

    (cell,) = build_supercells(make_slab(), [16])
    timed = Timed("teacher", "EMT", Watched, {})
    time_dynamics(timed, [cell], temperature=300.0, time_step=4.0, budget=0.5, max_steps=30)
    assert len(images) > 20
    for positions in images:
        assert np.array_equal(positions[:8], cell.positions[:8])
    assert np.abs(images[-1][8:] - cell.positions[8:]).max(axis=1).min() > 1e-3


RUN = """
lines = open("model.xyz").read().splitlines()
assert lines[1].endswith("Properties=species:S:1:pos:R:3:group:I:1"), lines[1]
assert [line.split()[-1] for line in lines[2:]] == 8 * ["1"] + 8 * ["0"]
"""


def test_gpumd_fixes_a_group_in_every_run(tmp_path: Any) -> None:
    nep = tmp_path / "nep.txt"
    nep.write_text("nep4 1 Cu\ncutoff 6 5\n")
    cells = build_supercells(make_slab(), [16])
    good = GOOD.replace("words = ", RUN + "words = ")
    _, curve = time_gpumd(
        make_program(tmp_path, good), nep, cells, temperature=300, time_step=2.0, budget=1.0,
        device="cuda",
    )  # fmt: skip
    assert [point.n_fixed for point in curve.points] == [8]
    assert curve.held == "8 of 16 atoms fixed"
    folder = tmp_path / "input"
    folder.mkdir()
    write_input(folder, cells[0], nep, temperature=300, time_step=2.0, n_steps=100)
    text = (folder / "run.in").read_text()
    runs = re.findall(r"ensemble nve\nfix 1\ntime_step 2\nrun 100\n", text)
    assert len(runs) == text.count("run ") == 4  # GPUMD forgets fixed groups between runs
    image = read(folder / "model.xyz")
    assert image.positions == pytest.approx(cells[0].positions, abs=1e-9)
    # where all atoms move, no groups
    write_input(folder, bulk("Cu"), nep, temperature=300, time_step=2.0, n_steps=100)
    assert "fix" not in (folder / "run.in").read_text()
    assert "group" not in (folder / "model.xyz").read_text()


def test_energies_are_per_atom_that_moves() -> None:
    """The same dynamics, beside many atoms that are fixed out of reach: neither energy nor drift is diluted."""
    pair = ase.Atoms("Cu2", [[0, 0, 0], [2.4, 0, 0]], cell=[60.0] * 3, pbc=True)
    pair.set_momenta([[0.0, 2.0, 0.0], [0.0, -2.0, 0.0]])
    far = ase.Atoms("Cu6", [[30.0, 30.0, 10.0 * k] for k in range(6)])
    crowd = pair + far
    crowd.set_constraint(FixAtoms(range(2, 8)))
    student = make_student("m1", (29,), cutoff=4.0, energy_scale=0.005)
    teacher = EmtTeacher()
    items = [
        measure_nve(Side("teacher", teacher.label, {}), student, atoms, 300.0, 2.0, 300, 300)
        for atoms in (pair, crowd)
    ]
    for role in ("teacher", "student"):
        alone, held = (np.array(getattr(item, role).energies) for item in items)
        assert np.abs(alone).max() > 1e-6
        assert held == pytest.approx(alone, abs=0.02 * np.abs(alone).max())
    assert "2 atoms:" in items[0].description
    assert "8 atoms (6 fixed), energies per atom that moves:" in items[1].description


def test_what_is_fixed_is_said_of_every_kind_of_material() -> None:
    assert describe_material(make_slab()).words.endswith(
        "(8 of 16 atoms are fixed in the structure and held in dynamics)"
    )
    crystal = bulk("Cu", cubic=True)
    assert "fixed" not in describe_material(crystal).words
    crystal.set_constraint(FixAtoms([0]))
    material = describe_material(crystal)
    assert material.words.endswith(
        "1 of 4 atoms are fixed in the structure; here all move, properties are those of the free unit cell)"
    )
    assert not find_fixed(material.box).any()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> Any:
    """A run on the slab, and how many atoms were fixed in each loop of fastff's own dynamics."""
    folder = tmp_path_factory.mktemp("fixed")
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    save_model(folder / "m1.safetensors", student, {"teacher": {}, "temperature": [300, 400]})
    nep = folder / "nep.txt"
    nep.write_text("nep4 2 Cu Au\ncutoff 6 5\n")
    loops: list[tuple[int, int]] = []
    plan = replace(PLAN, sizes=(16, 64), outside=False, physics="none")

    class Spy(engine_module.Engine):
        def __init__(self, potential: Any, state: Any, settings: Any) -> None:
            loops.append((state.n_atoms, int((state.inverse_masses == 0.0).sum())))
            super().__init__(potential, state, settings)

    def measure(slab: ase.Atoms) -> Any:
        return run_bench(
            folder / "m1.safetensors",
            structures=[slab],
            teacher=load_teacher("analytic:morse", device="cpu"),
            plan=plan,
            gpumd=(make_program(folder, GOOD), nep),
        ).record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "Engine", Spy)
        record = measure(make_slab())
    free = make_slab()
    free.set_constraint()
    return record, loops, measure(free)


def test_a_report_holds_them_in_timed_dynamics_and_says_so(runs: Any) -> None:
    record, loops, _ = runs
    assert loops == [(16, 8), (64, 32)]
    modes = {curve.mode for curve in record.speed}
    assert modes == {"ase-call", "ase-md", "model", "model-list", "md-loop", "program"}
    for curve in record.speed:
        moves = curve.mode in ("ase-md", "md-loop", "program")
        for point in curve.points:
            assert point.n_fixed == (point.n_atoms // 2 if moves else None), curve.mode
    for text in (render_report(record), write_tables(record)):
        for words in (
            "velocity Verlet step of ASE",
            "own dynamics: NVE",
            "a whole NVE step of GPUMD",
        ):
            (line,) = [line for line in text.splitlines() if words in line and ": " in line][:1]
            assert "8 of 16 atoms fixed" in line
    assert "atoms fixed" not in write_tables(runs[2])


def test_steps_with_and_without_fixed_atoms_are_not_compared(runs: Any) -> None:
    record, _, free = runs
    compared = [change.what for change in compare_speed(free, record)]
    assert compared
    assert not [what for what in compared if what.startswith(("ase-md", "md-loop"))]
    same = [change.what for change in compare_speed(record, record)]
    assert "md-loop, 64 atoms of Cu, 25.8 Å³/atom, 32 fixed, 2 fs, 350 K" in same


def test_planted_numbers_of_fixed_atoms_are_caught(runs: Any) -> None:
    def plant(content: Any) -> None:
        for curve in content["speed"]:
            for point in curve["points"]:
                point["n_fixed"] = None

    with pytest.raises(DataError, match="not those that were measured"):
        verify_record(edit(runs[0], plant, "assembled"))


def test_a_structure_that_cannot_move_is_refused_before_any_work(tmp_path: Any) -> None:
    student = build_student(configure_student("m1", (29,), cutoff=4.0))
    save_model(tmp_path / "m1.safetensors", student, {"teacher": {}})
    slab = make_slab()
    slab.set_constraint(FixAtoms(range(16)))
    calls: list[int] = []
    teacher = load_teacher("analytic:morse", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(teacher), "label", lambda self, atoms: calls.append(1))
        with pytest.raises(DataError, match="all 16 atoms are fixed"):
            run_bench(
                tmp_path / "m1.safetensors", labels=tmp_path / "none.h5", structures=[slab],
                teacher=teacher, plan=PLAN,
            )  # fmt: skip
    assert not calls
