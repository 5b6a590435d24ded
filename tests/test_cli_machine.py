"""``fastff doctor`` and ``fastff teachers``: what they report, and when the doctor fails."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastff import teachers as teachers_package
from fastff.cli import doctor
from fastff.cli.teachers import collect_hints
from fastff.teachers import TeacherStatus, list_teachers

Run = Callable[..., tuple[int, str, str]]


def make_status(name: str, **changes: Any) -> TeacherStatus:
    fields = {
        "name": name,
        "family": name.split(":")[0],
        "installed": False,
        "version": None,
        "weights_present": False,
        "licence": "MIT [draft]",
        "n_elements": 89,
        "install_hint": "pip install 'fastff[orb]'",
        "conservative": True,
    }
    return TeacherStatus(**{**fields, **changes})


@pytest.fixture
def hide_package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a package look as if it were not installed."""
    find = importlib.util.find_spec

    def hide(hidden: str) -> None:
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, package=None: None if name == hidden else find(name, package),
        )

    return hide


def find_check(name: str) -> doctor.Check:
    (check,) = [check for check in doctor.run_checks() if check.name == name]
    return check


def test_doctor_finds_this_environment_sound(run_cli: Run) -> None:
    code, out, err = run_cli("doctor")
    assert (code, err) == (0, "")
    assert "0 broken" in out


def test_doctor_json(run_cli: Run) -> None:
    import torch

    code, out, _ = run_cli("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["ok"] is True
    by_name = {check["name"]: check for check in report["checks"]}
    assert by_name["torch"]["detail"].startswith(torch.__version__)
    for name in ("python", "triton", "gpu", "lightning", "ase", "vesin", "kernels", "cache"):
        assert by_name[name]["status"] == "ok", by_name[name]


@pytest.mark.parametrize(
    ("module", "name"), [("h5py", "h5py"), ("yaml", "pyyaml"), ("lightning", "lightning")]
)
def test_missing_core_package_fails(
    run_cli: Run, hide_package: Callable[[str], None], module: str, name: str
) -> None:
    hide_package(module)
    code, out, _ = run_cli("doctor", "--json")
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == name]
    assert code == 3
    assert json.loads(out)["ok"] is False
    assert check["status"] == "fail"
    assert "pip install" in check["remedy"]


def test_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_PYTHON", (4, 0))
    assert find_check("python").status is doctor.Status.FAIL


def test_malicious_lightning_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "2.6.3")
    check = find_check("lightning")
    assert check.status is doctor.Status.FAIL
    assert "malicious" in check.detail


def test_check_that_breaks_is_a_finding(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_torch() -> Iterator[doctor.Check]:
        raise OSError("libcudart.so.13: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, check_torch))
    code, out, _ = run_cli("doctor")
    assert code == 3
    assert "libcudart.so.13" in out
    assert "1 broken" in out


def test_broken_neighbor_list_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from fastff import neighbors

    monkeypatch.setattr(neighbors, "build_edges", lambda *_: (np.zeros((2, 11)), np.zeros((11, 3))))
    check = find_check("vesin")
    assert check.status is doctor.Status.FAIL
    assert "11 neighbors" in check.detail


def test_unwritable_cache_is_a_warning(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    code, out, _ = run_cli("doctor", "--json")
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == "cache"]
    assert code == 0
    assert check["status"] == "warn"
    assert str(tmp_path) in check["detail"]
    assert "XDG_CACHE_HOME" in check["remedy"]


def test_wrong_backend_variable_fails(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTFF_BACKEND", "tritn")
    code, out, _ = run_cli("doctor", "--json")
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == "kernels"]
    assert code == 3
    assert "tritn" in check["detail"]


def test_missing_teacher_is_a_warning_with_the_way_to_get_it(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers_package, "list_teachers", lambda: [make_status("orb:v3")])
    code, out, _ = run_cli("doctor")
    assert code == 0
    assert "pip install 'fastff[orb]'" in out
    assert "1 to know of" in out


def test_teacher_without_weights_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_status("orb:v3", installed=True, version="0.5.5")]
    monkeypatch.setattr(teachers_package, "list_teachers", lambda: rows)
    check = find_check("teacher orb")
    assert check.status is doctor.Status.WARN
    assert check.detail == "weights missing"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_teachers_takes_one_line_each(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run_cli("teachers")
    assert (code, err) == (0, "")
    table = out.split("\n\n")[0].splitlines()
    assert len(table) == 1 + len(list_teachers())
    assert max(map(len, table)) <= 80
    for row in list_teachers():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{row.name} ")]
        assert ("no" in line.split()) is not (row.installed and row.weights_present)


def test_teachers_says_how_to_get_the_missing(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        make_status("orb:v3"),
        make_status("orb:direct", conservative=False),
        make_status("chgnet:0.3.0", installed=True, version="0.4.2", weights_present=True),
    ]
    monkeypatch.setattr(teachers_package, "list_teachers", lambda: rows)
    _, out, _ = run_cli("teachers")
    assert "To get orb:v3, orb:direct: pip install 'fastff[orb]'" in out
    assert "MIT [draft]" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert lines["orb:v3"][1:4] == ["no", "no", "-dE/dr"]
    assert lines["orb:direct"][3] == "direct"
    assert lines["chgnet:0.3.0"][1:4] == ["0.4.2", "yes", "-dE/dr"]


def test_teachers_json(run_cli: Run) -> None:
    code, out, _ = run_cli("teachers", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == [row.name for row in list_teachers()]


def test_ready_teachers_need_no_hint() -> None:
    ready = make_status("a:b", installed=True, weights_present=True)
    assert collect_hints([ready]) == {}
    assert list(collect_hints([make_status("a:b", installed=True)]).values()) == [["a:b"]]
