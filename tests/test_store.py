"""The label file: round trips, refusal of duplicates and strangers, and being killed at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import ase
import h5py
import numpy as np
import pytest

from fastff.distill.content import hash_structure
from fastff.distill.store import INITIAL_FRAMES, LabelStore
from fastff.errors import DataError, UsageError
from fastff.labels import Frame, HessianVector, Labels

TEACHER = {"name": "analytic:morse", "version": "1", "weights_sha256": "ab", "elements": [14, 8]}


def make_frame(seed: int, n_atoms: int = 5, *, pbc: bool = True, **changes: float) -> Frame:
    rng = np.random.default_rng(seed)
    atoms = ase.Atoms(
        numbers=rng.choice([8, 14], n_atoms),
        positions=rng.normal(size=(n_atoms, 3)) * 3,
        cell=rng.normal(size=(3, 3)) + 9 * np.eye(3),
        pbc=pbc,
    )
    labels = Labels(
        energy=changes.get("energy", rng.normal()),
        forces=rng.normal(size=(n_atoms, 3)),
        stress=rng.normal(size=6) if pbc else None,
        energies=rng.normal(size=n_atoms) if seed % 2 else None,
    )
    return Frame(atoms, labels, "rattle", trajectory=seed // 3, temperature=300.0, step=seed)


def assert_same(left: Frame, right: Frame) -> None:
    assert np.array_equal(left.atoms.positions, right.atoms.positions)
    assert np.array_equal(left.atoms.cell, right.atoms.cell)
    assert np.array_equal(left.atoms.numbers, right.atoms.numbers)
    assert np.array_equal(left.atoms.pbc, right.atoms.pbc)
    assert left.labels.energy == right.labels.energy
    assert np.array_equal(left.labels.forces, right.labels.forces)
    for name in ("stress", "energies"):
        a, b = getattr(left.labels, name), getattr(right.labels, name)
        assert (a is None) == (b is None)
        assert a is None or np.array_equal(a, b)
    assert (left.source, left.trajectory, left.step) == (right.source, right.trajectory, right.step)
    assert np.array_equal(left.temperature, right.temperature, equal_nan=True)


def test_frames_come_back_bit_equal(tmp_path: Path) -> None:
    frames = [make_frame(seed, 3 + seed % 4, pbc=seed % 3 > 0) for seed in range(150)]
    frames[4].atoms.set_momenta(np.arange(frames[4].atoms.positions.size).reshape(-1, 3) / 7)
    frames[5].atoms.info.update(charge=-1, spin=2)
    path = tmp_path / "labels.h5"
    with LabelStore(path, "a", teacher=TEACHER) as store:
        for start in range(0, 150, 37):  # grows past the initial room
            store.append(frames[start : start + 37], held_out=start == 37)
    with LabelStore(path) as store:
        assert len(store) == 150
        assert store.teacher == TEACHER
        back = store.read()
        assert store.held_out == {frame.trajectory for frame in frames[37:74]}
        assert_same(store.read([141])[0], frames[141])
        assert store.find(frames[7].atoms) is not None
    for left, right in zip(frames, back, strict=True):
        assert_same(left, right)
    assert np.array_equal(back[4].atoms.get_momenta(), frames[4].atoms.get_momenta())
    assert not back[3].atoms.has("momenta")
    assert back[5].atoms.info == {"charge": -1, "spin": 2}
    with h5py.File(path) as file:  # trimmed on closing
        assert file["frames/frames/energy"].shape == (150,)


def test_frames_far_apart_are_read_as_those_side_by_side(tmp_path: Path) -> None:
    frames = [make_frame(seed, 3 + seed % 4) for seed in range(60)]
    with LabelStore(tmp_path / "labels.h5", "a", teacher=TEACHER) as store:
        store.append(frames)
        for chosen in ([7], [9, 8, 10, 8], [0, 59, 30], [3, 5, 7], []):
            for index, frame in zip(chosen, store.read(chosen), strict=True):
                assert_same(frame, frames[index])


def test_room_is_made_once_and_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many frames as were announced change data only; what is too much is gone once the file is closed."""
    frames = [make_frame(seed) for seed in range(300)]
    path = tmp_path / "labels.h5"
    with LabelStore(path, "a", teacher=TEACHER) as store:
        store.append(frames[:10])
        store.reserve(290, 290 * 5)
        inode = path.stat().st_ino
        for start in range(10, 300, 50):
            store.append(frames[start : start + 50])
        assert path.stat().st_ino == inode
        store.reserve(1000, 5000)
        room = path.stat().st_size
        monkeypatch.setattr("fastff.distill.store.MOST_RESERVED", 10)
        store.reserve(10**9, 10**9)  # no disk is filled for a job without end
        assert path.stat().st_size == room
        monkeypatch.setattr("fastff.distill.store.MOST_RESERVED", 6000)
        store.reserve(10**8, 10**9)  # nor with rows for frames whose atoms have none
        assert path.stat().st_size < 1.5 * room
    assert path.stat().st_size < 0.5 * room
    with LabelStore(path) as store:
        for own, other in zip(store.read(), frames, strict=True):
            assert_same(own, other)
        with pytest.raises(UsageError, match="opened for reading"):
            store.reserve(1, 1)


def test_known_structures_are_not_stored_twice(tmp_path: Path) -> None:
    frames = [make_frame(seed) for seed in range(6)]
    moved = make_frame(2)
    moved.atoms.positions[0, 0] += 1e-4
    same = make_frame(3)
    same.atoms.positions += 1e-9  # below the resolution
    with LabelStore(tmp_path / "a.h5", "a", teacher=TEACHER) as store:
        report = store.append([*frames, frames[0]])
        assert (report.added, report.duplicates) == (6, 1)
        assert store.has(frames[1].atoms)
    with LabelStore(tmp_path / "a.h5", "a", teacher=TEACHER) as store:
        report = store.append([frames[5], moved, same])
        assert (report.added, report.duplicates) == (1, 2)
        assert len(store) == 7


@pytest.mark.parametrize("change", ["pbc", "cell", "numbers", "order", "charge", "teacher"])
def test_hash_sees_what_a_teacher_sees(change: str) -> None:
    atoms, other = make_frame(0).atoms, make_frame(0).atoms
    teacher = dict(TEACHER)
    if change == "pbc":
        other.pbc = (True, True, False)
    elif change == "cell":
        other.cell[0, 1] += 1e-3
    elif change == "numbers":
        other.numbers[0] = 1
    elif change == "order":
        other = other[::-1]
    elif change == "charge":
        other.info["charge"] = 1
    else:
        teacher["weights_sha256"] = "cd"
    assert hash_structure(atoms, TEACHER) == hash_structure(make_frame(0).atoms, TEACHER)
    assert hash_structure(atoms, TEACHER) != hash_structure(other, teacher)


@pytest.mark.parametrize("field", ["name", "version", "weights_sha256"])
def test_labels_of_another_teacher_are_refused(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.h5"
    LabelStore(path, "a", teacher=TEACHER).close()
    with pytest.raises(DataError, match=rf"another teacher: {field} is .* there and 'other' now"):
        LabelStore(path, "a", teacher={**TEACHER, field: "other"})
    LabelStore(path, "a", teacher={**TEACHER, "elements": [1]}).close()  # not part of the identity


def test_unusable_labels_are_set_aside_and_known(tmp_path: Path) -> None:
    bad_force, bad_stress, huge = make_frame(1), make_frame(2), make_frame(3)
    bad_force.labels.forces[0, 0] = np.nan
    bad_stress.labels.stress[:] = np.nan
    huge.labels.forces[1] = 500.0
    frames = [make_frame(0), bad_force, bad_stress, make_frame(4, energy=np.inf), huge]
    with LabelStore(tmp_path / "a.h5", "a") as store:
        report = store.append(frames, force_limit=100.0)
        assert report.added == 1
        assert len(report.quarantined) == store.n_quarantined == 4
        assert store.append(frames).duplicates == 5
        assert store.find(huge.atoms) is None
    with LabelStore(tmp_path / "a.h5") as store:
        kept = store.read_quarantine()
        assert len(store.read()) == 1
    assert [reason.split(" ")[0] for _, reason in kept] == ["forces", "stress", "energy", "force"]
    assert kept[1][0].labels.stress is not None


def test_room_for_frames_set_aside_costs_no_sound_one_of_the_same_append(tmp_path: Path) -> None:
    sound = [make_frame(seed) for seed in range(3)]
    aside = [make_frame(seed) for seed in range(3, 3 + 2 * INITIAL_FRAMES)]
    with LabelStore(tmp_path / "labels.h5", "a", teacher=TEACHER) as store:
        store.append([*sound, *aside], reasons=[""] * len(sound) + ["looked at"] * len(aside))
        assert [f.labels.energy for f in store.read()] == [f.labels.energy for f in sound]
        assert len(store.read_quarantine()) == len(aside)


def test_wrong_shapes_are_the_callers_fault(tmp_path: Path) -> None:
    frame = make_frame(0)
    wrong = Frame(frame.atoms, Labels(0.0, np.zeros((4, 3)), None), "x", 0, 1.0, 0)
    with LabelStore(tmp_path / "a.h5", "a") as store, pytest.raises(DataError, match=r"\(4, 3\)"):
        store.append([wrong])
    with LabelStore(tmp_path / "a.h5") as store, pytest.raises(UsageError, match="mode 'a'"):
        store.append([frame])


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(DataError, match="no such label file"):
        LabelStore(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        LabelStore(path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(DataError, match="not a fastff label file"):
        LabelStore(path)
    path.unlink()
    with LabelStore(path, "a") as store:
        store.append([make_frame(seed) for seed in range(9)])
    with pytest.raises(DataError, match="exists already"):
        LabelStore(path, "w")
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 99
    with pytest.raises(DataError, match="schema 99; this fastff reads up to 2"):
        LabelStore(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 1
        file["committed"][0, 0] = 10
    with pytest.raises(DataError, match="damaged"):
        LabelStore(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        LabelStore(path)


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with LabelStore(path, "a") as store:
        store.append([make_frame(seed) for seed in range(4)])
    with h5py.File(path, "r+") as file:
        file["frames/atoms/forces"][7, 1] += 1e-9
    with LabelStore(path) as store, pytest.raises(DataError, match="wrong checksum of frame 1"):
        store.read()


def test_only_one_writer_but_readers_are_welcome(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with LabelStore(path, "a") as store:
        store.append([make_frame(0)])
        code = (
            "import sys; from fastff.distill.store import LabelStore\n"
            "print(len(LabelStore(sys.argv[1]).read()))\n"
            "LabelStore(sys.argv[1], 'a')"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
    assert run.stdout.strip() == "1"
    assert "being written by another process" in run.stderr


def test_an_append_changes_data_only(tmp_path: Path) -> None:
    """Every byte outside the arrays stays as it was, so a cut-short append cannot break the file."""
    path = tmp_path / "a.h5"
    store = LabelStore(path, "a", teacher=TEACHER)
    before = bytearray(path.read_bytes())
    store.append([make_frame(seed) for seed in range(20)])
    after = bytearray(path.read_bytes())
    places: list[tuple[int, int]] = []

    def note(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            places.append((item.id.get_offset(), item.id.get_storage_size()))

    store._file.visititems(note)
    store.close()
    assert len(before) == len(after)
    assert before != after
    for offset, size in places:
        before[offset : offset + size] = after[offset : offset + size] = b"\0" * size
    assert before == after


@pytest.mark.parametrize("stage", ["rows", "counters"])
def test_a_half_written_append_is_cut(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    store = LabelStore(path, "a", teacher=TEACHER)
    store.append([make_frame(seed) for seed in range(3)])

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        store._file.flush()
        raise Killed

    name = "sync_file" if stage == "rows" else "write_counts"
    monkeypatch.setattr(f"fastff.distill.store.{name}", die)
    with pytest.raises(Killed):
        store.append([make_frame(seed) for seed in range(3, 8)])
    monkeypatch.undo()
    store._file.close()  # as the kernel would, without trimming
    with LabelStore(path) as reader:
        assert (reader.n_cut, len(reader)) == (5, 3)
    LabelStore(path, "a")._file.close()
    with LabelStore(path, "a", teacher=TEACHER) as again:
        assert again.n_cut == 0
        assert len(again) == 3
        assert again.append([make_frame(seed) for seed in range(8)]).added == 5
    with LabelStore(path) as whole:
        assert whole.n_cut == 0
        for seed, frame in enumerate(whole.read()):
            assert_same(frame, make_frame(seed))


WRITER = textwrap.dedent(
    """
    import sys
    from fastff.distill.store import LabelStore
    from tests.test_store import make_frame, TEACHER
    with LabelStore(sys.argv[1], "a", teacher=TEACHER) as store:
        for start in range(0, 100000, 3):
            if store.append([make_frame(seed) for seed in range(start, start + 3)]).added:
                print("stored", flush=True)
    """
)


def test_kill_at_random_moments_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    root = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": str(root)}
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(4):  # far enough for the file to grow twice
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env=env, stdout=subprocess.PIPE, cwd=root
        )
        assert process.stdout is not None
        for _ in range(rng.integers(8, 25)):
            assert process.stdout.readline() == b"stored\n"
        time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with LabelStore(path) as store:
            frames = store.read()
        assert len(frames) % 3 == 0
        assert len(frames) >= reached
        reached = len(frames)
        assert [frame.step for frame in frames] == list(range(reached))
        assert_same(frames[-1], make_frame(reached - 1))
    assert reached > 96


def add_target(frame: Frame, seed: int) -> Frame:
    rng = np.random.default_rng(seed)
    shape = frame.atoms.positions.shape
    arrays = [rng.normal(size=shape) for _ in range(3)]
    return replace(frame, hessian_vector=HessianVector(arrays[0], 0.01, arrays[1], arrays[2]))


def test_hessian_vector_targets_come_back_beside_frames_without(tmp_path: Path) -> None:
    plain, more = make_frame(0), make_frame(2)
    full, broken = add_target(make_frame(1), 1), add_target(make_frame(3), 3)
    assert broken.hessian_vector is not None
    broken.hessian_vector.forces_minus[2, 1] = np.nan
    path = tmp_path / "a.h5"
    with LabelStore(path, "a", teacher=TEACHER) as store:
        store.append([plain])
        assert store.n_hessian_vectors == 0
        store.append([full, more, broken])
    with LabelStore(path, "a", teacher=TEACHER) as store:
        assert store.n_hessian_vectors == 1
        assert store.append([add_target(make_frame(4), 4)]).added == 1
    with LabelStore(path) as store:
        back = store.read()
        reasons = [reason for _, reason in store.read_quarantine()]
    assert [frame.hessian_vector is not None for frame in back] == [False, True, False, True]
    assert reasons == ["forces beside the structure not finite"]
    assert full.hessian_vector is not None
    assert back[1].hessian_vector is not None
    for name in ("direction", "forces_plus", "forces_minus"):
        expected = getattr(full.hessian_vector, name)
        assert np.array_equal(getattr(back[1].hessian_vector, name), expected)
    assert back[1].hessian_vector.step == 0.01
    assert_same(back[0], plain)
    with h5py.File(path, "r+") as file:
        file["frames/atoms/hvp_forces_plus"][7, 1] += 1e-9
    with LabelStore(path) as store, pytest.raises(DataError, match="wrong checksum of frame 1"):
        store.read()


def test_facts_about_the_labels_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with LabelStore(path, "a", teacher=TEACHER) as store:
        store.append([make_frame(0)])
        store.note(self_check={"conservative": True})
        store.append([make_frame(1)])
        store.note(trusted="own training")
    with LabelStore(path) as store:
        assert store.record == {"self_check": {"conservative": True}, "trusted": "own training"}
        assert len(store.read()) == 2
        with pytest.raises(UsageError, match="mode 'a'"):
            store.note(more=1)


def test_a_given_reason_sets_a_frame_aside(tmp_path: Path) -> None:
    with LabelStore(tmp_path / "a.h5", "a") as store:
        store.append([make_frame(0), make_frame(1)], reasons=["", "looked at"])
        assert [reason for _, reason in store.read_quarantine()] == ["looked at"]
        assert len(store) == 1
