"""What Hessian-vector targets buy for the same number of teacher evaluations.

Run from the root of the repository, for example

    python bench/hessian_vectors.py --teacher sevennet:7net-0 --structures train/structures/silicon.xyz --budget 300

The teacher labels a pool of samples of the structures once, as ``fastff train`` does, and targets for some of them;
the pool is kept in ``OUT/pool`` and continued. A frame counts as one evaluation, a target as two more. Students are
trained on parts of the pool that cost the same (``plain``, ``half``, ``all``) and, for comparison, on the frames of
``all`` without their targets (``fewer``, a third of the cost), all with the same number of steps. They are judged by
held-out teacher dynamics: accuracy, error of Hessian-vector products; and by the frequencies of the first cell from its
whole Hessian.

Every training leaves ``OUT/jobs/NAME.json``; those that have one are not run again. The record is made from all of
them. The commit is read from git, or from ``FASTFF_COMMIT``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.units
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose names are not for import

ARMS = {
    "plain": "all of the budget in frames",
    "half": "half of the budget in frames, half in targets",
    "all": "a third in frames, each with a target",
    "fewer": "the frames of `all` without targets: a third of the budget",
}
TERAHERTZ = ase.units.second * 1e-12 / (2 * np.pi)
"""Frequency of an angular frequency of sqrt(eV / (Å^2 u))."""
N_TEST_TARGETS = 40
MOST_PHONON_ATOMS = 128


def divide(arm: str, budget: int) -> tuple[int, int]:
    """Frames, and frames with targets, that an arm trains on."""
    return {
        "plain": (budget, 0),
        "half": (budget // 2, budget // 4),
        "all": (budget // 3, budget // 3),
        "fewer": (budget // 3, 0),
    }[arm]


def make_pool(arguments: argparse.Namespace, out: Path) -> tuple[Any, Any, list[Any], list[Any]]:
    """Teacher, sampling plan, training frames in random order (targets where any arm needs them), and test frames."""
    from fastff.distill.hessian import add_hessian_vectors
    from fastff.distill.sampling import plan_sampling, run_sampling
    from fastff.distill.store import LabelStore
    from fastff.structures import read_structures
    from fastff.teachers import load_teacher

    teacher = load_teacher(arguments.teacher, device=arguments.device)
    low, high = arguments.temperature
    plan = plan_sampling(
        read_structures(arguments.structures),
        teacher.info,
        temperatures=(low, high),
        n_frames=int(1.6 * arguments.budget) + 60,
        cutoff=arguments.cutoff,
        max_atoms=arguments.max_atoms,
        seed=arguments.seed,
    )
    out.mkdir(parents=True, exist_ok=True)
    with LabelStore(out / "labels.h5", "a", teacher=teacher.info) as store:
        run_sampling(teacher, plan, store, on_progress=show_progress)
        frames, held_out = store.read(), store.held_out
    frames.sort(key=lambda frame: (frame.trajectory, frame.step))
    test = [frame for frame in frames if frame.trajectory in held_out]
    pool = [f for f in frames if f.trajectory not in held_out and f.source != "close-contact"]
    if len(pool) < 1.1 * arguments.budget or not test:
        raise SystemExit(
            f"the pool has {len(pool)} frames, too few for a budget of {arguments.budget}"
        )
    rng = np.random.default_rng(arguments.seed)
    pool = [pool[k] for k in rng.permutation(len(pool))]
    n_targets = max(divide(arm, arguments.budget)[1] for arm in ARMS)
    rest = pool[n_targets:]
    first = add_hessian_vectors(teacher, pool[:n_targets], n_targets, out / "targets.h5")
    test = add_hessian_vectors(teacher, test, N_TEST_TARGETS, out / "test.h5")
    return teacher, plan, [*first, *rest], test


def show_progress(progress: Any) -> None:
    """One line, overwritten."""
    print(f"\rlabelling {progress.done}/{progress.total} {progress.kind:<12}", end="", flush=True)
    if progress.done >= progress.total:
        print()


def compute_frequencies(
    label: Callable[[Sequence[ase.Atoms]], list[Any]], atoms: ase.Atoms, step: float = 0.01
) -> np.ndarray:
    """Frequencies of a cell from central differences of all forces, (3 n_atoms,) THz; imaginary ones negative."""
    moved = []
    for coordinate in range(3 * len(atoms)):
        for sign in (1, -1):
            moved.append(atoms.copy())
            moved[-1].positions.flat[coordinate] += sign * step
    forces = np.array([labels.forces.ravel() for labels in label(moved)])
    hessian = (forces[1::2] - forces[::2]) / (2 * step)
    weights = 1.0 / np.sqrt(np.repeat(atoms.get_masses(), 3))
    dynamical = weights[:, None] * 0.5 * (hessian + hessian.T) * weights
    values = np.linalg.eigvalsh(dynamical)
    result: np.ndarray = np.sign(values) * np.sqrt(np.abs(values)) * TERAHERTZ
    return result


def run_job(
    arm: str, seed: int, pool: list[Any], test: list[Any], known: dict[str, Any], arguments: Any
) -> dict[str, Any]:
    """Train and measure one student."""
    from dataclasses import replace

    import torch

    from fastff.distill.module import measure_frames
    from fastff.distill.train import TrainSettings, train_student
    from fastff.inference import predict
    from fastff.report.hessian import measure_hessian_vectors

    n_frames, n_targets = divide(arm, arguments.budget)
    training = [
        frame if k < n_targets else replace(frame, hessian_vector=None)
        for k, frame in enumerate(pool[:n_frames])
    ]
    settings = TrainSettings(
        architecture=arguments.student,
        cutoff=arguments.cutoff,
        n_steps=arguments.steps,
        batch_atoms=arguments.batch_atoms,
        hessian_weight=arguments.weight,
        n_validations=10,
        patience=99,
        seed=seed,
        device=arguments.device,
    )
    work = arguments.out / "work" / f"{arm}-{seed}"
    validation = pool[arguments.budget :]
    result = train_student(training, validation, settings, work, resume=work.exists())
    student = result.student
    if arguments.device != "cpu" and torch.cuda.is_available():
        student = student.to("cuda")
    label = partial(predict, student)
    curvature = measure_hessian_vectors(test, label)
    record = {
        "arm": arm,
        "seed": seed,
        "n_frames": n_frames,
        "n_targets": sum(f.hessian_vector is not None for f in training),
        "evaluations": n_frames + 2 * n_targets,
        "settings": settings.to_dict(),
        "seconds": round(result.seconds, 1),
        "accuracy": measure_frames(test, label([f.atoms for f in test])).to_dict(),
        "hessian": curvature.to_dict() if curvature else None,
    }
    if known:
        found = compute_frequencies(label, known["atoms"])
        record["frequency_rmse"] = float(np.sqrt(np.mean((found - known["frequencies"]) ** 2)))
    return record


def tabulate(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean over seeds, with the spread of the force accuracy."""
    lines = [
        "| arm | frames | targets | evaluations | A_F | A_E | A_S | Hessian | THz | s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in ARMS:
        mine = [record for record in records if record["arm"] == arm]
        if not mine:
            continue

        def mean(pick: Callable[[dict[str, Any]], float | None], own: Any = mine) -> float:
            values = [value for value in map(pick, own) if value is not None]
            return float(np.mean(values)) if values else float("nan")

        forces = [100 * record["accuracy"]["force"] for record in mine]
        cells = [
            arm,
            *(str(mine[0][name]) for name in ("n_frames", "n_targets", "evaluations")),
            f"{np.mean(forces):.2f} ± {np.std(forces):.2f}",
            *(f"{100 * mean(lambda r, k=k: r['accuracy'][k]):.2f}" for k in ("energy", "stress")),
            f"{100 * mean(lambda r: r['hessian'] and r['hessian']['accuracy']):.2f}",
            f"{mean(lambda r: r.get('frequency_rmse')):.3f}",
            f"{mean(lambda r: r['seconds']):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pool, all trainings, and the record of them."""
    from fastff.checkpoint import write_atomically
    from fastff.inference import split_chunks
    from fastff.report.provenance import collect_provenance

    teacher, plan, pool, test = make_pool(arguments, arguments.out / "pool")
    cell = plan.cells[0].atoms
    known: dict[str, Any] = {}
    if len(cell) <= MOST_PHONON_ATOMS:

        def label(structures: Sequence[ase.Atoms]) -> list[Any]:
            return [one for part in split_chunks(structures, 1024) for one in teacher.label(part)]

        path = arguments.out / "pool" / "frequencies.json"
        if not path.exists():
            found = compute_frequencies(label, cell)
            write_atomically(path, json.dumps(found.tolist()).encode())
        known = {"atoms": cell, "frequencies": np.array(json.loads(path.read_text()))}
    jobs = arguments.out / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in range(arguments.seeds):
        for arm in ARMS:
            path = jobs / f"{arm}-{seed}.json"
            if not path.exists():
                record = run_job(arm, seed, pool, test, known, arguments)
                write_atomically(path, json.dumps(record).encode())
                print(tabulate([record]).splitlines()[-1], flush=True)
            records.append(json.loads(path.read_text()))
    return {
        "what": "Hessian-vector targets for the same number of teacher evaluations",
        "arms": ARMS,
        "teacher": teacher.info.to_dict(),
        "structures": arguments.structures.name,
        "n_atoms": len(cell),
        "temperatures": list(arguments.temperature),
        "n_test": len(test),
        "n_test_targets": sum(frame.hessian_vector is not None for frame in test),
        "records": records,
        "provenance": collect_provenance().model_dump(mode="json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--temperature", type=float, nargs=2, default=(300.0, 900.0))
    parser.add_argument("--budget", type=int, default=300, help="evaluations of each training set")
    parser.add_argument("--max-atoms", type=int, default=64)
    parser.add_argument("--student", default="m2")
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-atoms", type=int, default=512)
    parser.add_argument("--weight", type=float, default=0.1, help="of the Hessian term in the loss")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm")
    parser.add_argument("--seed", type=int, default=0, help="of the pool")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "hessian-vectors")
    parser.add_argument("--record", type=Path, help="store the record here")
    arguments = parser.parse_args()
    start = time.perf_counter()
    record = measure(arguments)
    text = json.dumps(record, indent=1) + "\n"
    target = arguments.record or arguments.out / "record.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    print(tabulate(record["records"]))
    print(f"{time.perf_counter() - start:.0f} s; record in {target.name}")


if __name__ == "__main__":
    main()
