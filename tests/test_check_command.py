"""The physics gate around its tests: its report, any calculator, stamps in model files, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from untrained import make_student

from fastff.checkpoint import load_model, read_header, save_model, stamp_header
from fastff.errors import DataError, ModelFileError, UsageError
from fastff.models import Student
from fastff.testing import (
    Check,
    CheckReport,
    check_calculator,
    check_student,
    gate,
)
from tests.test_check import ELEMENTS, push_one


class Defective(EMT):
    """EMT whose results are spoiled by :meth:`spoil`."""

    calls = 0

    def calculate(self, atoms: Any = None, *arguments: Any, **more: Any) -> None:
        super().calculate(atoms, *arguments, **more)
        self.calls += 1
        self.spoil(atoms, self.results)

    def spoil(self, atoms: Atoms, results: dict[str, Any]) -> None:
        raise NotImplementedError


def spoil(function: Callable[[Defective, Atoms, dict[str, Any]], None]) -> type[Defective]:
    """A calculator with one defect."""
    return type(function.__name__, (Defective,), {"spoil": function})


def _scale_forces(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["forces"] = results["forces"] * 1.01


def _turn_stress(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    if "stress" in results:
        results["stress"] = -results["stress"]


def _know_directions(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"] += 1e-6 * float(atoms.get_all_distances(mic=True, vector=True)[0, 1, 0] ** 2)


def _know_hands(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"] += 1e-6 * float(np.linalg.det(atoms.positions[1:4] - atoms.positions[0]))


def _know_the_origin(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"] += 1e-6 * float(atoms.positions[0, 0])


def _know_the_order(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["forces"] = results["forces"] * (1.0 + 1e-6 * np.arange(len(atoms)))[:, None]


def _count_atoms(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"] += 1e-7 * len(atoms) ** 2


def _push_one(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["forces"][0] += 1e-6


def _twirl(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    """No gradient of anything, beside the right energy."""
    results["forces"] = results["forces"] @ np.array([[1, 0.1, 0], [-0.1, 1, 0], [0, 0, 1.0]])


def _attract(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"], results["forces"] = -results["energy"], -results["forces"]


def _remember(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"] += 1e-6 * calc.calls


def _shake(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    results["energy"] += 1e-2 * float(np.sin(1e7 * atoms.positions[0].sum()))


def _leave_alone(calc: Defective, atoms: Atoms, results: dict[str, Any]) -> None:
    """EMT reaches farther than the 4 Å that it is said to."""


DEFECTIVE: list[tuple[type[Defective], str]] = [
    (spoil(_scale_forces), "forces, copper"),
    (spoil(_turn_stress), "stress, copper"),
    (spoil(_know_directions), "rotation, copper"),
    (spoil(_know_hands), "inversion, copper"),
    (spoil(_know_the_origin), "translation, copper"),
    (spoil(_know_the_order), "permutation, copper"),
    (spoil(_count_atoms), "supercell, copper"),
    (spoil(_push_one), "momentum, copper"),
    (spoil(_twirl), "jacobian, copper"),
    (spoil(_attract), "repulsion"),
    (spoil(_remember), "reuse"),
    (spoil(_twirl), "NVE drift, copper"),
    (spoil(_shake), "NVE order, copper"),
    (spoil(_leave_alone), "separation"),
    (spoil(_leave_alone), "cut-off"),
]


@pytest.fixture
def student() -> Student:
    return make_student("m1", ELEMENTS, energy_scale=0.02)


class TestReport:
    """What is written of a gate."""

    rows = CheckReport(
        (
            Check("a", 1.0, 2.0, "eV", "one"),
            Check("a", float("nan"), 2.0, "eV", "two"),
            Check("b", None, 0.0, "", "", "no GPU"),
            Check("c", 0.0, 0.0, "eV"),
            Check("c", 1e-30, 0.0, "eV", "tiny"),
        )
    )

    def test_nothing_passes_silently(self) -> None:
        assert self.rows.failures == ("a, two", "c, tiny")
        assert self.rows.not_applicable == ("b",)
        assert not self.rows.checks[2].passed
        assert [c.name for c in self.rows.summarize()] == ["a, two", "b", "c, tiny"]
        assert "n/a  b" in str(self.rows)
        assert "no GPU" in str(self.rows)

    def test_through_json_and_back(self) -> None:
        record = json.loads(json.dumps(self.rows.to_dict(), allow_nan=False))
        again = CheckReport.from_dict(record)
        assert str(again) == str(self.rows)
        assert again.failures == self.rows.failures
        with pytest.raises(DataError, match="fastff check"):
            CheckReport.from_dict({"checks": [{"name": "a"}]})


class TestCalculators:
    """Any ASE calculator."""

    copper = bulk("Cu", cubic=True)
    copper.positions += np.random.default_rng(0).normal(scale=0.05, size=(4, 3))

    def test_a_sound_one(self) -> None:
        report = check_calculator(EMT(), [self.copper])
        assert set(report.failures) <= {"repulsion"}, f"\n{report}"
        assert {"separation", "cut-off", "float32", "batch"} <= set(report.not_applicable)

    def test_cutoff_gives_more_tests(self) -> None:
        lj = LennardJones(sigma=2.3, epsilon=0.1, rc=5.0, smooth=True)
        report = check_calculator(lj, {"copper": self.copper}, cutoff=5.0)
        assert "separation" in {check.name for check in report.checks if check.passed}
        assert "cut-off" in {check.name for check in report.checks if check.passed}

    def test_a_jump_at_the_cutoff(self) -> None:
        lj = LennardJones(sigma=2.3, epsilon=5.0, rc=4.0, smooth=False)
        report = check_calculator(lj, {"copper": self.copper}, cutoff=4.0)
        assert "cut-off" in report.failures

    @pytest.mark.parametrize(("calculator", "caught_by"), DEFECTIVE)
    def test_every_test_sees_a_defect(self, calculator: type[EMT], caught_by: str) -> None:
        options: dict[str, Any] = {"only": {caught_by.partition(",")[0]}}
        sound: Calculator = EMT()
        if caught_by in ("separation", "cut-off"):
            options["cutoff"] = 4.0
            sound = LennardJones(sigma=2.3, epsilon=0.1, rc=4.0, smooth=True)
        before, after = (
            check_calculator(each, {"copper": self.copper}, **options)
            for each in (sound, calculator())
        )
        assert caught_by in {check.name for check in before.checks if check.passed}, f"\n{before}"
        assert after.failures == (caught_by,), f"\n{after}"

    def test_every_test_has_a_defect(self) -> None:
        report = check_calculator(EMT(), {"copper": self.copper})
        made = {check.test for check in report.checks if check.value is not None}
        planted = {name.partition(",")[0] for _, name in DEFECTIVE}
        assert made | {"separation", "cut-off"} == planted

    def test_only_periodic_structures(self) -> None:
        """Such as a plane-wave code: what it refuses is listed, not passed, and the rest is checked."""

        class Periodic(EMT):
            def calculate(self, atoms: Any = None, *arguments: Any, **more: Any) -> None:
                if not atoms.pbc.all():
                    raise ValueError("periodic\ncells only")
                super().calculate(atoms, *arguments, **more)

        report = check_calculator(Periodic(), {"copper": self.copper}, cutoff=6.0)
        assert report.passed, f"\n{report}"
        assert {"separation", "cut-off", "repulsion"} <= set(report.not_applicable)
        assert "forces, copper" in {check.name for check in report.checks if check.passed}
        assert "(ValueError: periodic cells only)" in str(report)

    def test_errors_are_failures(self) -> None:
        class Breaking(EMT):
            def calculate(self, atoms: Any = None, *arguments: Any, **more: Any) -> None:
                if len(atoms) > 4:
                    raise RuntimeError("out of memory")
                super().calculate(atoms, *arguments, **more)

        report = check_calculator(Breaking(), {"copper": self.copper})
        failed = {"supercell, copper", "NVE drift, copper", "NVE order, copper"}
        assert set(report.failures) == failed, f"\n{report}"
        assert "RuntimeError: out of memory" in str(report)

    def test_one_structure_by_itself(self) -> None:
        report = check_calculator(EMT(), Atoms("Cu"))
        assert report.passed, f"\n{report}"
        assert {"NVE drift, Cu 0", "NVE order, Cu 0"} <= set(report.not_applicable)

    def test_arguments_that_mean_nothing(self) -> None:
        with pytest.raises(DataError, match="at least one"):
            check_calculator(EMT(), [])
        with pytest.raises(UsageError, match="'single' is not one of float64, float32"):
            check_calculator(EMT(), [self.copper], precision="single")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="cutoff inf Å must be a positive number"):
            check_calculator(EMT(), [self.copper], cutoff=float("inf"))
        with pytest.raises(UsageError, match=r"no test is called 'nve'; there are .*NVE drift"):
            check_calculator(EMT(), [self.copper], only={"nve"})

    def test_a_value_that_is_not_a_number_is_kept_among_others(
        self, student: Student, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last = max(student.elements)
        monkeypatch.setattr(
            gate, "measure_primitive", lambda subject, z: float("nan") if z == last else 1e-14
        )
        report = check_student(student, only={"primitive cell"})
        assert list(report.failures) == ["primitive cell"]

    def test_an_error_of_the_listener_is_not_the_calculators(self) -> None:
        heard = []

        def listen(check: Check) -> None:
            heard.append(check.test)
            raise RuntimeError("no terminal")

        with pytest.raises(RuntimeError, match="no terminal"):
            check_calculator(EMT(), {"copper": self.copper}, on_check=listen)
        assert len(heard) == 1

    def test_an_error_in_dynamics_is_kept_of_either_test(self) -> None:
        class Refusing(EMT):
            def calculate(self, *arguments: Any, **more: Any) -> None:
                raise RuntimeError("no licence")

        for test in ("NVE drift", "NVE order"):
            report = check_calculator(Refusing(), {"copper": self.copper}, only={test})
            assert set(report.failures) == {f"{test}, copper"}


class TestStamp:
    """Entries added to a model file."""

    @pytest.fixture
    def path(self, student: Student, tmp_path: Path) -> Path:
        path = tmp_path / "m.safetensors"
        save_model(path, student, {"teacher": {"name": "none"}})
        return path

    def test_weights_stay_as_they_are(self, path: Path) -> None:
        before, old = load_model(path), read_header(path)
        stamp_header(path, {"check": {"passed": True}})
        after, new = load_model(path), read_header(path)
        assert new["check"] == {"passed": True}
        assert {k: v for k, v in new.items() if k not in ("check", "header_sha256")} == {
            k: v for k, v in old.items() if k != "header_sha256"
        }
        assert new["header_sha256"] != old["header_sha256"]
        for name, value in before.state_dict().items():
            assert torch.equal(value, after.state_dict()[name]), name

    def test_what_belongs_to_the_file_is_refused(self, path: Path) -> None:
        with pytest.raises(ValueError, match="sha256"):
            stamp_header(path, {"sha256": "0"})

    def test_a_damaged_file_is_not_blessed(self, path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(ModelFileError, match="SHA-256"):
            stamp_header(path, {"check": {}})
        assert path.read_bytes() == bytes(data)


class TestCommand:
    """``fastff check``."""

    @pytest.fixture
    def path(self, student: Student, tmp_path: Path) -> Path:
        path = tmp_path / "m.safetensors"
        save_model(path, student, {})
        return path

    def test_pass_table_record_and_stamp(
        self, path: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
    ) -> None:
        record = tmp_path / "check.json"
        code, out, err = run_cli(
            "check", path, "--json", record, "--device", "cpu", "--temperature", "2"
        )
        assert code == 0, out + err
        assert "0 failed" in out
        assert "n/a" in out
        stored = read_header(path)["check"]
        written = json.loads(record.read_text())
        assert written.pop("provenance")["packages"]["torch"]
        assert stored == written
        assert stored["passed"] is True
        assert stored["temperature"] == 2.0
        assert CheckReport.from_dict(stored).passed

    def test_dynamics_of_a_structure_too_large_for_the_other_tests(
        self,
        student: Student,
        tmp_path: Path,
        run_cli: Callable[..., tuple[int, str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The model's own one: what is made from its elements alone need not be a material."""
        import io

        from ase.io import write

        text, path = io.StringIO(), tmp_path / "large.safetensors"
        write(text, [bulk("Cu", cubic=True) * (3, 3, n) for n in (9, 2)], format="extxyz")
        save_model(path, student, {"structures": text.getvalue()})
        asked: list[Any] = []

        def check(model: Student, structures: Any, *, moving: Any, **options: Any) -> CheckReport:
            asked.extend([structures, moving])
            return CheckReport((Check("a", 0.0, 1.0, "eV"),))

        monkeypatch.setattr("fastff.testing.check_student", check)
        code, out, err = run_cli("check", path, "--no-stamp", "--device", "cpu")
        assert code == 0, out + err
        assert asked[0] == {}
        assert [len(atoms) for atoms in asked[1].values()] == [72]
        assert list(asked[1]) == ["seed Cu72"]

    def test_a_calculator(
        self, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
    ) -> None:
        from ase.io import write

        write(tmp_path / "cu.xyz", TestCalculators.copper)
        record = tmp_path / "check.json"
        given = ("--structures", tmp_path / "cu.xyz", "--json", record)
        code, out, err = run_cli("check", "ase:ase.calculators.emt:EMT", *given)
        assert code == 0, out + err
        stored = json.loads(record.read_text())
        assert stored["calculator"] == "ase:ase.calculators.emt:EMT"
        assert CheckReport.from_dict(stored).passed
        assert "cu.xyz 0" in out
        # truncated without a switch: energy and forces jump
        jumping = (
            "ase:ase.calculators.lj:LennardJones",
            "--cutoff",
            "4",
            "--teacher-option",
            "rc=4.0",
        )
        more = ("--teacher-option", "sigma=2.3", "--teacher-option", "epsilon=5.0")
        code, out, err = run_cli("check", *jumping, *more, *given)
        assert code == 6
        assert "cut-off" in err
        assert json.loads(record.read_text())["passed"] is False

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["ase:ase.calculators.emt:EMT"], "--structures"),
            (["ase:EMT", "--structures", "{file}"], "not an import path"),
            (["{model}", "--cutoff", "5"], "are for calculators"),
        ],
    )
    def test_usage_of_calculators(
        self,
        path: Path,
        tmp_path: Path,
        run_cli: Callable[..., tuple[int, str, str]],
        arguments: list[str],
        message: str,
    ) -> None:
        from ase.io import write

        write(tmp_path / "cu.xyz", TestCalculators.copper)
        places = {"file": tmp_path / "cu.xyz", "model": path}
        code, _, err = run_cli("check", *(text.format(**places) for text in arguments))
        assert code == 2
        assert message in err

    def test_a_file_wins_over_a_teacher(
        self,
        path: Path,
        tmp_path: Path,
        run_cli: Callable[..., tuple[int, str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "chgnet").write_bytes(path.read_bytes())
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            "fastff.testing.check_student",
            lambda *given, **more: CheckReport((Check("a", 0.0, 1.0, "eV"),)),
        )
        code, out, err = run_cli("check", "chgnet", "--device", "cpu")
        assert code == 0, out + err
        assert read_header(tmp_path / "chgnet")["check"]["passed"] is True

    def test_fail_and_no_stamp(
        self,
        path: Path,
        tmp_path: Path,
        run_cli: Callable[..., tuple[int, str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from ase.io import write

        forward = Student.forward
        monkeypatch.setattr(Student, "forward", lambda self, g: push_one(forward(self, g), g, self))
        before = path.read_bytes()
        write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
        code, out, err = run_cli(
            "check",
            path,
            "--no-stamp",
            "--device",
            "cpu",
            "--temperature",
            "2",
            "--structures",
            tmp_path / "cu.xyz",
        )
        assert code == 6
        assert "momentum" in err
        assert "cu.xyz 0" in out or "fail" in out
        assert path.read_bytes() == before
