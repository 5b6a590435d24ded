"""Add frames of a student's own dynamics, labelled by the teacher, to the training frames of a system of the study.

Run from the root of the repository on a GPU, for example

    python bench/study_more.py --system si --model si__m2-l.safetensors --labels LABELS/si.npz --out LABELS/si-more.h5

Walkers start like the replicas of ``study_labels.py`` (liquids are melted first), in batched dynamics of the student: a
teacher drives some picoseconds in the time in which the student reaches hundreds of structures that have forgotten each
other. One structure in ten is labelled once more with atoms pushed together, so that the share of close contacts among
all frames stays what it was. New frames belong to three trajectories behind all others, which are places that are
trained on: validation and test frames stay those of ``LABELS``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

from bench.study_labels import CONTACT_RANGE, MAX_CONTACT_FORCE, MAX_FORCE, describe_run  # noqa: E402
from bench.study_systems import SYSTEMS, System, build_start, list_replicas  # noqa: E402
from bench.study_training import HELD_OUT  # noqa: E402

if TYPE_CHECKING:
    from fastff.distill.explore import Walker
    from fastff.labels import Frame
    from fastff.models import Student
    from fastff.teachers.base import Teacher

N_TRAJECTORIES = 3
"""Of new frames; see :func:`place_frames`."""
BATCH = 256
"""Structures labelled at a time."""
PRESSED_EVERY = 10
"""Of the structures, every which one also comes with close contacts."""


def start_walkers(system: System, student: Student, total: int, seed: int) -> list[Walker]:
    """Walkers over the ladders of temperature, those of liquids after melting by the student."""
    from fastff.distill.explore import ExploreSettings, Walker, explore

    replicas = list_replicas(system, total)
    walkers = [
        Walker(build_start(system, ladder, index, seed), temperature, index, use="test")
        for index, (ladder, temperature) in enumerate(replicas)
    ]
    molten = [
        Walker(walkers[index].atoms, ladder.melt, index, use="test")
        for index, (ladder, _) in enumerate(replicas)
        if ladder.melt
    ]
    if not molten:
        return walkers
    settings = ExploreSettings(
        system.melt_steps, system.timestep, system.melt_steps, system.melt_steps, seed=seed + 1
    )
    for snapshot in explore(student, molten, settings).snapshots:
        index = molten[snapshot.walker].trajectory
        walkers[index] = Walker(snapshot.atoms, walkers[index].temperature, index, use="test")
    return walkers


def find_structures(
    system: System, student: Student, arguments: argparse.Namespace
) -> list[tuple[Any, float]]:
    """Structures of the student's dynamics after equilibration, with the temperatures of their walkers."""
    from fastff.distill.explore import ExploreSettings, explore

    stride = max(1, round(arguments.spacing / system.timestep))
    skipped = max(1, round(arguments.equilibration / arguments.spacing))
    walkers = start_walkers(system, student, arguments.walkers, arguments.seed)
    n_steps = (skipped + -(-arguments.frames // len(walkers))) * stride
    settings = ExploreSettings(n_steps, system.timestep, stride, stride, seed=arguments.seed)
    found = explore(student, walkers, settings)
    broken = [ending for ending in found.endings if ending.reason]
    print(f"{len(walkers)} walkers of {n_steps} steps, {len(broken)} of them blew up", flush=True)
    return [
        (snapshot.atoms, walkers[snapshot.walker].temperature)
        for snapshot in found.snapshots
        if snapshot.step > skipped * stride and not snapshot.urgent
    ]


def press_structures(found: list[tuple[Any, float]], seed: int) -> list[tuple[Any, float]]:
    """Some of the structures with pairs of atoms pushed together, those of the first study's range in turn."""
    from fastff.distill.cells import press_pairs

    rng, chosen = np.random.default_rng(seed), found[::PRESSED_EVERY]
    fractions = np.resize(np.linspace(*CONTACT_RANGE, 8), len(chosen))
    pressed = [
        (press_pairs(atoms, float(fraction), rng), temperature)
        for (atoms, temperature), fraction in zip(chosen, fractions, strict=True)
    ]
    return [(atoms, temperature) for atoms, temperature in pressed if atoms is not None]


def place_frames(labelled: list[Frame], last: int) -> list[Frame]:
    """Put frames on :data:`N_TRAJECTORIES` trajectories after ``last``, by turns.

    Raises
    ------
    SystemExit
        These would be held out.
    """
    from dataclasses import replace

    places = {frame.trajectory for frame in labelled}
    assert places == {0}, "frames have no place yet"
    return [
        replace(frame, trajectory=last + 1 + k % N_TRAJECTORIES, step=k)
        for k, frame in enumerate(labelled)
    ]


def check_places(n_trajectories: int) -> None:
    """Refuse label files after whose trajectories new ones would be held out."""
    new = range(n_trajectories, n_trajectories + N_TRAJECTORIES)
    if any(place % 8 in HELD_OUT for place in new):
        raise SystemExit(
            f"after {n_trajectories} trajectories new ones would be held out; a multiple of eight is needed"
        )


def label_structures(found: list[tuple[Any, float]], teacher: Teacher, source: str) -> list[Frame]:
    """Frames of structures, in batches of the teacher."""
    from fastff.labels import Frame

    frames = []
    for first in range(0, len(found), BATCH):
        part = found[first : first + BATCH]
        labels = teacher.label([atoms for atoms, _ in part])
        frames += [
            Frame(atoms, label, source, 0, temperature, 0)
            for (atoms, temperature), label in zip(part, labels, strict=True)
        ]
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--system", required=True, choices=[system.name for system in SYSTEMS])
    parser.add_argument("--model", type=Path, required=True, help="student that drives")
    parser.add_argument("--labels", type=Path, required=True, help="label file to add to")
    parser.add_argument("--out", type=Path, required=True, help="label file to write (.h5)")
    parser.add_argument("--teacher", default="sevennet:7net-0")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--walkers", type=int, default=96)
    parser.add_argument("--frames", type=int, default=4800)
    parser.add_argument("--spacing", type=float, default=200.0, help="fs between frames")
    parser.add_argument("--equilibration", type=float, default=1000.0, help="fs")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()

    from fastff.checkpoint import load_model
    from fastff.distill.formats import read_labels
    from fastff.distill.ladder import pick_torch_device
    from fastff.distill.store import LabelStore
    from fastff.report.provenance import collect_provenance
    from fastff.teachers import load_teacher

    (system,) = (one for one in SYSTEMS if one.name == arguments.system)
    old = list(read_labels(arguments.labels).frames)
    trajectories = {frame.trajectory for frame in old}
    check_places(len(trajectories))
    started = time.perf_counter()
    device = pick_torch_device(arguments.device)
    student = load_model(arguments.model, device=device)
    found = find_structures(system, student, arguments)
    print(f"{len(found)} structures after {time.perf_counter() - started:.0f} s", flush=True)
    teacher = load_teacher(arguments.teacher, device=str(device))
    pressed = press_structures(found, arguments.seed)
    labelled = label_structures(found, teacher, "student-md")
    labelled += label_structures(pressed, teacher, "close-contact")
    new = place_frames(labelled, max(trajectories))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with LabelStore(arguments.out, "a", teacher=teacher.info) as store:
        store.note(
            study={
                "system": system.name, "driven_by": str(arguments.model.name), "new_frames": len(new),
                "spacing_fs": arguments.spacing, "equilibration_fs": arguments.equilibration,
                "walkers": arguments.walkers, "seed": arguments.seed, "close_contacts": len(pressed),
            },
            provenance=describe_run(collect_provenance),
        )  # fmt: skip
        store.append(old, force_limit=np.inf)
        store.append(new[: len(found)], force_limit=MAX_FORCE)
        store.append(new[len(found) :], force_limit=MAX_CONTACT_FORCE)
        print(
            f"{len(store)} frames, {len(new)} of them new, after {time.perf_counter() - started:.0f} s"
        )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
