"""Times Orb's labelling structure by structure and in batches, and of one cell of 1,372 atoms.

    python bench/teachers/orb_batches.py --labels si_7net-0.npz --out runs/orb-batches.json [--device cuda]

The model has the published size of ``--variant`` and random weights, since no published ones were at hand; it is
saved as published checkpoints are and loaded by the adapter. Times are medians of ``--repeats`` after one warm call,
of ``Teacher.label`` from structures to labels: graphs, forces, stress, copies. Forces and energies of both ways are
compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

ROOT = Path(__file__).resolve().parents[2]
HERE = str(ROOT / "bench" / "teachers")
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if entry != HERE)]

from bench.teachers.orb_end_to_end import save_untrained  # noqa: E402
from fastff.distill.formats import read_labels  # noqa: E402
from fastff.report.provenance import collect_provenance  # noqa: E402
from fastff.teachers import load_teacher  # noqa: E402


def time_calls(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Median and range of the seconds of a call, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()  # labels are arrays of the host: nothing is left running
        seconds.append(time.perf_counter() - begin)
    return {
        "median_s": statistics.median(seconds),
        "least_s": min(seconds),
        "most_s": max(seconds),
        "repeats": repeats,
    }


def build_large(rng: np.random.Generator) -> Atoms:
    """Copper, 1,372 atoms, rattled."""
    atoms = bulk("Cu", "fcc", a=3.61, cubic=True) * (7, 7, 7)
    atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--labels", type=Path, required=True, help="structures are taken from here")
    parser.add_argument("--variant", default="orb-v3-conservative-inf-omat")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="float32-high")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="a narrow model, to try the script")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    frames = read_labels(options.labels).frames
    chosen = [frames[k] for k in np.linspace(0, len(frames) - 1, options.frames).astype(int)]
    structures = [frame.atoms for frame in chosen]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "untrained.ckpt"
        save_untrained(
            weights, chosen, 0, sizes=None if options.small else {}, variant=options.variant
        )
        teacher = load_teacher(
            f"orb:{options.variant}",
            weights=weights,
            device=options.device,
            options={"precision": options.precision},
        )
    single = [teacher.label([atoms])[0] for atoms in structures]
    together = teacher.label(structures)
    size = max(float(np.sqrt((labels.forces**2).mean())) for labels in single)
    record: dict[str, Any] = {
        "what": "Seconds of Teacher.label, structures to labels, of a model of the published size with random weights.",
        "variant": options.variant,
        "small": options.small,
        "precision": options.precision,
        "batch_atoms": teacher.batch_atoms,
        "n_parameters": sum(p.numel() for p in teacher._model.parameters()),  # type: ignore[attr-defined]
        "frames": len(structures),
        "atoms_per_frame": float(np.mean([len(atoms) for atoms in structures])),
        "one_by_one": time_calls(
            lambda: [teacher.label([atoms]) for atoms in structures], options.repeats
        ),
        "batched": time_calls(lambda: teacher.label(structures), options.repeats),
        "energy_difference_eV_per_atom": max(
            abs(a.energy - b.energy) / len(a.forces) for a, b in zip(single, together, strict=True)
        ),
        "force_difference_over_rms": max(
            float(np.abs(a.forces - b.forces).max()) for a, b in zip(single, together, strict=True)
        )
        / size,
    }
    record["times_faster"] = record["one_by_one"]["median_s"] / record["batched"]["median_s"]
    large = build_large(np.random.default_rng(0))
    record["large"] = {
        "atoms": len(large),
        **time_calls(lambda: teacher.label([large]), options.repeats),
    }
    record["provenance"] = collect_provenance().model_dump(mode="json")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print({key: record[key] for key in ("one_by_one", "batched", "times_faster", "large")})


if __name__ == "__main__":
    main()
