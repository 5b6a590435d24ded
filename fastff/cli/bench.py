"""``fastff bench``: judge a student against its teacher, or against labels that exist.

Here: the command and its exit codes. Not here: what options mean (:mod:`fastff.cli.bench_options`), what is printed
(:mod:`fastff.cli.bench_view`), records that exist and kernels (:mod:`fastff.cli.bench_records`), measuring
(:mod:`fastff.report.bench`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastff.cli.bench_options import check_folder, make_plan, parse_duration, parse_temperature
from fastff.cli.bench_records import (
    bench_kernels,
    check_record_options,
    print_changes,
    read_earlier,
    require_accuracy,
    use_record,
)
from fastff.cli.bench_view import print_plan, print_results, show_progress
from fastff.cli.label_keys import LabelKeyOption, read_label_keys
from fastff.cli.terminal import DeviceOption, make_console, resolve_device
from fastff.errors import DataError, UsageError

if TYPE_CHECKING:
    from fastff.report.plan import BenchPlan
    from fastff.report.regression import Record
    from fastff.report.schema import BenchRecord


def bench(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Model file written by `fastff train`, or the name of a shipped one; or a bench.json, whose page "
            "is then rebuilt, or which is compared with another one (--against)."
        ),
    ] = None,
    compare_teacher: Annotated[
        bool,
        typer.Option(
            "--compare-teacher",
            help="Run the teacher: fresh held-out dynamics, physics and timings beside it.",
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Judge accuracy on these labelled frames; needs no teacher."),
    ] = None,
    label_key: LabelKeyOption = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            "--structures",
            help="Where held-out dynamics starts, what is timed, and the crystal or liquid whose physics is "
            "compared. [default: the model's own]",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Teacher to compare with. [default: the model's own]"),
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="Weight file of the teacher.")
    ] = None,
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher-option",
            help="KEY=VALUE for the teacher, such as modal=PBE; may be repeated. [default: as the labels were made]",
        ),
    ] = None,
    trust_teacher_file: Annotated[
        str | None,
        typer.Option(
            "--trust-teacher-file",
            metavar="REASON",
            help="Load a weight file that needs pickle and is unknown; the reason is stored.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="Another model in the same tables: a model file (such as one of `fastff train --student painn`), a "
            "teacher's name, or ase:module:Name; may be repeated.",
        ),
    ] = None,
    gpumd: Annotated[
        Path | None,
        typer.Option("--gpumd", help="Executable of GPUMD, to be timed with --nep; needs a GPU."),
    ] = None,
    nep: Annotated[
        Path | None, typer.Option("--nep", help="NEP model file for --gpumd, such as nep.txt.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for results. [default: bench beside the model]"),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(
            "--temperature",
            help="K, as 300 or 300-900. [default: the range the model was trained for]",
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--sizes",
            help="Atom counts to time, as 64,500,2000; the one nearest to 500 is always measured.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=2, help="Held-out frames to make.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Steps of teacher dynamics before the first frame."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", min=0.5, help="Seconds of timing for each size and calculator."),
    ] = None,
    physics: Annotated[
        str,
        typer.Option(
            "--physics",
            help="Equation of state, phonons, pair distributions and so on beside the teacher's: auto (what fits the "
            "structure and a few minutes), none, full, or so many seconds as are given here.",
        ),
    ] = "auto",
    time_limit: Annotated[
        str | None,
        typer.Option(
            "--time-limit",
            help="Begin nothing new after 600 (seconds), 10min or 0.5h, and write what was measured until then; the "
            "held-out frames are made in any case, however long they take.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer frames, sizes and repeats: about two minutes with SevenNet on two idle cores, five to ten "
            "where they are busy, longer with a slower teacher.",
        ),
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="Time every kernel beside torch instead; needs no model."),
    ] = False,
    ops: Annotated[
        list[str] | None,
        typer.Option(
            "--op",
            help="With --kernels, time this op alone, as moments or 'evaluation, m2-l'; may be repeated.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="Earlier record of a like machine: exit code 6 if anything is slower beyond noise.",
        ),
    ] = None,
    require: Annotated[
        float | None,
        typer.Option(
            "--require",
            min=0.0,
            max=1.0,
            help="Accuracy that must be reached, as 0.95; else exit code 6.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace results in an existing folder.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Judge a model: accuracy on frames it has not seen, physics, and speed beside its teacher."""
    from fastff.cli.train import read_options

    if kernels:
        if model is not None or compare_teacher or labels is not None:
            raise UsageError(
                "--kernels needs no model and no frames; give it with --out, --against and --device"
            )
        bench_kernels(out, against, resolve_device(device), ops=ops or None, force=force)
        return
    if ops:
        raise UsageError("--op chooses among the ops of --kernels; add it")
    if model is None:
        raise UsageError("nothing to judge; name a model file, or give --kernels")
    if model.suffix == ".json":
        check_record_options(context, against)
        use_record(model, against, out, require=require, force=force)
        return
    check_model(model)
    if labels is None and not compare_teacher:
        raise UsageError("nothing to compare with; add --compare-teacher or --labels FILE")
    given = {
        "--teacher": teacher,
        "--teacher-weights": teacher_weights,
        "--teacher-option": teacher_option,
        "--trust-teacher-file": trust_teacher_file,
    }
    if not compare_teacher and (idle := [name for name, value in given.items() if value]):
        raise UsageError(
            f"{idle[0]} is only used with --compare-teacher; add it, or leave {idle[0]} out"
        )
    if (gpumd is None) != (nep is None):
        raise UsageError("--gpumd and --nep belong together: give both, or neither")
    label_keys = read_label_keys(label_key)
    if label_keys and labels is None:
        raise UsageError("--label-key names what --labels holds; add it, or leave --label-key out")
    chosen = resolve_device(device)
    if gpumd is not None and chosen.type != "cuda":
        raise UsageError(f"--gpumd needs a CUDA device, this run is on {chosen}; leave it out")
    if against is not None and not compare_teacher:
        raise UsageError("--against compares timings, which --compare-teacher takes; add it")
    limit = math.inf if time_limit is None else parse_duration(time_limit)
    folder = out if out is not None else choose_folder(model)
    check_folder(folder, force=force)
    plan = make_plan(
        quick=quick, sizes=sizes, frames=frames, steps=steps, budget=budget, physics=physics,
        require=require, device=str(chosen),
    )  # fmt: skip
    before = read_earlier(against, plan.device, model) if against is not None else None
    record = run(
        model, labels, structures, teacher, teacher_weights, temperature, plan, folder,
        compare_teacher=compare_teacher, label_keys=label_keys,
        teacher_options=read_options(teacher_option or (), trust_teacher_file),
        baselines=baseline or [],
        gpumd=(gpumd, nep) if gpumd is not None and nep is not None else None, limit=limit,
    )  # fmt: skip
    judge(record, before)


def choose_folder(model: Path) -> Path:
    """Where results go unless the user says so: beside the model file, for a shipped model under ``runs``."""
    from fastff.zoo import find_shipped

    shipped = find_shipped(model) is not None
    return Path("runs") / f"bench-{model}" if shipped else model.parent / "bench"


def check_model(model: Path) -> None:
    """Refuse what is no model file, before anything else is asked of the user.

    Raises
    ------
    ModelFileError
    """
    from fastff.checkpoint import read_header

    read_header(model)


def judge(record: BenchRecord, before: Record | None) -> None:
    """Exit codes of a finished run: accuracy first, then speed. A required accuracy needs a whole run.

    Raises
    ------
    AccuracyError, SlowdownError
    """
    from fastff.report.regression import compare_speed, require_no_slowdown

    failed = record.verdict.passed is False
    changes = []
    try:
        changes = compare_speed(before, record) if before is not None else []
    except DataError:
        if not failed:
            raise
    if changes:
        print_changes(changes)
    require_accuracy(record, record.verdict.required)
    require_no_slowdown(changes)


def run(
    model: Path,
    labels: Path | None,
    structures: Path | None,
    teacher: str | None,
    teacher_weights: Path | None,
    temperature: str | None,
    plan: BenchPlan,
    folder: Path,
    *,
    compare_teacher: bool,
    label_keys: Mapping[str, str] | None = None,
    teacher_options: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = (),
    gpumd: tuple[Path, Path] | None = None,
    limit: float = math.inf,
) -> BenchRecord:
    """Print the plan, measure, print the tables and write the results; those of a run that ends early, too.

    Raises
    ------
    KeyboardInterrupt, SystemExit
        After a signal, when what was measured is written.
    """
    from fastff.checkpoint import read_header
    from fastff.report.baselines import load_baseline
    from fastff.report.bench import run_bench, write_results
    from fastff.report.ending import EndedEarlyError, Watch
    from fastff.report.record import RejectedRecordError, write_rejected
    from fastff.report.taught import load_recorded
    from fastff.structures import read_structures

    watch, console = Watch(limit), make_console()
    header = read_header(model)
    limits = parse_temperature(temperature) if temperature is not None else None
    seeds = read_structures(structures) if structures is not None else None
    others = [load_baseline(spec, plan.device) for spec in baselines]
    source, difference = None, ""
    if compare_teacher:
        source, difference = load_recorded(
            header,
            device=plan.device,
            spec=teacher,
            weights=teacher_weights,
            options=teacher_options,
        )
    print_plan(model, header, labels, seeds, source, limits, plan, others, difference)

    def show_paths(paths: dict[str, Path]) -> None:
        for name in ("report.html", "bench.json"):
            console.print(f"wrote {paths[name]}", style="dim", soft_wrap=True)

    try:
        with watch.listen():
            with show_progress() as progress:
                result = run_bench(
                    model,
                    labels=labels,
                    label_keys=label_keys,
                    structures=seeds,
                    teacher=source,
                    temperature=limits,
                    plan=plan,
                    baselines=others,
                    gpumd=gpumd,
                    command=["fastff", *sys.argv[1:]],
                    progress=progress,
                    watch=watch,
                    keep=lambda found: show_paths(write_results(found, folder)),
                )
            paths = write_results(result, folder)
    except RejectedRecordError as error:
        path = write_rejected(error, folder)
        raise DataError(f"{error} What was measured is kept in {path}.") from error
    except EndedEarlyError:
        console.print(f"stopped by {watch.name} before any frame was compared; nothing is written")
        watch.leave()
    print_results(result.record)
    show_paths(paths)
    if watch.received:
        console.print(f"stopped by {watch.name}; {folder} holds what was measured", soft_wrap=True)
        watch.leave()
    command = result.record.verdict.next_command.replace(model.name, str(model))
    console.print("next:", command, style="bold", markup=False, soft_wrap=True)
    return result.record
