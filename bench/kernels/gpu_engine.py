"""Check and time the engine between kernels and users on the GPU of this machine.

Run from the root of the repository: ``python bench/kernels/gpu_engine.py [--budget-seconds 115]``. Needs torch, triton,
ase, vesin and this repository. Writes ``gpu_engine.json`` after every stage, to the folder ``OUT`` if that variable is
set, else to ``bench/results``. The commit is read from git, or from ``FASTFF_COMMIT``. ``--tiny`` runs everything small
on the CPU (with ``TRITON_INTERPRET=1``), to see that it runs.

Order: neighbor lists of the device against vesin; the calculator on fused kernels against torch in float64, through
moves, strain, wrapping and a new structure; ``get_forces()`` of moved atoms; list builds; evaluations alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.build import bulk  # noqa: E402

from fastff import kernels  # noqa: E402
from fastff.calculator import FastFFCalculator  # noqa: E402
from fastff.evaluator import Evaluator  # noqa: E402
from fastff.graph import edge_vectors  # noqa: E402
from fastff.kernels import tuning  # noqa: E402
from fastff.kernels.neighbor_list import build_neighbors  # noqa: E402
from fastff.kernels.neighbor_list.op import list_edges  # noqa: E402
from fastff.models import Student, build_student, configure_student  # noqa: E402
from fastff.models.dense import lay_out_edges  # noqa: E402
from fastff.neighbors import atoms_to_graph, build_edges, complete_cell  # noqa: E402
from fastff.resident import ResidentPotential  # noqa: E402

FULL = (True, True, True)
SKIN = 1.0
failures: list[dict[str, str]] = []


def make_student(architecture: str, tiny: bool = False) -> Student:
    """A student of copper, calibrated, with forces of about 1 eV/Å on a rattled crystal."""
    torch.manual_seed(0)
    student = build_student(configure_student(architecture, (29,), cutoff=3.0 if tiny else 5.0))
    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.rattle(0.1, seed=1)
    graph = atoms_to_graph(atoms, student.cutoff)
    dense = lay_out_edges(
        edge_vectors(graph).float(), graph.edge_index, graph.n_atoms, student.cutoff
    )
    student.calibrate(dense.vectors, dense.senders, student.find_species(graph.numbers))
    with kernels.use("torch"), torch.no_grad():
        size = float(student(graph).forces.square().mean().sqrt())
        student.energy_scale.fill_(float(student.energy_scale) / size)
    student.composition_energies.fill_(-1000.0)
    return student.eval().requires_grad_(False)


def make_crystal(repeats: int, rattle: float = 0.05) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.positions += np.random.default_rng(0).normal(scale=rattle, size=(len(atoms), 3))
    return atoms


def list_structures(tiny: bool) -> dict[str, tuple[Atoms, float]]:
    """Structures and reach of the list checks."""
    crystal = make_crystal(1 if tiny else 7)
    skewed = crystal.copy()
    skewed.set_cell(crystal.cell.array @ [[1, 0, 0], [0.7, 1, 0], [-0.4, 0.9, 1]], scale_atoms=True)
    left = crystal.copy()
    left.set_cell(crystal.cell.array[[1, 0, 2]])
    slab = crystal.copy()
    slab.pbc, slab.cell[2] = (True, True, False), 0.0
    wire = crystal.copy()
    wire.pbc, wire.cell[0], wire.cell[1] = (False, False, True), 0.0, 0.0
    molecule = Atoms(crystal.numbers, crystal.positions)
    molecule.positions[0] += 1e5
    far = crystal.copy()
    rng = np.random.default_rng(2)
    far.positions += rng.integers(-9, 9, far.positions.shape) @ far.cell.array + 1e3
    named = {
        "crystal": crystal, "skewed": skewed, "left-handed": left, "slab": slab, "wire": wire,
        "molecule, one atom far away": molecule, "many boxes away": far,
        "conventional cell": make_crystal(1), "primitive cell": bulk("Cu"),
    }  # fmt: skip
    found = {name: (atoms, 2.6 if tiny else 6.0) for name, atoms in named.items()}
    for seed in range(2 if tiny else 60):
        rng = np.random.default_rng(seed)
        cell = rng.normal(size=(3, 3)) * rng.uniform(2.0, 8.0)
        if 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0).max() < (1.5 if tiny else 0.8):
            continue
        positions = rng.normal(size=(rng.integers(1, 9 if tiny else 200), 3)) * rng.uniform(1, 20)
        atoms = Atoms("Cu" * len(positions), positions, cell=cell, pbc=rng.random(3) < 0.5)
        found[f"random {seed}"] = (atoms, float(rng.uniform(0.5, 4.0)))
    return found


def check_lists(tiny: bool, device: torch.device) -> list[dict[str, Any]]:
    """Edges and shifts of the device list and of vesin's, which must be the same arrays."""
    rows = []
    for name, (atoms, reach) in list_structures(tiny).items():
        flags = tuple(bool(p) for p in atoms.pbc)
        cell = complete_cell(atoms.positions, atoms.cell.array, atoms.pbc, reach)
        expected = build_edges(atoms.positions, cell, atoms.pbc, reach)
        for sort_atoms in (False, True):
            found = build_neighbors(
                torch.tensor(atoms.positions, device=device), atoms.cell.array, flags, reach,
                sort_atoms=sort_atoms, n_slots=4,
            )  # fmt: skip
            pairs = [part.cpu().numpy() for part in list_edges(found)]
            same = all(np.array_equal(a, b) for a, b in zip(pairs, expected, strict=True))
            rows.append(
                {"name": name, "sorted": sort_atoms, "pairs": expected[0].shape[1], "same": same}
            )
    return rows


def compare(fast: FastFFCalculator, exact: FastFFCalculator, atoms: Atoms, what: str) -> dict:
    """Errors of the fused calculator against torch in float64."""
    fast.calculate(atoms)
    with kernels.use("torch"):
        exact.calculate(atoms)
    a, b = fast.results, exact.results
    error = a["forces"] - b["forces"]
    session = fast.evaluator._session
    return {
        "what": what,
        "atoms": len(atoms),
        "fused": session is not None,
        "graph": session is not None and session._replay.recorded,
        "builds": session.potential.n_builds if session is not None else None,
        "force_rms": float(np.sqrt((b["forces"] ** 2).mean())),
        "force_error_rms": float(np.sqrt((error**2).mean())),
        "force_error_max": float(abs(error).max()),
        "energy_error_per_atom": float(abs(a["energy"] - b["energy"]) / len(atoms)),
        "stress_error": float(abs(a["stress"] - b["stress"]).max()) if "stress" in a else None,
    }


def check_calculator(architecture: str, tiny: bool, device: torch.device) -> list[dict[str, Any]]:
    """A life of one calculator: moves within and beyond the skin, strain, wrapping, compression, other structures."""
    student = make_student(architecture, tiny)
    fast = FastFFCalculator(student, device=str(device), skin=SKIN)
    exact = FastFFCalculator(student, device=str(device), dtype="float64")
    atoms = make_crystal(1 if tiny else 5)
    rows = [{"what": "path", **fast.explain()._asdict()}]
    for step in range(2 if tiny else 6):
        rows.append(compare(fast, exact, atoms, f"move {step}"))
        atoms.rattle(0.03, seed=step)
    atoms.rattle(0.3, seed=9)
    rows.append(compare(fast, exact, atoms, "moved far"))
    if tiny:
        return rows
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.01), scale_atoms=True)
    rows.append(compare(fast, exact, atoms, "strained"))
    atoms.positions += 50.0
    rows.append(compare(fast, exact, atoms, "moved as a whole"))
    atoms.wrap()
    rows.append(compare(fast, exact, atoms, "wrapped"))
    atoms.set_cell(atoms.cell.array * 0.85, scale_atoms=True)
    rows.append(compare(fast, exact, atoms, "compressed"))
    slab = make_crystal(4)
    slab.pbc, slab.cell[2] = (True, True, False), 0.0
    rows.append(compare(fast, exact, slab, "slab"))
    rows.append(compare(fast, exact, make_crystal(14), "sorted in space"))
    rows.append(compare(fast, exact, make_crystal(1), "small cell"))
    return rows


def summarize(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {
        "median_ms": statistics.median(times) * 1e3,
        "q10_ms": ordered[len(times) // 10] * 1e3,
        "q90_ms": ordered[-1 - len(times) // 10] * 1e3,
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_calls(function: Callable[[], Any], calls: int, device: torch.device) -> dict[str, float]:
    """Wall time of calls that are waited for one by one."""
    for _ in range(min(calls, 5)):
        function()
    times = []
    for _ in range(calls):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - start)
    return summarize(times)


def time_get_forces(architecture: str, tiny: bool, device: torch.device) -> dict[str, Any]:
    """``get_forces()`` through ASE after every atom has moved, and what of it is the evaluator's."""
    atoms = make_crystal(1 if tiny else 7)
    calculator = FastFFCalculator(make_student(architecture, tiny), device=str(device), skin=SKIN)
    atoms.calc = calculator
    rng = np.random.default_rng(1)
    start = atoms.positions.copy()
    calls = 1 if tiny else 600
    moves = [start + rng.normal(scale=0.02, size=start.shape) for _ in range(8)]
    whole, alone = [], []
    evaluator = calculator.evaluator
    arguments = atoms.cell.array, atoms.pbc, atoms.numbers
    for k in range(calls + 10):
        atoms.positions[:] = moves[k % 8]
        begin = time.perf_counter()
        atoms.get_forces()
        whole.append(time.perf_counter() - begin)
    for k in range(calls):
        begin = time.perf_counter()
        evaluator.evaluate(moves[k % 8], *arguments)
        alone.append(time.perf_counter() - begin)
    far = [start + rng.normal(scale=0.4, size=start.shape) for _ in range(1 if tiny else 40)]
    rebuilt = []
    for positions in far:
        begin = time.perf_counter()
        evaluator.evaluate(positions, *arguments)
        rebuilt.append(time.perf_counter() - begin)
    session = evaluator._session
    assert session is not None
    return {
        "architecture": architecture,
        "atoms": len(atoms),
        "get_forces": summarize(whole[10:] if len(whole) > 20 else whole),
        "evaluate": summarize(alone),
        "evaluate_with_rebuild": summarize(rebuilt),
        "replay": time_calls(session._replay, 1 if tiny else 200, device),
        "builds": session.potential.n_builds,
    }


def time_list(repeats: int, tiny: bool, device: torch.device) -> dict[str, Any]:
    """A list of reach 6 Å in buffers that are there, per atom."""
    atoms = make_crystal(repeats)
    positions = torch.tensor(atoms.positions, device=device)
    reach = 2.6 if tiny else 6.0
    cell = atoms.cell.array
    sort_atoms = len(atoms) >= 10_000
    kept = build_neighbors(positions, cell, FULL, reach, sort_atoms=sort_atoms)

    def build() -> None:
        build_neighbors(positions, cell, FULL, reach, sort_atoms=sort_atoms, out=kept.matrix)

    row = time_calls(build, 2 if tiny else 20, device)
    return {
        "atoms": len(atoms),
        "neighbors": float(kept.matrix.counts.float().mean()),
        "ns_per_atom": row["median_ms"] * 1e6 / len(atoms),
        **row,
    }


def time_compute(
    architecture: str, repeats: int, tiny: bool, device: torch.device
) -> dict[str, Any]:
    """``check`` and ``compute`` of a resident potential, replayed from a graph as dynamics does."""
    from fastff.kernels.replay import Replay

    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    atoms = make_crystal(repeats)
    student = make_student(architecture, tiny).to(device)
    potential = ResidentPotential(student, skin=SKIN)  # type: ignore[arg-type]
    potential.attach(
        torch.tensor(atoms.positions, device=device),
        torch.tensor(atoms.numbers, device=device),
        torch.tensor(atoms.cell.array.copy(), device=device),
        torch.tensor(atoms.pbc),
    )
    row: dict[str, Any] = {"architecture": architecture, "atoms": len(atoms)}
    for name, function in (("compute", potential.compute), ("check", potential.check)):
        replay = Replay(function, device)
        for _ in range(4):
            replay()
        wait(device)
        single = time_calls(replay, 2, device)["median_ms"] / 1e3
        block = 1 if tiny else max(1, min(200, int(0.2 / single)))
        times = []
        for _ in range(2 if tiny else 5):
            wait(device)
            start = time.perf_counter()
            for _ in range(block):
                replay()
            wait(device)
            times.append((time.perf_counter() - start) / block)
        row[name] = summarize(times)
    row["rebuild"] = time_calls(potential.rebuild, 1 if tiny else 5, device)
    row["atom_steps_per_s"] = len(atoms) / row["compute"]["median_ms"] * 1e3
    row["finite"] = bool(potential.forces.isfinite().all())
    if device.type == "cuda":
        row["bytes_per_atom"] = torch.cuda.max_memory_allocated() / len(atoms)
    return row


def store(record: dict[str, Any]) -> None:
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_engine.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=115.0)
    parser.add_argument("--tiny", action="store_true", help="small and on the CPU")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    device = torch.device("cpu") if tiny else torch.device("cuda", torch.cuda.current_device())
    record: dict[str, Any] = {"provenance": tuning.describe_machine(device), "failures": failures}
    record["provenance"]["commit"] = (
        os.environ.get("FASTFF_COMMIT") or record["provenance"]["commit"]
    )

    def stage(key: str, least: float, work: Callable[[], Any]) -> None:
        if start + arguments.budget_seconds - time.time() < least:
            failures.append({"what": key, "error": "no time left"})
            return
        try:
            record[key] = work()
            print(key, f"{time.time() - start:.0f} s", json.dumps(record[key]), flush=True)
        except Exception as error:
            traceback.print_exc()
            failures.append({"what": key, "error": f"{type(error).__name__}: {error}"[:500]})
        record["seconds"] = time.time() - start
        store(record)

    def report_lists() -> dict[str, Any]:
        rows = check_lists(tiny, device)
        return {"checked": len(rows), "different": [row for row in rows if not row["same"]]}

    with kernels.use("triton"):
        stage("lists", 5, report_lists)
        for name in ("m1", "m2"):
            stage(f"calculator {name}", 5, lambda n=name: check_calculator(n, tiny, device))
            stage(f"get_forces {name}", 5, lambda n=name: time_get_forces(n, tiny, device))
        sizes = (1,) if tiny else (7, 30, 63)
        for repeats in sizes:
            stage(f"list {repeats}", 4, lambda r=repeats: time_list(r, tiny, device))
        for repeats in sizes:
            for name in ("m1", "m2"):
                stage(
                    f"compute {name} {repeats}", 5,
                    lambda n=name, r=repeats: time_compute(n, r, tiny, device),
                )  # fmt: skip
    if not tiny:
        evaluator = Evaluator(make_student("m1").to(device))
        record["auto"] = evaluator.explain()._asdict()
    record["seconds"] = time.time() - start
    store(record)
    print(f"failures: {failures}\n{record['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
