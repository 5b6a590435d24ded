"""``--label-key``: names of the labels in files that have their own.

Here: the option and its values. Not here: which names are tried without it (:mod:`fastff.distill.formats`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated

import typer

from fastff.errors import UsageError

LabelKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label-key",
        metavar="LABEL=NAME",
        help="What a file (extxyz, traj, ase.db) calls energy, forces, stress or virial, such as energy=E_dft; may be "
        "repeated. [default: the usual names, REF_energy and so on]",
    ),
]


def read_label_keys(pairs: Sequence[str] | None) -> dict[str, str]:
    """Names by label, from pairs such as ``energy=E_dft``.

    Raises
    ------
    UsageError
        A pair is not of this form, or names another label, or one twice.
    """
    from fastff.distill.formats import LabelKeys

    known = [field.name for field in fields(LabelKeys)]
    keys: dict[str, str] = {}
    for pair in pairs or ():
        label, separator, name = (part.strip() for part in pair.partition("="))
        if not (label and separator and name):
            raise UsageError(f"--label-key {pair!r} is not of the form LABEL=NAME")
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UsageError(f"--label-key {pair!r}: there is no label {label!r}; {hint}")
        if label in keys:
            raise UsageError(f"--label-key names {label} twice: {keys[label]!r} and {name!r}")
        keys[label] = name
    return keys
