"""Train students and ablations on stored labels and tabulate what each reaches.

Run from the root of the repository, for example

    python bench/study.py --labels LABELS/*.npz --processes 2 --steps 5000
    python bench/study.py --labels LABELS/*.h5 --gpus 8 --processes 24 --probe --budget-seconds 480

Every job (system x variant) trains in a process of its own and leaves one JSON file in ``OUT/jobs`` and a model file
like that of ``fastff train`` in ``OUT/models``; jobs that have a record are not run again, and a job that was
interrupted goes on from its last checkpoint. ``OUT/study.json`` and ``OUT/study.md`` are made from all job files at
the end, or by ``--table`` alone; the record also says what the labels are where ``labels.json`` of ``study_labels.py``
is in ``OUT`` or beside them. The commit is read from git, or from ``FASTFF_COMMIT``.

``--gpus N`` spreads the jobs over N GPUs (the first of ``CUDA_VISIBLE_DEVICES``), the longest first. ``--probe``
first times a training step of every variant, alone on a GPU, and lowers the number of steps, the same for all, to
what the budget allows, or ``--plan-seconds``, which leaves room for what processes on one GPU cost each other;
``OUT/steps.json`` keeps it for later runs. A variant whose step cannot be captured into a CUDA graph trains without,
and with fewer steps if it must. ``ms_per_step`` of a job is with others on the same GPU, that of a probe without.

Validation and test frames are whole trajectories, spread evenly over their order (which is that of temperature in the
sets this was written for): of every eight, the fourth is for testing, the seventh for validation. Test frames are
looked at once, by the final weights.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

from bench.study_report import gather_record, tabulate  # noqa: E402
from bench.study_schedule import Pool, Task, choose_steps, probe, read_probes  # noqa: E402
from bench.study_training import run_job, run_probe  # noqa: E402
from bench.study_variants import ABLATIONS, STUDENTS, Variant  # noqa: E402

PROBE_STEPS = 200


def list_jobs(arguments: argparse.Namespace) -> list[tuple[str, Path, Variant]]:
    """Name, label file and variant of every job asked for, students of all systems first."""
    variants = STUDENTS + (ABLATIONS if arguments.ablations else [])
    pattern = re.compile(arguments.only)
    jobs = [
        (f"{path.stem}__{variant.name}", path, variant)
        for variant in variants
        for path in arguments.labels
    ]
    return [job for job in jobs if pattern.search(job[0])]


def run_all(arguments: argparse.Namespace) -> list[str]:
    """Run the jobs that are not done, several at a time; returns the names of those that failed or were cut off."""
    begin = time.monotonic()
    end = begin + arguments.budget_seconds
    pool = Pool(arguments, end)
    jobs = [(name, variant.name) for name, _, variant in list_jobs(arguments)]
    jobs = [job for job in jobs if not (arguments.out / "jobs" / f"{job[0]}.json").exists()]
    path = arguments.out / "steps.json"
    steps = json.loads(path.read_text()) if path.exists() else {}
    if arguments.probe and jobs:
        probe(list(dict.fromkeys(variant for _, variant in jobs)), pool, arguments)
    probes = read_probes(arguments.out)
    if arguments.probe and any(variant not in steps for _, variant in jobs):
        most = max(steps.values(), default=arguments.steps)  # as many as those before
        left = begin + (arguments.plan_seconds or arguments.budget_seconds) - time.monotonic()
        fitting = choose_steps([variant for _, variant in jobs], probes, most, arguments.gpus, left)
        steps = {**fitting, **steps}  # those of jobs that have begun stay
        path.write_text(json.dumps(steps) + "\n")
        print(f"steps: {json.dumps(steps)}", flush=True)
    tasks = []
    for name, variant in jobs:
        n_steps = steps.get(variant, arguments.steps)
        words = ["--job", name, "--steps", str(n_steps)]
        found = probes.get(variant, {})
        if arguments.gpus and not found.get("captured", True):
            words.append("--eager")
        weight = n_steps * found.get("ms_per_step", 1.0)
        tasks.append(Task(name, tuple(words), arguments.out / "jobs" / f"{name}.json", weight))
    return pool.run(tasks, arguments.processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, nargs="+", default=[], help="label files")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--only", default="", help="regular expression on SYSTEM__VARIANT")
    parser.add_argument("--ablations", action="store_true", help="ablations beside the students")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-atoms", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=0, help="0 leaves the choice to each job")
    parser.add_argument("--probe", action="store_true", help="fit the steps into the budget")
    parser.add_argument("--probe-steps", type=int, default=PROBE_STEPS)
    parser.add_argument("--budget-seconds", type=float, default=1e9)
    parser.add_argument("--plan-seconds", type=float, help="what --probe plans for, if less")
    parser.add_argument("--eager", action="store_true", help="train without CUDA graphs")
    parser.add_argument("--list", action="store_true", help="print the jobs and stop")
    parser.add_argument("--table", action="store_true", help="only make the table")
    parser.add_argument("--job", help="run this one here (used by the program itself)")
    parser.add_argument("--probe-one", help="time this variant here (used by the program itself)")
    arguments = parser.parse_args()
    (arguments.out / "jobs").mkdir(parents=True, exist_ok=True)
    if arguments.list:
        print("\n".join(job[0] for job in list_jobs(arguments)))
        return
    if arguments.job:
        jobs = {name: (path, variant) for name, path, variant in list_jobs(arguments)}
        run_job(arguments.job, *jobs[arguments.job], arguments)
        return
    if arguments.probe_one:
        (variant,) = (v for v in STUDENTS + ABLATIONS if v.name == arguments.probe_one)
        run_probe(arguments.labels[0], variant, arguments)
        return
    failed = [] if arguments.table else run_all(arguments)
    folders = list(dict.fromkeys(path.parent for path in arguments.labels))
    record = gather_record(arguments.out, folders)
    table = tabulate(record["students"])
    (arguments.out / "study.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "study.md").write_text(table)
    print(table)
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}; run again to go on")


if __name__ == "__main__":
    main()
