"""What error bars and extrapolation grades cost: calls of the evaluator with and without them, on this machine.

Run from the root of the repository: ``python bench/uncertainty_cost.py [NAMES] --out R.json``. Needs torch, triton on a
GPU, and this repository; ``--device cpu --sizes 500`` does without a GPU. The commit is read from git, or from
``FASTFF_COMMIT``.

Timed is one call of :class:`fastff.evaluator.Evaluator` after every atom has moved by some 0.02 Å: skin check or new
list, energy, forces and virial, transfers. Both kinds take turns on the same structures, each call waited for. A
student's structures are the first in its own file, repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

import numpy as np  # noqa: E402
from ase import Atoms  # noqa: E402

from fastff.checkpoint import load_model, write_atomically  # noqa: E402
from fastff.evaluator import Evaluator  # noqa: E402
from fastff.models import Student  # noqa: E402
from fastff.report.provenance import collect_provenance  # noqa: E402
from fastff.report.supercells import build_supercells  # noqa: E402
from fastff.structures import read_header_structures  # noqa: E402
from fastff.zoo.names import list_shipped  # noqa: E402

WARM = 4
"""Calls before the first timed one: the third records a graph."""


def time_calls(student: Student, atoms: Atoms, seconds: float) -> dict[str, Any]:
    """Medians of both kinds of call, ms, and by which path."""
    evaluators = {
        kind: Evaluator(student, with_uncertainty=kind == "with") for kind in ("without", "with")
    }
    path = evaluators["with"].explain().path
    times: dict[str, list[float]] = {kind: [] for kind in evaluators}
    generator = np.random.default_rng(0)
    rest, cell = atoms.get_positions(), atoms.cell.array
    call, begin = 0, time.perf_counter()
    while call < WARM + 5 or time.perf_counter() - begin < seconds:
        positions = rest + generator.normal(scale=0.02, size=rest.shape)
        for kind, evaluator in evaluators.items():
            start = time.perf_counter()
            evaluator.evaluate(positions, cell, atoms.pbc, atoms.numbers)
            times[kind].append(time.perf_counter() - start)
        call += 1
    medians = {kind: 1e3 * statistics.median(found[WARM:]) for kind, found in times.items()}
    return {
        "n_atoms": len(atoms),
        "path": path,
        "n_calls": call - WARM,
        "without_ms": round(medians["without"], 4),
        "with_ms": round(medians["with"], 4),
        "more_percent": round(100.0 * (medians["with"] / medians["without"] - 1.0), 1),
    }


def main() -> None:
    """Time and write, after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("names", nargs="*", default=list_shipped(), help="names or model files")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1500, 12_000, 100_000])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "what": "A call of the evaluator with and without error bars and grades of atoms; medians.",
        "rows": [],
        "provenance": collect_provenance().model_dump(mode="json"),
    }
    for name in arguments.names:
        student = load_model(name, device=arguments.device)
        unit = read_header_structures(student.header)[0]
        for atoms in build_supercells(unit, arguments.sizes):
            row = {"model": name, "student": student.config.architecture}
            row |= time_calls(student, atoms, arguments.seconds)
            record["rows"].append(row)
            print(row, flush=True)
            write_atomically(arguments.out, (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
