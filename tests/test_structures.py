"""Reading structures: formats, and one clear refusal for each thing no model can use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.io import write

from fastff import structures
from fastff.errors import DataError, UnsupportedElementError
from fastff.structures import check_occupancy, check_structure, read_structures

ROCK_SALT = """data_salt
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{sites}
"""
FULL = "Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 1.0"
MIXED = "Na1 Na 0 0 0 0.7\nK1 K 0 0 0 0.3\nCl1 Cl 0.5 0.5 0.5 1.0"
VACANT = "Na1 Na 0 0 0 1.0\nCl1 Cl 0.5 0.5 0.5 0.9"


@pytest.mark.parametrize(
    ("name", "ase_format"),
    [
        ("a.extxyz", "extxyz"),
        ("a.xyz", "extxyz"),
        ("a.cif", "cif"),
        ("POSCAR", "vasp"),
        ("a.vasp", "vasp"),
        ("a.traj", "traj"),
        ("a.json", "json"),
        ("odd@name.xyz", "extxyz"),
    ],
)
def test_formats_give_the_same_structure(
    tmp_path: Path, copper: Atoms, name: str, ase_format: str
) -> None:
    write(tmp_path / name, copper, format=ase_format)
    (read,) = read_structures(tmp_path / name)
    assert read.get_chemical_symbols() == copper.get_chemical_symbols()
    np.testing.assert_allclose(read.cell.array, copper.cell.array, atol=1e-6)
    np.testing.assert_allclose(
        read.get_scaled_positions(), copper.get_scaled_positions(), atol=1e-5
    )
    assert read.pbc.all()


def test_all_frames_are_read_in_order(tmp_path: Path) -> None:
    frames = [bulk("Cu", a=a) for a in (3.5, 3.6, 3.7)]
    write(tmp_path / "a.xyz", frames, format="extxyz")
    read = read_structures(tmp_path / "a.xyz")
    assert [round(atoms.cell.array.max(), 3) for atoms in read] == [1.75, 1.8, 1.85]


def test_relative_name_that_ase_takes_for_a_database(
    tmp_path: Path, copper: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("mysql.xyz", copper, format="extxyz")
    assert len(read_structures("mysql.xyz")) == 1


def test_real_water_boxes(shared_data: Path) -> None:
    for path in sorted((shared_data / "structures").glob("water_*.xyz")):
        (atoms,) = read_structures(path)
        assert len(atoms) == int(path.stem.removeprefix("water_"))


def test_ordered_cif_is_read(tmp_path: Path) -> None:
    path = tmp_path / "salt.cif"
    path.write_text(ROCK_SALT.format(sites=FULL))
    (atoms,) = read_structures(path)
    assert atoms.get_chemical_formula() == "Cl4Na4"


@pytest.mark.parametrize(
    ("sites", "words"),
    [(MIXED, ["Na 0.7", "K 0.3", "atom 0 at [0.0, 0.0, 0.0]"]), (VACANT, ["Cl 0.9", "atom 4"])],
)
def test_disordered_cif_is_refused(tmp_path: Path, sites: str, words: list[str]) -> None:
    path = tmp_path / "salt.cif"
    path.write_text(ROCK_SALT.format(sites=sites))
    with pytest.raises(DataError, match="partial occupancy") as refusal:
        read_structures(path)
    for word in ["salt.cif", *words]:
        assert word in str(refusal.value)


def test_site_filled_more_than_once_is_refused(copper: Atoms) -> None:
    copper.info["occupancy"] = {"0": {"Cu": 1.0, "Au": 0.3}}
    with pytest.raises(DataError, match=r"site 0 has partial occupancy \(Cu 1, Au 0\.3\)"):
        check_occupancy(copper)


def test_occupancy_of_another_kind_is_left_alone(copper: Atoms) -> None:
    copper.info["occupancy"] = 0.5
    check_occupancy(copper)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.xyz", None, "no structure file"),
        ("empty.xyz", b"", "is empty"),
        ("short.xyz", b"5\nProperties=species:S:1:pos:R:3\nCu 0 0 0\n", "cannot read .* as extxyz"),
        ("text.notes", b"once upon a time\n", "no structure format"),
        ("a.cif", b"data_x\n", "cannot read|holds no structures"),
        ("binary.xyz", bytes(range(256)), "cannot read .* as extxyz"),
        ("model.pt", b"\x80\x04\x95", "no structure format|cannot read"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        read_structures(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_long_reason_of_a_parser_becomes_one_line(
    tmp_path: Path, copper: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("line 3\n  is\n  wrong")

    write(tmp_path / "a.xyz", copper, format="extxyz")
    monkeypatch.setattr(structures, "read", refuse)
    with pytest.raises(DataError, match=r"as extxyz \(ValueError: line 3 is wrong\); check"):
        read_structures(tmp_path / "a.xyz")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_structures(tmp_path)


def test_bad_frame_is_named(tmp_path: Path, copper: Atoms) -> None:
    broken = copper.copy()
    broken.positions[2, 1] = np.nan
    path = tmp_path / "a.traj"
    write(path, [copper, broken])
    with pytest.raises(DataError, match=r"a\.traj, frame 1: position of atom 2 is not finite"):
        read_structures(path)


def test_no_atoms() -> None:
    with pytest.raises(DataError, match="no atoms"):
        check_structure(Atoms())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_position_not_finite(copper: Atoms, value: float) -> None:
    copper.positions[1, 0] = value
    copper.positions[3, 0] = value
    with pytest.raises(DataError, match=r"position of atom 1 is not finite.*2 such atoms"):
        check_structure(copper)


def test_cell_not_finite(copper: Atoms) -> None:
    copper.cell[1, 1] = np.inf
    with pytest.raises(DataError, match="cell vector b is not finite"):
        check_structure(copper)


@pytest.mark.parametrize(
    ("pbc", "axes"), [([True, True, True], "a, b, c"), ([False, True, False], "b")]
)
def test_periodic_along_a_zero_vector(water: Atoms, pbc: list[bool], axes: str) -> None:
    water.pbc = pbc
    with pytest.raises(DataError, match=f"cell vector {axes} is zero"):
        check_structure(water)


def test_singular_cell(copper: Atoms) -> None:
    copper.cell[2] = copper.cell[0] + copper.cell[1]
    with pytest.raises(DataError, match="linearly dependent"):
        check_structure(copper)


def test_dummy_atom(water: Atoms) -> None:
    water.numbers[1] = 0
    with pytest.raises(UnsupportedElementError, match="atom 1 has atomic number 0"):
        check_structure(water)


def test_number_beyond_the_table(water: Atoms) -> None:
    water.numbers[2] = 119
    with pytest.raises(UnsupportedElementError, match="atom 2 has atomic number 119"):
        check_structure(water)


def test_coincident_atoms(copper: Atoms) -> None:
    copper.positions[3] = copper.positions[1] + [0.05, 0.0, 0.0]
    with pytest.raises(DataError, match=r"atom 1 and atom 3 are 0\.05 Å apart"):
        check_structure(copper)
    with pytest.warns(UserWarning, match="atom 1 and atom 3"):
        check_structure(copper, close_contacts="warn")
    check_structure(copper, close_contacts="ignore")


def test_coincident_through_the_boundary(copper: Atoms) -> None:
    copper.positions[3] = copper.positions[1] + copper.cell[0] - copper.cell[2] + [0, 0.05, 0]
    with pytest.raises(DataError, match=r"atom 1 and atom 3 are 0\.05 Å apart"):
        check_structure(copper)


def test_cell_so_small_that_an_atom_meets_its_image() -> None:
    atoms = Atoms("Cu", positions=[[0, 0, 0]], cell=[0.05, 3, 3], pbc=True)
    with pytest.raises(DataError, match="atom 0 and its own image"):
        check_structure(atoms)


@pytest.mark.parametrize(
    "atoms",
    [
        Atoms("Cu"),
        Atoms("Cu", cell=[50, 50, 50], pbc=True),
        Atoms("CuCu", positions=[[0, 0, 0], [100, 0, 0]]),
        Atoms(molecule("H2O"), cell=[1, 1, 1]),
        fcc111("Cu", (2, 2, 2)),
        Atoms("CuCu", positions=[[0, 0, 0], [0, 0, 2]], cell=[0, 0, 4], pbc=[0, 0, 1]),
        bulk("Cu"),
        Atoms("Cu", cell=[[3, 0, 0], [0, 0, 3], [0, 3, 0]], pbc=True),
    ],
    ids=["atom", "atom-box", "far", "dummy-cell", "slab", "wire", "bulk", "left-handed"],
)
def test_unusual_but_sound(atoms: Atoms) -> None:
    before = atoms.copy()
    check_structure(atoms)
    assert atoms == before
