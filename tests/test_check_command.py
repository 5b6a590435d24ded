"""The physics gate around its tests: its report, any calculator, stamps in model files, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from untrained import make_student

from fastff.checkpoint import load_model, read_header, save_model, stamp_header
from fastff.errors import DataError, ModelFileError
from fastff.models import Student
from fastff.testing import (
    Check,
    CheckReport,
    check_calculator,
)
from tests.test_check import ELEMENTS, push_one


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

    @pytest.mark.parametrize(
        ("kind", "caught_by"),
        [("forces", "forces, copper"), ("stale", "reuse"), ("stress", "stress, copper")],
    )
    def test_defects(self, kind: str, caught_by: str) -> None:
        class Defective(EMT):
            calls = 0

            def calculate(self, *arguments: Any, **more: Any) -> None:
                super().calculate(*arguments, **more)
                self.calls += 1
                if kind == "forces":
                    self.results["forces"] = self.results["forces"] * 1.01
                elif kind == "stale":
                    self.results["energy"] += 1e-6 * self.calls
                elif "stress" in self.results:
                    self.results["stress"] = -self.results["stress"]

        report = check_calculator(Defective(), {"copper": self.copper})
        assert caught_by in report.failures, f"\n{report}"

    def test_no_structures(self) -> None:
        with pytest.raises(DataError, match="at least one"):
            check_calculator(EMT(), [])


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
        assert stored == json.loads(record.read_text())
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
