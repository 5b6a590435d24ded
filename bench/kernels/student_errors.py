"""Force errors of the fused kernels for trained students, against float64, on structures of their own material.

Run from the root of the repository on a GPU: ``python bench/kernels/student_errors.py [MODEL ...]``; a model is a file
or the name of a shipped one, by default all shipped ones. Structures are those in the model file, rattled by 0.1 Å,
as they are and after 2 ps of the student's own dynamics at the highest temperature of its training. Every precision of
the products (:class:`~fastff.kernels.moment_potential.workspace.Options`) is measured, and float32 in plain torch.
Writes ``student_errors.json`` to the folder ``OUT`` if that variable is set, else to ``bench/results/kernels``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402

from fastff import kernels  # noqa: E402
from fastff.checkpoint import load_model  # noqa: E402
from fastff.evaluator import Evaluator  # noqa: E402
from fastff.kernels import tuning  # noqa: E402
from fastff.md.engine import Engine  # noqa: E402
from fastff.md.potentials import make_potential  # noqa: E402
from fastff.md.settings import MDSettings  # noqa: E402
from fastff.md.state import build_state, make_atoms  # noqa: E402
from fastff.models import Student  # noqa: E402
from fastff.report.comparison import read_header_structures  # noqa: E402
from fastff.zoo import list_shipped, resolve_model  # noqa: E402

PRECISIONS = ("tf32x3", "tf32", "ieee")


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


def measure(name: str, device: torch.device, n_steps: int) -> dict[str, Any]:
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
    with kernels.use("torch"):
        exact, plain = (
            find_forces(Evaluator(double), images),
            find_forces(Evaluator(single), images),
        )

    def compare(found: list[np.ndarray]) -> dict[str, float]:
        errors = np.concatenate([(a - b).ravel() for a, b in zip(found, exact, strict=True)])
        return {"rms": float(np.sqrt(np.mean(errors**2))), "max": float(np.abs(errors).max())}

    row: dict[str, Any] = {
        "model": path.stem, "architecture": single.config.architecture, "cutoff_A": single.cutoff,
        "sha256": single.header.get("sha256"), "atoms": [len(one) for one in images], "hottest_K": hottest,
        "force_rms": float(np.sqrt(np.mean(np.concatenate([f.ravel() for f in exact]) ** 2))),
        "torch float32": compare(plain),
    }  # fmt: skip
    for precision in PRECISIONS:
        evaluator = Evaluator(single, precision=precision)
        row[precision] = compare(find_forces(evaluator, images))
    row["path"] = evaluator.explain().path
    return row


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record: dict[str, Any] = {"provenance": tuning.describe_machine(device), "rows": []}
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results" / "kernels")
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or list_shipped():
        record["rows"].append(measure(name, device, 4000 if device.type == "cuda" else 5))
        print(json.dumps(record["rows"][-1]), flush=True)
        (folder / "student_errors.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
