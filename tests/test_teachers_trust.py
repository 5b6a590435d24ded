"""Weight files that need pickle, and what identifies a teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones

from fastff.distill.content import hash_structure, identify_teacher, require_same_teacher
from fastff.errors import DataError, UsageError
from fastff.teachers import load_teacher


def test_trust_is_given_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a reason"):
        load_teacher("sevennet", weights=tmp_path / "x.pth", options={"trust": " "})
    with pytest.raises(UsageError, match="or give --teacher-weights"):
        load_teacher("sevennet", options={"trust": "ours"})
    from fastff.teachers.sevennet import SHIPPED
    from fastff.teachers.weights import find_package

    folder = find_package("sevenn")
    if folder is None:
        pytest.skip("sevenn is not installed")
    published = folder / "pretrained_potentials" / SHIPPED["7net-0"].file
    unknown = tmp_path / "own.pth"
    unknown.write_bytes(
        published.read_bytes() + b"\0"
    )  # another hash; zip files bear a trailing byte
    with pytest.raises(UsageError, match="--trust-teacher-file"):
        load_teacher("sevennet", weights=unknown, device="cpu")
    teacher = load_teacher(
        "sevennet", weights=unknown, device="cpu", options={"trust": "copied by hand"}
    )
    assert teacher.info.notes[-1] == "Weight file trusted by the user: copied by hand"


def test_the_device_is_no_part_of_a_teachers_identity() -> None:
    here, anywhere = load_teacher("analytic:emt", device="cpu"), load_teacher("analytic:emt")
    assert identify_teacher(here.info.to_dict()) == identify_teacher(anywhere.info.to_dict())


def make_pair(epsilon: float = 1.0, model: str = "") -> LennardJones:
    """A calculator with a weight file and an option beside it."""
    assert model
    return LennardJones(epsilon=epsilon)


def test_options_that_change_labels_are_part_of_a_teachers_identity(tmp_path: Path) -> None:
    """Labels at two fidelities, charges or precisions would else be taken for those of one teacher."""
    weights = tmp_path / "pair.dat"
    weights.write_text("1.0")

    def identify(**options: object) -> dict[str, str]:
        teacher = load_teacher(f"ase:{__name__}:make_pair", weights=weights, options=options)
        return identify_teacher(teacher.info.to_dict())

    usual = identify()
    assert identify(licence="MIT", conservative=False) == usual
    assert identify(epsilon=2.0) != usual
    assert identify(padding=3.0) != usual
    assert identify(padding=10) == identify(padding=10.0) == usual
    assert identify(padding=3) == identify(padding=3.0)
    with pytest.raises(DataError, match=r"settings is the usual ones there and 'padding=3\.0' now"):
        require_same_teacher(usual, identify(padding=3.0), "labels.h5")


def test_fidelities_of_a_model_do_not_mix() -> None:
    pytest.importorskip("sevenn")
    pbe, r2scan = (
        load_teacher("sevennet:7net-mf-0", device="cpu", options={"modal": modal}).info.to_dict()
        for modal in ("PBE", "R2SCAN")
    )
    assert identify_teacher(pbe) != identify_teacher(r2scan)
    atoms = bulk("Cu")
    assert hash_structure(atoms, pbe) != hash_structure(atoms, r2scan)
    assert "settings" not in identify_teacher(load_teacher("sevennet", device="cpu").info.to_dict())
