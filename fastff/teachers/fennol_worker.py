"""The process in which FeNNol and JAX live, apart from torch.

Here: a loop that answers requests on standard input with results on standard output. Not here: anything of fastff;
this file is run as a script by :mod:`fastff.teachers.fennol`, possibly under another Python, and imports NumPy, JAX and
FeNNol only.

A message is eight bytes of length and an ``.npz`` archive without pickles, whose entry ``meta`` is JSON text. Energies
are converted to eV here; positions are in Å.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import traceback
from typing import Any, BinaryIO

import numpy as np

HARTREE_EV = 27.211386024367243
"""CODATA 2014, as in ASE and FeNNol."""


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """One message, or None where the stream has ended."""
    header = stream.read(8)
    if len(header) < 8:
        return None
    (length,) = struct.unpack(">Q", header)
    data = stream.read(length)
    if len(data) < length:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    return json.loads(arrays.pop("meta").tobytes().decode()), arrays


def write_message(stream: BinaryIO, meta: dict[str, Any], **arrays: np.ndarray) -> None:
    """Write and flush one message."""
    buffer = io.BytesIO()
    entries: dict[str, Any] = {"meta": np.frombuffer(json.dumps(meta).encode(), np.uint8), **arrays}
    np.savez(buffer, **entries)
    data = buffer.getvalue()
    stream.write(struct.pack(">Q", len(data)))
    stream.write(data)
    stream.flush()


class Ensemble:
    """One or more FENNIX models that are evaluated on the same batches."""

    def __init__(self, paths: list[str], double: bool) -> None:
        import jax

        jax.config.update("jax_enable_x64", double)
        from fennol import FENNIX
        from fennol.utils.atomic_units import au

        self.dtype = np.float64 if double else np.float32
        # padding keeps shapes, and so compiled code, when the number of atoms changes
        self.models = [FENNIX.load(path, use_atom_padding=True) for path in paths]
        self.factors = [HARTREE_EV / au.get_multiplier(model.energy_unit) for model in self.models]

    def describe(self) -> dict[str, Any]:
        """Versions, cut-off and architecture of the models."""
        import importlib.metadata

        import jax

        cutoffs = [
            graph["cutoff"]
            for model in self.models
            for graph in model._graphs_properties.values()
            if graph.get("cutoff") is not None
        ]
        return {
            "version": importlib.metadata.version("fennol"),
            "jax": jax.__version__,
            "platform": jax.default_backend(),
            "cutoff": float(max(cutoffs, default=0.0)),
            "energy_units": [model.energy_unit for model in self.models],
            "modules": json.loads(json.dumps(self.models[0]._input_args["modules"], default=str)),
        }

    def label(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Energies (m, s), forces (m, n, 3), virials (m, s, 3, 3) dE/dstrain, in eV and Å, for m models."""
        n_atoms, n_systems = len(arrays["species"]), len(arrays["natoms"])
        inputs = {
            "species": arrays["species"].astype(np.int32),
            "coordinates": arrays["positions"].astype(self.dtype),
            "natoms": arrays["natoms"].astype(np.int32),
            "batch_index": np.repeat(np.arange(n_systems), arrays["natoms"]).astype(np.int32),
            "total_charge": arrays["charges"].astype(np.int32),
        }
        if "cells" in arrays:
            inputs["cells"] = arrays["cells"].astype(self.dtype)
            inputs["reciprocal_cells"] = np.linalg.inv(arrays["cells"]).astype(self.dtype)
        results: dict[str, list[np.ndarray]] = {
            "energies": [],
            "forces": [],
            "virials": [],
            "atomic": [],
        }
        for model, factor in zip(self.models, self.factors, strict=True):
            prepared = model.preprocess(**inputs)
            energy, forces, virial, output = model._energy_and_forces_and_virial(
                model.variables, prepared
            )
            # padding is appended: the first entries are the real ones
            results["energies"].append(np.asarray(energy, dtype=np.float64)[:n_systems] * factor)
            results["forces"].append(np.asarray(forces, dtype=np.float64)[:n_atoms] * factor)
            results["virials"].append(np.asarray(virial, dtype=np.float64)[:n_systems] * factor)
            if "atomic_energies" in output and "system_energies" not in output:
                atomic = np.asarray(output["atomic_energies"], dtype=np.float64)
                results["atomic"].append(atomic[:n_atoms] * factor)
        return {key: np.stack(value) for key, value in results.items() if value}


def main() -> None:
    """Answer requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever FeNNol or JAX print goes to standard error
    requests = sys.stdin.buffer
    ensemble: Ensemble | None = None
    while (message := read_message(requests)) is not None:
        meta, arrays = message
        try:
            if meta["task"] == "load":
                ensemble = Ensemble(meta["paths"], meta["double"])
                write_message(answers, {"ok": True, **ensemble.describe()})
            else:
                assert ensemble is not None
                write_message(answers, {"ok": True}, **ensemble.label(arrays))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            write_message(answers, {"ok": False, "kind": type(error).__name__, "error": str(error)})


if __name__ == "__main__":
    main()
