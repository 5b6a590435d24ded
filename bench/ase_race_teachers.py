"""Orb and FeNNol in ``ase_race.py``, each by its own loader, graphs and calculator. Not here: students, the record."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ase import Atoms

from bench.ase_race_timing import (
    Row,
    make_frames,
    peak_memory,
    start_memory,
    time_first,
    time_parts,
)

SMALL_ORB = {
    "latent_dim": 32, "base_mlp_hidden_dim": 48, "head_mlp_hidden_dim": 24,
    "num_message_passing_steps": 2,
}  # fmt: skip
ORB_GRAPHS: dict[str, Row] = {
    "default": {},
    "knn_scipy": {"edge_method": "knn_scipy"},
    "half_supercell": {"half_supercell": True},
}
"""Ways in which Orb can make its graph; the fastest whole call counts."""


def load_orb(name: str, device: str, compiled: bool, tiny: bool) -> Any:
    """A published variant through Orb's own loader, from a file of random weights."""
    if "cached_path" not in sys.modules and importlib.util.find_spec("cached_path") is None:
        downloader = types.ModuleType("cached_path")  # a local file needs none
        downloader.cached_path = Path  # type: ignore[attr-defined]
        sys.modules["cached_path"] = downloader
    pretrained = importlib.import_module("orb_models.forcefield.pretrained")
    attribute = f"orb_v3_{name.split('-')[2]}_architecture"
    original = getattr(pretrained, attribute)

    def build(**arguments: Any) -> Any:
        return original(**arguments, **(SMALL_ORB if tiny else {}))

    torch.manual_seed(3)
    setattr(pretrained, attribute, build)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "random.ckpt")
            torch.save(build(device="cpu").state_dict(), path)
            load = pretrained.ORB_PRETRAINED_MODELS[f"{name}-omat"]
            return load(path, device=device, precision="float32-high", compile=compiled)
    finally:
        setattr(pretrained, attribute, original)


def race_orb(
    name: str, atoms: Atoms, calls: int, device: str, compiled: bool, tiny: bool
) -> Iterator[Row]:
    """Orb's own calculator; other ways of making its graph go on only where they save a tenth of that."""
    before, frames, fastest = start_memory(), make_frames(atoms), float("inf")
    model = load_orb(name, device, compiled, tiny)
    own = importlib.import_module("orb_models.forcefield.calculator")
    system = importlib.import_module("orb_models.forcefield.atomic_system")
    for graphs, options in ORB_GRAPHS.items():
        atoms = atoms.copy()
        calculator = own.ORBCalculator(model, device=torch.device(device), **options)

        def make_graph(moved: Atoms, options: Row = options) -> Any:
            config, place = model.system_config, torch.device(device)
            return system.ase_atoms_to_atom_graphs(
                moved, system_config=config, device=place, **options
            )

        row: Row = {"graphs": graphs, "compiled": compiled, "atoms": len(atoms)}
        row["graph_ms"] = time_parts(atoms, frames, [make_graph], calls)[0]["median_ms"]
        if row["graph_ms"] < 0.9 * fastest:
            fastest, atoms.calc = row["graph_ms"], calculator
            start_memory()
            row |= (
                time_first(atoms, frames[0])
                | time_parts(atoms, frames, [Atoms.get_forces], calls)[0]
            )
            row["peak_memory_bytes"] = peak_memory(before)
            _, alone = time_parts(atoms, frames, [make_graph, model.predict], calls)
            row["model_ms"] = alone["median_ms"]
            row["parameters"] = sum(p.numel() for p in model.parameters())
            row["edges"] = int(make_graph(atoms).n_edge.sum())
            row["weights"] = "random"
            row["includes"] = (
                "transfers; energy, forces, stress, confidence; graph anew at every call"
            )
        yield row


def race_fennol(path: Path, atoms: Atoms, calls: int, device: str) -> Iterator[Row]:
    """FeNNol's own calculator, with lists made on the device, as it does by itself, or on the host."""
    jax = importlib.import_module("jax")
    own = importlib.import_module("fennol.ase")
    frames, place = make_frames(atoms), jax.local_devices()[0]
    if device == "cuda" and place.platform != "gpu":
        raise RuntimeError(f"JAX finds no GPU, only {place}")
    for on_device in (True, False):
        atoms = atoms.copy()
        calculator = own.FENNIXCalculator(str(path), gpu_preprocessing=on_device)
        model, atoms.calc = calculator.model, calculator

        def make_graph(moved: Atoms, calculator: Any = calculator) -> Any:
            return jax.block_until_ready(calculator.preprocess(moved, ["positions"]))

        def evaluate(inputs: Any, model: Any = model) -> Any:
            return jax.block_until_ready(model._energy_and_forces(model.variables, inputs))

        row: Row = {"graphs": "on the device" if on_device else "on the host"}
        row |= (
            time_first(atoms, frames[0]) | time_parts(atoms, frames, [Atoms.get_forces], calls)[0]
        )
        graph, alone = time_parts(atoms, frames, [make_graph, evaluate], calls)
        row |= {"graph_ms": graph["median_ms"], "model_ms": alone["median_ms"]}
        used = place.memory_stats() or {}  # of the whole process, in JAX
        row |= {"peak_memory_bytes": used.get("peak_bytes_in_use"), "weights": path.name}
        row["device"] = place.device_kind
        row["includes"] = "transfers; energy, forces; lists anew at every call"
        yield row
