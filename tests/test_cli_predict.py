"""``fastff predict``: the same numbers as the library, formats in, extended XYZ out, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write

from fastff.checkpoint import load_model
from fastff.inference import predict
from fastff.units import EV_PER_A3_TO_GPA

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def frames(copper: Atoms, slab: Atoms) -> list[Atoms]:
    return [copper, slab]


@pytest.fixture
def structures(tmp_path: Path, frames: list[Atoms]) -> Path:
    path = tmp_path / "in.extxyz"
    write(path, frames, format="extxyz")
    return path


def test_output_file_holds_what_predict_says(
    run_cli: Run, copper_model: Path, structures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.extxyz"
    code, _, err = run_cli(
        "predict", copper_model, structures, "--out", out, "--device", "cpu", "--dtype", "float64"
    )
    assert (code, err) == (0, "")
    given = read(structures, ":")
    student = load_model(copper_model, dtype=torch.float64)
    expected = predict(student, given)
    written = read(out, ":")
    assert len(written) == 2
    for atoms, source, label in zip(written, given, expected, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(label.energy, abs=1e-7)
        np.testing.assert_allclose(atoms.get_forces(), label.forces, atol=1e-7)
        np.testing.assert_allclose(atoms.positions, source.positions, atol=1e-7)
    np.testing.assert_allclose(written[0].get_stress(), expected[0].stress, atol=1e-9)
    assert "stress" not in written[1].calc.results


def test_table(run_cli: Run, copper_model: Path, structures: Path) -> None:
    code, out, _ = run_cli(
        "predict", copper_model, structures, "--device", "cpu", "--dtype", "float64"
    )
    assert code == 0
    first, second = predict(load_model(copper_model, dtype=torch.float64), read(structures, ":"))
    assert first.stress is not None
    pressure = -first.stress[:3].mean() * EV_PER_A3_TO_GPA
    largest = np.linalg.norm(first.forces, axis=1).max()
    rows = [line.split() for line in out.splitlines()]
    assert rows[-2] == [
        "0", "Cu4", "4", f"{first.energy:.4f}", f"{first.energy / 4:.4f}", f"{largest:.4f}", f"{pressure:.3f}",
    ]  # fmt: skip
    assert rows[-1][:4] == ["1", "Cu8", "8", f"{second.energy:.4f}"]
    assert rows[-1][-1] == "-"


def test_float64_differs_from_float32(run_cli: Run, copper_model: Path, structures: Path) -> None:
    """The option reaches the model: float32 is near float64, but is not it."""
    forces = {}
    for dtype in ("float32", "float64"):
        out = structures.with_name(f"{dtype}.extxyz")
        run_cli("predict", copper_model, structures, "-o", out, "--device", "cpu", "--dtype", dtype)
        forces[dtype] = read(out, 0).get_forces()
    assert not np.array_equal(forces["float32"], forces["float64"])
    np.testing.assert_allclose(forces["float32"], forces["float64"], atol=1e-3)


def test_long_file_is_cut_on_the_terminal_only(
    run_cli: Run, copper_model: Path, copper: Atoms, tmp_path: Path
) -> None:
    write(tmp_path / "in.extxyz", [copper] * 23, format="extxyz")
    out = tmp_path / "out.extxyz"
    _, text, _ = run_cli("predict", copper_model, tmp_path / "in.extxyz", "--out", out)
    assert text.count("Cu4") == 20
    assert "and 3 more" in text
    assert len(read(out, ":")) == 23


def test_labels_of_the_input_are_not_carried_over(
    run_cli: Run, copper_model: Path, copper: Atoms, tmp_path: Path
) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    copper.calc = SinglePointCalculator(copper, energy=-123.0, magmoms=np.ones(4))
    copper.info["note"] = "kept"
    write(tmp_path / "in.extxyz", copper, format="extxyz")
    out = tmp_path / "out.extxyz"
    run_cli("predict", copper_model, tmp_path / "in.extxyz", "--out", out)
    atoms = read(out)
    assert atoms.get_potential_energy() != -123.0
    assert "magmoms" not in atoms.calc.results
    assert atoms.info["note"] == "kept"


def test_existing_output_is_kept_without_force(
    run_cli: Run, copper_model: Path, structures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.extxyz"
    out.write_text("precious")
    code, _, err = run_cli("predict", copper_model, structures, "--out", out)
    assert code == 2
    assert "exists" in err
    assert "--force" in err
    assert out.read_text() == "precious"
    assert run_cli("predict", copper_model, structures, "--out", out, "--force")[0] == 0
    assert len(read(out, ":")) == 2


def test_output_that_cannot_be_written_is_refused_first(
    run_cli: Run, copper_model: Path, tmp_path: Path
) -> None:
    for out, words in ((tmp_path, "is a folder"), (tmp_path / "no" / "out.xyz", "does not exist")):
        code, _, err = run_cli("predict", copper_model, tmp_path / "absent.xyz", "--out", out)
        assert code == 2
        assert words in err


@pytest.mark.parametrize(
    ("name", "text"), [("absent.xyz", None), ("broken.cif", "loop_\n_atom"), ("e.xyz", "")]
)
def test_unreadable_structures(
    run_cli: Run, copper_model: Path, tmp_path: Path, name: str, text: str | None
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    code, out, err = run_cli("predict", copper_model, tmp_path / name)
    assert code == 4
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert name in err


def test_unknown_element(run_cli: Run, copper_model: Path, water: Atoms, tmp_path: Path) -> None:
    write(tmp_path / "water.xyz", water, format="extxyz")
    code, _, err = run_cli("predict", copper_model, tmp_path / "water.xyz")
    assert code == 4
    assert "Cu" in err
    assert "O" in err


def test_model_file_that_is_none(run_cli: Run, structures: Path, tmp_path: Path) -> None:
    fake = tmp_path / "model.safetensors"
    for content in (None, b"", b"PK\x03\x04 zip"):
        if content is not None:
            fake.write_bytes(content)
        code, _, err = run_cli("predict", fake, structures)
        assert code == 5
        assert "model.safetensors" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(("device", "code"), [("gpu", 2), ("meta", 2), ("cuda:97", 3)])
def test_device_that_is_not_there(
    run_cli: Run, copper_model: Path, structures: Path, device: str, code: int
) -> None:
    status, _, err = run_cli("predict", copper_model, structures, "--device", device)
    assert status == code
    assert f"--device {device}" in err.replace("'", "")
