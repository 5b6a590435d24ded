"""Check and time ``m3-l`` with wider hidden layers on the GPU of this machine.

Run from the root of the repository: ``python bench/kernels/hidden_layers.py``. Three hops of 64 channels with messages
of degree one, and hidden layers of 64 and 64 (``m3-l``), 128 and 64, 128 and 128, all in one run: forces beside the
float64 definition, then whole evaluations by size. Writes ``hidden_layers.json`` to the folder ``OUT`` if that variable
is set, else to ``bench/results``. Stages and what a row says are those of ``gpu_student.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from gpu_student import check, failures, survive, time_evaluation, time_kernels
from student_report import print_checks, store
from student_timing import DEVICE

from fastff.kernels import tuning
from fastff.kernels.moment_potential.workspace import Options

LAYERS = ((64, 64), (128, 128), (128, 64))
KIND = 64, 1
"""Channels, and degree of the messages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=(7, 14, 30), help="cells per edge")
    parser.add_argument("--systems", nargs="*", default=("Cu", "NaCl", "Si"))
    parser.add_argument("--budget-seconds", type=float, default=150.0)
    arguments = parser.parse_args()
    end = time.time() + arguments.budget_seconds
    record: dict[str, Any] = {"provenance": tuning.describe_machine(DEVICE), "failures": failures}
    commit = os.environ.get("FASTFF_COMMIT")
    record["provenance"]["commit"] = commit or record["provenance"]["commit"]
    record |= {"checks": [], "kernels": [], "evaluations": []}

    def add(key: str, what: str, work: Any) -> None:
        if time.time() > end:
            failures.append({"what": what, "error": "no time left"})
            return
        with survive(what):
            found = work()
            record[key] += found if isinstance(found, list) else [found]
        store(record, "hidden_layers.json")

    for hidden in LAYERS:
        for name in arguments.systems:
            species = 3 if name == "NaCl" else 1
            case = name, 3, species, "fixed", *KIND, hidden
            add("checks", f"check {case}", lambda case=case: check(*case))
        for repeats in arguments.sizes:
            case = 3, repeats, Options(), *KIND, hidden
            add("evaluations", f"evaluation {case}", lambda case=case: time_evaluation(*case))
    for hidden in LAYERS[:2]:
        case = 3, *KIND, "fixed", max(arguments.sizes), hidden
        add("kernels", f"kernels {case}", lambda case=case: time_kernels(*case))
    print_checks(record["checks"])
    for row in record["evaluations"]:
        print(
            row["hidden"], row["atoms"], row["graph"]["median_ms"], f"{row['atom_steps_per_s']:.3g}"
        )


if __name__ == "__main__":
    main()
