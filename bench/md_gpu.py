"""Check and time molecular dynamics on the GPU of this machine.

Run from the root of the repository: ``python bench/md_gpu.py [--budget-seconds 115]``. Needs torch, triton, ase, vesin,
h5py and this repository. Writes ``md_gpu.json`` after every stage, to the folder ``OUT`` if that variable is set, else
to ``bench/results``; prints one line per row. The commit is read from git, or from ``FASTFF_COMMIT``. ``--tiny`` runs
everything small on the CPU, to see that it runs. ``--million`` runs a million atoms for 1,000 steps with all files
instead and writes ``md_million.json``. Models are untrained ones of copper, whose forces are scaled down until they are
stable; drift of trained ones: ``bench/md_statistics.py``.

Order: graphs against eager steps, thin against thick skins, a restart against no restart, bit for bit or nearly; whole
steps at 1,372 atoms for every ensemble, with their parts: evaluation, skin check, both halves, a rebuild, reading the
flags; halves in Triton against halves in torch; drift of the energy; rates at 108,000 and a million atoms beside those
of the evaluation alone. No stage starts that the budget does not hold.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from ase import Atoms  # noqa: E402
from ase.build import bulk  # noqa: E402
from md_models import make_copper  # noqa: E402

from fastff.kernels import tuning  # noqa: E402
from fastff.kernels.replay import Replay  # noqa: E402
from fastff.md.engine import Engine  # noqa: E402
from fastff.md.observe import COLUMNS  # noqa: E402
from fastff.md.potentials import make_potential  # noqa: E402
from fastff.md.run import simulate  # noqa: E402
from fastff.md.settings import MDSettings  # noqa: E402
from fastff.md.skin import settle_skin  # noqa: E402
from fastff.md.snapshot import take_restart  # noqa: E402
from fastff.md.state import build_state  # noqa: E402
from fastff.models import Student  # noqa: E402

Row = dict[str, Any]
FORCES = {"m1": 0.003, "m2": 0.003}
"""eV/Å; untrained students are violent, so they hardly act: core repulsion keeps the atoms of a dense fluid apart."""
CASES: tuple[tuple[str, dict[str, str]], ...] = (
    ("nve", {"ensemble": "nve"}),
    ("nvt langevin", {"ensemble": "nvt"}),
    ("nvt rescale", {"ensemble": "nvt", "thermostat": "rescale"}),
    ("npt isotropic", {"ensemble": "npt", "thermostat": "rescale"}),
    ("npt anisotropic", {"ensemble": "npt", "barostat": "anisotropic"}),
)


def make_crystal(repeats: int, rattle: float = 0.02) -> Atoms:
    atoms = bulk("Cu", cubic=True).repeat(repeats)
    atoms.positions += np.random.default_rng(0).normal(scale=rattle, size=(len(atoms), 3))
    return atoms


def build_model(architecture: str, device: torch.device) -> Student:
    """An untrained student of copper with :data:`FORCES` on a crystal rattled by 0.1 Å."""
    return make_copper(architecture, force=FORCES[architecture]).to(device)


class TorchHalves(Engine):
    """An engine whose halves of a step are torch, whatever the device."""

    def _choose_kernels(self) -> None:
        return None


def make_engine(
    student: Student, atoms: Atoms, settings: MDSettings, *, graphs: bool = True, kind: type[Engine] = Engine
) -> Engine:  # fmt: skip
    potential = make_potential(student, settings.skin)
    engine = kind(potential, build_state(atoms, settings, student.device), settings)
    if not graphs:
        for replay in engine._replays:
            replay._device = torch.device("cpu")  # a replay records on CUDA alone
    return engine


def run_to(engine: Engine, step: int) -> np.ndarray:
    """Advance; rows recorded on the way."""
    rows = [np.zeros((0, len(COLUMNS)))]
    while engine.step < step:
        progress = engine.advance(step)
        if progress.failed:
            raise RuntimeError(f"unstable after step {progress.step}")
        rows.append(progress.rows)
    return np.concatenate(rows)


def wait(engine: Engine) -> None:
    if engine.state.positions.is_cuda:
        torch.cuda.synchronize()


def check_equality(student: Student, name: str, changes: dict[str, str], tiny: bool) -> Row:
    """Largest differences of positions in Å between runs that should be the same."""
    atoms = make_crystal(2 if tiny else 5)
    n = 30 if tiny else 300
    base = MDSettings(
        n_steps=n, temperature=900.0, skin=0.4, relaxation=50.0, interval=10, compressibility=0.1, **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    first = make_engine(student, atoms, base)
    run_to(first, n)
    eager = make_engine(student, atoms, base, graphs=False)
    run_to(eager, n)
    thick = make_engine(student, atoms, replace(base, skin=2.0))
    run_to(thick, n)
    half = make_engine(student, atoms, base)
    run_to(half, n // 2)
    kept = take_restart(half).read()
    state = build_state(atoms, base, student.device)
    for field in ("positions", "velocities", "cell", "heat", "work", "slope"):
        getattr(state, field).copy_(torch.from_numpy(kept[field]))
    state.step.fill_(n // 2)
    reference = tuple(
        torch.from_numpy(kept[f]).to(student.device) for f in ("list_positions", "list_cell")
    )
    again = Engine(make_potential(student, base.skin), state, base, reference)  # type: ignore[arg-type]
    run_to(again, n)

    def differ(other: Engine) -> float:
        return float((other.state.positions - first.state.positions).abs().max())

    return {
        "case": name, "atoms": len(atoms), "steps": n, "rebuilds": first.n_rebuilds,
        "recorded": bool(first._replays) and first._replays[0].recorded,
        "graphs_or_not": differ(eager), "restart_or_not": differ(again), "thin_or_thick_skin": differ(thick),
    }  # fmt: skip


def compare_halves(student: Student, name: str, changes: dict[str, str], tiny: bool) -> Row:
    """Largest differences after a few steps between halves in Triton and in torch, of the same evaluation."""
    settings = MDSettings(n_steps=20, temperature=600.0, relaxation=50.0, interval=5, **changes)  # type: ignore[arg-type]
    engines = [
        make_engine(student, make_crystal(2 if tiny else 5), settings, kind=kind) for kind in (Engine, TorchHalves)
    ]  # fmt: skip
    rows = [run_to(engine, 20) for engine in engines]
    one, other = (engine.state for engine in engines)
    return {
        "case": name, "kernels": [engine._kernels is not None for engine in engines],
        "positions_A": float((one.positions - other.positions).abs().max()),
        "velocities": float((one.velocities - other.velocities).abs().max()),
        "heat_eV": float((one.heat - other.heat).abs()), "rows": float(np.abs(rows[0] - rows[1]).max()),
    }  # fmt: skip


def time_steps(
    student: Student, repeats: int, name: str, changes: dict[str, str], compiled: bool, seconds: float,
    kind: type[Engine] = Engine, skin: float | None = None,
) -> Row:  # fmt: skip
    """Wall time of a whole warm step: list upkeep, forces, integrator, flags, one row per 100 steps.

    The skin is the one ``fastff md`` chooses, if none is given.
    """
    atoms = make_crystal(repeats)
    settings = MDSettings(
        n_steps=10**9, temperature=300.0, compile_steps=compiled, interval=100, **changes,  # type: ignore[arg-type]
    )  # fmt: skip
    settings = replace(settings, skin=skin) if skin else settle_skin(student, atoms, settings)
    if student.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    engine = make_engine(student, atoms, settings, kind=kind)
    run_to(engine, 20)
    wait(engine)
    ready = time.perf_counter() - begun
    if student.device.type == "cuda":  # lists settle: no kernel is compiled, no graph captured anew
        run_to(engine, min(max(3_000_000 // len(atoms), 20), 1000))
        wait(engine)
    first, rebuilds, begun = engine.step, engine.n_rebuilds, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        if engine.advance(settings.n_steps).failed:
            raise RuntimeError(f"unstable after step {engine.step}")
    wait(engine)
    passed, n_steps = time.perf_counter() - begun, engine.step - first
    row: Row = {
        "model": student.config.architecture, "case": name, "compiled": compiled, "atoms": len(atoms),
        "kernels": engine._kernels is not None, "skin_A": settings.skin, "steps": n_steps,
        "ms_per_step": passed / max(n_steps, 1) * 1e3,
        "atom_steps_per_s": n_steps * len(atoms) / passed, "rebuilds": engine.n_rebuilds - rebuilds,
        "ns_per_day": n_steps / passed * 0.0864, "seconds_to_start": ready,
    }  # fmt: skip
    row["evaluation_ms"] = time_graph(engine, engine.potential.compute, 0.3 * seconds)
    row["check_ms"] = time_graph(engine, engine.potential.check, 0.05 * seconds)
    row["halves_ms"] = time_halves(engine, 0.1 * seconds)
    row["rebuild_ms"] = time_calls(engine, engine.potential.rebuild, 0.1 * seconds)
    row["flags_ms"] = time_calls(engine, engine._read, 0.1 * seconds)
    row["share_of_evaluation_rate"] = row["evaluation_ms"] / row["ms_per_step"]
    if student.device.type == "cuda":
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return row


def time_graph(engine: Engine, work: Callable[[], None], seconds: float) -> float:
    """Milliseconds of some launches alone over the same list, as a graph, without reading anything back."""
    replay = Replay(work, engine.state.positions.device)
    for _ in range(4):
        replay()
    wait(engine)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        for _ in range(8):
            replay()
        wait(engine)
        count += 8
    return (time.perf_counter() - begun) / count * 1e3


def time_halves(engine: Engine, seconds: float) -> float:
    """Milliseconds of both halves of a step, with nothing between them, while nothing may move."""
    potential, state = engine.potential, engine.state
    target = state.target.clone()
    state.target.fill_(-1)
    if engine._kernels is None:
        stands = state.failed.clone().fill_(False)

        def both() -> None:
            engine._begin_step(stands)
            engine._finish_step(stands)
    else:
        kernels = engine._kernels

        def both() -> None:
            kernels.begin(potential.forces)
            kernels.finish(potential.forces, potential.energy, potential.stale)

    found = time_graph(engine, both, seconds)
    state.target.copy_(target)
    return found


def time_calls(engine: Engine, work: Callable[[], Any], seconds: float) -> float:
    """Milliseconds of a call that waits for the device."""
    work()
    wait(engine)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        work()
        count += 1
    wait(engine)
    return (time.perf_counter() - begun) / count * 1e3


def measure_drift(student: Student, atoms: Atoms, picoseconds: float, name: str) -> Row:
    """Slope of the total energy in NVE at 1 fs."""
    n_steps = int(picoseconds * 1000)
    settings = MDSettings(n_steps=n_steps, ensemble="nve", temperature=300.0, interval=50)
    engine = make_engine(student, atoms, settings)
    rows = run_to(engine, n_steps)
    column = {key: rows[:, k] for k, key in enumerate(COLUMNS)}
    conserved = column["conserved_eV"] - column["conserved_eV"][0]
    slope = float(np.polyfit(column["step"] / 1000.0, conserved, 1)[0])
    return {
        "model": name, "atoms": len(atoms), "picoseconds": picoseconds,
        "drift_meV_per_atom_ps": slope * 1e3 / len(atoms),
        "drift_over_kinetic_deviation": abs(float(conserved[-1])) / float(column["kinetic_eV"].std()),
        "energy_deviation_meV_per_atom": float(conserved.std()) * 1e3 / len(atoms),
        "temperature_K": float(column["temperature_K"][len(rows) // 5 :].mean()), "rebuilds": engine.n_rebuilds,
    }  # fmt: skip


def run_million(student: Student, repeats: int, n_steps: int) -> Row:
    """A whole run with log, trajectory and restart files."""
    atoms = make_crystal(repeats)
    settings = MDSettings(
        n_steps=n_steps, ensemble="nve", temperature=300.0, interval=max(n_steps // 20, 1),
        frame_interval=n_steps // 2, restart_interval=n_steps // 2,
    )  # fmt: skip
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = settle_skin(student, atoms, settings)
        result = simulate(make_potential(student, settings.skin), atoms, settings, out)
        sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    row: Row = {
        "model": student.config.architecture, "atoms": len(atoms), "steps": result.step,
        "skin_A": settings.skin, "ns_per_day": result.ns_per_day, "ms_per_step": result.seconds / n_steps * 1e3,
        "atom_steps_per_s": n_steps * len(atoms) / result.seconds, "rebuilds": result.n_rebuilds,
        "drift_meV_per_atom_ps": result.summary.drift, "temperature_K": result.summary.temperature.mean,
        "seconds_with_files_and_start": time.perf_counter() - begun, "bytes": sizes,
    }  # fmt: skip
    if student.device.type == "cuda":
        row["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    return row


def store(record: Row) -> None:
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("md_million.json" if "million" in record else "md_gpu.json")).write_text(
        json.dumps(record, indent=1) + "\n"
    )


def main() -> None:
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget-seconds", type=float, default=115.0)
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    parser.add_argument("--million", action="store_true", help="only a million atoms, 1,000 steps")
    arguments = parser.parse_args()
    tiny = arguments.tiny
    device = torch.device("cpu" if tiny else "cuda")
    record: Row = {"provenance": tuning.describe_machine(device), "failures": []}
    commit = os.environ.get("FASTFF_COMMIT")
    record["provenance"]["commit"] = commit or record["provenance"].get("commit")

    def stage(key: str, least: float, work: Callable[..., Row], *values: Any) -> None:
        what = f"{key} {[v for v in values if not isinstance(v, Student | Atoms)]}"
        if start + arguments.budget_seconds - time.time() < least:
            record["failures"].append({"what": what, "error": "no time left"})
            return
        gc.collect()  # an engine and its graphs refer to each other
        if not tiny:
            torch.cuda.empty_cache()
        try:
            row = work(*values)
            record.setdefault(key, []).append(row)
            print(f"[{time.time() - start:5.1f} s] {key} {json.dumps(row)}", flush=True)
        except Exception as error:
            line = (str(error).splitlines() or [""])[0][:300]
            record["failures"].append({"what": what, "error": f"{type(error).__name__}: {line}"})
            print(f"FAILED {what}", flush=True)
            traceback.print_exc(limit=-3)
        record["seconds"] = time.time() - start
        store(record)

    students = {name: build_model(name, device) for name in ("m1", "m2")}
    if arguments.million:
        for student in students.values():
            stage("million", 0, run_million, student, 3 if tiny else 63, 20 if tiny else 1000)
        print(f"failures: {record['failures']}\n{record['seconds']:.0f} s in all")
        return
    span = 0.2 if tiny else 1.5
    small, middle, large = (2, 2, 3) if tiny else (7, 30, 63)
    for student in students.values():
        stage("steps", 6, time_steps, student, small, *CASES[0], False, span)
    for name, changes in (CASES[0], CASES[3]):
        stage("equality", 6, check_equality, students["m1"], name, changes, tiny)
    for student in students.values():
        stage("rates", 8, time_steps, student, middle, *CASES[0], False, span)
        stage("rates", 12, time_steps, student, large, *CASES[0], False, 2 * span)
    for student in students.values():
        for repeats in (small, middle):
            for skin in (0.3, 0.5, 1.0):
                stage(
                    "skins", 6, time_steps, student, repeats, *CASES[0], False, span, Engine, skin
                )
    for name, student in students.items():
        stage("drift", 8, measure_drift, student, make_crystal(small), 0.1 if tiny else 20.0, name)
    for case in CASES[1:]:
        stage("steps", 5, time_steps, students["m1"], small, *case, False, span)
    stage("steps", 5, time_steps, students["m1"], small, *CASES[0], False, span, TorchHalves)
    for case in (CASES[1], CASES[2]):
        stage("equality", 6, check_equality, students["m1"], *case, tiny)
    for case in CASES[:3]:
        stage("halves", 4, compare_halves, students["m1"], *case, tiny)
    stage("equality", 6, check_equality, students["m2"], *CASES[4], tiny)
    if not tiny:  # compilers on the host take long
        stage("steps", 15, time_steps, students["m1"], small, *CASES[3], True, span)
        stage(
            "halves compiled",
            15,
            time_steps,
            students["m1"],
            middle,
            *CASES[0],
            True,
            span,
            TorchHalves,
        )
    record["seconds"] = time.time() - start
    store(record)
    print(f"failures: {record['failures']}\n{record['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
