"""Which job of ``study.py`` or ``recipes.py`` runs when, where and for how many steps. Not here: what a job does."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("study.py")
"""What a child process runs."""
OVERHEAD_SECONDS = 60.0
"""What a job takes beside its steps: imports, labels, neighbors, validations, measuring."""
LEAST_STEPS = 200
GRACE_SECONDS = 15.0
"""Between asking a job to end and ending it."""


@dataclass(frozen=True)
class Task:
    """A child process: its name, the words that make it, the file that says it is done, and how long it may take."""

    name: str
    words: tuple[str, ...]
    record: Path
    weight: float = 1.0


class Pool:
    """Runs tasks at the same time, the longest first, each on the GPU with the least to do.

    A child runs ``script`` with the words of this process, then its own.
    """

    def __init__(self, arguments: argparse.Namespace, end: float, script: Path = SCRIPT) -> None:
        self.arguments, self.end, self.script = arguments, end, script
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
            visible = [g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g]
            environment["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
        with (self.logs / f"{task.name}.log").open("ab") as log:
            command = [sys.executable, str(self.script), *sys.argv[1:], *task.words]
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
