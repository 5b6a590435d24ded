"""``fastff label``: label the user's structures, or samples of their material, with a teacher.

Here: options and what they lead to. Not here: what is printed (:mod:`fastff.cli.label_view`), labelling
(:mod:`fastff.distill.labelling`, :mod:`fastff.distill.sampling`, :mod:`fastff.distill.scaling`), joining files
(:mod:`fastff.cli.merge`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastff.cli.label_view import print_verdict, show_labelling
from fastff.cli.terminal import DeviceOption, count_devices, make_console, resolve_device
from fastff.errors import UsageError

if TYPE_CHECKING:
    from ase import Atoms
    from rich.console import Console

    from fastff.distill.jobs import LabelJob
    from fastff.distill.labelling import LabelSettings
    from fastff.teachers import Teacher

_TEACHER = "Teacher"
_SAMPLE = "Sampling"
_SCALE = "Many processes"


def label(
    structures: Annotated[
        list[Path],
        typer.Argument(
            help="Files in any format of ASE: extxyz, CIF, POSCAR, traj, db; or label files (.h5), whose frames are "
            "labelled anew and keep their marks. All frames."
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            help="Such as sevennet or orb; see `fastff teachers`.", rich_help_panel=_TEACHER
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Label file (.h5), new or to be continued.")
    ],
    teacher_weights: Annotated[
        Path | None, typer.Option(help="Weight file of the teacher.", rich_help_panel=_TEACHER)
    ] = None,
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the teacher; may be repeated.", rich_help_panel=_TEACHER),
    ] = None,
    trust_teacher_file: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Load a weight file that needs pickle and is unknown; the reason is stored.",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    batch_atoms: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most atoms labelled, and stored, together; 1024 if left out, or as many as the teacher takes.",
        ),
    ] = None,
    hessian_vectors: Annotated[
        bool,
        typer.Option(
            "--hessian-vectors",
            help="Also label each frame displaced both ways along a random direction.",
        ),
    ] = False,
    hessian_step: Annotated[
        float, typer.Option(help="Å, RMS displacement per atom of those.")
    ] = 0.01,
    force_limit: Annotated[
        float | None, typer.Option(help="eV/Å; frames with larger forces are set aside.")
    ] = None,
    self_check: Annotated[
        bool, typer.Option(help="Measure the teacher's own consistency first, and store it.")
    ] = True,
    sample: Annotated[
        bool,
        typer.Option(
            "--sample",
            help="Label strained, thermal and dynamics samples of the structures instead.",
            rich_help_panel=_SAMPLE,
        ),
    ] = False,
    temperature: Annotated[
        str, typer.Option(help="Range of interest in K, LOW-HIGH.", rich_help_panel=_SAMPLE)
    ] = "300-900",
    budget: Annotated[
        int | None, typer.Option(help="Teacher evaluations.", rich_help_panel=_SAMPLE)
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Frames wanted; with --budget, how densely dynamics is stored.",
            rich_help_panel=_SAMPLE,
        ),
    ] = None,
    max_atoms: Annotated[
        int, typer.Option(help="Largest cell that is made.", rich_help_panel=_SAMPLE)
    ] = 120,
    seed: Annotated[int, typer.Option(help="Of every random draw.", rich_help_panel=_SAMPLE)] = 0,
    shard: Annotated[
        str | None,
        typer.Option(
            help="I/N: every N-th frame from the I-th on, into OUT with .I-of-N in its name.",
            rich_help_panel=_SCALE,
        ),
    ] = None,
    devices: Annotated[
        str,
        typer.Option(
            help="Devices of each node, a process for each; or auto.", rich_help_panel=_SCALE
        ),
    ] = "1",
    nodes: Annotated[
        int, typer.Option(min=1, help="Nodes, under torchrun or SLURM.", rich_help_panel=_SCALE)
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="No plan and no progress.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Label structures with a teacher; the same command continues after an interruption."""
    from fastff.cli.train import parse_temperatures, read_options
    from fastff.distill.jobs import (
        choose_examples,
        describe_shard,
        name_shard,
        parse_shard,
        read_jobs,
        take_shard,
    )
    from fastff.distill.labelling import LabelSettings, is_first_process

    if out.suffix.lower() not in (".h5", ".hdf5"):
        raise UsageError(
            f"--out {out} must end in .h5; `fastff labels FILE --export` writes other formats"
        )
    n_devices = count_devices(devices, device)
    many = n_devices > 1 or nodes > 1
    if sample and (shard or many or hessian_vectors):
        raise UsageError(
            "--sample runs in one process without Hessian-vector targets; for several jobs give each its own --seed "
            "and --out, and join them with `fastff merge`"
        )
    if sample and (
        stored := [path for path in structures if path.suffix.lower() in (".h5", ".hdf5")]
    ):
        raise UsageError(
            f"--sample makes samples of structures, and {stored[0]} is a label file; leave --sample out to label its "
            "frames anew"
        )
    if many and shard:
        raise UsageError(
            "--shard is for separate jobs and --devices for one; give only one of them"
        )
    if not many and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"started as {os.environ['WORLD_SIZE']} processes; give --devices (for each node) and --nodes"
        )

    options = read_options(teacher_option or ())
    if trust_teacher_file is not None:
        options["trust"] = trust_teacher_file

    def load(on_device: str) -> Teacher:
        from fastff.teachers import load_teacher

        return load_teacher(teacher, device=on_device, weights=teacher_weights, options=options)

    settings = LabelSettings(
        batch_atoms, hessian_step if hessian_vectors else None, force_limit, self_check
    )
    console = make_console()
    silent = quiet or (many and not is_first_process())
    if sample:
        plan_options = {
            "temperatures": parse_temperatures(temperature),
            "budget": budget,
            "n_frames": frames,
            "max_atoms": max_atoms,
            "seed": seed,
        }
        resolve_device(device)
        label_samples(console, load(device), structures, out, plan_options, settings, silent=silent)
        return
    jobs = read_jobs(structures)
    examples = choose_examples(jobs)
    if many:
        label_in_processes(
            console, load, jobs, examples, out, settings, device, n_devices, nodes, silent=silent
        )
        return
    part = None
    if shard is not None:
        index, count = parse_shard(shard)
        part = describe_shard(jobs, index, count)
        jobs, out = take_shard(jobs, index - 1, count), name_shard(out, index, count)
    resolve_device(device)
    label_here(console, load(device), jobs, examples, out, settings, part, silent=silent)


def label_here(
    console: Console,
    teacher: Teacher,
    jobs: Sequence[LabelJob],
    examples: Sequence[Atoms],
    out: Path,
    settings: LabelSettings,
    part: dict[str, Any] | None = None,
    *,
    silent: bool,
) -> None:
    """Label in this process; with ``part``, a shard of a job."""
    from fastff.distill.jobs import SHARD
    from fastff.distill.labelling import Labeller
    from fastff.distill.parts import find_stored, join_parts, list_parts, require_unused
    from fastff.distill.store import LabelStore

    for job in jobs:  # before there is a file that belongs to this teacher
        teacher.check_elements(job.atoms)
    require_unused(out, teacher)
    parts = list_parts(out)  # of a killed run of several processes
    known = find_stored(parts, teacher)
    with show_labelling(console, silent=silent) as listener, LabelStore(out, "a", teacher) as store:
        listener.on_teacher(teacher)
        labeller = Labeller(teacher, store, jobs, settings, known=known, on_batch=listener.on_batch)
        if part is not None:
            in_the_end = len(store) + store.n_quarantined + labeller.plan.n_pending
            store.note(**{SHARD: {**part, "n_frames": in_the_end}})
        if check := labeller.check_teacher(examples):
            listener.on_check(check)
        listener.on_plan(labeller.measure())
        report = labeller.run()
    if parts:
        join_parts(out)
    with LabelStore(out) as store:
        stored = len(store), store.n_quarantined, store.record
    print_verdict(console, str(report), out, *stored, teacher=teacher.info)


def label_in_processes(
    console: Console,
    load: Callable[[str], Teacher],
    jobs: Sequence[LabelJob],
    examples: Sequence[Atoms],
    out: Path,
    settings: LabelSettings,
    device: str,
    devices: int,
    nodes: int,
    *,
    silent: bool,
) -> None:
    """Label in one process for each device; the first merges and reports."""
    from fastff.distill.scaling import label_with_launcher
    from fastff.distill.store import LabelStore

    with show_labelling(console, silent=silent, what="labelling, first process") as listener:
        report, merged = label_with_launcher(
            load,
            jobs,
            examples,
            out,
            settings,
            device=device,
            devices=devices,
            nodes=nodes,
            listener=listener,
        )
    if merged is None:
        return
    with LabelStore(out) as store:
        print_verdict(
            console,
            str(report),
            out,
            len(store),
            store.n_quarantined,
            store.record,
            teacher=store.teacher,
        )


def label_samples(
    console: Console,
    teacher: Teacher,
    structures: Sequence[Path],
    out: Path,
    plan_options: dict[str, Any],
    settings: LabelSettings,
    *,
    silent: bool,
) -> None:
    """Plan and label samples of the structures, as ``fastff train`` does."""
    from dataclasses import replace

    from fastff.distill.labelling import Labeller
    from fastff.distill.sampling import measure_teacher, plan_sampling, run_sampling
    from fastff.distill.store import LabelStore
    from fastff.structures import read_structures

    seeds = [atoms for path in structures for atoms in read_structures(path)]
    plan = plan_sampling(seeds, teacher.info, **plan_options)
    if settings.force_limit is not None:
        plan = replace(plan, max_force=settings.force_limit)
    with show_labelling(console, silent=silent) as listener, LabelStore(out, "a", teacher) as store:
        listener.on_teacher(teacher)
        labeller = Labeller(teacher, store, [], settings)
        if check := labeller.check_teacher([cell.atoms for cell in plan.cells]):
            listener.on_check(check)
        plan = measure_teacher(teacher, plan, store)
        listener.on_plan(plan)  # type: ignore[arg-type]
        report = run_sampling(
            teacher, plan, store, on_progress=lambda now: listener.on_batch(now.done, now.total)
        )
        stored = len(store), store.n_quarantined, store.record
    print_verdict(
        console, " ".join(str(report).split("\n")[:1]), out, *stored, teacher=teacher.info
    )
