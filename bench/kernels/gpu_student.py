"""Check and time the fused evaluation of m1 and m2 on the GPU of this machine.

Run from the root of the repository: ``python bench/kernels/gpu_student.py [--budget-seconds 235]``. Needs torch, triton
and this repository alone. Writes ``gpu_student.json`` after every stage, to the folder ``OUT`` if that variable is set,
else to ``bench/results``; prints a table last. The commit is read from git, or from ``FASTFF_COMMIT``.

Order: compile every kernel and launch variant in processes of their own, which also shows whether it runs; check with
the float64 definition (poisoned buffers, fresh seeds, two runs bit for bit); measure ceilings; time every kernel at
108,000 atoms, and with ``scatter="store"`` those that differ, and whole evaluations; time whole evaluations at all
sizes, of m2-l too; time the other launch variants, in a process apart because one that fails takes the device context
with it. No stage starts that the budget does not hold. Definitions and generic ops beside torch: ``fastff bench
--kernels``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from student_launches import (  # noqa: E402
    CHECKS,
    REACH,
    STORED,
    list_calls,
    list_jobs,
    list_stored_calls,
    make_weights,
)
from student_report import print_checks, print_record, rate_kernels, store  # noqa: E402
from student_timing import DEVICE, capture, measure, measure_ceilings  # noqa: E402

from fastff.kernels import tuning  # noqa: E402
from fastff.kernels.moment_potential.cases import System, build_lattice  # noqa: E402
from fastff.kernels.moment_potential.evaluate import FusedPotential  # noqa: E402
from fastff.kernels.moment_potential.op import convert_weights  # noqa: E402
from fastff.kernels.moment_potential.reference import evaluate_reference  # noqa: E402
from fastff.kernels.moment_potential.workspace import Options, Workspace  # noqa: E402

SIZES = (7, 14, 30, 63, 171)
failures: list[dict[str, str]] = []


@contextlib.contextmanager
def survive(what: str) -> Iterator[None]:
    """Record a failure and go on."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        failures.append({"what": what, "error": f"{type(error).__name__}: {lines[0][:300]}"})
        print(f"FAILED {what}: {type(error).__name__}: {lines[0][:200]}", flush=True)
        traceback.print_exc(limit=-2)


def compile_jobs(start: int, stride: int) -> None:
    """Child process: launch every stride-th job once over a tiny system of zeros; print which of them ran."""
    torch.set_num_threads(1)
    system = build_lattice("Cu", 2, REACH, DEVICE, reverse=True)
    for k, job in list(enumerate(list_jobs()))[start::stride]:
        hops, scatter, name, config, width, degree = job
        weights = make_weights(hops, 1, "Cu", width, degree)
        potential = FusedPotential(weights, DEVICE, Options(scatter=scatter))  # type: ignore[arg-type]
        space = potential.allocate(system.matrix.n_atoms, system.matrix.n_slots)
        for tensor in list_buffers(space):
            tensor.zero_()
        begin = time.time()
        with tuning.override(name, config) if config else contextlib.nullcontext():
            list_calls(hops, scatter)[name](potential, space, system)
            torch.cuda.synchronize()
        print(json.dumps({"job": k, "seconds": round(time.time() - begin, 1)}), flush=True)


def list_buffers(space: Workspace) -> list[torch.Tensor]:
    """Everything but the partial sums, whose unused columns stay zero."""
    tensors = [space.sites, *space.moments, *space.mixed, *space.invariants, *space.messages]
    tensors += [*space.message_gradients, space.node_energies, space.terms, space.accumulators]
    tensors += [space.edges, space.factor_gradients]
    return [*tensors, space.forces, space.energies, space.totals]


def compile_all(n_processes: int, limit: float) -> list[int]:
    """Numbers of the jobs that compiled and ran within the limit in seconds."""
    command = [sys.executable, __file__, "--compile"]
    children = [
        subprocess.Popen([*command, str(k), str(n_processes)], stdout=subprocess.PIPE, text=True)
        for k in range(n_processes)
    ]
    end = time.time() + limit
    good: list[int] = []
    for child in children:
        try:
            out, _ = child.communicate(timeout=max(0.1, end - time.time()))
        except subprocess.TimeoutExpired:
            child.kill()
            out, _ = child.communicate()
        good += [json.loads(line)["job"] for line in out.splitlines() if line.startswith("{")]
    return sorted(good)


def run(potential: FusedPotential, system: System) -> Any:
    return potential.evaluate(system.positions, system.species, system.matrix)


def find_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def check(
    name: str,
    hops: int,
    species: int,
    scatter: str,
    width: int = 16,
    degree: int = 0,
    hidden: tuple[int, int] = (64, 64),
) -> dict[str, Any]:
    """Compare one mode with the float64 definition, and two of its runs with each other."""
    seed = int(time.time() * 1e3) % 2**31
    repeats = {"Cu": 10, "NaCl": 6, "Si": 6}[name]
    system = build_lattice(name, repeats, REACH, DEVICE, rattle=0.1, seed=seed, reverse=True)
    generator = torch.Generator().manual_seed(seed)
    system.species.copy_(torch.randint(0, species, system.species.shape, generator=generator))
    system.positions.add_(torch.randn(3, device=DEVICE, dtype=torch.float64) * 1000.0)
    weights = make_weights(hops, species, name, width, degree, hidden)
    geometry = (system.positions, system.species, system.matrix, system.translations)
    exact, single = (
        evaluate_reference(convert_weights(weights, DEVICE, dtype), *geometry)
        for dtype in (torch.float64, torch.float32)
    )
    potential = FusedPotential(weights, DEVICE, Options(scatter=scatter))  # type: ignore[arg-type]
    results = []
    for _ in range(2):
        for tensor in list_buffers(potential.allocate(*system.matrix.entries.shape)):
            floating = tensor.is_floating_point()
            tensor.fill_(float("nan") if floating else torch.iinfo(tensor.dtype).max)
        results.append([part.clone() for part in run(potential, system)])
    energy, forces, virial, energies = results[0]
    composition = weights.composition.to(DEVICE)[system.species.long()]
    return {
        "system": name, "atoms": system.matrix.n_atoms, "hops": hops, "species": species, "seed": seed,
        "scatter": scatter, "channels": width, "message_degree": degree, "hidden": hidden,
        "bits_equal": all(torch.equal(a, b) for a, b in zip(*results, strict=True)),
        "force_rms": float(exact.forces.square().mean().sqrt()),
        "force_error_rms": float((forces - exact.forces).square().mean().sqrt()),
        "force_error_max": float((forces - exact.forces).abs().max()),
        "energy_error_per_atom": float((energy - exact.energy).abs()) / system.matrix.n_atoms,
        "energies_error": find_error(energies - composition, exact.energies - composition),
        "virial_error": find_error(virial, exact.virial),
        **compare_single(exact.forces, single.forces, forces),
    }  # fmt: skip


def compare_single(
    exact: torch.Tensor, single: torch.Tensor, found: torch.Tensor
) -> dict[str, float]:
    """Force errors of the definition in float32, and of the kernels against it."""
    error, apart = (single - exact).abs(), (found - single).abs()
    return {
        "eager_float32_error_rms": float(error.square().mean().sqrt()),
        "eager_float32_error_max": float(error.max()),
        "difference_to_eager_rms": float(apart.square().mean().sqrt()),
        "difference_to_eager_max": float(apart.max()),
    }


def time_kernels(
    hops: int,
    width: int,
    degree: int,
    scatter: str = "fixed",
    repeats: int = 30,
    hidden: tuple[int, int] = (64, 64),
) -> list[dict[str, Any]]:
    """Every launch of one evaluation on its own, over buffers that an evaluation has filled.

    With ``scatter="store"`` those alone that differ.
    """
    system = build_lattice("Cu", repeats, REACH, DEVICE, reverse=scatter == "store")
    weights = make_weights(hops, 1, "Cu", width, degree, hidden)
    potential = FusedPotential(weights, DEVICE, Options(scatter=scatter))  # type: ignore[arg-type]
    run(potential, system)
    space = potential.allocate(*system.matrix.entries.shape)
    about = {
        "hops": hops, "channels": width, "message_degree": degree, "atoms": system.matrix.n_atoms,
        "scatter": scatter, "hidden": hidden,
    }  # fmt: skip
    calls, rows = list_calls(hops, scatter), []
    for name in list_stored_calls(hops) if scatter == "store" else calls:
        with survive(f"m{hops} C{width} degree {degree} {scatter} {name}"):
            call = calls[name]
            result = measure(lambda call=call: call(potential, space, system), 40.0)
            rows.append({"kernel": name, **about, **result})
    return rows


def time_evaluation(
    hops: int,
    repeats: int,
    options: Options,
    width: int = 16,
    degree: int = 0,
    hidden: tuple[int, int] = (64, 64),
) -> dict[str, Any]:
    """Whole evaluation as a graph, eager too where small, with its peak memory."""
    torch.cuda.empty_cache()
    system = build_lattice("Cu", repeats, REACH, DEVICE, reverse=options.scatter == "store")
    torch.cuda.empty_cache()
    n_atoms = system.matrix.n_atoms
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    weights = make_weights(hops, 1, "Cu", width, degree, hidden)
    potential = FusedPotential(weights, DEVICE, options)
    row: dict[str, Any] = {
        "hops": hops, "atoms": n_atoms, "scatter": options.scatter, "virial": options.with_virial,
        "listed_neighbors": system.matrix.n_slots, "channels": width, "message_degree": degree,
        "hidden": hidden,
    }  # fmt: skip
    row["graph"] = measure(capture(lambda: run(potential, system)))
    if n_atoms < 200_000:
        row["eager"] = measure(lambda: run(potential, system))
    peak = torch.cuda.max_memory_allocated() - before
    listed = [part for part in (system.matrix.entries, system.matrix.reverse) if part is not None]
    list_bytes = sum(part.numel() * part.element_size() for part in listed)
    forces = potential.allocate(*system.matrix.entries.shape).forces
    row["finite"] = bool(torch.isfinite(forces.sum()))
    row["net_force"] = float(forces.double().sum(dim=0).abs().max())
    row["atom_steps_per_s"] = n_atoms / row["graph"]["median_ms"] * 1e3
    row["bytes_per_atom"] = (peak + list_bytes) / n_atoms
    return row


def time_variants(numbers: list[int]) -> None:
    """Child process: time launch variants and compare their forces with the default's; one line each."""
    system = build_lattice("Cu", 30, REACH, DEVICE)
    potential = FusedPotential(make_weights(1, 1, "Cu"), DEVICE)
    default = run(potential, system).forces.clone()
    space = potential.allocate(*system.matrix.entries.shape)
    for k in numbers:
        _, _, kernel, config, *_ = list_jobs()[k]
        assert config is not None
        with tuning.override(kernel, config):
            call = list_calls(1)[kernel]
            result = measure(lambda call=call: call(potential, space, system), 40.0)
            change = float((run(potential, system).forces - default).abs().max())
        row = {"kernel": kernel, "config": config.to_dict(), "force_change": change, **result}
        print(json.dumps({"job": k, **row}), flush=True)


def run_variants(numbers: list[int], limit: Callable[[], float]) -> list[dict[str, Any]]:
    """All variants, in a new process after each that dies."""
    rows: list[dict[str, Any]] = []
    while numbers and limit() > 8:
        command = [sys.executable, __file__, "--variants", *map(str, numbers)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            out, _ = child.communicate(timeout=limit())
        except subprocess.TimeoutExpired:
            child.kill()
            out, _ = child.communicate()
        rows += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        left = [k for k in numbers if k not in {row["job"] for row in rows}]
        if left:
            failures.append({"what": str(list_jobs()[left[0]]), "error": "no timing"})
        numbers = left[1:]
    return rows


def main() -> None:
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", type=int, nargs=2, help="child process")
    parser.add_argument("--variants", type=int, nargs="*", help="child process")
    parser.add_argument("--budget-seconds", type=float, default=235.0)
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="cells per edge")
    arguments = parser.parse_args()
    if arguments.compile is not None:
        compile_jobs(*arguments.compile)
    elif arguments.variants is not None:
        time_variants(arguments.variants)
    else:
        run_stages(arguments, start)


def run_stages(arguments: argparse.Namespace, start: float) -> None:
    """All stages while the budget lasts; the record is stored after each."""

    def left() -> float:
        return start + arguments.budget_seconds - time.time()

    record: dict[str, Any] = {"provenance": tuning.describe_machine(DEVICE), "failures": failures}
    commit = os.environ.get("FASTFF_COMMIT")
    record["provenance"]["commit"] = commit or record["provenance"]["commit"]
    good = compile_all(arguments.processes, 0.5 * left())
    jobs = list_jobs()
    for k in set(range(len(jobs))) - set(good):
        failures.append({"what": f"compile {jobs[k]}", "error": "did not run"})
    record["compile_seconds"] = time.time() - start
    print(f"{len(good)} of {len(jobs)} compiled in {record['compile_seconds']:.0f} s", flush=True)
    record["checks"], record["kernels"], record["evaluations"] = [], [], []

    def stage(what: str, least: float, work: Callable[[], None]) -> None:
        if left() < least:
            failures.append({"what": what, "error": "no time left"})
            return
        with survive(what):
            work()
        record["seconds"] = time.time() - start
        store(record)

    def add(key: str, function: Callable[..., Any], *values: Any) -> Callable[[], None]:
        return lambda: record[key].append(function(*values))

    for case in CHECKS:
        stage(f"check {case}", 5, add("checks", check, *case))
    print_checks(record["checks"])
    stage("ceilings", 5, lambda: record.update(ceilings=measure_ceilings()))
    for kind in ((1, 16, 0), (2, 16, 0), (2, 32, 0), (2, 16, 1), (2, 32, 1), (3, 64, 1)):
        stage(f"kernels of {kind}", 5, lambda k=kind: record["kernels"].extend(time_kernels(*k)))
    for kind in STORED:
        what = f"kernels of {kind}, stored"
        stage(what, 5, lambda k=kind: record["kernels"].extend(time_kernels(*k, "store")))
        hops, *sizes = kind
        stored = hops, 30, Options(scatter="store"), *sizes
        stage(f"evaluation of {kind}, stored", 5, add("evaluations", time_evaluation, *stored))
    for repeats in arguments.sizes:
        for hops in (1, 2):
            what = f"evaluation m{hops} {repeats}^3 cells"
            least = 15 if repeats > 100 else 5
            stage(what, least, add("evaluations", time_evaluation, hops, repeats, Options()))
    for options in (
        Options("tf32x3", "float"),
        Options("tf32x3", "store"),
        Options(with_virial=False),
    ):
        stage(f"evaluation {options}", 5, add("evaluations", time_evaluation, 1, 30, options))
    for hops, width, degree in ((2, 32, 0), (2, 16, 1), (2, 32, 1), (3, 64, 1)):
        for repeats in (7, 30, 63):
            what = f"evaluation {hops} hops {width} channels degree {degree} {repeats}^3 cells"
            kind = hops, repeats, Options(), width, degree
            stage(what, 5, add("evaluations", time_evaluation, *kind))
    record["kernels"] = rate_kernels(record["kernels"], record.get("ceilings"))
    torch.cuda.empty_cache()
    variants = [k for k in good if jobs[k][3] is not None]
    stage("variants", 15, lambda: record.update(variants=run_variants(variants, left)))
    record["seconds"] = time.time() - start
    store(record)
    print_record(record)


if __name__ == "__main__":
    main()
