"""Launch settings of the fused kernels by number of atoms: what fills a GPU, and what is quick where little is to do.

Run from the root of the repository: ``python bench/kernels/launch_sizes.py [--sizes 1372 10976 108000]``. Needs torch,
triton and this repository. Times every kernel of an ``m2`` evaluation with each setting alone, prints the best beside
the setting in use; writes ``launch_sizes.json`` to the folder ``OUT`` if that variable is set, else to
``bench/results``. Compiling takes longest and runs on all cores first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402
from student_launches import list_calls, make_weights  # noqa: E402
from student_timing import DEVICE, capture, measure  # noqa: E402

from fastff.kernels import tuning  # noqa: E402
from fastff.kernels.moment_potential.cases import build_lattice  # noqa: E402
from fastff.kernels.moment_potential.evaluate import FusedPotential  # noqa: E402
from fastff.kernels.tuning import LaunchConfig  # noqa: E402

REACH = 5.4
REPEATS = {1372: 7, 10976: 14, 108000: 30, 1000188: 63}
SETTINGS: dict[str, tuple[LaunchConfig, ...]] = {
    "moments": tuple(
        LaunchConfig({"TILE": tile, "ATOMS": 1}, warps, 1)
        for tile, warps in ((32, 1), (64, 1), (64, 2), (64, 4))
    ),
    "moments_adjoint": tuple(
        LaunchConfig({"TILE": tile, "ATOMS": 1}, warps, 1)
        for tile, warps in ((32, 1), (64, 1), (64, 2), (64, 4))
    ),
    "invariants": tuple(
        LaunchConfig({"ATOMS": atoms}, warps, 1)
        for atoms, warps in ((16, 1), (16, 2), (16, 4), (32, 2), (32, 4))
    ),
    "node_perceptron": tuple(
        LaunchConfig({"ATOMS": atoms, "DEPTH": depth}, warps, 1)
        for atoms, depth, warps in (
            (16, 32, 2), (16, 32, 4), (16, 64, 4), (16, 64, 8), (32, 32, 4), (32, 64, 4), (32, 64, 8),
        )
    ),
    "invariants_adjoint": tuple(
        LaunchConfig({"ATOMS": atoms}, warps, 1)
        for atoms, warps in ((16, 1), (16, 2), (16, 4), (32, 4))
    ),
}  # fmt: skip


def list_runs() -> list[tuple[str, str, LaunchConfig | None]]:
    """Kernel, launch of it, and setting; None is the one in use."""
    return [
        (kernel, name, config)
        for name in list_calls(2)
        for kernel in [name.split()[0]]
        if kernel in SETTINGS
        for config in (None, *SETTINGS[kernel])
    ]


def time_runs(size: int, numbers: range, budget_ms: float) -> list[dict[str, Any]]:
    """Times of some runs at a size; a setting that fails says so in its row."""
    system = build_lattice("Cu", REPEATS[size], REACH, DEVICE)
    potential = FusedPotential(make_weights(2, 1, "Cu"), DEVICE)
    space = potential.allocate(*system.matrix.entries.shape)
    potential.evaluate(system.positions, system.species, system.matrix)
    rows, runs = [], list_runs()
    for number in numbers:
        kernel, name, config = runs[number]
        row: dict[str, Any] = {"atoms": size, "launch": name}
        row["setting"] = "in use" if config is None else describe(config)
        if config is None:
            context: Any = tuning.override("nothing", LaunchConfig({}, 1, 1))
        else:
            context = tuning.override(kernel, config)
        try:
            with context:
                call = list_calls(2)[name]
                call(potential, space, system)
                row |= measure(capture(lambda call=call: call(potential, space, system)), budget_ms)
        except Exception as error:  # one setting that cannot run says nothing about the others
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        rows.append(row)
    return rows


def describe(config: LaunchConfig) -> str:
    blocks = " ".join(f"{name}={value}" for name, value in config.blocks.items())
    return f"{blocks} warps={config.num_warps}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1372, 10976, 108000])
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--share", type=int, nargs=2, help="used by the program itself")
    arguments = parser.parse_args()
    if arguments.share:
        first, stride = arguments.share
        time_runs(min(REPEATS), range(first, len(list_runs()), stride), 0.1)
        return
    children = [
        subprocess.Popen([sys.executable, __file__, "--share", str(k), str(arguments.processes)])
        for k in range(arguments.processes)
    ]
    for child in children:
        child.wait()
    record: dict[str, Any] = {"provenance": tuning.describe_machine(DEVICE), "launches": []}
    target = Path(os.environ.get("OUT") or ROOT / "bench" / "results") / "launch_sizes.json"
    for size in arguments.sizes:
        rows = time_runs(size, range(len(list_runs())), 20.0)
        record["launches"] += rows
        target.write_text(json.dumps(record, indent=1) + "\n")
        for name in dict.fromkeys(row["launch"] for row in rows):
            mine = [row for row in rows if row["launch"] == name and "median_ms" in row]
            best = min(mine, key=lambda row: row["median_ms"])
            used = next(row for row in mine if row["setting"] == "in use")
            print(
                f"{size:>8} {name:<26} in use {1e3 * used['median_ms']:8.2f} us, best "
                f"{1e3 * best['median_ms']:8.2f} us with {best['setting']}",
                flush=True,
            )
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
