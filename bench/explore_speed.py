"""Time batched dynamics of a student, the loop of on-policy rounds and of ``study_more.py``, with its lists and looks.

Run from the root of the repository, for example

    python bench/explore_speed.py --out bench/results/explore-h200.json

Walkers are silicon crystals of ``--size`` cells along each edge (64 atoms at 2) on a ladder of temperatures, driven by
``--model`` or else by an untrained student whose forces are weak: then atoms fly, and lists are renewed as often as the
temperature asks for. Steps, lists and looks are timed with lists of both kinds by turns, those of vesin on the host and
those on the device, ``--repeats`` times. Parts are timed by themselves afterwards, each waited for: evaluation with
lists that hold, look, renewal of all lists. ``--profile`` adds the launches of a step, where torch counts them (CUDA).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
HERE = str(ROOT / "bench")
sys.path[:] = [
    str(ROOT),
    *(entry for entry in sys.path if entry != HERE),
]  # its names are not for import

if TYPE_CHECKING:
    from fastff.batch_lists import DeviceLists, HostLists
    from fastff.distill.explore import Walker, _Run
    from fastff.models import Student

Row = dict[str, Any]
FORCE = 0.02
"""eV/Å, root mean square, of an untrained student on a rattled crystal."""


def make_walkers(arguments: argparse.Namespace) -> list[Walker]:
    """Rattled crystals from the coldest to the hottest."""
    from ase.build import bulk

    from fastff.distill.explore import Walker

    rng, walkers = np.random.default_rng(arguments.seed), []
    ladder = np.linspace(*arguments.temperatures, arguments.walkers)
    for k, temperature in enumerate(ladder):
        atoms = bulk("Si", "diamond", a=5.46, cubic=True) * ((arguments.size,) * 3)
        atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
        walkers.append(Walker(atoms, float(temperature), k, use="test"))
    return walkers


def load_student(arguments: argparse.Namespace, walkers: list[Walker]) -> Student:
    """The model, or an untrained one of silicon."""
    import torch

    from fastff.checkpoint import load_model
    from fastff.distill.ladder import pick_torch_device
    from fastff.graph import edge_vectors
    from fastff.models import build_student, configure_student
    from fastff.models.dense import lay_out_edges
    from fastff.neighbors import atoms_to_graph

    device = pick_torch_device(arguments.device)
    if arguments.model is not None:
        return load_model(arguments.model, device=device)
    torch.manual_seed(0)
    student = build_student(configure_student(arguments.architecture, (14,))).float()
    graph = atoms_to_graph(walkers[0].atoms, student.cutoff)
    dense = lay_out_edges(
        edge_vectors(graph).float(), graph.edge_index, graph.n_atoms, student.cutoff
    )
    student.calibrate(dense.vectors, dense.senders, student.find_species(graph.numbers))
    with torch.no_grad():
        size = float(student(graph).forces.square().mean().sqrt())
        student.energy_scale.mul_(FORCE / size)
    return student.to(device).eval().requires_grad_(False)


def time_call(function: Callable[[], Any], student: Student, repeats: int = 5) -> list[float]:
    """Seconds of each call but the first, the device waited for."""
    import torch

    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        if student.device.type == "cuda":
            torch.cuda.synchronize(student.device)
        times.append(time.perf_counter() - started)
    return times[1:]


def time_steps(
    student: Student,
    walkers: list[Walker],
    arguments: argparse.Namespace,
    lists: type[HostLists | DeviceLists],
) -> Row:
    """Steps and looks with lists of one kind, and the parts by themselves."""
    import torch

    from fastff.distill.explore import ExploreSettings, _Run

    n_steps, check = arguments.steps, arguments.check
    settings = ExploreSettings(
        arguments.warmup + n_steps, arguments.timestep, check, check, min_contact=0.01,
        max_force=1e6, max_move=1.0, seed=arguments.seed,
    )  # fmt: skip
    run = _Run(student, walkers, settings, lists)
    for _ in range(arguments.warmup):
        run.advance()
    run.look(arguments.warmup)
    evaluator = run.evaluator
    before = evaluator.n_builds, evaluator.n_renewals
    if student.device.type == "cuda":
        torch.cuda.synchronize(student.device)
    started = time.perf_counter()
    look = 0.0
    for step in range(arguments.warmup + 1, arguments.warmup + n_steps + 1):
        run.advance()
        if step % check == 0:
            float(run.forces.sum())  # waits, so that the look is timed by itself
            begun = time.perf_counter()
            run.look(step)
            look += time.perf_counter() - begun
    if student.device.type == "cuda":
        torch.cuda.synchronize(student.device)
    seconds = time.perf_counter() - started
    return {
        "path": evaluator.explain().path,
        "steps": n_steps,
        "running_at_the_end": int(run.running.sum()),
        "seconds": seconds,
        "steps_per_second": n_steps / seconds,
        "seconds_in_looks": look,
        "lists_per_step": (evaluator.n_builds - before[0]) / n_steps,
        "renewals_per_step": (evaluator.n_renewals - before[1]) / n_steps,
        **time_parts(run, student, arguments.profile),
    }


def time_parts(run: _Run, student: Student, profile: bool) -> Row:
    """Seconds of one evaluation, one renewal of all lists, one look at all structures; launches of a step."""
    from fastff.distill.looks import look_at

    evaluator, systems = run.evaluator, run.systems
    lists = evaluator._lists
    assert lists is not None

    def renew() -> None:
        lists.renew(systems.positions, systems.cells, range(systems.n_systems))
        lists.pack()

    structures = [walker.atoms for walker in run.walkers]
    found: Row = {
        "evaluation": time_call(lambda: evaluator.evaluate(systems, only_moved=True), student),
        "look": time_call(lambda: look_at(student, structures, evaluator.make_graph()), student),
    }
    if profile and student.device.type == "cuda":
        found["launches_per_step"] = count_launches(run)
    found["all_lists"] = time_call(renew, student)  # last: the evaluator does not know of it
    return found


def count_launches(run: _Run, n_steps: int = 10) -> float:
    """Kernels and copies of a step, renewals included."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(n_steps):
            run.advance()
    return sum(1 for event in trace.events() if event.device_type.name == "CUDA") / n_steps


def measure(arguments: argparse.Namespace) -> Row:
    """Rows of both kinds of lists, by turns."""
    from fastff.batch_lists import DeviceLists, HostLists
    from fastff.report.provenance import collect_provenance

    walkers = make_walkers(arguments)
    student = load_student(arguments, walkers)
    kinds = {"host": HostLists, "device": DeviceLists}
    rows: list[Row] = []
    for repeat in range(arguments.repeats):
        for name in arguments.lists:
            found = time_steps(student, walkers, arguments, kinds[name])
            row = {"lists": name, "repeat": repeat, **found}
            rows.append(row)
            print(
                f"{name} lists: {row['steps_per_second']:.4g} steps/s, {row['lists_per_step']:.3g} lists in "
                f"{row['renewals_per_step']:.2g} renewals a step, {row['seconds_in_looks']:.3g} s of "
                f"{row['seconds']:.3g} s in looks",
                flush=True,
            )
    settings = {
        name: value for name, value in vars(arguments).items() if name not in ("out", "model")
    }
    return {
        "settings": settings,
        "model": None if arguments.model is None else arguments.model.name,
        "n_atoms": sum(len(walker.atoms) for walker in walkers),
        "rows": rows,
        "provenance": collect_provenance().model_dump(),
    }


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="model file for silicon")
    parser.add_argument("--architecture", default="m1", help="of the untrained student")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--lists", nargs="+", default=["host", "device"], choices=["host", "device"]
    )
    parser.add_argument("--walkers", type=int, default=96)
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--temperatures", type=float, nargs=2, default=[200.0, 4500.0])
    parser.add_argument("--timestep", type=float, default=2.5, help="fs")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--warmup", type=int, default=40)
    parser.add_argument("--check", type=int, default=80, help="steps between looks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="count launches (CUDA)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> Row:
    arguments = parse(words)
    record = measure(arguments)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
