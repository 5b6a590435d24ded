"""Force errors of the fused kernels against float64: of trained students, and of random ones of every study system.

Run from the root of the repository on a GPU: ``python bench/kernels/student_errors.py [MODEL ...]``; a model is a file
or the name of a shipped one, by default all shipped ones. Structures are those in the model file, rattled by 0.1 Å, as
they are and after 2 ps of the student's own dynamics at the highest temperature of its training. Students without
training, calibrated on the material, are of every architecture with fused kernels, with scalar and directed messages,
on each system of the study (``bench/study_systems.py``) rattled by 0.05 and 0.15 Å; their learned forces are scaled to
1 eV/Å RMS. Every precision of the products (:class:`~fastff.kernels.moment_potential.workspace.Options`) is measured,
and float32 in plain torch. Writes ``student_errors.json`` to the folder ``OUT`` if that variable is set, else to
``bench/results/kernels``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402

from bench.study_systems import SYSTEMS  # noqa: E402
from fastff import kernels  # noqa: E402
from fastff.checkpoint import load_model  # noqa: E402
from fastff.evaluator import Evaluator  # noqa: E402
from fastff.graph import batch_graphs, edge_vectors  # noqa: E402
from fastff.kernels import tuning  # noqa: E402
from fastff.md.engine import Engine  # noqa: E402
from fastff.md.potentials import make_potential  # noqa: E402
from fastff.md.settings import MDSettings  # noqa: E402
from fastff.md.state import build_state, make_atoms  # noqa: E402
from fastff.models import Student, build_student, configure_student  # noqa: E402
from fastff.models.dense import lay_out_edges  # noqa: E402
from fastff.neighbors import atoms_to_graph  # noqa: E402
from fastff.structures import read_header_structures  # noqa: E402
from fastff.zoo import list_shipped, resolve_model  # noqa: E402

PRECISIONS = ("tf32x3", "tf32", "ieee")
UNTRAINED = (("m1", 0), ("m2", 0), ("m2", 1), ("m2-l", 0), ("m2-l", 1), ("m3-l", 1))
"""Architectures, and degrees of their messages."""


def heat(student: Student, atoms: Atoms, kelvin: float, n_steps: int) -> Atoms:
    """The structure after dynamics with the student."""
    settings = MDSettings(n_steps, 0.5, temperature=kelvin)
    engine = Engine(make_potential(student), build_state(atoms, settings, student.device), settings)
    while engine.step < n_steps:
        if engine.advance(n_steps).failed:
            raise RuntimeError(f"unstable at step {engine.step}")
    state = engine.state
    moved = (one.cpu().numpy() for one in (state.positions, state.velocities, state.cell))
    return make_atoms(atoms, *moved)


def find_forces(evaluator: Evaluator, images: list[Atoms]) -> list[np.ndarray]:
    return [
        evaluator.evaluate(one.positions, one.cell.array, one.pbc, one.numbers).forces.copy()
        for one in images
    ]


def measure(
    name: str, device: torch.device, n_steps: int, precisions: Sequence[str] = PRECISIONS
) -> dict[str, Any]:
    """Root mean square and largest error of a force component, eV/Å, by precision."""
    path = resolve_model(name)
    single, double = (
        load_model(path, device=device, dtype=t) for t in (torch.float32, torch.float64)
    )
    seed = read_header_structures(single.header)[0]
    seed.set_constraint()
    rattled = seed.copy()
    rattled.positions += np.random.default_rng(0).normal(scale=0.1, size=seed.positions.shape)
    hottest = float(single.header["temperature"][1])
    images = [rattled, heat(single, rattled, hottest, n_steps)]
    return {
        "model": path.stem, "cutoff_A": single.cutoff, "sha256": single.header.get("sha256"),
        "hottest_K": hottest, **compare_precisions(single, double, images, precisions),
    }  # fmt: skip


def compare_precisions(
    single: Student,
    double: Student,
    images: list[Atoms],
    precisions: Sequence[str] = PRECISIONS,
) -> dict[str, Any]:
    """Errors of the student in float32 against the same in float64, on some structures."""
    with kernels.use("torch"):
        exact, plain = (
            find_forces(Evaluator(double), images),
            find_forces(Evaluator(single), images),
        )

    def compare(found: list[np.ndarray]) -> dict[str, float]:
        errors = np.concatenate([(a - b).ravel() for a, b in zip(found, exact, strict=True)])
        return {"rms": float(np.sqrt(np.mean(errors**2))), "max": float(np.abs(errors).max())}

    row: dict[str, Any] = {
        "architecture": single.config.architecture, "message_degree": single.config.message_degree,
        "atoms": [len(one) for one in images],
        "force_rms": float(np.sqrt(np.mean(np.concatenate([f.ravel() for f in exact]) ** 2))),
        "torch float32": compare(plain),
    }  # fmt: skip
    for precision in precisions:
        evaluator = Evaluator(single, precision=precision)
        row[precision] = compare(find_forces(evaluator, images))
    row["path"] = evaluator.explain().path
    return row


def build_untrained(
    images: list[Atoms], architecture: str, message_degree: int, device: torch.device
) -> Student:
    """A random student in float32, calibrated on structures, with learned forces of 1 eV/Å RMS there."""
    elements = tuple(sorted({int(z) for one in images for z in one.numbers}))
    torch.manual_seed(0)
    config = configure_student(architecture, elements, message_degree=message_degree)
    student = build_student(config).double()
    graph = batch_graphs([atoms_to_graph(one, student.cutoff) for one in images])
    dense = lay_out_edges(edge_vectors(graph), graph.edge_index, graph.n_atoms, student.cutoff)
    student.calibrate(dense.vectors, dense.senders, student.find_species(graph.numbers))
    student = student.to(device).eval().requires_grad_(False)
    found = []
    for scale in (1.0, 0.0):  # without what is learned the core repulsion is left
        student.energy_scale.fill_(scale)
        with kernels.use("torch"):
            found.append(np.concatenate(find_forces(Evaluator(student), images)))
    student.energy_scale.fill_(1.0 / float(np.sqrt(np.mean((found[0] - found[1]) ** 2))))
    return student.float()


def measure_untrained(
    system: str,
    architecture: str,
    message_degree: int,
    device: torch.device,
    precisions: Sequence[str] = PRECISIONS,
) -> dict[str, Any]:
    """As :func:`measure`, of a random student on a system of the study."""
    rng = np.random.default_rng(0)
    lattice = next(one for one in SYSTEMS if one.name == system).build(rng)
    images = []
    for width in (0.05, 0.15):
        images.append(lattice.copy())
        images[-1].positions += rng.normal(scale=width, size=lattice.positions.shape)
    single = build_untrained(images, architecture, message_degree, device)
    double = copy.deepcopy(single).double()
    return {"system": system, **compare_precisions(single, double, images, precisions)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="files or names; all shipped ones if left out")
    names = [one.name for one in SYSTEMS]
    parser.add_argument("--systems", nargs="*", choices=names, default=names)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    arguments = parser.parse_args()
    precisions = arguments.precisions
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record: dict[str, Any] = {
        "provenance": tuning.describe_machine(device), "rows": [], "untrained": [],
    }  # fmt: skip
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / "kernels")
    folder.mkdir(parents=True, exist_ok=True)

    def store(key: str, row: dict[str, Any]) -> None:
        record[key].append(row)
        print(json.dumps(row), flush=True)
        (folder / "student_errors.json").write_text(json.dumps(record, indent=1) + "\n")

    for name in arguments.models or list_shipped():
        store("rows", measure(name, device, 4000 if device.type == "cuda" else 5, precisions))
    for system in arguments.systems:
        for architecture, degree in UNTRAINED:
            store("untrained", measure_untrained(system, architecture, degree, device, precisions))


if __name__ == "__main__":
    main()
