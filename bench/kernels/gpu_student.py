"""Check, time and store the fused evaluation of m1 and m2 on the GPU of this machine.

Run from the root of the repository: ``python bench/kernels/gpu_student.py [--quick]``. Needs torch, triton and this
repository alone. Writes ``gpu_student.json`` to the folder ``OUT`` if that variable is set, else to ``bench/results``;
prints a table last. The commit is read from git, or from ``FASTFF_COMMIT`` where the history is absent.

Order: compile all variants in parallel processes; check against the float64 definition (poisoned buffers, fresh seeds,
two runs bit for bit); measure ceilings; time every launch variant at 108,000 atoms; time whole evaluations at all
sizes with the fastest variants. A variant that fails is reported and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from fastff.kernels import tuning  # noqa: E402
from fastff.kernels.moment_potential.cases import System, build_lattice, draw_weights  # noqa: E402
from fastff.kernels.moment_potential.evaluate import FusedPotential, Options  # noqa: E402
from fastff.kernels.moment_potential.layout import PotentialWeights  # noqa: E402
from fastff.kernels.moment_potential.reference import evaluate_reference  # noqa: E402
from fastff.kernels.tuning import LaunchConfig  # noqa: E402

DEVICE = torch.device("cuda")
REACH = 5.4
SIZES = (7, 14, 30, 63, 171)
N_PROCESSES = 12
EDGE_CONFIGS = [
    LaunchConfig({"TILE": tile, "ATOMS": atoms}, num_warps, 1)
    for tile, atoms, num_warps in (
        (32, 1, 1), (16, 1, 1), (64, 1, 1), (64, 1, 2), (32, 1, 2), (64, 1, 4), (32, 4, 1), (32, 16, 1),
    )
]  # fmt: skip
NODE_CONFIGS = [
    LaunchConfig({"ATOMS": atoms}, num_warps, 1)
    for atoms, num_warps in (
        (16, 1), (16, 2), (16, 4), (32, 2), (32, 4), (64, 4), (64, 8),
    )
]  # fmt: skip
CONFIGS = {"moments": EDGE_CONFIGS, "moments_adjoint": EDGE_CONFIGS, "node_block": NODE_CONFIGS}
MODES = [
    ("tf32x3", "fixed"), ("tf32x3", "float"), ("tf32x3", "store"), ("tf32", "fixed"), ("ieee", "fixed"),
]  # fmt: skip
failures: list[dict[str, str]] = []


def describe(config: LaunchConfig) -> str:
    blocks = " ".join(f"{name.lower()} {value}" for name, value in config.blocks.items())
    return f"{blocks} warps {config.num_warps}"


@contextlib.contextmanager
def survive(what: str) -> Iterator[None]:
    """Record a failure and go on."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        failures.append({"what": what, "error": f"{type(error).__name__}: {lines[-1]}"})
        print(f"FAILED {what}: {type(error).__name__}: {lines[0][:200]}", flush=True)
        traceback.print_exc(limit=-2)


def make_weights(
    hops: int, species: int, name: str, device: torch.device | str = "cpu"
) -> PotentialWeights:
    sample = build_lattice(name, 2, REACH, "cpu", rattle=0.12, seed=3)
    sample.species.copy_(torch.arange(len(sample.species)) % species)
    return draw_weights(hops, species, sample)


def list_jobs() -> list[tuple[int, str, str, dict[str, LaunchConfig]]]:
    """All variants to compile: hops, precision, scatter and overrides."""
    jobs: list[tuple[int, str, str, dict[str, LaunchConfig]]] = []
    for hops in (1, 2):
        jobs += [(hops, precision, scatter, {}) for precision, scatter in MODES]
    for kernel, configs in CONFIGS.items():
        jobs += [(1, "tf32x3", "fixed", {kernel: config}) for config in configs]
    return jobs


def compile_jobs(index: int) -> None:
    """Child process: run every N-th variant once on a tiny system, so that the compiler's cache holds it."""
    system = build_lattice("Cu", 2, REACH, DEVICE, reverse=True)
    for k, (hops, precision, scatter, configs) in enumerate(list_jobs()):
        if k % N_PROCESSES == index:
            weights = make_weights(hops, 1, "Cu")
            with survive(f"compile m{hops} {precision} {scatter} {configs}"), override(configs):
                run(FusedPotential(weights, DEVICE, Options(precision, scatter)), system)
                torch.cuda.synchronize()


@contextlib.contextmanager
def override(configs: dict[str, LaunchConfig]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kernel, config in configs.items():
            stack.enter_context(tuning.override(kernel, config))
        yield


def run(potential: FusedPotential, system: System) -> Any:
    return potential.evaluate(system.positions, system.species, system.matrix)


def poison(potential: FusedPotential, system: System) -> None:
    """Fill every buffer with NaN or the largest integer, but for the sums whose unused columns stay zero."""
    space = potential.allocate(system.matrix.n_atoms, system.matrix.n_slots)
    tensors = [space.sites, *space.moments, space.messages, space.message_gradients, space.totals]
    tensors += [space.node_energies, space.terms, space.accumulators, space.edges, space.forces]
    tensors += [space.energies]
    for tensor in tensors:
        floating = tensor.is_floating_point()
        tensor.fill_(float("nan") if floating else torch.iinfo(tensor.dtype).max)


def find_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    return float((out.double() - reference.double()).norm() / reference.double().norm())


def check(name: str, hops: int, species: int, precision: str, scatter: str) -> dict[str, Any]:
    """Compare one mode with the float64 definition, and two of its runs with each other."""
    seed = int(time.time() * 1e3) % 2**31
    repeats = {"Cu": 10, "NaCl": 6, "Si": 6}[name]
    system = build_lattice(name, repeats, REACH, DEVICE, rattle=0.1, seed=seed, reverse=True)
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, species, system.species.shape, generator=generator)
    system.species.copy_(kinds)
    system.positions.add_(torch.randn(3, device=DEVICE, dtype=torch.float64) * 1000.0)
    weights = make_weights(hops, species, name)
    on_device = move(weights)
    exact = evaluate_reference(
        on_device, system.positions, system.species, system.matrix, system.translations
    )
    potential = FusedPotential(weights, DEVICE, Options(precision, scatter))  # type: ignore[arg-type]
    results = []
    for _ in range(2):
        poison(potential, system)
        out = run(potential, system)
        results.append([part.clone() for part in out])
    energy, forces, virial, energies = results[0]
    composition = on_device.composition[system.species.long()]
    bits = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return {
        "system": name, "atoms": system.matrix.n_atoms, "hops": hops, "species": species, "seed": seed,
        "precision": precision, "scatter": scatter, "bits_equal": bits,
        "force_rms": float(exact.forces.square().mean().sqrt()),
        "force_error_rms": float((forces - exact.forces).square().mean().sqrt()),
        "force_error_max": float((forces - exact.forces).abs().max()),
        "energy_error_per_atom": float((energy - exact.energy).abs()) / system.matrix.n_atoms,
        "energies_error": find_error(energies - composition, exact.energies - composition),
        "virial_error": find_error(virial, exact.virial),
        "net_force": float(forces.double().sum(dim=0).abs().max()),
    }  # fmt: skip


def move(weights: PotentialWeights) -> PotentialWeights:
    """Parameters on the device, in float64."""
    blocks = tuple(type(b)(*(part.to(DEVICE) for part in b)) for b in weights.blocks)
    core = None if weights.core is None else tuple(part.to(DEVICE) for part in weights.core)
    return weights._replace(
        radial=weights.radial.to(DEVICE),
        pair_factors=weights.pair_factors.to(DEVICE),
        blocks=blocks,
        energy_scale=weights.energy_scale.to(DEVICE),
        composition=weights.composition.to(DEVICE),
        core=core,
    )


def measure(function: Callable[[], Any], budget_ms: float = 150.0) -> dict[str, float]:
    """Median, 10 and 90 % quantile of the time per call in ms: blocks of calls between device events, warm."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()

    def time_block(calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls

    single = time_block(2)
    calls = max(1, min(200, int(budget_ms / 10 / max(single, 1e-4))))
    blocks = max(3, min(15, int(budget_ms / max(single * calls, 1e-4))))
    times = sorted(time_block(calls) for _ in range(blocks))
    return {
        "median_ms": statistics.median(times),
        "q10_ms": times[len(times) // 10],
        "q90_ms": times[-1 - len(times) // 10],
    }


def capture(function: Callable[[], Any]) -> Callable[[], None]:
    """Record a call in a CUDA graph and return its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def measure_ceilings() -> dict[str, float]:
    """Copy bandwidth (bytes read and written), float32 and tf32 matrix products, on random data."""
    source = torch.randn(2**29, device=DEVICE)
    target = torch.empty_like(source)
    copy = measure(functools.partial(target.copy_, source))["median_ms"]
    a, b = (torch.randn(8192, 8192, device=DEVICE) for _ in range(2))
    found = {"copy_TB_per_s": 2 * 2**31 / copy * 1e-9}
    for name, allowed in (("float32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        time_ms = measure(functools.partial(torch.matmul, a, b))["median_ms"]
        found[f"{name}_TFLOP_per_s"] = 2 * 8192**3 / time_ms * 1e-9
    torch.backends.cuda.matmul.allow_tf32 = False
    return found


def count_work(hops: int, n_slots: int, channels: int = 16, mixed: int = 16) -> dict[str, Any]:
    """Floating-point operations and least bytes per atom of every kernel (fixed scatter)."""
    pairs, hidden, inputs = 8 * channels * 2, 64, 8 * mixed
    dense = 2 * 16 * channels
    moments = n_slots * (130 + pairs + 2 * channels + dense)
    adjoint = n_slots * (330 + 2 * pairs + 3 * channels + 2 * dense)
    layers = 2 * (inputs * hidden + hidden * hidden)
    forward = 16 * 2 * channels * mixed + layers + mixed * (2 * 15 + 4 * 61) + 30 * hidden
    node = 2 * forward + mixed * 6 * 61
    block = 16 * channels * 4
    return {
        "flop": {
            "moments": hops * moments,
            "moments_adjoint": hops * adjoint,
            "node_block": hops * node + (hops - 1) * forward,
        },
        "bytes": {
            "moments": hops * (4 * n_slots + 20 + block),
            "moments_adjoint": hops * (4 * n_slots + 20 + block + 64 + 32),
            "node_block": (2 * hops + (hops - 1)) * block + 24,
        },
    }


def time_kernels(hops: int, repeats: int) -> tuple[list[dict[str, Any]], dict[str, LaunchConfig]]:
    """Every launch variant of every kernel on one system; the fastest per kernel."""
    system = build_lattice("Cu", repeats, REACH, DEVICE, reverse=True)
    weights = make_weights(hops, 1, "Cu")
    spare = torch.empty(system.matrix.n_atoms, 16, 16, device=DEVICE)
    rows: list[dict[str, Any]] = []
    best: dict[str, LaunchConfig] = {}

    def record(kernel: str, config: LaunchConfig | None, options: Options, call: Any) -> None:
        potential = FusedPotential(weights, DEVICE, options)
        shown = describe(config) if config else "default"
        what = f"m{hops} {kernel} {shown} {options.precision} {options.scatter}"
        with survive(what), override({kernel: config} if config else {}):
            run(potential, system)
            space = potential.allocate(system.matrix.n_atoms, system.matrix.n_slots)
            result = measure(lambda: call(potential, space))
            rate = system.matrix.n_atoms / result["median_ms"] * 1e3
            row = {
                "kernel": kernel, "config": shown, "precision": options.precision,
                "scatter": options.scatter, "hops": hops, "atoms": system.matrix.n_atoms,
                "atoms_per_s": rate, **result,
            }  # fmt: skip
            rows.append(row)
            known = [r for r in rows if r["kernel"] == kernel and r["config"] != "default"]
            if config and row is min(known, key=lambda r: r["median_ms"]):
                best[kernel] = config

    calls = {
        "moments": lambda p, s: p.launch_moments(s, system.matrix, 0),
        "moments_adjoint": lambda p, s: p.launch_adjoint(s, system.matrix, 0),
        "node_block": lambda p, s: p.launch_node(s, hops - 1, adjoint=True, gradients=spare),
    }
    for kernel, configs in CONFIGS.items():
        for config in configs:
            record(kernel, config, Options(), calls[kernel])
    for kernel in calls:
        for precision, scatter in MODES[1:]:
            if kernel == "moments_adjoint" or scatter == "fixed":
                record(kernel, None, Options(precision, scatter), calls[kernel])  # type: ignore[arg-type]
    record("moments_adjoint", None, Options(with_virial=False), calls["moments_adjoint"])
    rows[-1]["config"] += " without virial"
    record(
        "place", None, Options(), lambda p, s: p.launch_place(s, system.positions, system.species)
    )
    record("finish", None, Options(), lambda p, s: p.launch_finish(s))
    return rows, best


def time_evaluation(
    hops: int, repeats: int, options: Options, best: dict[str, LaunchConfig]
) -> dict[str, Any]:
    """Whole evaluation, eager and as a graph, with its peak memory."""
    torch.cuda.empty_cache()
    system = build_lattice("Cu", repeats, REACH, DEVICE, reverse=options.scatter == "store")
    n_atoms = system.matrix.n_atoms
    weights = make_weights(hops, 1, "Cu")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with override(best):
        potential = FusedPotential(weights, DEVICE, options)
        eager = measure(lambda: run(potential, system))
        peak = torch.cuda.max_memory_allocated() - before
        graph = measure(capture(lambda: run(potential, system)))
    finite = bool(torch.isfinite(potential.allocate(*system.matrix.entries.shape).forces).all())
    list_bytes = system.matrix.entries.numel() * system.matrix.entries.element_size()
    return {
        "hops": hops, "atoms": n_atoms, "precision": options.precision, "scatter": options.scatter,
        "with_virial": options.with_virial, "listed_neighbors": system.matrix.n_slots,
        "eager": eager, "graph": graph, "finite": finite,
        "atom_steps_per_s": n_atoms / graph["median_ms"] * 1e3,
        "bytes_per_atom": (peak + list_bytes) / n_atoms,
    }  # fmt: skip


def count_inside() -> float:
    """Mean number of neighbours within the cut-off in the timed structures."""
    system = build_lattice("Cu", 10, REACH, DEVICE)
    from fastff.kernels.moment_potential.layout import unpack_neighbors

    senders, codes, _ = unpack_neighbors(system.matrix)
    vectors = system.positions[senders] - system.positions[:, None] + system.translations[codes]
    return float((vectors.norm(dim=-1) < 5.0).sum(dim=1).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", type=int, default=None, help="child process")
    parser.add_argument("--quick", action="store_true", help="checks only")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="cells per edge")
    arguments = parser.parse_args()
    if arguments.compile is not None:
        compile_jobs(arguments.compile)
        return
    start = time.time()
    children = [
        subprocess.Popen([sys.executable, __file__, "--compile", str(k)])
        for k in range(N_PROCESSES)
    ]
    for child in children:
        with survive("compilation in parallel"):
            child.wait(timeout=max(1.0, start + 240.0 - time.time()))
    for child in children:
        child.kill()
    print(f"compiled in {time.time() - start:.0f} s", flush=True)
    record: dict[str, Any] = {"provenance": tuning.describe_machine(DEVICE)}
    record["provenance"]["commit"] = (
        os.environ.get("FASTFF_COMMIT") or record["provenance"]["commit"]
    )
    record["neighbors_listed"], record["neighbors_inside"] = 54, count_inside()
    record["checks"] = checks = []
    for name, hops, species in (
        ("Cu", 1, 1),
        ("NaCl", 1, 2),
        ("Cu", 2, 1),
        ("NaCl", 2, 3),
        ("Si", 2, 1),
    ):
        for precision, scatter in MODES:
            with survive(f"check {name} m{hops} {precision} {scatter}"):
                checks.append(check(name, hops, species, precision, scatter))
    print_checks(checks)
    if not arguments.quick:
        record["ceilings"] = measure_ceilings()
        record["work"] = {f"m{hops}": count_work(hops, 54) for hops in (1, 2)}
        record["kernels"], best = time_kernels(1, 30)
        record["best"] = {kernel: config.to_dict() for kernel, config in best.items()}
        store(record)
        record["evaluations"] = evaluations = []
        for repeats in arguments.sizes:
            for hops in (1, 2):
                with survive(f"evaluation m{hops} {repeats}^3 cells"):
                    evaluations.append(time_evaluation(hops, repeats, Options(), best))
                torch.cuda.empty_cache()
        for hops in (1, 2):
            for precision, scatter in MODES[1:]:
                with survive(f"evaluation m{hops} {precision} {scatter}"):
                    options = Options(precision, scatter)  # type: ignore[arg-type]
                    evaluations.append(time_evaluation(hops, 30, options, best))
    record["failures"] = failures
    record["seconds"] = time.time() - start
    store(record)
    if not arguments.quick:
        print_record(record)


def store(record: dict[str, Any]) -> None:
    folder = Path(os.environ.get("OUT") or ROOT / "bench" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_student.json").write_text(json.dumps(record, indent=1) + "\n")


def print_checks(checks: list[dict[str, Any]]) -> None:
    print("check                      force err rms   max      energy/atom  virial   bits")
    for c in checks:
        label = f"{c['system']} m{c['hops']} S{c['species']} {c['precision']} {c['scatter']}"
        print(
            f"{label:<28} {c['force_error_rms']:.2e} {c['force_error_max']:.2e}  "
            f"{c['energy_error_per_atom']:.1e}    {c['virial_error']:.1e}  {c['bits_equal']}"
        )


def print_record(record: dict[str, Any]) -> None:
    print(json.dumps(record["provenance"]))
    print({k: round(v, 2) for k, v in record["ceilings"].items()})
    work, ceilings = record["work"]["m1"], record["ceilings"]
    for row in record["kernels"]:
        line = f"{row['kernel']:<16} {row['config']:<28} {row['precision']:<7} {row['scatter']:<6}"
        line += f" {row['median_ms']:8.4f} ms {row['atoms_per_s'] / 1e6:8.1f} M/s"
        if row["kernel"] in work["flop"]:
            floor = max(
                work["flop"][row["kernel"]] / ceilings["float32_TFLOP_per_s"] * 1e-12,
                work["bytes"][row["kernel"]] / ceilings["copy_TB_per_s"] * 1e-12,
            )
            line += f"  {floor * row['atoms_per_s'] * 100:5.1f} % of float32 roofline"
        print(line)
    for row in record["evaluations"]:
        print(
            f"m{row['hops']} {row['atoms']:>9} atoms {row['precision']:<7} {row['scatter']:<6} "
            f"graph {row['graph']['median_ms']:9.4f} ms eager {row['eager']['median_ms']:9.4f} ms "
            f"{row['atom_steps_per_s'] / 1e6:7.2f} M atom-steps/s {row['bytes_per_atom']:7.0f} B/atom"
        )
    print(
        f"neighbours listed 54, inside {record['neighbors_inside']:.1f}; failures: {record['failures']}"
    )
    print(f"{record['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()
