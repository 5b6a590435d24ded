"""The program that runs recipes and measures their students, with a teacher that costs nothing."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from programs import load_program
from untrained import make_student

from fastff.distill.cells import SampleCell, build_supercell
from fastff.report.physics import motion
from fastff.report.plan import BenchPlan
from fastff.teachers import load_teacher

RECIPE = """request:
  teacher: analytic:emt
  structures: {folder}/cu.xyz
  temperatures: [300.0, 400.0]
  budget: 60
  rounds: 0
  max_atoms: 4
  student: m1
  cutoff: 3.5
  n_steps: 20
"""


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_program("recipes")


@pytest.fixture
def measures(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Measurements of two replicas, with short blocks of pair distributions."""
    from bench import recipes_measures

    monkeypatch.setattr(recipes_measures, "N_REPLICAS", 2)
    monkeypatch.setattr(recipes_measures, "PAIR_ATOMS", 8)
    monkeypatch.setattr(motion, "LEAST_BLOCK", 0.05)
    return recipes_measures


def make_cell(atoms: Atoms) -> SampleCell:
    return build_supercell(atoms, 1.0, len(atoms))


class TestEndurance:
    def run(self, measures: ModuleType, atoms: list[Atoms], path: Path, **options: Any) -> Any:
        student = make_student("m1", (29,), cutoff=3.5, energy_scale=1e-3)
        values = {
            "temperature": 300.0,
            "timestep": 2.0,
            "picoseconds": 0.2,
            "seconds": 1e9,
            **options,
        }
        return measures.measure_endurance(
            student, [make_cell(a) for a in atoms], path=path, **values
        )

    def test_it_goes_on_where_it_was(
        self, measures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Time up after the first segment: the length reached is told, and the next process runs the rest."""
        monkeypatch.setattr(measures, "FIRST_CHECKS", 2)
        monkeypatch.setattr(measures, "CHECK", 20.0)
        path, copper = tmp_path / "kept.npz", bulk("Cu", cubic=True)
        short = self.run(measures, [copper], path, seconds=1e-9)
        assert (short["ps"], short["wanted_ps"], short["n_failed"]) == (0.04, 0.2, 0)
        before = measures.Endurance.read(path, [])
        lengths = []
        real = measures.explore

        def count(student: Any, walkers: Any, settings: Any) -> Any:
            if not lengths:
                np.testing.assert_array_equal(walkers[1].atoms.positions, before.positions[4:])
            lengths.append(settings.n_steps)
            return real(student, walkers, settings)

        monkeypatch.setattr(measures, "explore", count)
        whole = self.run(measures, [copper], path)
        assert sum(lengths) == 80
        assert whole["ps"] == pytest.approx(0.2)
        assert whole["seconds"] >= short["seconds"]
        again = self.run(measures, [copper], path)
        assert again == whole
        assert sum(lengths) == 80

    def test_failures_are_counted_and_others_go_on(
        self, measures: ModuleType, tmp_path: Path
    ) -> None:
        copper = bulk("Cu", cubic=True)
        crushed = copper.copy()
        crushed.positions[1] = crushed.positions[0] + 0.7
        row = self.run(measures, [copper, crushed], tmp_path / "one.npz")
        assert (row["n_failed"], row["ps"]) == (1, pytest.approx(0.2))
        assert row["failures_ps"][0] is None
        assert row["first_failure_ps"] == row["failures_ps"][1] <= 0.02
        row = self.run(measures, [crushed], tmp_path / "all.npz")
        assert row["n_failed"] == 2
        assert row["ps"] == max(row["failures_ps"]) <= 0.02


class TestPairs:
    def test_the_teacher_differs_from_itself_by_noise(
        self, measures: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And by more at another temperature."""
        monkeypatch.setattr(measures, "MOST_PICOSECONDS", 0.2)
        cell = make_cell(bulk("Cu", cubic=True).repeat(2))  # half of it reaches the second shell
        copper, teacher = [cell] * 2, load_teacher("analytic:morse")
        side = measures.Side("student", teacher.label, {})

        def compare_with(kelvin: float) -> Any:
            def run(student: Any, dynamics: Any) -> Any:
                changed = {**vars(dynamics), "temperature": kelvin, "seed": 5}
                return measures.run_side(side, measures.Dynamics(**changed))

            monkeypatch.setattr(measures, "run_own", run)
            (row,) = measures.compare_pairs(None, teacher, copper, 300.0, 2.0, 1e9)
            assert (row["kind"], row["pair"]) == ("crystal", "Cu-Cu")
            return row

        same, other = compare_with(300.0), compare_with(1200.0)
        assert 0.0 < same["difference"] < 2.5 * same["noise"]
        assert other["difference"] > 1.5 * same["difference"]

    def test_too_little_time_is_told(self, measures: ModuleType) -> None:
        cells, teacher = [make_cell(bulk("Cu", cubic=True))], load_teacher("analytic:morse")
        student = make_student("m1", (29,), cutoff=3.5)
        (row,) = measures.compare_pairs(student, teacher, cells, 300.0, 2.0, 1e-9)
        assert "too short" in row["fault"]

    def test_one_atom_has_no_pair(self, measures: ModuleType) -> None:
        assert measures.list_pairs(Atoms("COPt2")) == [
            ("C", "O"),
            ("C", "Pt"),
            ("O", "Pt"),
            ("Pt", "Pt"),
        ]


def test_the_clock_adds_up_what_processes_took(program: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    first = program.Clock(path, program.time.perf_counter() - 5.0)
    first.enter("distillation")
    first.write()  # and is killed
    second = program.Clock(path, program.time.perf_counter() - 3.0)
    second.enter("pairs")
    total = second.sum_stages()
    assert total["start"] == pytest.approx(8.0, abs=1.0)
    assert "distillation" in total
    assert [piece["gpu"] for piece in second.pieces] == [first.piece["gpu"]] * 2


def test_what_has_a_record_is_not_run_again(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import study_schedule

    found: list[Any] = []
    monkeypatch.setattr(
        study_schedule.Pool, "run", lambda self, tasks, n: found.extend(tasks) or []
    )
    (tmp_path / "cuau-sevennet.json").touch()
    names = ["cuau-sevennet", "nacl-sevennet", str(tmp_path / "own.yaml")]
    program.run_all(Namespace(recipes=names, out=tmp_path, seconds=60.0, gpus=2))
    assert [task.name for task in found] == ["nacl-sevennet", "own"]
    assert Path(found[0].words[1]).is_file()


@pytest.mark.slow
def test_a_recipe_leaves_a_record_that_makes_a_row(
    program: ModuleType, measures: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before pairs are compared, it is not distilled again."""
    tiny = BenchPlan(n_frames=4, n_temperatures=1, n_equilibrate=4, interval=2)
    monkeypatch.setattr(measures, "BenchPlan", lambda **_: tiny)
    monkeypatch.setattr(measures, "MOST_PICOSECONDS", 0.12)
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    path = tmp_path / "cu-emt.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    arguments = Namespace(
        out=tmp_path / "out", device="cpu", accuracy_seconds=0.0, stability_ps=0.2,
        stability_seconds=60.0, rdf_seconds=30.0, measure_options=[],
    )  # fmt: skip

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measures, "compare_pairs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.Recipe(path, arguments).run()
    assert not (tmp_path / "out" / "cu-emt.json").exists()
    partial = tmp_path / "out" / "cu-emt.partial.json"
    early = json.loads(partial.read_text())
    assert any("strained" in row["group"] for row in early["accuracy"])
    assert early["pairs"] == early["endurance"] == []
    assert [f"not measured: {name}" for name in ("pairs", "endurance-1", "endurance-0")] == [
        note for note in early["notes"] if "not measured" in note
    ]
    monkeypatch.setattr(program.Recipe, "distil", lambda self: pytest.fail("distilled again"))
    program.Recipe(path, arguments).run()
    record = json.loads((tmp_path / "out" / "cu-emt.json").read_text())
    assert not partial.exists()
    assert not any("not measured" in note for note in record["notes"])
    assert 0 < record["evaluations_of_teacher"] <= 60
    assert any("strained" in row["group"] for row in record["accuracy"])
    assert [row["temperature"] for row in record["endurance"]] == [400.0, 600.0]
    assert [row["wanted_ps"] for row in record["endurance"]] == pytest.approx([0.2, 0.02])
    assert list(record["pieces"]) == ["1", "2"]
    assert record["provenance"]["commit"]
    assert record["wall_seconds"] >= record["seconds"]["distillation"] > 0.0
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "cu-emt.json").write_text(json.dumps(record))
    table = load_program("tabulate").tabulate_recipes(tmp_path / "table")
    assert table[-1].startswith("| `cu-emt` | `m1`, 3.5 Å |")
    assert table[-1].count("|") == table[-2].count("|")
    assert load_program("tabulate").tabulate_recipes(tmp_path) == []

    path.write_text(RECIPE.format(folder=tmp_path).replace("300.0", "200.0"))
    with pytest.raises(SystemExit, match="changed"):
        program.Recipe(path, arguments).run()
