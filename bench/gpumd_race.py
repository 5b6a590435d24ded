"""GPUMD and fastff on the same copper crystals, one after the other on the GPU of this machine.

Run from the root of the repository, for example

    python bench/gpumd_race.py --gpumd gpumd --nep UNEP-v1.txt --models m1.safetensors m2.safetensors

Needs what ``bench/md_gpu.py`` needs; GPUMD and its potential are the user's. Every side does NVE dynamics of the same
fcc crystals, rattled by 0.02 Å, with velocities drawn at 300 K and steps of 1 fs, upkeep of neighbor lists included:
GPUMD as the program itself reports it, fastff by the wall time of the loop behind ``fastff md`` with the skin it
chooses. At every size: a warm-up, then several parts timed one by one. A rate is all timed atom-steps over all timed
seconds, so no rebuild is left out; the record has every part. Models must be trained ones, so that the crystal holds:
its displacements from the lattice and counted neighbors are stored. ``--tiny`` takes untrained ones.

Writes the record after every size, to ``--out``, else to ``gpumd_race.json`` in the folder ``OUT`` if that variable is
set or in ``bench/results``. The commit is read from git, or from ``FASTFF_COMMIT``. Without ``--gpumd`` only fastff is
timed. ``--tiny`` runs everything small on the CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.build import bulk  # noqa: E402
from md_models import make_copper  # noqa: E402

from fastff.checkpoint import load_model  # noqa: E402
from fastff.kernels import tuning  # noqa: E402
from fastff.md.engine import Engine  # noqa: E402
from fastff.md.potentials import make_potential  # noqa: E402
from fastff.md.settings import MDSettings  # noqa: E402
from fastff.md.skin import settle_skin  # noqa: E402
from fastff.md.state import build_state  # noqa: E402
from fastff.models import Student  # noqa: E402
from fastff.report.gpumd import time_gpumd  # noqa: E402
from fastff.teachers.weights import hash_file  # noqa: E402
from fastff.units import BOLTZMANN_EV_PER_K  # noqa: E402

Row = dict[str, Any]
CONSTANT, RATTLE = 3.615, 0.02
TEMPERATURE, TIME_STEP = 300.0, 1.0
N_PARTS = 5
GPUMD_SKIN = 1.0
"""Å; fixed in its source."""
MOST_PILOT_ATOMS = 110_000
COUNTS = (
    "neighbors",
    "listed",
    "neighbors_gpumd_radial",
    "neighbors_gpumd_angular",
    "listed_gpumd",
)


def make_crystal(n_atoms: int) -> tuple[Atoms, np.ndarray]:
    """The cubic crystal nearest to ``n_atoms``, rattled, and its sites."""
    repeats = max(round((n_atoms / 4) ** (1 / 3)), 4)
    atoms = bulk("Cu", a=CONSTANT, cubic=True).repeat(repeats)
    sites = atoms.positions.copy()
    atoms.positions += np.random.default_rng(0).normal(scale=RATTLE, size=sites.shape)
    return atoms, sites


def read_cutoffs(nep: Path) -> tuple[float, float]:
    """Radial and angular cut-off of a NEP model, Å; the first ones if it has one of each per element."""
    with nep.open(encoding="utf-8") as file:
        for words in (line.split() for line in file):
            if words[:1] == ["cutoff"]:
                return float(words[1]), float(words[2])
    raise SystemExit(f"{nep} has no line that begins with 'cutoff'")


def describe_gpumd(arguments: argparse.Namespace) -> Row:
    """Which program and which potential."""
    with tempfile.TemporaryDirectory() as folder:  # without input it says its version and ends
        done = subprocess.run(
            [str(arguments.gpumd.resolve())], cwd=folder, capture_output=True, text=True, timeout=60
        )
    radial, angular = read_cutoffs(arguments.nep)
    return {
        "version": (re.findall(r"version\s+(\S+)", done.stdout) or [None])[0], "source": arguments.gpumd_source,
        "sha256": hash_file(arguments.gpumd), "nep": arguments.nep.name,
        "nep_sha256": hash_file(arguments.nep), "radial_cutoff_A": radial, "angular_cutoff_A": angular,
        "skin_A": GPUMD_SKIN,
    }  # fmt: skip


def count_neighbors(positions: torch.Tensor, side: float, radii: Sequence[float]) -> list[float]:
    """Mean neighbors within each radius around some atoms of a periodic cube, radii less than half its side."""
    if max(radii) > 0.5 * side:
        raise ValueError(f"a cube of {side:.1f} Å is too small to count within {max(radii)} Å")
    picked = np.random.default_rng(1).choice(len(positions), min(32, len(positions)), replace=False)
    counts = np.zeros(len(radii))
    for i in picked.tolist():
        apart = positions - positions[i]
        squared = (apart - side * torch.round(apart / side)).square().sum(dim=1)
        counts += [int((squared < radius**2).sum()) - 1 for radius in radii]
    return [float(count) for count in counts / len(picked)]


def rate(program: str, n_atoms: int, n_steps: int, seconds: Sequence[float]) -> Row:
    """A row from timed parts of ``n_steps`` steps each."""
    per_step = np.array(seconds) / n_steps
    return {
        "program": program, "atoms": n_atoms, "steps": n_steps * len(seconds),
        "atom_steps_per_s": float(n_atoms / per_step.mean()),
        "median_atom_steps_per_s": float(n_atoms / np.median(per_step)),
        "ms_per_step": float(per_step.mean() * 1e3), "ns_per_day": float(TIME_STEP * 0.0864 / per_step.mean()),
        "parts_ms_per_step": [float(value * 1e3) for value in per_step],
    }  # fmt: skip


def race_gpumd(atoms: Atoms, arguments: argparse.Namespace) -> Row:
    """GPUMD's own speed; a run before, if need be of a smaller crystal, chooses the number of steps."""
    pilot, _ = make_crystal(min(len(atoms), MOST_PILOT_ATOMS))
    _, curve = time_gpumd(
        arguments.gpumd, arguments.nep, [pilot, atoms], temperature=TEMPERATURE, time_step=TIME_STEP,
        budget=arguments.seconds_per_size, device="cuda",
    )  # fmt: skip
    point = curve.points[-1]
    if len(curve.points) != 2 or point.status != "measured":
        raise RuntimeError(f"GPUMD at {point.n_atoms} atoms: {point.status}, {point.reason}")
    n_steps = int(re.findall(r"\d+", point.reason)[0])
    row = rate("GPUMD", len(atoms), n_steps, [value * n_steps for value in point.seconds])
    return row | {"warm_up_steps": n_steps}


def advance(engine: Engine, step: int) -> float:
    """Run to a step; seconds that it took."""
    begun = time.perf_counter()
    while engine.step < step:
        if engine.advance(step).failed:
            raise RuntimeError(f"unstable after step {engine.step}")
    if engine.state.positions.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def name_program(student: Student) -> str:
    return f"fastff {student.config.architecture}, {student.cutoff:g} Å"


def race_student(
    student: Student, atoms: Atoms, sites: np.ndarray, seconds: float, least: int, reaches: Sequence[float]
) -> Row:  # fmt: skip
    """Whole steps of fastff's dynamics: at least ``least`` and about ``seconds``."""
    started = time.perf_counter()
    settings = MDSettings(
        n_steps=10**9, ensemble="nve", temperature=TEMPERATURE, timestep=TIME_STEP, interval=100
    )
    state = build_state(atoms, settings, student.device)
    settings = settle_skin(student, atoms, settings)
    engine = Engine(make_potential(student, settings.skin), state, settings)
    advance(engine, least // 15)
    least_warm = min(3_000_000 // len(atoms), 1000) if student.device.type == "cuda" else 0
    warm = engine.step + max(least // 3, least_warm)
    pace = advance(engine, warm) / (warm - least // 15)
    n_steps = max(round(seconds / N_PARTS / pace), -(-least // N_PARTS))
    ready, rebuilds = time.perf_counter() - started, engine.n_rebuilds
    parts = [advance(engine, warm + n_steps * (k + 1)) for k in range(N_PARTS)]
    row = rate(name_program(student), len(atoms), n_steps, parts)

    away = state.positions - torch.from_numpy(sites).to(state.positions.device)
    away -= away.mean(dim=0)
    kinetic = 0.5 * float((state.masses * state.velocities.square()).sum())
    radii = [student.cutoff, student.cutoff + settings.skin, *reaches]
    counts = count_neighbors(state.positions, float(atoms.cell[0, 0]), radii)
    row |= dict(zip(COUNTS, counts, strict=False))
    row |= {
        "cutoff_A": student.cutoff, "skin_A": settings.skin, "warm_up_steps": warm,
        "rebuilds": engine.n_rebuilds - rebuilds, "kernels": engine._kernels is not None,
        "path": type(engine.potential).__name__,
        "temperature_K": 2.0 * kinetic / (state.n_free * BOLTZMANN_EV_PER_K),
        "rms_displacement_A": float(away.square().sum(dim=1).mean().sqrt()),
        "seconds_to_start": ready,
    }  # fmt: skip
    return row


def tabulate(rows: Sequence[Row]) -> str:
    """Rates in million atom-steps per second, and ratios."""
    programs = list(dict.fromkeys(row["program"] for row in rows))
    lines = ["| atoms | " + " | ".join(programs) + " |", "|---:|" + "---:|" * len(programs)]
    for n in sorted({row["atoms"] for row in rows}):
        cells = []
        for program in programs:
            row = next((r for r in rows if (r["atoms"], r["program"]) == (n, program)), None)
            cell = "" if row is None else f"{row['atom_steps_per_s'] / 1e6:.3g} M/s"
            ratio = None if row is None else row.get("ratio_to_gpumd")
            cells.append(cell if ratio is None else f"{cell} ({ratio:.2f} x)")
        lines.append(f"| {n:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load_students(paths: Sequence[Path], device: torch.device) -> list[tuple[Student, Row]]:
    """Students and what the record says of them."""
    found = [
        (load_model(p, device=device), {"file": p.name, "sha256": hash_file(p)}) for p in paths
    ]
    for name in () if paths else ("m1", "m2"):
        found.append((make_copper(name, force=0.003).to(device), {"file": "untrained"}))
    return [
        (student, said | {
            "program": name_program(student), "cutoff_A": student.cutoff,
            "parameters": sum(p.numel() for p in student.parameters()),
        })
        for student, said in found
    ]  # fmt: skip


def main() -> None:
    begun, folder = time.time(), Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpumd", type=Path, help="its executable")
    parser.add_argument("--gpumd-source", help="for the record: commit of its source, compiler")
    parser.add_argument("--nep", type=Path, help="a NEP model that knows copper")
    parser.add_argument("--models", type=Path, nargs="+", default=[])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1372, 11_000, 110_000, 1_000_000])
    parser.add_argument("--seconds-per-size", type=float, default=3.0, help="of every program")
    parser.add_argument("--budget-seconds", type=float, default=150.0, help="no row starts after")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    if not (arguments.models or tiny) or (arguments.gpumd is None) != (arguments.nep is None):
        parser.error("give trained --models of copper, and both --gpumd and --nep or neither")
    out = arguments.out or folder / "gpumd_race.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if tiny else "cuda")
    sizes, least = ([256], 30) if tiny else (arguments.sizes, 300)
    record: Row = {"provenance": tuning.describe_machine(device)}
    record["provenance"]["command"] = shlex.join(["python", *sys.argv])
    record["conditions"] = {
        "structure": f"fcc Cu, a = {CONSTANT} Å, rattled by {RATTLE} Å", "ensemble": "nve",
        "start_temperature_K": TEMPERATURE, "time_step_fs": TIME_STEP, "weights": "speed does not depend on values",
        "timed": "whole steps, neighbor lists included, after a warm-up; all timed steps over all timed seconds",
    }  # fmt: skip
    students = load_students(arguments.models, device)
    record["models"] = [said for _, said in students]
    record |= {"rates": [], "failures": []}
    reaches: tuple[float, ...] = ()

    def stage(what: str, work: Callable[..., Row], *values: Any) -> Row | None:
        row = None
        gc.collect()  # an engine and its graphs refer to each other
        torch.cuda.empty_cache()
        try:
            if time.time() - begun > arguments.budget_seconds:
                raise TimeoutError("no time left")
            row = work(*values)
        except Exception as error:
            record["failures"].append({"what": what, "error": repr(error)[:300]})
            traceback.print_exc(limit=-3)
        record["seconds"] = time.time() - begun
        return row

    if arguments.gpumd is not None:
        record["gpumd"] = stage("describe GPUMD", describe_gpumd, arguments)
        radial, angular = read_cutoffs(arguments.nep)
        reaches = (radial, angular, radial + GPUMD_SKIN)
    for size in sizes:
        atoms, sites = make_crystal(size)
        against = None
        if arguments.gpumd is not None:
            against = stage(f"GPUMD, {size}", race_gpumd, atoms, arguments)
        rows = [against]
        for student, _ in students:
            span = (0.2 if tiny else 1.0) * arguments.seconds_per_size
            values = (student, atoms, sites, span, least, reaches)
            row = stage(f"{name_program(student)}, {size}", race_student, *values)
            if row is not None and against is not None:
                row["ratio_to_gpumd"] = row["atom_steps_per_s"] / against["atom_steps_per_s"]
            rows.append(row)
        for row in filter(None, rows):
            record["rates"].append(row)
            print(f"[{time.time() - begun:5.1f} s] {json.dumps(row)}", flush=True)
        out.write_text(json.dumps(record, indent=1) + "\n")
    print(tabulate(record["rates"]))
    print(f"failures: {record['failures']}\n{record['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
