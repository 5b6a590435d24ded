"""Labelling and dynamics on several devices as users run them, by commands. Not here: training (``multi_gpu.py``)."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.multi_gpu_rows import Rows, add_efficiency, last_long_enough

MODEL_NAME = "model.safetensors"


def measure_labelling(arguments: argparse.Namespace, rows: Rows) -> None:
    """Labels of the same structures from 1, 2, ... processes."""
    structures = rattle_structures(arguments)
    for devices in (n for n in arguments.devices for _ in range(arguments.repeats)):
        out = arguments.out / f"labels-{devices}.h5"
        out.unlink(missing_ok=True)
        start = time.perf_counter()
        text = run([*command_labelling(arguments, structures, out), "--devices", str(devices)])
        seconds = time.perf_counter() - start
        row = {"devices": devices, "wall_seconds": round(seconds, 1)}
        row |= compare_labels(out, arguments.out / f"labels-{arguments.devices[0]}.h5")
        row["atoms_per_frame"] = row.pop("n_atoms") / row["n_frames"]
        for name, time_per_atom in zip(
            ("with_cold_batches", "frames_per_second"), read_verdict(text), strict=True
        ):
            row[name] = 1e3 / (time_per_atom * row["atoms_per_frame"])
        add_efficiency([*rows, row], "frames_per_second")
        rows.note(row)


def measure_shards(arguments: argparse.Namespace, rows: Rows) -> None:
    """Labels of the same structures from 1, 2, ... shards at the same time on one device, merged."""
    structures = rattle_structures(arguments)
    for count in (n for n in arguments.shards for _ in range(arguments.repeats)):
        out = arguments.out / f"shards-{count}.h5"
        for old in arguments.out.glob(f"shards-{count}*.h5"):
            old.unlink()
        command = command_labelling(arguments, structures, out)
        commands = [[*command, "--shard", f"{k + 1}/{count}"] for k in range(count)]
        start = time.perf_counter()
        texts = run_together(commands)
        seconds = time.perf_counter() - start
        parts = sorted(arguments.out.glob(f"shards-{count}.*-of-{count}.h5"))
        run([sys.executable, "-m", "fastff", "merge", *map(str, parts), "--out", str(out)])
        found = compare_labels(out, arguments.out / f"shards-{arguments.shards[0]}.h5")
        size = found.pop("n_atoms") / found["n_frames"]
        row = {"devices": 1, "shards": count, "scaling": f"{count} shards"}
        row |= {"wall_seconds": round(seconds, 1), **found, "atoms_per_frame": size}
        row["frames_per_second"] = sum(1e3 / (read_verdict(text)[1] * size) for text in texts)
        single = [one["frames_per_second"] for one in [*rows, row] if one["shards"] == 1]
        row["efficiency"] = row["frames_per_second"] / median(single) if single else None
        rows.note(row)


def command_labelling(arguments: argparse.Namespace, structures: Path, out: Path) -> list[str]:
    """What labels the structures."""
    command = [sys.executable, "-m", "fastff", "label", str(structures)]
    command += ["--teacher", arguments.teacher, "--out", str(out), "--no-self-check"]
    command += ["--device", arguments.device]
    if arguments.label_atoms is not None:
        command += ["--batch-atoms", str(arguments.label_atoms)]
    return command


def read_verdict(text: str) -> tuple[float, float]:
    """Time per atom in ms that ``fastff label`` found, of all batches and of warm ones."""
    found = re.search(r"([\d.e+-]+) ms per atom,\s+([\d.e+-]+) when warm", " ".join(text.split()))
    if found is None:
        raise SystemExit(f"no verdict in what fastff label said, or too few batches:\n{text}")
    return float(found[1]), float(found[2])


def rattle_structures(arguments: argparse.Namespace) -> Path:
    """The structures to label; as many rattled copies of those given as are asked for."""
    if not arguments.label_frames:
        return arguments.structures
    from ase.io import read, write

    given = read(arguments.structures, index=":")
    copies = []
    for k in range(arguments.label_frames):
        atoms = given[k % len(given)].copy()
        atoms.rattle(0.02, seed=k)
        copies.append(atoms)
    path = arguments.out / "rattled.traj"
    write(path, copies)
    return path


def compare_labels(path: Path, reference: Path) -> dict[str, Any]:
    """Frames of a label file, and how far they are from those of another."""
    import numpy as np

    from fastff.distill.content import hash_structure
    from fastff.distill.store import LabelStore

    def read(file: Path) -> dict[bytes, Any]:
        with LabelStore(file) as store:
            frames = store.read()
            found = {hash_structure(frame.atoms): frame.labels for frame in frames}
            assert len(found) == len(frames)
            return found

    mine, others = read(path), read(reference)
    common = mine.keys() & others.keys()
    return {
        "n_frames": len(mine),
        "n_atoms": sum(len(labels.forces) for labels in mine.values()),
        "n_missing": len(others.keys() - common),
        "n_extra": len(mine.keys() - common),
        "energy_difference": max(
            (abs(mine[k].energy - others[k].energy) for k in common), default=0.0
        ),
        "force_difference": max(
            (float(np.abs(mine[k].forces - others[k].forces).max()) for k in common), default=0.0
        ),
    }


def measure_dynamics(arguments: argparse.Namespace, rows: Rows) -> None:
    """Replicas that run at the same time, one on each device."""
    for devices in arguments.devices:
        for _ in range(arguments.repeats):
            once = partial(run_replicas, arguments, devices)
            row = last_long_enough(once, arguments.md_steps, arguments.window)
            add_efficiency([*rows, row], "total")
            rows.note(row)


def run_replicas(arguments: argparse.Namespace, devices: int, steps: int) -> dict[str, Any]:
    """Start one replica on each device and measure them."""
    with tempfile.TemporaryDirectory(dir=arguments.out) as place:
        folders = [Path(place) / str(k) for k in range(devices)]
        running = []
        for k, folder in enumerate(folders):
            command = [sys.executable, "-m", "fastff", "md", str(arguments.out / MODEL_NAME)]
            command += [str(arguments.structures), "--out", str(folder), "--seed", str(k)]
            command += ["--temperature", str(arguments.temperature), "--timestep", "1fs"]
            command += ["--steps", str(steps), "--device", arguments.device]
            command += ["--repeat", *(str(n) for n in arguments.md_repeat)]
            environment = {**os.environ}
            if arguments.device != "cpu":
                environment["CUDA_VISIBLE_DEVICES"] = str(k)
            running.append(
                subprocess.Popen(
                    command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
        try:
            texts = [process.communicate()[0].decode() for process in running]
        except TimeoutError:
            for process in running:
                process.kill()
                process.wait()
            raise
        for process, text in zip(running, texts, strict=True):
            if process.returncode != 0:
                raise SystemExit(f"fastff md ended with code {process.returncode}:\n{text[-2000:]}")
        records = [json.loads((folder / "run.json").read_text()) for folder in folders]
        ends = [(folder / "run.json").stat().st_mtime for folder in folders]
    rates = [record["steps_of_this_process"] / record["seconds"] for record in records]
    begins = [end - record["seconds"] for end, record in zip(ends, records, strict=True)]
    return {
        "devices": devices,
        "n_steps": steps,
        "steps_per_second": rates,
        "total": sum(rates),
        "window_seconds": min(record["seconds"] for record in records),
        "overlap": max(0.0, min(ends) - max(begins)) / max(record["seconds"] for record in records),
    }


def run(command: list[str]) -> str:
    """Output of a program that must succeed."""
    return run_together([command])[0]


def run_together(commands: list[list[str]]) -> list[str]:
    """Outputs of programs that run at once and must succeed; where time runs out, all their processes end with it."""
    # a pipe that is not read would fill and hold them up
    outputs = [tempfile.TemporaryFile("w+") for _ in commands]  # noqa: SIM115 (closed when read)
    running = [
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        for command, output in zip(commands, outputs, strict=True)
    ]
    try:
        for process in running:
            process.wait()
    except TimeoutError:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        raise
    texts = []
    for command, process, output in zip(commands, running, outputs, strict=True):
        with output:
            output.seek(0)
            texts.append(output.read())
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command[2:5])} failed:\n{texts[-1][-4000:]}")
    return texts
