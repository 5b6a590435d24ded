"""``fastff train``: distil a teacher, or labels that exist, into a student.

Here: options, the printed plan, progress and verdict. Not here: the distillation (:mod:`fastff.distill.run`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastff.cli.terminal import DeviceOption, make_console, print_warning, resolve_device
from fastff.errors import AccuracyError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from fastff.distill.roundlog import GateRow
    from fastff.distill.run import DistillOutcome, Listener
    from fastff.report.metrics import Accuracy

_SOURCE = "What to learn from"
_STUDENT = "Student"
_RUN = "Run"


def train(
    context: typer.Context,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Teacher, such as sevennet, chgnet:r2scan or orb; `fastff teachers` lists them.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    structures: Annotated[
        Path | None,
        typer.Option(
            help="Your material: extxyz, cif, POSCAR or any format of ASE.", rich_help_panel=_SOURCE
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Labelled frames (extxyz, labels.h5 of an earlier run): no teacher is imported.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    temperature: Annotated[
        str, typer.Option(help="Range of interest in K, LOW-HIGH.", rich_help_panel=_SOURCE)
    ] = "300-900",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Teacher evaluations such as 20000, test frames included, or wall time such as 25min.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Most rounds in which the student's own dynamics are labelled; chosen by the budget, 0 for none.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    hessian_vectors: Annotated[
        int,
        typer.Option(
            min=0,
            help="Frames labelled beside their positions too, for Hessian-vector targets: two evaluations each.",
            rich_help_panel=_SOURCE,
        ),
    ] = 0,
    max_atoms: Annotated[
        int, typer.Option(help="Largest cell that is labelled.", rich_help_panel=_SOURCE)
    ] = 120,
    teacher_weights: Annotated[
        Path | None,
        typer.Option(help="Weight file of the teacher.", rich_help_panel=_SOURCE),
    ] = None,
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for the teacher, such as modal=omat24; may be repeated.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    trust_teacher_file: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Load a weight file that needs pickle and is unknown; the reason is stored.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Recipe, or config.yaml of an earlier run; options given beside it override it.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    student: Annotated[
        str,
        typer.Option(
            help="m1, m2, m2-l, painn (a baseline), or auto: the smallest of the first three that meets the target.",
            rich_help_panel=_STUDENT,
        ),
    ] = "auto",
    target_accuracy: Annotated[
        float,
        typer.Option(
            help="Wanted min(A_F, A_E, A_S) against the teacher.", rich_help_panel=_STUDENT
        ),
    ] = 0.95,
    cutoff: Annotated[
        float, typer.Option(help="Cut-off radius in Å.", rich_help_panel=_STUDENT)
    ] = 5.0,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps, rounded up to whole passes; chosen if left out.",
            rich_help_panel=_STUDENT,
        ),
    ] = None,
    stop_at: Annotated[
        float | None,
        typer.Option(help="Stop training at this validation accuracy.", rich_help_panel=_STUDENT),
    ] = None,
    learning_rate: Annotated[float, typer.Option(rich_help_panel=_STUDENT)] = 5e-3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="New folder for everything; runs/NAME if left out.", rich_help_panel=_RUN
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in --out, with its config.yaml.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of every random draw.", rich_help_panel=_RUN)] = 0,
    require: Annotated[
        bool,
        typer.Option(
            "--require", help="Exit with code 6 if the target is missed.", rich_help_panel=_RUN
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No plan and no progress.", rich_help_panel=_RUN)
    ] = False,
    device: DeviceOption = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Of each node, to train on together.", rich_help_panel=_RUN)
    ] = 1,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            help="More than 1: start this with srun or torchrun, see docs/multi_gpu.md.",
            rich_help_panel=_RUN,
        ),
    ] = 1,
) -> None:
    """Distil a teacher into a small, fast student for your material."""
    from fastff.distill.request import CONFIG_NAME, build_request, read_values

    values: dict[str, Any] = {
        "teacher": teacher,
        "teacher_weights": teacher_weights,
        "teacher_options": read_options(teacher_option or (), trust_teacher_file),
        "structures": structures,
        "labels": labels,
        "temperatures": parse_temperatures(temperature),
        "budget": int(budget) if budget and budget.isdigit() else budget,
        "rounds": rounds,
        "hessian_vectors": hessian_vectors,
        "max_atoms": max_atoms,
        "student": student,
        "target": target_accuracy,
        "cutoff": cutoff,
        "n_steps": steps,
        "learning_rate": learning_rate,
        "stop_at": stop_at,
        "seed": seed,
    }
    if config is None and resume and out is not None:
        config = out / CONFIG_NAME
    if config is not None:
        given = {name for name in values if is_given(context, name)}
        values = {**read_values(config), **{name: values[name] for name in given}}
    request = build_request(**values)
    resolve_device(device)
    folder = out or name_folder(request.structures or request.labels, request.teacher)
    console = make_console()
    from fastff.distill.labelling import is_first_process
    from fastff.distill.run import Listener, distill

    with ExitStack() as displays:
        listener = (
            Listener(on_split=warn_of_findings) if quiet else build_listener(console, displays)
        )
        outcome = distill(
            request,
            folder,
            device=device,
            devices=devices,
            nodes=nodes,
            resume=resume,
            listener=listener if is_first_process() else None,
        )
    if not is_first_process():
        return
    print_verdict(console, outcome)
    if require and not outcome.passed:
        from fastff.report.verdict import format_percent

        kind, weakest = outcome.weakest
        if weakest.overall >= outcome.target:
            reason = "its own dynamics fails above the range of temperatures, or blows up"
        else:
            reason = f"accuracy {format_percent(weakest.overall)} ({weakest.limiting}) on {kind} is below it"
        raise AccuracyError(
            f"target {format_percent(outcome.target)} missed: {reason}; raise --budget or --steps, or choose a larger "
            "--student"
        )


def warn_of_findings(split: Any, report: Any) -> None:
    """What is doubtful about the labels is said even when nothing else is."""
    if report.findings:
        print_warning(str(report))


def describe_small_sets(split: Any) -> list[str]:
    """What to say about sets of so few frames that their accuracy is a rough guess."""
    return [
        f"only {len(frames)} {name} frames: their accuracy is a rough guess; label more trajectories"
        for name, frames in (("validation", split.validation), ("test", split.test))
        if len(frames) < 10
    ]


_OPTIONS = {
    "temperatures": ("temperature",),
    "target": ("target_accuracy",),
    "n_steps": ("steps",),
    "teacher_options": ("teacher_option", "trust_teacher_file"),
}
"""Options of the settings that are spelt otherwise."""


def is_given(context: typer.Context, setting: str) -> bool:
    """Whether the user wrote an option of a setting, rather than leaving its default."""
    sources = [context.get_parameter_source(name) for name in _OPTIONS.get(setting, (setting,))]
    return any(source is not None and source.name != "DEFAULT" for source in sources)


def read_options(pairs: Sequence[str], trust: str | None = None) -> dict[str, Any]:
    """Read ``KEY=VALUE`` pairs; values are YAML scalars. ``trust`` is why a weight file that needs pickle is loaded.

    Raises
    ------
    UsageError
        If a pair has no ``=`` or no key.
    """
    import yaml

    options: dict[str, Any] = {} if trust is None else {"trust": trust}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--teacher-option {pair!r} is not of the form KEY=VALUE")
        options[key.strip()] = yaml.safe_load(value)
    return options


def parse_temperatures(text: str) -> tuple[float, float]:
    """Read ``LOW-HIGH`` or one temperature, in K.

    Raises
    ------
    UsageError
        If the text is neither.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*(?:[-:,]\s*([\d.]+))?\s*K?\s*", text)
    try:
        if match is None:
            raise ValueError
        low = float(match.group(1))
        return low, float(match.group(2) or low)
    except ValueError:
        raise UsageError(f"--temperature {text!r} is not a range in K such as 300-900") from None


def name_folder(source: Path | None, teacher: str | None) -> Path:
    """Default output folder, named after the input and the teacher."""
    stem = source.stem if source is not None else "run"
    parts = [stem] + ([teacher] if teacher else [])
    return Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def build_listener(console: Console, displays: ExitStack) -> Listener:
    """A listener that prints the plan, progress bars and short summaries; ``displays`` takes the bars down."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from fastff.distill.rounds import RoundsListener
    from fastff.distill.run import Listener
    from fastff.report.verdict import format_percent

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    labelling = Progress(*columns, console=console)
    label_task = labelling.add_task("labelling", total=None, note="")
    training = Progress(*columns, console=console)
    exploring = Progress(*columns, console=console)
    explore_task = exploring.add_task("round", total=None, note="")
    displays.callback(exploring.stop)
    displays.callback(labelling.stop)
    displays.callback(training.stop)

    def show_plan(plan: Any, teacher: Any) -> None:
        info = teacher.info
        console.print(f"[bold]teacher[/]  {info.name} ({info.version}), licence {info.licence}")
        for note in info.notes:
            console.print(f"         {note}", style="yellow")
        console.print(str(plan), markup=False, soft_wrap=True)

    def show_rounds(plan: Any) -> None:
        console.print(f"[bold]rounds[/]   {plan}", soft_wrap=True)
        labelling.start()

    def show_sampling(progress: Any) -> None:
        labelling.update(
            label_task, completed=progress.done, total=progress.total, note=progress.kind
        )

    def show_sampled(report: Any) -> None:
        labelling.stop()
        console.print(str(report), markup=False, soft_wrap=True)

    def show_split(split: Any, report: Any) -> None:
        console.print(f"frames   {split}", markup=False, soft_wrap=True)
        for line in describe_small_sets(split):
            console.print(f"         {line}", markup=False, soft_wrap=True, style="yellow")
        if report.findings:
            console.print(str(report), markup=False, soft_wrap=True)

    def show_student(name: str, settings: Any) -> None:
        exploring.stop()
        console.print(
            f"[bold]student[/]  {name}, cut-off {settings.cutoff:g} Å, {settings.n_steps} steps of "
            f"about {settings.batch_atoms} atoms"
        )

        for task in training.task_ids:
            training.remove_task(task)
        training.add_task("training", total=settings.n_steps, note="")
        training.start()

    def show_step(progress: Any) -> None:
        note = (
            "" if progress.accuracy is None else f"validation {format_percent(progress.accuracy)}"
        )
        training.update(
            training.task_ids[-1], completed=progress.step, total=progress.n_steps, note=note
        )

    def show_trained(name: str, result: Any, accuracy: Accuracy) -> None:
        training.stop()
        console.print(
            f"         {result.n_steps} steps in {result.seconds:.0f} s ({result.stopped}); "
            f"validation accuracy {format_percent(accuracy.overall)}"
        )

    def show_exploring(number: int, step: int, n_steps: int) -> None:
        show_bar(f"round {number}", step, n_steps, "student dynamics")

    def show_labelling(number: int, done: int, total: int) -> None:
        show_bar(f"round {number}", done, total, "teacher")

    def show_bar(name: str, done: int, total: int, note: str) -> None:
        exploring.start()
        exploring.update(explore_task, description=name, completed=done, total=total, note=note)

    def show_gate(row: GateRow) -> None:
        exploring.stop()
        console.print(
            f"[bold]round {row.round}[/]  {row.student} trained on {row.n_train} frames; {row.evaluations} evaluations "
            f"and {row.seconds:.0f} s so far; {row.decision}",
            soft_wrap=True,
        )
        for name, accuracy in row.accuracy.items():
            console.print(f"         {describe_group(name, accuracy)}", soft_wrap=True)
        console.print(f"         {describe_dynamics(row)}", soft_wrap=True)

    return Listener(
        on_plan=show_plan,
        on_rounds=show_rounds,
        on_sampling=show_sampling,
        on_sampled=show_sampled,
        on_split=show_split,
        on_student=show_student,
        on_step=show_step,
        on_trained=show_trained,
        rounds=RoundsListener(show_exploring, show_labelling, show_gate),
    )


def describe_group(name: str, accuracy: Accuracy) -> str:
    """Accuracy of one group of frames in a line."""
    from fastff.report.verdict import format_percent

    return (
        f"{name}: {format_percent(accuracy.overall)} (forces {format_percent(accuracy.force)}, "
        f"energy {format_percent(accuracy.energy)}, stress {format_percent(accuracy.stress)}; "
        f"{'only ' if accuracy.n_frames < 10 else ''}{accuracy.n_frames} frames)"
    )


def describe_dynamics(row: GateRow) -> str:
    """How stable the walkers of a gate were, in a line."""
    found = row.dynamics
    return (
        f"dynamics of {found['walkers']} walkers, {found['picoseconds']:.3g} ps: {found['blown_up']} blew up "
        f"({found['gate_blown_up']} of {found['gate_walkers']} that judge), {found['extrapolated']} extrapolated"
    )


def print_verdict(console: Console, outcome: DistillOutcome) -> None:
    """Five lines: result, forces, energy and stress, time, next command."""
    from fastff.report.verdict import format_percent

    test, (kind, weakest) = outcome.test, outcome.weakest
    word = "[green]target met[/]" if outcome.passed else "[red]target missed[/]"
    console.print(
        f"[bold]verdict[/]  {outcome.architecture}: accuracy {format_percent(weakest.overall)} on "
        f"{weakest.n_frames} {kind}, "
        f"limited by {weakest.limiting}; {word} ({format_percent(outcome.target)})",
        soft_wrap=True,
    )
    for name, accuracy in outcome.sources.items():
        console.print(f"         {describe_group(name, accuracy)}", soft_wrap=True)
    if outcome.rows:
        console.print(f"         {describe_dynamics(outcome.rows[-1])}", soft_wrap=True)
    console.print(
        f"         forces {format_percent(test.force)} (MAE {1e3 * test.force_mae:.1f} meV/Å, "
        f"teacher RMS {test.force_rms:.2f} eV/Å)",
        soft_wrap=True,
    )
    energy_mae = "" if test.energy_mae is None else f" (MAE {1e3 * test.energy_mae:.2f} meV/atom)"
    console.print(
        f"         energy {format_percent(test.energy)}{energy_mae}, stress {format_percent(test.stress)}",
        soft_wrap=True,
    )
    if outcome.hessian is not None:
        console.print(
            f"         Hessian-vector products {format_percent(outcome.hessian.accuracy)} "
            f"({outcome.hessian.n_frames} test frames, teacher RMS {outcome.hessian.rms:.2f} eV/Å^2)",
            soft_wrap=True,
        )
    times = ", ".join(f"{name} {value:.0f} s" for name, value in outcome.seconds.items())
    console.print(f"         time: {times}; model: {outcome.model}", soft_wrap=True)
    against = "--compare-teacher" if outcome.teacher else "--labels FILE"
    console.print(f"next     fastff bench {outcome.model} {against}", soft_wrap=True)
