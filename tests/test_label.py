"""Labelling from the command line: whole, in shards, killed, in several processes; merging; looking at the outcome."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import write
from copper_jobs import make_frames, write_copper

from fastff.distill.content import hash_structure
from fastff.distill.formats import read_labels
from fastff.distill.jobs import parse_shard, read_jobs
from fastff.distill.label_report import LabelReport
from fastff.distill.labelling import Labeller, describe_caveats, draw_direction
from fastff.distill.merging import MergeReport, merge_labels, quarantine_frames
from fastff.distill.store import LabelStore
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, Labels
from fastff.teachers import load_teacher

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def copper_file(tmp_path: Path) -> Path:
    return write_copper(tmp_path)


def test_every_frame_is_labelled_once_and_the_teacher_is_on_record(
    run_cli: Run, copper_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.h5"
    arguments = (
        "label",
        "--teacher",
        "analytic:emt",
        copper_file,
        "--out",
        out,
        "--batch-atoms",
        "20",
    )
    code, text, _ = run_cli(*arguments)
    assert code == 0
    assert re.search(r"plan +20 of 21 frames to label, 1 repeated", text)
    assert re.search(r"licence LGPL", text)
    assert re.search(r"about \d", text)
    assert re.search(r"verdict +20 frames labelled", text)
    emt = load_teacher("analytic:emt")
    with LabelStore(out) as store:
        frames = store.read()
        assert store.teacher["licence"] == emt.info.licence
        assert store.teacher["citation"] == emt.info.citation
        assert store.teacher["version"] == emt.info.version
        assert store.record["self_check"]["conservative"] is True
    assert len(frames) == 20
    for frame, atoms in zip(frames, make_frames(20), strict=True):
        expected = emt.label([atoms])[0]
        np.testing.assert_allclose(frame.labels.forces, expected.forces, atol=1e-6)
        assert frame.labels.energy == pytest.approx(expected.energy, abs=1e-6)
    code, text, _ = run_cli(*arguments)
    assert code == 0
    assert "0 frames labelled" in text
    assert "20 found stored" in text


def test_hessian_vector_targets_are_central_differences(
    run_cli: Run, copper_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.h5"
    arguments = ("label", "--teacher", "analytic:emt", copper_file, "--no-self-check", "--quiet")
    assert run_cli(*arguments, "--out", out, "--hessian-vectors", "--hessian-step", "0.005")[0] == 0
    emt = load_teacher("analytic:emt")
    with LabelStore(out) as store:
        assert "self_check" not in store.record
        assert store.n_hessian_vectors == 20
        frame = store.read([3])[0]
    target = frame.hessian_vector
    assert target is not None
    assert np.sqrt((target.direction**2).sum(axis=1).mean()) == pytest.approx(1.0)
    np.testing.assert_allclose(target.direction, draw_direction(frame.atoms))
    sides = [frame.atoms.copy(), frame.atoms.copy()]
    sides[0].positions += 0.005 * target.direction
    sides[1].positions -= 0.005 * target.direction
    plus, minus = (labels.forces for labels in emt.label(sides))
    np.testing.assert_allclose(target.forces_plus, plus, atol=1e-10)
    np.testing.assert_allclose(target.forces_minus, minus, atol=1e-10)
    np.testing.assert_allclose(target.product, (minus - plus) / 0.01, atol=1e-8)
    plain = tmp_path / "plain.h5"
    assert run_cli(*arguments, "--out", plain)[0] == 0
    code, _, err = run_cli(*arguments, "--out", plain, "--hessian-vectors")
    assert code == 4
    assert "20 frames without Hessian-vector targets" in err


def test_shards_merge_to_what_one_process_makes(
    run_cli: Run, copper_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "labels.h5"
    arguments = ("label", "--teacher", "analytic:emt", copper_file, "--quiet")
    for shard in ("1/3", "2/3", "3/3"):
        assert run_cli(*arguments, "--out", out, "--shard", shard)[0] == 0
    shards = [tmp_path / f"labels.{k}-of-3.h5" for k in (3, 1, 2)]
    code, text, _ = run_cli("merge", *shards, shards[0], "--out", out)
    assert code == 0
    assert "20 frames of 4 files" in text
    assert "duplicates dropped" in text
    whole = tmp_path / "whole.h5"
    assert run_cli(*arguments, "--out", whole)[0] == 0
    with LabelStore(out) as merged, LabelStore(whole) as direct:
        pairs = list(zip(merged.read(), direct.read(), strict=True))
        assert merged.record["self_check"] == direct.record["self_check"]
    assert all(hash_structure(a.atoms) == hash_structure(b.atoms) for a, b in pairs)
    assert all(a.trajectory == b.trajectory for a, b in pairs)
    assert len({a.trajectory for a, _ in pairs}) == 20
    code, _, err = run_cli("merge", *shards, "--out", out)
    assert code == 2
    assert "exists already" in err


def test_merging_notices_shards_that_are_absent_or_unfinished(
    run_cli: Run, copper_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is asked not to; setting frames of a shard aside changes nothing."""

    def stop(*_: object) -> None:
        raise DataError("stopped")

    arguments = ("label", "--teacher", "analytic:emt", copper_file, "--quiet", "--no-self-check")
    arguments += ("--batch-atoms", "6", "--out", tmp_path / "labels.h5", "--shard")
    first, second, third = shards = [tmp_path / f"labels.{k}-of-3.h5" for k in (1, 2, 3)]
    merge = ("merge", *shards, "--out", tmp_path / "all.h5")
    assert run_cli(*arguments, "1/3")[0] == run_cli(*arguments, "3/3")[0] == 0
    code, _, err = run_cli("merge", first, third, "--out", tmp_path / "all.h5")
    assert code == 4
    assert "missing shard 2 of 3" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "all.h5").exists()
    code, text, _ = run_cli("merge", first, third, "--out", tmp_path / "some.h5", "--partial")
    assert code == 0
    assert "13 frames of 2 files" in text
    assert "missing shard 2 of 3" in text
    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "run", stop)
        assert run_cli(*arguments, "2/3")[0] == 4
    quarantine_frames(second, {0: "looked odd"})
    code, _, err = run_cli(*merge)
    assert code == 4
    assert "missing 5 frames of shard 2 of 3" in err
    assert run_cli(*arguments, "2/3")[0] == 0
    code, text, _ = run_cli(*merge)
    assert code == 0
    assert "19 frames of 3 files" in text
    assert "missing" not in text
    with LabelStore(tmp_path / "all.h5") as store:
        assert "shard" not in store.record
    write(copper_file, make_frames(12))  # a shard of another job is none of these
    third.unlink()
    assert run_cli(*arguments, "3/3")[0] == 0
    code, _, err = run_cli("merge", *shards, "--out", tmp_path / "mixed.h5")
    assert code == 4
    assert "missing shard 3 of 3; shards 1, 2 of 3" in err


def test_labels_of_two_teachers_do_not_mix(run_cli: Run, copper_file: Path, tmp_path: Path) -> None:
    arguments = (copper_file, "--quiet", "--no-self-check", "--out")
    assert run_cli("label", "--teacher", "analytic:emt", *arguments, tmp_path / "a.h5")[0] == 0
    assert run_cli("label", "--teacher", "analytic:morse", *arguments, tmp_path / "b.h5")[0] == 0
    code, _, err = run_cli(
        "merge", tmp_path / "a.h5", tmp_path / "b.h5", "--out", tmp_path / "c.h5"
    )
    assert code == 4
    assert "another teacher: name is" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "c.h5").exists()
    code, _, err = run_cli("label", "--teacher", "analytic:morse", *arguments, tmp_path / "a.h5")
    assert code == 4
    assert "another teacher" in err
    assert not list(tmp_path.glob(".*"))


def test_merging_keeps_test_trajectories_and_quarantine(tmp_path: Path) -> None:
    def make(number: int) -> Frame:
        atoms = make_frames(number + 1)[number]
        labels = Labels(float(number), np.ones((len(atoms), 3)), np.zeros(6))
        return Frame(atoms, labels, "teacher-md", number // 2, 300.0, number)

    first, second = tmp_path / "a.h5", tmp_path / "b.h5"
    with LabelStore(first, "a") as store:
        store.append([make(5), make(4)], held_out=True)
        store.append([make(0)], reasons=["looked odd"])
    with LabelStore(second, "a") as store:
        store.append([make(2), make(5), make(3)], held_out=False)
    with pytest.raises(DataError, match="trajectory 2 is held out"):
        merge_labels([first, second], tmp_path / "c.h5")
    second.unlink()
    with LabelStore(second, "a") as store:
        store.append([make(3), make(2), make(1)])
    merge_labels([first, second], tmp_path / "c.h5")
    with LabelStore(tmp_path / "c.h5") as store:
        assert [frame.step for frame in store.read()] == [1, 2, 3, 4, 5]
        assert store.held_out == {2}
        assert [reason for _, reason in store.read_quarantine()] == ["looked odd"]


def test_labels_shows_findings_sets_aside_and_exports(run_cli: Run, tmp_path: Path) -> None:
    frames = make_frames(30)
    emt = load_teacher("analytic:emt")
    labelled = [
        Frame(atoms, labels, "file", 0, float("nan"), -1)
        for atoms, labels in zip(frames, emt.label(frames), strict=True)
    ]
    spoilt = replace(labelled[7].labels, forces=labelled[7].labels.forces.copy())
    spoilt.forces[1] = 80.0
    labelled[7] = replace(labelled[7], labels=spoilt)
    path = tmp_path / "labels.h5"
    with LabelStore(path, "a", teacher=emt) as store:
        store.append(labelled)
    code, text, _ = run_cli("labels", path)
    assert code == 0
    assert re.search(r"force outlier +warning +1 +7", text)
    assert "LGPL" in text
    code, _, err = run_cli("labels", path, "--strict")
    assert code == 4
    assert "force outlier" in err
    code, text, _ = run_cli("labels", path, "--quarantine", "--export", tmp_path / "sound.xyz")
    assert code == 0
    assert "29 are left" in text
    with LabelStore(path) as store:
        kept = store.read_quarantine()
        assert len(store) == 29
    assert [reason for _, reason in kept] == ["force outlier"]
    np.testing.assert_allclose(kept[0][0].labels.forces, spoilt.forces)
    assert len(read_labels(tmp_path / "sound.xyz").frames) == 29
    code, _, err = run_cli("labels", tmp_path / "sound.xyz", "--quarantine")
    assert code == 2
    assert "--export" in err
    assert run_cli("labels", tmp_path / "sound.xyz", "--export", tmp_path / "again.h5")[0] == 0
    with LabelStore(tmp_path / "again.h5") as store:
        assert len(store) == 29
        assert store.teacher["name"] == emt.info.name
    code, _, err = run_cli("labels", path, "--held-out", "--export", tmp_path / "test.h5")
    assert code == 4
    assert "none is marked as held out" in err
    assert run_cli("labels", path, "--held-out")[0] == 2
    assert read_labels(tmp_path / "again.h5").blocks, "blocks became trajectories on the way"


def test_sampling_writes_a_trainable_file(run_cli: Run, tmp_path: Path) -> None:
    write(tmp_path / "cu.cif", bulk("Cu", cubic=True))
    arguments = ("label", "--teacher", "analytic:emt", tmp_path / "cu.cif", "--sample")
    arguments += ("--budget", "60", "--max-atoms", "8", "--out", tmp_path / "labels.h5")
    code, text, _ = run_cli(*arguments)
    assert code == 0
    assert "Sampling plan" in text
    found = read_labels(tmp_path / "labels.h5")
    assert found.held_out
    test = tmp_path / "test.h5"
    run_cli("labels", tmp_path / "labels.h5", "--held-out", "--export", test)
    kept = read_labels(test)
    assert {frame.trajectory for frame in kept.frames} == found.held_out == kept.held_out
    assert 0 < len(kept.frames) < len(found.frames)
    assert (kept.teacher, kept.record) == (found.teacher, found.record)
    assert len(found.frames) > 30
    with LabelStore(tmp_path / "labels.h5") as store:
        assert "self_check" in store.record
    code, _, err = run_cli(*arguments, "--shard", "1/2")
    assert code == 2
    assert "--seed" in err


def test_the_verdict_of_several_processes_names_a_direct_teacher(
    run_cli: Run, copper_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = replace(load_teacher("analytic:emt").info, conservative=False, max_neighbors=20)

    def label_elsewhere(*arguments: Any, **words: Any) -> tuple[LabelReport, MergeReport]:
        LabelStore(tmp_path / "labels.h5", "w", teacher=info).close()
        return LabelReport(), MergeReport(0, 0, 0)

    monkeypatch.setattr("fastff.distill.scaling.label_with_launcher", label_elsewhere)
    words = ("label", "--teacher", "analytic:emt", copper_file, "--device", "cpu", "--devices", "2")
    code, text, err = run_cli(*words, "--out", tmp_path / "labels.h5")
    assert code == 0, err
    assert "Direct teacher" in text
    assert "Truncated-neighbor teacher: at most 20" in text


def test_what_cannot_be_labelled_is_said_in_one_line(
    run_cli: Run, copper_file: Path, tmp_path: Path
) -> None:
    base = ("label", "--teacher", "analytic:emt", copper_file)
    for extra, code, words in (
        (("--out", tmp_path / "a.xyz"), 2, "must end in .h5"),
        (("--out", tmp_path / "a.h5", "--shard", "4/3"), 2, "not I/N"),
        (("--out", tmp_path / "a.h5", "--shard", "1/3", "--devices", "2"), 2, "only one of them"),
        (("--out", tmp_path / "a.h5", "--teacher-option", "x"), 2, "KEY=VALUE"),
        (("--out", tmp_path / "a.h5", "--force-limit", "-1"), 2, "above 0"),
        (("--out", copper_file / "a.h5"), 2, "cannot be made a folder"),
        (("--out", tmp_path / "a.h5", "--trust-teacher-file", "ours"), 2, "leave it out"),
        (("--out", tmp_path / "a.h5", "--hessian-vectors", "--hessian-step", "2"), 2, "0.01"),
    ):
        status, _, err = run_cli(*base, *extra)
        assert status == code, err
        assert words in err
        assert err.count("\n") == 1
    write(tmp_path / "x.xyz", [molecule("H2O"), ase.Atoms("Xe")])
    status, _, err = run_cli(
        "label", "--teacher", "analytic:emt", tmp_path / "x.xyz", "--out", tmp_path / "a.h5"
    )
    assert status == 4
    assert "does not know Xe" in err


def test_a_label_file_written_from_another_keeps_what_is_known_of_its_teacher(
    run_cli: Run, copper_file: Path, tmp_path: Path
) -> None:
    words = ("label", "--teacher", "analytic:emt", copper_file, "--shard", "1/4", "--quiet")
    assert run_cli(*words, "--out", tmp_path / "labels.h5")[0] == 0
    old, new = tmp_path / "labels.1-of-4.h5", tmp_path / "new.h5"
    assert run_cli("labels", old, "--export", new)[0] == 0
    with LabelStore(old) as stored, LabelStore(new) as written:
        assert written.record["self_check"] == stored.record["self_check"]
        assert "shard" in stored.record
        assert "shard" not in written.record  # frames may be left out


def test_an_unknown_element_leaves_no_label_file(run_cli: Run, tmp_path: Path) -> None:
    """Which would belong to the teacher that cannot fill it."""
    write(tmp_path / "mgo.xyz", bulk("MgO", "rocksalt", a=4.2))
    out = tmp_path / "labels.h5"
    code, _, err = run_cli("label", "--teacher", "analytic:emt", tmp_path / "mgo.xyz", "--out", out)
    assert code == 4
    assert "does not know Mg" in err
    assert err.count("\n") == 1
    assert not out.exists()


class Neutral(EMT):
    """EMT that refuses charged structures, as models do that know neutral ones only."""

    def calculate(self, atoms: Any = None, *arguments: Any) -> None:
        if atoms.info.get("charge"):
            raise ValueError("has charge 1")
        super().calculate(atoms, *arguments)


@pytest.mark.parametrize("checked", ["--self-check", "--no-self-check"])
def test_what_the_teacher_refuses_leaves_no_file(
    run_cli: Run, tmp_path: Path, checked: str
) -> None:
    """Nor one that was there, with labels, any other than it was."""
    frames, out = make_frames(4), tmp_path / "labels.h5"
    write(tmp_path / "neutral.xyz", frames[2:])
    for atoms in frames:
        atoms.info["charge"] = 1
    write(tmp_path / "charged.xyz", frames)
    words = ("label", "--teacher", f"ase:{__name__}:Neutral", checked, "--out", out)
    for more in ((), ("--shard", "1/2")):
        code, _, err = run_cli(*words, *more, tmp_path / "charged.xyz")
        assert (code, err.count("\n")) == (4, 1)
        assert "has charge 1" in err
        assert not list(tmp_path.glob("labels*"))
    assert run_cli(*words, tmp_path / "neutral.xyz")[0] == 0
    assert run_cli(*words, tmp_path / "charged.xyz")[0] == 4
    with LabelStore(out) as store:
        assert len(store) == 2


def test_other_formats_and_named_trajectories(tmp_path: Path) -> None:
    from ase.db import connect

    frames = make_frames(6)
    for index, atoms in enumerate(frames):
        atoms.info["replica"] = "ab"[index % 2]
    write(tmp_path / "a.traj", frames)
    write(tmp_path / "b.xyz", frames)
    with connect(tmp_path / "c.db") as database:
        for atoms in frames:
            database.write(atoms)
    write(tmp_path / "POSCAR", frames[0])
    for name, count in (("a.traj", 6), ("b.xyz", 6), ("c.db", 6), ("POSCAR", 1)):
        assert len(read_jobs([tmp_path / name])) == count
    jobs = read_jobs([tmp_path / "b.xyz"])
    assert len({job.trajectory for job in jobs}) == 2
    assert [job.step for job in jobs] == [0, 0, 1, 1, 2, 2]
    charged = frames[0].copy()
    charged.set_initial_charges([1.0, 0, 0, 0])
    write(tmp_path / "d.traj", charged)
    assert read_jobs([tmp_path / "d.traj"])[0].atoms.info == {"charge": 1.0}


def test_shards_are_counted_from_one() -> None:
    assert parse_shard("3/16") == (3, 16)
    for text in ("0/3", "4/3", "a/b", "3"):
        with pytest.raises(UsageError, match="not I/N"):
            parse_shard(text)


def test_direct_and_truncated_teachers_are_called_so() -> None:
    info = load_teacher("analytic:morse").info
    assert describe_caveats(info) == []
    assert "Direct" in describe_caveats(replace(info, conservative=False))[0]
    assert "at most 20" in describe_caveats(replace(info, max_neighbors=20))[0]
    assert describe_caveats({"name": "of another program"}) == []
    check = {"conservative": False, "slope_mismatch": 0.3}
    assert "30.0 %" in describe_caveats(info, check)[0]
