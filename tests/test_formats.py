"""Labels read from and written to the formats people have, and the validation pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from fastff.distill.export import write_labels
from fastff.distill.formats import LabelKeys, read_labels
from fastff.distill.validate import estimate_total_energy, validate_frames
from fastff.errors import DataError
from fastff.labels import Frame, Labels
from tests.test_store import TEACHER, assert_same, make_frame


def label_with_emt(atoms: ase.Atoms) -> Labels:
    atoms = atoms.copy()
    atoms.calc = EMT()
    stress = atoms.get_stress() if atoms.pbc.all() else None
    return Labels(
        atoms.get_potential_energy(), atoms.get_forces(), stress, atoms.get_potential_energies()
    )


def make_copper_frames(n_frames: int = 30, trajectories: int = 3) -> list[Frame]:
    """Small steps along random directions in strained cells, so that work and energy can be compared."""
    rng = np.random.default_rng(1)
    frames = []
    for trajectory in range(trajectories):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.set_cell(atoms.cell * (1 + 0.03 * (trajectory - 1)), scale_atoms=True)
        for step in range(n_frames // trajectories):
            atoms.positions += rng.normal(size=(len(atoms), 3)) * 0.04
            frames.append(
                Frame(atoms.copy(), label_with_emt(atoms), "teacher-md", trajectory, 300.0, step)
            )
    return frames


@pytest.mark.parametrize("name", ["a.h5", "a.hdf5", "a.xyz", "a.extxyz", "a.db"])
def test_written_labels_are_read_back(tmp_path: Path, name: str) -> None:
    frames = make_copper_frames(9)
    slab = replace(frames[0], trajectory=9, temperature=float("nan"), step=-1, source="strain")
    slab.atoms.info.update(charge=1)
    frames += [slab, make_frame(5, pbc=False)]
    frames[9] = replace(slab, atoms=slab.atoms.copy())
    frames[9].atoms.pbc = (True, True, False)
    frames[9] = replace(frames[9], labels=replace(slab.labels, stress=None))
    write_labels(tmp_path / name, frames, TEACHER, held_out=[2, 9])
    back = read_labels(tmp_path / name)
    assert back.teacher == TEACHER
    assert back.held_out == {2, 9}
    assert len(back.frames) == len(frames)
    for left, right in zip(frames, back.frames, strict=True):
        if name.endswith("xyz"):  # 8 decimals
            assert np.allclose(left.atoms.positions, right.atoms.positions, atol=1e-7)
            assert np.allclose(left.labels.forces, right.labels.forces, atol=1e-7)
            assert left.labels.energy == pytest.approx(right.labels.energy, abs=1e-7)
            assert (left.labels.stress is None) == (right.labels.stress is None)
            assert (left.source, left.trajectory, left.step) == (
                right.source,
                right.trajectory,
                right.step,
            )
        else:
            assert_same(left, right)
    assert back.frames[9].atoms.info == {"charge": 1}
    with pytest.raises(DataError, match="exists already"):
        write_labels(tmp_path / name, frames)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def write_plain(path: Path, frames: list[Frame], energy: str, forces: str, stress: str) -> None:
    structures = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.info[energy] = frame.labels.energy
        atoms.arrays[forces] = frame.labels.forces
        full = voigt_6_to_full_3x3_stress(frame.labels.stress)
        if "irial" in stress:
            full = -full * atoms.get_volume()
        if stress:
            atoms.info[stress] = full
        structures.append(atoms)
    ase.io.write(path, structures, format="extxyz")


@pytest.mark.parametrize(
    ("energy", "forces", "stress"),
    [
        ("energy", "forces", "stress"),
        ("REF_energy", "REF_forces", "REF_stress"),
        ("dft_energy", "dft_forces", "dft_virial"),
        ("energy", "forces", "virial"),
        ("energies", "forces", ""),
        ("my_e", "my_f", "my_s"),
    ],
)
def test_other_peoples_keys(tmp_path: Path, energy: str, forces: str, stress: str) -> None:
    frames = make_copper_frames(6)
    write_plain(tmp_path / "a.xyz", frames, energy, forces, stress)
    keys = LabelKeys("my_e", "my_f", "my_s") if energy == "my_e" else None
    back = read_labels(tmp_path / "a.xyz", keys)
    for left, right in zip(frames, back.frames, strict=True):
        assert left.labels.energy == pytest.approx(right.labels.energy)
        assert np.allclose(left.labels.forces, right.labels.forces, atol=1e-7)
        if stress:
            assert np.allclose(left.labels.stress, right.labels.stress, atol=1e-7)
        else:
            assert right.labels.stress is None


def test_missing_labels_are_named(tmp_path: Path) -> None:
    frames = make_copper_frames(4, 1)
    write_plain(tmp_path / "a.xyz", frames, "U", "forces", "stress")
    with pytest.raises(DataError, match=r"no energy in 4 of 4 frames \(first: 0\).*U"):
        read_labels(tmp_path / "a.xyz")
    write_plain(tmp_path / "b.xyz", frames, "energy", "gradient", "stress")
    with pytest.raises(DataError, match=r"no forces.*gradient"):
        read_labels(tmp_path / "b.xyz")
    with pytest.raises(DataError, match="no QM_f in 4"):
        read_labels(tmp_path / "b.xyz", LabelKeys(forces="QM_f"))
    with pytest.raises(DataError, match="no such file"):
        read_labels(tmp_path / "c.xyz")
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(DataError, match=r"use \.h5"):
        read_labels(tmp_path / "a.pdf")
    (tmp_path / "d.xyz").write_text("3\nnot a structure")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "d.xyz")
    np.savez(tmp_path / "e.npz", numbers=[1], energy=[0.0])
    with pytest.raises(DataError, match="missing positions, cell, forces"):
        read_labels(tmp_path / "e.npz")


def test_broken_labels_of_a_file_are_reported_not_dropped(tmp_path: Path) -> None:
    frames = make_copper_frames(6)
    frames[2].labels.forces[0, 0] = np.nan
    write_plain(tmp_path / "a.xyz", frames, "energy", "forces", "stress")
    back = read_labels(tmp_path / "a.xyz")
    assert len(back.frames) == 5
    assert [reason for _, reason in back.quarantined] == ["forces not finite"]


def test_trajectories_of_a_file(tmp_path: Path) -> None:
    structures = []
    for index in range(100):
        atoms = molecule("H2O" if index < 60 else "CO")
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
        structures.append(atoms)
    ase.io.write(tmp_path / "a.xyz", structures)
    numbers = [frame.trajectory for frame in read_labels(tmp_path / "a.xyz").frames]
    assert numbers == [index // 5 for index in range(100)]  # 20 blocks, one composition each
    for index, atoms in enumerate(structures):
        atoms.info["md_id"] = f"run-{index % 4}"
    ase.io.write(tmp_path / "b.xyz", structures)
    labelled = read_labels(tmp_path / "b.xyz")
    assert [frame.trajectory for frame in labelled.frames] == [0, 1, 2, 3] * 25
    assert not labelled.blocks


def write_named(path: Path, names: list[str], symbols: str = "CO") -> None:
    structures = []
    for name in names:
        atoms = molecule(symbols)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
        atoms.info["config_id"] = name
        structures.append(atoms)
    ase.io.write(path, structures)


@pytest.mark.parametrize("names", [["a"] * 20 + ["b"] * 20, ["a", "b"] * 20])
def test_two_trajectories_form_blocks_of_their_own(tmp_path: Path, names: list[str]) -> None:
    write_named(tmp_path / "a.xyz", names)
    labelled = read_labels(tmp_path / "a.xyz")
    assert labelled.blocks
    owners: dict[int, list[str]] = {}
    for frame, name in zip(labelled.frames, names, strict=True):
        owners.setdefault(frame.trajectory, []).append(name)
    assert sorted(owners.values()) == [["a"] * 2] * 10 + [["b"] * 2] * 10


def test_names_that_occur_once_form_blocks_beside_trajectories(tmp_path: Path) -> None:
    names = ["a"] * 10 + ["b"] * 10 + [f"frame-{k}" for k in range(20)]
    write_named(tmp_path / "a.xyz", names)
    labelled = read_labels(tmp_path / "a.xyz")
    assert labelled.blocks
    numbers = [frame.trajectory for frame in labelled.frames]
    assert len(set(numbers[:10])) == len(set(numbers[10:20])) == 1
    assert len(set(numbers)) == 12
    assert [numbers.count(n) for n in dict.fromkeys(numbers[20:])] == [2] * 10


def test_a_single_frame_does_not_make_a_file_of_trajectories_one_of_blocks(tmp_path: Path) -> None:
    names = [name for name in "abcdefghij" for _ in range(5)]
    write_named(tmp_path / "a.xyz", [*names, "alone"])
    labelled = read_labels(tmp_path / "a.xyz")
    assert not labelled.blocks
    assert len({frame.trajectory for frame in labelled.frames}) == 11


def test_alternating_compositions_form_blocks(tmp_path: Path) -> None:
    structures = []
    for index in range(80):
        atoms = molecule(("CO", "H2O")[index % 2])
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
        structures.append(atoms)
    ase.io.write(tmp_path / "a.xyz", structures)
    numbers = [frame.trajectory for frame in read_labels(tmp_path / "a.xyz").frames]
    assert numbers[:10] == [0, 1, 0, 1, 0, 1, 0, 1, 2, 3]
    assert len(set(numbers)) == 20
    plain = read_labels(tmp_path / "a.xyz", group=False)
    assert [frame.trajectory for frame in plain.frames] == list(range(80))
    assert not plain.blocks


@pytest.mark.parametrize("name", ["one", "frame-{}"])
def test_names_that_divide_nothing_are_no_trajectories(tmp_path: Path, name: str) -> None:
    structures = []
    for index in range(40):
        atoms = molecule("CO")
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((2, 3)))
        atoms.info["config_id"] = name.format(index)
        structures.append(atoms)
    ase.io.write(tmp_path / "a.xyz", structures)
    labelled = read_labels(tmp_path / "a.xyz")
    assert labelled.blocks
    assert [frame.trajectory for frame in labelled.frames] == [k // 2 for k in range(40)]


def test_npz(tmp_path: Path) -> None:
    frames = make_copper_frames(6)
    arrays = {
        "numbers": frames[0].atoms.numbers,
        "positions": np.stack([f.atoms.positions for f in frames]),
        "cell": np.stack([np.asarray(f.atoms.cell) for f in frames]),
        "energy": np.array([f.labels.energy for f in frames]),
        "forces": np.stack([f.labels.forces for f in frames]),
        "stress": np.stack([f.labels.stress for f in frames]),
        "replica": np.array([f.trajectory for f in frames]),
        "step": np.array([f.step for f in frames]),
        "temperature": np.full(6, 300.0),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    for left, right in zip(frames, read_labels(tmp_path / "a.npz").frames, strict=True):
        assert_same(replace(left, labels=replace(left.labels, energies=None)), right)
    assert read_labels(tmp_path / "a.npz").teacher == {}
    record = json.dumps({"teacher": {"name": "sevennet:7net-0", "licence": "MIT License"}})
    np.savez(tmp_path / "c.npz", **arrays, record=np.array(record))
    assert read_labels(tmp_path / "c.npz").teacher["licence"] == "MIT License"
    for foreign in ("[1", "7", json.dumps({"teacher": None})):
        np.savez(tmp_path / "d.npz", **arrays, record=np.array(foreign))
        assert read_labels(tmp_path / "d.npz").teacher == {}
    np.savez(tmp_path / "d.npz", **arrays, record=np.array(json.dumps({"teacher": "mace"})))
    with pytest.raises(DataError, match="names the teacher as 'mace'"):
        read_labels(tmp_path / "d.npz")
    np.savez(tmp_path / "b.npz", **{**arrays, "forces": arrays["forces"][:, :3]})
    with pytest.raises(DataError, match=r"forces has shape \(6, 3, 3\); need \(6, 8, 3\)"):
        read_labels(tmp_path / "b.npz")


def test_sound_labels_give_no_findings() -> None:
    report = validate_frames(make_copper_frames())
    assert report.findings == ()
    assert "30 frames, 240 atoms: no findings" in str(report)
    report.require_sound()


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        ("forces against energy", lambda x: replace(x, forces=-x.forces)),
        ("forces against energy", lambda x: replace(x, energy=x.energy * 23.06, forces=x.forces)),
        ("forces against energy", lambda x: replace(x, forces=x.forces * 1.8897)),  # eV and eV/bohr
        ("forces against energy", lambda x: replace(x, forces=x.forces / 1.8897)),
        ("large forces", lambda x: replace(x, energy=x.energy * 96.5, forces=x.forces * 96.5)),
        ("energy unit", lambda x: replace(x, energy=x.energy - 8 * 1640.0)),  # hartree, of Cu8
        ("energy unit", lambda x: replace(x, energy=x.energy - 8 * 1640.0 * 627.5)),
        ("stress sign", lambda x: replace(x, stress=-x.stress)),
        ("large stress", lambda x: replace(x, stress=x.stress * 160.2)),
        ("no stress", lambda x: replace(x, stress=None)),
        ("not finite", lambda x: replace(x, energy=np.nan)),
        ("force outlier", lambda x: replace(x, forces=x.forces * (1 + 90 * (x.energy > 1.2)))),
        ("energy outlier", lambda x: replace(x, energy=x.energy + 900 * (x.energy > 1.2))),
    ],
)
def test_each_fault_is_found(check: str, fault: Callable[[Labels], Labels]) -> None:
    frames = make_copper_frames()
    frames = [replace(frame, labels=fault(frame.labels)) for frame in frames]
    report = validate_frames(frames)
    assert check in [finding.check for finding in report.findings]
    assert check in str(report)


def test_total_energies_in_ev_are_no_finding() -> None:
    frames = [
        replace(frame, labels=replace(frame.labels, energy=frame.labels.energy - 8 * 44627.0))
        for frame in make_copper_frames()
    ]
    assert validate_frames(frames).findings == ()


def test_the_unit_of_energies_is_a_guess_that_says_what_else_it_may_be() -> None:
    """Valence electrons of chloroform have as many eV as all of its electrons have hartree."""
    atoms = ase.Atoms("CHCl3", np.eye(5, 3) * 1.7)
    valence = -27.2114 * (5.44 + 0.5 + 3 * 15.03)
    frames = [Frame(atoms, Labels(valence, np.zeros((5, 3)), None), "test", 0, 300.0, 0)]
    (finding,) = [f for f in validate_frames(frames).findings if f.check == "energy unit"]
    assert finding.severity == "warning"
    assert "hartree" in finding.hint
    assert "valence electrons in eV" in finding.hint


@pytest.mark.parametrize(("z", "energy"), [(1, -0.5), (6, -37.7), (8, -74.8), (29, -1639.0)])
def test_estimate_of_total_energies_equals_hartree_fock(z: int, energy: float) -> None:
    assert estimate_total_energy(np.array([z])) == pytest.approx(
        energy, rel=0.08 if z == 1 else 0.01
    )


def test_repeats_and_contacts_are_found() -> None:
    frames = make_copper_frames()
    close = frames[1].atoms.copy()
    close.positions[1] = close.positions[0] + 0.2
    report = validate_frames([*frames, frames[3], replace(frames[1], atoms=close)])
    found = {finding.check: finding.frames for finding in report.findings}
    assert found["repeated structure"] == (30,)
    assert found["close contact"] == (31,)
    broken = replace(frames[0], labels=replace(frames[0].labels, energy=np.nan))
    with pytest.raises(DataError, match="not finite"):
        validate_frames([broken]).require_sound()
