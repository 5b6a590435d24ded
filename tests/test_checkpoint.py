"""Model files: the same bits back, atomic replacement, and one clear line for every damaged or foreign file."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from untrained import make_student

from fastff.checkpoint import hash_header, load_model, read_header, save_model, write_atomically
from fastff.errors import ModelFileError
from fastff.models import Student
from fastff.testing import evaluate, make_structures

ELEMENTS = (8, 29)
HEADER = {
    "teacher": {"name": "analytic:morse", "licence": "none", "citation": "A. Müller, Å"},
    "temperature": (0.0, 900.5),
    "steps": {1: "one"},
    "accuracy": None,
    "tiny": 1e-300,
}


@pytest.fixture(scope="module")
def student() -> Student:
    return make_student("m2", ELEMENTS)


@pytest.fixture(scope="module")
def model_bytes(student: Student, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(path, student, HEADER)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, model_bytes: bytes) -> Path:
    path = tmp_path / "m.safetensors"
    path.write_bytes(model_bytes)
    return path


def refuse(path: Path) -> str:
    """The one line with which loading fails."""
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.exit_code == 5
    return message


@pytest.mark.parametrize("architecture", ["m1", "m2", "m2-l", "m2-hop3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_back(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    student = make_student(architecture, ELEMENTS).to(dtype)
    for parameter in student.parameters():  # digits that only the dtype itself holds
        parameter.mul_(1.0 + 1.0 / 3.0)
    student.composition_energies[0] = -4000.123456789012
    save_model(tmp_path / "m", student, {})
    loaded = load_model(tmp_path / "m", dtype=dtype)
    assert loaded.config == student.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for (name, one), (_, other) in zip(
        student.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    structures = list(make_structures(ELEMENTS).values())
    one, other = evaluate(student, structures), evaluate(loaded, structures)
    assert torch.equal(one.energy, other.energy)
    assert torch.equal(one.forces, other.forces)
    assert torch.equal(one.stress, other.stress)


def test_same_bits_in_another_process(path: Path, student: Student) -> None:
    script = f"""
import sys
from fastff.checkpoint import load_model
from fastff.testing import evaluate, make_structures
found = evaluate(load_model({str(path)!r}), list(make_structures({ELEMENTS}).values()))
print(found.energy.numpy().tobytes().hex(), found.forces.numpy().tobytes().hex())
assert not set(sys.modules) & {{"lightning", "sevenn", "chgnet", "matplotlib"}}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    found = evaluate(student, list(make_structures(ELEMENTS).values()))
    assert done.stdout.split() == [
        found.energy.numpy().tobytes().hex(),
        found.forces.numpy().tobytes().hex(),
    ]


def test_load_in_another_dtype(path: Path, student: Student) -> None:
    exact = load_model(path, dtype=torch.float64)
    assert exact.dtype == torch.float64
    assert torch.equal(exact.composition_energies, student.composition_energies)
    assert load_model(path).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        again = load_model(path)
    finally:
        torch.set_default_dtype(torch.float32)
    for (name, one), (_, other) in zip(
        student.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


def test_header_round_trip(path: Path, student: Student) -> None:
    header = read_header(path)
    assert header["teacher"] == HEADER["teacher"]
    assert header["temperature"] == [0.0, 900.5]
    assert header["steps"] == {"1": "one"}
    assert header["accuracy"] is None
    assert header["tiny"] == 1e-300
    assert header["config"] == student.config.to_dict()
    assert load_model(path).header == header


def test_saving_a_loaded_model_again(path: Path, tmp_path: Path) -> None:
    loaded = load_model(path)
    save_model(tmp_path / "again", loaded, loaded.header)
    assert read_header(tmp_path / "again") == loaded.header


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_headers_that_are_not_json_leave_the_old_file(
    path: Path, student: Student, value: Any, model_bytes: bytes
) -> None:
    with pytest.raises((ValueError, TypeError)):
        save_model(path, student, {"bad": value})
    assert path.read_bytes() == model_bytes


def test_truncated_anywhere(path: Path, model_bytes: bytes) -> None:
    for length in [1, 7, 8, 9, 500, *np.linspace(600, len(model_bytes) - 1, 25).astype(int)]:
        path.write_bytes(model_bytes[:length])
        refuse(path)
    path.write_bytes(model_bytes + b"\0")
    refuse(path)


def test_bits_flipped_anywhere(path: Path, model_bytes: bytes) -> None:
    """In the lengths, in the header with its cut-off and composition, and in every tensor's bytes."""
    header_end = 8 + int.from_bytes(model_bytes[:8], "little")
    rng = np.random.default_rng(0)
    places = [
        *range(8),
        *rng.integers(8, header_end, 250),
        *rng.integers(header_end, len(model_bytes), 60),
        len(model_bytes) - 1,
    ]
    for place in places:
        damaged = bytearray(model_bytes)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if chr(model_bytes[place]) == " ":  # white space that pads the header has no meaning
            continue
        refuse(path)


def test_changed_cutoff_in_the_header_is_noticed(path: Path, model_bytes: bytes) -> None:
    old = rb"\"cutoff\": 5.0"
    assert model_bytes.count(old) == 1
    path.write_bytes(model_bytes.replace(old, rb"\"cutoff\": 6.0"))
    assert "header does not match the stored SHA-256" in refuse(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (b"\n <html>404</html>", "HTML page"),
        (pickle.dumps({"a": 1}), "pickle, which is never loaded"),
        (pickle.dumps({"a": 1}, protocol=2), "pickle, which is never loaded"),
        (pickle.dumps({"a": 1}, protocol=3), "pickle, which is never loaded"),
        (b"PK\x03\x04" + bytes(100), "PyTorch zip archive, which is never unpickled"),
        (bytes(1000), "damaged, truncated or another format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "another format"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert message in refuse(path)


class _Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("exploded",))


def test_torch_files_are_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Explosive()}, tmp_path / "m.pt")
    refuse(tmp_path / "m.pt")
    assert not (tmp_path / "exploded").exists()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "no model file at" in refuse(tmp_path / "absent")
    assert "no model file at" in refuse(tmp_path)


def test_unreadable_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fastff.checkpoint.safe_open", deny)
    monkeypatch.setattr(Path, "open", deny)
    assert "Permission denied" in refuse(path)


def write_with(path: Path, student: Student, change: dict[str, Any]) -> None:
    """A file whose header is ``change``d and whose digests are right."""
    save_model(path, student, {})
    header = {**read_header(path), **change}
    header["header_sha256"] = hash_header(header)
    with safe_open(str(path), framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    save_file(tensors, str(path), metadata={"fastff": json.dumps(header)})


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, str(tmp_path / "other"))
    assert "without a fastff header; it holds some other model" in refuse(tmp_path / "other")
    save_file({"weight": torch.zeros(3)}, str(tmp_path / "other"), metadata={"format": "pt"})
    assert "without a fastff header" in refuse(tmp_path / "other")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": "x"}', '{"format": null}'])
def test_damaged_headers(tmp_path: Path, text: str) -> None:
    save_file({"weight": torch.zeros(3)}, str(tmp_path / "m"), metadata={"fastff": text})
    assert "damaged header" in refuse(tmp_path / "m")


def test_newer_format_says_what_to_do(tmp_path: Path, student: Student) -> None:
    write_with(tmp_path / "m", student, {"format": 99, "fastff_version": "7.1"})
    message = refuse(tmp_path / "m")
    assert "format 99" in message
    assert "upgrade fastff (written by version 7.1)" in message


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"architecture": "m9", "elements": [8, 29]},
        {"architecture": "m1", "elements": [8, 29]},
        {"architecture": "m2", "elements": [8, 29], "n_channels": 4},
        {"architecture": "m2", "elements": ["Cu"]},
        {"architecture": "m2", "elements": [8, 29], "surprise": 1},
    ],
)
def test_configuration_that_does_not_fit(tmp_path: Path, student: Student, config: Any) -> None:
    write_with(tmp_path / "m", student, {"config": config})
    assert "does not fit its own configuration" in refuse(tmp_path / "m")


def test_the_tensor_that_does_not_fit_is_named(tmp_path: Path, student: Student) -> None:
    config = {**student.config.to_dict(), "elements": [1, 8, 29]}
    write_with(tmp_path / "m", student, {"config": config})
    message = refuse(tmp_path / "m")
    assert "size mismatch for pair_factors" in message
    assert "\n" not in message


def test_missing_tensor(path: Path, student: Student) -> None:
    save_model(path, student, {})
    header = read_header(path)
    with safe_open(str(path), framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    for name in ("pair_factors", "energy_scale", "radial_weights"):
        fewer = {key: value for key, value in tensors.items() if key != name}
        save_file(fewer, str(path), metadata={"fastff": json.dumps(header)})
        assert "do not match their stored SHA-256" in refuse(path)


@pytest.mark.parametrize("place", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_old_file_survives_a_failed_save(
    place: str,
    error: BaseException,
    path: Path,
    student: Student,
    model_bytes: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(os, place, fail)
    kind = ModelFileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind) as caught:
        save_model(path, student, {"new": True})
    if isinstance(error, OSError):
        assert "No space left on device; choose another place or free space" in str(caught.value)
    assert path.read_bytes() == model_bytes
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "a stray temporary file"


def test_save_replaces_in_one_step(path: Path, student: Student) -> None:
    save_model(path, student, {"new": True})
    assert read_header(path)["new"] is True
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("target", ["absent/m.safetensors", "."])
def test_places_that_cannot_be_written(tmp_path: Path, target: str, student: Student) -> None:
    with pytest.raises(ModelFileError, match="cannot write"):
        save_model(tmp_path / target, student, {})
    assert not list(tmp_path.iterdir())


def test_written_bytes_are_those_given(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"\0one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
