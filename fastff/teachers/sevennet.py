"""SevenNet teachers, labelled in true batches.

Here: the weights that come inside the ``sevenn`` wheel, files of the same kind given by path, and batched evaluation.
Not here: downloading the larger SevenNet models (give their file by path), D3 corrections.

Reference: Park et al., J. Chem. Theory Comput. 20, 4857 (2024).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from fastff.errors import MissingDependencyError, UsageError
from fastff.labels import Labels
from fastff.neighbors import build_edges
from fastff.teachers.base import (
    Setting,
    Teacher,
    TeacherInfo,
    check_options,
    describe_settings,
    label_in_batches,
    pick_device,
    pick_variant,
)
from fastff.teachers.isolation import hush, preserve_global_state
from fastff.teachers.weights import (
    check_pickle_trust,
    find_package,
    read_licence,
    read_version,
    require_file,
    require_package,
)

_JCTC = (
    "Y. Park, J. Kim, S. Hwang, S. Han, Scalable parallel algorithm for graph neural network interatomic potentials in "
    "molecular dynamics simulations, J. Chem. Theory Comput. 20, 4857 (2024), doi:10.1021/acs.jctc.4c00190"
)
_JACS = (
    "J. Kim et al., Data-efficient multifidelity training for high-fidelity machine learning interatomic potentials, "
    "J. Am. Chem. Soc. 147, 1042 (2025), doi:10.1021/jacs.4c14455"
)

UNIVERSAL_ELEMENTS: tuple[int, ...] = tuple(z for z in range(1, 95) if not 84 <= z <= 88)
"""The 89 elements of the Materials Project data: H to Pu without Po, At, Rn, Fr, Ra."""


@dataclass(frozen=True)
class ShippedWeights:
    """One weight file inside the wheel."""

    file: str
    sha256: str
    citation: str


SHIPPED: dict[str, ShippedWeights] = {
    "7net-0": ShippedWeights(
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
        _JCTC,
    ),
    "7net-l3i5": ShippedWeights(
        "SevenNet_l3i5/checkpoint_l3i5.pth",
        "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        _JCTC,
    ),
    "7net-mf-0": ShippedWeights(
        "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
        "81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd",
        _JACS,
    ),
    "7net-0_22may2024": ShippedWeights(
        "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
        "5d389fafd512e6ae2830d74d0b66ffc49a55d3832653ff8e7bf7f1343013c1d1",
        _JCTC,
    ),
}
DEFAULT = "7net-0"
ACCELERATORS = {"cueq": "enable_cueq", "flash": "enable_flash", "oeq": "enable_oeq"}
ACCELERATOR_PACKAGES = {
    "cueq": ("cuequivariance_torch", "cuequivariance-torch"),
    "flash": ("flashTP_e3nn", "flashTP_e3nn"),
    "oeq": ("openequivariance", "openequivariance"),
}
"""Module and distribution of each accelerator; SevenNet itself would do without it, and without a word."""
OPTIONS = ("modal", "accelerator", "batch_atoms", "trust")
BATCH_ATOMS = {"cpu": 64, "cuda": 4096}
"""Atoms per forward pass. On the CPU larger batches are slower: their edge features leave the cache."""


class SevenNetTeacher(Teacher):
    """A SevenNet model, evaluated in float32 as its authors do.

    Parameters
    ----------
    variant : str, optional
        A key of :data:`SHIPPED`; ``7net-0`` if left out. Not with ``weights``.
    device : str
    weights : Path, optional
        A SevenNet checkpoint. It needs pickle, so its SHA-256 must be known or ``options["trust"]`` set.
    options : mapping
        ``modal`` (fidelity of a multi-fidelity model, for example ``PBE``), ``accelerator`` (``cueq``, ``flash`` or
        ``oeq``), ``batch_atoms``, ``trust``.
    """

    def __init__(
        self,
        variant: str | None = None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = check_options("sevennet", options or {}, OPTIONS)
        folder = require_package("sevenn", "sevenn", "sevennet", "Its wheel carries the weights.")
        if weights is None:
            name = pick_variant("sevennet", variant, tuple(SHIPPED), DEFAULT)
            path = require_file(
                folder / "pretrained_potentials" / SHIPPED[name].file,
                f"SevenNet weights {name}",
                "Reinstall sevenn from its wheel, or give a checkpoint with --teacher-weights PATH.",
            )
        else:
            name, path = variant or Path(weights).stem, Path(weights)
            require_file(path, "SevenNet checkpoint", "Check --teacher-weights.")
        known = {entry.sha256: key for key, entry in SHIPPED.items()}
        digest = check_pickle_trust(path, known, bool(chosen.get("trust", False)))
        name = known.get(digest, name)
        self.padding = 5.0
        self._path = path
        self._device = pick_device(device)
        self._accelerator = _pick_accelerator(chosen.get("accelerator"))
        self.batch_atoms = int(chosen.get("batch_atoms", BATCH_ATOMS[self._device.type]))
        with preserve_global_state(), hush():
            self._model = self._build_model()
        self._modal = _pick_modal(name, self._model.modal_map, chosen.get("modal"))
        self._cutoff = float(self._model.cutoff)
        self.padding = self._cutoff
        shipped = SHIPPED.get(name)
        self.info = TeacherInfo(
            name=f"sevennet:{name}",
            family="sevennet",
            version=read_version("sevenn") or "unknown",
            weights=name if shipped else str(path),
            weights_sha256=digest,
            licence=read_licence("sevenn", "MIT") if shipped else "unknown (file given by path)",
            citation=shipped.citation if shipped else _JCTC,
            elements=tuple(sorted(self._model.type_map)),
            conservative=True,
            cutoff=self._cutoff,
            notes=(f"Fidelity (modal) {self._modal}.",) if self._modal else (),
            settings=describe_settings(modal=self._modal),
        )

    def _build_model(self) -> Any:
        """The model in evaluation mode, reading batched graphs."""
        from sevenn.util import load_checkpoint

        flags = {ACCELERATORS[self._accelerator]: True} if self._accelerator else {}
        torch.set_default_dtype(
            torch.float32
        )  # the constants of e3nn take it; the caller restores it
        model = load_checkpoint(self._path).build_model(**flags)
        model.set_is_batch_data(True)
        return model.to(self._device).eval().requires_grad_(False)

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        return label_in_batches(structures, self.batch_atoms, self._label_batch)

    def _label_batch(self, structures: list[Atoms]) -> list[Labels]:
        """One forward and backward pass over several structures."""
        import sevenn._keys as key

        output = self._model(self._make_batch(structures))
        energies = _to_numpy(output[key.PRED_TOTAL_ENERGY])
        atomic = _to_numpy(output[key.ATOMIC_ENERGY]).reshape(-1)
        n_atoms = [len(atoms) for atoms in structures]
        if key.PRED_FORCE in output:
            forces = _to_numpy(output[key.PRED_FORCE])
            # SevenNet: xx, yy, zz, xy, yz, zx and positive under pressure
            stress = -_to_numpy(output[key.PRED_STRESS])[:, [0, 1, 2, 4, 5, 3]]
        else:  # not one edge in the whole batch: the energy depends on no vector
            forces = np.zeros((sum(n_atoms), 3))
            stress = np.zeros((len(structures), 6))
        ends = np.cumsum(n_atoms)
        return [
            Labels(
                energy=float(energies[k]),
                forces=forces[end - count : end],
                stress=stress[k],
                energies=atomic[end - count : end],
            )
            for k, (end, count) in enumerate(zip(ends, n_atoms, strict=True))
        ]

    def _make_batch(self, structures: list[Atoms]) -> Any:
        """SevenNet's batched graph, with our neighbor list; vectors are formed in float64."""
        import sevenn._keys as key
        from sevenn.atom_graph_data import AtomGraphData
        from torch_geometric.data import Batch

        graphs = []
        for atoms in structures:
            cell = atoms.cell.array
            edges, shifts = build_edges(atoms.positions, cell, atoms.pbc, self._cutoff)
            vectors = atoms.positions[edges[1]] - atoms.positions[edges[0]] + shifts @ cell
            numbers = torch.as_tensor(atoms.numbers, dtype=torch.int64)
            graph = AtomGraphData(
                x=numbers,
                edge_index=torch.from_numpy(edges),
                pos=torch.as_tensor(atoms.positions, dtype=torch.float32),
                **{
                    key.ATOMIC_NUMBERS: numbers,
                    key.EDGE_VEC: torch.as_tensor(vectors, dtype=torch.float32),
                    key.CELL_VOLUME: torch.tensor(abs(np.linalg.det(cell)), dtype=torch.float32),
                    key.NUM_ATOMS: torch.tensor(len(atoms)),
                },
            )
            if self._modal:
                graph[key.DATA_MODALITY] = self._modal
            graphs.append(graph)
        return Batch.from_data_list(graphs).to(self._device)

    def calculator(self) -> BaseCalculator:
        """A fresh ``sevenn.calculator.SevenNetCalculator`` of the same weights, device, accelerator and fidelity."""
        return self._make_calculator(self._accelerator)

    def list_settings(self) -> tuple[list[Setting], list[str]]:
        """The accelerator of the labels, none, and every other one whose package is installed."""
        names = dict.fromkeys((self._accelerator, None, *ACCELERATORS))
        present = [n for n in names if n is None or find_package(ACCELERATOR_PACKAGES[n][0])]
        settings = [
            Setting(
                {"dtype": "float32", "accelerator": name or "none"},
                partial(self._make_calculator, name),
            )
            for name in present
        ]
        missing = [
            f"accelerator {name}: the package {ACCELERATOR_PACKAGES[name][1]} is not installed"
            for name in names
            if name is not None and name not in present
        ]
        return settings, missing

    def _make_calculator(self, accelerator: str | None) -> BaseCalculator:
        flags = {ACCELERATORS[accelerator]: True} if accelerator else {}
        with preserve_global_state(), hush():  # the import alone draws random numbers
            from sevenn.calculator import SevenNetCalculator

            # SevenNet warns and goes on without; what is asked for must not be said to run when it does not
            warnings.filterwarnings("error", message=".*[Ff]all(ing)? ?back to e3nn")
            return SevenNetCalculator(
                model=str(self._path), device=str(self._device), modal=self._modal, **flags
            )


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()


def _pick_accelerator(name: Any) -> str | None:
    """Check that the accelerator's package is here."""
    if name is None or name == "none":
        return None
    if name not in ACCELERATOR_PACKAGES:
        raise UsageError(f"sevennet option accelerator is '{name}'; use cueq, flash or oeq")
    module, distribution = ACCELERATOR_PACKAGES[name]
    if find_package(module) is None:
        raise MissingDependencyError(
            f"sevennet accelerator '{name}' needs the package '{distribution}', which is not installed; "
            f"`pip install {distribution}`, or leave the option accelerator out"
        )
    return str(name)


def _pick_modal(name: str, known: Mapping[str, int] | None, modal: Any) -> str | None:
    """Fidelity of a multi-fidelity model: named by the user, never chosen for them."""
    if not known:
        if modal is not None:
            raise UsageError(
                f"SevenNet model {name} has one fidelity; leave the option modal='{modal}' out"
            )
        return None
    for candidate in known:
        if modal is not None and str(modal).lower() == candidate.lower():
            return candidate
    said = "is missing" if modal is None else f"is '{modal}'"
    raise UsageError(
        f"SevenNet model {name}: option modal {said}; choose one of {', '.join(known)}"
    )
