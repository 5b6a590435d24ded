"""Shipped students: found by name, judged, described; and the rules of the program that adds them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write
from programs import load_program

from fastff import FastFFCalculator, load_model, read_header
from fastff.checkpoint import stamp_header
from fastff.errors import ModelFileError, UsageError
from fastff.inference import predict
from fastff.structures import read_header_structures
from fastff.testing import Check, CheckReport
from fastff.zoo import find_shipped, list_shipped, render_card, resolve_model

NAMES = list_shipped()
FIRST = NAMES[0]

Run = Callable[..., tuple[int, str, str]]
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    return load_program("zoo")


@pytest.fixture(scope="module")
def measures() -> ModuleType:
    return load_program("zoo_measures")


class TestFiles:
    """Every shipped file meets the rules."""

    @every_name
    def test_rules(self, name: str, zoo: ModuleType) -> None:
        path = resolve_model(name)
        header = read_header(name)  # checks its own hash
        entry = header["zoo"]
        assert entry["name"] == name
        assert zoo.find_header_fault(header) == ""
        assert zoo.find_accuracy_fault(header) == ""
        assert zoo.find_accuracy_fault(header, entry["found_again"]) == ""
        assert zoo.find_barrier_fault(entry["pushes"], header["temperature"][1]) == ""
        assert zoo.find_gate_fault(header["check"], entry["accepted"]) == ""
        assert path.stat().st_size < zoo.MOST_BYTES
        assert len(entry["stability"]) >= 2
        assert all(row["ps"] > 1.0 for row in entry["stability"])

    @every_name
    def test_the_gate_was_run_on_these_weights_and_in_full(self, name: str) -> None:
        header = read_header(name)
        assert header["check"]["model_sha256"] == header["sha256"]
        tests = {row["test"] for row in header["check"]["checks"]}
        assert {"forces", "stress", "rotation", "repulsion", "NVE drift", "cut-off"} <= tests
        assert header["check"]["structures"]  # of the material, beside those made up

    @every_name
    def test_the_same_numbers_as_when_it_was_added(self, name: str) -> None:
        """A changed file format, kernel or cut-off function shows here."""
        student = load_model(name, dtype=torch.float64)
        stored = student.header["zoo"]["reference"]
        atoms = read_header_structures(student.header)[stored["structure"]]
        (found,) = predict(student, [atoms])
        assert found.energy == pytest.approx(stored["energy"], abs=1e-6)
        np.testing.assert_allclose(found.forces[:3], stored["forces"], atol=1e-6)
        if stored["stress"] is not None:  # of slabs there is none
            np.testing.assert_allclose(found.stress, stored["stress"], atol=1e-6)
        (single,) = predict(load_model(name), [atoms])
        np.testing.assert_allclose(single.forces[:3], stored["forces"], atol=1e-3)

    def test_the_page_is_up_to_date(self, zoo: ModuleType) -> None:
        assert zoo.PAGE.read_text(encoding="utf-8") == zoo.render_page(), "bench/zoo.py --write"


class TestNames:
    """A name wherever a model is asked for."""

    @every_name
    def test_calculator(self, name: str) -> None:
        atoms = read_header_structures(read_header(name))[0]
        atoms.calc = FastFFCalculator(name, device="cpu")
        assert np.isfinite(atoms.get_forces()).all()
        assert atoms.calc.todict()["model"] == name

    def test_predict_and_md(
        self, run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write("a.xyz", read_header_structures(read_header(FIRST))[0], format="extxyz")
        code, out, err = run_cli("predict", FIRST, "a.xyz", "--device", "cpu")
        assert code == 0, err
        assert "eV/atom" in out
        code, out, err = run_cli(
            "md", FIRST, "a.xyz", "--steps", "2", "--out", "o", "--device", "cpu"
        )
        assert code == 0, err
        assert f"fastff md {FIRST} o" in out

    @pytest.mark.parametrize("given", ["watr-7net", "copper"])
    def test_unknown_name(self, given: str, run_cli: Run, copper: Atoms, tmp_path: Path) -> None:
        write(tmp_path / "a.xyz", copper)
        code, out, err = run_cli("predict", given, tmp_path / "a.xyz", "--device", "cpu")
        assert (code, out, err.count("\n")) == (5, "", 1)
        assert all(name in err for name in (given, *NAMES))
        for call in (FastFFCalculator, load_model, read_header):
            with pytest.raises(ModelFileError, match=f"{given}.*{FIRST}"):
                call(given)

    def test_the_nearest_name_is_proposed(self) -> None:
        with pytest.raises(ModelFileError, match=f"did you mean {FIRST}"):
            load_model(FIRST[:-1])

    @pytest.mark.parametrize("given", ["no/model", "model.safetensors", "./water-7net"])
    def test_a_path_stays_a_path(self, given: str) -> None:
        with pytest.raises(ModelFileError, match=r"no model file at .*; check the path"):
            load_model(given)

    def test_a_file_wins_over_a_name(
        self, copper_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / FIRST).mkdir()  # a folder, such as that of a run, is no model
        assert load_model(FIRST).header["zoo"]["name"] == FIRST
        (tmp_path / FIRST).rmdir()
        shutil.copy(copper_model, FIRST)
        assert load_model(FIRST).elements == (29,)
        assert find_shipped(FIRST) is None
        stamp_header(FIRST, {"note": 1})
        assert read_header(FIRST)["note"] == 1

    def test_a_shipped_file_is_never_changed(
        self, run_cli: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = resolve_model(FIRST).read_bytes()
        with pytest.raises(UsageError, match="shipped"):
            stamp_header(FIRST, {"note": 1})
        seen: dict[str, Any] = {}

        def check(student: Any, named: Any, *, path: Path, **more: Any) -> CheckReport:
            seen["path"] = path
            return CheckReport((Check("a", 0.0, 1.0, "eV"),))

        monkeypatch.setattr("fastff.testing.check_student", check)
        code, out, err = run_cli("check", FIRST, "--device", "cpu")
        assert code == 0, err
        assert "not recorded" in out
        assert seen["path"].is_file()
        assert resolve_model(FIRST).read_bytes() == before

    def test_results_of_bench_and_baselines(self) -> None:
        from fastff.cli.bench import choose_folder
        from fastff.report.baselines import load_baseline

        assert choose_folder(Path(FIRST)) == Path("runs") / f"bench-{FIRST}"
        assert choose_folder(Path("a/b.safetensors")) == Path("a/bench")
        assert load_baseline(FIRST, "cpu").kind == "model"


class TestCards:
    """``fastff models``."""

    def test_list(self, run_cli: Run) -> None:
        code, out, err = run_cli("models")
        assert code == 0, err
        for name in NAMES:
            assert name in out
        assert "sevennet:7net-0" in out
        code, out, _ = run_cli("models", "--json")
        rows = json.loads(out)
        assert [row["name"] for row in rows] == NAMES
        assert all(
            row["accuracy"] >= 0.95 and row["licence"] and row["temperature"] for row in rows
        )

    @every_name
    def test_card(self, name: str, run_cli: Run) -> None:
        header = read_header(name)
        code, out, err = run_cli("models", name)
        assert code == 0, err
        assert out == render_card(name, header, resolve_model(name).stat().st_size)
        for words in (
            header["teacher"]["citation"],
            "MIT License",
            "Limits",
            "bench/zoo.py",
        ):
            assert words in out
        assert "study.py" in out or header["zoo"]["data"]["recipe"] in out
        assert ("Failed: " in out) != header["check"]["passed"]

    def test_card_of_any_file(self, model_path: Path, run_cli: Run) -> None:
        code, out, err = run_cli("models", model_path)
        assert code == 0, err
        assert "H, O, Cu" in out
        assert "Never run." in out

    def test_unknown(self, run_cli: Run) -> None:
        code, out, err = run_cli("models", "nothing-7net")
        assert (code, out, err.count("\n")) == (5, "", 1)

    def test_no_figure_is_rounded_up(self) -> None:
        from fastff.zoo.card import format_percent

        assert format_percent(0.94987) == "94.9 %"
        assert format_percent(None) == "-"


class TestRules:
    """What keeps a student out."""

    header: dict[str, Any] = {  # noqa: RUF012
        "accuracy": {"test": {"force": 0.96, "energy": 0.97, "stress": 0.95}},
        "teacher": {"name": "t", "version": "1", "licence": "MIT", "citation": "c"},
    }

    def test_accuracy(self, zoo: ModuleType) -> None:
        good = self.header["accuracy"]["test"]
        assert zoo.find_accuracy_fault(self.header) == ""
        for value, word in ((0.94987, "94.987 %"), (None, "unknown")):
            record = {"accuracy": {"test": {**good, "stress": value}}}
            assert word in zoo.find_accuracy_fault(record)
        assert "here but" in zoo.find_accuracy_fault(self.header, {**good, "force": 0.97})
        assert "found again" in zoo.find_accuracy_fault(self.header, {**good, "stress": 0.9499})

    def test_teacher(self, zoo: ModuleType) -> None:
        assert zoo.find_header_fault(self.header) == ""
        assert "licence" in zoo.find_header_fault({"teacher": {"name": "t", "licence": ""}})

    def test_barrier(self, zoo: ModuleType) -> None:
        row = {"barrier": 0.6, "lowest": -63.0}
        assert "behind a barrier of 0.6 eV" in zoo.find_barrier_fault({"H-O": row}, 700.0)
        assert zoo.find_barrier_fault({"H-O": {**row, "barrier": 2.0}}, 700.0) == ""
        assert zoo.find_barrier_fault({"H-O": {"barrier": None, "lowest": None}}, 700.0) == ""

    def test_gate(self, zoo: ModuleType) -> None:
        checks = (Check("a", 1.0, 2.0, "eV"), Check("b", float("nan"), 2.0, "eV"))
        record = CheckReport((*checks, Check("c", None, 0.0, ""))).to_dict()
        assert zoo.find_gate_fault(record, {}) == "the physics gate fails: b"
        assert zoo.find_gate_fault(record, {"b": "why"}) == ""
        assert zoo.find_gate_fault(record, {"a": "why"}) != ""

    def test_pushing(self, measures: ModuleType) -> None:
        """Two atoms approach along the shortest way, through the boundary, and the third stays."""
        atoms = Atoms("H3", [[0.5, 0, 0], [9.5, 0, 0], [5, 5, 5]], cell=[10, 10, 10], pbc=True)
        seen: list[float] = []

        def respond(images: list[Atoms]) -> SimpleNamespace:
            seen.extend(image.get_distance(0, 1, mic=True) for image in images)
            assert all((image.positions[2] == 5).all() for image in images)
            return SimpleNamespace(energy=[7.0 + d for d in seen])

        energies = measures.trace_push(SimpleNamespace(respond=respond), atoms, 0, 1)
        assert seen[0] == pytest.approx(1.0)
        assert max(seen) == seen[0]
        assert seen[-1] == pytest.approx(measures.CLOSEST)
        assert energies[0] == 0.0
        assert energies[-1] == pytest.approx(measures.CLOSEST - 1.0)


def test_labels_of_a_system_are_read_as_the_study_writes_them(
    zoo: ModuleType, tmp_path: Path
) -> None:
    """Test frames are those that training left out; each trajectory has the phase of its replica."""
    materials = load_program("zoo_materials")
    n_replicas, n_atoms = 16, 4
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)[:n_atoms]
    study = {"system": "nacl", "ladders": [{"phase": "solid"}, {"phase": "liquid"}]}
    np.savez(
        tmp_path / "nacl.npz",
        numbers=atoms.numbers,
        positions=np.repeat(atoms.positions[None], n_replicas, axis=0)
        + 0.01 * np.arange(n_replicas)[:, None, None],
        cell=np.repeat(atoms.cell.array[None], n_replicas, axis=0),
        energy=np.arange(n_replicas, dtype=float),
        forces=np.zeros((n_replicas, n_atoms, 3)),
        stress=np.zeros((n_replicas, 6)),
        temperature=np.linspace(200, 1900, n_replicas),
        replica=np.arange(n_replicas),
        step=np.zeros(n_replicas, dtype=int),
        record=np.array(json.dumps({"study": study, "provenance": {}})),
    )
    material = materials.StudyMaterial(tmp_path / "nacl.npz")
    assert [frame.trajectory for frame in material.test] == [3, 11]
    assert [material.ladders[k] for k in (0, 7, 8, 15)] == ["solid", "solid", "liquid", "liquid"]
    assert material.phases == ("solid", "liquid")
    assert material.pick("liquid", 5000).trajectory == 11
