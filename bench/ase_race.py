"""Students against Orb and FeNNol through ASE's calculator interface, on one GPU.

Run from the root of the repository, once for each teacher: ``python bench/ase_race.py --only orb``, then
``python bench/ase_race.py --only fennol --water water_1500.xyz --ani ani1x_model0.fnx``. Needs torch, triton, ase,
vesin and this repository; orb-models 0.5.5, or FeNNol and JAX. Both runs write one record, after every row: ``--out``,
else ``race.json`` in the folder ``OUT`` if that variable is set, else in ``bench/results``. The commit is read from
git, or from ``FASTFF_COMMIT``. A teacher that fails costs its own rows. ``--tiny`` runs everything small on the CPU.

What is timed: ``atoms.get_forces()`` after every atom has moved (0.02 Å RMS in each direction, about a step of
dynamics), warm, each call waited for; a call's graph and its model also apart. Orb has its published architecture and
size and random weights, on which speed does not depend; it comes from its own loader, compiled, in float32-high. FeNNol
has the weights of its file. Students are untrained unless ``--model`` names files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import: tabulate.py is not the package
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import ase.io  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.build import bulk  # noqa: E402

from bench.ase_race_teachers import race_fennol, race_orb  # noqa: E402
from bench.ase_race_timing import (  # noqa: E402
    Row,
    make_frames,
    peak_memory,
    start_memory,
    time_first,
    time_parts,
)
from fastff.calculator import FastFFCalculator  # noqa: E402
from fastff.checkpoint import load_model  # noqa: E402
from fastff.graph import edge_vectors  # noqa: E402
from fastff.kernels.tuning import describe_machine  # noqa: E402
from fastff.models import Student, build_student, configure_student  # noqa: E402
from fastff.models.dense import lay_out_edges  # noqa: E402
from fastff.neighbors import atoms_to_graph  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
PACKAGES = (
    "ase", "dm-tree", "fennol", "flax", "jax", "jaxlib", "numpy", "orb-models", "scipy", "vesin",
)  # fmt: skip
WANTED = {"orb-v3-conservative-inf": 100.0, "orb-v3-direct-20": 15.0, "fennol ANI-1x": 8.0}


def make_student(architecture: str, sample: Atoms) -> Student:
    """An untrained student, calibrated on a structure, its forces there about 1 eV/Å."""
    torch.manual_seed(0)
    elements = tuple(int(z) for z in np.unique(sample.numbers))
    student = build_student(configure_student(architecture, elements)).float()
    graph = atoms_to_graph(sample, student.cutoff)
    vectors = edge_vectors(graph).float()
    dense = lay_out_edges(vectors, graph.edge_index, graph.n_atoms, student.cutoff)
    student.calibrate(dense.vectors, dense.senders, student.find_species(graph.numbers))
    with torch.no_grad():
        for name, value in student.named_parameters():
            if name.endswith(".message"):
                value.mul_(0.02)  # untrained messages make a second hop violent
        size = float(student(graph).forces.square().mean().sqrt())
        student.energy_scale.fill_(float(student.energy_scale) / size)
    return student.eval().requires_grad_(False)


def find_student(architecture: str, atoms: Atoms, models: list[Path]) -> tuple[Student, str]:
    """The first model file of an architecture that knows the elements, else an untrained student."""
    for path in models:
        student = load_model(path, device="cpu")
        known = set(atoms.numbers.tolist()) <= set(student.elements)
        if known and student.config.architecture == architecture:
            return student, path.name
    return make_student(architecture, atoms), "untrained"


def make_crystal(repeats: int) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    return atoms


def race_student(
    architecture: str, atoms: Atoms, models: list[Path], calls: int, device: str
) -> Iterator[Row]:
    """Calls with the list kept within its skin, calls with a list made anew every time, and the model alone."""
    atoms, frames, before = atoms.copy(), make_frames(atoms), start_memory()
    student, weights = find_student(architecture, atoms, models)
    calculator = FastFFCalculator(student, device=device)
    atoms.calc = calculator
    first = time_first(atoms, frames[0])
    path, reason = calculator.explain()
    if device == "cuda" and path != "fused":
        raise RuntimeError(f"evaluations take {path}, not the fused kernels: {reason}")
    row = {**first, **time_parts(atoms, frames, [Atoms.get_forces], calls)[0]}
    row |= {"weights": weights, "path": path, "reason": reason}
    row |= {"cutoff": student.cutoff, "skin": calculator.skin}
    session = calculator.evaluator._session
    if session is not None:
        row["builds"], row["graph_replayed"] = session.potential.n_builds, session._replay.recorded
        replayed = time_parts(atoms, frames, [lambda _: session._replay()], calls)[0]
        row["model_ms"] = replayed["median_ms"]
    shifted = [frame + np.array([1.1 * (k % 2), 0.0, 0.0]) for k, frame in enumerate(frames)]
    row["list_anew_ms"] = time_parts(atoms, shifted, [Atoms.get_forces], calls)[0]["median_ms"]
    if session is not None:
        row["builds_list_anew"] = session.potential.n_builds - row["builds"]
    row["peak_memory_bytes"] = peak_memory(before)
    row["includes"] = (
        "transfers; energy, forces, stress, atomic energies; check of the skin, list kept within it"
    )
    yield row


def find_factors(record: Row) -> list[Row]:
    """The fastest call of each teacher over each student's, and over less favourable times."""
    factors = []
    for key in ("copper", "water"):
        rows = [row for row in record.get(key, []) if "includes" in row]
        students = [row for row in rows if row["calculator"].startswith("fastff")]
        for teacher, wanted in WANTED.items():
            calls = [row for row in rows if row["calculator"] == teacher]
            best = min(calls, key=lambda row: row["median_ms"], default=None)
            for student in students if best is not None else []:
                ours = student["median_ms"]
                factors.append(
                    {
                        "atoms": student["atoms"], "student": student["calculator"],
                        "teacher": teacher, "student_ms": ours, "teacher_ms": best["median_ms"],
                        "times_faster": best["median_ms"] / ours, "wanted": wanted,
                        "times_faster_with_list_anew": best["median_ms"] / student["list_anew_ms"],
                        "times_faster_than_model_alone": best["model_ms"] / ours,
                    }
                )  # fmt: skip
    return factors


def start_record(path: Path, tiny: bool, device: str) -> Row:
    """The record of the other run if it is of this kind of machine and commit, else a new one."""
    where: Row = describe_machine(torch.device(device)) | {"cuda": torch.version.cuda, "tiny": tiny}
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    record: Row = {"provenance": {**where, "versions": versions, "command": []}, "failures": []}
    if path.is_file():
        found = json.loads(path.read_text())
        same = ("gpu", "driver", "torch", "commit", "tiny")
        if all(found["provenance"].get(key) == where[key] for key in same):
            record = found
            record["provenance"]["versions"] |= versions
    record["provenance"]["command"].append(shlex.join(["python", *sys.argv]))
    return record


def print_table(record: Row) -> None:
    print(f"{'':42s}{'call':>9s}{'graph':>9s}{'model':>9s}{'list anew':>11s}  ms{'MiB':>8s}")
    for row in record.get("copper", []) + record.get("water", []):
        keys = ("median_ms", "graph_ms", "model_ms", "list_anew_ms")
        cells = [f"{row[key]:9.3f}" if key in row else " " * 9 for key in keys]
        memory = (row.get("peak_memory_bytes") or 0) / 2**20
        title = f"{row['calculator']}, {row.get('graphs', '')}".strip(", ")
        print(f"{title:42s}{''.join(cells)}{memory:14.0f}  {row.get('error', '')[:80]}")
    for row in record["factors"]:
        print(
            f"{row['student']} against {row['teacher']}, {row['atoms']} atoms: {row['times_faster']:.1f} times "
            f"(wanted {row['wanted']:.0f}); list anew {row['times_faster_with_list_anew']:.1f}, against the teacher's "
            f"model alone {row['times_faster_than_model_alone']:.1f}"
        )


def main(arguments: list[str] | None = None) -> Row:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("orb", "fennol"), required=True)
    parser.add_argument("--tiny", action="store_true", help="small and on the CPU")
    parser.add_argument("--water", type=Path, default=DATA / "structures" / "water_1500.xyz")
    parser.add_argument("--ani", type=Path, default=DATA / "fennol_ani" / "ani1x_model0.fnx")
    parser.add_argument("--model", type=Path, action="append", default=[], help="trained student")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    tiny, models, start = chosen.tiny, chosen.model, time.time()
    device = "cpu" if tiny else "cuda"
    few, many = (2, 2) if tiny else (30, 400)
    out = chosen.out or Path(os.environ.get("OUT") or ROOT / "bench" / "results") / "race.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record = start_record(out, tiny, device)
    key = "copper" if chosen.only == "orb" else "water"
    record[key] = []
    record["failures"] = [one for one in record["failures"] if not one["what"].startswith(key)]

    def stage(name: str, work: Callable[[], Iterator[Row]]) -> bool:
        """Store every row as it comes; an error ends this calculator and no other."""

        def keep(row: Row) -> None:
            record[key].append({"calculator": name, **row})
            record["factors"] = find_factors(record)
            record[f"seconds_{chosen.only}"] = time.time() - start
            out.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{time.time() - start:.0f} s", json.dumps(record[key][-1]), flush=True)

        try:
            for row in work():
                keep(row)
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"[:500]
            record["failures"].append({"what": f"{key}: {name}", "error": text})
            keep({"error": text})
            return False
        return True

    if chosen.only == "orb":
        atoms = make_crystal(3 if tiny else 7)
        for name in ("m1", "m2"):
            stage(f"fastff {name}", lambda n=name: race_student(n, atoms, models, many, device))
        for name in list(WANTED)[:2]:
            for compiled in (False,) if tiny else (True, False):
                if stage(name, lambda n=name, c=compiled: race_orb(n, atoms, few, device, c, tiny)):
                    break  # without compilation only where that failed
    else:
        atoms = ase.io.read(chosen.water)
        stage("fastff m2", lambda: race_student("m2", atoms, models, many, device))
        stage("fennol ANI-1x", lambda: race_fennol(chosen.ani, atoms, few, device))
    print_table(record)
    return record


if __name__ == "__main__":
    main()
