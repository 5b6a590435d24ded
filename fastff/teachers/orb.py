"""Orb teachers: every published variant by name, and checkpoints of the same architectures by path.

Here: one adapter for orb-models 0.5.5 (Python 3.11) and 0.6 and later (Python 3.12), batched labelling, charge and
spin. Not here: the table of variants (:mod:`fastff.teachers.orb_variants`), dispersion-only models.

References: Neumann et al., arXiv:2410.22570 (Orb v2); Rhodes et al., arXiv:2504.06231 (Orb v3).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from fastff.errors import DataError, MissingDependencyError, UsageError
from fastff.labels import Labels
from fastff.teachers.base import (
    Setting,
    Teacher,
    TeacherInfo,
    check_options,
    describe_settings,
    label_in_batches,
    pick_device,
)
from fastff.teachers.isolation import hush, preserve_global_state
from fastff.teachers.orb_variants import (
    VARIANTS,
    OrbVariant,
    describe_limits,
    find_weights,
    name_variant,
)
from fastff.teachers.weights import hash_file, read_version, require_file, require_package

OPTIONS = ("precision", "compile", "batch_atoms", "charge", "spin")
PRECISIONS = ("float32-high", "float32-highest", "float64")
GRAPHS = ("default", "knn_scipy")
"""Ways in which Orb's calculator finds neighbors that are each the fastest at some size; the graph is the same."""
BATCH_ATOMS = {"cpu": 256, "cuda": 4096}
BATCH_TOLERANCE = (1e-4, 1e-3)
"""Largest difference between batched and single labels, eV/atom and eV/Å, above which batching is given up."""


class OrbTeacher(Teacher):
    """An Orb model.

    Parameters
    ----------
    variant : str, optional
        As :func:`fastff.teachers.orb_variants.name_variant` takes it.
    device : str
    weights : Path, optional
        A checkpoint of the variant's architecture, as published (a state dict, loaded with ``weights_only=True``).
        Widths and depth are read from it, so that smaller or larger models of the same kind load as well.
    options : mapping
        ``precision`` (``float32-high``, Orb's default; ``float32-highest``; ``float64``), ``compile`` (False),
        ``batch_atoms``, and for OrbMol ``charge`` and ``spin`` (multiplicity), which stand above those of a structure.
    """

    padding = 6.0

    def __init__(
        self,
        variant: str | None = None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = check_options("orb", options or {}, OPTIONS)
        name = name_variant(variant)
        self._variant = VARIANTS[name]
        self._options = chosen
        self._precision = str(chosen.get("precision", "float32-high"))
        if self._precision not in PRECISIONS:
            raise UsageError(
                f"orb option precision is '{self._precision}'; use one of {', '.join(PRECISIONS)}"
            )
        if not self._variant.molecular and {"charge", "spin"} & set(chosen):
            raise UsageError(
                f"{name} takes neither charge nor spin; use an omol variant, or leave them out"
            )
        require_package(
            "orb_models",
            "orb-models",
            "orb",
            "Its weights are fetched once, or given with --teacher-weights PATH.",
        )
        version = read_version("orb-models") or "unknown"
        _check_version(name, self._variant, version)
        self._device = pick_device(device)
        self.batch_atoms = int(chosen.get("batch_atoms", BATCH_ATOMS[self._device.type]))
        self._batches_checked = False
        if weights is not None:
            source = str(require_file(Path(weights), "Orb checkpoint", "Check --teacher-weights."))
        else:
            source = find_weights(name, self._variant)
        self._compiled = bool(chosen.get("compile", False))
        self._load = functools.cache(
            functools.partial(_load_model, name, source, self._device, self._precision)
        )
        with preserve_global_state(), hush():
            self._model, self._adapter = self._load(self._compiled)
        self.info = TeacherInfo(
            name=f"orb:{name}",
            family="orb",
            version=version,
            weights=name if weights is None else str(weights),
            weights_sha256=hash_file(Path(source)) if Path(source).is_file() else None,
            licence="Apache-2.0"
            if weights is None
            else "unknown (file given by path; Orb's own: Apache-2.0)",
            citation=self._variant.citation,
            elements=self._variant.elements,
            conservative=self._variant.conservative,
            cutoff=6.0,
            notes=(*describe_limits(self._variant), f"Evaluated in {self._precision}."),
            max_neighbors=self._variant.max_neighbors
            if self._variant.max_neighbors < 120
            else None,
            settings=describe_settings(
                precision=None if self._precision == PRECISIONS[0] else self._precision,
                **{key: chosen[key] for key in ("charge", "spin") if key in chosen},
            ),
        )

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        prepared = [self._prepare(atoms) for atoms in structures]
        with _set_precision(self._precision):
            if not self._batches_checked and len(prepared) > 1:
                self._check_batches(prepared[:4])
            return label_in_batches(prepared, self.batch_atoms, self._label_batch)

    def _prepare(self, atoms: Atoms) -> Atoms:
        """What Orb reads: all periodic or none (then without a cell), and no foreign ``info``."""
        pbc = bool(atoms.pbc.any())
        prepared = Atoms(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array if pbc else None,
            pbc=pbc,
        )
        if self._variant.molecular:
            prepared.info.update(read_charge_and_spin(atoms, self._options))
        return prepared

    def _label_batch(self, structures: list[Atoms]) -> list[Labels]:
        """One forward pass (and one backward pass, for conservative models) over several structures."""
        graphs = [self._make_graph(atoms) for atoms in structures]
        batch = _batch_graphs(graphs, self._adapter).to(self._device)
        output = self._model.predict(batch)
        conservative = self._variant.conservative
        energies = _to_numpy(output[self._model.energy_name if conservative else "energy"]).reshape(
            -1
        )
        forces = _to_numpy(output[self._model.grad_forces_name if conservative else "forces"])
        stress_name = (
            (self._model.grad_stress_name if conservative else "stress")
            if self._model.has_stress
            else None
        )
        stress = _to_numpy(output[stress_name]).reshape(-1, 6) if stress_name in output else None
        ends = np.cumsum([len(atoms) for atoms in structures])
        return [
            Labels(
                energy=float(energies[k]),
                forces=forces[end - len(atoms) : end],
                stress=None if stress is None else stress[k],
            )
            for k, (end, atoms) in enumerate(zip(ends, structures, strict=True))
        ]

    def _make_graph(self, atoms: Atoms) -> Any:
        """Orb's graph of one structure."""
        if self._adapter is not None:
            return self._adapter.from_ase_atoms(atoms=atoms, device=self._device)
        system = importlib.import_module("orb_models.forcefield.atomic_system")
        return system.ase_atoms_to_atom_graphs(
            atoms, system_config=self._model.system_config, device=self._device
        )

    def _check_batches(self, structures: list[Atoms]) -> None:
        """Compare batched with single labels once; where they differ, warn and label one by one from then on."""
        self._batches_checked = True
        together = self._label_batch(structures)
        alone = [self._label_batch([atoms])[0] for atoms in structures]
        energy = max(
            abs(a.energy - b.energy) / len(a.forces) for a, b in zip(together, alone, strict=True)
        )
        force = max(
            float(np.abs(a.forces - b.forces).max()) for a, b in zip(together, alone, strict=True)
        )
        if energy > BATCH_TOLERANCE[0] or force > BATCH_TOLERANCE[1]:
            warnings.warn(
                f"{self.name}: labels in a batch differ from single ones by {energy:.1e} eV/atom and {force:.1e} eV/Å; "
                "labelling one structure at a time",
                UserWarning,
                stacklevel=2,
            )
            self.batch_atoms = 1

    def calculator(self) -> BaseCalculator:
        """A fresh ``ORBCalculator`` of the loaded model, run in this teacher's precision."""
        return self._make_calculator(self._compiled, GRAPHS[0])

    def list_settings(self) -> tuple[list[Setting], list[str]]:
        """As loaded and with ``torch.compile`` the other way round, each with Orb's ways to find neighbors."""
        choices = [
            (compiled, graph)
            for compiled in (self._compiled, not self._compiled)
            for graph in GRAPHS
        ]
        return [
            Setting(
                {"precision": self._precision, "compile": compiled, "neighbors": graph},
                functools.partial(self._make_calculator, compiled, graph),
            )
            for compiled, graph in choices
        ], []

    def _make_calculator(self, compiled: bool, graph: str) -> BaseCalculator:
        module = "orb_models.forcefield." + (
            "calculator" if self._adapter is None else "inference.calculator"
        )
        base = importlib.import_module(module).ORBCalculator
        teacher = self

        class PreciseORBCalculator(base):  # type: ignore[misc,valid-type]
            """Orb's calculator in the precision it was loaded for."""

            def calculate(
                self, atoms: Any = None, properties: Any = None, system_changes: Any = ()
            ) -> None:
                with _set_precision(teacher._precision):
                    super().calculate(atoms, properties, system_changes)

        with preserve_global_state(), hush():
            model, adapter = self._load(compiled)
            extra: dict[str, Any] = {} if adapter is None else {"atoms_adapter": adapter}
            if graph != GRAPHS[0]:
                extra["edge_method"] = graph
            return PreciseORBCalculator(model, device=self._device, **extra)


def read_charge_and_spin(atoms: Atoms, options: Mapping[str, Any]) -> dict[str, int]:
    """Total charge and spin multiplicity: option, then ``info``, then initial charges, then the lowest multiplicity.

    Raises
    ------
    DataError
        If the multiplicity does not fit the number of electrons.
    """
    charge = options.get("charge", atoms.info.get("charge"))
    if charge is None:
        charge = atoms.get_initial_charges().sum()
    if abs(float(charge) - round(float(charge))) > 1e-3:
        raise DataError(
            f"total charge {charge} of {atoms.get_chemical_formula()} is not whole; set info['charge']"
        )
    charge = round(float(charge))
    electrons = int(atoms.numbers.sum()) - charge
    spin = options.get("spin", atoms.info.get("spin"))
    spin = 1 + electrons % 2 if spin is None else int(spin)
    if spin < 1 or (electrons + spin) % 2 == 0:
        raise DataError(
            f"{atoms.get_chemical_formula()} with charge {charge} has {electrons} electrons, which does not fit spin "
            f"multiplicity {spin}; set info['charge'] and info['spin']"
        )
    return {"charge": charge, "spin": spin}


def _check_version(name: str, variant: OrbVariant, version: str) -> None:
    """Raise if the installed orb-models is too old for a variant."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found and found < variant.minimum:
        wanted = ".".join(map(str, variant.minimum))
        raise MissingDependencyError(
            f"{name} needs orb-models {wanted} or newer, found {version}; `pip install 'orb-models>={wanted}'`"
        )


def _load_model(
    name: str, source: str, device: torch.device, precision: str, compiled: bool
) -> tuple[Any, Any]:
    """The model, and its atoms adapter where orb-models has one (0.6 and later), else None."""
    try:
        pretrained = importlib.import_module("orb_models.forcefield.pretrained")
    except ImportError as error:
        raise MissingDependencyError(
            f"orb-models is installed but cannot be imported: {error}"
        ) from error
    loader = pretrained.ORB_PRETRAINED_MODELS[name]
    with _set_precision(precision), _match_architecture(pretrained, name, source):
        try:
            loaded = loader(
                weights_path=source, device=device, precision=precision, compile=compiled
            )
        except (RuntimeError, KeyError, EOFError, TypeError, ValueError) as error:
            reason = next(
                (line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error)
            )
            raise DataError(f"{source} does not hold weights of {name}: {reason[:200]}") from error
    model, adapter = loaded if isinstance(loaded, tuple) else (loaded, None)
    return model.eval(), adapter


@contextlib.contextmanager
def _match_architecture(pretrained: Any, name: str, source: str) -> Iterator[None]:
    """While loading a local file, build the variant's architecture in the sizes that the file has."""
    if not name.startswith("orb-v3") or not Path(source).is_file():
        yield
        return
    kind = "conservative" if VARIANTS[name].conservative else "direct"
    attribute = f"orb_v3_{kind}_architecture"
    original = getattr(pretrained, attribute)
    sizes, has_forces = _read_sizes(Path(source))
    if has_forces == VARIANTS[name].conservative:  # orb-models 0.7 would drop the head and go on
        said = "has" if has_forces else "lacks"
        raise DataError(
            f"{source} does not hold weights of {name}: it {said} a head for direct forces; name its own variant"
        )
    setattr(pretrained, attribute, functools.partial(original, **sizes))
    try:
        yield
    finally:
        setattr(pretrained, attribute, original)


def _read_sizes(path: Path) -> tuple[dict[str, int], bool]:
    """Widths and depths of an Orb v3 architecture from the shapes in a checkpoint, and whether it has a force head."""
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        encoder, head = "model._encoder._node_fn.mlp.NN-", "heads.energy.mlp.NN-"
        sizes = {
            "latent_dim": state["model.atom_emb.embeddings.weight"].shape[1],
            "base_mlp_hidden_dim": state[f"{encoder}0.weight"].shape[0],
            "base_mlp_depth": sum(
                key.startswith(encoder) and key.endswith("weight") for key in state
            )
            - 1,
            "head_mlp_hidden_dim": state[f"{head}0.weight"].shape[0],
            "head_mlp_depth": sum(key.startswith(head) and key.endswith("weight") for key in state)
            - 1,
            "num_message_passing_steps": len(
                {key.split(".")[2] for key in state if key.startswith("model.gnn_stacks.")}
            ),
        }
        return sizes, any(key.startswith("heads.forces.") for key in state)
    except (
        KeyError,
        AttributeError,
        TypeError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise DataError(
            f"{path} is not an Orb v3 checkpoint (a state dict as published): "
            f"{str(error).strip().splitlines()[0][:200]}"
        ) from error


def _batch_graphs(graphs: list[Any], adapter: Any) -> Any:
    """One batch of several graphs, in either generation of orb-models."""
    if adapter is not None:
        return adapter.batch(graphs)
    return importlib.import_module("orb_models.forcefield.base").batch_graphs(graphs)


@contextlib.contextmanager
def _set_precision(precision: str) -> Iterator[None]:
    """Torch's default dtype and matmul precision as Orb's loader would set them, restored on leaving."""
    with preserve_global_state():
        torch.set_default_dtype(torch.float64 if precision == "float64" else torch.float32)
        torch.set_float32_matmul_precision("high" if precision == "float32-high" else "highest")
        yield


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
