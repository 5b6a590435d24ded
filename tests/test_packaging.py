"""What users install: only ``fastff``, with its data files, licence, extras and console script."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def read_project() -> dict:  # type: ignore[type-arg]
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_only_fastff_is_installed(wheel: zipfile.ZipFile) -> None:
    version = read_project()["version"]
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"fastff", f"fastff-{version}.dist-info"}


def test_every_file_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "fastff"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert tracked <= set(wheel.namelist())
    assert "fastff/py.typed" in tracked
    assert not [name for name in wheel.namelist() if name.endswith((".pyc", ".so", ".pt"))]


def test_console_script_and_licence(wheel: zipfile.ZipFile) -> None:
    (info,) = {n.split("/")[0] for n in wheel.namelist() if n.split("/")[0].endswith("-info")}
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert scripts["console_scripts"]["fastff"] == "fastff.cli:main"
    licence = wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


def test_one_extra_per_teacher_and_none_for_all() -> None:
    extras = read_project()["optional-dependencies"]
    teachers = {"sevennet", "chgnet", "orb", "fennol"}
    assert set(extras) == teachers | {"phonons", "submitit", "torchsim", "dev"}
    assert {"rich<14", "huggingface-hub<2"} <= set(extras["orb"])


def test_lightning_excludes_the_malicious_releases() -> None:
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in read_project()["dependencies"]]
    (lightning,) = [r for r in requirements if r.name == "lightning"]
    assert not lightning.specifier.contains("2.6.2")
    assert not lightning.specifier.contains("2.6.3")
    assert lightning.specifier.contains("2.6.4")


@pytest.mark.parametrize(
    ("file", "extras"), [("dev.txt", ["sevennet", "chgnet", "fennol", "dev"]), ("orb.txt", ["orb"])]
)
def test_every_direct_dependency_is_pinned_within_its_range(file: str, extras: list[str]) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints" / file).read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pins[canonicalize_name(requirement.name)] = next(iter(requirement.specifier))
    project = read_project()
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    for line in wanted:
        requirement = Requirement(line)
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned in constraints/{file}"
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{line} excludes {pin}"
