"""Students judged by labels of a file: which frames count, what is said of them. Not here: runs with a teacher."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk

from fastff.checkpoint import load_model, save_model, stamp_header
from fastff.distill.content import KNOWN_DIGITS, hash_structure
from fastff.distill.export import write_labels
from fastff.distill.formats import LabelledSet
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, Labels
from fastff.report.bench import run_bench, write_results
from fastff.report.heldout import select_heldout
from fastff.report.html import render_report
from fastff.report.plan import BenchPlan
from fastff.teachers import load_teacher


def test_labels_are_judged_without_a_teacher(bench_result, bench_model, tmp_path, monkeypatch):
    monkeypatch.setattr("fastff.teachers.load_teacher", None)
    path = tmp_path / "labels.xyz"
    write_labels(path, bench_result.frames, bench_result.record.teacher)
    judged = run_bench(bench_model, labels=path).record
    assert judged.main.read_accuracy().force == pytest.approx(
        bench_result.record.main.read_accuracy().force, abs=1e-6
    )
    assert judged.speed == ()
    assert judged.headline is None
    assert "not verified" in " ".join(judged.main.frames.notes)
    assert "not compared" in judged.verdict.lines[4]
    assert "Not measured" in render_report(judged)


def test_frames_of_a_file_without_trajectories_are_not_called_held_out(
    bench_result, bench_model, tmp_path
):
    path = tmp_path / "labels.xyz"
    unnamed = [replace(f, trajectory=k) for k, f in enumerate(bench_result.frames)]
    write_labels(path, unnamed, bench_result.record.teacher)
    judged = run_bench(bench_model, labels=path).record
    assert f"on {len(unnamed)} frames not trained on of Cu" in judged.verdict.lines[0]
    assert "names no trajectories" in " ".join(judged.main.frames.notes)


def test_frames_of_training_and_of_other_trajectories_are_left_out(bench_result):
    hashes = [hash_structure(frame.atoms).hex() for frame in bench_result.frames]
    every = LabelledSet(bench_result.frames, {})
    fresh, notes = select_heldout(every, frozenset(hashes[:2]), lambda a: hash_structure(a).hex())
    assert fresh == bench_result.frames[2:]
    assert "2 frames were left out" in notes[0]
    short = frozenset(key[:KNOWN_DIGITS] for key in hashes[:2])  # as new files keep them
    assert (
        select_heldout(every, short, lambda a: hash_structure(a).hex())[0]
        == bench_result.frames[2:]
    )
    marked = LabelledSet(bench_result.frames, {}, held_out=frozenset({1}))
    fresh, notes = select_heldout(marked, frozenset({"none"}), lambda a: hash_structure(a).hex())
    assert {frame.trajectory for frame in fresh} == {1}
    with pytest.raises(DataError, match="the student was trained on all"):
        select_heldout(every, frozenset(hashes), lambda a: hash_structure(a).hex())


@pytest.mark.parametrize("digits", [32, KNOWN_DIGITS], ids=["older", "new"])
def test_what_a_model_file_lists_is_left_out(bench_result, bench_model, tmp_path, digits):
    """Files of earlier versions list whole hashes, new ones the first digits."""
    path, labels = tmp_path / "model.safetensors", tmp_path / "labels.h5"
    shutil.copy(bench_model, path)
    hashes = [hash_structure(frame.atoms).hex()[:digits] for frame in bench_result.frames[:2]]
    stamp_header(path, {"training": {"frame_hashes": hashes}})
    write_labels(labels, bench_result.frames, bench_result.record.teacher)
    frames = run_bench(path, labels=labels).record.main.frames
    assert frames.n_frames == len(bench_result.frames) - 2
    assert "2 frames were left out" in " ".join(frames.notes)


def test_labels_of_another_teacher_are_said(bench_result, bench_model, tmp_path):
    path = tmp_path / "labels.xyz"
    write_labels(path, bench_result.frames, {**bench_result.record.teacher, "name": "other"})
    judged = run_bench(bench_model, labels=path).record
    assert any("made by other" in note for note in judged.notes)


def test_direct_and_truncated_teachers_are_called_so(bench_result, bench_model, tmp_path):
    path = tmp_path / "labels.h5"
    about = {**bench_result.record.teacher, "conservative": False, "max_neighbors": 20}
    write_labels(path, bench_result.frames, about)
    judged = run_bench(bench_model, labels=path)
    page = write_results(judged, tmp_path / "report")["report.html"].read_text()
    for words in ("Direct teacher", "Truncated-neighbor teacher: at most 20"):
        assert any(words in note for note in judged.record.notes)
        assert words in page


def test_labels_in_a_wrong_unit_are_caught(bench_result):
    """Stress in GPa: only a student that follows its teacher can tell, so the teacher itself plays the student."""
    from fastff.report.comparison import compare_frames

    frames = [
        Frame(
            f.atoms,
            Labels(f.labels.energy, f.labels.forces, f.labels.stress * 160.2),
            "file",
            0,
            0.0,
            0,
        )
        for f in bench_result.frames
    ]
    teacher = load_teacher("analytic:morse", device="cpu")
    with pytest.raises(DataError, match=r"stress.*GPa"):
        compare_frames("held-out frames", frames, teacher.label, "labels", "planted")


def test_required_accuracy_is_judged(bench_model, bench_result, tmp_path):
    path = tmp_path / "labels.xyz"
    write_labels(path, bench_result.frames, bench_result.record.teacher)
    plan = BenchPlan(required=0.95)
    judged = run_bench(bench_model, labels=path, plan=plan).record
    assert judged.verdict.passed is False
    assert "NOT MET" in judged.verdict.lines[0]


def test_small_displacements_are_judged(bench_model, tmp_path):
    """Their forces are far smaller than those that the student was trained on."""
    path, frames = tmp_path / "labels.xyz", []
    curve = [{"step": k, "force_accuracy": 0.5, "force_mae": 0.4, "accuracy": 0.1} for k in (1, 2)]
    trained = tmp_path / "cu.safetensors"
    student = load_model(bench_model, device="cpu")
    save_model(trained, student, {"training": {"learning_curve": curve}})
    random = np.random.default_rng(0)
    for k in range(4):
        labels = Labels(1e-4 * k, 1e-4 * random.normal(size=(4, 3)), 1e-4 * random.normal(size=6))
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(1e-4, seed=k)
        frames.append(Frame(atoms, labels, "file", k, 0.0, 0))
    write_labels(path, frames, {"name": "displaced"})
    assert run_bench(trained, labels=path).record.main.read_accuracy().force_rms < 1e-3


def test_neither_labels_nor_teacher_is_a_usage_error(bench_model):
    with pytest.raises(UsageError, match="nothing to compare with"):
        run_bench(bench_model)
