"""Train students and ablations on stored labels and tabulate what each reaches.

Run from the root of the repository, for example

    python bench/study.py --labels LABELS/*.npz --processes 2 --steps 5000
    python bench/study.py --labels LABELS/*.h5 --gpus 8 --processes 24 --probe --budget-seconds 480

Every job (system x variant) trains in a process of its own and leaves one JSON file in ``OUT/jobs`` and a model file
like that of ``fastff train`` in ``OUT/models``; jobs that have a record are not run again, and a job that was
interrupted goes on from its last checkpoint. ``OUT/study.json`` and ``OUT/study.md`` are made from all job files at
the end, or by ``--table`` alone. The commit is read from git, or from ``FASTFF_COMMIT``.

``--gpus N`` spreads the jobs over N GPUs, the longest first. ``--probe`` first times a training step of every variant,
alone on a GPU, and lowers the number of steps, the same for all, to what the budget allows, or ``--plan-seconds``,
which leaves room for what processes on one GPU cost each other; ``OUT/steps.json`` keeps it for later runs. A variant
whose step cannot be captured into a CUDA graph trains without, and with fewer steps if it must. ``ms_per_step`` of a
job is with others on the same GPU, that of ``OUT/probes.json`` without.

Validation and test frames are whole trajectories, spread evenly over their order (which is that of temperature in the
sets this was written for): of every eight, the fourth is for testing, the seventh for validation. Test frames are
looked at once, by the final weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import


@dataclass(frozen=True)
class Variant:
    """A student and the sizes in which it differs from its architecture."""

    name: str
    architecture: str
    sizes: dict[str, Any]
    cutoff: float = 5.0
    rate: float = 1.0
    """Learning rate relative to ``--learning-rate``."""


def vary(base: str, label: str, cutoff: float = 5.0, rate: float = 1.0, **sizes: Any) -> Variant:
    return Variant(f"{base}-{label}", base, sizes, cutoff, rate)


STUDENTS = [Variant(name, name, {}) for name in ("m1", "m2", "m2-l", "painn")]
ABLATIONS = [
    *(vary("m2", f"rc{r:g}", cutoff=r) for r in (4.0, 4.5, 5.5, 6.0)),
    *(vary("m2", f"c{n}", n_channels=n, n_mixed=n) for n in (8, 24)),
    *(vary("m2", f"k{n}", n_radial=n) for n in (4, 6, 12)),
    *(vary("m2", f"l{n}", l_max=n) for n in (1, 2)),
    *(vary("m2", f"body{n}", body_order=n) for n in (2, 3)),
    *(vary("m2", f"h{n}", hidden=(n, n)) for n in (32, 128)),
    vary("m2", "lr0.4", rate=0.4),
    vary("m1", "c32", n_channels=32, n_mixed=32),
    vary("m1", "c32-h128", n_channels=32, n_mixed=32, hidden=(128, 128)),
    vary("m1", "rc6", cutoff=6.0),
    vary("painn", "c64", n_channels=64, hidden=(64, 64)),
    vary("painn", "rc6", cutoff=6.0),
    vary("painn", "lr0.4", rate=0.4),
]
PROBE_STEPS, PROBE_FRAMES = 200, 512
OVERHEAD_SECONDS = 60.0
"""What a job takes beside its steps: imports, labels, neighbors, validations, measuring."""
LEAST_STEPS = 200
GRACE_SECONDS = 15.0
"""Between asking a job to end and ending it."""


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


class Clock:
    """Notes when steps ended."""

    def __init__(self, n_steps: int) -> None:
        self.every = max(1, n_steps // 100)
        self.marks: list[tuple[int, float]] = []

    def __call__(self, progress: Any) -> None:
        if progress.step % self.every == 0:
            self.marks.append((progress.step, time.perf_counter()))

    def measure(self, n_frames: int) -> dict[str, float | None]:
        """Median time of a step, which leaves validations out, after the first tenth, and frames per second from it."""
        marks = self.marks[len(self.marks) // 10 :]
        times = [
            (t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in itertools.pairwise(marks) if s1 > s0
        ]
        if not times:
            return {"ms_per_step": None, "frames_per_second": None}
        seconds = statistics.median(times)
        return {"ms_per_step": 1e3 * seconds, "frames_per_second": n_frames / seconds}


def configure(variant: Variant, arguments: argparse.Namespace) -> Any:
    """Training settings of a variant, whose sizes get a name of their own in this process."""
    import torch

    torch.set_num_threads(1)
    from fastff.distill import module
    from fastff.distill.train import TrainSettings
    from fastff.models import ARCHITECTURES

    # A named architecture of this process alone: what configure_student and build_student look up.
    ARCHITECTURES[variant.name] = {**ARCHITECTURES[variant.architecture], **variant.sizes}
    if arguments.eager:
        module.CapturedLosses = lambda losses: lambda *fields: losses(*fields)  # type: ignore[assignment,misc]
    return TrainSettings(
        architecture=variant.name,
        cutoff=variant.cutoff,
        n_steps=arguments.steps,
        batch_atoms=arguments.batch_atoms,
        learning_rate=variant.rate * arguments.learning_rate,
        n_validations=10,
        patience=99,
        seed=arguments.seed,
        device=arguments.device,
    )


def run_job(name: str, path: Path, variant: Variant, arguments: argparse.Namespace) -> None:
    """Train, measure, and store the model and the record."""
    import torch

    settings = configure(variant, arguments)
    from fastff import kernels
    from fastff.checkpoint import save_model, write_atomically
    from fastff.distill.data import choose_batch_size
    from fastff.distill.formats import read_labels
    from fastff.distill.ladder import calibrate_uncertainty, measure_student, pick_torch_device
    from fastff.distill.split import Split
    from fastff.distill.train import train_student
    from fastff.report.provenance import collect_provenance

    labelled = read_labels(path)
    split = Split(*split_trajectories(labelled.frames))
    start, clock = time.perf_counter(), Clock(settings.n_steps)
    work = arguments.out / "work" / name
    result = train_student(
        split.train, split.validation, settings, work, resume=work.exists(), on_step=clock
    )
    seconds = time.perf_counter() - start
    student = result.student
    student.config = replace(student.config, architecture=variant.architecture)
    student.to(pick_torch_device(arguments.device))
    with kernels.use("torch"):
        accuracy = {
            part: measure_student(student, frames)
            for part, frames in (("validation", split.validation), ("test", split.test))
        }
        student.uncertainty = calibrate_uncertainty(student, split)
    header = describe_model(path, variant, settings, labelled, split, result, accuracy)
    provenance = {**collect_provenance().model_dump(mode="json"), **read_commit()}
    (arguments.out / "models").mkdir(exist_ok=True)
    save_model(arguments.out / "models" / f"{name}.safetensors", student, header)
    record = {
        "job": name,
        "system": path.stem,
        "teacher": labelled.teacher,
        "variant": asdict(variant),
        "settings": settings.to_dict(),
        "config": student.config.to_dict(),
        "n_frames": {
            "train": len(split.train),
            "validation": len(split.validation),
            "test": len(split.test),
        },
        "test_trajectories": sorted({frame.trajectory for frame in split.test}),
        "test_temperatures": sorted({frame.temperature for frame in split.test}),
        "n_parameters": sum(p.numel() for p in student.parameters()),
        "n_steps": result.n_steps,
        "seconds": round(result.seconds, 1),
        "seconds_this_process": round(seconds, 1),
        "captured": torch.cuda.is_available() and not arguments.eager,
        **clock.measure(choose_batch_size(split.train, settings.batch_atoms)),
        "accuracy": {part: found.to_dict() for part, found in accuracy.items()},
        "learning_curve": result.learning_curve,
        "provenance": provenance,
    }
    target = arguments.out / "jobs" / f"{name}.json"
    write_atomically(target, (json.dumps(clean(record), indent=1) + "\n").encode())


def describe_model(
    path: Path,
    variant: Variant,
    settings: Any,
    labelled: Any,
    split: Any,
    result: Any,
    accuracy: dict[str, Any],
) -> dict[str, Any]:
    """Header of the model file, as ``fastff train --labels`` would write it."""
    from fastff.distill.header import build_header
    from fastff.distill.request import DistillRequest
    from fastff.distill.run import choose_examples

    request = DistillRequest(
        labels=Path(path.name),
        student=variant.architecture,  # type: ignore[arg-type]
        cutoff=settings.cutoff,
        n_steps=settings.n_steps,
        learning_rate=settings.learning_rate,
        batch_atoms=settings.batch_atoms,
        patience=settings.patience,
        seed=settings.seed,
    )
    seeds = choose_examples([frame.atoms for frame in labelled.frames])
    header = build_header(request, labelled, seeds, split, result, accuracy)
    return {**header, "provenance": {**header["provenance"], **read_commit()}}


def run_probe(path: Path, variant: Variant, arguments: argparse.Namespace) -> None:
    """Time training steps of one variant on a part of the frames, and store what was found."""
    import tempfile

    import torch

    settings = replace(
        configure(variant, arguments), n_steps=arguments.probe_steps, n_validations=1
    )
    from fastff.checkpoint import write_atomically
    from fastff.distill.data import choose_batch_size
    from fastff.distill.formats import read_labels
    from fastff.distill.train import train_student

    training, validation, _ = split_trajectories(read_labels(path).frames)
    chosen = training[:: max(1, len(training) // PROBE_FRAMES)][:PROBE_FRAMES]
    clock = Clock(settings.n_steps)
    with tempfile.TemporaryDirectory() as folder:
        train_student(chosen, validation[:8], settings, Path(folder) / "probe", on_step=clock)
    on_gpu = arguments.device != "cpu" and torch.cuda.is_available()
    record = {
        "variant": variant.name,
        "system": path.stem,
        "batch_atoms": settings.batch_atoms,
        **clock.measure(choose_batch_size(chosen, settings.batch_atoms)),
        "captured": on_gpu and not arguments.eager,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
    }
    target = arguments.out / "probes" / f"{variant.name}.json"
    write_atomically(target, (json.dumps(record) + "\n").encode())


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


@dataclass(frozen=True)
class Task:
    """A child process: its name, the words that make it, the file that says it is done, and how long it may take."""

    name: str
    words: tuple[str, ...]
    record: Path
    weight: float = 1.0


class Pool:
    """Runs tasks at the same time, the longest first, each on the GPU with the least to do."""

    def __init__(self, arguments: argparse.Namespace, end: float) -> None:
        self.arguments, self.end = arguments, end
        self.logs = arguments.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def run(self, tasks: list[Task], processes: int) -> list[str]:
        """Names of tasks that failed or were cut off."""
        waiting = sorted(tasks, key=lambda task: -task.weight)
        running: dict[Task, tuple[int, subprocess.Popen[bytes]]] = {}
        failed: list[str] = []
        while waiting or running:
            late = time.monotonic() > self.end
            while waiting and not late and len(running) < processes:
                task = waiting.pop(0)
                gpu = self._pick(running)
                running[task] = gpu, self._start(task, gpu)
            if late:
                failed += [task.name for task in waiting]
                waiting = []
                for _, child in running.values():
                    child.kill() if time.monotonic() > self.end + GRACE_SECONDS else child.terminate()
            time.sleep(0.5)
            for task, (_, child) in list(running.items()):
                code = child.poll()
                if code is None:
                    continue
                del running[task]
                done = task.record.exists()
                if code != 0 or not done:
                    failed.append(task.name)
                word = "done" if done else f"ended with code {code}{self._read_end(task)}"
                print(f"{task.name}: {word}", flush=True)
        return failed

    def _read_end(self, task: Task) -> str:
        lines = (self.logs / f"{task.name}.log").read_text(errors="replace").splitlines()
        return f", {lines[-1][:300]}" if lines else ""

    def _pick(self, running: dict[Task, tuple[int, Any]]) -> int:
        """The GPU with the fewest tasks, and of these the one whose tasks weigh least."""
        loads = {gpu: [0.0, 0.0] for gpu in range(max(1, self.arguments.gpus))}
        for task, (gpu, _) in running.items():
            loads[gpu][0] += 1
            loads[gpu][1] += task.weight
        return min(loads, key=lambda gpu: loads[gpu])

    def _start(self, task: Task, gpu: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        if self.arguments.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
        with (self.logs / f"{task.name}.log").open("ab") as log:
            command = [sys.executable, __file__, *sys.argv[1:], *task.words]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def read_probes(out: Path) -> dict[str, dict[str, Any]]:
    records = (json.loads(path.read_text()) for path in (out / "probes").glob("*.json"))
    return {record["variant"]: record for record in records if record["ms_per_step"]}


def probe(names: list[str], pool: Pool, arguments: argparse.Namespace) -> None:
    """Time the variants that have no probe; once more without capture where that failed."""
    folder = arguments.out / "probes"
    folder.mkdir(exist_ok=True)
    for extra in ((), ("--eager",)):
        tasks = [
            Task(f"probe-{name}", ("--probe-one", name, *extra), folder / f"{name}.json")
            for name in names
            if not (folder / f"{name}.json").exists()
        ]
        pool.run(tasks, max(1, arguments.gpus))


def choose_steps(
    variants: list[str], probes: dict[str, dict[str, Any]], most: int, gpus: int, seconds: float
) -> dict[str, int]:
    """Steps of each variant, for one job per entry of ``variants`` on ``gpus`` GPUs within ``seconds``.

    As many for all as fit, at most ``most``; fewer for a variant that would alone take longer than that.
    """
    known = [probes[name]["ms_per_step"] for name in variants if name in probes]
    if not known:
        return dict.fromkeys(variants, most)
    times = {
        name: probes[name]["ms_per_step"] if name in probes else max(known) for name in variants
    }
    available = 1e3 * max(seconds - OVERHEAD_SECONDS, 1.0)
    captured = sum(times[name] for name in variants if probes.get(name, {}).get("captured", True))
    common = available * max(gpus, 1) / captured if captured else most
    return {
        name: min(most, max(LEAST_STEPS, int(min(common, 0.8 * available / ms) // 100) * 100))
        for name, ms in times.items()
    }


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


def read_records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "jobs").glob("*.json"))]


def tabulate(records: list[dict[str, Any]]) -> str:
    """Markdown: one row for each system and variant, measured on test frames."""
    lines = [
        "| system | student | A_F | force MAE (meV/Å) | A_E | energy MAE (meV/atom) | A_S "
        "| parameters | steps | s | ms/step |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
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
            f"{record.get('seconds', record['seconds_this_process']):.0f}",
            show(record.get("ms_per_step"), 1.0, 2),
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
    records = read_records(arguments.out)
    (arguments.out / "study.json").write_text(json.dumps(records, indent=1) + "\n")
    (arguments.out / "probes.json").write_text(json.dumps(read_probes(arguments.out)) + "\n")
    (arguments.out / "study.md").write_text(tabulate(records))
    print(tabulate(records))
    if failed:
        raise SystemExit(f"not finished: {', '.join(failed)}; run again to go on")


if __name__ == "__main__":
    main()
