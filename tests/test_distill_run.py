"""The whole distillation on a teacher that costs nothing. Not here: its parts, which have tests of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from ase.build import bulk
from ase.io import write

from fastff.checkpoint import load_model
from fastff.distill.content import find_known, hash_structure
from fastff.distill.formats import read_labels
from fastff.distill.header import replace_undefined
from fastff.distill.request import build_request, check_folder, read_config
from fastff.distill.run import distill, remove_overlap
from fastff.distill.split import Split
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.models.uncertainty import measure_uncertainty
from fastff.neighbors import atoms_to_graph

QUICK = {
    "temperatures": (300.0, 600.0),
    "budget": 60,
    "n_steps": 60,
    "student": "m1",
    "cutoff": 4.0,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run on copper, labelled by effective-medium theory."""
    folder = tmp_path_factory.mktemp("distill")
    write(folder / "cu.xyz", bulk("Cu", cubic=True))
    request = build_request(
        teacher="analytic:emt", structures=folder / "cu.xyz", max_atoms=32, **QUICK
    )
    outcome = distill(request, folder / "out", device="cpu")
    assert outcome.model == folder / "out" / "model.safetensors"
    assert outcome.test.n_frames > 0
    return folder


def test_model_file_tells_its_whole_story(finished: Path) -> None:
    header = load_model(finished / "out" / "model.safetensors").header
    assert header["teacher"]["family"] in ("analytic", "ase")
    assert header["teacher"]["licence"]
    assert header["teacher"]["citation"]
    assert header["temperature"] == [300.0, 600.0]
    assert "Lattice" in header["structures"]
    assert 0 < header["accuracy"]["test"]["overall"] <= 1
    assert header["training"]["learning_curve"]
    json.dumps(header, allow_nan=False)


def test_the_teacher_is_measured_before_labelling_and_that_is_stored(finished: Path) -> None:
    labelled = read_labels(finished / "out" / "labels.h5")
    assert labelled.record["self_check"]["conservative"] is True
    assert labelled.record["self_check"]["n_structures"] == 1  # of one composition


def test_what_was_found_of_the_teacher_is_said_of_its_student(
    finished: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "labels.h5"
    copy.write_bytes((finished / "out" / "labels.h5").read_bytes())
    with LabelStore(copy, "a") as store:
        check = store.record["self_check"]
        store.note(self_check={**check, "conservative": False, "slope_mismatch": 0.3})
    outcome = distill(build_request(labels=copy, **QUICK), tmp_path / "out", device="cpu")
    assert len(outcome.caveats) == 1
    assert "differ from the slope of the energy by 30.0 %" in outcome.caveats[0]


def test_model_file_grades_structures_unlike_its_training(finished: Path) -> None:
    student = load_model(finished / "out" / "model.safetensors")
    familiar, strange = bulk("Cu", cubic=True), bulk("Cu", "bcc", a=2.4, cubic=True)
    grades = [
        float(measure_uncertainty(student, atoms_to_graph(a, student.cutoff)).grades.max())
        for a in (familiar, strange)
    ]
    assert 10.0 * grades[0] < 1.5 < grades[1]


def test_test_frames_are_of_other_trajectories_and_never_trained_on(finished: Path) -> None:
    labelled = read_labels(finished / "out" / "labels.h5")
    header = load_model(finished / "out" / "model.safetensors").header
    trained = set(header["training"]["frame_hashes"])
    held_out = [f for f in labelled.frames if f.trajectory in labelled.held_out]
    assert len(held_out) == header["training"]["n_test"] == header["accuracy"]["test"]["n_frames"]
    for frames, known in ((held_out, False), (labelled.frames, True)):
        found = find_known([hash_structure(f.atoms).hex() for f in frames], trained)
        assert any(found) == known
    assert {f.source for f in held_out} == {"teacher-md"}
    n_known = header["training"]["n_train"] + header["training"]["n_validation"]
    assert len(trained) == n_known == len(labelled.frames) - len(held_out)
    n_elements = len(header["elements"])
    assert header["training"]["pairs"][0] == [header["elements"][0]] * 2
    assert len(header["training"]["pairs"]) == n_elements * (n_elements + 1) // 2


def test_labels_alone_need_no_teacher_package(finished: Path, tmp_path: Path) -> None:
    request = build_request(labels=finished / "out" / "labels.h5", **QUICK)
    before = {name for name in sys.modules if name.partition(".")[0] in ("sevenn", "chgnet")}
    outcome = distill(request, tmp_path / "out", device="cpu")
    after = {name for name in sys.modules if name.partition(".")[0] in ("sevenn", "chgnet")}
    assert after == before
    first = load_model(finished / "out" / "model.safetensors").header["accuracy"]["test"]
    assert outcome.test.force == pytest.approx(first["force"], abs=1e-6)


def test_resume_of_a_finished_run_labels_nothing_again(finished: Path) -> None:
    request = read_config(finished / "out" / "config.yaml")
    before = read_labels(finished / "out" / "labels.h5")
    outcome = distill(request, finished / "out", device="cpu", resume=True)
    assert len(read_labels(finished / "out" / "labels.h5").frames) == len(before.frames)
    assert outcome.test.n_frames > 0


def test_existing_folder_is_refused_and_changed_options_are_named(finished: Path) -> None:
    request = read_config(finished / "out" / "config.yaml")
    with pytest.raises(UsageError, match="exists already"):
        check_folder(finished / "out", request, resume=False)
    with pytest.raises(UsageError, match="budget was 60 and is now 61"):
        check_folder(finished / "out", request.model_copy(update={"budget": 61}), resume=True)


def test_what_a_run_leaves_that_was_killed_before_its_configuration_is_in_nobodys_way(
    finished: Path, tmp_path: Path
) -> None:
    request = read_config(finished / "out" / "config.yaml")
    (tmp_path / ".config.yaml.abc.tmp").write_text("req")
    (tmp_path / "rounds").mkdir()
    (tmp_path / "rounds" / "budget.json").write_text("{}")
    check_folder(tmp_path, request, resume=False)
    with pytest.raises(UsageError, match="leave --resume out to begin there"):
        check_folder(tmp_path, request, resume=True)
    (tmp_path / "rounds" / "round-1.npz").write_bytes(b"")
    with pytest.raises(UsageError, match="exists already"):
        check_folder(tmp_path, request, resume=False)


def test_changed_input_files_are_noticed(finished: Path) -> None:
    request = read_config(finished / "out" / "config.yaml")
    check_folder(finished / "out", request, resume=True)
    text = (finished / "cu.xyz").read_text()
    (finished / "cu.xyz").write_text(text.replace("0.0", "0.1", 1))
    try:
        with pytest.raises(UsageError, match=r"content of .*cu\.xyz has changed since"):
            check_folder(finished / "out", request, resume=True)
    finally:
        (finished / "cu.xyz").write_text(text)


def test_folders_that_cannot_be_written_are_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = read_config(finished / "out" / "config.yaml")
    with pytest.raises(UsageError, match="cannot be written"):
        check_folder(finished / "cu.xyz" / "out", request, resume=False)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match="cannot be written"):
        check_folder(tmp_path / "a" / "b", request, resume=False)


def test_what_cannot_be_planned_leaves_no_folder(tmp_path: Path) -> None:
    """So that the corrected command does not stumble over the output of the failed one."""
    write(tmp_path / "mgo.xyz", bulk("MgO", "rocksalt", a=4.25))
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    common = {"teacher": "analytic:emt", "rounds": 0}
    unknown = build_request(structures=tmp_path / "mgo.xyz", **common)
    with pytest.raises(
        UnsupportedElementError, match=r"contains Mg, unknown to .* knows H, C, N, O"
    ):
        distill(unknown, tmp_path / "out", device="cpu")
    small = build_request(structures=tmp_path / "cu.xyz", budget=3, **common)
    with pytest.raises(UsageError, match="budget of 3 evaluations is too small"):
        distill(small, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_unknown_top_level_keys_of_a_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("request: {labels: x.xyz}\nbudget: 3\n")
    with pytest.raises(DataError, match="unknown key 'budget' at the top level"):
        read_config(tmp_path / "a.yaml")


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(UsageError, match="unknown setting 'cutof'; did you mean 'cutoff'"):
        build_request(labels="x.xyz", cutof=5.0)
    with pytest.raises(UsageError, match="temperatures 900-300 K must be positive and ascending"):
        build_request(labels="x.xyz", temperatures=(900.0, 300.0))
    with pytest.raises(UsageError, match="need a teacher"):
        build_request(structures="x.xyz")
    with pytest.raises(UsageError, match="labels need no teacher; leave out 'chgnet'"):
        build_request(labels="x.xyz", teacher="chgnet")
    with pytest.raises(UsageError, match="options of a teacher need the teacher's name"):
        build_request(labels="x.xyz", teacher_options={"trust": True})


def test_undefined_numbers_become_none() -> None:
    nested = {"a": [1.0, float("nan")], "b": {"c": float("inf"), "d": "x"}, "e": (2, None)}
    assert replace_undefined(nested) == {
        "a": [1.0, None],
        "b": {"c": None, "d": "x"},
        "e": [2, None],
    }


def test_repeated_structures_never_count_as_held_out(finished: Path) -> None:
    a, b, c, d = read_labels(finished / "out" / "labels.h5").frames[:4]
    split = remove_overlap(Split(train=[a, b], validation=[b, c], test=[c, a, d]))
    assert split.validation == [c]
    assert split.test == [d]
    with pytest.raises(DataError, match="all 1 test frames repeat structures"):
        remove_overlap(Split(train=[a], validation=[b], test=[a]))
