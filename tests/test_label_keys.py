"""``--label-key``: files that have their own names for labels, beside others that are not meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import bulk
from ase.io import write
from emt_frames import label_by_emt
from untrained import make_student

from fastff.checkpoint import save_model
from fastff.distill.formats import LabelKeys, read_labels
from fastff.errors import DataError, UsageError
from fastff.labels import Frame
from fastff.report.bench import run_bench
from fastff.report.plan import QUICK_PLAN

Run = Callable[..., tuple[int, str, str]]
OWN = ("--label-key", "energy=E_dft", "--label-key", "forces=F_dft", "--label-key", "virial=W_dft")


def make_copper_frames(count: int) -> list[Frame]:
    """Steps along random directions."""
    rng, structures, atoms = np.random.default_rng(1), [], bulk("Cu", cubic=True)
    for _ in range(count):
        atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.03
        structures.append(atoms.copy())
    return label_by_emt(structures)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Frames whose own labels stand beside those of some other model, under the usual names."""
    structures = []
    for frame in make_copper_frames(24):
        atoms, labels = frame.atoms.copy(), frame.labels
        atoms.info["E_dft"] = labels.energy
        atoms.arrays["F_dft"] = labels.forces
        virial = -labels.stress * atoms.get_volume()
        atoms.info["W_dft"] = virial[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
        atoms.info["energy"], atoms.info["stress"] = 7.0, np.ones(6)
        atoms.arrays["forces"] = np.ones((len(atoms), 3))
        structures.append(atoms)
    write(tmp_path / "own.xyz", structures, format="extxyz")
    return tmp_path / "own.xyz"


def test_labels_of_the_command_line_are_those_that_are_named(
    run_cli: Run, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.h5"
    code, text, _ = run_cli("labels", file, *OWN, "--export", out)
    assert code == 0
    assert "24 with stress" in text
    for left, right in zip(make_copper_frames(24), read_labels(out).frames, strict=True):
        assert right.labels.energy == pytest.approx(left.labels.energy)
        np.testing.assert_allclose(right.labels.forces, left.labels.forces, atol=1e-7)
        np.testing.assert_allclose(right.labels.stress, left.labels.stress, atol=1e-7)


def test_training_takes_and_records_them(run_cli: Run, file: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "run", ("--student", "m1", "--steps", "2", "--quiet", "--device", "cpu")
    code, _, err = run_cli("train", "--labels", file, *OWN, *words, "--out", out)
    assert (code, "findings" in err) == (0, False), err
    request = yaml.safe_load((out / "config.yaml").read_text())["request"]
    assert request["label_keys"] == {"energy": "E_dft", "forces": "F_dft", "virial": "W_dft"}
    code, _, err = run_cli("train", "--resume", "--out", out, "--label-key", "energy=energy")
    assert (code, err.count("\n")) == (2, 1)
    assert "label_keys was" in err


def test_a_student_is_judged_on_them(run_cli: Run, file: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_model(model, make_student("m1", (29,), cutoff=4.0), {})
    words = (
        "bench",
        model,
        "--labels",
        file,
        "--device",
        "cpu",
        "--quick",
        "--out",
        tmp_path / "b",
    )
    code, _, err = run_cli(*words, "--label-key", "energy=none_such")
    assert code == 4, err
    assert "no none_such in 24 of 24 frames" in err
    code, _, err = run_cli(*words, *OWN)
    assert code == 0, err
    keys = {"energy": "E_dft", "forces": "F_dft", "virial": "W_dft"}
    judged = run_bench(model, labels=file, label_keys=keys, plan=replace(QUICK_PLAN, device="cpu"))
    expected = make_copper_frames(24)
    assert [frame.labels.energy for frame in judged.frames] == pytest.approx(
        [frame.labels.energy for frame in expected]
    )


@pytest.mark.parametrize("command", [("labels",), ("train", "--out", "run", "--labels")])
@pytest.mark.parametrize(
    ("pairs", "code", "words"),
    [
        (
            ["forces=dft"],
            4,
            "no dft in 24 of 24 frames (first: 0). Entries of the first frame: E_dft, F_dft",
        ),
        (["virial=dft"], 4, "no dft in 24 of 24 frames"),
        (["force=F_dft"], 2, "there is no label 'force'; did you mean 'forces'?"),
        (["E_dft"], 2, "'E_dft' is not of the form LABEL=NAME"),
        (["energy="], 2, "is not of the form LABEL=NAME"),
        (["energy=a", "energy=b"], 2, "names energy twice: 'a' and 'b'"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(
    run_cli: Run,
    monkeypatch: pytest.MonkeyPatch,
    file: Path,
    command: tuple[str, ...],
    pairs: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(file.parent)
    given = [word for pair in pairs for word in ("--label-key", pair)]
    found, _, err = run_cli(*command, file, *given)
    assert (found, err.count("\n")) == (code, 1)
    assert words in err


def test_names_are_of_files_that_have_some(run_cli: Run, file: Path, tmp_path: Path) -> None:
    run_cli("labels", file, *OWN, "--export", tmp_path / "labels.h5")
    with pytest.raises(UsageError, match="fixed names; leave --label-key out"):
        read_labels(tmp_path / "labels.h5", LabelKeys(energy="E_dft"))
    assert len(read_labels(tmp_path / "labels.h5", LabelKeys()).frames) == 24
    code, _, err = run_cli("train", "--structures", file, "--teacher", "analytic:emt", *OWN)
    assert code == 2
    assert "names of labels need a file of labels" in err


def test_entries_of_the_calculator_are_listed_too(tmp_path: Path) -> None:
    """Readers of extended XYZ put ``energy`` there."""
    frame = make_copper_frames(1)[0]
    frame.atoms.info["energy"] = 1.0
    write(tmp_path / "a.xyz", frame.atoms, format="extxyz")
    with pytest.raises(
        DataError, match=r"no forces in 1 of 1 .*Entries of the first frame: energy"
    ):
        read_labels(tmp_path / "a.xyz")
