"""``fastff bench --compare-teacher`` loads the teacher that made the labels, settings and weights included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ase.calculators.lj import LennardJones
from typer.testing import CliRunner
from untrained import make_student

from fastff.checkpoint import save_model
from fastff.cli.root import app
from fastff.errors import UsageError
from fastff.teachers import base, load_teacher, registry
from fastff.teachers.analytic import AnalyticTeacher


def make_pair(model: str, epsilon: float = 1.0, device: str = "cpu") -> LennardJones:
    """A calculator with a weight file."""
    assert Path(model).is_file()
    assert device == "cpu"
    return LennardJones(epsilon=epsilon)


class Charged(AnalyticTeacher):
    """Takes a charge and a precision as Orb's molecular models do, and says so."""

    def __init__(self, variant: str | None, *, weights: Path | None, options: Any, device: str):
        super().__init__(None, device=device)
        self.given = dict(options)
        settings = base.describe_settings(**options)
        name = variant or "omol"
        weights_name = str(weights) if weights else name
        digest = weights.read_text() if weights else "published"
        self.info = replace(
            self.info,
            name=f"orb:{name}",
            weights=weights_name,
            weights_sha256=digest,
            settings=settings,
        )


def bench(
    path: Path, *arguments: str, teacher: dict[str, Any], monkeypatch: Any, **header: Any
) -> Any:
    """What the command has loaded when it begins to measure, and how it says that it differs."""
    save_model(path, make_student("m1", (29, 79), cutoff=4.0), {"teacher": teacher, **header})
    seen: list[Any] = []

    def stop(*values: Any) -> None:
        seen.append((values[4], values[8]))
        raise KeyboardInterrupt

    monkeypatch.setattr("fastff.cli.bench.print_plan", stop)
    words = [
        "bench",
        str(path),
        "--compare-teacher",
        "--device",
        "cpu",
        "--out",
        str(path.parent / "out"),
    ]
    done = CliRunner().invoke(app, [*words, *arguments])
    if not seen:
        assert done.exception is not None
        raise done.exception
    return seen[0]


def test_a_fidelity_is_that_of_the_labels(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("sevenn")
    options = {"modal": "R2SCAN"}
    record = load_teacher("sevennet:7net-mf-0", device="cpu", options=options).info.to_dict()
    path = tmp_path / "model.safetensors"
    teacher, difference = bench(path, teacher=record, monkeypatch=monkeypatch)
    assert teacher.info.to_dict() == record
    assert difference == ""
    asked = ("--teacher-option", "modal=PBE")
    teacher, difference = bench(path, *asked, teacher=record, monkeypatch=monkeypatch)
    assert teacher.info.settings == "modal=PBE"
    assert difference == "settings is 'modal=R2SCAN' there and 'modal=PBE' now"


def test_charge_spin_and_precision_are_those_of_the_labels(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(registry.LOADERS, "orb", Charged)
    path = tmp_path / "model.safetensors"
    options = {"charge": -1, "spin": 2, "precision": "float32-highest"}
    record = load_teacher("orb:omol", device="cpu", options=options).info.to_dict()
    teacher, difference = bench(path, teacher=record, monkeypatch=monkeypatch)
    assert (teacher.given, difference) == (options, "")
    # written before settings were recorded: what the training was asked for tells them
    old = {key: value for key, value in record.items() if key != "settings"}
    training = {"request": {"teacher_options": {**options, "batch_atoms": 7}}}
    teacher, _ = bench(path, teacher=old, training=training, monkeypatch=monkeypatch)
    assert teacher.given == options
    # another teacher has its own
    asked = ("--teacher", "orb:other")
    teacher, difference = bench(path, *asked, teacher=record, monkeypatch=monkeypatch)
    assert teacher.given == {}
    assert "name is 'orb:omol' there and 'orb:other' now" in difference
    assert "settings" in difference


def test_weights_of_ones_own_are_found_or_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(registry.LOADERS, "orb", Charged)
    monkeypatch.setattr("fastff.report.taught.hash_file", Path.read_text)
    path, weights = tmp_path / "model.safetensors", tmp_path / "own.ckpt"
    weights.write_text("mine")
    record = load_teacher("orb:omol", device="cpu", weights=weights).info.to_dict()
    teacher, difference = bench(path, teacher=record, monkeypatch=monkeypatch)
    assert (teacher.info.weights_sha256, difference) == ("mine", "")
    weights.write_text("another")
    with pytest.raises(
        UsageError, match=r"weights of its own, .*own\.ckpt .*; add --teacher-weights FILE"
    ):
        bench(path, teacher=record, monkeypatch=monkeypatch)
    asked = ("--teacher-weights", str(weights))
    _, difference = bench(path, *asked, teacher=record, monkeypatch=monkeypatch)
    assert difference == "weights_sha256 is 'mine' there and 'another' now"
    pickled = {**record, "name": "sevennet:own", "weights": str(weights)}
    with pytest.raises(
        UsageError, match="--trust-teacher-file REASON"
    ):  # a file must not vouch for pickles
        bench(path, teacher=pickled, monkeypatch=monkeypatch)


def test_what_the_name_alone_does_not_load_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "model.safetensors"
    record = load_teacher("analytic:morse", device="cpu", options={"depth": 0.7}).info.to_dict()
    with pytest.raises(
        UsageError, match=r"weights is 'depth=0\.7 eV.* there and 'depth=0\.4 eV.* now"
    ):
        bench(path, teacher=record, monkeypatch=monkeypatch)
    asked = ("--teacher-option", "depth=0.7")
    assert bench(path, *asked, teacher=record, monkeypatch=monkeypatch)[1] == ""
    asked = ("--teacher", "analytic:morse")  # all the same
    assert "weights" in bench(path, *asked, teacher=record, monkeypatch=monkeypatch)[1]
    bare = {"name": "analytic:morse", "licence": "mine"}  # of an archive: says nothing of weights
    assert bench(path, teacher=bare, monkeypatch=monkeypatch)[1] == ""


def test_arguments_of_functions_are_not_taken_from_a_model_file(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """A model file from elsewhere could else name a function and what it is called with."""
    weights, path = tmp_path / "pair.dat", tmp_path / "model.safetensors"
    weights.write_text("1.0")
    options = {"epsilon": 2.0}
    teacher = load_teacher(f"ase:{__name__}:make_pair", weights=weights, options=options)
    record = teacher.info.to_dict()
    with pytest.raises(UsageError, match="cannot make make_pair"):
        bench(path, teacher=record, monkeypatch=monkeypatch)
    asked = ("--teacher-weights", str(weights))
    assert "settings" in bench(path, *asked, teacher=record, monkeypatch=monkeypatch)[1]
    asked += ("--teacher-option", "epsilon=2.0")
    assert bench(path, *asked, teacher=record, monkeypatch=monkeypatch)[1] == ""


def test_options_of_a_teacher_need_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, make_student("m1", (29, 79), cutoff=4.0), {})
    words = ["bench", str(path), "--labels", "x.xyz", "--device", "cpu", "--teacher-option", "a=1"]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, UsageError)
    assert "--teacher-option is only used with --compare-teacher" in str(error)
