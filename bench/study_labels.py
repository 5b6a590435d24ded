"""Label the systems of the study: dynamics driven by the teacher on ladders of temperature.

Run from the root of the repository, for example

    python bench/study_labels.py --out LABELS --seconds 200 --gpus 8 --processes 24

Every system has some 96 replicas, each with its own strain, velocities and, for the alloy, arrangement of atoms. Those
of a liquid are melted first. A process runs every n-th replica of one system in one batch of the teacher and stops by
itself when ``--seconds`` are over; run again with the same ``--processes``, it goes on from the last stored frames,
with new velocities. Then the files of a system are joined to ``OUT/NAME.h5``, and ``OUT/labels.json`` says how far it
came and how far atoms moved. ``--export FOLDER`` also writes ``NAME.npz`` in single precision with all test and
validation frames, and as many evenly chosen training frames as ``--megabytes`` allow.

Dynamics alone teaches no core repulsion: students of it have wells where atoms are pushed together. So ``--contacts``
structures of each training trajectory, with pairs pushed to between 0.5 and 0.9 of their shortest distance (but no
nearer than students follow), come first; validation and test frames are dynamics alone.

Averages over positions do not depend on masses: those of light atoms are raised, so that a step can be longer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ase
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

from bench.study_systems import (  # noqa: E402
    SHEAR,
    SYSTEMS,
    System,
    build_start,
    list_replicas,
)
from bench.study_training import HELD_OUT, split_trajectories  # noqa: E402

FRICTION = 0.02
"""1/fs."""
MAX_FORCE = 60.0
"""eV/Å; frames with larger ones are set aside."""
MAX_CONTACT_FORCE = 200.0
"""The same for structures with close contacts."""
CONTACT_RANGE = (0.5, 0.9)
"""Distances of pushed pairs over the shortest one of their kind."""


class TimeIsOverError(Exception):
    """Raised inside the dynamics when the time is over."""


def run_part(arguments: argparse.Namespace) -> None:
    """Run every n-th replica of one system until the time is over."""
    import torch

    from fastff.checkpoint import write_atomically
    from fastff.distill.cells import press_pairs
    from fastff.distill.dynamics import LangevinSettings, Replica, draw_momenta, run_langevin
    from fastff.distill.store import LabelStore
    from fastff.labels import Frame, Labels
    from fastff.report.provenance import collect_provenance
    from fastff.teachers import load_teacher

    torch.set_num_threads(arguments.threads)
    name, part, n_parts = arguments.part.split(":")
    (system,) = (one for one in SYSTEMS if one.name == name)
    stride = arguments.stride or system.stride
    teacher = load_teacher(arguments.teacher, device=arguments.device)
    path = arguments.out / "parts" / f"{name}.{int(part) + 1}-of-{n_parts}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    planned = list(enumerate(list_replicas(system, arguments.replicas)))
    n_replicas, planned = len(planned), planned[int(part) :: int(n_parts)]
    store = LabelStore(path, "a", teacher=teacher.info)
    store.note(
        study=describe_system(system, arguments), provenance=describe_run(collect_provenance)
    )
    found = {frame.trajectory: frame for frame in find_last(store)}
    start, counts = time.time(), {"evaluations": 0, "frames": len(store)}

    def count(number: int) -> None:
        counts["evaluations"] += number
        if time.time() > arguments.end:
            raise TimeIsOverError

    def keep(frames: list[Frame]) -> None:
        store.append([strip(frame) for frame in frames], force_limit=MAX_FORCE)

    def strip(frame: Frame) -> Frame:
        """Positions and cell alone: momenta belong to the masses of this run."""
        old = frame.atoms
        atoms = ase.Atoms(old.numbers, old.positions, cell=old.cell.array, pbc=True)
        labels = Labels(frame.labels.energy, frame.labels.forces, frame.labels.stress)
        return Frame(atoms, labels, frame.source, frame.trajectory, frame.temperature, frame.step)

    def run(replicas: list[Replica], n_steps: int, first: int, seed: int, write: Any) -> None:
        settings = LangevinSettings(
            n_steps,
            system.timestep,
            FRICTION,
            stride=stride,
            first_kept=first,
            seed=seed,
            min_distance=0.0,  # forces say it sooner
        )
        run_langevin(
            replicas, teacher.label, settings, source="teacher-md", on_frames=write, on_step=count
        )

    def press(replicas: list[Replica]) -> None:
        """Label structures with close contacts for the training trajectories that have none yet."""
        rng = np.random.default_rng([arguments.seed, int(part)])
        fractions = np.linspace(*CONTACT_RANGE, max(arguments.contacts, 1))[: arguments.contacts]
        for replica in replicas:
            if replica.trajectory % 8 in HELD_OUT or replica.trajectory in found:
                continue
            pressed = [press_pairs(replica.atoms, float(fraction), rng) for fraction in fractions]
            pushed = [atoms for atoms in pressed if atoms is not None]
            count(len(pushed))
            where = replica.trajectory, replica.temperature
            frames = [
                Frame(atoms, labels, "close-contact", *where, -1 - k)
                for k, (atoms, labels) in enumerate(zip(pushed, teacher.label(pushed), strict=True))
            ]
            store.append([strip(frame) for frame in frames], force_limit=MAX_CONTACT_FORCE)

    replicas, molten = [], []
    for index, (ladder, temperature) in planned:
        atoms = build_start(system, ladder, index, arguments.seed)
        step, hot = 0, 2 * temperature  # half of which becomes potential energy
        if index in found:
            atoms.positions[:] = found[index].atoms.positions
            step, hot = found[index].step, temperature
        elif ladder.melt:
            hot = ladder.melt
        atoms.set_momenta(draw_momenta(atoms, hot, arguments.seed + step, index))
        replicas.append(Replica(atoms, temperature, index, step))
        if ladder.melt and not step:
            molten.append((replicas[-1], ladder.melt))
    most = arguments.equilibration + stride * -(-arguments.frames // n_replicas)
    try:
        for replica, melt in molten:
            replica.temperature = melt
        hot_replicas = [replica for replica, _ in molten]
        melt_steps = system.melt_steps if arguments.melt is None else arguments.melt
        run(hot_replicas, melt_steps, melt_steps + 1, arguments.seed + 1, lambda frames: None)
        for replica in hot_replicas:
            index = replica.trajectory
            replica.temperature = dict(planned)[index][1]
            replica.step, replica.labels = 0, None
            momenta = draw_momenta(replica.atoms, replica.temperature, arguments.seed, index)
            replica.atoms.set_momenta(momenta)
        press(replicas)
        run(replicas, most, arguments.equilibration, arguments.seed, keep)
    except TimeIsOverError:
        pass
    counts["frames"] = len(store) - counts["frames"]
    store.close()
    seconds = time.time() - start
    report = {
        **counts,
        "atoms": len(replicas[0].atoms),
        "seconds": round(seconds, 1),
        "atoms_per_second": round(counts["evaluations"] * len(replicas[0].atoms) / seconds),
        "steps": [min(r.step for r in replicas), max(r.step for r in replicas)],
        "stopped": [f"replica {r.trajectory}: {r.stopped}" for r in replicas if r.stopped],
    }
    write_atomically(path.with_suffix(".json"), json.dumps(report).encode())
    print(json.dumps(report))


def find_last(store: Any) -> list[Any]:
    """The last stored frame of every trajectory."""
    trajectories, steps = store.read_column("trajectory"), store.read_column("step")
    last: dict[int, int] = {}
    for place in np.argsort(steps, kind="stable"):
        last[int(trajectories[place])] = int(place)
    return list(store.read(list(last.values()))) if last else []


def describe_system(system: System, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the label file says of how its frames were made."""
    return {
        "system": system.name,
        "ladders": [asdict(ladder) for ladder in system.ladders],
        "timestep_fs": system.timestep,
        "stride": arguments.stride or system.stride,
        "friction_per_fs": FRICTION,
        "masses": system.masses,
        "equilibration_steps": arguments.equilibration,
        "melt_steps": system.melt_steps if arguments.melt is None else arguments.melt,
        "contacts": arguments.contacts,
        "contact_range": CONTACT_RANGE,
        "shear": SHEAR,
        "seed": arguments.seed,
    }


def describe_run(collect: Callable[[], Any]) -> dict[str, Any]:
    record: dict[str, Any] = collect().model_dump(mode="json")
    commit = os.environ.get("FASTFF_COMMIT")
    return {**record, "commit": commit} if commit else record


def finish_system(arguments: argparse.Namespace) -> None:
    """Join the files of one system, say what they hold, and export it in single precision."""
    from fastff.checkpoint import write_atomically
    from fastff.distill.merging import merge_labels
    from fastff.distill.store import LabelStore

    (system,) = (one for one in SYSTEMS if one.name == arguments.finish)
    parts = sorted((arguments.out / "parts").glob(f"{system.name}.*-of-*.h5"))
    merge_labels(parts, arguments.out / f"{system.name}.h5", replace=True)
    with LabelStore(arguments.out / f"{system.name}.h5") as store:
        frames, record = store.read(), {**store.record, "teacher": store.teacher}
        aside = [reason for _, reason in store.read_quarantine()]
    if not frames:
        raise SystemExit(f"{system.name}: no frames; give more --seconds, or run again to go on")
    reports = [json.loads(path.with_suffix(".json").read_text()) for path in parts]
    summary = {
        "system": system.name,
        "frames": len(frames),
        "atoms": len(frames[0].atoms),
        "rms_force": float(np.sqrt(np.mean([np.mean(f.labels.forces**2) for f in frames]))),
        "evaluations": sum(report["evaluations"] for report in reports),
        "atoms_per_second": sum(report["atoms_per_second"] for report in reports),
        "steps": [min(r["steps"][0] for r in reports), max(r["steps"][1] for r in reports)],
        "stopped": [reason for report in reports for reason in report["stopped"]],
        "set_aside": aside,
        "phases": describe_phases(system, frames, arguments),
        "protocol": record,
    }
    target = arguments.out / "parts" / f"{system.name}.json"
    write_atomically(target, json.dumps(summary).encode())
    if arguments.export:
        export_frames(frames, record, arguments.export / f"{system.name}.npz", arguments.megabytes)


def describe_phases(
    system: System, frames: list[Any], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """How far atoms are from the lattice at the first frame, and move until the last: whether a liquid is one."""
    own: dict[int, list[Any]] = {}
    for frame in frames:
        if frame.source == "teacher-md":
            own.setdefault(frame.trajectory, []).append(frame)
    rows = []
    planned = list(enumerate(list_replicas(system, arguments.replicas)))
    for ladder in system.ladders:
        away, moved, n_frames = [], [], 0
        for index, (other, _) in planned:
            if other is not ladder or index not in own:
                continue
            first, last = own[index][0], own[index][-1]
            lattice = build_start(system, ladder, index, arguments.seed).positions
            away.append(measure_distance(first.atoms.positions, lattice))
            moved.append(measure_distance(last.atoms.positions, first.atoms.positions))
            n_frames += len(own[index])
        if moved:
            rows.append(
                {
                    "phase": ladder.phase,
                    "replicas": len(moved),
                    "frames": n_frames,
                    "rms_from_start": float(np.median(away)),
                    "least_rms_from_start": min(away),
                    "rms_moved": float(np.median(moved)),
                    "least_rms_moved": min(moved),
                }
            )
    return rows


def measure_distance(after: np.ndarray, before: np.ndarray) -> float:
    """Root mean square distance, Å, without that of the whole."""
    moves = after - before
    moves = moves - moves.mean(axis=0)
    return float(np.sqrt(np.square(moves).sum(axis=1).mean()))


def export_frames(frames: list[Any], record: dict[str, Any], path: Path, megabytes: float) -> None:
    """Write frames to a NumPy archive: test and validation frames, and training frames as far as there is room."""
    training, validation, test = split_trajectories(frames)
    each = 24 * len(frames[0].atoms) + 80
    room = max(0, int(megabytes * 2**20 * 0.99 / each) - len(validation) - len(test))
    places = np.linspace(0, len(training) - 1, min(room, len(training))).round().astype(int)
    chosen = [training[k] for k in places] + validation + test
    chosen.sort(key=lambda frame: (frame.trajectory, frame.step))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        numbers=chosen[0].atoms.numbers,
        positions=np.array([f.atoms.positions for f in chosen], np.float32),
        cell=np.array([f.atoms.cell.array for f in chosen], np.float32),
        energy=np.array([f.labels.energy for f in chosen]),
        forces=np.array([f.labels.forces for f in chosen], np.float32),
        stress=np.array([f.labels.stress for f in chosen], np.float32),
        temperature=np.array([f.temperature for f in chosen], np.float32),
        replica=np.array([f.trajectory for f in chosen], np.int32),
        step=np.array([f.step for f in chosen], np.int32),
        record=np.array(json.dumps({**record, "n_frames": len(frames), "n_kept": len(chosen)})),
    )


def start_child(arguments: argparse.Namespace, number: int, *words: str) -> Any:
    """Start this program for a part of the work, on the next GPU."""
    logs = arguments.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if arguments.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(number % arguments.gpus)
    command = [sys.executable, __file__, *sys.argv[1:], *words]
    with (logs / f"{words[1].replace(':', '-')}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_all(arguments: argparse.Namespace) -> list[str]:
    """Run all parts at once, then join; returns what failed."""
    end = time.time() + arguments.seconds
    names = [system.name for system in SYSTEMS if system.name in arguments.systems]
    n_parts = max(1, arguments.processes // len(names))
    work = [f"{name}:{part}:{n_parts}" for part in range(n_parts) for name in names]
    children = {
        word: start_child(arguments, k, "--part", word, "--end", str(end))
        for k, word in enumerate(work)
    }
    failed = wait_for(children, arguments)
    late = time.time() - end
    print(f"{len(work) - len(failed)} of {len(work)} parts ended, {late:+.0f} s from the time set")
    children = {name: start_child(arguments, k, "--finish", name) for k, name in enumerate(names)}
    return failed + wait_for(children, arguments)


def wait_for(children: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    """Names of the children that failed, each with the last line of its log printed."""
    failed = [word for word, child in children.items() if child.wait() != 0]
    for word in failed:
        log = arguments.out / "logs" / f"{word.replace(':', '-')}.log"
        lines = log.read_text(errors="replace").splitlines() or [""]
        print(f"{word}: {lines[-1][:300]}", flush=True)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", default="sevennet:7net-0")
    parser.add_argument("--systems", nargs="+", default=[system.name for system in SYSTEMS])
    parser.add_argument("--seconds", type=float, default=200.0, help="of dynamics, start included")
    parser.add_argument("--frames", type=int, default=10000, help="most of each system")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--gpus", type=int, default=0, help="0 leaves the choice to the teacher")
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--replicas", type=int, help="of each system, about")
    parser.add_argument(
        "--equilibration", type=int, default=60, help="steps before the first frame"
    )
    parser.add_argument("--melt", type=int, help="steps of melting")
    parser.add_argument(
        "--contacts", type=int, default=8, help="structures with close contacts of each trajectory"
    )
    parser.add_argument("--stride", type=int, help="steps between frames")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export", type=Path, help="folder for archives in single precision")
    parser.add_argument("--megabytes", type=float, default=10.0, help="of each archive")
    parser.add_argument("--part", help="SYSTEM:PART:PARTS, used by the program itself")
    parser.add_argument("--end", type=float, help="used by the program itself")
    parser.add_argument("--finish", help="used by the program itself")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        run_part(arguments)
        return
    if arguments.finish:
        finish_system(arguments)
        return
    failed = run_all(arguments)
    found = [arguments.out / "parts" / f"{name}.json" for name in arguments.systems]
    summaries = [json.loads(path.read_text()) for path in found if path.exists()]
    (arguments.out / "labels.json").write_text(json.dumps(summaries, indent=1) + "\n")
    for row in summaries:
        print(json.dumps({key: row[key] for key in row if key != "protocol"}))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {arguments.out / 'logs'}")


if __name__ == "__main__":
    main()
