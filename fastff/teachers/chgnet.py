"""CHGNet teachers: the three sets of weights inside the ``chgnet`` wheel, and files of the same kind.

Here: loading without pickle, batched evaluation, conversion from CHGNet's units (eV/atom, GPa). Not here: magnetic
moments and charges, which no student of fastff learns.

Reference: Deng et al., Nature Machine Intelligence 5, 1031 (2023).
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator

from fastff.errors import DataError
from fastff.labels import Labels
from fastff.teachers.base import (
    Setting,
    Teacher,
    TeacherInfo,
    check_options,
    label_in_batches,
    pick_device,
    pick_variant,
)
from fastff.teachers.isolation import hush, preserve_global_state
from fastff.teachers.sevennet import UNIVERSAL_ELEMENTS
from fastff.teachers.weights import (
    hash_file,
    read_licence,
    read_version,
    require_file,
    require_package,
)

_NATURE = (
    "B. Deng et al., CHGNet as a pretrained universal neural network potential for charge-informed atomistic "
    "modelling, Nat. Mach. Intell. 5, 1031 (2023), doi:10.1038/s42256-023-00716-3"
)
_R2SCAN = (
    "X. Huang et al., Cross-functional transferability in foundation machine learning interatomic potentials, "
    "npj Comput. Mater. 11 (2025), arXiv:2504.05565; " + _NATURE
)


@dataclass(frozen=True)
class ShippedWeights:
    """One weight file inside the wheel, and the elements its training data held."""

    file: str
    citation: str
    elements: tuple[int, ...]


SHIPPED: dict[str, ShippedWeights] = {
    "0.3.0": ShippedWeights(
        "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar", _NATURE, UNIVERSAL_ELEMENTS
    ),
    "r2scan": ShippedWeights(
        "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        _R2SCAN,
        tuple(z for z in UNIVERSAL_ELEMENTS if z != 70),
    ),
    "0.2.0": ShippedWeights(
        "0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar", _NATURE, UNIVERSAL_ELEMENTS
    ),
}
DEFAULT = "0.3.0"
OPTIONS = ("batch_atoms",)
BATCH_ATOMS = {"cpu": 128, "cuda": 2048}


class CHGNetTeacher(Teacher):
    """A CHGNet model. It treats every structure as periodic; molecules get a padded cell.

    Parameters
    ----------
    variant : str, optional
        A key of :data:`SHIPPED`; ``0.3.0`` if left out.
    device : str
    weights : Path, optional
        A CHGNet checkpoint, loaded with ``weights_only=True``.
    options : mapping
        ``batch_atoms``.
    """

    periodic_only = True

    def __init__(
        self,
        variant: str | None = None,
        *,
        device: str = "auto",
        weights: Path | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = check_options("chgnet", options or {}, OPTIONS)
        folder = require_package("chgnet", "chgnet", "chgnet", "Its wheel carries the weights.")
        if weights is None:
            name = pick_variant("chgnet", variant, tuple(SHIPPED), DEFAULT)
            path = require_file(
                folder / "pretrained" / SHIPPED[name].file,
                f"CHGNet weights {name}",
                "Reinstall chgnet from its wheel, or give a checkpoint with --teacher-weights PATH.",
            )
            shipped = SHIPPED[name]
        else:
            name, path, shipped = variant or Path(weights).name, Path(weights), None
            require_file(path, "CHGNet checkpoint", "Check --teacher-weights.")
        self._device = pick_device(device)
        self.batch_atoms = int(chosen.get("batch_atoms", BATCH_ATOMS[self._device.type]))
        with preserve_global_state(), hush():
            self._model = _load_model(path, name).to(self._device).eval()
        self._model.graph_converter.set_isolated_atom_response("ignore")
        self._cutoff = float(self._model.graph_converter.atom_graph_cutoff)
        self.padding = self._cutoff
        self.info = TeacherInfo(
            name=f"chgnet:{name}",
            family="chgnet",
            version=read_version("chgnet") or "unknown",
            weights=name if shipped else str(path),
            weights_sha256=hash_file(path),
            licence=read_licence("chgnet", "Modified BSD")
            if shipped
            else "unknown (file given by path)",
            citation=shipped.citation if shipped else _NATURE,
            elements=shipped.elements if shipped else UNIVERSAL_ELEMENTS,
            conservative=True,
            cutoff=self._cutoff,
            notes=(
                "CHGNet treats every structure as periodic; non-periodic ones get an empty margin.",
            ),
        )

    def _label_completed(self, structures: list[Atoms]) -> list[Labels]:
        return label_in_batches(structures, self.batch_atoms, self._label_batch)

    def _label_batch(self, structures: list[Atoms]) -> list[Labels]:
        """One forward and backward pass over several structures."""
        graphs = [self._make_graph(atoms) for atoms in structures]
        output = self._model.predict_graph(
            graphs, task="efs", return_site_energies=True, batch_size=len(graphs)
        )
        records = [output] if isinstance(output, dict) else output
        labels = []
        for atoms, record in zip(structures, records, strict=True):
            factor = len(atoms) if self._model.is_intensive else 1
            stress = record["s"] * units.GPa
            labels.append(
                Labels(
                    energy=float(record["e"]) * factor,
                    forces=record["f"],
                    stress=stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
                    energies=record["site_energies"],
                )
            )
        return labels

    def _make_graph(self, atoms: Atoms) -> Any:
        """CHGNet's graph of one completed structure."""
        from pymatgen.core import Lattice, Structure

        structure = Structure(
            Lattice(atoms.cell.array), list(atoms.symbols), atoms.get_scaled_positions(wrap=True)
        )
        graph = self._model.graph_converter(structure)
        bonded = torch.unique(graph.atom_graph[:, 0]).numel() if len(graph.atom_graph) else 0
        if bonded == 0:
            raise DataError(
                f"teacher {self.name} cannot label {atoms.get_chemical_formula()}: no two atoms lie within its "
                f"{self._cutoff:g} Å cut-off; leave isolated atoms out, or use another teacher"
            )
        if bonded < len(atoms):
            warnings.warn(
                f"{len(atoms) - bonded} atom(s) of {atoms.get_chemical_formula()} have no neighbour within CHGNet's "
                f"{self._cutoff:g} Å; its labels for them are likely wrong",
                UserWarning,
                stacklevel=2,
            )
        return graph

    def calculator(self) -> BaseCalculator:
        """A fresh ``chgnet.model.dynamics.CHGNetCalculator`` that shares the loaded model."""
        with preserve_global_state(), hush():  # the import alone draws random numbers
            from chgnet.model.dynamics import CHGNetCalculator

            return CHGNetCalculator(
                model=self._model, use_device=str(self._device), on_isolated_atoms="ignore"
            )

    def list_settings(self) -> tuple[list[Setting], list[str]]:
        """CHGNet's one calculator: it is neither compiled nor accelerated."""
        return [Setting({"dtype": "float32", "compile": False}, self.calculator)], []


def _load_model(path: Path, name: str) -> Any:
    """Build CHGNet from a checkpoint without unpickling code."""
    from chgnet.model.model import CHGNet

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        record = checkpoint["model"]
        # as CHGNet.load does: only version 0.2.0 was trained with the output bias
        return CHGNet.from_dict(record, mlp_out_bias=name == "0.2.0", version=name)
    except (KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path} is not a CHGNet checkpoint: {str(error).strip().splitlines()[0]}"
        ) from error
