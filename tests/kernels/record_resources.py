"""Writes what every kernel needs on every target to ``resources.json``, which ``test_aot.py`` holds kernels to.

Run ``python tests/kernels/record_resources.py`` after a deliberate change, with each supported version of Triton in
turn: figures are the largest seen. ``--reset`` forgets the old ones; names of kernels, or how they begin, restrict both
to those. Not here: the comparison.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import triton

from fastff.kernels import aot, contract

RECORD = Path(__file__).with_name("resources.json")


def compile_build(build: contract.Build, target: str) -> aot.CompileReport:
    """Compile one build for one target with its default launch configuration."""
    on_amd = target.startswith("gfx")
    return aot.compile_ahead(
        build.kernel,
        build.signature,
        {**build.constexprs, **(build.amd_constexprs if on_amd else {})},
        target,
        num_warps=build.config.num_warps,
        num_stages=build.config.num_stages,
    )


def main() -> None:
    record = {"triton": [], "kernels": {}}
    names = tuple(word for word in sys.argv[1:] if word != "--reset")
    builds = [one for one in contract.list_builds() if not names or one.name.startswith(names)]
    if RECORD.exists():
        record = json.loads(RECORD.read_text())
    if "--reset" in sys.argv[1:]:
        for build in builds:
            record["kernels"].pop(build.name, None)
    record["triton"] = sorted({*record["triton"], triton.__version__})
    for build in builds:
        for target in build.targets:
            new = asdict(compile_build(build, target))
            del new["target"]
            old = record["kernels"].setdefault(build.name, {}).get(target, new)
            record["kernels"][build.name][target] = {k: max(new[k], old[k]) for k in new}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
