"""Students of recipes on their way into the package, from a tiny run with a teacher that costs nothing."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ase.build import add_adsorbate, bulk, fcc111
from ase.io import write
from programs import load_program
from untrained import make_student

from fastff.checkpoint import read_header, stamp_header
from fastff.distill import rounds
from fastff.distill.content import KNOWN_DIGITS, hash_structure
from fastff.distill.export import write_labels
from fastff.distill.formats import read_labels
from fastff.distill.request import read_config
from fastff.distill.run import distill
from fastff.models import ARCHITECTURES
from fastff.testing import Check, CheckReport
from fastff.zoo import render_card

RECIPE = """request:
  teacher: analytic:emt
  structures: {folder}/cu.xyz
  temperatures: [300.0, 400.0]
  budget: 90
  rounds: 1
  max_atoms: 4
  student: m1
  cutoff: 3.5
  n_steps: 30
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    return load_program("zoo")


@pytest.fixture(scope="module")
def measures() -> ModuleType:
    return load_program("zoo_measures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a recipe, its run and the exported test frames are."""
    folder = tmp_path_factory.mktemp("recipe")
    write(folder / "cu.xyz", bulk("Cu", cubic=True))
    recipe = folder / "cu-emt.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "PICOSECONDS", {"cpu": (0.03, 0.03)})
        patch.setattr(rounds, "LEAST_STEPS", 20)
        distill(read_config(recipe), folder / "run", device="cpu")
    return folder


@pytest.fixture
def test_frames(folder: Path, tmp_path: Path, run_cli: Run) -> Path:
    path = tmp_path / "test.h5"
    code, _, err = run_cli("labels", folder / "run/labels.h5", "--held-out", "--export", path)
    assert code == 0, err
    return path


@pytest.fixture
def add(
    zoo: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Adds to another folder by rules that any student meets, unless some are given; the gate is not run."""
    monkeypatch.setattr("fastff.zoo.names.find_folder", lambda: tmp_path)
    report = CheckReport((Check("a", 0.0, 1.0, "eV"),)).to_dict()
    monkeypatch.setattr(zoo, "run_gate", lambda path, atoms, folder: report)
    monkeypatch.setattr("bench.zoo_measures.LEAST_PICOSECONDS", 0.0)
    monkeypatch.setattr(zoo, "find_barrier_fault", lambda pushes, highest: "")

    def go(test: Path, model: Path | None = None, least: float = -1e9, **options: Any) -> Path:
        monkeypatch.setattr(zoo, "LEAST_ACCURACY", least)
        values = {
            "add": model or folder / "run" / "model.safetensors", "name": "cu-emt", "about": "Copper.",
            "labels": None, "test": test, "recipe": folder / "cu-emt.yaml", "runs": [], "timestep": None,
            "seconds": 0.1, "accept": [], **options,
        }  # fmt: skip
        zoo.add(Namespace(**values))
        return tmp_path / "cu-emt.safetensors"

    return go


def test_a_student_of_a_recipe_is_added(test_frames: Path, add: Callable[..., Path]) -> None:
    path = add(test_frames)
    header = read_header(path)
    entry, stated = header["zoo"], header["accuracy"]
    groups = {"test": entry["found_again"], **entry["groups_found_again"]}
    assert set(groups) == set(stated) - {"validation"} > {"teacher-driven", "student-driven"}
    for name, found in groups.items():
        assert found["force"] == pytest.approx(stated[name]["force"], abs=1e-4)
    rows = entry["trajectories"]
    assert sum(row["n_frames"] for row in rows) == stated["test"]["n_frames"]
    assert {row["source"] for row in rows} == {"teacher-md", "student-md"}
    assert [row["phase"] for row in rows] == ["crystal"] * len(rows)
    assert [row["temperature"] for row in entry["stability"]] == [400.0, 600.0]
    assert [row["timestep"] for row in entry["stability"]] == [2.0, 2.0]
    (kind,) = entry["data"]["kinds"]
    assert kind["n_test"] == stated["test"]["n_frames"]
    assert entry["data"]["recipe"] == "train/cu-emt.yaml"
    assert not entry["data"]["passed"]
    card = render_card("cu-emt", header, 1)
    assert "`train/cu-emt.yaml`; its target of 95.0 % was not met" in card
    assert "crystal, 600 K, own dynamics" in card
    assert "| student-driven, hot |" in card
    evaluations = header["training"]["rounds"][-1]["evaluations"]
    assert f"{evaluations} of 90 allowed" in card
    assert "1, ended because: " in card


def test_dynamics_starts_from_the_last_students_own(test_frames: Path, folder: Path) -> None:
    materials = load_program("zoo_materials")
    header = read_header(folder / "run" / "model.safetensors")
    material = materials.RecipeMaterial(test_frames, folder / "cu-emt.yaml", header)
    assert material.list_runs() == ["crystal:400", "crystal:600"]
    frame = material.pick("crystal", 600.0)
    assert (frame.source, frame.temperature) == ("student-md", 600.0)
    assert 400.0 in {frame.temperature for frame in material.test}  # the teacher's
    assert material.pick("crystal", 400.0).source == "student-md"
    assert material.rank(frame)[0] == -header["training"]["rounds"][-1]["round"] == -2
    with pytest.raises(SystemExit, match="no test frames of phase 'liquid'"):
        material.pick("liquid", 600.0)


def test_an_accuracy_below_the_least_is_refused(
    test_frames: Path, add: Callable[..., Path]
) -> None:
    with pytest.raises(
        SystemExit, match=r"not shipped: .* accuracy \(recorded\) is .* less than 95 %"
    ):
        add(test_frames, least=0.95)


def change_forces(frames: list[Any]) -> list[Any]:
    return [replace(f, labels=replace(f.labels, forces=1.05 * f.labels.forces)) for f in frames]


@pytest.mark.parametrize(
    ("plant", "teacher", "words"),
    [
        (lambda frames: frames[1:], {}, "test frames here but"),
        (change_forces, {}, r"force accuracy is .* here but .* in the file"),
        (list, {"version": "other"}, "another teacher: version"),
    ],
    ids=["frames", "labels", "teacher"],
)
def test_frames_of_something_else_are_refused(
    plant: Any, teacher: dict[str, str], words: str, test_frames: Path, tmp_path: Path,
    add: Callable[..., Path],
) -> None:  # fmt: skip
    kept, path = read_labels(test_frames), tmp_path / "other.h5"
    write_labels(path, plant(kept.frames), {**kept.teacher, **teacher}, kept.held_out, kept.record)
    with pytest.raises(SystemExit, match=words):
        add(path)
    assert not (tmp_path / "cu-emt.safetensors").exists()


@pytest.mark.parametrize("digits", [32, KNOWN_DIGITS])
def test_frames_that_were_trained_on_are_refused(
    digits: int, folder: Path, test_frames: Path, tmp_path: Path, add: Callable[..., Path]
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(folder / "run" / "model.safetensors", path)
    training = read_header(path)["training"]
    known = hash_structure(read_labels(test_frames).frames[0].atoms).hex()[:digits]
    hashes = [*training["frame_hashes"], known]
    stamp_header(path, {"training": {**training, "frame_hashes": hashes}})
    with pytest.raises(SystemExit, match="1 of the test frames were trained on"):
        add(test_frames, model=path)


def test_another_recipe_is_refused(
    folder: Path, test_frames: Path, tmp_path: Path, add: Callable[..., Path]
) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(RECIPE.format(folder=folder).replace("400.0", "500.0"))
    with pytest.raises(SystemExit, match=r"other.yaml asks for another temperatures"):
        add(test_frames, recipe=path)


def test_a_record_of_the_same_student_is_shown(
    test_frames: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    materials = load_program("zoo_materials")
    header = read_header(folder / "run" / "model.safetensors")
    record = json.loads((materials.RECORDS / "cuau-sevennet.json").read_text())
    monkeypatch.setattr(materials, "ROOT", tmp_path)
    monkeypatch.setattr(materials, "RECORDS", tmp_path)
    (tmp_path / "cu-emt.json").write_text(json.dumps(record))
    material = materials.RecipeMaterial(test_frames, folder / "cu-emt.yaml", header)
    assert material.read_record() is None  # of another student
    record["student"]["sha256"] = header["sha256"]
    (tmp_path / "cu-emt.json").write_text(json.dumps(record))
    assert material.read_record()["endurance"] == record["endurance"]
    card = render_card("cu", {**header, "zoo": {"data": material.describe()}}, 1)
    assert "bench/results/recipes/cu-emt.json" in card
    assert "8 replicas, 864 atoms in all" in card
    assert "over 0.79 ps of 19 replicas" in card
    assert "Diffusion and phonons were not compared" in card


class TestRules:
    """What the rules of all students say of those of recipes."""

    def make_header(self, **groups: dict[str, Any]) -> dict[str, Any]:
        good = {"force": 0.96, "energy": 0.97, "stress": 0.96, "n_stresses": 3}
        return {"accuracy": {"test": good, **{k: {**good, **v} for k, v in groups.items()}}}

    def test_stress_counts_where_there_is_one(self, zoo: ModuleType) -> None:
        header = self.make_header()
        header["accuracy"]["test"] |= {"stress": None}
        assert "stress accuracy (recorded) is unknown" in zoo.find_accuracy_fault(header)
        header["accuracy"]["test"] |= {"n_stresses": 0}
        found = {"force": 0.96, "energy": 0.97, "stress": None}
        assert zoo.find_accuracy_fault(header, found) == ""
        assert "undefined in the file" in zoo.find_accuracy_fault(header, {**found, "stress": 0.97})

    def test_own_dynamics_alone_count(self, zoo: ModuleType) -> None:
        driven = {"student-driven": {"energy": 0.94}}
        assert "student-driven energy" in zoo.find_accuracy_fault(self.make_header(**driven))
        hot = {"student-driven, hot": {"force": 0.93, "energy": 0.5}}
        assert zoo.find_accuracy_fault(self.make_header(**hot)) == ""
        hot = {"student-driven, hot": {"force": 0.91}}
        assert "less than 92 %" in zoo.find_accuracy_fault(self.make_header(**hot))
        header = self.make_header(**{"student-driven": {}})
        found = header["accuracy"]["test"]
        assert "none here" in zoo.find_accuracy_fault(header, found, {})
        other = {"student-driven": {**found, "force": 0.97}}
        assert "here but" in zoo.find_accuracy_fault(header, found, other)

    def test_speed_is_that_of_the_size(self, measures: ModuleType) -> None:
        """By hops, channels and degree of messages; no size without a speed, and none of another."""

        def configure(name: str, **sizes: Any) -> dict[str, Any]:
            channels = ARCHITECTURES[name].get("n_channels", 16)
            own = {
                "architecture": name,
                "elements": [29],
                "n_channels": channels,
                "n_mixed": channels,
            }
            told = ("message_degree", "hidden")
            own |= {k: v for k, v in ARCHITECTURES[name].items() if k in told}
            return {**own, **sizes}

        rows = {name: measures.find_gpu_rows(configure(name)) for name in ARCHITECTURES}
        assert rows.pop("painn") == []
        assert [row["n_atoms"] for found in rows.values() for row in found] == [1372, 108_000] * 4
        assert {row["record"] for row in rows["m3-l"]} == {"fused-directed-h100.json"}
        (small, large) = (rows[name][1]["atom_steps_per_s"] for name in ("m2-l", "m3-l"))
        assert large < 0.3 * small
        wide = measures.find_gpu_rows(configure("m3-l", hidden=[128, 128]))
        assert 0.8 * large < wide[1]["atom_steps_per_s"] < large
        directed = measures.find_gpu_rows(configure("m2-l", message_degree=1))
        assert directed[1]["ms"] > 1.2 * rows["m2-l"][1]["ms"]
        for sizes in ({"n_hops": 3}, {"message_degree": 2}, {"hidden": [128, 128]}):
            with pytest.raises(SystemExit, match="measure it first"):
                measures.find_gpu_rows(configure("m2-l", **sizes))
        with pytest.raises(SystemExit, match="hidden layers of 128 and 128; measure it first"):
            measures.find_gpu_rows(configure("m1", hidden=[128, 128]))

    def test_pairs_that_no_frame_holds_are_not_pushed(self, measures: ModuleType) -> None:
        slab = fcc111("Pt", (2, 2, 2), vacuum=6.0)
        add_adsorbate(slab, "C", 1.9, "ontop")
        add_adsorbate(slab, "O", 3.0, "ontop")
        student = make_student("m1", (6, 8, 78), cutoff=4.0)
        found = measures.push_together(student, [[slab, slab]])
        assert {pair for pair, row in found.items() if not row["n_pushed"]} == {"C-C", "O-O"}
        assert (found["C-O"]["n_pushed"], found["Pt-Pt"]["n_pushed"]) == (2, 8)


def test_kinds_are_told_apart_where_the_file_says_so() -> None:
    """Crystal and melt of one composition; a slab; compositions where there are several."""
    materials = load_program("zoo_materials")
    crystal = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(2)
    melt = crystal.copy()
    melt.rattle(0.6, seed=1)
    slab = fcc111("Pt", (3, 3, 3), vacuum=6.0)

    def make(*seeds: Any, origins: dict[int, int]) -> Any:
        material = object.__new__(materials.RecipeMaterial)
        material.header = {"cutoff": 4.0, "training": {"request": {"max_atoms": 64}}}
        material.seeds, material.origins = list(seeds), origins
        return material

    def name(material: Any, atoms: Any, trajectory: int) -> str:
        from types import SimpleNamespace

        return material.name_phase(SimpleNamespace(atoms=atoms, trajectory=trajectory))

    material = make(crystal, melt, origins={5: 0, 6: 1})
    names = [name(material, melt, trajectory) for trajectory in (5, 6, 7)]
    assert names == ["crystal", "disordered", "crystal or disordered"]
    material = make(slab, crystal, origins={})
    assert name(material, slab, 0) == "Pt slab"
    assert name(material, crystal, 0) == "ClNa crystal"
    assert np.isin(["Pt slab"], material.kinds).all()
