"""FeNNol teachers: any ``.fnx`` file, or several as an ensemble, evaluated in a process of their own.

Here: starting and talking to the worker, batches, charges, elements, the mean and the spread of an ensemble. Not
here: JAX (:mod:`fastff.teachers.fennol_worker` is the only place that imports it).

Reference: Plé, Adjoua, Lagardère, Piquemal, J. Chem. Phys. 161, 042502 (2024).
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

from fastff.errors import DataError, FastFFError, MissingDependencyError, UsageError
from fastff.labels import Labels
from fastff.teachers import fennol_worker
from fastff.teachers.ase_bridge import TeacherCalculator
from fastff.teachers.base import (
    Setting,
    Teacher,
    TeacherInfo,
    check_options,
    complete_structure,
    describe_settings,
    split_by_atoms,
)
from fastff.teachers.fennol_models import COLLECTION, name_members, read_licence_and_paper
from fastff.teachers.weights import find_package, hash_file, require_file

OPTIONS = ("precision", "batch_atoms", "charge", "elements", "licence", "citation", "python")
BATCH_ATOMS = {"cpu": 512, "gpu": 2048}
"""By what JAX calls the device."""
PYTHON_VARIABLE = "FASTFF_FENNOL_PYTHON"
"""Environment variable that names another Python, in which FeNNol is installed."""


@dataclass(frozen=True)
class Spread:
    """Standard deviation over the members of an ensemble, for one structure.

    Attributes
    ----------
    energy : float
        eV, total.
    forces : numpy.ndarray
        eV/Å, shape (n_atoms, 3).
    """

    energy: float
    forces: np.ndarray


class FeNNolTeacher(Teacher):
    """One or more FENNIX models; labels are the mean over the members.

    Parameters
    ----------
    variant : str, optional
        A ``.fnx`` file, a pattern such as ``ani1x_model*.fnx``, or several of these separated by commas.
    device : str
        ``cpu`` keeps JAX off the GPU; ``auto`` takes what JAX offers.
    weights : Path, optional
        The same as ``variant``, which then must be left out.
    options : mapping
        ``precision`` (``float64``, since total energies are large; or ``float32``), ``batch_atoms``, ``charge``
        (total, for every structure; else ``info["charge"]``, else the sum of initial charges), ``elements`` (where
        the file does not say), ``licence``, ``citation``, ``python`` (an interpreter in which FeNNol is installed).
    """

    own_process = True

    def __init__(
        self,
        variant: str | None = None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._options = check_options("fennol", options or {}, OPTIONS)
        paths = _find_members(variant, weights)
        precision = str(self._options.get("precision", "float64"))
        if precision not in ("float32", "float64"):
            raise UsageError(f"fennol option precision is '{precision}'; use float32 or float64")
        self._variant, self._device, self._weights = variant, device, weights
        self._precision = precision
        self._single: FeNNolTeacher | None = None
        self._worker = Worker(_find_python(self._options.get("python")), device)
        found, _ = self._worker.ask(
            {
                "task": "load",
                "paths": [str(path) for path in paths],
                "double": precision == "float64",
            }
        )
        usual = BATCH_ATOMS.get(found["platform"], BATCH_ATOMS["cpu"])
        self.batch_atoms = int(self._options.get("batch_atoms", usual))
        self.padding = max(float(found["cutoff"]), 5.0)
        self._ewald = bool(found.get("ewald", False))
        self._takes_charge: bool | None = None  # found out when a charge is first met
        self.n_members = len(paths)
        self.n_compiled = 0  # programs that JAX has compiled for labelling
        licence, citation = read_licence_and_paper(paths[0])
        self.info = TeacherInfo(
            name=f"fennol:{name_members([path.name for path in paths])}",
            family="fennol",
            version=f"{found['version']} (jax {found['jax']})",
            weights=", ".join(path.name for path in paths),
            weights_sha256=_hash_members(paths),
            licence=str(self._options.get("licence", licence)),
            citation=str(self._options.get("citation", citation)),
            elements=_read_elements(found["modules"], self._options.get("elements")),
            conservative=True,
            cutoff=float(found["cutoff"]) or None,
            notes=tuple(_make_notes(len(paths), precision, found["platform"])),
            settings=describe_settings(
                precision=None if precision == "float64" else precision,
                charge=self._options.get("charge"),
            ),
        )

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        for atoms in structures:
            if self._ewald and atoms.pbc.any() and not atoms.pbc.all():
                raise DataError(
                    f"{atoms.get_chemical_formula()} is periodic in some directions only, and {self.info.weights} has "
                    "long-range sums over images in all three, whose energy would depend on the empty space; set pbc "
                    "in all directions with the vacuum of your choice, or in none"
                )
        return [labels for labels, _ in self._evaluate(structures)]

    def label_with_spread(self, structures: Sequence[Atoms]) -> list[tuple[Labels, Spread]]:
        """Labels as from :meth:`label`, with the standard deviation over the members (zero for one member)."""
        labels = self.label(structures)
        completed = [complete_structure(atoms, self.padding) for atoms in structures]
        spreads = [spread for _, spread in self._evaluate(completed, spread=True)]
        return list(zip(labels, spreads, strict=True))

    def _evaluate(
        self, structures: list[Atoms], *, spread: bool = False
    ) -> list[tuple[Labels, Spread]]:
        """Label in batches that are periodic throughout, or not at all, as FeNNol wants them."""
        results: dict[int, tuple[Labels, Spread]] = {}
        for periodic in (True, False):
            chosen = [k for k, atoms in enumerate(structures) if bool(atoms.pbc.any()) == periodic]
            group = [structures[k] for k in chosen]
            for part in split_by_atoms(group, self.batch_atoms):
                found = self._label_batch([group[k] for k in part], periodic, spread)
                results.update(zip((chosen[k] for k in part), found, strict=True))
        return [results[k] for k in range(len(structures))]

    def _label_batch(
        self, structures: list[Atoms], periodic: bool, spread: bool
    ) -> list[tuple[Labels, Spread]]:
        """One request to the worker; the spread of forces is zero unless asked for."""
        arrays = {
            "species": np.concatenate([atoms.numbers for atoms in structures]),
            "positions": np.concatenate([atoms.positions for atoms in structures]),
            "natoms": np.array([len(atoms) for atoms in structures]),
            "charges": np.array([self._read_charge(atoms) for atoms in structures]),
        }
        if periodic:
            arrays["cells"] = np.stack([atoms.cell.array for atoms in structures])
        self._check_charges(
            arrays, ", ".join(atoms.get_chemical_formula() for atoms in structures[:3])
        )
        answer, found = self._worker.ask({"task": "label", "spread": spread}, **arrays)
        self.n_compiled = int(answer["compiled"])
        ends = np.cumsum(arrays["natoms"])
        results = []
        for k, (end, atoms) in enumerate(zip(ends, structures, strict=True)):
            part = slice(end - len(atoms), end)
            stress = None
            if periodic:
                virial = found["virials"][k]
                stress = full_3x3_to_voigt_6_stress(0.5 * (virial + virial.T)) / atoms.get_volume()
            energies = found["atomic"][part] if "atomic" in found else None
            labels = Labels(
                float(found["energies"][:, k].mean()),
                found["forces"][part],
                stress,
                energies,
            )
            forces = found["force_spread"][part] if spread else np.zeros((len(atoms), 3))
            results.append((labels, Spread(float(found["energies"][:, k].std()), forces)))
        return results

    def _read_charge(self, atoms: Atoms) -> int:
        """Total charge: option, then ``info``, then initial charges."""
        charge = self._options.get("charge", atoms.info.get("charge"))
        if charge is None:
            charge = atoms.get_initial_charges().sum()
        if abs(float(charge) - round(float(charge))) > 1e-3:
            raise DataError(f"total charge {charge} of {atoms.get_chemical_formula()} is not whole")
        return round(float(charge))

    def _check_charges(self, arrays: dict[str, np.ndarray], formula: str) -> None:
        """Raise if a charge is asked for and the model does not react to it."""
        if not arrays["charges"].any():
            return
        if self._takes_charge is None:
            neutral = {**arrays, "charges": np.zeros_like(arrays["charges"])}
            _, first = self._worker.ask({"task": "label"}, **arrays)
            _, second = self._worker.ask({"task": "label"}, **neutral)
            self._takes_charge = not np.array_equal(first["energies"], second["energies"])
        if not self._takes_charge:
            raise DataError(
                f"{formula} has charge {arrays['charges'][arrays['charges'] != 0][0]}, but {self.info.weights} knows "
                "neutral systems only; leave it out, or use a model that takes a charge"
            )

    def calculator(self) -> BaseCalculator:
        """This teacher as an ASE calculator; it stays in its own process."""
        return TeacherCalculator(self)

    def list_settings(self) -> tuple[list[Setting], list[str]]:
        """The precision of the labels, and single precision, FeNNol's own default; both are compiled by JAX."""
        own = Setting({"precision": self._precision, "compile": True}, self.calculator)
        if self._precision == "float32":
            return [own], []
        single = Setting({"precision": "float32", "compile": True}, self._make_single)
        return [own, single], []

    def _make_single(self) -> BaseCalculator:
        """The same model in single precision, in a process that is started once."""
        if self._single is None:
            options = {**self._options, "precision": "float32"}
            self._single = FeNNolTeacher(
                self._variant, device=self._device, weights=self._weights, options=options
            )
        return self._single.calculator()


class Worker:
    """A process that runs :mod:`fastff.teachers.fennol_worker`; it ends with this object."""

    def __init__(self, python: str, device: str) -> None:
        environment = {
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        if device == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        elif device.startswith("cuda"):
            environment["JAX_PLATFORMS"] = "cuda"
            if ":" in device:
                environment["CUDA_VISIBLE_DEVICES"] = _find_physical_device(
                    int(device.split(":")[1])
                )
        self._python = python
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        try:
            # -P: this folder has files named as the packages of teachers; they must not stand in their way
            self._process = subprocess.Popen(
                [python, "-P", fennol_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
            )
        except OSError as error:
            raise MissingDependencyError(f"cannot start '{python}' for FeNNol: {error}") from error
        self._finalizer = weakref.finalize(self, _end_process, self._process)

    def ask(
        self, meta: dict[str, Any], **arrays: np.ndarray
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            fennol_worker.write_message(self._process.stdin, meta, **arrays)  # type: ignore[arg-type]
            answer = fennol_worker.read_message(self._process.stdout)  # type: ignore[arg-type]
        except BrokenPipeError:
            answer = None
        if answer is None:
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "no message"
            if reason.startswith(("ModuleNotFoundError", "ImportError")):
                raise MissingDependencyError(self._say_missing(reason))
            raise FastFFError(f"the FeNNol process ended: {reason}")
        found, results = answer
        if not found["ok"]:
            text = str(found["error"]).strip().splitlines()
            if found["kind"] in ("ModuleNotFoundError", "ImportError"):
                raise MissingDependencyError(self._say_missing(found["error"]))
            task = "load the model" if meta["task"] == "load" else "label"
            raise FastFFError(
                f"FeNNol could not {task}: {found['kind']}: {text[0] if text else ''}"
            )
        return found, results

    def _say_missing(self, reason: str) -> str:
        return (
            f"FeNNol cannot be imported by {self._python}: {reason}; install it there with `pip install fennol`, or "
            f"set {PYTHON_VARIABLE} to a Python that has it"
        )


def _find_physical_device(index: int) -> str:
    """Name of the GPU that this process calls number ``index``; it may itself see only some of them."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if index < len(visible) else str(index)


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes, which ends the worker's loop, and make sure that it ended."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _find_python(chosen: Any) -> str:
    """Interpreter for the worker: option, environment variable, or this one if FeNNol is installed."""
    python = chosen or os.environ.get(PYTHON_VARIABLE)
    if python:
        return str(python)
    if find_package("fennol") is None:
        raise MissingDependencyError(
            "the teacher package 'fennol' is not installed; install it with `pip install 'fastff[fennol]'` (or "
            f"`pip install fennol`), or set {PYTHON_VARIABLE} to a Python that has it. Models (.fnx files) are in the "
            f"FeNNol-PMC collection, {COLLECTION}."
        )
    return sys.executable


def _find_members(variant: str | None, weights: Path | None) -> list[Path]:
    """Files named by a path, a pattern or a comma-separated list, by name."""
    if variant is not None and weights is not None:
        raise UsageError(f"fennol was given both '{variant}' and weights {weights}; give one")
    text = str(weights) if weights is not None else variant
    advice = (
        f"Download a .fnx file from the FeNNol-PMC collection, {COLLECTION} (ANI files are 1.3 MB each; hashes are not "
        "published), and pass fennol:PATH or --teacher-weights PATH."
    )
    if text is None:
        raise MissingDependencyError(f"fennol needs a model file, and none was named. {advice}")
    paths: list[Path] = []
    for part in text.split(","):
        part = os.path.expanduser(part.strip())
        found = sorted(glob.glob(part)) if any(mark in part for mark in "*?[") else [part]
        if not found:
            raise MissingDependencyError(f"no FeNNol model matches {part}. {advice}")
        paths += [require_file(Path(path), "FeNNol model", advice) for path in found]
    for path in paths:
        if path.suffix != ".fnx":
            raise UsageError(
                f"{path} is not an .fnx file; pickled FeNNol models run code when loaded and are refused: load it with "
                "FeNNol and save it as .fnx"
            )
    return sorted(paths, key=lambda path: path.name)  # however they were listed


def _hash_members(paths: list[Path]) -> str:
    """SHA-256 of one file; of several, the SHA-256 of their hashes joined by commas."""
    import hashlib

    digests = [hash_file(path) for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256(",".join(digests).encode()).hexdigest()
    )


def _read_elements(modules: Any, chosen: Any) -> tuple[int, ...]:
    """Elements that every species list of a model holds, or those the user names; empty where neither says."""
    if chosen:
        symbols = chosen.replace(",", " ").split() if isinstance(chosen, str) else list(chosen)
        return tuple(sorted({atomic_numbers[s] if isinstance(s, str) else int(s) for s in symbols}))
    lists: list[set[int]] = []

    def collect(node: Any) -> None:
        if not isinstance(node, Mapping):
            return
        for key, value in node.items():
            if key == "species_order" and value:
                order = value.replace(",", " ").split() if isinstance(value, str) else value
                if known := {atomic_numbers[s] for s in order if s in atomic_numbers}:
                    lists.append(known)
            elif isinstance(value, Mapping) and value and all(k in atomic_numbers for k in value):
                lists.append({atomic_numbers[s] for s in value})
            else:
                collect(value)

    collect(modules)
    return tuple(sorted(set.intersection(*lists))) if lists else ()


def _make_notes(n_members: int, precision: str, platform: str) -> list[str]:
    """What a user must know of the teacher, in whole sentences."""
    notes = [
        f"Evaluated in {precision} on the {platform.upper()}, in a process of its own; energies are total energies."
    ]
    if n_members > 1:
        notes.append(f"Mean of {n_members} models.")
    return notes
