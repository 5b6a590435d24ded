"""Other models beside the student: model files, ASE calculators, other teachers.

Here: :func:`load_baseline` and :func:`judge_baseline`. Not here: programs that are only timed
(:mod:`fastff.report.gpumd`), the student itself (:mod:`fastff.report.comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ase
from ase.calculators.calculator import BaseCalculator
from ase.data import chemical_symbols

from fastff.errors import DataError, UnsupportedElementError, UsageError
from fastff.labels import Frame, Labels
from fastff.report.metrics import measure_accuracy
from fastff.report.schema import BaselineComparison, BaselinePart, Comparison
from fastff.report.stamps import stamp_part
from fastff.zoo import find_shipped

if TYPE_CHECKING:
    from fastff.models import Student
    from fastff.teachers.base import Teacher


def _keep(atoms: ase.Atoms) -> ase.Atoms:
    return atoms


@dataclass(frozen=True)
class Baseline:
    """A model to compare with.

    Attributes
    ----------
    name : str
        What tables call it; its role in timings.
    kind : {"model", "teacher"}
    identity : dict
        Which one it is: SHA-256 of its tensors, or name and version.
    elements : tuple of int
        Atomic numbers it knows; empty where it does not say.
    label : callable
        Labels a list of structures.
    factory : callable
        A fresh ASE calculator.
    complete : callable
        What its calculator must be given of a structure that is not periodic everywhere.
    model : Student or None
        The student of a model file.
    own_process : bool
        Whether its calculator works in another process.
    """

    name: str
    kind: Literal["model", "teacher"]
    identity: dict[str, Any]
    elements: tuple[int, ...]
    label: Callable[[Sequence[ase.Atoms]], list[Labels]]
    factory: Callable[[], BaseCalculator]
    complete: Callable[[ase.Atoms], ase.Atoms] = _keep
    model: Student | None = field(default=None, compare=False)
    own_process: bool = False

    def check_elements(self, structures: Sequence[ase.Atoms]) -> None:
        """Refuse structures with elements that it does not know, before any work is done.

        Raises
        ------
        UnsupportedElementError
        """
        if not self.elements:
            return
        present = {int(z) for atoms in structures for z in atoms.numbers}
        unknown = sorted(present - set(self.elements))
        if unknown:
            names = ", ".join(chemical_symbols[z] for z in unknown)
            raise UnsupportedElementError(
                f"baseline {self.name} does not know {names}; leave it out of --baseline"
            )

    def try_elements(self, structures: Sequence[ase.Atoms]) -> None:
        """Where it does not say which elements it knows, label the smallest structure of each set of them.

        Raises
        ------
        DataError
            It cannot.
        """
        smallest: dict[frozenset[int], ase.Atoms] = {}
        for atoms in sorted(structures, key=len):
            smallest.setdefault(frozenset(atoms.numbers.tolist()), atoms)
        for atoms in smallest.values() if not self.elements else ():
            try:
                self.label([atoms])
            except DataError as error:
                raise DataError(f"baseline {self.name}: {error}") from error


def identify(teacher: Teacher) -> dict[str, Any]:
    """Which teacher it is, as timings and other parts of a record repeat it."""
    return {"name": teacher.info.name, "version": teacher.info.version}


def load_baseline(spec: str, device: str) -> Baseline:
    """Load what ``--baseline`` names: a model file of fastff, a shipped student, or a teacher's specification.

    Parameters
    ----------
    spec : str
        A path to a model file, the name of a shipped one, or ``chgnet``, ``sevennet:7net-l3i5``, ``ase:module:Name``
        and so on.
    device : str

    Raises
    ------
    UsageError
        It is neither.
    ModelFileError, MissingDependencyError
        It cannot be loaded.
    """
    path = Path(spec)
    if path.suffix == ".safetensors" or path.is_file() or find_shipped(spec) is not None:
        return _load_model(path, device)
    if ":" not in spec and ("/" in spec or "." in spec):
        raise UsageError(f"--baseline {spec}: there is no such model file")
    return _load_teacher(spec, device)


def _name_model(path: Path) -> str:
    """Name of the folder for the file that a training writes, else of the file; short, as legends need it."""
    of_training = path.name == "model.safetensors" and path.parent.name != ""
    return path.parent.name if of_training else path.stem


def _load_model(path: Path, device: str) -> Baseline:
    from fastff.calculator import FastFFCalculator
    from fastff.checkpoint import load_model
    from fastff.inference import predict

    student = load_model(path, device=device)
    sha = student.header["sha256"]
    return Baseline(
        name=_name_model(path),
        kind="model",
        identity={"sha256": sha, "architecture": student.config.architecture},
        elements=tuple(student.elements),
        label=partial(predict, student, charges="ignore"),
        factory=partial(FastFFCalculator, str(path), device=device),
        model=student,
    )


def _load_teacher(spec: str, device: str) -> Baseline:
    from fastff.teachers import load_teacher
    from fastff.teachers.base import complete_structure

    teacher = load_teacher(spec, device=device)
    return Baseline(
        name=teacher.name,
        kind="teacher",
        identity=identify(teacher),
        elements=tuple(teacher.info.elements),
        label=teacher.label,
        factory=teacher.calculator,
        complete=lambda atoms: complete_structure(
            atoms, teacher.padding, all_periodic=teacher.periodic_only
        ),
        own_process=teacher.own_process,
    )


def check_names(baselines: Sequence[Baseline], taken: Mapping[str, str]) -> None:
    """Refuse a baseline that is given twice, or is the student or the teacher itself.

    Raises
    ------
    UsageError
        ``taken`` maps the identity (SHA-256 or name) of student and teacher to what they are.
    """
    seen: set[str] = {"student", "teacher"}
    for baseline in baselines:
        key = str(baseline.identity.get("sha256") or baseline.identity["name"])
        if key in taken:
            raise UsageError(f"--baseline {baseline.name} is the {taken[key]} itself; leave it out")
        if baseline.name in seen:
            raise UsageError(f"--baseline {baseline.name} is given twice; leave one out")
        seen.add(baseline.name)


def judge_baseline(
    baseline: Baseline, sets: Sequence[tuple[Comparison, Sequence[Frame]]]
) -> BaselinePart:
    """Accuracy of a baseline on the frames of every comparison.

    Raises
    ------
    DataError
        Its labels are not finite or do not fit.
    """
    entries = []
    for comparison, frames in sets:
        images = [frame.atoms for frame in frames]
        try:
            accuracy = measure_accuracy(
                [frame.labels for frame in frames], baseline.label(images), images
            )
        except DataError as error:
            raise DataError(f"baseline {baseline.name}, {comparison.name}: {error}") from error
        entries.append(
            BaselineComparison(
                name=comparison.name,
                frames_digest=comparison.frames.digest,
                accuracy=accuracy.to_dict(),
            )
        )
    part = BaselinePart(
        name=baseline.name,
        kind=baseline.kind,
        identity=baseline.identity,
        comparisons=tuple(entries),
    )
    return stamp_part(part)
