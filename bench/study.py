"""Train students and ablations on stored labels and tabulate what each reaches.

Run from the root of the repository, for example

    python bench/study.py --labels LABELS/*.npz --processes 2 --steps 5000

Every job (system x variant) trains in a process of its own and leaves one JSON file in ``OUT/jobs``; jobs that have one
are not run again, and a job that was interrupted goes on from its last checkpoint. ``OUT/study.json`` and
``OUT/study.md`` are made from all job files at the end, or by ``--table`` alone. The commit is read from git, or from
``FASTFF_COMMIT``.

Validation and test frames are whole trajectories, spread evenly over their order (which is that of temperature in the
sets this was written for): of every eight, the fourth is for testing, the seventh for validation. Test frames are
looked at once, by the final weights.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Variant:
    """A student and the sizes in which it differs from its architecture."""

    name: str
    architecture: str
    sizes: dict[str, Any]
    cutoff: float = 5.0


def vary(base: str, label: str, cutoff: float = 5.0, **sizes: Any) -> Variant:
    return Variant(f"{base}-{label}", base, sizes, cutoff)


STUDENTS = [Variant(name, name, {}) for name in ("m1", "m2", "m2-l", "painn")]
ABLATIONS = [
    *(vary("m2", f"rc{r:g}", cutoff=r) for r in (4.0, 4.5, 5.5, 6.0)),
    *(vary("m2", f"c{n}", n_channels=n, n_mixed=n) for n in (8, 24)),
    *(vary("m2", f"k{n}", n_radial=n) for n in (4, 6, 12)),
    *(vary("m2", f"l{n}", l_max=n) for n in (1, 2)),
    *(vary("m2", f"body{n}", body_order=n) for n in (2, 3)),
    *(vary("m2", f"h{n}", hidden=(n, n)) for n in (32, 128)),
    vary("m1", "c32", n_channels=32, n_mixed=32),
    vary("m1", "c32-h128", n_channels=32, n_mixed=32, hidden=(128, 128)),
    vary("m1", "rc6", cutoff=6.0),
    vary("painn", "c64", n_channels=64, hidden=(64, 64)),
    vary("painn", "rc6", cutoff=6.0),
]


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


def split_trajectories(frames: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Training, validation and test frames; see the module docstring."""
    places = {t: k for k, t in enumerate(sorted({frame.trajectory for frame in frames}))}
    if len(places) < 8:
        raise SystemExit(
            f"{len(places)} trajectories; at least eight are needed to hold whole ones out"
        )
    parts: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for frame in frames:
        place = places[frame.trajectory] % 8
        parts[2 if place == 3 else 1 if place == 6 else 0].append(frame)
    return parts


def run_job(name: str, path: Path, variant: Variant, arguments: argparse.Namespace) -> None:
    """Train, measure, and store the record."""
    import torch

    torch.set_num_threads(1)
    from fastff.checkpoint import write_atomically
    from fastff.distill.formats import read_labels
    from fastff.distill.module import measure_frames
    from fastff.distill.train import TrainSettings, train_student
    from fastff.models import ARCHITECTURES
    from fastff.predict import predict
    from fastff.report.provenance import collect_provenance

    # A named architecture of this process alone: what configure_student and build_student look up.
    ARCHITECTURES[variant.name] = {**ARCHITECTURES[variant.architecture], **variant.sizes}
    labelled = read_labels(path)
    training, validation, test = split_trajectories(labelled.frames)
    settings = TrainSettings(
        architecture=variant.name,
        cutoff=variant.cutoff,
        n_steps=arguments.steps,
        batch_atoms=arguments.batch_atoms,
        learning_rate=arguments.learning_rate,
        n_validations=10,
        patience=99,
        seed=arguments.seed,
        device=arguments.device,
    )
    start = time.perf_counter()
    work = arguments.out / "work" / name
    result = train_student(training, validation, settings, work, resume=work.exists())
    seconds = time.perf_counter() - start
    student = result.student
    if arguments.device != "cpu" and torch.cuda.is_available():
        student = student.to("cuda")
    accuracy = {
        part: measure_frames(frames, predict(student, [frame.atoms for frame in frames])).to_dict()
        for part, frames in (("validation", validation), ("test", test))
    }
    provenance = collect_provenance().model_dump(mode="json")
    record = {
        "job": name,
        "system": path.stem,
        "teacher": labelled.teacher,
        "variant": asdict(variant),
        "settings": settings.to_dict(),
        "config": student.config.to_dict(),
        "n_frames": {"train": len(training), "validation": len(validation), "test": len(test)},
        "test_trajectories": sorted({frame.trajectory for frame in test}),
        "test_temperatures": sorted({frame.temperature for frame in test}),
        "n_parameters": sum(p.numel() for p in student.parameters()),
        "n_steps": result.n_steps,
        "seconds_this_process": round(seconds, 1),
        "accuracy": accuracy,
        "learning_curve": result.learning_curve,
        "provenance": {**provenance, **read_commit()},
    }
    target = arguments.out / "jobs" / f"{name}.json"
    write_atomically(target, (json.dumps(clean(record), indent=1) + "\n").encode())


def read_commit() -> dict[str, str]:
    """The commit given in the environment, where there is no git."""
    commit = os.environ.get("FASTFF_COMMIT")
    return {"commit": commit} if commit else {}


def clean(value: Any) -> Any:
    """The same record with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): clean(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [clean(entry) for entry in value]
    if isinstance(value, float) and value - value != 0.0:
        return None
    return value


def run_all(arguments: argparse.Namespace) -> list[str]:
    """Run the jobs that are not done, several at a time; returns the names of those that failed or were cut off."""
    end = time.monotonic() + arguments.budget_seconds
    waiting = [job[0] for job in list_jobs(arguments)]
    waiting = [name for name in waiting if not (arguments.out / "jobs" / f"{name}.json").exists()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    logs = arguments.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    given = [word for word in sys.argv[1:] if word != "--job"]
    while waiting or running:
        late = time.monotonic() > end
        while waiting and not late and len(running) < arguments.processes:
            name = waiting.pop(0)
            with (logs / f"{name}.log").open("ab") as log:
                command = [sys.executable, __file__, *given, "--job", name]
                running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        if late:
            failed += waiting
            waiting = []
            for child in running.values():
                child.terminate()
        for name, child in list(running.items()):
            try:
                code = child.wait(timeout=1.0 / max(len(running), 1))
            except subprocess.TimeoutExpired:
                continue
            del running[name]
            done = (arguments.out / "jobs" / f"{name}.json").exists()
            if code != 0 or not done:
                failed.append(name)
            print(f"{name}: {'done' if done else f'ended with code {code}'}", flush=True)
    return failed


def read_records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "jobs").glob("*.json"))]


def tabulate(records: list[dict[str, Any]]) -> str:
    """Markdown: one row for each system and variant, measured on test frames."""
    lines = [
        "| system | student | A_F | force MAE (meV/Å) | A_E | energy MAE (meV/atom) | A_S | parameters | steps | s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def show(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    order = {variant.name: k for k, variant in enumerate(STUDENTS + ABLATIONS)}
    for record in sorted(
        records, key=lambda r: (r["system"], order.get(r["variant"]["name"], 999))
    ):
        found = record["accuracy"]["test"]
        cells = [
            record["system"],
            record["variant"]["name"],
            show(found["force"], 100, 1),
            show(found["force_mae"], 1e3, 1),
            show(found["energy"], 100, 1),
            show(found["energy_mae"], 1e3, 2),
            show(found["stress"], 100, 1),
            f"{record['n_parameters']:,}",
            f"{record['n_steps']:,}",
            f"{record['seconds_this_process']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, nargs="+", default=[], help="label files")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "study")
    parser.add_argument("--only", default="", help="regular expression on SYSTEM__VARIANT")
    parser.add_argument("--ablations", action="store_true", help="ablations beside the students")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-atoms", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget-seconds", type=float, default=1e9)
    parser.add_argument("--list", action="store_true", help="print the jobs and stop")
    parser.add_argument("--table", action="store_true", help="only make the table")
    parser.add_argument("--job", help="run this one here (used by the program itself)")
    arguments = parser.parse_args()
    (arguments.out / "jobs").mkdir(parents=True, exist_ok=True)
    if arguments.list:
        print("\n".join(job[0] for job in list_jobs(arguments)))
        return
    if arguments.job:
        jobs = {name: (path, variant) for name, path, variant in list_jobs(arguments)}
        run_job(arguments.job, *jobs[arguments.job], arguments)
        return
    failed = [] if arguments.table else run_all(arguments)
    records = read_records(arguments.out)
    (arguments.out / "study.json").write_text(json.dumps(records, indent=1) + "\n")
    (arguments.out / "study.md").write_text(tabulate(records))
    print(tabulate(records))
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}; run again to go on")


if __name__ == "__main__":
    main()
