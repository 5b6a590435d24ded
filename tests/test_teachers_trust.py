"""Weight files that need pickle, and what identifies a teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastff.distill.content import identify_teacher
from fastff.errors import UsageError
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
