"""What is known of published FeNNol models: where they are, their licences and papers.

Here: the table and how a file is matched with it; what an ensemble is called. Not here: reading or evaluating a model
(:mod:`fastff.teachers.fennol`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

COLLECTION = "https://github.com/FeNNol-tools/FeNNol-PMC"

_FENNOL = (
    "T. Plé, O. Adjoua, L. Lagardère, J.-P. Piquemal, FeNNol: an efficient and flexible library for building "
    "force-field-enhanced neural network potentials, J. Chem. Phys. 161, 042502 (2024), doi:10.1063/5.0217688"
)
_ACADEMIC = "academic, non-commercial, reciprocal (see the FeNNol-PMC collection)"
KNOWN: dict[str, tuple[str, str]] = {
    "ani1x": (
        "MIT",
        "J. S. Smith et al., J. Chem. Phys. 148, 241733 (2018), doi:10.1063/1.5023802",
    ),
    "ani1ccx": (
        "MIT",
        "J. S. Smith et al., Nat. Commun. 10, 2903 (2019), doi:10.1038/s41467-019-10827-4",
    ),
    "ani2x": ("MIT", "C. Devereux et al., J. Chem. Theory Comput. 16, 4192 (2020)"),
    "maceoff": (_ACADEMIC, "D. P. Kovács et al., MACE-OFF, J. Am. Chem. Soc. 147, 17598 (2025)"),
    "fennixbio": (
        _ACADEMIC,
        "T. Plé et al., A foundation model for accurate atomistic simulations in drug design (2025)",
    ),
}
"""Licence and paper by the beginning of a file name, letters and digits only."""


def read_licence_and_paper(path: Path) -> tuple[str, str]:
    """Licence and citation by file name, or the first line of a licence file beside the model."""
    stem = "".join(letter for letter in path.stem.lower() if letter.isalnum())
    licence, citation = "unknown (set the option licence)", _FENNOL
    for prefix, (known_licence, paper) in KNOWN.items():
        if stem.startswith(prefix):
            licence, citation = known_licence, f"{paper}; {_FENNOL}"
    for name in ("LICENCE", "LICENSE", "LICENSE.txt", "LICENSE.md"):
        beside = path.parent / name
        if licence.startswith("unknown") and beside.is_file():
            licence = beside.read_text(errors="replace").strip().splitlines()[0]
    return licence, citation


def name_members(names: Sequence[str]) -> str:
    """Name of a model or an ensemble by its files, which also finds them in their folder: ``ani1x_model[01].fnx``."""
    first, *others = names
    if not others:
        return first
    start = len(os.path.commonprefix(list(names)))  # noqa: RUF071 (of characters)
    marks = [name[start : start + 1] for name in names]
    ends = {name[start + 1 :] for name in names}
    if len(ends) == 1 and len(set(marks)) == len(marks) and all(map(str.isalnum, marks)):
        return f"{first[:start]}[{''.join(marks)}]{ends.pop()}"
    return ",".join(names)
