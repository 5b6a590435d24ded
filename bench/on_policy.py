"""Compare ways of spending teacher evaluations: rattling, teacher dynamics, the mixed sampling, on-policy rounds.

Run from the root of the repository, for example

    python bench/on_policy.py --structures train/structures/silicon.xyz --max-atoms 8 --budget 150 --steps 500
    python bench/on_policy.py --structures train/structures/silicon.xyz --teacher sevennet --budget 300 1000 3000

Every arm gets the same number of evaluations and of optimiser steps. Each student is then measured in two ways that no
arm has seen and that count for no budget: on teacher dynamics (``OUT/test.h5``, common to all) and on frames of its own
dynamics, which also tell how many of its walkers blow up. Every job leaves ``OUT/jobs/NAME.json`` and is not run again;
one that was interrupted goes on where it was. ``OUT/on-policy.json`` and ``OUT/on-policy.md`` are made from all jobs.

Arms: ``rattle`` displaces the seeds at random by up to 0.2 Å and strains them by up to 3 %; ``teacher-md`` runs the
teacher from 0.5 to 1.5 times the temperatures; ``mixed`` is ``fastff train --rounds 0``; ``on-policy`` is
``fastff train``.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(
    ROOT
)  # and not bench/, whose tabulate.py would be taken for the package of that name

ARMS = ("rattle", "teacher-md", "mixed", "on-policy")
RATTLE, STRAIN = 0.2, 0.03
TEST_SEED = 987654


def load(arguments: argparse.Namespace) -> tuple[Any, list[Any]]:
    """Teacher and seeds."""
    from fastff.structures import read_structures
    from fastff.teachers import load_teacher

    weights = arguments.teacher_weights
    teacher = load_teacher(arguments.teacher, device=arguments.device, weights=weights)
    return teacher, read_structures(arguments.structures)


def make_plan(arguments: argparse.Namespace, teacher: Any, seeds: list[Any], **options: Any) -> Any:
    """The sampling of ``fastff train``: cells, timestep."""
    from fastff.distill.planning import plan_sampling

    return plan_sampling(
        seeds,
        teacher.info,
        temperatures=tuple(arguments.temperature),
        cutoff=arguments.cutoff,
        max_atoms=arguments.max_atoms,
        **options,
    )


def plan_dynamics(plan: Any, temperatures: Any, evaluations: int, stride_fs: float) -> Any:
    """Replicas on a ladder of temperatures that share some evaluations, and what starting them takes."""
    from fastff.distill.plan import N_PROBES, PlannedDynamics, PlannedReplica

    n_cells = len(plan.cells)
    left = evaluations - n_cells * (1 + N_PROBES)
    settings = plan.dynamics[0].settings
    n_replicas = int(np.clip(left // 60, max(4, min(n_cells, left // 10)), 64))
    replicas = tuple(
        PlannedReplica(k % n_cells, float(t), k)
        for k, t in enumerate(np.linspace(*temperatures, n_replicas))
    )
    stride = max(1, round(stride_fs / settings.timestep))
    n_steps = left // n_replicas - 1
    settings = replace(settings, n_steps=n_steps, stride=min(stride, n_steps), first_kept=0)
    counts = {"seed": n_cells, "rattle": n_cells * N_PROBES}
    return replace(plan, counts=counts, dynamics=(PlannedDynamics(replicas, settings, False),))


def label_test(arguments: argparse.Namespace) -> list[Any]:
    """Frames of teacher dynamics, 40 fs apart, that no arm may use."""
    from fastff.distill.sampling import run_sampling
    from fastff.distill.store import LabelStore

    teacher, seeds = load(arguments)
    plan = make_plan(arguments, teacher, seeds, budget=2000, seed=TEST_SEED)
    low, high = arguments.temperature
    plan = plan_dynamics(plan, (low, 1.5 * high), arguments.test_evaluations, 40.0)
    with LabelStore(arguments.out / "test.h5", "a", teacher=teacher.info) as store:
        run_sampling(teacher, plan, store)
        frames = [frame for frame in store.read() if frame.source == "teacher-md"]
    timestep = plan.dynamics[0].settings.timestep
    return [frame for frame in frames if frame.step * timestep >= 100.0] or frames


def label_arm(
    arm: str, budget: int, arguments: argparse.Namespace, folder: Path, seed: int
) -> Path:
    """Label file of an arm that makes its own."""
    from fastff.distill.cells import draw_strain, strain_cell
    from fastff.distill.sampling import run_sampling
    from fastff.distill.store import LabelStore
    from fastff.labels import Frame

    teacher, seeds = load(arguments)
    plan = make_plan(arguments, teacher, seeds, budget=budget, seed=seed)
    low, high = arguments.temperature
    path = folder / f"{arm}.h5"
    with LabelStore(path, "a", teacher=teacher.info) as store:
        if arm == "teacher-md":
            plan = plan_dynamics(plan, (0.5 * low, 1.5 * high), budget, 20.0)
            run_sampling(teacher, plan, store)
            return path
        rng = np.random.default_rng(seed)
        for number in range(budget):
            cell = plan.cells[number % len(plan.cells)]
            atoms = strain_cell(cell, draw_strain(rng, STRAIN, 0.5 * STRAIN))
            atoms.positions += rng.normal(size=(len(atoms), 3)) * rng.uniform(0.01, RATTLE)
            if not store.has(atoms):
                labels = teacher.label([atoms])[0]
                frame = Frame(atoms, labels, "rattle", number, float("nan"), -1)
                store.append([frame], force_limit=plan.max_force)
    return path


def train_arm(arm: str, budget: int, arguments: argparse.Namespace, folder: Path, seed: int) -> Any:
    """Distil by one arm; all take as many optimiser steps."""
    from fastff.distill.ladder import ROUND_STEPS
    from fastff.distill.request import build_request
    from fastff.distill.run import distill

    n_rounds = arguments.rounds
    common = {
        "student": arguments.student,
        "cutoff": arguments.cutoff,
        "target": 0.9999,
        "seed": seed,
        "patience": 99,
    }
    from_teacher = {
        "teacher": arguments.teacher,
        "teacher_weights": arguments.teacher_weights,
        "structures": arguments.structures,
        "temperatures": tuple(arguments.temperature),
        "max_atoms": arguments.max_atoms,
        "budget": budget,
    }
    steps = round(arguments.steps * (2 + ROUND_STEPS * n_rounds))  # the first, rounds, the last
    if arm == "on-policy":
        values = {**common, **from_teacher, "rounds": n_rounds, "n_steps": arguments.steps}
    elif arm == "mixed":
        values = {**common, **from_teacher, "rounds": 0, "n_steps": steps}
    else:
        path = label_arm(arm, budget, arguments, folder, seed)
        values = {**common, "labels": path, "n_steps": steps}
    out = folder / "run"
    return distill(build_request(**values), out, device=arguments.device, resume=out.exists())


def judge(
    student: Any, test: list[Any], arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Accuracy on the common test and on the student's own dynamics, and its stability."""
    from fastff.distill.explore import ExploreSettings
    from fastff.distill.harvest import WalkerPlan, harvest, plan_walkers
    from fastff.distill.ladder import measure_student, pick_torch_device
    from fastff.labels import Frame

    teacher, seeds = load(arguments)
    low, high = arguments.temperature
    timestep = make_plan(arguments, teacher, seeds, budget=2000).dynamics[0].settings.timestep
    moving = copy.deepcopy(student).to(pick_torch_device(arguments.device))
    n_gate = arguments.walkers // 2
    walkers = plan_walkers(test, WalkerPlan(0, n_gate, (low, high), TEST_SEED, 0), 0)
    n_steps = max(20, round(1000.0 * arguments.picoseconds / timestep))
    settings = ExploreSettings(n_steps, timestep, 4, 4 * max(1, n_steps // 160), seed=TEST_SEED)
    found = harvest(moving, walkers, settings, [], n_gate=arguments.own_frames, n_train=0)
    labels = teacher.label([pick.atoms for pick in found.picks])
    frames = [
        Frame(p.atoms, one, "student-md", p.trajectory, p.temperature, p.step)
        for p, one in zip(found.picks, labels, strict=True)
        if np.isfinite(one.energy) and np.isfinite(one.forces).all()
    ]
    groups = {
        "teacher-driven": [f for f in test if f.temperature <= high],
        "teacher-driven, hot": [f for f in test if f.temperature > high],
        "own dynamics": [f for f in frames if f.temperature <= high],
        "own dynamics, hot": [f for f in frames if f.temperature > high],
    }
    accuracy = {
        name: measure_student(moving, part).to_dict() for name, part in groups.items() if part
    }
    return {"accuracy": accuracy, "dynamics": found.record}


def run_job(
    arm: str, budget: int, seed: int, test: list[Any], arguments: argparse.Namespace
) -> None:
    """Label, train, judge, and store the record."""
    from fastff.checkpoint import load_model, write_atomically
    from fastff.report.provenance import collect_provenance

    name = f"{arm}-{budget}-{seed}"
    target = arguments.out / "jobs" / f"{name}.json"
    if target.exists():
        return
    start = time.perf_counter()
    folder = arguments.out / "work" / name
    folder.mkdir(parents=True, exist_ok=True)
    outcome = train_arm(arm, budget, arguments, folder, seed)
    record = {
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "student": outcome.architecture,
        "evaluations": outcome.evaluations or budget,
        "rounds": [row.to_dict() for row in outcome.rows],
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        **judge(load_model(outcome.model), test, arguments, folder),
        "seconds_this_process": round(time.perf_counter() - start, 1),
        "provenance": collect_provenance().model_dump(mode="json"),
    }
    write_atomically(target, (json.dumps(record, indent=1) + "\n").encode())
    print(tabulate([record]).splitlines()[-1], flush=True)


def tabulate(records: list[dict[str, Any]]) -> str:
    """Markdown: one row for each arm, budget and seed; A_F of each group, smallest accuracy of the first and third."""
    lines = [
        "| budget | arm | student | seed | teacher-driven A_F | min | hot A_F "
        "| own dynamics A_F | min | hot A_F | blew up |",
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def show(record: dict[str, Any], group: str, part: str) -> str:
        value = record["accuracy"].get(group, {}).get(part)
        return "-" if value is None else f"{100 * value:.1f}"

    order = {name: k for k, name in enumerate(ARMS)}
    for record in sorted(records, key=lambda r: (r["budget"], order[r["arm"]], r["seed"])):
        cells = [str(record["budget"]), record["arm"], record["student"], str(record["seed"])]
        for group in ("teacher-driven", "own dynamics"):
            cells += [show(record, group, "force"), show(record, group, "overall")]
            cells.append(show(record, f"{group}, hot", "force"))
        found = record["dynamics"]
        cells.append(f"{found['blown_up']} of {found['walkers']}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from fastff.report.provenance import collect_provenance

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="analytic:angular")
    parser.add_argument("--teacher-weights", type=Path)
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--temperature", type=float, nargs=2, default=(300.0, 600.0))
    parser.add_argument("--budget", type=int, nargs="+", default=[300], help="teacher evaluations")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps before the rounds")
    parser.add_argument("--student", default="m1")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--max-atoms", type=int, default=64)
    parser.add_argument("--test-evaluations", type=int, default=600)
    parser.add_argument("--walkers", type=int, default=8)
    parser.add_argument("--own-frames", type=int, default=40)
    parser.add_argument(
        "--picoseconds", type=float, default=1.0, help="of every walker that judges"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "on-policy")
    parser.add_argument("--table", action="store_true", help="only make the table")
    arguments = parser.parse_args()
    (arguments.out / "jobs").mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        test = label_test(arguments)
        for budget in arguments.budget:
            for seed in arguments.seeds:
                for arm in arguments.arms:
                    run_job(arm, budget, seed, test, arguments)
    paths = sorted((arguments.out / "jobs").glob("*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    whole = {
        "what": "Ways of spending the same number of teacher evaluations",
        "arms": ARMS,
        "rows": records,
        "provenance": collect_provenance().model_dump(mode="json"),
    }
    (arguments.out / "on-policy.json").write_text(json.dumps(whole, indent=1) + "\n")
    (arguments.out / "on-policy.md").write_text(tabulate(records))
    print(tabulate(records))


if __name__ == "__main__":
    main()
