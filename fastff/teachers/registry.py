"""Teachers by name: loading one, and listing what is on this machine.

Here: :func:`load_teacher`, :func:`list_teachers`. Not here: the teachers themselves; a teacher's package is imported
only when that teacher is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastff.errors import UsageError
from fastff.teachers.base import Teacher, check_options
from fastff.teachers.weights import find_package, read_licence, read_version


@dataclass(frozen=True)
class TeacherStatus:
    """One line of ``fastff teachers``.

    Attributes
    ----------
    name : str
        Specification for :func:`load_teacher`.
    family : str
    installed : bool
        Whether the package is installed.
    version : str or None
    weights_present : bool
        Whether the weights are on this machine.
    licence : str
    n_elements : int or None
        Number of elements the teacher knows; None where that depends on the file or calculator given.
    install_hint : str
        What to do where the package or the weights are missing.
    conservative : bool
    """

    name: str
    family: str
    installed: bool
    version: str | None
    weights_present: bool
    licence: str
    n_elements: int | None
    install_hint: str
    conservative: bool


def _load_sevennet(variant: str | None, **kwargs: Any) -> Teacher:
    from fastff.teachers.sevennet import SevenNetTeacher

    return SevenNetTeacher(variant, **kwargs)


def _load_chgnet(variant: str | None, **kwargs: Any) -> Teacher:
    from fastff.teachers.chgnet import CHGNetTeacher

    return CHGNetTeacher(variant, **kwargs)


def _load_orb(variant: str | None, **kwargs: Any) -> Teacher:
    from fastff.teachers.orb import OrbTeacher

    return OrbTeacher(variant, **kwargs)


def _load_fennol(variant: str | None, **kwargs: Any) -> Teacher:
    from fastff.teachers.fennol import FeNNolTeacher

    return FeNNolTeacher(variant, **kwargs)


def _load_ase(variant: str | None, **kwargs: Any) -> Teacher:
    from fastff.teachers.ase_calculator import ASETeacher

    return ASETeacher(variant, **kwargs)


def _load_analytic(variant: str | None, **kwargs: Any) -> Teacher:
    if variant is not None and variant.lower() == "emt":
        from fastff.teachers.ase_calculator import ASETeacher

        check_options("analytic:emt", kwargs["options"], ())
        kwargs["options"] = {
            "elements": "H C N O Al Ni Cu Pd Ag Pt Au",
            "licence": "LGPL-2.1-or-later",
            "citation": "K. W. Jacobsen, P. Stoltze, J. K. Nørskov, Surf. Sci. 366, 394 (1996)",
        }
        return ASETeacher("ase.calculators.emt:EMT", **kwargs)
    from fastff.teachers.analytic import AnalyticTeacher

    return AnalyticTeacher(variant, **kwargs)


LOADERS: dict[str, Callable[..., Teacher]] = {
    "sevennet": _load_sevennet,
    "chgnet": _load_chgnet,
    "orb": _load_orb,
    "fennol": _load_fennol,
    "ase": _load_ase,
    "analytic": _load_analytic,
}


PICKLED = ("sevennet",)
"""Families whose weight files, given by path, are loaded with pickle."""


def load_teacher(
    spec: str,
    *,
    device: str = "auto",
    weights: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Teacher:
    """Load a teacher by its specification.

    Parameters
    ----------
    spec : str
        ``family`` or ``family:variant``: ``sevennet``, ``sevennet:7net-l3i5``, ``chgnet:r2scan``,
        ``ase:package.module:ClassOrFactory``, ``analytic:morse``.
    device : str
        ``auto`` (the GPU where there is one), ``cpu``, ``cuda``, ``cuda:N``.
    weights : Path, optional
        Weight file to use instead of the teacher's own.
    options : mapping, optional
        Options of the family; unknown ones are refused. ``trust`` may be the reason why the user trusts ``weights``
        although loading them runs code stored in them (pickle) and their hash is unknown; it is recorded in the
        teacher's notes, which travel with labels and students.

    Returns
    -------
    Teacher

    Raises
    ------
    UsageError
        If the family, variant or an option is unknown, or a weight file is not trusted.
    MissingDependencyError
        If the package or the weights are not on this machine. Nothing is downloaded.
    """
    family, _, variant = spec.partition(":")
    loader = LOADERS.get(family.lower())
    if loader is None:
        near = difflib.get_close_matches(family.lower(), list(LOADERS), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(LOADERS)}"
        raise UsageError(f"unknown teacher '{spec}'; {hint}")
    path = None if weights is None else Path(weights)
    chosen = dict(options or {})
    reason = chosen.get("trust")
    if isinstance(reason, str):
        _check_reason(spec, reason, path)
    teacher = loader(variant or None, device=device, weights=path, options=chosen)
    if isinstance(reason, str):
        note = f"Weight file trusted by the user: {reason.strip()}"
        teacher.info = replace(teacher.info, notes=(*teacher.info.notes, note))
    return teacher


def is_known(spec: str) -> bool:
    """Whether a name has the form of a teacher that fastff can load; those of other programs' labels often have not."""
    return spec.partition(":")[0].lower() in LOADERS


def _check_reason(spec: str, reason: str, weights: Path | None) -> None:
    """Raise :class:`UsageError` unless a reason for trust is given where trust is needed."""
    if not reason.strip():
        raise UsageError("--trust-teacher-file needs a reason, such as 'trained by our group'")
    if spec.partition(":")[0].lower() not in PICKLED or weights is None:
        raise UsageError(
            f"--trust-teacher-file is for weight files that need pickle, given by path ({', '.join(PICKLED)}); leave "
            f"it out for {spec}" + (" or give --teacher-weights" if weights is None else "")
        )


def list_teachers() -> list[TeacherStatus]:
    """Every teacher fastff knows by name, with what is on this machine; imports no teacher package."""
    statuses = _list_wheels("sevennet", "sevenn", "MIT") + _list_wheels(
        "chgnet", "chgnet", "Modified BSD"
    )
    statuses += _list_orb()
    statuses += [
        TeacherStatus(
            name="fennol:PATH.fnx",
            family="fennol",
            installed=find_package("fennol") is not None,
            version=read_version("fennol"),
            weights_present=False,
            licence="its own",
            n_elements=None,
            install_hint="pip install 'fastff[fennol]'; models are .fnx files of the FeNNol-PMC collection",
            conservative=True,
        ),
        TeacherStatus(
            "ase:MODULE:NAME", "ase", True, read_version("ase"), True, "its own",
            None, "install the package that holds the calculator", True,
        ),
        TeacherStatus("analytic:morse", "analytic", True, "1", True, "Apache-2.0", 118, "", True),
        TeacherStatus("analytic:angular", "analytic", True, "1", True, "Apache-2.0", 118, "", True),
        TeacherStatus(
            "analytic:emt", "analytic", True, read_version("ase"), True, "LGPL-2.1-or-later", 11, "", True
        ),
    ]  # fmt: skip
    return statuses


def _list_wheels(family: str, package: str, licence: str) -> list[TeacherStatus]:
    """Status of a family whose weights come inside its wheel."""
    from fastff.teachers import chgnet, sevennet

    folder = find_package(package)
    if family == "sevennet":
        files = {
            name: f"pretrained_potentials/{entry.file}" for name, entry in sevennet.SHIPPED.items()
        }
        counts = dict.fromkeys(files, len(sevennet.UNIVERSAL_ELEMENTS))
    else:
        files = {name: f"pretrained/{entry.file}" for name, entry in chgnet.SHIPPED.items()}
        counts = {name: len(entry.elements) for name, entry in chgnet.SHIPPED.items()}
    return [
        TeacherStatus(
            name=f"{family}:{name}",
            family=family,
            installed=folder is not None,
            version=read_version(package),
            weights_present=folder is not None and (folder / file).is_file(),
            licence=read_licence(package, licence),
            n_elements=counts[name],
            install_hint=f"pip install 'fastff[{family}]'",
            conservative=True,
        )
        for name, file in files.items()
    ]


def _list_orb() -> list[TeacherStatus]:
    """Status of the published Orb models; weights count as present when they lie in orb-models' cache."""
    from fastff.teachers import orb_variants

    installed = find_package("orb_models") is not None
    return [
        TeacherStatus(
            name=f"orb:{name}",
            family="orb",
            installed=installed,
            version=read_version("orb-models"),
            weights_present=orb_variants.find_cached_weights(variant) is not None,
            licence="Apache-2.0",
            n_elements=len(variant.elements),
            install_hint="pip install 'fastff[orb]'; weights are fetched on first use, or --teacher-weights PATH",
            conservative=variant.conservative,
        )
        for name, variant in orb_variants.VARIANTS.items()
    ]
